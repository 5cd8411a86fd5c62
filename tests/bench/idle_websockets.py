"""What the router holds for WebSockets that say nothing, over the whole path: client, router, mutual TLS, sidecar, app."""

import socket
import ssl
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from candidates import mesh_flags, sidecar_argv, spawn_router
from certificates import ALPHA
from checks import IDLE_CONNECTIONS, SETTLE_SECONDS, count_closed
from lab import start_socket_app
from processes import MeasurementError, allow_files

WANTED = 10_000
PLAIN, TLS = "plain clients", "TLS clients"
# All these clients have one address.
UNLIMITED = ("--websocket-max-connections-per-client=0",)
SIDECAR_UNLIMITED = (f"--max-connections={4 * WANTED}",)
TIMEOUT_SECONDS = 60
# That wait for an answer at a time.
AT_ONCE = 16
MESSAGE = b"still here"
# A client's frame, whose mask of zeros leaves the payload as it is, and the same from the app.
ASKED = bytes([0x82, 0x80 | len(MESSAGE), 0, 0, 0, 0]) + MESSAGE
ECHOED = bytes([0x82, len(MESSAGE)]) + MESSAGE


@dataclass(frozen=True)
class Held:
    """The router's memory without and with so many WebSockets, in bytes."""

    opened: int
    before: int
    after: int

    @property
    def each(self):
        return (self.after - self.before) / self.opened

    def with_wanted(self):
        """With `WANTED` of them, at as much for each: the system may not grant files for so many."""
        return self.before + self.each * WANTED


def measure_both(lab):
    """`Held` of a fresh router, by what its clients speak."""
    allow_files(IDLE_CONNECTIONS + 1_000)
    return {PLAIN: measure(lab, False), TLS: measure(lab, True)}


def measure(lab, over_tls):
    port, tls_port, mesh_port = lab.ports.next(), lab.ports.next(), lab.ports.next()
    front = lab.certificates.front
    https = ["--https-bind-address", f"127.0.0.1:{tls_port}"]
    https += ["--tls-cert-file", front.certificate, "--tls-key-file", front.key]
    started, clients = [], []
    try:
        started.append(start_socket_app(lab))
        argv = [*sidecar_argv(lab, mesh_port, lab.ports.next()), *SIDECAR_UNLIMITED]
        started.append(lab.spawn_proxy("sidecar", argv, mesh_port))
        router = spawn_router(lab, port, [*mesh_flags(lab, {ALPHA: mesh_port}), *UNLIMITED, *https])
        started.append(router)
        opener = Opener(lab, tls_port if over_tls else port, over_tls)
        # The first brings what the router needs once.
        clients.append(opener.open())
        time.sleep(SETTLE_SECONDS)
        before = router.rss_bytes()
        clients += at_once(lambda _: opener.open(), range(IDLE_CONNECTIONS))
        after = statistics.median(rss_when_idle(router) for _ in range(3))
        expect_open(clients)
        return Held(IDLE_CONNECTIONS, before, after)
    except OSError as error:
        raise MeasurementError(f"a WebSocket breaks: {error}") from error
    finally:
        for client in clients:
            client.close()
        for process in reversed(started):
            process.stop()


def at_once(do, each):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(do, each))


def rss_when_idle(router):
    time.sleep(SETTLE_SECONDS / 2)
    return router.rss_bytes()


class Opener:
    """Opens WebSockets through one port of a router."""

    def __init__(self, lab, port, over_tls):
        self._port = port
        self._tls = self._context(lab) if over_tls else None
        fields = [
            "GET /bench/socket HTTP/1.1",
            "Host: bench",
            f"X-Sandbox-ID: {ALPHA}",
            "X-Sandbox-Namespace: bench",
            f"X-Sandbox-Port: {lab.socket_port}",
            "Connection: upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]
        self._head = "".join(f"{field}\r\n" for field in [*fields, ""]).encode()

    def _context(self, lab):
        context = ssl.create_default_context(cafile=lab.certificates.trust_bundle)
        # The leaf says whose it is by a URI, which Python doesn't compare.
        context.check_hostname = False
        return context

    def open(self):
        """A WebSocket on which a first message went to the app and back."""
        client = socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT_SECONDS)
        if self._tls:
            client = self._tls.wrap_socket(client)
        client.sendall(self._head)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            piece = client.recv(4096)
            if not piece:
                break
            answer += piece
        if not answer.startswith(b"HTTP/1.1 101 "):
            raise MeasurementError(f"a WebSocket is answered {answer[:200]!r}")
        echo(client)
        return client


def echo(client):
    client.sendall(ASKED)
    answer = b""
    while len(answer) < len(ECHOED):
        piece = client.recv(len(ECHOED) - len(answer))
        if not piece:
            raise MeasurementError("a WebSocket is closed")
        answer += piece
    if answer != ECHOED:
        raise MeasurementError(f"a WebSocket echoes {answer!r}")


def expect_open(clients):
    """All are open and had nothing to say: nobody hears a word or an end unasked, and each echoes a message."""
    if heard := count_closed(clients):
        raise MeasurementError(f"{heard} of {len(clients)} idle WebSockets were closed or said something")
    at_once(echo, clients)
