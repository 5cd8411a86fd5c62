"""What a user of the published SDK does: takes a sandbox of a pool, runs a command in it, writes a file and reads it.

    sdk_client.py NAMESPACE

The SDK is in its default mode: `kubectl port-forward` to the router's Service. Fails where anything is not as it should be,
and otherwise says how long it took.
"""

import os
import sys
import time

# A proxy of the environment has no business with loopback.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"

from k8s_agent_sandbox import SandboxClient

CONTENT = bytes(range(256)) * 64
# Upstream's runtime decodes names twice, so none has a percent sign.
NAMES = ["plain.txt", "a b+c.txt", "naïve.txt"]


def main():
    (namespace,) = sys.argv[1:]
    started = time.monotonic()
    with SandboxClient() as client:
        sandbox = client.create_sandbox("pool", namespace)
        print(f"the sandbox was there after {time.monotonic() - started:.2f} s")
        result = sandbox.commands.run("python3 -c 'print(6 * 7)'")
        assert (result.exit_code, result.stdout) == (0, "42\n"), result
        print(f"the first command was answered after {time.monotonic() - started:.2f} s")
        failed = sandbox.commands.run("python3 -c 'raise SystemExit(3)'")
        assert failed.exit_code == 3, failed
        for name in NAMES:
            sandbox.files.write(name, CONTENT)
            assert sandbox.files.read(name) == CONTENT, name
        assert not sandbox.files.exists("not-there.txt")
        names = {entry.name for entry in sandbox.files.list(".")}
        assert names >= set(NAMES), names
        print(f"{len(NAMES)} files were written, read and listed after {time.monotonic() - started:.2f} s")


if __name__ == "__main__":
    main()
