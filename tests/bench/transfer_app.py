"""The app of the large transfers, a program of its own: `transfer_app.py PORT`.

GET /bench/download/BYTES answers that many bytes. PUT /bench/upload reads the body and answers how many bytes came in
which framing. It pauses once in the middle: a proxy that does not push back would have to buffer.
"""

import json
import socket
import sys
import threading
import time

CHUNK = bytes(256 * 1024)
PAUSE_AFTER_BYTES = 256 * 1024 * 1024
PAUSE_SECONDS = 2.0


class BodyReader:
    """Counts a request body and throws it away."""

    def __init__(self, stream):
        self._stream = stream
        self._buffer = memoryview(bytearray(len(CHUNK)))
        self.total = 0

    def read_exactly(self, length):
        while length > 0:
            count = self._stream.readinto(self._buffer[: min(length, len(self._buffer))])
            if not count:
                raise ConnectionError("the body ended early")
            if self.total < PAUSE_AFTER_BYTES <= self.total + count:
                time.sleep(PAUSE_SECONDS)
            self.total += count
            length -= count

    def read_chunked(self):
        while True:
            size = int(self._stream.readline().split(b";")[0], 16)
            if size == 0:
                break
            self.read_exactly(size)
            self._stream.readline()
        while self._stream.readline() not in (b"\r\n", b""):
            pass


def serve(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb", len(CHUNK)) as stream:
        while True:
            request_line = stream.readline()
            if not request_line:
                return
            _, target, _ = request_line.decode("ascii").split()
            headers = read_headers(stream)
            if target.startswith("/bench/download/"):
                send_body(connection, int(target.rpartition("/")[2]))
            else:
                answer_upload(connection, stream, headers)


def read_headers(stream):
    headers = {}
    while (line := stream.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers


def send_body(connection, length):
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % length)
    while length > 0:
        connection.sendall(CHUNK[:length])
        length -= len(CHUNK)


def answer_upload(connection, stream, headers):
    if headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = BodyReader(stream)
    if "transfer-encoding" in headers:
        framing = "chunked"
        body.read_chunked()
    else:
        framing = "content-length"
        body.read_exactly(int(headers.get("content-length", "0")))
    answer = json.dumps({"bytes": body.total, "framing": framing}).encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))


def main():
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
