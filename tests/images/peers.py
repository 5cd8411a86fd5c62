"""What a program in a container talks with: a DNS server, an app behind the router, and whoever sends it a request."""

import contextlib
import signal
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

PATIENCE = 20
# Between two attempts to reach a program that may not listen yet.
PAUSE = 0.02
NOT_THERE = 3
A = 1


class Dns:
    """Answers on 127.0.0.1:53 for the names it was given, and with "no such name" for every other."""

    def __init__(self, names):
        self.asked = set()
        self._names = names
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                query, client = self._socket.recvfrom(512)
            except OSError:
                return
            # Closed.
            if not query:
                return
            self._socket.sendto(self._answer(query), client)

    def _answer(self, query):
        labels, place = [], 12
        while length := query[place]:
            labels.append(query[place + 1 : place + 1 + length].decode())
            place += 1 + length
        name = ".".join(labels)
        self.asked.add(name)
        question = query[12 : place + 5]
        (kind,) = struct.unpack_from(">H", query, place + 1)
        records = b""
        if kind == A and name in self._names:
            # The name of the question, class IN, a minute to live, four bytes.
            records = struct.pack(">HHHIH", 0xC00C, A, 1, 60, 4) + socket.inet_aton(self._names[name])
        flags = 0x8580 if name in self._names else 0x8580 | NOT_THERE
        return query[:2] + struct.pack(">HHHHH", flags, 1, bool(records), 0, 0) + question + records

    def close(self):
        # Also wakes the thread that reads, which a mere close wouldn't.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"the app")

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def app(address):
    """An app that answers every request, and the list of those it saw."""
    server = HTTPServer(address, _Handler)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.seen
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def ending(process):
    """Has it asked to end, and to have ended well."""
    try:
        yield
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f"exit status {process.returncode} after SIGTERM: {output}"
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def get(process, url, headers=None):
    """Status and body, as soon as the process listens."""
    request = urllib.request.Request(url, headers=headers or {})
    deadline = time.monotonic() + PATIENCE
    # Without the proxies that the environment may name.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, answer.read()
        except OSError as error:
            if process.poll() is not None:
                raise AssertionError(f"it ended with {process.returncode}: {process.communicate()[0]}") from error
            if time.monotonic() > deadline:
                raise AssertionError(f"no answer from {url} in {PATIENCE} s: {error}") from error
            time.sleep(PAUSE)
