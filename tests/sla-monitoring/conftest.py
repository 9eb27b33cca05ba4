"""A job with a history, the monitors that look at it, and servers that keep what they are told."""

import logging
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import structlog
import yaml

from scripts.lifecycle.jobs.entry_point import main
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE, load_policies
from tests.lifecycle.receivers import pagerduty_settings, slack_settings
from tests.lifecycle.support import JobRun, read_lines
from tests.project.conftest import load_script

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "scripts"
JOB, POLICY = "cleanup_quiz_responses", "quiz_responses"
MONITOR = "monitor_cleanup_sla"
LOCK = "lock:cleanup:quiz_responses"
HOUR = timedelta(hours=1)


class World:
    """One job that was due three hours ago, its runs, its data, and what was observed of it."""

    def __init__(self, database, folder):
        self.admin = database.superuser()
        self.now = datetime.now(UTC)
        self.due = (self.now - 3 * HOUR).replace(minute=0, second=0, microsecond=0)
        document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
        document["policies"] = {POLICY: document["policies"][POLICY]}
        document["jobs"] = {name: spec for name, spec in document["jobs"].items() if name in (JOB, MONITOR)}
        document["jobs"][JOB]["schedule"] = f"0 {self.due.hour} * * *"
        self.document = document
        self.path = folder / "policies.yaml"
        self.write()

    def write(self):
        """Write the policy file anew."""
        self.path.write_text(yaml.safe_dump(self.document, sort_keys=False))
        policies = load_policies(self.path)
        self.admin.execute(
            "INSERT INTO ops.policy_versions (hash, document, first_used_by) VALUES (%s, '', 'tests')", (policies.hash,)
        )
        self.hash = policies.hash

    def ran(self, started=None, *, seconds=60, status="completed", code=0, deleted=0, silent=None, **columns):
        """Put a run on record; by default one that did well when it was due."""
        started = started or self.due + timedelta(seconds=30)
        running = status == "running"
        columns = {
            "id": uuid4(),
            "script": JOB,
            "policy": POLICY,
            "correlation_id": uuid4().hex[:16],
            "started_at": started,
            "heartbeat_at": self.now - silent if silent is not None else started + timedelta(seconds=seconds),
            "finished_at": None if running else started + timedelta(seconds=seconds),
            "cutoff_at": started,
            "policy_hash": self.hash,
            "fencing_token": 7,
            "status": status,
            "stop_reason": None if running else "done" if status == "completed" else f"{status}_reason",
            "exit_code": None if running or status == "abandoned" else code,
            "records_processed": deleted,
            "sla_budget_seconds": 3600,
            "host": "somewhere-else",
            "pid": 4711,
            "version": "tests",
            **columns,
        }
        names = ", ".join(columns)
        self.admin.execute(
            f"INSERT INTO ops.job_runs ({names}) VALUES ({', '.join(['%s'] * len(columns))})", list(columns.values())
        )
        return columns["correlation_id"]

    def watched(self, ago=30 * HOUR, items=0, **figures):
        """Put an observation of the past on record: the job is watched since then."""
        slot = self.now - ago
        slot = slot.replace(minute=slot.minute - slot.minute % 15, second=0, microsecond=0)
        self.admin.execute(
            "INSERT INTO ops.sla_observations (script, subject, slot, observed_at, status, items, oldest_seconds)"
            " VALUES (%s, %s, %s, %s, 'within_sla', %s, 0) ON CONFLICT DO NOTHING",
            (MONITOR, POLICY, slot, slot, items),
        )

    def quiz(self, overdue, rows=1):
        """Put rows in that have been past their date for so long."""
        self.admin.execute(
            "INSERT INTO quiz_responses (id, email, normalized_email, quiz_data, calorie_target, created_at)"
            " SELECT gen_random_uuid()::text, 'a@example.com', 'a@example.com', '{}', 1,"
            " (now() - interval '24 hours' - %s) AT TIME ZONE 'UTC' FROM generate_series(1, %s::int)",
            (overdue, rows),
        )

    def delete_quiz(self):
        self.admin.execute("DELETE FROM quiz_responses")

    def alerts(self, *, open_only=True):
        """Each alert's key and severity, the newest last."""
        query = "SELECT key, severity FROM ops.alerts WHERE resolved_at IS NULL OR %s ORDER BY raised_at, key"
        return self.admin.execute(query, (not open_only,)).fetchall()

    def observations(self):
        return self.admin.execute(
            "SELECT subject, status, items, figures FROM ops.sla_observations WHERE observed_at > %s ORDER BY subject",
            (self.now - timedelta(seconds=1),),
        ).fetchall()


@pytest.fixture(autouse=True)
def _process_as_it_was():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def world(database, tmp_path):
    return World(database, tmp_path)


@pytest.fixture
def environment(database, redis_url, slack, pagerduty):
    return {
        "DATABASE_URL": database.url,
        "REDIS_URL": redis_url,
        **slack_settings(slack),
        **pagerduty_settings(pagerduty),
    }


@pytest.fixture
def run_script_here(environment, monkeypatch, capsys):
    """A function that runs a script of the folder in this process; settings are given by name."""

    def run(name, *arguments, **settings):
        for key, value in {**environment, **settings}.items():
            monkeypatch.setenv(key, value)
        capsys.readouterr()
        code = main(load_script(SCRIPTS / "sla-monitoring" / f"{name}.py").JOB, list(arguments))
        for key in settings:
            monkeypatch.delenv(key)
        return JobRun(code, read_lines(capsys.readouterr().out))

    return run


@pytest.fixture
def monitor(run_script_here, world):
    """A function that looks once."""

    def look(*arguments, **settings):
        done = run_script_here(MONITOR, "--policy-file", str(world.path), *arguments, **settings)
        assert done.code == 0, done.lines
        return done.event("sla_monitored")

    return look


@pytest.fixture
def told(slack, pagerduty):
    """A function that returns what was told since it was last asked: Slack's first lines, PagerDuty's actions."""

    def since_last():
        lines = [body["text"].splitlines()[0] for body in slack.taken]
        actions = [(body["event_action"], body["dedup_key"].partition(":")[2]) for body in pagerduty.taken]
        slack.forget()
        pagerduty.forget()
        return lines, actions

    return since_last


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="session")
def browser():
    module = load_script(HERE.parent / "manual-resolution" / "chromium.py")
    running = module.Browser()
    yield running
    running.close()


def path_of(script):
    return os.fspath(SCRIPTS / script)
