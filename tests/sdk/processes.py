"""The programs under test, started and stopped by the test."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class Process:
    """A program that prints one line starting with `ready ` when it serves."""

    def __init__(self, command: list[str], log: Path, patience: float) -> None:
        self.log = log
        with log.open("ab") as stderr:
            # A session of its own: what it starts dies with it.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
            )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.ready = self._wait_until_ready(patience)
        except BaseException:
            self.kill()
            raise

    def _read(self) -> None:
        """Reads standard output to its end, so that the program never blocks on a full pipe."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _wait_until_ready(self, patience: float) -> str:
        deadline = time.monotonic() + patience
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise RuntimeError(f"{self.process.args} was not ready in {patience:g} s: {self.tail()}") from None
            if line is None:
                raise RuntimeError(f"{self.process.args} ended before it was ready: {self.tail()}")
            if line.startswith("ready "):
                return line.removeprefix("ready ").strip()

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def kill(self) -> None:
        """Ends it at once, with everything it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=10)

    def stop(self) -> None:
        """Asks it to end; past ten seconds it is killed."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()


class Runtime:
    """`runtime.py` with its folder and its request log."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "files"
        self.files.mkdir(exist_ok=True)
        self.log = folder / "requests.jsonl"
        self.log.touch()
        self._stderr = folder / "runtime.stderr"
        self._start(port=0)

    def _start(self, port: int) -> None:
        command = [sys.executable, "-B", str(HERE / "runtime.py"), "--port", str(port)]
        command += ["--folder", str(self.files), "--log", str(self.log)]
        self.process = Process(command, self._stderr, patience=30)
        self.port = int(self.process.ready)

    def kill(self) -> None:
        """Ends the runtime as a crash would."""
        self.process.kill()

    def restart(self) -> None:
        """Brings it back on the same port."""
        self._start(self.port)

    def requests(self) -> list[dict[str, Any]]:
        """Everything that has arrived so far."""
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]


class Trap:
    """A port on loopback that nobody may connect to."""

    def __init__(self) -> None:
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            self.connections += 1
            connection.close()


def start_gate(binary: str, listen: str, sandbox: str, port: int, callers: Sequence[str], log: Path) -> Process:
    """`sandgate-local` in front of one sandbox, with flags that say who may call; its `ready` is the URL clients use."""
    command = [binary, "--listen", listen, "--sandbox", f"{sandbox}={port}", "--namespace", "default"]
    return Process([*command, *callers], log, patience=60)
