"""Rows that refer to rows of their own table: children before parents, however deep, and none that is not due."""

from __future__ import annotations

import pytest

from tests.lifecycle.support import add_things, audited, left, policy, queue_items

DEPTH = 300
DECLARED = {"dependants": [{"table": "public.things", "column": "parent_id", "action": "delete"}]}


@pytest.fixture(params=["NO ACTION", "RESTRICT", "CASCADE"])
def thread(request, things):
    """A thread of due rows, each the parent of the next; how it may be declared, if it must be."""
    things.execute(
        f"ALTER TABLE things ADD parent_id bigint REFERENCES things ON DELETE {request.param};"
        "CREATE INDEX ON things (parent_id)"
    )
    add_things(things, 1, DEPTH)
    things.execute("UPDATE things SET parent_id = id - 1 WHERE id > 1")
    things.what = policy(**(DECLARED if request.param == "CASCADE" else {}))
    return things


@pytest.mark.parametrize("batch", [[], ["--batch-size", "70"]])
def test_a_thread_goes_in_one_run(apply, thread, batch):
    dry, run = apply({"things": thread.what}, "--dry-run"), apply({"things": thread.what}, *batch)

    assert (dry.code, dry.closing["records_to_delete"], dry.closing["records_queued"]) == (0, DEPTH, 0)
    assert (run.code, run.closing["records_deleted"], run.closing["stop_reason"]) == (0, DEPTH, "done")
    assert (left(thread), len(audited(thread)), queue_items(thread)) == ([], DEPTH, [])


def test_above_a_row_that_stays_the_thread_stays(apply, thread):
    """A fresh answer keeps what it answers, up to the first question; what was answered elsewhere goes."""
    add_things(thread, 1000, 1000, days=1)
    thread.execute("UPDATE things SET parent_id = 40 WHERE id = 1000")

    dry, run = apply({"things": thread.what}, "--dry-run"), apply({"things": thread.what})

    assert dry.closing["records_to_delete"] == run.closing["records_deleted"] == DEPTH - 40
    assert left(thread) == [*range(1, 41), 1000]
    assert (run.code, queue_items(thread, "item_type, context ->> 'rows'")) == (4, [("foreign_key_violation", "40")])


def test_a_circle_is_named(apply, thread):
    thread.execute("UPDATE things SET parent_id = 7 WHERE id = 5")

    run = apply({"things": thread.what})

    assert (run.code, run.closing["stop_reason"]) == (3, "rows_left")
    assert left(thread) == [5, 6, 7]
    assert "rows 5, 6, 7 refer to each other in a circle by things_parent_id_fkey" in run.closing["error"]
    assert "trigger" not in run.closing["error"]


@pytest.fixture
def two_keys(things):
    """Due rows 1 to 3 and row 4 of today, with two constraints on their own table: 4 refers to 3, 3 to 2, 2 to 1."""
    things.execute(
        "ALTER TABLE things ADD a bigint REFERENCES things, ADD b bigint REFERENCES things;"
        "CREATE INDEX ON things (a); CREATE INDEX ON things (b)"
    )
    add_things(things, 1, 3)
    add_things(things, 4, 4, days=1)
    things.execute("UPDATE things SET a = 1 WHERE id = 2; UPDATE things SET b = id - 1 WHERE id IN (3, 4)")
    return things


@pytest.mark.parametrize("stays", ["made_at = now()", "made_at = NULL"], ids=["of today", "of no known date"])
def test_above_a_row_that_stays_all_stays_by_whichever_constraint(apply, two_keys, stays):
    two_keys.execute(f"ALTER TABLE things ALTER made_at DROP NOT NULL; UPDATE things SET {stays} WHERE id = 4")
    dry, run = apply({"things": policy()}, "--dry-run"), apply({"things": policy()})

    assert (dry.closing["records_to_delete"], run.closing["records_deleted"]) == (0, 0)
    assert (run.code, run.closing["stop_reason"]) == (4, "done")
    assert left(two_keys) == [1, 2, 3, 4]


def test_a_thread_by_two_constraints_goes_once_its_last_row_is_due(apply, two_keys):
    two_keys.execute("UPDATE things SET made_at = made_at - interval '90 days' WHERE id = 4")
    dry, run = apply({"things": policy()}, "--dry-run"), apply({"things": policy()})

    assert dry.closing["records_to_delete"] == run.closing["records_deleted"] == 4
    assert (run.code, left(two_keys)) == (0, [])


def test_a_circle_by_two_constraints_is_named(apply, two_keys):
    two_keys.execute("UPDATE things SET b = NULL WHERE id IN (3, 4); UPDATE things SET b = 2 WHERE id = 1")
    run = apply({"things": policy()})

    assert (run.code, left(two_keys)) == (3, [1, 2, 4])
    assert "rows 1, 2 refer to each other in a circle by things_a_fkey, things_b_fkey" in run.closing["error"]


def test_a_row_that_no_other_can_refer_to_for_want_of_a_code_is_counted(apply, things):
    things.execute(
        "ALTER TABLE things ADD code text UNIQUE, ADD of_code text REFERENCES things (code);"
        "CREATE INDEX ON things (of_code)"
    )
    add_things(things, 1, 3)
    add_things(things, 4, 4, days=1)
    things.execute("UPDATE things SET code = 'one' WHERE id = 1; UPDATE things SET of_code = 'one' WHERE id = 4")
    dry, run = apply({"things": policy()}, "--dry-run"), apply({"things": policy()})

    assert dry.closing["records_to_delete"] == run.closing["records_deleted"] == 2
    assert left(things) == [1, 4]
