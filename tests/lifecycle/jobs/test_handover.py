"""The way onto the manual-resolution queue: once for each open matter, with a deadline from the settings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from scripts.lifecycle.engine import exceptions
from scripts.lifecycle.jobs import handover
from scripts.utils.settings import load_settings
from tests.lifecycle.support import add_quiz, add_things, ago, key_of, left, policy, queue_items

STATES = ["pending", "assigned", "escalated", "deferred"]


def item(priority="medium", item_type="quiz_orphaned", **context):
    return handover.Item(item_type, "public.quiz_responses", priority, "names nobody", "system:tests", context)


def hours(admin):
    query = "SELECT extract(epoch FROM deadline_at - first_seen_at)::float / 3600 FROM ops.manual_resolution_queue"
    return [value for (value,) in admin.execute(f"{query} ORDER BY priority")]


def test_raising_twice_is_one_item_seen_twice(db, admin, settings):
    assert handover.raise_item(db, settings, item(tries=1), "17") == 1
    first = admin.execute("SELECT first_seen_at, deadline_at FROM ops.manual_resolution_queue").fetchone()

    assert handover.raise_item(db, settings, item(tries=2), "17") == 0

    assert queue_items(admin, "item_type, resource_type, resource_id, priority, status, occurrences, raised_by") == [
        ("quiz_orphaned", "public.quiz_responses", "17", "medium", "pending", 2, "system:tests")
    ]
    assert queue_items(admin, "reason, context, last_seen_at > first_seen_at") == [("names nobody", {"tries": 2}, True)]
    # Seen again is no reprieve.
    assert admin.execute("SELECT first_seen_at, deadline_at FROM ops.manual_resolution_queue").fetchone() == first


@pytest.mark.parametrize("other", [{"item_type": "quiz_undelivered"}, {"resource_id": "18"}])
def test_another_type_or_resource_is_another_item(db, admin, settings, other):
    handover.raise_item(db, settings, item(), "17")

    again = handover.raise_item(
        db, settings, item(item_type=other.get("item_type", "quiz_orphaned")), other.get("resource_id", "17")
    )

    assert (again, len(queue_items(admin))) == (1, 2)


def test_whoever_works_on_an_item_keeps_it_when_it_is_seen_again(db, admin, settings):
    for state in STATES:
        handover.raise_item(db, settings, item(), state)
        admin.execute(
            "UPDATE ops.manual_resolution_queue SET status = %s, assigned_to = 'olga' WHERE resource_id = %s",
            (state, state),
        )

        assert handover.raise_item(db, settings, item(priority="critical"), state) == 0

    assert sorted(queue_items(admin, "resource_id, status, assigned_to, priority, occurrences")) == [
        (state, state, "olga", "medium", 2) for state in sorted(STATES)
    ]


def test_a_resolved_item_that_is_seen_again_is_a_new_one_and_the_old_one_stays_resolved(db, admin, settings):
    handover.raise_item(db, settings, item(), "17")
    admin.execute("UPDATE ops.manual_resolution_queue SET status = 'resolved', resolved_at = now()")

    assert handover.raise_item(db, settings, item(), "17") == 1
    assert sorted(queue_items(admin, "status, occurrences")) == [("pending", 1), ("resolved", 1)]


@pytest.mark.pooled
def test_raised_from_several_connections_at_once_it_is_new_to_exactly_one(db, admin, settings):
    with ThreadPoolExecutor(6) as pool:
        new = list(pool.map(lambda _: handover.raise_item(db, settings, item(), "17"), range(12)))

    assert sum(new) == 1
    assert queue_items(admin, "occurrences") == [(12,)]


def test_deadlines_follow_from_the_priority(db, admin, settings):
    for priority in ("critical", "high", "low", "medium"):
        handover.raise_item(db, settings, item(priority), priority)

    assert hours(admin) == [4, 24, 720, 168]


def test_deadlines_can_be_set(db, admin, settings, monkeypatch):
    for number, priority in enumerate(["CRITICAL", "HIGH", "LOW", "MEDIUM"], start=1):
        monkeypatch.setenv(f"MRQ_SLA_{priority}", str(number))
        handover.raise_item(db, load_settings(), item(priority.lower()), priority)

    assert hours(admin) == [1, 2, 3, 4]


def test_an_unknown_priority_state_or_half_a_resolution_is_refused_by_the_database(db, admin, settings):
    handover.raise_item(db, settings, item(), "17")
    for change in ("priority = 'urgent'", "status = 'done'", "status = 'resolved'", "resolved_at = now()"):
        with pytest.raises(psycopg.errors.CheckViolation):
            admin.execute(f"UPDATE ops.manual_resolution_queue SET {change}")


def test_the_priority_and_deadline_of_an_exception_come_from_policy_and_settings(run_job, admin, monkeypatch):
    monkeypatch.setenv("MRQ_SLA_HIGH", "7")
    add_quiz(admin, "owed", created=ago(days=2), paid=True)

    run_job()

    assert queue_items(admin, "item_type, resource_type, resource_id, priority, raised_by, context") == [
        (
            *("quiz_undelivered", "public.quiz_responses", key_of("owed"), "high", "system:cleanup_quiz_responses"),
            {"policy": "quiz_responses"},
        )
    ]
    assert hours(admin) == [7]


KEPT = policy(
    rules={"all": {"anchor": "made_at", "keep": "forever"}},
    exceptions={
        "reds": {
            "when": {"kind": "red"},
            "queue": {
                "item_type": "old_red",
                "priority": "low",
                "anchor": "made_at",
                "after": "30 days",
                "reason": "old",
            },
        }
    },
)


@pytest.fixture
def reds(things):
    """Sixty due things; every second one is red, and one of those is fresh."""
    add_things(things, 1, 60)
    things.execute("UPDATE things SET kind = 'red' WHERE id % 2 = 0")
    things.execute("UPDATE things SET made_at = %s WHERE id = 30", (ago(days=1),))
    return things


RED = sorted(str(n) for n in range(2, 61, 2) if n != 30)


@pytest.mark.parametrize("window", [1, 7, 50_000])
def test_every_row_that_an_exception_keeps_too_long_is_raised_whatever_the_window(apply, reds, monkeypatch, window):
    monkeypatch.setattr(exceptions, "_WINDOW_ROWS", window)

    dry, first, second = apply({"things": KEPT}, "--dry-run"), apply({"things": KEPT}), apply({"things": KEPT})

    assert [run.closing["records_queued"] for run in (dry, first, second)] == [29, 29, 0]
    assert [run.code for run in (dry, first, second)] == [0, 4, 0]
    assert sorted(queue_items(reds)) == [("old_red", key, 2) for key in RED]
    assert len(left(reds)) == 60


def test_the_rows_of_a_partitioned_table_are_raised_too(apply, admin):
    admin.execute(
        "CREATE TABLE things (id bigint, made_at timestamptz, person text, kind text, PRIMARY KEY (id))"
        " PARTITION BY RANGE (id); CREATE TABLE things_1 PARTITION OF things FOR VALUES FROM (0) TO (30);"
        "CREATE TABLE things_2 PARTITION OF things FOR VALUES FROM (30) TO (100); CREATE INDEX ON things (made_at)"
    )
    add_things(admin, 1, 60)
    admin.execute("UPDATE things SET kind = 'red' WHERE id IN (5, 50)")

    run = apply({"things": KEPT})

    assert (run.code, sorted(queue_items(admin))) == (4, [("old_red", "5", 1), ("old_red", "50", 1)])
