"""A dry run predicts exactly what a run does, and leaves no trace."""

from __future__ import annotations

from datetime import timedelta

import pytest
from psycopg import sql

from tests.lifecycle.support import ANNA, AS_OF, BEN, add_quiz, add_things, ago, left, policy, quiz_left

FIGURES = ("records_held", "records_queued", "records_remaining")


@pytest.fixture
def mixed(admin):
    """One row on each side of every edge, each kind twice, one of them held."""
    for hours in (23, 25, 49):
        for number in (1, 2):
            at = ago(hours=hours, minutes=number)
            add_quiz(admin, f"delivered {hours} {number}", delivered=at, paid=True, person=ANNA)
            add_quiz(admin, f"abandoned {hours} {number}", created=at, person=BEN)
            add_quiz(admin, f"owed {hours} {number}", created=at, paid=True, person=BEN)
    admin.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
        " SELECT 'row', 'public.quiz_responses', id, 'lawsuit', 'ops' FROM quiz_responses"
        " WHERE quiz_data ->> 'name' = 'delivered 49 1'"
    )
    return admin


def checksum(admin):
    """Return every row of every table of the suite and the application, with its physical place and writer."""
    tables = admin.execute(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname IN ('ops', 'public') AND c.relkind = 'r' ORDER BY 1, 2"
    ).fetchall()
    query = sql.SQL("SELECT coalesce(string_agg(t.ctid || t.xmin::text || t::text, '|' ORDER BY t.ctid), '') FROM {} t")
    return {name: admin.execute(query.format(sql.Identifier(*name))).fetchone()[0] for name in tables}


@pytest.mark.parametrize("later", [timedelta(hours=-1), timedelta(hours=2)])
def test_it_predicts_what_the_real_run_at_the_same_moment_does(run_job, mixed, later):
    moment = (AS_OF + later).isoformat()

    dry = run_job("--dry-run", as_of=moment)
    real = run_job(as_of=moment)

    assert dry.closing["records_to_delete"] == real.closing["records_deleted"] > 0
    assert {name: dry.closing[name] for name in FIGURES} == {name: real.closing[name] for name in FIGURES}


def test_it_says_how_late_the_oldest_row_is(run_job, mixed):
    dry = run_job("--dry-run")

    assert dry.closing["oldest_overdue_seconds"] == timedelta(hours=25, minutes=2).total_seconds()
    assert "records_deleted" not in dry.closing


def test_it_changes_nothing_anywhere(run_job, mixed, redis_client):
    before = checksum(mixed)

    run = run_job("--dry-run")

    assert (run.code, run.closing["records_to_delete"]) == (0, 7)
    assert checksum(mixed) == before
    assert redis_client.keys() == []
    assert run.events("run_figures") == []


def test_the_environment_can_ask_for_it_too(run_job, mixed, monkeypatch):
    monkeypatch.setenv("CLEANUP_DRY_RUN", "true")
    before = quiz_left(mixed)

    assert run_job().closing["dry_run"] is True
    assert quiz_left(mixed) == before


def test_it_may_ask_about_a_day_to_come_but_a_real_run_may_not(run_job, mixed):
    (tomorrow,) = mixed.execute("SELECT (now() + interval '1 day')::text").fetchone()
    before = quiz_left(mixed)

    dry, real = run_job("--dry-run", as_of=tomorrow), run_job(as_of=tomorrow)

    assert (dry.code, dry.closing["records_to_delete"]) == (0, 11)
    assert real.code == 2
    assert "future" in real.closing["error"]
    assert quiz_left(mixed) == before


def test_a_real_run_without_a_moment_takes_the_databases_now(run_job, mixed):
    (before,) = mixed.execute("SELECT now()").fetchone()

    run = run_job(as_of=None)

    (cutoff, after) = mixed.execute("SELECT cutoff_at, now() FROM ops.job_runs").fetchone()
    assert before <= cutoff <= after
    assert run.event("cleanup_started")["cutoff_at"] == cutoff.isoformat()


def test_it_predicts_the_limit_too(run_job, mixed):
    dry, real = run_job("--dry-run", "--limit", "3"), run_job("--limit", "3")

    assert dry.closing["records_to_delete"] == real.closing["records_deleted"] == 3
    assert dry.closing["records_remaining"] == real.closing["records_remaining"] == 4


def test_it_says_that_a_run_would_be_refused(apply, things):
    add_things(things, 1, 20)

    run = apply({"things": policy(max_rows=19)}, "--dry-run")

    assert (run.code, run.closing["stop_reason"]) == (1, "would_be_refused")
    assert "--confirm-cap 20" in run.closing["error"]


def test_it_counts_the_item_that_referenced_rows_would_raise(apply, things):
    add_things(things, 1, 3)
    things.execute(
        "CREATE TABLE notes (id bigint PRIMARY KEY, thing_id bigint REFERENCES things);"
        "INSERT INTO notes VALUES (1, 1); GRANT SELECT ON notes TO lifecycle_jobs"
    )
    policies = {"things": policy()}

    runs = [apply(policies, "--dry-run"), apply(policies), apply(policies, "--dry-run"), apply(policies)]

    assert [run.closing["records_queued"] for run in runs] == [1, 1, 0, 0]
    assert [run.code for run in runs] == [0, 4, 0, 0]


def test_a_policy_that_the_database_refuses_does_not_hide_the_next_one(apply, things):
    things.execute("CREATE SCHEMA hidden; CREATE TABLE hidden.things (LIKE things INCLUDING ALL)")
    add_things(things, 1, 3)
    apply({"things": policy()}, "--dry-run")

    run = apply({"secret": policy(table="hidden.things"), "things": policy()}, "--dry-run", grant=False)

    assert run.code == 1
    assert run.closing["records_to_delete"] == 3
    assert left(things) == [1, 2, 3]
