"""Broken on purpose: each thing gives its alert once, however often it is looked at, and its recovery once."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from scripts.lifecycle.health import database as database_checks
from scripts.lifecycle.health.checks import CHECKS
from scripts.lifecycle.health.findings import Check, Context, examine, failed, passed, warned
from scripts.lifecycle.health.telling import alerts_of, tell
from scripts.lifecycle.monitoring.alerts import Alerts
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from scripts.utils.db_utils import Database
from scripts.utils.settings import load_settings
from tests.lifecycle.receivers import pagerduty_settings, slack_settings


@pytest.fixture
def admin(database):
    return database.superuser()


def lock(admin, redis_client):
    redis_client.set("lock:cleanup:pdfs", "0123456789abcdef elsewhere 1 2026-01-01T00:00:00Z")
    return lambda: redis_client.delete("lock:cleanup:pdfs")


def dropped_index(admin, redis_client):
    admin.execute("DROP INDEX quiz_responses_created_at_idx")
    return lambda: admin.execute("CREATE INDEX quiz_responses_created_at_idx ON quiz_responses (created_at)")


def renamed_column(admin, redis_client):
    admin.execute("ALTER TABLE magic_link_tokens RENAME expires_at TO ends_at")
    return lambda: admin.execute("ALTER TABLE magic_link_tokens RENAME ends_at TO expires_at")


def new_table(admin, redis_client):
    admin.execute("CREATE TABLE leads (id int, email text)")
    return lambda: admin.execute("DROP TABLE leads")


@pytest.mark.parametrize(
    ("fault", "keys", "code"),
    [
        (lock, {"health:locks:lock:cleanup:pdfs"}, 1),
        (dropped_index, {"health:policies:quiz_responses"}, 4),
        (renamed_column, {"health:policies:magic_link_tokens"}, 1),
        (new_table, {"health:personal_data:public.leads"}, 4),
    ],
)
def test_told_once_and_over_once(check, admin, redis_client, slack, pagerduty, fault, keys, code):
    sinks = slack_settings(slack) | pagerduty_settings(pagerduty)
    mend = fault(admin, redis_client)
    for _ in range(2):
        assert check(**sinks).code == code
    assert opened(admin) == keys
    assert len(slack.taken) == len(keys)
    mend()
    for _ in range(2):
        assert check(**sinks).code == 0
    assert opened(admin) == set()
    assert len(slack.taken) == 2 * len(keys)
    actions = [body["event_action"] for body in pagerduty.taken]
    assert actions in ([], ["trigger", "resolve"])


def opened(admin):
    return {key for (key,) in admin.execute("SELECT key FROM ops.alerts WHERE resolved_at IS NULL")}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"BLOB_READ_WRITE_TOKEN": "vercel_blob_rw_teststore_wrong"}, "health:blob:"),
        ({"REDIS_URL": "redis://127.0.0.1:1/0"}, "health:redis:"),
    ],
)
def test_a_service_that_is_away_or_refuses(check, admin, changes, key):
    for _ in range(2):
        check(**changes)
    (told,) = [(name, severity, times) for name, severity, times in rows(admin) if name.startswith(key)]
    assert told[1:] == ("critical", 2)
    assert check().code == 0
    assert opened(admin) == set()


def rows(admin):
    return admin.execute("SELECT key, severity, occurrences FROM ops.alerts WHERE resolved_at IS NULL").fetchall()


def test_with_dry_run_nothing_is_told(check, admin, redis_client):
    lock(admin, redis_client)
    check(CLEANUP_DRY_RUN="true")
    assert opened(admin) == set()


def test_while_the_database_is_away_it_says_that_nothing_is_told(check, admin):
    health = check(DATABASE_URL="postgresql://nobody:x@127.0.0.1:1/app")
    assert health.code == 1
    assert [line["effect"] for line in health.lines if line.get("event") == "health_not_told"] != []


@pytest.fixture
def stage(database, redis_url, monkeypatch):
    """The installation's alerts, and a run for a context of a test's own."""
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    pool = Database(database.url, application_name="tests", max_size=2)
    pool.open()
    settings = load_settings()
    run = SimpleNamespace(database=pool, settings=settings, checkpoint=lambda: None)
    yield Alerts(pool, settings, "check_cleanup_health"), run
    pool.close()


def test_a_clock_ten_minutes_off(stage, admin):
    alerts, run = stage
    checks = [Check("clock", database_checks.clock)]
    for minutes, expected in ((10, {"health:clock:clock"}), (10, {"health:clock:clock"}), (0, set())):
        context = Context(
            run,
            DEFAULT_POLICY_FILE,
            DEFAULT_POLICY_FILE,
            clock=lambda m=minutes: datetime.now(UTC) + timedelta(minutes=m),
        )
        tell(alerts, checks, list(examine(context, checks)))
        assert opened(admin) == expected


def test_what_was_not_looked_at_is_not_over(stage, admin):
    alerts, _ = stage
    here = {"check": "indexes"}
    found = [failed("quiz_responses", "no index", "make one")]
    tell(alerts, CHECKS, [type(line)(**line.__dict__ | here) for line in found])
    assert opened(admin) == {"health:indexes:quiz_responses"}
    tell(alerts, CHECKS, [])
    blind = [failed("indexes", "could not look", "see the runbook")]
    tell(alerts, CHECKS, [type(line)(**line.__dict__ | here) for line in blind])
    assert opened(admin) == {"health:indexes:quiz_responses", "health:indexes:indexes"}
    well = [passed("quiz_responses", "has its indexes")]
    tell(alerts, CHECKS, [type(line)(**line.__dict__ | here) for line in well])
    assert opened(admin) == set()


def test_two_lines_about_one_thing_are_one_alert_as_bad_as_the_worst():
    lines = [warned("t", "slow", "index it"), failed("t", "gone", "restore it"), warned("u", "old", "mend it")]
    first, second = alerts_of([type(line)(**line.__dict__ | {"check": "c"}) for line in lines])
    assert (first.key, first.severity, first.how_bad) == ("health:c:t", "critical", "slow; gone")
    assert (second.key, second.severity) == ("health:c:u", "warning")
