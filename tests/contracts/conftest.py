"""The official clients, fetched into ``.cache`` beside this file; where they cannot be had, each test skips and says why."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from backend.blob_server import BlobServer

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
INSTALL_SECONDS = 80
NOT_CHECKED = "THE BLOB SERVER IS NOT CHECKED BY"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Give a missing client's skips one place, so that they are told in one line with their number."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and NOT_CHECKED in report.longrepr[2]:
        report.longrepr = (__file__, None, report.longrepr[2])
    return report


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
        self._process.communicate(timeout=10)


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


def fetched(name, wanted, install):
    """Return the folder that holds what a file of versions asks for; several workers install it once."""
    CACHE.mkdir(exist_ok=True)
    version = f"{sys.implementation.cache_tag}-{wanted.read_text()}"
    folder = CACHE / f"{name}-{hashlib.sha256(version.encode()).hexdigest()[:12]}"
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            fresh = folder.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            shutil.copy(wanted, fresh)
            _run(install, fresh, name)
            fresh.rename(folder)
    return folder


def _run(command, folder, name):
    try:
        subprocess.run(
            command, check=True, cwd=folder, timeout=INSTALL_SECONDS, stdin=subprocess.DEVNULL, capture_output=True
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{NOT_CHECKED} {name}'s client: not fetched within {INSTALL_SECONDS} s")
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines()
        said = [line for line in lines if line.startswith(("ERROR", "npm error"))]
        pytest.skip(f"{NOT_CHECKED} {name}'s client: {(said or ['it does not install'])[0]}")


@pytest.fixture(scope="session")
def javascript_process():
    """npm's client."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip(f"{NOT_CHECKED} npm's @vercel/blob: Node.js and npm are not here")
    quiet = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--fetch-retries=1")
    folder = fetched("npm", HERE / "package.json", [npm, "install", *quiet])
    process = Process("JavaScript", [node, HERE / "blob_client.cjs"], NODE_PATH=str(folder / "node_modules"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def python_process():
    """PyPI's client."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries=1", "--timeout=15"]
    install = [*pip, "install", "--quiet", "--target=.", "--requirement=requirements.txt"]
    folder = fetched("python", HERE / "requirements.txt", install)
    process = Process("Python", [sys.executable, "-I", "-S", HERE / "blob_client.py", folder])
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
