"""What Sentry Crons is told of a run: the bytes that a real process sends."""

import signal
from pathlib import Path

import pytest

from scripts.lifecycle.policy.policy_file import load_policies
from tests.forked import run_script, start_script
from tests.utils.envelopes import Receiver

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "cleanup" / "cleanup_quiz_responses.py"
REPORT = ROOT / "scripts" / "manual-resolution" / "report_metrics.py"
STOP = ROOT / "scripts" / "cleanup" / "stop_switch.py"


@pytest.fixture
def sentry():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def run(database, redis_url, sentry):
    """A function that runs a script with Sentry and returns its exit code."""
    env = {"DATABASE_URL": database.url, "REDIS_URL": redis_url, "SENTRY_DSN": sentry.dsn}

    def run(*arguments, script=SCRIPT, **settings):
        return run_script(script, *arguments, env=env | settings).returncode

    run.env = env
    return run


def statuses(sentry):
    return [item["status"] for item in sentry.items("check_in")]


def test_a_run_checks_in_twice_under_one_id_with_its_schedule(run, sentry):
    assert run(SENTRY_ENVIRONMENT="staging") == 0
    begin, end = sentry.items("check_in")
    assert (begin["status"], end["status"]) == ("in_progress", "ok")
    assert begin["check_in_id"] == end["check_in_id"]
    assert end["duration"] > 0
    for item in (begin, end):
        assert item["monitor_slug"] == "cleanup-quiz-responses"
        assert item["environment"] == "staging"
        assert item["monitor_config"] == {
            "schedule": {"type": "crontab", "value": load_policies().jobs["cleanup_quiz_responses"].schedule},
            "timezone": "UTC",
            "checkin_margin": 15,
            "max_runtime": 65,
        }


def test_a_longer_budget_is_not_taken_for_a_hang(run, sentry):
    assert run(CLEANUP_MAX_DURATION_SECONDS="7201") == 0
    assert {item["monitor_config"]["max_runtime"] for item in sentry.items("check_in")} == {126}


def test_a_scheduled_report_checks_in_too(run, sentry):
    assert run("--format", "json", script=REPORT) == 0
    assert statuses(sentry) == ["in_progress", "ok"]
    assert sentry.items("check_in")[0]["monitor_slug"] == "report-metrics"


def test_a_dry_run_sends_nothing_at_all(run, sentry):
    assert run("--dry-run", SENTRY_TRACES_SAMPLE_RATE="1") == 0
    assert run(CLEANUP_DRY_RUN="true") == 0
    assert run("--format", "json", script=REPORT, CLEANUP_DRY_RUN="true") == 0
    assert sentry.bodies == []


def test_an_operator_s_command_has_no_schedule_and_checks_in_nowhere(run, sentry):
    assert run("status", script=STOP) == 0
    assert sentry.bodies == []


def test_a_policy_that_fails_is_an_error(run, sentry, database):
    database.superuser().execute("ALTER TABLE quiz_responses RENAME COLUMN created_at TO made_at")
    assert run() == 1
    assert statuses(sentry) == ["in_progress", "error"]


def test_a_run_that_cannot_begin_is_an_error_all_the_same(run, sentry, database):
    database.superuser().execute("REVOKE USAGE ON SCHEMA ops FROM lifecycle_jobs")
    assert run() == 2
    assert statuses(sentry) == ["error"]
    assert sentry.items("check_in")[0]["monitor_config"]["schedule"]["value"]


def test_a_run_that_did_not_run_is_missed_rather_than_well(run, sentry, redis_client):
    redis_client.set("lock:cleanup:quiz_responses", "someone elsewhere 1 2026-01-01T00:00:00Z", px=60_000)
    assert run() == 75
    assert statuses(sentry) == []


def test_a_run_that_is_told_to_stop_is_an_error(run, sentry, database):
    connection = database.superuser()
    connection.execute(
        "INSERT INTO quiz_responses SELECT gen_random_uuid(), NULL, 'a@example.com', 'a@example.com', '{}', 2000,"
        " now() - interval '3 days', NULL, NULL, NULL FROM generate_series(1, 100)"
    )
    blocker = database.superuser()
    blocker.autocommit = False
    blocker.execute("SELECT FROM quiz_responses FOR UPDATE")
    process = start_script(SCRIPT, "--batch-size", "1", env=run.env)
    while not statuses(sentry):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    blocker.rollback()
    assert process.returncode == 143
    assert statuses(sentry) == ["in_progress", "error"]
