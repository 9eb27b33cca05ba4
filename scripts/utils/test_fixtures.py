"""Real servers as pytest fixtures: one stack a run, a fresh copy of a template database a test.

Part of :mod:`scripts.utils.test_helpers`, which a project names as a plugin. Two settings of its own, in the project's
pytest configuration, say what the template holds; by default it is the sample application and the policy file here:

``lifecycle_tables``
    SQL files that make the application's tables, in their order.
``lifecycle_policy_file``
    The policy file whose tables the jobs get their rights on.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
import redis
from psycopg import sql

from backend import local_stack, migrate
from backend.blob_server import BlobServer
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from scripts.utils.settings import Settings

STACK_VARIABLE = "TEST_STACK_DIRECTORY"
TEMPLATE = "template_suite"
# PostgreSQL waits a tenth of a second for a session that is about to end before it drops a database. A few tests later
# there is none.
_SPENT_DATABASES = 3
_spent: deque[str] = deque()
"""The names of databases whose tests are over. They go with the server, if not before."""
_SETTINGS = frozenset({"MIGRATION_DATABASE_URL", *(str(field.alias) for field in Settings.model_fields.values())})
# Set on a developer's machine, these would bend a test as well.
_SETTING_PREFIXES = ("RENDER_", "OTEL_", "SENTRY_", "AWS_", "PG")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a project say what its template database holds."""
    parser.addini("lifecycle_tables", "SQL files that make the application's tables", type="paths", default=[])
    parser.addini("lifecycle_policy_file", "the policy file of the jobs", type="string", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Start the servers in the process that the user started; xdist's workers inherit them by the environment."""
    if hasattr(config, "workerinput") or config.option.help or config.option.collectonly:
        return
    directory = Path(tempfile.mkdtemp(prefix="lifecycle-tests-", dir=local_stack.in_memory()))
    os.environ[STACK_VARIABLE] = str(directory)
    stack = local_stack.start(directory, durable=False)
    given = config.getini("lifecycle_policy_file")
    _make_template(stack, config.getini("lifecycle_tables"), config.rootpath / given if given else DEFAULT_POLICY_FILE)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop and delete what pytest_configure started, even where that failed half-way."""
    if hasattr(config, "workerinput"):
        return
    directory = os.environ.pop(STACK_VARIABLE, None)
    if not directory:
        return
    if (Path(directory) / "stack.json").exists():
        stack = local_stack.load(Path(directory))
        local_stack.stop(stack)
        local_stack.delete(stack)
    shutil.rmtree(directory, ignore_errors=True)


def _make_template(stack: local_stack.Stack, tables: list[Path], policy_file: Path) -> None:
    url = stack.superuser_url(TEMPLATE)
    local_stack.create_database(stack, TEMPLATE)
    migrate.apply(url, sample_app=not tables)
    with psycopg.connect(url, autocommit=True) as connection:
        for path in tables:
            connection.execute(path.read_bytes())
    migrate.grant(url, policy_file)
    local_stack.set_jobs_password(stack)


class Route(Protocol):
    """What stands between the jobs and the server: a pooler, for one."""

    def through(self, url: str) -> str:
        """Return the URL with this in the server's place."""


class TestDatabase:
    """A database of one test's own, as the jobs and as the superuser see it.

    Attributes:
        name: Its name.
        url: What a job's DATABASE_URL is: the role lifecycle_jobs.
        straight_url: The same without what :func:`route` puts in between.
        export_url: What EXPORT_DATABASE_URL is: the role lifecycle_export.
        superuser_url: The superuser's URL, to make tables and to look at what is left.
    """

    __test__ = False

    def __init__(self, stack: local_stack.Stack, name: str, route: Route | None = None) -> None:
        self.name = name
        self.straight_url = stack.jobs_url(name)
        self.url = route.through(self.straight_url) if route else self.straight_url
        self.export_url = stack.export_url(name)
        self.superuser_url = stack.superuser_url(name)
        self._beside_url = stack.superuser_url()
        self._connections: list[psycopg.Connection[Any]] = []

    def connect(self) -> psycopg.Connection[Any]:
        """Open an autocommit connection as lifecycle_jobs, straight; it is closed at the end of the test."""
        return self._open(self.straight_url)

    def superuser(self) -> psycopg.Connection[Any]:
        """Open an autocommit connection as the superuser; it is closed at the end of the test."""
        return self._open(self.superuser_url)

    def beside(self) -> psycopg.Connection[Any]:
        """Open the same to the server's database ``postgres``: what is asked there is no activity in this one."""
        return self._open(self._beside_url)

    def close(self) -> None:
        """Close what was opened."""
        for connection in self._connections:
            connection.close()

    def _open(self, url: str) -> psycopg.Connection[Any]:
        connection = psycopg.connect(url, autocommit=True)
        self._connections.append(connection)
        return connection


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's shell reaches the test."""
    for name in list(os.environ):
        if name in _SETTINGS or name.startswith(_SETTING_PREFIXES):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def stack() -> local_stack.Stack:
    """The run's servers."""
    return local_stack.load(Path(os.environ[STACK_VARIABLE]))


@pytest.fixture(scope="session")
def administrator(stack: local_stack.Stack) -> Iterator[psycopg.Connection[Any]]:
    """One connection that creates and drops the tests' databases."""
    with psycopg.connect(stack.superuser_url(), autocommit=True) as connection:
        # The kernel copies the template's files, where PostgreSQL was built for it: a third of the time.
        with contextlib.suppress(psycopg.Error):
            connection.execute("SET file_copy_method = clone")
        yield connection


@pytest.fixture
def route() -> Route | None:
    """What the jobs' connections go through; a project may put something in between."""
    return None


@pytest.fixture
def new_database(
    stack: local_stack.Stack, administrator: psycopg.Connection[Any], route: Route | None
) -> Iterator[Callable[..., TestDatabase]]:
    """A function that makes databases, empty or from a template, which are dropped some tests later."""
    made: list[TestDatabase] = []

    def make(template: str = "template0") -> TestDatabase:
        database = TestDatabase(stack, f"test_{secrets.token_hex(6)}", route)
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
        administrator.execute(create.format(sql.Identifier(database.name), sql.Identifier(template)))
        made.append(database)
        return database

    yield make
    for database in made:
        database.close()
        _spent.append(database.name)
    while len(_spent) > _SPENT_DATABASES:
        administrator.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(_spent.popleft())))


@pytest.fixture
def database(new_database: Callable[..., TestDatabase]) -> TestDatabase:
    """A copy of the template: both sets of tables, the jobs' rights, no rows."""
    return new_database(TEMPLATE)


@pytest.fixture
def empty_database(new_database: Callable[..., TestDatabase]) -> TestDatabase:
    """A database with nothing in it."""
    return new_database()


@pytest.fixture
def sample_rows(database: TestDatabase) -> Callable[[int], Any]:
    """A function that loads a number of quiz responses of the sample application, with the rows that belong to them."""
    from backend import sample_data

    def load(rows: int = 1000) -> Any:
        connection = database.superuser()
        with connection.transaction():
            return sample_data.load(connection, rows=rows)

    return load


@pytest.fixture
def redis_url(stack: local_stack.Stack) -> str:
    """Valkey's URL with a logical database for each xdist worker, emptied before the test."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    url = f"{stack.redis_url.rpartition('/')[0]}/{int(worker.removeprefix('gw'))}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the same logical database that returns text."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[BlobServer]:
    """A local server of Vercel Blob's protocol over a folder."""
    with BlobServer(tmp_path / "store") as server:
        yield server


@dataclass(frozen=True)
class Ended:
    """What a script left behind.

    Attributes:
        code: Its exit code.
        out: Its standard output.
        err: Its standard error.
    """

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def closing(self) -> dict[str, Any]:
        """The last of them."""
        return self.lines[-1]


@pytest.fixture
def run_a_script(database: TestDatabase, redis_url: str) -> Callable[..., Ended]:
    """A function that runs a script as an operator does, on this test's servers; settings are given by name."""
    from scripts.utils.test_helpers import run_script

    def run(path: Path | str, *arguments: str, **settings: str) -> Ended:
        env = {"DATABASE_URL": database.url, "REDIS_URL": redis_url} | settings
        done = run_script(path, *arguments, env=env)
        return Ended(done.returncode, done.stdout, done.stderr)

    return run
