"""A local server of Vercel Blob's HTTP API, version 12, that keeps blobs in a folder and fails when it is told to.

    python backend/blob_server.py --directory D --port P [--token-file F]     prints the settings, then serves

A test sets faults and reads the calls in Python (``server.faults``, ``.counters``, ``.log``), or from another process
at ``/_control`` with the store's token: GET returns everything, POST takes
``{"reset": true, "faults": {"latency_ms": 20}, "populate": {"count": 1000, "prefix": "plans/"}}``, each part optional.
A blob's content is at ``/delivery/<pathname>``. The server needs no package besides the standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import json
import math
import re
import secrets
import shlex
import signal
import socket
import sqlite3
import string
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backend.blob_faults import LOGGED_CALLS, Counters, Faults, LoggedCall
from backend.blob_store import (
    MAX_PAGE,
    Blob,
    BlobRefused,
    BlobStore,
    bad_request,
    checked_pathname,
    not_found,
    precondition_failed,
    with_random_suffix,
)
from scripts.utils import private_files

HOST = "127.0.0.1"
API, CONTROL, DELIVERY = "/api/blob", "/_control", "/delivery/"
MAX_BODY = 64 * 1024 * 1024
MAX_TARGETS = 1000

_TOKEN = re.compile(r"vercel_blob_rw_([A-Za-z0-9-]+)_(.+)")
_CODES = {500: "internal_server_error", 502: "service_unavailable", 503: "service_unavailable"}
_TRICKLE_PIECES = 20


class BlobServer:
    """A Blob store on 127.0.0.1, served while the ``with`` block lasts.

    Args:
        directory: Holds the blobs and their index; it is made if it is missing, else used again.
        token: The read-write token; by default a new one, for the store id that the folder had at first.
        latency_ms: Milliseconds that each call takes, until ``faults`` says otherwise.
        access: ``public`` or ``private``, a property of the store.
        port: The TCP port; 0: any free one.

    Raises:
        ValueError: The token has not the form of one.
        OSError: The port cannot be had.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        token: str | None = None,
        latency_ms: float = 0,
        access: str = "public",
        port: int = 0,
    ) -> None:
        if token is not None and not _TOKEN.fullmatch(token):
            raise ValueError("The token is not of the form vercel_blob_rw_<store id>_<secret>.")
        self.store = BlobStore(Path(directory))
        if token is None:
            fresh = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(16))
            token = f"vercel_blob_rw_{self.store.remember('store_id', fresh)}_{secrets.token_hex(16)}"
        self.token = token
        self.store_id = token.split("_")[3]
        self.access = access
        self.faults = Faults(latency_ms=latency_ms)
        self.counters = Counters()
        self.log: deque[LoggedCall] = deque(maxlen=LOGGED_CALLS)
        self._closing = threading.Event()
        try:
            self._http = _HttpServer((HOST, port), self)
        except OSError:
            self.store.close()
            raise
        self.root = f"http://{HOST}:{self._http.server_port}"
        self.url = self.root + API
        self.populate, self.count, self.count_files = self.store.populate, self.store.count, self.store.count_files
        self.put, self.delete, self.get = (
            self.store.put,
            self.store.delete,
            self.store.get,
        )  # past the API and its faults

    def __enter__(self) -> Self:
        """Begin to serve."""
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server and the answers under way; the blobs stay."""
        self._closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.close_all()
        self.store.close()

    def settings(self) -> dict[str, str]:
        """Return the environment variables that make a client use this server."""
        return {
            "VERCEL_BLOB_API_URL": self.url,
            "VERCEL_BLOB_DELIVERY_URL": self.root + DELIVERY,
            "BLOB_READ_WRITE_TOKEN": self.token,
        }

    def url_of(self, pathname: str) -> str:
        """Return a blob's delivery URL, as the real service would write it."""
        return f"https://{self.delivery_host}/{quote(pathname)}"

    @property
    def delivery_host(self) -> str:
        """Host of this store's delivery URLs."""
        return f"{self.store_id.lower()}.{self.access}.blob.vercel-storage.com"

    def local_url_of(self, pathname: str) -> str:
        """Return the local URL of a blob's content."""
        return f"{self.root}{DELIVERY}{quote(pathname)}"

    def described(self, blob: Blob) -> dict[str, object]:
        """Return the answer of ``head``, of which ``put`` and ``copy`` answer the part that clients read."""
        return self.listed(blob) | {
            "contentType": blob.content_type,
            "contentDisposition": _disposition(blob, "inline"),
            "cacheControl": _cache_control(blob),
        }

    def listed(self, blob: Blob) -> dict[str, object]:
        """Return a blob's entry in a listing."""
        url, uploaded = self.url_of(blob.pathname), datetime.fromtimestamp(blob.uploaded_ms / 1000, UTC)
        return {
            "url": url,
            "downloadUrl": f"{url}?download=1",
            "pathname": blob.pathname,
            "size": blob.size,
            "uploadedAt": uploaded.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "etag": blob.etag,
        }

    def pathname(self, target: str) -> str:
        """Return the pathname of a target: a pathname, or a delivery URL of this store.

        Raises:
            BlobRefused: The target is neither.
        """
        if not target.startswith(("http://", "https://")):
            return checked_pathname(target)
        try:
            url = urlsplit(target)
            if url.scheme != "https" or url.netloc.lower() != self.delivery_host:
                raise BlobRefused(403, "forbidden", "Access denied: the URL is not one of this store.")
            return checked_pathname(unquote(url.path, errors="strict"))
        except ValueError:
            raise bad_request("the URL is not one, or its path is not UTF-8") from None

    def authorise(self, header: str) -> None:
        """Check the token of a call.

        Raises:
            BlobRefused: The token is missing or wrong, or belongs to another store.
        """
        found = _TOKEN.fullmatch(header.removeprefix("Bearer "))
        if found and found[1] != self.store_id:
            raise BlobRefused(403, "store_not_found", "This store does not exist.")
        if not hmac.compare_digest(header.encode(), f"Bearer {self.token}".encode()):
            raise BlobRefused(403, "forbidden", "Access denied, please provide a valid token for this resource.")

    def pause(self, seconds: float) -> None:
        """Wait some seconds, at most until the server stops."""
        if seconds:
            self._closing.wait(seconds)

    def reset(self) -> None:
        """Switch all faults off and forget what was counted and logged."""
        self.faults.reset()
        self.counters.reset()
        self.log.clear()


class _HttpServer(ThreadingHTTPServer):
    request_queue_size = 512

    def __init__(self, address: tuple[str, int], owner: BlobServer) -> None:
        self.owner = owner
        self._connections: dict[threading.Thread, socket.socket] = {}
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's asks the name service who we are, and may wait long for the answer
        self.server_name, self.server_port = HOST, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        self.owner.counters.connected()
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._connections[thread] = request
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self._connections.pop(threading.current_thread(), None)

    def close_all(self) -> None:
        self.server_close()
        for thread, connection in list(self._connections.items()):
            _cut(connection)  # wakes the thread up that waits for the client's next call
            thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HttpServer
    # Send an answer's head and body together: apart, Nagle's algorithm delays the body by 40 ms.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Log nothing to the terminal."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        try:
            if path == CONTROL:
                self._control({})
            elif path.startswith(DELIVERY):
                self._deliver(unquote(path.removeprefix(DELIVERY)), download="download=1" in query)
            else:
                self._call(b"")
        except BlobRefused as refusal:
            self._send(refusal.status, _error(refusal))

    def do_PUT(self) -> None:
        self._with_body()

    def do_POST(self) -> None:
        self._with_body()

    def _with_body(self) -> None:
        try:
            body = self._body()
            if self.path == CONTROL:
                self._control(_object(body))
            else:
                self._call(body)
        except BlobRefused as refusal:
            self._send(refusal.status, _error(refusal))

    def _body(self) -> bytes:
        try:
            if "chunked" in self.headers.get("transfer-encoding", ""):
                return b"".join(self._chunks())
            length = int(self.headers.get("content-length", "0"))
        except ValueError:
            self.close_connection = True
            raise bad_request("The body's length is not one.") from None
        if not 0 <= length <= MAX_BODY:
            self.close_connection = True
            raise BlobRefused(400, "file_too_large", f"the file length cannot be greater than {MAX_BODY} bytes")
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionAbortedError("the client left in the middle of a body")
        return body

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(64).partition(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline(3)
        while self.rfile.readline(MAX_BODY).strip():
            pass

    def _call(self, body: bytes) -> None:
        """Answer one call of the API, or fail it as ``faults`` says."""
        owner, faults = self.server.owner, self.server.owner.faults
        query: dict[str, str] = {}
        targets: tuple[str, ...] = ()
        refusal: BlobRefused | None = None
        operation, answer, status, deleted, arrived = "unknown", None, 200, 0, time.time()
        try:
            query, operation, targets = self._parsed(body)
        except BlobRefused as error:
            refusal = error
        with owner.counters.call(operation, len(targets)):
            owner.pause(faults.latency_ms / 1000)
            fault = faults.take(operation)
            try:
                if fault in {"rate_limited", "failing", "garbled"}:
                    raise _failure(fault, faults)
                if fault != "cut_before":
                    if refusal:
                        raise refusal
                    answer, deleted = self._work(operation, targets, query, body)
            except BlobRefused as error:
                refusal, status = error, error.status
        whole = fault not in {"cut_before", "cut_after", "half_body"}
        attempt, trace = self.headers.get("x-api-blob-request-attempt"), self.headers.get("traceparent")
        owner.counters.done(status if whole else None, deleted)
        owner.log.append(LoggedCall(arrived, operation, targets, status if whole else None, deleted, attempt, trace))
        content = _error(refusal) if refusal else json.dumps(answer).encode()
        headers = {"Retry-After": str(refusal.retry_after)} if refusal and refusal.retry_after is not None else {}
        if fault == "garbled":
            content, headers["Content-Type"] = b"<html><title>Bad Gateway</title>", "text/html"
        if fault in {"cut_before", "cut_after"}:
            self.close_connection = True
            _cut(self.connection)
        else:
            self._send(status, content, headers, fault)

    def _parsed(self, body: bytes) -> tuple[dict[str, str], str, tuple[str, ...]]:
        """Return the query, the operation and the targets of a call."""
        path, _, text = self.path.partition("?")
        try:
            query = dict(parse_qsl(text, keep_blank_values=True, errors="strict"))
        except UnicodeDecodeError:
            raise bad_request("The query is not UTF-8.") from None
        call = self.command, path.removeprefix(API).rstrip("/")
        if not path.startswith(API) or call not in {("GET", ""), ("PUT", ""), ("POST", "/delete")}:
            raise BlobRefused(404, "bad_request", "This server has no such call.")
        if self.command == "POST":
            urls = _object(body).get("urls")
            if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
                raise bad_request('"urls" must be an array of strings')
            return query, "delete", tuple(urls)
        if self.command == "PUT":
            names = tuple(query[name] for name in ("pathname", "fromUrl") if name in query)
            return query, "copy" if "fromUrl" in query else "put", names
        return (query, "head", (query["url"],)) if "url" in query else (query, "list", ())

    def _work(self, operation: str, targets: tuple[str, ...], query: dict[str, str], body: bytes) -> tuple[object, int]:
        """Carry out a call; return the answer and the number of blobs that it deleted."""
        owner = self.server.owner
        owner.authorise(self.headers.get("authorization", ""))
        if "x-api-version" not in self.headers:
            raise bad_request("The header x-api-version is missing.")
        if operation == "list":
            return self._list(query), 0
        if operation in {"put", "copy"}:
            self._refuse_unavailable([checked_pathname(query.get("pathname", ""), upload=True)])
            return self._put(query, body), 0
        pathnames = [owner.pathname(target) for target in targets]
        if_match = self.headers.get("x-if-match")
        if operation == "delete" and not 1 <= len(pathnames) <= MAX_TARGETS:
            raise bad_request(f'"urls" must name 1 to {MAX_TARGETS} blobs')
        if if_match is not None and len(pathnames) != 1:
            raise bad_request("x-if-match can only be used when deleting a single URL.")
        self._refuse_unavailable(pathnames)
        if operation == "head":
            return owner.described(_present(owner.store.get(pathnames[0]))), 0
        if wait := owner.counters.admit(len(pathnames), owner.faults.blobs_per_minute):
            raise _too_many(wait)
        return None, owner.store.delete(pathnames, if_match=if_match)

    def _list(self, query: dict[str, str]) -> dict[str, object]:
        owner, limit, mode = self.server.owner, query.get("limit", str(MAX_PAGE)), query.get("mode", "expanded")
        if not limit.isdecimal() or not 1 <= int(limit) <= MAX_PAGE:
            raise bad_request(f"limit must be from 1 to {MAX_PAGE}")
        if mode not in {"expanded", "folded"}:
            raise bad_request("mode must be expanded or folded")
        page = owner.store.page(
            prefix=query.get("prefix", ""), cursor=query.get("cursor"), limit=int(limit), folded=mode == "folded"
        )
        answer = {"blobs": [owner.listed(blob) for blob in page.blobs], "hasMore": page.cursor is not None}
        folders = {"folders": page.folders} if mode == "folded" else {}
        return answer | folders | ({"cursor": page.cursor} if page.cursor else {})

    def _put(self, query: dict[str, str], body: bytes) -> dict[str, object]:
        owner = self.server.owner
        if self.headers.get("x-vercel-blob-access", owner.access) != owner.access:
            raise bad_request(f"Cannot use this access on a {owner.access} store.")
        max_age = self.headers.get("x-cache-control-max-age")
        if max_age is not None and not max_age.isdecimal():
            raise bad_request("x-cache-control-max-age must be a number of seconds")
        pathname, if_match = checked_pathname(query["pathname"], upload=True), self.headers.get("x-if-match")
        if "fromUrl" in query:  # here the header means the source
            source = owner.pathname(query["fromUrl"])
            self._refuse_unavailable([source])
            if if_match is not None and _present(owner.store.get(source)).etag != if_match:
                raise precondition_failed()
            body, if_match = owner.store.read(source), None
        blob = owner.store.put(
            with_random_suffix(pathname) if self.headers.get("x-add-random-suffix") == "1" else pathname,
            body,
            content_type=self.headers.get("x-content-type"),
            max_age=None if max_age is None else int(max_age),
            overwrite=self.headers.get("x-allow-overwrite") == "1",
            if_match=if_match,
        )
        return owner.described(blob)

    def _refuse_unavailable(self, pathnames: list[str]) -> None:
        if not self.server.owner.faults.unavailable.isdisjoint(pathnames):
            raise BlobRefused(503, "service_unavailable", "The blob service is currently not available.")

    def _deliver(self, pathname: str, *, download: bool) -> None:
        owner = self.server.owner
        if owner.access == "private":
            owner.authorise(self.headers.get("authorization", ""))
        blob = _present(owner.store.get(checked_pathname(pathname)))
        headers = {
            "Content-Type": blob.content_type,
            "Content-Disposition": _disposition(blob, "attachment" if download else "inline"),
            "Cache-Control": _cache_control(blob),
            "ETag": blob.etag,
            "Last-Modified": formatdate(blob.uploaded_ms / 1000, usegmt=True),
        }
        self._send(200, owner.store.read(blob.pathname), headers)

    def _control(self, wanted: dict[str, Any]) -> None:
        owner = self.server.owner
        owner.authorise(self.headers.get("authorization", ""))
        if wanted.get("reset"):
            owner.reset()
        owner.faults.change(wanted.get("faults", {}))
        if populate := wanted.get("populate"):
            try:
                owner.populate(**populate)
            except (TypeError, ValueError) as error:
                raise bad_request(str(error)) from None
        state = {"blobs": owner.count(), "faults": owner.faults.as_json(), "counters": owner.counters.snapshot()}
        self._send(200, json.dumps(state | {"log": [asdict(call) for call in list(owner.log)]}).encode())

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: str | None = None) -> None:
        self.send_response_only(status)
        standard = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in (standard | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        owner = self.server.owner
        if fault == "half_body":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            _cut(self.connection)
        elif fault == "trickle":
            step = max(1, math.ceil(len(body) / _TRICKLE_PIECES))
            pieces = [body[start : start + step] for start in range(0, len(body), step)]
            for piece in pieces:
                self.wfile.flush()
                owner.pause(owner.faults.trickle_seconds / len(pieces))
                self.wfile.write(piece)
        else:
            self.wfile.write(body)


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _error(refusal: BlobRefused) -> bytes:
    return json.dumps({"error": {"code": refusal.code, "message": refusal.message}}).encode()


def _failure(fault: str, faults: Faults) -> BlobRefused:
    if fault == "rate_limited":
        return _too_many(faults.retry_after)
    code = _CODES.get(faults.failing_status, "unknown_error")
    return BlobRefused(faults.failing_status, code, "The blob service is currently not available.")


def _too_many(seconds: int) -> BlobRefused:
    return BlobRefused(429, "rate_limited", "Too many requests.", retry_after=seconds)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        raise bad_request("The body is not JSON.") from None
    if not isinstance(found, dict):
        raise bad_request("The body is not a JSON object.")
    return found


def _present(blob: Blob | None) -> Blob:
    if blob is None:
        raise not_found()
    return blob


def _disposition(blob: Blob, kind: str) -> str:
    return f'{kind}; filename="{quote(blob.pathname.rpartition("/")[2])}"'


def _cache_control(blob: Blob) -> str:
    return f"public, max-age={blob.max_age}"


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    parser = argparse.ArgumentParser(description="Serve a folder as a Vercel Blob store on 127.0.0.1.")
    parser.add_argument("--directory", type=Path, required=True, help="where the blobs are kept")
    parser.add_argument("--port", type=int, default=0, help="by default any free one")
    parser.add_argument("--token-file", type=Path, help="holds the token; written if it is not there")
    parser.add_argument("--access", choices=("public", "private"), default="public", help="kind of store")
    parser.add_argument("--latency-ms", type=float, default=0, help="how long every call takes")
    options = parser.parse_args(arguments)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    try:
        token = _kept_token(options.token_file)
        server = BlobServer(
            options.directory, token=token, latency_ms=options.latency_ms, access=options.access, port=options.port
        )
        if options.token_file and token is None:
            private_files.write(options.token_file, f"{server.token}\n".encode())
    except (OSError, ValueError, OverflowError, sqlite3.Error) as error:
        print(f"The Blob server did not start: {error}", file=sys.stderr)
        return 2
    with server:
        for name, value in server.settings().items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        stopped.wait()
    return 0


def _kept_token(path: Path | None) -> str | None:
    return path.read_text().strip() if path and path.exists() else None


if __name__ == "__main__":
    raise SystemExit(main())
