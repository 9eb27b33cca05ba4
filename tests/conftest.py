"""Real servers for every test: one stack a run, a fresh copy of the template database a test."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg import sql

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # --import-mode=importlib does not

from backend import local_stack
from tests.pooler import Pooler

STACK_VARIABLE = "TEST_STACK_DIRECTORY"
TEMPLATE = "template_suite"
SETTINGS = (
    "DATABASE_URL",
    "DATABASE_URL_UNPOOLED",
    "MIGRATION_DATABASE_URL",
    "LOG_LEVEL",
    "OPERATOR",
    "EXIT_ZERO_FOR",
    "TRACEPARENT",
)
SETTING_PREFIXES = (
    *(
        "REDIS_",
        "DB_",
        "CLEANUP_",
        "SLA_",
        "MRQ_",
        "BLOB_",
        "GDPR_",
        "AUDIT_",
        "ARCHIVE_",
        "AWS_",
        "SUPPRESSION_",
        "PUSHGATEWAY_",
        "METRICS_",
        "SENTRY_",
        "SMTP_",
        "REPORT_",
        "PAGERDUTY_",
        "ALERT_",
    ),
    *("RENDER_", "OTEL_", "PG"),  # set on a developer's machine, they would bend a test as well
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Any test can be sent through PgBouncer; those that are marked ``pooled`` go both ways in every run."""
    parser.addoption("--through-pgbouncer", action="store_true", help="the jobs' connections go through PgBouncer")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that is marked ``pooled`` twice: straight to the server, and through PgBouncer."""
    if "route" not in metafunc.fixturenames:
        return
    if metafunc.config.option.through_pgbouncer:
        metafunc.parametrize("route", ["pgbouncer"], indirect=True)
    elif metafunc.definition.get_closest_marker("pooled"):
        metafunc.parametrize("route", ["straight", "pgbouncer"], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say which tests have no meaning there."""
    for item in items:
        if config.option.through_pgbouncer and item.get_closest_marker("straight"):
            item.add_marker(pytest.mark.skip(reason="is about a connection without a pooler in between"))


def pytest_configure(config: pytest.Config) -> None:
    """Start the servers in the process that the user started; xdist's workers inherit them by the environment."""
    if hasattr(config, "workerinput") or config.option.help or config.option.collectonly:
        return
    directory = Path(tempfile.mkdtemp(prefix="lifecycle-tests-"))
    os.environ[STACK_VARIABLE] = str(directory)
    stack = local_stack.start(directory, durable=False)
    local_stack.prepare(stack, database=TEMPLATE)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop and delete what pytest_configure started, even where that failed half-way."""
    if hasattr(config, "workerinput"):
        return
    directory = os.environ.pop(STACK_VARIABLE, None)
    if directory and (Path(directory) / "stack.json").exists():
        stack = local_stack.load(Path(directory))
        local_stack.stop(stack)
        local_stack.delete(stack)


class TestDatabase:
    """A database of one test's own, as the jobs and as the superuser see it."""

    __test__ = False

    def __init__(self, stack: local_stack.Stack, name: str, pooler: Pooler | None = None) -> None:
        self.name = name
        self.straight_url = stack.jobs_url(name)
        self.url = pooler.through(self.straight_url) if pooler else self.straight_url
        self.superuser_url = stack.superuser_url(name)
        self._connections: list[psycopg.Connection[Any]] = []

    def connect(self) -> psycopg.Connection[Any]:
        """Open an autocommit connection as lifecycle_jobs, never pooled; it is closed at the end of the test."""
        return self._open(self.straight_url)

    def superuser(self) -> psycopg.Connection[Any]:
        """Open an autocommit connection as the superuser; it is closed at the end of the test."""
        return self._open(self.superuser_url)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _open(self, url: str) -> psycopg.Connection[Any]:
        connection = psycopg.connect(url, autocommit=True)
        self._connections.append(connection)
        return connection


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    """No setting of the developer's shell reaches a test."""
    for name in list(os.environ):
        if name in SETTINGS or name.startswith(SETTING_PREFIXES):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def stack():
    """The run's servers."""
    return local_stack.load(Path(os.environ[STACK_VARIABLE]))


@pytest.fixture(scope="session")
def administrator(stack):
    """One connection that creates and drops the tests' databases."""
    with psycopg.connect(stack.superuser_url(), autocommit=True) as connection:
        # The kernel copies the template's files, where PostgreSQL was built for it: a third of the time.
        with contextlib.suppress(psycopg.Error):
            connection.execute("SET file_copy_method = clone")
        yield connection


@pytest.fixture(scope="session")
def pooler(stack):
    """A PgBouncer in transaction mode in front of the run's server."""
    pooler = Pooler(stack)
    yield pooler
    pooler.stop()


@pytest.fixture
def route(request):
    """What the jobs' connections go through: a pooler, or None."""
    return request.getfixturevalue("pooler") if getattr(request, "param", None) == "pgbouncer" else None


@pytest.fixture
def new_database(stack, administrator, route):
    """A function that makes databases, empty or from a template, which are dropped at the end of the test."""
    made = []

    def make(template="template0"):
        database = TestDatabase(stack, f"test_{secrets.token_hex(6)}", route)
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
        administrator.execute(create.format(sql.Identifier(database.name), sql.Identifier(template)))
        made.append(database)
        return database

    yield make
    for database in made:
        database.close()
        administrator.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database.name)))


@pytest.fixture
def database(new_database):
    """A copy of the template: both sets of tables, the jobs' rights, no rows."""
    return new_database(TEMPLATE)


@pytest.fixture
def empty_database(new_database):
    """A database with nothing in it."""
    return new_database()


@pytest.fixture
def redis_url(stack, worker_id):
    """Valkey's URL with a logical database for each xdist worker, emptied before the test."""
    number = 0 if worker_id == "master" else int(worker_id.removeprefix("gw"))
    url = f"{stack.redis_url.rpartition('/')[0]}/{number}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def redis_client(redis_url):
    """A client of the same logical database that returns text."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client
