"""The connections of a noisy sandbox's clients that are held open, a program of its own.

`noise.py PORT HEADER...` asks at PORT, with the headers, the app of endless answers and WebSockets
for what `KINDS` says, prints as JSON how many of each got through, and then goes on until it is killed: it reads some of the
answers a little at a time, sends bodies that never end byte by byte, and keeps every WebSocket talking.
"""

import json
import socket
import sys
import time

KINDS = {"silent": 50, "slow-reader": 50, "slow-writer": 50, "websocket": 50}
PAUSE_SECONDS = 0.02
SLOW_READ_BYTES = 16_384
TIMEOUT_SECONDS = 20
HANDSHAKE = (
    "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
HEADS = {
    "silent": ("GET /bench/silent HTTP/1.1", ""),
    "slow-reader": ("GET /bench/endless HTTP/1.1", ""),
    "slow-writer": ("PUT /bench/silent HTTP/1.1", "Content-Length: 1000000000\r\n"),
    "websocket": ("GET /bench/socket HTTP/1.1", HANDSHAKE),
}
FRAME = bytes([0x82, 0x80 | 100, 0, 0, 0, 0]) + bytes(100)


def ask(kind, port, headers):
    client = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS)
    line, fields = HEADS[kind]
    client.sendall(f"{line}\r\nHost: bench\r\n{headers}{fields}\r\n".encode())
    return client


def is_refused(client):
    """Whether an answer with an error has come; who waits or is answered otherwise got through."""
    client.settimeout(0.0)
    try:
        return client.recv(12, socket.MSG_PEEK)[9:10] not in (b"1", b"2")
    except BlockingIOError:
        return False
    except OSError:
        return True


def move(kind, client):
    """The next little thing on a connection; what doesn't fit now is left for later."""
    try:
        if kind == "slow-reader":
            client.recv(SLOW_READ_BYTES)
        elif kind == "slow-writer":
            client.send(b"x")
        elif kind == "websocket":
            client.send(FRAME)
            client.recv(SLOW_READ_BYTES)
    except OSError:
        pass


def main():
    port = int(sys.argv[1])
    headers = "".join(f"{header}\r\n" for header in sys.argv[2:])
    clients = [(kind, ask(kind, port, headers)) for kind, count in KINDS.items() for _ in range(count)]
    # So long a refusal may take.
    time.sleep(0.5)
    held = [(kind, client) for kind, client in clients if not is_refused(client)]
    counts = {kind: sum(kind == one for one, _ in held) for kind in KINDS}
    print(json.dumps(counts), flush=True)
    while True:
        for kind, client in held:
            move(kind, client)
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
