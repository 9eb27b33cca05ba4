"""A run that would delete unusually much deletes nothing and asks."""

from __future__ import annotations

from uuid import uuid4

import pytest

from scripts.lifecycle.purge import caps
from tests.lifecycle.support import add_things, ago, audited, left, policy, record

WEEK = "7 days"


@pytest.fixture
def twenty(things):
    """Twenty due things and one fresh one."""
    add_things(things, 1, 20)
    add_things(things, 99, 99, days=1)
    return things


def keep(period, **changes):
    return {"things": policy(rules={"old": {"anchor": "made_at", "keep": period}}, **changes)}


def refused(run, admin, rows, said):
    """Tell that nothing happened, that the run says why, and that it says how to allow it."""
    assert (run.code, run.closing["stop_reason"], run.closing["records_deleted"]) == (1, "cap_exceeded", 0)
    assert said in run.closing["error"]
    assert len(left(admin)) == rows
    assert audited(admin) == []
    row = record(admin)
    assert (row["status"], row["stop_reason"], row["records_processed"]) == ("failed", "cap_exceeded", 0)
    return True


def add_history(admin, days, *, rows, status="completed", script="cleanup_things"):
    """Insert a run that ended so many days ago."""
    admin.execute(
        "INSERT INTO ops.policy_versions VALUES (repeat('0', 64), 'policies: {}', now(), 'a test')"
        " ON CONFLICT DO NOTHING"
    )
    admin.execute(
        "INSERT INTO ops.job_runs (id, script, policy, correlation_id, started_at, cutoff_at, policy_hash,"
        " fencing_token, status, records_processed, host, pid, version)"
        " VALUES (%s, %s, 'things', 'x', now() - make_interval(days => %s), now(), repeat('0', 64), 1, %s, %s, 'h', 1,"
        " 'v')",
        (uuid4(), script, days, status, rows),
    )


def test_a_run_over_max_rows_deletes_nothing_and_names_the_number_that_would_allow_it(apply, twenty):
    run = apply({"things": policy(max_rows=19)})

    assert refused(run, twenty, 21, "20 rows are due, the policy's max_rows is 19")
    assert "--confirm-cap 20" in run.closing["error"]
    assert run.closing["records_remaining"] == 20


def test_a_run_of_exactly_max_rows_goes_ahead(apply, twenty):
    assert apply({"things": policy(max_rows=20)}).closing["records_deleted"] == 20


def test_rows_that_would_not_go_do_not_count(apply, twenty):
    twenty.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
        " VALUES ('row', 'public.things', '7', 'lawsuit', 'ops')"
    )

    assert apply({"things": policy(max_rows=19)}).closing["records_deleted"] == 19


def test_a_limit_within_the_cap_needs_no_permission(apply, twenty):
    assert apply({"things": policy(max_rows=5)}, "--limit", "5").closing["records_deleted"] == 5


def test_a_limit_beyond_the_cap_is_refused_as_well(apply, twenty):
    assert refused(apply({"things": policy(max_rows=5)}, "--limit", "6"), twenty, 21, "6 rows are due")


def test_confirmed_it_goes_ahead_once(apply, twenty):
    assert apply({"things": policy(max_rows=5)}, "--confirm-cap", "20").closing["records_deleted"] == 20
    add_things(twenty, 1, 20)

    assert apply({"things": policy(max_rows=5)}).closing["stop_reason"] == "cap_exceeded"


def test_confirmed_for_fewer_than_are_due_it_deletes_none_rather_than_some(apply, twenty):
    run = apply({"things": policy(max_rows=5)}, "--confirm-cap", "19")

    assert refused(run, twenty, 21, "20 rows are due, --confirm-cap allows 19")


def test_a_confirmation_is_a_cap_even_where_none_was_needed(apply, twenty):
    assert refused(apply({"things": policy()}, "--confirm-cap", "19"), twenty, 21, "--confirm-cap allows 19")


def test_one_refused_policy_leaves_the_others_to_go_on(apply, twenty):
    twenty.execute("CREATE TABLE others (LIKE things INCLUDING ALL); INSERT INTO others SELECT * FROM things")

    run = apply({"things": policy(max_rows=5), "others": policy(table="public.others")})

    assert (run.code, run.closing["records_deleted"]) == (1, 20)
    assert (len(left(twenty)), left(twenty, "others")) == (21, [99])


# Completed runs as (days ago, rows), due rows, and whether those are more than twenty times the usual.
HISTORIES = {
    "twenty times the usual": ([(1, 1)], {}, 20, False),
    "more than that": ([(1, 1)], {}, 21, True),
    "the median of the days, not their mean": ([(1, 0), (2, 0), (3, 900)], {}, 20, True),
    "times the days since the last": ([(3, 1)], {}, 60, False),
    "more than that as well": ([(3, 1)], {}, 61, True),
    "the sum of a day's runs": ([(1, 1), (1, 2)], {}, 60, False),
    "failed runs say nothing": ([(1, 0)], {"status": "failed"}, 20, False),
    "partial runs say nothing": ([(1, 0)], {"status": "partial"}, 20, False),
    "other scripts say nothing": ([(1, 0)], {"script": "someone_else"}, 20, False),
    "old runs say nothing": ([(31, 0)], {}, 20, False),
    "few rows are never unusual": ([(1, 0)], {}, 10, False),
}


@pytest.mark.parametrize("case", HISTORIES)
def test_more_than_twenty_times_the_usual_is_refused(apply, things, monkeypatch, case):
    runs, options, due, unusual = HISTORIES[case]
    monkeypatch.setattr(caps, "UNUSUAL_MINIMUM_ROWS", 10)
    add_things(things, 1, due)
    for days, rows in runs:
        add_history(things, days, rows=rows, **options)

    run = apply({"things": policy()})

    if unusual:
        assert refused(run, things, due, f"{due} rows are due, more than 20 times the usual")
        assert apply({"things": policy()}, "--confirm-cap", str(due)).closing["records_deleted"] == due
    else:
        assert (run.code, run.closing["records_deleted"]) == (0, due)


@pytest.mark.parametrize(("rows", "code"), [(10_000, 0), (10_001, 1)])
def test_ten_thousand_rows_are_never_unusual(apply, things, rows, code):
    add_history(things, 1, rows=0)
    add_things(things, 1, rows)

    run = apply({"things": policy()}, "--dry-run")

    assert (run.code, run.closing["records_to_delete"]) == (code, rows)


def test_a_period_that_became_shorter_is_asked_about_once(apply, twenty):
    add_things(twenty, 200, 203, days=10)
    assert apply(keep("30 days")).closing["records_deleted"] == 20

    asked = apply(keep(WEEK))

    assert (asked.code, asked.closing["stop_reason"], len(left(twenty))) == (1, "cap_exceeded", 5)
    assert "the period of old became shorter since the last completed run" in asked.closing["error"]
    assert apply(keep(WEEK)).code == 1, "asking is not an answer"
    assert apply(keep(WEEK), "--confirm-cap", "4").closing["records_deleted"] == 4
    add_things(twenty, 200, 203, days=10)
    assert apply(keep(WEEK)).closing["records_deleted"] == 4, "now it is the policy of the last completed run"


@pytest.mark.parametrize(
    ("before", "after", "asks"),
    [
        ("30 days", "29 days", True),
        ("forever", "30 days", True),
        ("1 month", "30 days", True),
        ("30 days", "30 days", False),
        ("1 day", "24 hours", False),
        ("7 days", "1 week", False),
        ("30 days", "31 days", False),
        ("30 days", "forever", False),
    ],
)
def test_only_a_shorter_period_asks(apply, things, before, after, asks):
    apply(keep(before))
    add_things(things, 1, 3)

    run = apply(keep(after, description="changed, so that the hash differs"))

    assert run.code == int(asks)
    assert bool(left(things)) == (asks or after == "forever")


def test_a_shorter_period_that_frees_no_row_asks_nothing(apply, things):
    apply(keep("30 days"))
    things.execute("INSERT INTO things (id, made_at) VALUES (1, %s)", (ago(days=1),))

    assert apply(keep(WEEK)).code == 0
    assert left(things) == [1]


def test_another_change_of_the_file_asks_nothing(apply, twenty):
    apply(keep("30 days"))
    add_things(twenty, 1, 20)

    assert apply(keep("30 days", owner="somebody else")).closing["records_deleted"] == 20
