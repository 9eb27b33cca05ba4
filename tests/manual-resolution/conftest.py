"""A queue, its resources, and the scripts as an operator runs them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.forked import run_script
from tests.inside import run_inside
from tests.project.conftest import load_script

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "scripts"
SCRIPT = SCRIPTS / "manual-resolution" / "report_metrics.py"
PROCESS = SCRIPTS / "manual-resolution" / "process_queue.py"
HOUR = timedelta(hours=1)
PERSON = "anna@example.com"
FIRST = "00000000-0000-4000-8000-000000000001"
KEY = "k1:" + "ab" * 32


@pytest.fixture
def now():
    return datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def put(database):
    """A function that puts items on the queue; what is not said is open and harmless."""
    connection = database.superuser()

    def insert(first_seen_at, *, items=1, deadline_at=None, **columns):
        columns = {
            "item_type": "quiz_undelivered",
            "priority": "high",
            "status": "resolved" if columns.get("resolved_at") else "pending",
            "first_seen_at": first_seen_at,
            "deadline_at": deadline_at or first_seen_at + timedelta(days=3650),
            **columns,
        }
        connection.execute(
            f"INSERT INTO ops.manual_resolution_queue (resource_type, resource_id, reason, raised_by, {', '.join(columns)})"
            " SELECT 'public.quiz_responses', gen_random_uuid()::text, 'a reason', 'system:test',"
            f" {', '.join(['%s'] * len(columns))} FROM generate_series(1, %s)",
            (*columns.values(), items),
        )

    return insert


@pytest.fixture
def report(database, redis_url):
    """A function that runs the script; settings are given by name."""
    env = {"DATABASE_URL": database.url, "REDIS_URL": redis_url}
    return lambda *arguments, **settings: run_script(SCRIPT, *arguments, env=env | settings)


@pytest.fixture(scope="session")
def browser():
    running = load_script(HERE / "chromium.py").Browser()
    yield running
    running.close()


class Said:
    """What the command left: exit code, its answer, its last log line."""

    def __init__(self, done):
        assert "Traceback" not in done.stdout + done.stderr, done.stdout
        assert PERSON not in done.stdout + done.stderr
        self.code, self.err = done.returncode, done.stderr
        self.lines = [json.loads(line) for line in done.stdout.splitlines()]
        self.answer = next((line for line in self.lines if "event" not in line), None)
        self.error = self.lines[-1].get("error", "")


@pytest.fixture
def link(database):
    return database.superuser()


@pytest.fixture
def environment(database, redis_url, blobs):
    """What a script must be told; olga is at the shell."""
    return {
        "DATABASE_URL": database.url,
        "REDIS_URL": redis_url,
        "OPERATOR": "olga",
        "AUDIT_PSEUDONYM_KEY": KEY,
        "BLOB_RATE_LIMIT_PER_MINUTE": "100000",
        **blobs.settings(),
    }


@pytest.fixture
def call(environment, capsys, monkeypatch):
    """A function that runs a script in this process."""

    def run(script, *arguments, stdin="", **settings):
        env = environment | settings
        return Said(run_inside(script, arguments, env=env, capsys=capsys, monkeypatch=monkeypatch, stdin=stdin))

    return run


@pytest.fixture
def process(call):
    return lambda *arguments, **settings: call(PROCESS, *arguments, **settings)


@pytest.fixture
def quiz(link):
    """A function that adds quiz answers of Anna's, two days old."""

    def add(key=FIRST, *, paid=True, user=None):
        link.execute(
            "INSERT INTO quiz_responses (id, user_id, email, normalized_email, quiz_data, calorie_target, created_at,"
            " payment_id) VALUES (%s, %s, %s, %s, '{}', 1, timezone('UTC', now()) - interval '2 days', %s)",
            (key, user, PERSON, PERSON, f"pay-{key}" if paid else None),
        )
        return key

    return add


@pytest.fixture
def item_of(link):
    """A function that puts an item on the queue and returns its id."""

    def add(item_type, table="public.quiz_responses", key=FIRST, *, age="0 hours", priority="medium", **context):
        row = link.execute(
            "INSERT INTO ops.manual_resolution_queue (item_type, resource_type, resource_id, priority, reason, context,"
            " raised_by, first_seen_at, deadline_at) VALUES (%s, %s, %s, %s, 'a reason', %s, 'system:tests',"
            " now() - %s::interval, now() + interval '1 day') RETURNING id",
            (item_type, table, key, priority, json.dumps(context), age),
        )
        return str(row.fetchone()[0])

    return add
