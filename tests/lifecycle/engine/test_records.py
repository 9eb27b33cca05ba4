"""What a run leaves behind as proof: the audit, the run record, the policy file. No person in any of them."""

from __future__ import annotations

import hashlib
import os
import socket
from datetime import timedelta

import pytest

from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from tests.lifecycle.support import ANNA, AS_OF, BEN, CLEO, add_quiz, ago, audited, key_of, quiz_left, record

REASON = "retention_policy:quiz_responses/"


@pytest.fixture
def mixed(admin):
    """Three delivered, two abandoned, one owed, one held, one fresh."""
    for number, name in enumerate(["d1", "d2", "d3"]):
        add_quiz(admin, name, delivered=ago(days=2 + number), paid=True, person=BEN)
    for name in ["a1", "a2"]:
        add_quiz(admin, name, created=ago(days=5), person=ANNA)
    add_quiz(admin, "owed", created=ago(days=3), paid=True, person=BEN)
    add_quiz(admin, "held", created=ago(days=3), person=CLEO)
    add_quiz(admin, "fresh", created=ago(hours=2), person=ANNA)
    admin.execute(
        "INSERT INTO ops.legal_holds (scope, person, reason, placed_by) VALUES ('person', %s, 'lawsuit', 'ops')",
        (CLEO,),
    )
    return admin


def test_the_audit_names_every_deleted_row_once_with_the_rule_it_went_by(run_job, mixed):
    run = run_job("--batch-size", "2")

    rows = mixed.execute(
        "SELECT reason, resource_id FROM ops.audit_log WHERE action = 'delete' ORDER BY 1, 2"
    ).fetchall()
    expected = [(f"{REASON}delivered", key_of(n)) for n in ("d1", "d2", "d3")]
    expected += [(f"{REASON}abandoned", key_of(n)) for n in ("a1", "a2")]
    assert rows == sorted(expected)
    assert run.closing["records_deleted"] == len(rows)
    assert quiz_left(mixed) == {"owed", "held", "fresh"}


def test_an_audit_entry_says_who_when_what_and_under_which_run(run_job, mixed):
    run = run_job()

    entries = mixed.execute(
        "SELECT DISTINCT actor, action, resource_type, run_id, metadata ->> 'due_before' FROM ops.audit_log"
        " WHERE resource_type <> 'ops.legal_holds'"
    ).fetchall()
    run_id = record(mixed, "quiz_responses")["id"]
    due_before = (AS_OF - timedelta(hours=24)).isoformat()
    assert entries == [("system:cleanup_quiz_responses", "delete", "public.quiz_responses", run_id, due_before)]
    assert mixed.execute("SELECT bool_and(now() - occurred_at < '1 minute') FROM ops.audit_log").fetchone() == (True,)
    seq, seal = mixed.execute("SELECT seq, encode(seal, 'hex') FROM ops.audit_head").fetchone()
    assert run.closing["audit_head"] == f"{seq}:{seal}"


def test_the_run_record_says_how_it_went(run_job, mixed):
    run = run_job("--batch-size", "2")

    row = record(mixed, "quiz_responses")
    assert (row["script"], row["policy"], row["status"]) == ("cleanup_quiz_responses", "quiz_responses", "completed")
    assert (row["stop_reason"], row["exit_code"], row["error"]) == ("done", 4, None)
    assert (row["records_processed"], row["records_held"]) == (5, 1)
    assert (row["records_queued"], row["records_remaining"]) == (1, 0)
    assert (row["oldest_overdue_seconds"], row["sla_status"]) == (0.0, "within_sla")
    assert (row["cutoff_at"], row["fencing_token"], row["sla_budget_seconds"]) == (AS_OF, 1, 3600.0)
    assert row["batches"] >= 3
    assert row["correlation_id"] == run.closing["correlation_id"]
    assert (row["host"], row["pid"]) == (socket.gethostname(), os.getpid())
    assert row["started_at"] <= row["heartbeat_at"] <= row["finished_at"]


def test_the_policy_file_is_kept_once_under_the_hash_that_the_run_names(run_job, mixed):
    run_job()
    run_job()

    document = DEFAULT_POLICY_FILE.read_bytes()
    digest = hashlib.sha256(document).hexdigest()
    assert mixed.execute("SELECT hash, document, first_used_by FROM ops.policy_versions").fetchall() == [
        (digest, document.decode(), "cleanup_quiz_responses")
    ]
    assert record(mixed, "quiz_responses")["policy_hash"] == digest


def test_nothing_that_the_suite_writes_after_a_run_names_a_person(run_job, mixed):
    run = run_job("--verbose")
    mixed.execute("UPDATE ops.legal_holds SET released_at = now(), person = NULL")  # an open hold may name its person

    tables = mixed.execute("SELECT relname FROM pg_class WHERE relnamespace = 'ops'::regnamespace AND relkind = 'r'")
    for (table,) in tables.fetchall():
        found = mixed.execute(f"SELECT t::text FROM ops.{table} t WHERE t::text ~ 'example\\.com|@'").fetchall()
        assert found == [], table
    assert not [line for line in run.lines if "example.com" in str(line) or "@" in str(line)]


def test_a_failed_policy_is_recorded_with_its_reason(run_job, mixed):
    mixed.execute("ALTER TABLE quiz_responses RENAME COLUMN payment_id TO order_id")

    run = run_job()

    row = record(mixed, "quiz_responses")
    assert (run.code, row["status"], row["stop_reason"], row["exit_code"]) == (1, "failed", "preflight_failed", 1)
    assert row["error"] == run.closing["error"]
    assert "public.quiz_responses.payment_id does not exist" in row["error"]
    assert row["finished_at"] is not None
    assert audited(mixed, "public.quiz_responses") == []
