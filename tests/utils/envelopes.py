"""Receives what Sentry's library sends, on loopback, and takes it apart byte for byte."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver:
    """A Sentry ingest that accepts everything; served while the ``with`` block lasts."""

    def __init__(self):
        self.bodies = []
        """Each request's body, unpacked."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.bodies.append(body)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.dsn = f"http://0123abcd@127.0.0.1:{self._http.server_port}/42"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def items(self, kind):
        """The payloads of one kind: event, transaction, check_in."""
        return [payload for found, payload in map_items(self.bodies) if found == kind]


def map_items(bodies):
    """Pairs of an item's type and payload, in order."""
    for body in bodies:
        _, _, rest = body.partition(b"\n")
        while rest:
            line, _, rest = rest.partition(b"\n")
            header = json.loads(line)
            payload, rest = rest[: header["length"]], rest[header["length"] :].lstrip(b"\n")
            yield header["type"], json.loads(payload)
