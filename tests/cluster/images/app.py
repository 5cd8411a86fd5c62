"""An app that says which pod answers: one line with the pod's UID, whatever is asked.

It listens on every address, as most apps do: what must not reach it, others have to keep away.
"""

import os
import signal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = (os.environ["POD_UID"] + "\n").encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in two segments would wait for an acknowledgement.
    disable_nagle_algorithm = True

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_):
        """Its requests are the test's business."""


# The first process of a container ignores what it doesn't handle.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("0.0.0.0", 8888), Handler).serve_forever()
