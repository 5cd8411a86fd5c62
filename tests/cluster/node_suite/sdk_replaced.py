"""A user of the published SDK whose sandbox loses its pod: takes a sandbox of a pool and runs one command after the other in it,
as long as its standard input is open.

    sdk_replaced.py NAMESPACE

Says which sandbox it has, and of each command whether it was answered and how many seconds that took.
"""

import os
import select
import sys
import time

# A proxy of the environment has no business with loopback.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"

from k8s_agent_sandbox import SandboxClient
from k8s_agent_sandbox.exceptions import SandboxError

PAUSE = 0.05


def main():
    (namespace,) = sys.argv[1:]
    with SandboxClient() as client:
        sandbox = client.create_sandbox("pool", namespace)
        print("sandbox", sandbox.sandbox_id, flush=True)
        while not select.select([sys.stdin], [], [], PAUSE)[0]:
            started = time.monotonic()
            try:
                result = sandbox.commands.run("echo here")
                assert (result.exit_code, result.stdout) == (0, "here\n"), result
                verdict = "answered"
            except SandboxError:
                verdict = "failed"
            print(verdict, f"{time.monotonic() - started:.3f}", flush=True)


if __name__ == "__main__":
    main()
