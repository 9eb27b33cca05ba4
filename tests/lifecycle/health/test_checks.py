"""The health check on a healthy system, with parts of it away, and what it must not do."""

import json

import pytest

from scripts.lifecycle.health.findings import Check, Context, examine, passed, verdict
from scripts.lifecycle.policy.policy_file import load_policies
from scripts.utils.test_helpers import Proxy

NOBODY = "postgresql://nobody:hunter2@127.0.0.1:{}/app"


def test_a_healthy_system_is_all_pass_and_exit_0(check, policy_file):
    health = check()
    assert health.unwell == []
    assert (health.code, health.report["status"], health.report["complete"]) == (0, "PASS", True)
    assert {finding["check"] for finding in health.report["findings"]} == {
        *(
            "settings",
            "database",
            "role",
            "schema",
            "suite",
            "rights",
            "policies",
            "erasure",
            "indexes",
            "personal_data",
            "owners",
        ),
        *(
            "autovacuum",
            "snapshots",
            "clock",
            "session",
            "redis",
            "locks",
            "blob",
            "archives",
            "holds",
            "sentry",
            "schedule",
        ),
    }
    assert health.lines[-1]["event"] == "health_completed"
    policies = load_policies(policy_file).policies
    assert [finding["subject"] for finding in health.of("policies")] == list(policies)


def test_no_secret_and_no_person_is_in_the_report(check, settings, database):
    database.superuser().execute(
        "INSERT INTO users VALUES ('u', 'anna@example.com', 'anna@example.com', NULL, now(), now())"
    )
    text = check().text
    for secret in (
        "anna",
        settings["BLOB_READ_WRITE_TOKEN"],
        settings["DATABASE_URL"],
        settings["REDIS_URL"],
        "0123abcd",
    ):
        assert secret not in text


def test_it_changes_nothing(check, database, redis_client):
    def rows():
        connection = database.superuser()
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'ops' ORDER BY 1").fetchall()
        return [connection.execute(f"SELECT count(*) FROM ops.{table}").fetchone() for (table,) in tables]

    before = rows()
    assert check().code == 0
    assert rows() == before
    assert redis_client.keys("*") == []


def test_a_database_that_is_away_does_not_hide_the_rest(check, closed_port):
    health = check(DATABASE_URL=NOBODY.format(closed_port))
    assert health.code == 1
    (line,) = health.of("database")
    assert (line["status"], line["subject"]) == ("FAIL", "PostgreSQL")
    assert "nothing listens" in line["message"]
    assert "check host, port and network" in line["cure"]
    for name in (
        "role",
        "schema",
        "policies",
        "erasure",
        "indexes",
        "personal_data",
        "owners",
        "autovacuum",
        "snapshots",
        "clock",
        "session",
        "locks",
    ):
        (line,) = health.of(name)
        assert (line["status"], line["message"]) == ("FAIL", "not looked at: there is no connection to PostgreSQL")
    assert {finding["status"] for name in ("redis", "blob", "sentry", "schedule") for finding in health.of(name)} == {
        "PASS"
    }
    assert health.lines[-1]["event"] == "health_failed"
    assert "hunter2" not in health.text


def test_a_refused_login_is_named_as_one(check, settings):
    health = check(DATABASE_URL=settings["DATABASE_URL"].replace("@", "x@"))
    (line,) = health.of("database")
    assert (line["status"], line["message"]) == ("FAIL", "PostgreSQL refuses the login")
    assert "password" in line["cure"]


def test_a_database_that_goes_away_meanwhile_is_no_crash(check, settings):
    with Proxy.before(settings["DATABASE_URL"]) as proxy:
        proxy.cut_when(b"pg_prepared_xacts", before_forward=True)
        health = check(DATABASE_URL=proxy.through(settings["DATABASE_URL"]))
        assert proxy.cuts == 1
    assert (health.code, health.unwell) == (0, []), "a read is repeated"


def test_redis_away_is_a_failure_of_redis_alone(check, closed_port):
    health = check(REDIS_URL=f"redis://:hunter2@127.0.0.1:{closed_port}/0")
    assert health.code == 1
    redis, locks = health.of("redis"), health.of("locks")
    assert (redis[0]["status"], redis[0]["subject"]) == ("FAIL", "Redis")
    assert "REDIS_URL" in redis[0]["cure"]
    assert locks[0]["status"] == "FAIL"
    assert {finding["check"] for finding in health.unwell} == {"redis", "locks"}
    assert "hunter2" not in health.text


def test_wrong_credentials_of_redis_are_named(check, settings):
    scheme, _, rest = settings["REDIS_URL"].partition("://")
    health = check(REDIS_URL=f"{scheme}://default:wrong@{rest.rpartition('@')[2]}")
    assert [finding["message"] for finding in health.of("redis")] == ["refuses the credentials"]
    assert health.code == 1


def test_a_table_for_people_json_for_machines(check):
    health = check("--format", "console", "--log-format", "json")
    assert health.report is None
    assert "sentry" in health.text
    assert "PASS" in health.text


def test_a_schema_that_was_never_made(check, database):
    database.superuser().execute("DROP SCHEMA ops CASCADE")
    health = check()
    assert health.code == 1
    (line,) = health.of("schema")
    assert (line["status"], line["subject"], line["cure"]) == ("FAIL", "ops", "run backend/migrate.py")
    of_the_application = [finding for finding in health.of("policies") if "ops." not in finding["message"]]
    assert {finding["status"] for finding in of_the_application} == {"PASS"}


class _Run:
    """As much of a run as examining needs."""

    def checkpoint(self):
        """Go on."""


def context(**more):
    return Context(_Run(), None, None, **more)


def test_a_check_that_raises_is_one_failure_and_what_it_found_stays(capsys):
    def breaks(_):
        yield passed("first", "is well")
        raise KeyError("anna@example.com")

    findings = list(examine(context(), [Check("a", breaks, False), Check("b", lambda _: [passed("b", "well")], False)]))
    assert [(finding.check, finding.status) for finding in findings] == [("a", "PASS"), ("a", "FAIL"), ("b", "PASS")]
    assert "unexpected KeyError" in findings[1].message
    assert "anna" not in json.dumps([finding.as_dict() for finding in findings])
    assert verdict(findings) == "FAIL"


def test_a_check_that_says_nothing_is_not_well():
    (finding,) = examine(context(), [Check("silent", lambda _: [], False)])
    assert (finding.status, finding.message) == ("FAIL", "looked at nothing")


def test_a_database_check_is_not_tried_without_a_connection():
    (finding,) = examine(context(database_is_away=True), [Check("a", lambda _: 1 / 0)])
    assert finding.status == "FAIL"
    assert "see the line database" in finding.cure


@pytest.fixture
def endless(store, run_time, monkeypatch):
    """A Blob store whose answer takes longer than the budget."""
    store.faults.latency_ms = 1500
    monkeypatch.setattr(store, "pause", lambda seconds: setattr(run_time, "seconds", seconds))


@pytest.mark.usefixtures("endless")
def test_a_budget_that_is_used_up_shows_what_was_found(check):
    health = check(CLEANUP_MAX_DURATION_SECONDS="1")
    assert (health.code, health.report["status"], health.report["complete"]) == (3, "PASS", False)
    assert health.lines[-1]["event"] == "health_stopped"


@pytest.mark.usefixtures("endless")
def test_a_failure_weighs_more_than_a_budget_that_is_used_up(check):
    health = check(CLEANUP_MAX_DURATION_SECONDS="1", REDIS_URL="redis://127.0.0.1:1/0")
    assert (health.code, health.report["status"], health.report["complete"]) == (1, "FAIL", False)
    assert health.lines[-1]["event"] == "health_failed"
