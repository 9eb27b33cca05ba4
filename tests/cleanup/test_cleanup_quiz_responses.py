"""The job from end to end: what an operator types, and what is gone, kept, said and returned."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend import sample_data
from scripts.utils.test_helpers import script_environment
from tests.cleanup.conftest import ROOT

CLOSING_KEYS = {
    *("records_deleted", "duration_seconds", "sla_status", "stop_reason", "records_remaining"),
    *("oldest_overdue_seconds", "audit_head"),
}
OPS_TABLES = ("audit_batches", "job_runs", "leases", "manual_resolution_queue", "policy_versions")


@pytest.fixture
def link(database):
    return database.superuser()


@pytest.fixture
def sample(link):
    """1,000 rows of every kind; their counts are known without asking the job."""
    return sample_data.load(link, rows=1000)


@pytest.fixture
def moment(sample):
    """Flags that ask about the sample's own moment: a second later, rows at the edge would be due as well."""
    return ("--as-of", sample.as_of.isoformat())


def quiz_rows(link):
    return link.execute("SELECT count(*) FROM quiz_responses").fetchone()[0]


def written(link):
    """How many rows each table of the suite has."""
    return {table: link.execute(f"SELECT count(*) FROM ops.{table}").fetchone()[0] for table in OPS_TABLES}


@pytest.mark.pooled
def test_a_dry_run_predicts_a_run_deletes_and_the_next_finds_nothing(run, link, sample, moment, redis_client):
    due = sample.delivered_due + sample.abandoned_due

    predicted = run("--dry-run", *moment)
    assert predicted.code == 0
    assert predicted.closing["records_to_delete"] == due
    assert predicted.closing["records_queued"] == sample.undelivered_due
    assert quiz_rows(link) == sample.total
    assert set(written(link).values()) == {0}
    assert redis_client.keys() == []

    real = run(*moment)
    assert real.code == 4, "the undelivered orders are new on the queue"
    assert real.closing["event"] == "cleanup_completed"
    assert real.closing["records_deleted"] == due
    assert real.closing["records_queued"] == sample.undelivered_due
    assert real.closing["records_remaining"] == predicted.closing["records_remaining"] == 0
    assert quiz_rows(link) == sample.total - due
    assert redis_client.keys() == []

    again = run(*moment)
    assert again.code == 0
    assert (again.closing["records_deleted"], again.closing["records_queued"]) == (0, 0)
    assert again.closing["audit_head"] == real.closing["audit_head"]
    assert quiz_rows(link) == sample.total - due


def test_what_must_survive_survives(run, link, sample, moment):
    edge = sample.as_of.replace(tzinfo=None)
    kept = link.execute(
        "SELECT q.id FROM quiz_responses q LEFT JOIN meal_plans m USING (payment_id)"
        " WHERE (payment_id IS NOT NULL AND pdf_delivered_at IS NULL AND email_sent_at IS NULL)"
        " OR coalesce(pdf_delivered_at, email_sent_at, q.created_at) >= %s::timestamp - interval '24 hours'",
        (edge,),
    ).fetchall()
    assert (
        len(kept) == sample.delivered_kept + sample.abandoned_kept + sample.undelivered_due + sample.undelivered_fresh
    )
    others = {name: link.execute(f"SELECT count(*) FROM {name}").fetchone() for name in ("users", "meal_plans")}
    run(*moment)
    assert sorted(link.execute("SELECT id FROM quiz_responses")) == sorted(kept)
    assert others == {name: link.execute(f"SELECT count(*) FROM {name}").fetchone() for name in others}


def test_what_the_plan_of_the_payment_says_counts_as_delivered(run, link):
    """Five orders of the same age: sent long ago, sent just now, not sent, without a plan, and one whose row says it."""
    sent, fresh, unsent, no_plan, told = (f"{n:08x}-0000-4000-8000-000000000000" for n in range(5))
    link.execute(
        "INSERT INTO quiz_responses (id, email, normalized_email, quiz_data, calorie_target, created_at, payment_id,"
        " pdf_delivered_at) SELECT id, 'a@example.com', 'a@example.com', '{}', 1800, now() - interval '9 days', id,"
        " CASE WHEN id = %s THEN timezone('UTC', now()) END FROM unnest(%s::text[]) id",
        (told, [sent, fresh, unsent, no_plan, told]),
    )
    for key, age in ((sent, "25 hours"), (fresh, "23 hours"), (unsent, None), (told, "25 hours")):
        link.execute(
            "INSERT INTO meal_plans (id, payment_id, email, normalized_email, pdf_blob_path, calorie_target,"
            " preferences_summary, ai_model, status, created_at, email_sent_at) VALUES (%(id)s, %(id)s, 'a@example.com',"
            " 'a@example.com', '', 1800, '{}', 'model', 'completed', now(), timezone('UTC', now()) - %(age)s::interval)",
            {"id": key, "age": age},
        )
    predicted, done = run("--dry-run"), run()
    assert (predicted.closing["records_to_delete"], done.closing["records_deleted"]) == (1, 1)
    assert {key for (key,) in link.execute("SELECT id FROM quiz_responses")} == {fresh, unsent, no_plan, told}
    queued = {key for (key,) in link.execute("SELECT resource_id FROM ops.manual_resolution_queue")}
    assert queued == {unsent, no_plan}
    assert link.execute("SELECT resource_id, reason FROM ops.audit_log WHERE action = 'delete'").fetchall() == [
        (sent, "retention_policy:quiz_responses/sent")
    ]


def test_the_last_line_of_standard_output_is_the_closing_line(run, link, sample, moment):
    done = run(*moment)
    assert done.err == ""
    closing = done.closing
    assert list(closing)[:5] == ["timestamp", "level", "correlation_id", "script", "event"]
    assert closing.keys() >= CLOSING_KEYS
    assert (closing["script"], closing["level"], closing["exit_code"]) == ("cleanup_quiz_responses", "INFO", 4)
    assert (closing["sla_status"], closing["stop_reason"]) == ("within_sla", "done")
    assert closing["oldest_overdue_seconds"] == 0
    seq, seal = link.execute("SELECT seq, encode(seal, 'hex') FROM ops.audit_head").fetchone()
    assert closing["audit_head"] == f"{seq}:{seal}"
    assert {line["correlation_id"] for line in done.lines} == {closing["correlation_id"]}
    assert link.execute("SELECT DISTINCT correlation_id FROM ops.job_runs").fetchall() == [(closing["correlation_id"],)]


def test_a_scheduler_can_be_told_that_new_items_are_no_failure(run, moment, link):
    done = run(*moment, EXIT_ZERO_FOR="4,75")
    assert (done.code, done.closing["exit_code"]) == (0, 4)
    assert link.execute("SELECT exit_code FROM ops.job_runs").fetchall() == [(4,)]


@pytest.mark.parametrize(
    ("flags", "settings"), [([], {"CLEANUP_DRY_RUN": "true"}), (["--dry-run"], {"CLEANUP_DRY_RUN": "false"})]
)
def test_either_switch_makes_a_dry_run(run, link, sample, moment, flags, settings):
    done = run(*moment, *flags, **settings)
    assert done.closing["dry_run"] is True
    assert "records_deleted" not in done.closing
    assert quiz_rows(link) == sample.total


def test_a_limit_is_done_when_it_is_reached(run, link, sample, moment):
    done = run(*moment, "--limit", "10")
    assert done.code == 4  # undelivered orders are handed over whatever the limit
    assert (done.closing["records_deleted"], done.closing["stop_reason"]) == (10, "limit_reached")
    assert quiz_rows(link) == sample.total - 10


def test_the_batch_size_of_the_flag_beats_the_environment_and_that_the_policy(run, sample, moment):
    said = [
        run(*moment, "--limit", "1", *flags, **settings).event("policy_started")["batch_rows"]
        for flags, settings in [
            ([], {}),
            ([], {"CLEANUP_BATCH_SIZE": "300"}),
            (["--batch-size", "200"], {"CLEANUP_BATCH_SIZE": "300"}),
        ]
    ]
    assert said == [5000, 300, 200]


def test_the_time_budget_of_the_flag_beats_the_environment_and_that_the_policy(run):
    said = [
        run("--dry-run", *flags, **settings).event("cleanup_started")["budget_seconds"]
        for flags, settings in [
            ([], {}),
            ([], {"CLEANUP_MAX_DURATION_SECONDS": "900"}),
            (["--max-duration", "60"], {"CLEANUP_MAX_DURATION_SECONDS": "900"}),
        ]
    ]
    assert said == [3600, 900, 60]


def test_the_first_command_of_the_handbook(environment, link, sample):
    done = subprocess.run(
        ["/bin/sh", "-c", "cd backend && CLEANUP_DRY_RUN=true python ../scripts/cleanup/cleanup_quiz_responses.py"],
        cwd=ROOT,
        env=script_environment(environment) | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert '"dry_run": true' in done.stdout.splitlines()[-1]
    assert quiz_rows(link) == sample.total
