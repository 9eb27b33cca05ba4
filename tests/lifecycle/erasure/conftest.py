"""Erasures as an operator and the scheduler run them, in this process and in one of their own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.utils.settings import load_settings
from tests.faults.stage import Running
from tests.forked import start_script
from tests.inside import run_inside
from tests.lifecycle.archives.payments import MASTER_KEY
from tests.lifecycle.erasure.world import ADDRESS, NAME, NEIGHBOURS, PERSON, World

FOLDER = Path(__file__).resolve().parents[3] / "scripts" / "retention"
SCRIPT = FOLDER / "enforce_gdpr_deletion.py"
ARCHIVE = FOLDER / "archive_before_delete.py"


@dataclass(frozen=True)
class Done:
    """What a run left behind."""

    code: int
    output: str
    lines: list[dict[str, Any]]

    @property
    def closing(self):
        return self.lines[-1]

    def event(self, name):
        (line,) = [line for line in self.lines if line["event"] == name]
        return line


@pytest.fixture
def environment(database, redis_url, folder, blobs):
    """What the script must be told."""
    return {
        "DATABASE_URL": database.url,
        "EXPORT_DATABASE_URL": database.export_url,
        "REDIS_URL": redis_url,
        "ARCHIVE_URL": folder.as_uri(),
        "ARCHIVE_MASTER_KEY": MASTER_KEY,
        "AUDIT_PSEUDONYM_KEY": "k1:" + "ab" * 32,
        "SUPPRESSION_KEY": "s1:" + "cd" * 32,
        "OPERATOR": "olga",
        "BLOB_RATE_LIMIT_PER_MINUTE": "100000",
        "LOG_LEVEL": "DEBUG",
        **blobs.settings(),
    }


@pytest.fixture
def world(database, blobs, tmp_path, folder, environment, monkeypatch, db):
    """An empty world."""
    with monkeypatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        settings = load_settings()
    return World(database, blobs, tmp_path / "store", folder, settings, db)


@pytest.fixture
def person(world):
    """One who has something everywhere but in an archive, among neighbours; her ids by table."""
    for neighbour in NEIGHBOURS:
        world.add(neighbour, name="Neighbour")
    ids = world.add(PERSON, address=ADDRESS, name=NAME)
    world.queue_item("public.users", ids["users"])
    world.queue_item("public.payment_transactions", ids["payment_transactions"], item_type="foreign_key_violation")
    world.queue_item("public.somewhere", "else", status="resolved")
    world.link.execute(
        "INSERT INTO ops.manual_resolution_queue (item_type, resource_type, resource_id, priority, reason, context,"
        " raised_by, deadline_at) VALUES ('retention_exception', 'public.things', 'n', 'low', 'xannegret@gmail.com wrote',"
        " '{}', 'operator:test', now())"
    )
    return ids


@pytest.fixture
def erase(environment, capsys, monkeypatch, tmp_path):
    """A function that runs the script here."""

    def run(*arguments, stdin="", script=SCRIPT, **changes):
        process = run_inside(
            script,
            arguments,
            env={name: value for name, value in (environment | changes).items() if value is not None},
            capsys=capsys,
            monkeypatch=monkeypatch,
            stdin=stdin,
            folder=tmp_path,
        )
        lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith('{"timestamp')]
        return Done(process.returncode, process.stdout + process.stderr, lines)

    return run


@pytest.fixture
def asked(erase):
    """A function that enters a request, its identity verified; returns its reference."""

    def ask(address=ADDRESS, **flags):
        options = {"channel": "support", "identity": "signed_link"} | flags
        words = [word for name, value in options.items() if value for word in (f"--{name.replace('_', '-')}", value)]
        done = erase("add", *words, stdin=f"{address}\n")
        assert done.code == 0, done.output
        return done.event("erasure_entered")["request"]

    return ask


@pytest.fixture
def start(environment):
    """Start the script as a process of its own."""
    started = []

    def start(*arguments, **changes):
        running = Running(start_script(SCRIPT, *arguments, env=environment | changes))
        started.append(running)
        return running

    yield start
    for running in started:
        running.bury()
