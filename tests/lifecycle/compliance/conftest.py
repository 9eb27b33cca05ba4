"""A month of history, and the report as an operator asks for it."""

import json
import secrets
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from scripts.utils.test_fixtures import TEMPLATE
from tests.inside import run_inside
from tests.lifecycle.compliance import history

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "retention" / "generate_compliance_report.py"

_USUAL = pytest.StashKey()


class Asked:
    """What the command left."""

    def __init__(self, done):
        assert "Traceback" not in done.stdout + done.stderr, done.stdout
        assert history.PERSON not in done.stdout + done.stderr
        self.code, self.err = done.returncode, done.stderr
        self.lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"timestamp"')]
        self.closing = self.lines[-1] if self.lines else {}
        self.text = "\n".join(line for line in done.stdout.splitlines() if not line.startswith('{"timestamp"'))

    @property
    def report(self):
        return json.loads(self.text)


@pytest.fixture
def admin(database):
    return database.superuser()


@pytest.fixture(scope="session")
def template_with_a_month(stack, administrator):
    """A template database with the history in it: written once, copied for each test that asks for the month."""
    name = sql.Identifier(f"template_month_{secrets.token_hex(4)}")
    administrator.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(name, sql.Identifier(TEMPLATE)))
    with psycopg.connect(stack.superuser_url(name.as_string().strip('"')), autocommit=True) as connection:
        history.write(connection)
    yield name.as_string().strip('"')
    administrator.execute(sql.SQL("DROP DATABASE {}").format(name))


@pytest.fixture
def database(request, new_database):
    """With the month for who asks for it, without it for others."""
    return new_database(
        request.getfixturevalue("template_with_a_month") if "month" in request.fixturenames else TEMPLATE
    )


@pytest.fixture
def month(admin):
    """The history, written."""
    return admin


@pytest.fixture
def ask(archive_environment, capsys, monkeypatch):
    """A function that asks for the report on the month."""

    def run(*arguments, period=(history.SINCE, history.UNTIL), **settings):
        named = ("--since", period[0].isoformat(), "--until", period[1].isoformat()) if period else ()
        env = {name: value for name, value in (archive_environment | settings).items() if value is not None}
        return Asked(run_inside(SCRIPT, (*named, *arguments), env=env, capsys=capsys, monkeypatch=monkeypatch))

    return run


@pytest.fixture
def usual(request, ask, month):
    """The report on the untouched month; made once, as each test that asks for it has the same month."""
    if _USUAL not in request.config.stash:
        request.config.stash[_USUAL] = ask()
    return request.config.stash[_USUAL]
