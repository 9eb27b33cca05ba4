"""A month of history, and the report as an operator asks for it."""

import json
from pathlib import Path

import pytest

from tests.inside import run_inside
from tests.retention.compliance import history

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "retention" / "generate_compliance_report.py"


class Asked:
    """What the command left."""

    def __init__(self, done):
        assert "Traceback" not in done.stdout + done.stderr, done.stdout
        assert history.PERSON not in done.stdout + done.stderr
        self.code = done.returncode
        self.lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"timestamp"')]
        self.closing = self.lines[-1] if self.lines else {}
        self.text = "\n".join(line for line in done.stdout.splitlines() if not line.startswith('{"timestamp"'))

    @property
    def report(self):
        return json.loads(self.text)


@pytest.fixture
def admin(database):
    return database.superuser()


@pytest.fixture
def month(admin):
    """The history, written."""
    history.write(admin)
    return admin


@pytest.fixture
def ask(environment, capsys, monkeypatch):
    """A function that asks for the report on the month."""

    def run(*arguments, period=(history.SINCE, history.UNTIL), **settings):
        named = ("--since", period[0].isoformat(), "--until", period[1].isoformat()) if period else ()
        env = {name: value for name, value in (environment | settings).items() if value is not None}
        return Asked(run_inside(SCRIPT, (*named, *arguments), env=env, capsys=capsys, monkeypatch=monkeypatch))

    return run
