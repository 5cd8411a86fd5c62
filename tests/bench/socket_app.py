"""The app of connections that are held, a program of its own: `socket_app.py PORT`.

GET /bench/socket with an upgrade is a WebSocket whose short, unfragmented frames come back. GET /bench/endless answers for as
long as somebody reads. Of any other request it reads the head, and never answers. One thread and no buffer for each
connection, so that thousands of them cost this program little.
"""

import base64
import contextlib
import hashlib
import re
import select
import socket
import sys

WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CHUNK = b"10000\r\n" + bytes(0x10000) + b"\r\n"
READ_BYTES = 4096


def accept_key(key):
    return base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID).digest())


class Connection:
    """One connection: `serve_head` until its head has come, then what the head asked for."""

    def __init__(self, stream, poll):
        self.stream = stream
        self._poll = poll
        self._unread = b""
        self._unsent = b""
        self.serve = self._serve_head

    def _serve_head(self):
        self._read()
        head, end, rest = self._unread.partition(b"\r\n\r\n")
        if not end:
            return
        self._unread = rest
        key = re.search(rb"\r\nsec-websocket-key: *(\S+)", head, re.IGNORECASE)
        if key and head.startswith(b"GET /bench/socket "):
            answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            self.stream.send(answer + b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept_key(key[1]))
            self.serve = self._echo
        elif head.startswith(b"GET /bench/endless "):
            self._unsent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            self._poll.modify(self.stream, select.EPOLLOUT)
            self.serve = self._send_on
        else:
            self.serve = self._discard

    def _echo(self):
        """Sends each frame back as servers do, without its mask."""
        self._read()
        while len(self._unread) >= 6 and len(self._unread) >= 6 + (length := self._unread[1] & 0x7F):
            mask, payload = self._unread[2:6], self._unread[6 : 6 + length]
            plain = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
            self.stream.send(bytes([self._unread[0], length]) + plain)
            self._unread = self._unread[6 + length :]

    def _send_on(self):
        self._unsent = self._unsent or CHUNK
        self._unsent = self._unsent[self.stream.send(self._unsent) :]

    def _discard(self):
        self._read()
        self._unread = b""

    def _read(self):
        received = self.stream.recv(READ_BYTES)
        if not received:
            raise ConnectionError("the client has gone")
        self._unread += received


def main():
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    listener.setblocking(False)
    poll, connections = select.epoll(), {}
    poll.register(listener, select.EPOLLIN)
    while True:
        for file, _ in poll.poll():
            if file == listener.fileno():
                with contextlib.suppress(BlockingIOError):
                    stream = listener.accept()[0]
                    stream.setblocking(False)
                    connections[stream.fileno()] = Connection(stream, poll)
                    poll.register(stream, select.EPOLLIN)
                continue
            try:
                connections[file].serve()
            except BlockingIOError:
                pass
            except OSError:
                # A closed file leaves the poll by itself.
                connections.pop(file).stream.close()


if __name__ == "__main__":
    main()
