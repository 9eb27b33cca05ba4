"""Locks, store, Sentry, settings and schedules broken on purpose."""

import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

from scripts.lifecycle.health.configuration import is_private
from scripts.lifecycle.health.personal_data import looks_personal
from tests.forked import start_script
from tests.project.conftest import ROOT

LOCK = "lock:cleanup:quiz_responses"
GONE = "0123456789abcdef elsewhere 1 2026-01-01T00:00:00Z"


def test_a_zombie_lock_without_expiry(check, redis_client):
    redis_client.set(LOCK, GONE)
    health = check()
    line = health.only()
    assert (health.code, line["status"], line["check"], line["subject"]) == (1, "FAIL", "locks", LOCK)
    assert "run 0123456789abcdef on elsewhere, and no live run claims it, without an expiry" in line["message"]
    assert "--fix-zombies" in line["cure"]
    assert redis_client.get(LOCK) == GONE, "looking changes nothing"


def test_a_zombie_lock_of_an_owner_that_nobody_knows(check, redis_client):
    redis_client.set(LOCK, "somebody", px=60_000)
    health = check()
    line = health.only()
    assert (health.code, line["status"], line["subject"]) == (4, "WARN", LOCK)
    assert "an owner that is no run of this suite" in line["message"]
    assert "it ends by itself in " in line["message"]
    assert "somebody" not in health.text


def test_zombies_are_released_on_demand_and_nothing_else_is(check, redis_client):
    redis_client.set(LOCK, GONE)
    redis_client.set("lock:another:application", "theirs")
    redis_client.set("lock:cleanup:another_s", "theirs")
    health = check("--fix-zombies")
    line = health.only()
    assert (health.code, line["status"]) == (4, "WARN")
    assert line["message"].endswith(": released")
    assert sorted(redis_client.keys("*")) == ["lock:another:application", "lock:cleanup:another_s"]
    assert [entry["lock"] for entry in health.lines if entry.get("event") == "zombie_lock_released"] == [LOCK]
    assert check().code == 0


def test_with_dry_run_a_zombie_stays(check, redis_client):
    redis_client.set(LOCK, GONE)
    health = check("--fix-zombies", CLEANUP_DRY_RUN="true")
    assert redis_client.keys("*") == [LOCK]
    (line,) = health.of("locks")
    assert (line["status"], line["cure"]) == ("FAIL", "unset CLEANUP_DRY_RUN: it was not released")
    assert [finding["subject"] for finding in health.of("settings")] == ["CLEANUP_DRY_RUN"]


def test_the_lock_of_a_run_that_lives_is_no_zombie(check, settings, database, redis_client, policy_file):
    """Not even without an expiry, and not when the run has not spoken for long."""
    policy_file.write_text(policy_file.read_text().replace("500 milliseconds", "50 seconds"))
    admin, blocker = database.superuser(), database.superuser()
    admin.execute(
        "INSERT INTO quiz_responses SELECT gen_random_uuid(), NULL, 'a@example.com', 'a@example.com', '{}', 2000,"
        " now() - interval '3 days', NULL, NULL, NULL FROM generate_series(1, 10)"
    )
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'cleanup_quiz%'"
    with blocker.transaction():
        blocker.execute("SELECT FROM quiz_responses FOR UPDATE")
        script = ROOT / "scripts" / "cleanup" / "cleanup_quiz_responses.py"
        process = start_script(script, "--policy-file", str(policy_file), env=settings)
        while not admin.execute(waits).fetchone():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)  # silent from now on; its session is there
        for table in ("leases", "job_runs"):
            admin.execute(f"UPDATE ops.{table} SET heartbeat_at = now() - interval '1 hour'")
        owner = redis_client.get(LOCK)
        redis_client.persist(LOCK)
        (line,) = check("--fix-zombies").of("locks")
        assert redis_client.get(LOCK) == owner
        process.kill()
        process.communicate()
    assert line["status"] == "WARN"
    assert "has no expiry, though its run " in line["message"]


def test_the_lock_of_a_killed_run_is_one(check, database, redis_client):
    redis_client.set(LOCK, GONE, px=60_000)
    database.superuser().execute(
        "INSERT INTO ops.leases VALUES (%s, 1, 'elsewhere', 1, '0123456789abcdef', now(), now() - interval '1 hour')",
        (LOCK,),
    )
    assert check().only()["status"] == "WARN"


def test_a_lease_that_speaks_claims_its_lock(check, database, redis_client):
    redis_client.set(LOCK, GONE, px=60_000)
    database.superuser().execute(
        "INSERT INTO ops.leases VALUES (%s, 1, 'elsewhere', 1, '0123456789abcdef', now(), now())", (LOCK,)
    )
    assert check().unwell == []


def test_a_wrong_token(check, store):
    health = check(BLOB_READ_WRITE_TOKEN=f"vercel_blob_rw_{store.store_id}_wrong")
    line = health.only()
    assert (health.code, line["status"], line["check"], line["subject"]) == (1, "FAIL", "blob", "BLOB_READ_WRITE_TOKEN")
    assert "refuses it (forbidden)" in line["message"]
    assert "token" in line["cure"]
    assert "_wrong" not in health.text


def test_no_token_where_a_policy_needs_one(check):
    line = check(BLOB_READ_WRITE_TOKEN="").only()
    assert (line["status"], line["subject"]) == ("FAIL", "BLOB_READ_WRITE_TOKEN")
    assert "is not set, and meal_plan_pdfs needs it" in line["message"]


def test_a_store_that_is_down(check, store):
    store.faults.failing_calls = -1
    line = check().only()
    assert (line["status"], line["check"], line["subject"]) == ("FAIL", "blob", "Vercel Blob")


class _Refusing(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


@pytest.mark.parametrize(("status", "wanted", "code"), [(401, "FAIL", 1), (503, "WARN", 4), (429, "WARN", 4)])
def test_a_sentry_that_does_not_take_it(check, status, wanted, code):
    with HTTPServer(("127.0.0.1", 0), _Refusing) as server:
        server.status = status
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        health = check(SENTRY_DSN=f"http://0123abcd@127.0.0.1:{server.server_port}/42")
        server.shutdown()
    line = health.only()
    assert (health.code, line["status"], line["check"], line["subject"]) == (code, wanted, "sentry", "SENTRY_DSN")


def test_a_sentry_that_is_away_and_one_that_is_not_wanted(check):
    line = check(SENTRY_DSN="http://0123abcd@127.0.0.1:1/42").only()
    assert (line["status"], line["check"]) == ("WARN", "sentry")
    assert check(SENTRY_DSN="").unwell == []


def test_no_render_yaml(check, tmp_path):
    health = check("--render-yaml", str(tmp_path / "none.yaml"))
    line = health.only()
    assert (health.code, line["status"], line["check"], line["subject"]) == (4, "WARN", "schedule", "none.yaml")


def test_schedules_that_drifted_apart(check, blueprint):
    document = yaml.safe_load(blueprint.read_text())
    by_name = {service["name"]: service for service in document["services"]}
    by_name["cleanup_pdfs"]["schedule"] = "0 5 * * *"
    by_name["cleanup_blacklist"]["startCommand"] = "python scripts/x/forgotten.py"
    blueprint.write_text(yaml.safe_dump(document))
    lines = {finding["subject"]: finding for finding in check().unwell}
    assert {subject: finding["status"] for subject, finding in lines.items()} == {
        "cleanup_pdfs": "FAIL",
        "cleanup_blacklist": "FAIL",
        "forgotten": "WARN",
    }
    assert lines["cleanup_pdfs"]["message"] == "starts at 0 5 * * *, and the policy file says 0 3 * * *"
    assert "add a service of type cron that starts cleanup_blacklist.py" in lines["cleanup_blacklist"]["cure"]


@pytest.mark.parametrize("text", ["services: [x", "services: 5", "[1]"])
def test_a_render_yaml_that_is_none(check, blueprint, text):
    blueprint.write_text(text)
    assert {finding["status"] for finding in check().of("schedule")} == {"FAIL"}


def test_settings_that_are_most_likely_not_meant(check, policy_file):
    policy_file.write_text(policy_file.read_text().replace("budget: 300 seconds", "budget: 3600 seconds", 1))
    lines = {finding["subject"]: finding for finding in check(AUDIT_PSEUDONYM_KEY="").of("settings")}
    assert lines.keys() == {"AUDIT_PSEUDONYM_KEY", "jobs.cleanup_magic_links"}
    assert {line["status"] for line in lines.values()} == {"WARN"}


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.8", "::1", "red-abc123", "db.internal", "/var/run/postgresql"])
def test_private_hosts(host):
    assert is_private(host)


@pytest.mark.parametrize("host", ["8.8.8.8", "ep-x-pooler.eu-central-1.aws.neon.tech", "cache.example.com"])
def test_public_hosts(host):
    assert not is_private(host)


@pytest.mark.parametrize(
    "column",
    [
        *("email", "customerEmail", "normalized_email", "name", "first_name", "lastName", "phone", "ip", "usage_ip"),
        *("ip_address", "billing_address", "street", "birth_date", "dateOfBirth", "emailaddress", "weight_kg", "iban"),
    ],
)
def test_columns_that_look_personal(column):
    assert looks_personal(column)


@pytest.mark.parametrize(
    "column",
    [
        "id",
        "created_at",
        "product_name",
        "file_name",
        "zipped",
        "shipped_at",
        "description",
        "recipe",
        "sexton",
        "mailing",
    ],
)
def test_columns_that_do_not(column):
    assert not looks_personal(column)


@pytest.mark.parametrize(("column", "kind"), [("email_sent_at", "timestamp with time zone"), ("has_phone", "boolean")])
def test_columns_about_something_personal_are_not(column, kind):
    assert looks_personal(column)
    assert not looks_personal(column, kind)
    assert looks_personal("date_of_birth", "date")
