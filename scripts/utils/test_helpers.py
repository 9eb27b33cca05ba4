"""What tests of this suite, and of a project that uses it, need: real servers, a line to cut, scripts run for real.

    pytest_plugins = ["scripts.utils.test_helpers"]

in a project's conftest.py gives its tests the fixtures ``database``, ``empty_database``, ``new_database``,
``redis_url``, ``redis_client``, ``blobs``, ``sample_rows``, ``run_a_script``, ``clean_environment`` and ``stack``
(:mod:`scripts.utils.test_fixtures`). Nothing here is a test, whatever the file's name makes pytest think.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from scripts.utils.test_fixtures import (
    Ended,
    TestDatabase,
    administrator,
    blobs,
    clean_environment,
    database,
    empty_database,
    new_database,
    pytest_addoption,
    pytest_configure,
    pytest_unconfigure,
    redis_client,
    redis_url,
    route,
    run_a_script,
    sample_rows,
    stack,
)

__all__ = [
    "Ended",
    "Proxy",
    "TestDatabase",
    "administrator",
    "blobs",
    "clean_environment",
    "database",
    "empty_database",
    "new_database",
    "pytest_addoption",
    "pytest_configure",
    "pytest_unconfigure",
    "redis_client",
    "redis_url",
    "route",
    "run_a_script",
    "run_script",
    "sample_rows",
    "script_environment",
    "stack",
    "start_script",
]

_HOST = "127.0.0.1"
_CHUNK_BYTES = 65_536
_REPLY_SECONDS = 10.0
_TERMINATE = b"X\0\0\0\4"  # a client's last word: it waits for no answer


class _Link:
    """One client's connection and its counterpart to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.server_spoke_last = False
        self.tail = b""
        self.muted = threading.Event()
        self.answered = threading.Event()
        self.gone = threading.Event()

    def close(self) -> None:
        self.gone.set()
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it; close alone would not
            end.close()


class Proxy:
    """A TCP proxy on 127.0.0.1 that counts round trips and fails when told to.

        with Proxy.before(url) as proxy:
            connect(proxy.through(url))

    Args:
        host: Where the server is.
        port: Its port.

    Attributes:
        port: The proxy's own port.
        turns: How often a client spoke again after the server had answered: round trips. May be set back to 0.
        connections: How many connections were let through.
        cuts: How many patterns of :meth:`cut_when` came true.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._pattern: tuple[bytes, bool] | None = None
        self._to_refuse = 0
        self._slow: tuple[int, float] = (0, 0.0)
        self._closed = False
        self._listener = socket.create_server((_HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.turns = 0
        self.connections = 0
        self.cuts = 0

    @classmethod
    def before(cls, url: str) -> Proxy:
        """Make a proxy in front of the server that a URL names.

        Raises:
            ValueError: The URL names no host and port.
        """
        parts = urlsplit(url)
        if not parts.hostname or not parts.port:
            raise ValueError("the URL names no host and port")
        return cls(parts.hostname, parts.port)

    def through(self, url: str) -> str:
        """Return the URL with the proxy in the server's place."""
        parts = urlsplit(url)
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        return urlunsplit(parts._replace(netloc=f"{login}{_HOST}:{self.port}"))

    def cut(self) -> None:
        """Cut every open connection."""
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            link.close()

    def cut_when(self, pattern: bytes, *, before_forward: bool) -> None:
        """Cut the next connection whose client sends the pattern, once.

        Args:
            pattern: Bytes in the client's stream, such as ``b"COMMIT"``.
            before_forward: True: the server never sees it. False: the server gets it and acts on it, but the client
                never sees the reply.
        """
        with self._lock:
            self._pattern = (pattern, before_forward)

    def refuse(self, connections: int) -> None:
        """Close the next connections, ``connections`` of them, as soon as they are made."""
        with self._lock:
            self._to_refuse = connections

    def slow(self, connections: int, seconds: float) -> None:
        """Forward nothing of the next connections, ``connections`` of them, to the server for ``seconds``."""
        with self._lock:
            self._slow = (connections, seconds)

    def __enter__(self) -> Self:
        """Begin to accept connections."""
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop accepting, and cut what is open."""
        with self._lock:
            self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            link = self._link(client)
            if not link:
                client.close()
                continue
            for pump in (self._from_client, self._from_server):
                threading.Thread(target=self._pump, args=(pump, link), daemon=True).start()

    def _link(self, client: socket.socket) -> _Link | None:
        with self._lock:
            if self._to_refuse:
                self._to_refuse -= 1
                return None
        try:
            server = socket.create_connection(self._target)
        except OSError:
            return None
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(client, server)
        with self._lock:
            if not self._closed:
                self._links.add(link)
                self.connections += 1
                return link
        link.close()
        return None

    def _pump(self, pump: Callable[[_Link], None], link: _Link) -> None:
        with contextlib.suppress(OSError):
            pump(link)
        with self._lock:
            self._links.discard(link)
        link.close()

    def _from_client(self, link: _Link) -> None:
        with self._lock:
            left, seconds = self._slow
            self._slow = (max(0, left - 1), seconds)
        if left and link.gone.wait(seconds):
            return
        for chunk in _chunks(link.client):
            with self._lock:
                self.turns += link.server_spoke_last and chunk != _TERMINATE
                link.server_spoke_last = False
            found = self._pattern_in(link, chunk)
            if found is None:
                link.server.sendall(chunk)
                continue
            if not found:
                link.muted.set()
                link.server.sendall(chunk)
                link.answered.wait(_REPLY_SECONDS)  # cut earlier, the server might never read what was sent
            return

    def _from_server(self, link: _Link) -> None:
        for chunk in _chunks(link.server):
            if link.muted.is_set():
                link.answered.set()
                return
            with self._lock:
                link.server_spoke_last = True
            link.client.sendall(chunk)

    def _pattern_in(self, link: _Link, chunk: bytes) -> bool | None:
        """Return whether to cut before forwarding; None: no pattern was met."""
        with self._lock:
            if not self._pattern:
                return None
            pattern, before_forward = self._pattern
            stream = link.tail + chunk
            link.tail = stream[-(len(pattern) - 1) :] if len(pattern) > 1 else b""
            if pattern not in stream:
                return None
            self._pattern = None
            self.cuts += 1
        return before_forward


def _chunks(end: socket.socket) -> Iterator[bytes]:
    while chunk := end.recv(_CHUNK_BYTES):
        yield chunk


def script_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the given variables, PATH, and what coverage needs to measure a subprocess; nothing else."""
    kept = {name: value for name, value in os.environ.items() if name == "PATH" or name.startswith("COVERAGE_")}
    return kept | dict(env)


def run_script(
    path: Path | str, *args: str, env: Mapping[str, str], timeout: float = 60.0, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script as an operator would and wait for it.

    Args:
        path: The script.
        args: Its arguments.
        env: Its whole environment but for PATH.
        timeout: Seconds after which it is killed and TimeoutExpired is raised.
        stdin: Text for its standard input.
    """
    return subprocess.run(  # noqa: S603 - the caller's own script
        [sys.executable, str(path), *args],
        env=script_environment(env),
        timeout=timeout,
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        check=False,
    )


def start_script(path: Path | str, *args: str, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a script and return at once; its output is piped, its environment as in :func:`run_script`."""
    return subprocess.Popen(  # noqa: S603 - the caller's own script
        [sys.executable, str(path), *args],
        env=script_environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
