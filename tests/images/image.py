"""Images as `buildah push oci:FOLDER` leaves them, and the programs in them."""

import gzip
import hashlib
import json
import os
import struct
import subprocess
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

PT_INTERP = 3
PT_DYNAMIC = 2
PT_GNU_STACK = 0x6474E551
PT_GNU_RELRO = 0x6474E552
DT_NEEDED = 1
ET_DYN = 3
PF_X = 1


@dataclass(frozen=True)
class Layer:
    """One layer: its tar archive, and how much of it a registry would send."""

    archive: bytes
    transferred: int

    def members(self):
        with tarfile.open(fileobj=BytesIO(self.archive)) as archive:
            return archive.getmembers()


class Image:
    """An image in a folder of OCI's layout."""

    def __init__(self, name, folder):
        self.name = name
        self._blobs = Path(folder) / "blobs" / "sha256"
        index = json.loads((Path(folder) / "index.json").read_text())
        [entry] = index["manifests"]
        self.digest = entry["digest"]
        manifest = json.loads(self._blob(entry["digest"]))
        self._config = json.loads(self._blob(manifest["config"]["digest"]))
        self.layers = []
        for descriptor in manifest["layers"]:
            packed = self._blob(descriptor["digest"])
            self.layers.append(Layer(gzip.decompress(packed), len(packed)))

    def _blob(self, digest):
        data = (self._blobs / digest.removeprefix("sha256:")).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest.removeprefix("sha256:"), f"{self.name}: {digest} is damaged"
        return data

    @property
    def architecture(self):
        return self._config["architecture"]

    @property
    def user(self):
        return self._config["config"].get("User", "")

    @property
    def labels(self):
        return self._config["config"].get("Labels") or {}

    @property
    def entrypoint(self):
        return self._config["config"].get("Entrypoint") or []

    @property
    def ports(self):
        return set(self._config["config"].get("ExposedPorts") or {})

    @property
    def environment(self):
        return dict(entry.split("=", 1) for entry in self._config["config"].get("Env") or [])

    def members(self):
        """Whatever the layers hold: files, folders, links, deletions."""
        return [member for layer in self.layers for member in layer.members()]

    def programs(self):
        """The files, by name."""
        found = {}
        for layer in self.layers:
            with tarfile.open(fileobj=BytesIO(layer.archive)) as archive:
                for member in archive:
                    if member.isfile():
                        found["/" + member.name.lstrip("./")] = archive.extractfile(member).read()
        return found

    def unpack(self, root):
        for layer in self.layers:
            with tarfile.open(fileobj=BytesIO(layer.archive)) as archive:
                archive.extractall(root)


class Root:
    """The root file system of a container: the image, the files a runtime adds, mounted read-only, and volumes in memory."""

    def __init__(self, image, folder, added=None, volumes=()):
        self.image = image
        self.path = Path(folder)
        self.path.mkdir()
        image.unpack(self.path)
        for name, text in (added or {}).items():
            file = self.path / name.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self._volumes = [self.path / volume.lstrip("/") for volume in volumes]
        for volume in self._volumes:
            volume.mkdir(parents=True)
        _mount("--bind", self.path, self.path)
        _mount("-o", "remount,bind,ro,nosuid,nodev", self.path)
        for volume in self._volumes:
            # As a kubelet makes one: everybody may write to it.
            _mount("-t", "tmpfs", "-o", "mode=0777,nosuid,nodev,noexec", "tmpfs", volume)
        try:
            (self.path / "written").touch()
        except OSError:
            return
        raise AssertionError(f"{self.path} isn't read-only")

    def unmount(self):
        for mounted in (*self._volumes, self.path):
            subprocess.run(["umount", mounted], check=True, timeout=20)

    def start(self, *arguments, user=None, environment=None, **options):
        """Starts the image's entrypoint in it, as the image's user if no other is given."""
        uid, gid = (int(part) for part in (user or self.image.user).split(":"))

        def enter():
            os.chroot(self.path)
            os.chdir("/")
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)

        return subprocess.Popen(
            [*self.image.entrypoint, *arguments],
            env={**self.image.environment, **(environment or {})},
            preexec_fn=enter,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **{"stdin": subprocess.DEVNULL, **options},
        )

    def run(self, *arguments, text=None, **options):
        """Runs the entrypoint to its end: exit status and output."""
        process = self.start(*arguments, stdin=subprocess.PIPE, **options)
        try:
            output, _ = process.communicate(text, timeout=20)
        finally:
            process.kill()
        return process.returncode, output


def _mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True, timeout=20)


class Elf:
    """What of a 64-bit little-endian ELF file says how it is linked."""

    def __init__(self, data):
        assert data[:6] == b"\x7fELF\x02\x01", "no 64-bit little-endian ELF file"
        self.type, self.machine = struct.unpack_from("<HH", data, 16)
        (start,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        headers = [struct.unpack_from("<IIQQQQ", data, start + index * size) for index in range(count)]
        self.segments = {kind: flags for kind, flags, *_ in headers}
        self.needed = 0
        for kind, _, offset, _, _, length in headers:
            if kind == PT_DYNAMIC:
                tags = (struct.unpack_from("<q", data, place)[0] for place in range(offset, offset + length, 16))
                self.needed += sum(tag == DT_NEEDED for tag in tags)
