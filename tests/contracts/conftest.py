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
INSTALL_SECONDS = 120
CALL_SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    """How a call of an official client ended."""

    value: object = None
    error: str | None = None
    message: str = ""
    retryAfter: int | None = None  # noqa: N815 - as it comes from the clients


@dataclass(frozen=True)
class Client:
    """An official client and the server that it is pointed at; each call is a process of its own."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    server: BlobServer

    def ask(self, call, *, token=None, retries=0, **options):
        """Return how a call ended."""
        environment = {"PATH": os.defpath, "VERCEL_BLOB_RETRIES": str(retries), **self.environment}
        environment |= self.server.settings()
        if token:
            environment["BLOB_READ_WRITE_TOKEN"] = token
        done = subprocess.run(
            self.command,
            check=False,
            input=json.dumps({"call": call, "options": options}),
            capture_output=True,
            text=True,
            env=environment,
            timeout=CALL_SECONDS,
        )

        assert done.returncode == 0, done.stderr
        return Outcome(**json.loads(done.stdout))

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
            _run(install, fresh)
            fresh.rename(folder)
    return folder


def _run(command, folder):
    try:
        subprocess.run(
            command, check=True, cwd=folder, timeout=INSTALL_SECONDS, stdin=subprocess.DEVNULL, capture_output=True
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"THE BLOB SERVER IS NOT CHECKED BY {command[-1]}: not installed within {INSTALL_SECONDS} s")
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.decode(errors="replace").splitlines() if line.strip()]
        pytest.skip(f"THE BLOB SERVER IS NOT CHECKED BY {command[-1]}: {(said or ['it does not install'])[-1]}")


def javascript():
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip("THE BLOB SERVER IS NOT CHECKED BY npm's @vercel/blob: Node.js and npm are not here")
    package = json.loads((HERE / "package.json").read_text())["dependencies"]
    quiet = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--fetch-retries=1")
    wanted = [f"{name}@{version}" for name, version in package.items()]
    folder = fetched("npm", HERE / "package.json", [npm, "install", *quiet, *wanted])
    return (node, str(HERE / "blob_client.cjs")), {"NODE_PATH": str(folder / "node_modules")}


def python():
    wanted = next(line for line in (HERE / "requirements.txt").read_text().splitlines() if "==" in line)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries=1", "--timeout=15"]
    folder = fetched("python", HERE / "requirements.txt", [*pip, "install", "--quiet", "--target=.", wanted])
    return (sys.executable, "-I", "-S", str(HERE / "blob_client.py"), str(folder)), {}


@pytest.fixture(scope="session")
def javascript_client():
    """How to call npm's client."""
    return javascript()


@pytest.fixture(scope="session")
def python_client():
    """How to call PyPI's client."""
    return python()


@pytest.fixture
def server(tmp_path):
    """A Blob server of the test's own."""
    with BlobServer(tmp_path / "store") as running:
        yield running


@pytest.fixture(params=["javascript", "python"])
def client(request, server):
    """Each official client in turn."""
    command, environment = request.getfixturevalue(f"{request.param}_client")
    return Client(request.param, command, environment, server)
