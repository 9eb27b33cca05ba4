"""The official clients, as ``make fetch`` fetched them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from backend.blob_server import BlobServer
from tests.packages import folder_of

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Outcome:
    """How a call of an official client ended."""

    value: object = None
    error: str | None = None
    message: str = ""
    retryAfter: int | None = None  # noqa: N815 - as it comes from the clients


class Process:
    """An official client that answers lines of JSON: starting one takes longer than most calls."""

    def __init__(self, name, command, **environment):
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={"PATH": os.defpath, **environment},
        )

    def ask(self, question):
        """Return the answer to a question."""
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()

        assert answer, f"the {self.name} client ended"
        return json.loads(answer)

    def close(self):
        """End the process."""
        self._process.communicate(timeout=300)


@dataclass(frozen=True)
class Client:
    """An official client and the server that it is pointed at."""

    process: Process
    server: BlobServer

    def ask(self, call, *, token=None, retries=0, **options):
        """Return how a call ended."""
        environment = {"VERCEL_BLOB_RETRIES": str(retries), **self.server.settings()}
        if token:
            environment["BLOB_READ_WRITE_TOKEN"] = token
        return Outcome(**self.process.ask({"call": call, "options": options, "environment": environment}))

    def ok(self, call, **options):
        """Return what a call that has to succeed returned."""
        outcome = self.ask(call, **options)

        assert outcome.error is None, outcome
        return outcome.value

    def put(self, pathname, body="content", **options):
        """Upload a blob to the store's kind of access."""
        return self.ok("put", pathname=pathname, body=body, access="public", **options)


@pytest.fixture(scope="session")
def javascript_process():
    """npm's client."""
    folder = folder_of("@vercel/blob")
    node = shutil.which("node")
    process = Process("JavaScript", [node, HERE / "blob_client.cjs"], NODE_PATH=str(folder / "node_modules"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def python_process():
    """PyPI's client."""
    folder = folder_of("vercel-blob")
    process = Process("Python", [folder / "bin" / "python", "-I", HERE / "blob_client.py"])
    yield process
    process.close()


@pytest.fixture
def server(tmp_path):
    """A Blob server of the test's own."""
    with BlobServer(tmp_path / "store") as running:
        yield running


@pytest.fixture
def javascript_client(javascript_process, server):
    """npm's client and the server."""
    return Client(javascript_process, server)


@pytest.fixture
def python_client(python_process, server):
    """PyPI's client and the server."""
    return Client(python_process, server)


@pytest.fixture(params=["javascript_client", "python_client"])
def client(request):
    """Each official client in turn."""
    return request.getfixturevalue(request.param)
