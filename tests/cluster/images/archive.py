"""Writes an image as `docker save` does: one layer, its configuration, and the manifest that names both.

    archive.py NAME FILE ROOT [CONFIG]

ROOT is a folder with the image's file system; CONFIG a JSON object such as {"Cmd": ["/pause"], "User": "1000"}.
"""

import hashlib
import io
import json
import platform
import sys
import tarfile
import tempfile
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def add(archive, name, content):
    about = tarfile.TarInfo(name)
    about.size = len(content)
    archive.addfile(about, io.BytesIO(content))


def main():
    name, file, root, *config = sys.argv[1:]
    with tempfile.TemporaryFile(dir=Path(file).parent) as layer:
        with tarfile.open(fileobj=layer, mode="w") as contents:
            for entry in sorted(Path(root).iterdir()):
                contents.add(entry, entry.name)
        layer.seek(0)
        digest = hashlib.file_digest(layer, "sha256").hexdigest()
        image = {
            "architecture": ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": json.loads(config[0]) if config else {},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
        manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
        with tarfile.open(file, mode="w") as archive:
            add(archive, "config.json", json.dumps(image).encode())
            about = tarfile.TarInfo("layer.tar")
            about.size = layer.seek(0, io.SEEK_END)
            layer.seek(0)
            archive.addfile(about, layer)
            add(archive, "manifest.json", json.dumps(manifest).encode())


if __name__ == "__main__":
    main()
