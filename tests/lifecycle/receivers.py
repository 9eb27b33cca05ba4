"""Slack, PagerDuty and Sentry as HTTP servers on this machine that keep what they are sent."""

import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROUTING_KEY = "R0123456789ABCDEFGHIJKLMNOPQRSTU"


class Receiver:
    """One server; ``answers`` are the status codes of the next calls, then it is well again.

    A number of seconds in ``delays`` is how long it thinks before the next answer.
    """

    def __init__(self, status=200, port=0):
        self.bodies = []
        self.answers = []
        self.delays = []
        self.headers = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.headers.get("content-encoding") == "gzip":
                    raw = gzip.decompress(raw)
                if receiver.delays:
                    time.sleep(receiver.delays.pop(0))
                code = receiver.answers.pop(0) if receiver.answers else status
                receiver.bodies.append((code, raw))
                self.send_response(code)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def port(self):
        return self._server.server_address[1]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/hook/secret-part"

    @property
    def taken(self):
        """The bodies that were answered with success, as JSON."""
        return [json.loads(raw) for code, raw in self.bodies if code < 300]

    @property
    def refused(self):
        return [code for code, _ in self.bodies if code >= 300]

    def forget(self):
        self.bodies.clear()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class SentryReceiver(Receiver):
    """What the Sentry library sends: envelopes, of which the events are kept."""

    @property
    def dsn(self):
        return f"http://0123abcd@127.0.0.1:{self.port}/42"

    @property
    def events(self):
        found = []
        for code, raw in self.bodies:
            lines = raw.split(b"\n")
            kinds = [
                json.loads(line) for line in lines if line.startswith(b'{"type"') or b'"type":"event"' in line[:60]
            ]
            if code < 300 and any(kind.get("type") == "event" for kind in kinds):
                found += [json.loads(line) for line in lines if b'"event_id"' in line and b'"fingerprint"' in line]
        return found


def slack_settings(receiver):
    return {"MRQ_ALERT_SLACK_WEBHOOK": receiver.url}


def pagerduty_settings(receiver):
    return {"PAGERDUTY_EVENTS_URL": receiver.url, "PAGERDUTY_ROUTING_KEY": ROUTING_KEY}
