"""How long one sandbox's clients wait while the sandbox beside it is noisy: on one worker thread of one router.

Only the router has a CPU to itself. All else shares the other one, and what belongs to the noise runs there only when nobody else
wants to (SCHED_IDLE): the kernel is to take as little as possible from the measured clients, so that what remains is the router's.
"""

import collections
import json
import select
import socket
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from candidates import Running, mesh_flags, sidecar_argv, spawn_router
from certificates import ALPHA, NOISY
from lab import LARGE_PATH, SMALL_BODY, SMALL_PATH, curl, start_noisy_app, start_socket_app
from load import WRK_SCRIPT
from processes import MeasurementError, in_background, pinned

ROUNDS = 5
SECONDS = 2
REQUESTS_PER_SECOND = 400
CONNECTIONS = 32
# The limits of docs/limits.md, "One sandbox beside another". The measured sandbox has them, too.
LIMITS = ("--max-concurrent-requests-per-sandbox=64", "--max-requests-per-second-per-sandbox=500")
# Requests without a pause, whatever the answer is: path and connections.
HAMMERS = ((SMALL_PATH, 32), (LARGE_PATH, 8))
# Longest time for the noise to begin, and for an answer.
PATIENCE_SECONDS = 30
WARM_UP_SECONDS = 0.5
ALONE, DIRECT, DEFAULTS, LIMITED = "alone", "noise past the router", "noise, defaults", "noise, limits"


@dataclass(frozen=True)
class Sample:
    """The measured clients' waits in one round, in ms, and what the noise got in it."""

    p50_ms: float
    p99_ms: float
    noise: dict


def neighbour_samples(lab):
    """Samples by situation; the rounds alternate between them."""
    started = []
    try:
        ports = start_sandboxes(lab, started)
        routers = {}
        for name, flags in ((DEFAULTS, ()), (LIMITED, LIMITS)):
            port = lab.ports.next()
            process = spawn_router(lab, port, [*mesh_flags(lab, ports), *flags])
            started.append(process)
            routers[name] = Running(port, [process])
            expect_answered(lab, routers[name])
        # What stands beside the noise, and what the noise goes through.
        situations = {
            ALONE: (routers[DEFAULTS], None),
            DIRECT: (routers[DEFAULTS], {"small": lab.noisy_port, "held": lab.socket_port}),
            DEFAULTS: (routers[DEFAULTS], through(routers[DEFAULTS])),
            LIMITED: (routers[LIMITED], through(routers[LIMITED])),
        }
        samples = {name: [] for name in situations}
        for number in range(ROUNDS):
            order = list(situations)
            offset = number % len(order)
            for name in order[offset:] + order[:offset]:
                samples[name].append(measure(lab, *situations[name]))
        return samples
    finally:
        for process in reversed(started):
            process.stop()


def expect_answered(lab, router):
    """The noise would be none if the noisy app could not be reached."""
    headers = [argument for header in router.headers(lab.noisy_port, NOISY) for argument in ("-H", header)]
    status, body = curl(lab, f"http://127.0.0.1:{router.port}{SMALL_PATH}", *headers)
    if status != 200 or body != SMALL_BODY:
        raise MeasurementError(f"the noisy sandbox answers {status} with {body[:200]!r}")


def through(router):
    return {"small": router.port, "held": router.port}


def start_sandboxes(lab, started):
    """The sidecars of both and the apps of the noisy one; returns the sidecars' ports."""
    started.append(start_noisy_app(lab))
    started.append(start_socket_app(lab, in_background()))
    ports = {}
    for sandbox, prefix in ((ALPHA, []), (NOISY, in_background())):
        ports[sandbox] = lab.ports.next()
        argv = [*prefix, *sidecar_argv(lab, ports[sandbox], lab.ports.next(), sandbox)]
        started.append(lab.spawn_server(f"sidecar-{sandbox}", argv, lab.load_cpu, ports[sandbox]))
    return ports


def measure(lab, router, noise_ports):
    client = SteadyClient(router.port, router.headers(lab.app_port))
    try:
        client.run(WARM_UP_SECONDS)
        if noise_ports is None:
            waits, noise = client.run(SECONDS), {}
        else:
            with made_noise(lab, router, noise_ports) as noise:
                waits = client.run(SECONDS)
    except OSError as error:
        raise MeasurementError(f"a connection beside the noise breaks: {error}") from error
    finally:
        client.close()
    cuts = statistics.quantiles(waits, n=100)
    return Sample(1e3 * statistics.median(waits), 1e3 * cuts[98], noise)


@contextmanager
def made_noise(lab, router, ports):
    """All the noise for as long as this lasts. Yields a dict that afterwards holds what the noise got."""
    script = Path(__file__).with_name("noise.py")
    held_argv = [sys.executable, script, ports["held"], *router.headers(lab.socket_port, NOISY)]
    processes, got = [], {"hammers": {}}
    try:
        held = spawn_noise(lab, held_argv)
        processes.append(held)
        got["held"] = json.loads(first_line(held))
        hammers = []
        for path, connections in HAMMERS:
            hammers.append(spawn_noise(lab, hammer_argv(lab, router, ports["small"], path, connections)))
            processes.append(hammers[-1])
        # Connected and past its first answers.
        time.sleep(WARM_UP_SECONDS)
        yield got
        for hammer, (path, _) in zip(hammers, HAMMERS, strict=True):
            output, _ = hammer.communicate(timeout=PATIENCE_SECONDS)
            report = json.loads(output.strip().splitlines()[-1])
            if not report["requests"]:
                raise MeasurementError(f"the noise is none: nothing of {path} is answered")
            answered = report["requests"] - report["errors"]["status"]
            seconds = report["duration_us"] / 1e6
            got["hammers"][path] = {"answered": answered / seconds, "refused": report["errors"]["status"] / seconds}
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise MeasurementError(f"the noise failed: {error}") from error
    finally:
        for process in processes:
            process.kill()
            process.wait()


def hammer_argv(lab, router, port, path, connections):
    seconds = f"{SECONDS + 2 * WARM_UP_SECONDS:.0f}s"
    argv = [lab.programs.paths["wrk"], "-t1", f"-c{connections}", f"-d{seconds}", "-s", WRK_SCRIPT]
    for header in router.headers(lab.noisy_port, NOISY):
        argv += ["-H", header]
    return [*argv, f"http://127.0.0.1:{port}{path}"]


def spawn_noise(lab, argv):
    argv = [*pinned(lab.load_cpu), *in_background(), *argv]
    return subprocess.Popen(list(map(str, argv)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def first_line(process):
    if not select.select([process.stdout], [], [], PATIENCE_SECONDS)[0]:
        raise MeasurementError("the noise does not begin")
    return process.stdout.readline()


class SteadyClient:
    """Sends a request every so often whether or not the last one is answered (an open loop), and counts how long each took from
    when it was due: a request that had to wait for a free connection, too."""

    def __init__(self, port, headers):
        fields = [f"GET {SMALL_PATH} HTTP/1.1", "Host: bench", *headers, "", ""]
        self._request = "\r\n".join(fields).encode()
        self._free = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(CONNECTIONS)]
        # By connection: when its request was due, and what has come of the answer.
        self._busy = {}

    def close(self):
        for connection in [*self._free, *self._busy]:
            connection.close()

    def run(self, seconds):
        """The waits of all requests of this time, in seconds."""
        count = round(seconds * REQUESTS_PER_SECOND)
        start = time.perf_counter()
        due = collections.deque(start + number / REQUESTS_PER_SECOND for number in range(count))
        waits = []
        while len(waits) < count:
            now = time.perf_counter()
            if now > start + seconds + PATIENCE_SECONDS:
                raise MeasurementError(f"{count - len(waits)} requests beside the noise are not answered")
            while due and self._free and due[0] <= now:
                connection = self._free.pop()
                connection.sendall(self._request)
                self._busy[connection] = (due.popleft(), b"")
            until_next = max(0.0, due[0] - time.perf_counter()) if due and self._free else 1.0
            for connection in select.select(list(self._busy), [], [], until_next)[0]:
                waits += self._read(connection)
        return waits

    def _read(self, connection):
        due, answer = self._busy.pop(connection)
        piece = connection.recv(4096)
        answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        if body == SMALL_BODY and head.startswith(b"HTTP/1.1 200 "):
            self._free.append(connection)
            return [time.perf_counter() - due]
        self._busy[connection] = (due, answer)
        if not piece or not head.startswith(b"HTTP/1.1 200 "[: len(head)]) or len(body) >= len(SMALL_BODY):
            raise MeasurementError(f"a request beside the noise is answered {answer[:200]!r}")
        return []
