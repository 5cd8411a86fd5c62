"""Starting, pinning, observing and stopping the processes of one run.

Only processes started here are ever signalled, each by its own pid.
"""

import contextlib
import os
import random
import resource
import socket
import subprocess
import time
from pathlib import Path

CLOCK_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
START_TIMEOUT_SECONDS = 20.0
STOP_TIMEOUT_SECONDS = 5.0
# Below the kernel's ephemeral range, so that no client connection takes a port before its server binds it.
PORT_RANGE = range(20_000, 32_000)


class MeasurementError(Exception):
    """Something could not be measured; the text says what and why."""


class Process:
    """One program under test or one of its companions."""

    def __init__(self, name, popen, log):
        self.name = name
        self.log = log
        self._popen = popen

    @property
    def pid(self):
        return self._popen.pid

    def is_alive(self):
        return self._popen.poll() is None

    def rss_bytes(self):
        return self._status_bytes("VmRSS")

    def peak_rss_bytes(self):
        return self._status_bytes("VmHWM")

    def reset_peak_rss(self):
        """Makes `peak_rss_bytes` count from now. Where that is not allowed the peak stays an upper bound."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def cpu_seconds(self):
        """User plus system time of all threads, ended ones included."""
        stat = self._read("stat")
        # The second field is the program's name in parentheses and may hold anything.
        fields = stat.rpartition(")")[2].split()
        user, system = int(fields[11]), int(fields[12])
        return (user + system) / CLOCK_TICKS_PER_SECOND

    def stop(self):
        if self.is_alive():
            self._popen.terminate()
            try:
                self._popen.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        self._popen.wait()

    def failure(self, what):
        """A MeasurementError that carries the end of this process's log."""
        tail = self.log.read_text(errors="replace").splitlines()[-15:]
        return MeasurementError("\n    ".join([f"{self.name}: {what}", *tail]))

    def _status_bytes(self, key):
        for line in self._read("status").splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
        raise self.failure(f"has no {key}: it has exited")

    def _read(self, entry):
        try:
            return Path(f"/proc/{self.pid}/{entry}").read_text()
        except OSError as error:
            raise self.failure(f"can't read its {entry}: {error}") from error


class Supervisor:
    """Owns every long-lived process of the run."""

    def __init__(self, log_directory):
        self._logs = log_directory
        self._started = []

    def spawn(self, name, argv, cpu, env=None):
        """Starts `argv` on `cpu`. It dies with this program, and a Ctrl-C at the terminal does not reach it."""
        return self._popen(name, [*pinned(cpu), *argv], env)

    def spawn_bare(self, name, argv, cpu):
        """As `spawn`, without the commands that `pinned` runs first: for the measurement of a start."""
        ours = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cpu})
        try:
            return self._popen(name, argv)
        finally:
            os.sched_setaffinity(0, ours)

    def _popen(self, name, argv, env=None):
        log = self._logs / f"{len(self._started):03}-{name}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                list(map(str, argv)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        process = Process(name, popen, log)
        self._started.append(process)
        return process

    def stop_all(self):
        for process in reversed(self._started):
            process.stop()


def allow_files(count):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
    except (ValueError, OSError) as error:
        raise MeasurementError(f"{count} open files are needed and not allowed: {error}") from error


def pinned(cpu):
    """Commands that pin a program to `cpu`, tie its life to ours and then become it, so the pid is the program's."""
    return ["setpriv", "--pdeathsig", "KILL", "taskset", "-c", str(cpu)]


def in_background():
    """Commands that have a program run only when nothing else wants its CPU, and then become it."""
    return ["chrt", "--idle", "0"]


class PortAllocator:
    """Hands out loopback TCP ports, none of them twice."""

    def __init__(self):
        self._ports = iter(random.sample(PORT_RANGE, len(PORT_RANGE)))

    def next(self):
        for port in self._ports:
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        raise MeasurementError("no free loopback port is left")


def wait_until_listening(process, port):
    """Returns once `port` accepts; raises when the process ends or never listens."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not accepts(port):
        if not process.is_alive():
            raise process.failure("exited before it listened")
        if time.monotonic() > deadline:
            raise process.failure(f"does not listen on port {port}")
        time.sleep(0.01)


def accepts(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
