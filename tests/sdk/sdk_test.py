"""The published SDK through sandgate-local to a real runtime. Started by `tests/sdk/run`, which says how.

The SDK is used as published. `SandboxDirectConnectionConfig` needs no cluster, but `Sandbox` asks Kubernetes for the
pod's IP on every call: `NoCluster` answers that there is none, so no `X-Sandbox-Pod-IP` is sent.

`SandboxGatewayConnectionConfig` looks for a Gateway at the API server, for which gateway.py has a stand-in, and calls port 80
of its address. Router and gate are the same real ones.
"""

import io
import os
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# A proxy of the environment has no business with loopback.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"

from k8s_agent_sandbox.exceptions import SandboxRequestError
from k8s_agent_sandbox.k8s_helper import K8sHelper
from k8s_agent_sandbox.models import SandboxDirectConnectionConfig, SandboxGatewayConnectionConfig
from k8s_agent_sandbox.sandbox import Sandbox

from gateway import NAMESPACE as GATEWAYS
from gateway import POD_IP, ApiServer, Gateway
from processes import Process, Runtime, Trap, start_gate

SANDBOX = "dev"
# Gateways by name. Everything in 127.0.0.0/8 is this machine; these are nobody else's.
ADDRESSES = {"open": "127.80.0.1", "closed": "127.80.0.2", "with-token": "127.80.0.3"}
NAMES = [
    "plain.txt",
    "a b+c%25.txt",
    "dir%2Fname with space.txt",
    "folder/sub folder/in a folder.txt",
    "%2e%2e%2fnot-a-way-out.txt",
    "100%.txt",
    "question?mark#hash&amp;=;.txt",
    "naïve-Ünïcödé-文件.txt",
]


class NoCluster:
    """What the SDK's Kubernetes helper would say where there is no Kubernetes."""

    injected_api_client = None

    def get_sandbox(self, name: str, namespace: str) -> None:
        return None


class World:
    """The runtime, the gate in front of it, and a client for whoever asks."""

    def __init__(self, folder: Path, binary: str) -> None:
        self.folder = folder
        self.token = secrets.token_urlsafe(32)
        self.trap = Trap()
        self.runtime = Runtime(folder)
        self.api_server = ApiServer(ADDRESSES)
        self.gates: list[Process] = []
        try:
            self.gate = self._start(binary, "127.0.0.1:0", "--token", self.token)
            # Where the Gateway's address is the router's own: nobody stands between.
            self._start(binary, f"{ADDRESSES['open']}:80", "--allow-unauthenticated")
            self._start(binary, f"{ADDRESSES['closed']}:80", "--token", self.token)
            Gateway(ADDRESSES["with-token"], self.gate.ready, f"Bearer {self.token}")
        except BaseException:
            self.close()
            raise

    def _start(self, binary: str, listen: str, *callers: str) -> Process:
        log = self.folder / f"gate-{len(self.gates)}.stderr"
        self.gates.append(start_gate(binary, listen, SANDBOX, self.runtime.port, callers, log))
        return self.gates[-1]

    def close(self) -> None:
        for gate in self.gates:
            gate.stop()
        self.runtime.kill()

    def sandbox(self, name: str = SANDBOX, token: str | None = "", port: int | None = None) -> Sandbox:
        """A client with the right token, unless another or none is given."""
        token = self.token if token == "" else token
        config = SandboxDirectConnectionConfig(
            api_url=self.gate.ready,
            server_port=port or self.runtime.port,
            extra_headers={} if token is None else {"Authorization": f"Bearer {token}"},
        )
        return Sandbox(claim_name=name, sandbox_id=name, connection_config=config, k8s_helper=NoCluster())

    def behind(self, gateway: str) -> Sandbox:
        """A client in gateway mode."""
        config = SandboxGatewayConnectionConfig(
            gateway_name=gateway, gateway_namespace=GATEWAYS, gateway_ready_timeout=10, server_port=self.runtime.port
        )
        helper = K8sHelper(self.api_server.client())
        return Sandbox(claim_name=SANDBOX, sandbox_id=SANDBOX, connection_config=config, k8s_helper=helper)

    def unseen(self, call: Callable[[], Any]) -> SandboxRequestError:
        """The error that `call` ends in, after making sure that the runtime saw nothing of it."""
        before = len(self.runtime.requests())
        error = fails(call)
        assert self.runtime.requests()[before:] == [], "the runtime saw a request that had to be refused"
        return error


def fails(call: Callable[[], Any]) -> SandboxRequestError:
    try:
        result = call()
    except SandboxRequestError as error:
        return error
    raise AssertionError(f"expected a refusal, got {result!r}")


def equal(found: Any, expected: Any) -> None:
    assert found == expected, f"expected {expected!r}, found {found!r}"


def within(seconds: float, call: Callable[[], Any]) -> Any:
    began = time.monotonic()
    result = call()
    took = time.monotonic() - began
    assert took <= seconds, f"took {took:.1f} s, allowed are {seconds:g} s"
    return result


def check_command_output_and_exit_code(world: World) -> None:
    result = world.sandbox().commands.run("echo out; echo err >&2; printf '%s' 'ü \"quoted\"'; exit 7")
    equal((result.stdout, result.stderr, result.exit_code, result.timed_out), ('out\nü "quoted"', "err\n", 7, False))
    equal(world.sandbox().commands.run("true").exit_code, 0)


def check_command_time_limit(world: World) -> None:
    result = within(8, lambda: world.sandbox().commands.run("sleep 30", command_timeout=1))
    equal((result.exit_code, result.timed_out), (124, True))


def check_large_command_output(world: World) -> None:
    result = world.sandbox().commands.run("head -c 2000000 /dev/zero | tr '\\0' x")
    equal((len(result.stdout), set(result.stdout)), (2_000_000, {"x"}))


def check_file_names_survive(world: World) -> None:
    files = world.sandbox().files
    for name in NAMES:
        content = f"content of {name}".encode()
        files.write(name, content)
        assert (world.runtime.files / name).read_bytes() == content, f"{name} was stored under another name"
        equal(files.exists(name), True)
        equal(files.read(name), content)
    equal(files.exists("dir/name with space.txt"), False)
    listed = {entry.name: entry for entry in files.list("")}
    equal(set(listed), {path.name for path in world.runtime.files.iterdir()})
    equal((listed["dir%2Fname with space.txt"].type, listed["folder"].type), ("file", "directory"))
    equal(listed["plain.txt"].size, len("content of plain.txt"))
    equal([entry.name for entry in files.list("folder/sub folder")], ["in a folder.txt"])


def check_request_targets_arrive_byte_for_byte(world: World) -> None:
    before = len(world.runtime.requests())
    files = world.sandbox().files
    files.exists("dir%2Fname with space.txt")
    files.exists("a b+c%25.txt")
    files.exists("folder/sub folder/x~*'()")
    targets = [request["target"] for request in world.runtime.requests()[before:]]
    expected = ["/exists/dir%252Fname%20with%20space.txt", "/exists/a%20b%2Bc%2525.txt"]
    equal(targets, [*expected, "/exists/folder%2Fsub%20folder%2Fx~%2A%27%28%29"])


def check_gateway_mode_runs_commands_and_keeps_files(world: World) -> None:
    for gateway in ("open", "with-token"):
        before = len(world.api_server.asked)
        sandbox = world.behind(gateway)
        result = sandbox.commands.run("echo out; exit 7")
        equal((result.stdout, result.exit_code), ("out\n", 7))
        assert world.api_server.asked[before:], "the API server was not asked: is this gateway mode?"
        for name in NAMES:
            content = f"{name} by {gateway}".encode()
            sandbox.files.write(name, content)
            assert (world.runtime.files / name).read_bytes() == content, f"{name} was stored under another name"
            equal(sandbox.files.exists(name), True)
            equal(sandbox.files.read(name), content)
        equal({entry.name for entry in sandbox.files.list("")}, {path.name for path in world.runtime.files.iterdir()})
        content = random.Random(gateway).randbytes(1 << 20)
        sandbox.files.write("streamed.bin", io.BytesIO(content))
        streamed = io.BytesIO()
        equal(sandbox.files.read_to("streamed.bin", streamed), len(content))
        assert streamed.getvalue() == content, "an upload or a download changed the bytes"


def check_gateway_mode_calls_the_root_of_port_80_and_says_where_the_pod_is(world: World) -> None:
    sandbox = world.behind("open")
    before = len(world.runtime.requests())
    sandbox.files.exists("dir%2Fname with space.txt")
    (request,) = world.runtime.requests()[before:]
    equal(request["target"], "/exists/dir%252Fname%20with%20space.txt")
    equal([value for name, value in request["headers"] if name == "x-forwarded-host"], [ADDRESSES["open"]])
    equal(sandbox.connector.strategy.connect(), f"http://{ADDRESSES['open']}")
    # The router knows this sandbox, so it doesn't follow the hint, and the app isn't told of it.
    equal(sandbox.connector._pod_ip, POD_IP)
    assert not [name for name, _ in request["headers"] if name.startswith("x-sandbox-")], request["headers"]


def check_gateway_mode_has_no_credential_of_its_own(world: World) -> None:
    for call in (lambda s: s.commands.run("touch broken-in"), lambda s: s.files.write("broken-in", b"x"),
                 lambda s: s.files.read("plain.txt")):
        sandbox = world.behind("closed")
        equal(world.unseen(lambda: call(sandbox)).status_code, 401)
    before = len(world.runtime.requests())
    world.behind("with-token").commands.run("true")
    (request,) = world.runtime.requests()[before:]
    assert world.token not in repr(request), "the Gateway's token reached the runtime"


def check_3_mib_round_trip(world: World) -> None:
    files = world.sandbox().files
    content = random.Random(1).randbytes(3 << 20)
    files.write("in memory.bin", content)
    assert files.read("in memory.bin") == content, "read() changed the bytes"
    # The other way: chunked upload from a file object, streamed download.
    files.write("streamed.bin", io.BytesIO(content))
    streamed = io.BytesIO()
    equal(files.read_to("streamed.bin", streamed), len(content))
    assert streamed.getvalue() == content, "read_to() changed the bytes"
    for name in ("in memory.bin", "streamed.bin"):
        assert (world.runtime.files / name).read_bytes() == content, f"{name} differs on the runtime's disk"


def check_concurrent_calls_do_not_mix(world: World) -> None:
    shared = world.sandbox()

    def one(n: int) -> None:
        sandbox = shared if n % 2 else world.sandbox()
        content = random.Random(n).randbytes(100_000 + n)
        sandbox.files.write(f"concurrent {n}", content)
        equal(sandbox.commands.run(f"echo {n}; exit {n}").model_dump(include={"stdout", "exit_code"}),
              {"stdout": f"{n}\n", "exit_code": n})
        assert sandbox.files.read(f"concurrent {n}") == content, f"call {n} got another's bytes"

    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(one, range(48)))


def check_an_answer_of_the_runtime_is_not_the_gates(world: World) -> None:
    sandbox = world.sandbox()
    error = fails(lambda: sandbox.files.read("no such file"))
    equal((error.status_code, error.response.json()), (404, {"detail": "no such file"}))
    # A 4xx keeps the connection usable.
    equal(sandbox.commands.run("echo on").stdout, "on\n")


def check_the_runtime_gets_no_credential(world: World) -> None:
    before = len(world.runtime.requests())
    world.sandbox().files.exists("x")
    world.sandbox().commands.run("true")
    seen = world.runtime.requests()[before:]
    equal(len(seen), 2)
    for request in seen:
        assert world.token not in repr(request), "the token reached the runtime"
        names = [name for name, _ in request["headers"]]
        leaked = [name for name in names if name == "authorization" or name.startswith("x-sandbox-")]
        equal(leaked, [])
        equal([value for name, value in request["headers"] if name == "host"], [f"127.0.0.1:{world.runtime.port}"])
        for name in ("x-forwarded-for", "x-request-id"):
            equal(names.count(name), 1)


def check_a_wrong_token_is_refused(world: World) -> None:
    for token in ("wrong", world.token + "x", world.token[:-1], world.token.swapcase(), None):
        for call in (lambda s: s.commands.run("touch broken-in"), lambda s: s.files.write("broken-in", b"x"),
                     lambda s: s.files.read("plain.txt")):
            sandbox = world.sandbox(token=token)
            error = world.unseen(lambda: call(sandbox))
            equal(error.status_code, 401)
            assert error.response.headers.get("WWW-Authenticate", "").startswith("Bearer"), "no WWW-Authenticate: Bearer"
    assert not (world.runtime.files / "broken-in").exists()


def check_a_port_outside_the_policy_is_refused(world: World) -> None:
    for port in (world.trap.port, 1, 8888, 65535):
        if port != world.runtime.port:
            error = world.unseen(lambda: world.sandbox(port=port).commands.run("touch broken-in"))
            equal(error.status_code, 403)
    equal(world.trap.connections, 0)


def check_an_unknown_sandbox_is_refused(world: World) -> None:
    error = within(15, lambda: world.unseen(lambda: world.sandbox(name="nobody").commands.run("true")))
    assert error.status_code in (403, 404, 502), f"answered {error.status_code}"


def check_a_crash_in_mid_command_gives_502(world: World) -> None:
    outcome: list[SandboxRequestError | BaseException] = []

    def run() -> None:
        try:
            outcome.append(fails(lambda: world.sandbox().commands.run("echo $$ > started; exec sleep 60")))
        except BaseException as error:
            outcome.append(error)

    waiting = threading.Thread(target=run, daemon=True)
    waiting.start()
    deadline = time.monotonic() + 10
    started = world.runtime.files / "started"
    while not (started.exists() and started.read_text().endswith("\n")):
        assert time.monotonic() < deadline, "the command did not start"
        time.sleep(0.02)
    try:
        world.runtime.kill()
        waiting.join(10)
        assert not waiting.is_alive(), "no answer ten seconds after the runtime crashed"
        equal([getattr(end, "status_code", end) for end in outcome], [502])
        # Nobody listens now: refused, retried for a bounded time, then 502.
        error = within(10, lambda: fails(lambda: world.sandbox().commands.run("true")))
        equal(error.status_code, 502)
        # The gate still checks who is asking.
        equal(fails(lambda: world.sandbox(token="wrong").commands.run("true")).status_code, 401)
    finally:
        # A command has a session of its own and outlives the runtime.
        os.kill(int(started.read_text()), signal.SIGKILL)
        world.runtime.restart()
    equal(within(10, lambda: world.sandbox().commands.run("echo back").stdout), "back\n")


def judge(world: World, check: Callable[[World], None]) -> bool:
    """Runs one check and prints its line."""
    name = check.__name__.removeprefix("check_").replace("_", " ")
    began = time.monotonic()
    try:
        check(world)
    except Exception as error:
        print(f"FAIL  {name}: {error}", flush=True)
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        return False
    print(f"PASS  {name} ({time.monotonic() - began:.1f} s)", flush=True)
    return True


def judge_all(binary: str, checks: list[Callable[[World], None]]) -> list[bool]:
    with tempfile.TemporaryDirectory(prefix="sandgate-sdk-") as folder:
        try:
            world = World(Path(folder), binary)
        except Exception as error:
            print(f"FAIL  the gate and the runtime start: {error}", flush=True)
            return [False]
        try:
            verdicts = [judge(world, check) for check in checks]
        finally:
            world.close()
        if not all(verdicts):
            for gate in world.gates:
                print(f"{gate.log.name}'s last words:\n{gate.tail()}", file=sys.stderr)
        return verdicts


def main() -> int:
    binary = os.environ.get("SANDGATE_LOCAL")
    if not binary:
        print("SANDGATE_LOCAL names no sandgate-local; start this through tests/sdk/run", file=sys.stderr)
        return 2
    # When the time is up `run` sends SIGTERM: leave through every `finally`, so that nothing is left running.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    checks = [check for name, check in globals().items() if name.startswith("check_") and wanted in name]
    verdicts = judge_all(binary, checks)
    passed = sum(verdicts)
    print(f"{passed} passed, {len(verdicts) - passed} failed")
    return 0 if verdicts and all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
