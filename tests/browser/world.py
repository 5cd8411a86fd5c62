"""What the browser meets: apps in sandboxes, and the gate with its router in front of them."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from processes import Process

# Browsers take every name under localhost for this machine. One more label makes the sandboxes' hosts one site, as they
# are under a domain of one's own: the browser sends cookies from one to another, which is the harder case.
DOMAIN = "sandboxes.localhost"
PREFIX = "/p"

# Seconds to wait for what happens at once on a machine that has nothing else to do.
PATIENCE = 120.0


def until(what: str, happened: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """What `happened` returns once that is true."""
    deadline = time.monotonic() + patience
    while True:
        result = happened()
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Seen:
    """A request as the witness got it."""

    method: str
    path: str
    headers: dict[str, str]


class Witness(ThreadingHTTPServer):
    """An app that answers everything with `page`, and notes what it was asked."""

    daemon_threads = True

    def __init__(self, page: str) -> None:
        # With an icon, or the browser would ask for one at a time of its own.
        self.page = f'<!doctype html><link rel="icon" href="data:,">{page}'.encode()
        self.seen: list[Seen] = []
        super().__init__(("127.0.0.1", 0), Answer)
        self.port: int = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def take(self) -> list[Seen]:
        """What it has seen since it was last asked."""
        seen, self.seen = self.seen, []
        return seen


class Answer(BaseHTTPRequestHandler):
    """One request to a witness."""

    protocol_version = "HTTP/1.1"
    server: Witness

    def answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append(Seen(self.command, self.path, headers))
        self.rfile.read(int(headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(self.server.page)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.server.page)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server:
    """A program that listens on a port it is told."""

    def __init__(self, command: Callable[[int], list[str]], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        with log.open("wb") as output:
            # A session of its own: what it starts dies with it.
            self.process = subprocess.Popen(
                command(self.port), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        until(f"{self.log.stem} listens", self._listens, patience=120)

    def _listens(self) -> bool:
        assert self.process.poll() is None, f"{self.log.stem} ended: {self.tail()}"
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        return True

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def stop(self) -> None:
        """Asks it to end, as it has programs to end itself; what is left past 15 seconds is killed."""
        self.process.terminate()
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=10)


class World:
    """Sandbox `dev` with JupyterLab, ttyd and a witness, sandbox `evil` with a page, and the gate."""

    def __init__(self, folder: Path, binary: str, stack: ExitStack) -> None:
        self.token = secrets.token_urlsafe(32)
        self.files = folder / "files"
        self.files.mkdir()
        self.jupyter = self._jupyter(folder)
        stack.callback(self.jupyter.stop)
        self.ttyd = self._ttyd(folder)
        stack.callback(self.ttyd.stop)
        self.witness = Witness("the witness's secret")
        stack.callback(self.witness.close)
        self.evil = Witness("a neighbour's page")
        stack.callback(self.evil.close)
        for app in (self.ttyd, self.jupyter):
            app.wait_until_ready()
        self.gate = self._gate(folder, binary)
        stack.callback(self.gate.stop)
        self.router = self.gate.ready.removeprefix("http://127.0.0.1:")

    def _jupyter(self, folder: Path) -> Server:
        """As a sandbox's image would start it: nothing in its settings speaks of a proxy."""
        home = folder / "jupyter"
        # Nothing of the user's own is read or written. The shell of terminals has no start files either.
        environment = os.environ | {"HOME": str(home), "SHELL": "/bin/sh", "PS1": "$ "}
        environment |= {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
        environment |= {"IPYTHONDIR": str(home / "ipython")}
        settings = home / "config" / "labconfig" / "page_config.json"
        settings.parent.mkdir(parents=True)
        # It would ask the user whether to ask the internet for news.
        settings.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
        options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--ServerApp.port_retries=0"]
        options += [f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.files}"]
        program = [sys.executable, "-m", "jupyterlab", *options]
        return Server(lambda port: [*program, f"--port={port}"], folder / "jupyter.log", environment)

    def _ttyd(self, folder: Path) -> Server:
        options = ["--interface", "127.0.0.1", "--writable", "--client-option", "rendererType=dom"]
        environment = os.environ | {"PS1": "$ "}
        program = os.environ["TTYD"]
        return Server(lambda port: [program, f"--port={port}", *options, "/bin/sh"], folder / "ttyd.log", environment)

    def _gate(self, folder: Path, binary: str) -> Process:
        dev = ",".join(str(app.port) for app in (self.jupyter, self.ttyd, self.witness))
        command = [binary, "--listen", "127.0.0.1:0", "--allow-unauthenticated"]
        command += ["--sandbox", f"dev={dev}", "--sandbox", f"evil={self.evil.port}"]
        command += ["--", f"--host-routing-domain={DOMAIN}", f"--path-routing-prefix={PREFIX}"]
        return Process(command, folder / "gate.log", patience=60)

    def host(self, app: Server | Witness, sandbox: str = "dev") -> str:
        """The app's host and port, as a browser has it."""
        return f"{app.port}-{sandbox}--default.{DOMAIN}:{self.router}"

    def path(self, app: Server | Witness, sandbox: str = "dev") -> str:
        """The app's path, below the router's own host."""
        return f"{PREFIX}/default/{sandbox}/{app.port}"

    def tails(self) -> Iterator[str]:
        """The last words of each program."""
        for name, program in (("gate", self.gate), ("jupyter", self.jupyter), ("ttyd", self.ttyd)):
            yield f"--- {name}:\n{program.tail()}"


@contextmanager
def started(folder: Path, binary: str) -> Iterator[World]:
    """The world, ended whatever happens."""
    with ExitStack() as stack:
        yield World(folder, binary, stack)
