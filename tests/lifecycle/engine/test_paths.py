"""Sweep or index walk, whatever the batch size: the same rows go, and none is missed on the way."""

from __future__ import annotations

import pytest

from tests.lifecycle.support import add_quiz, add_things, ago, audited, left, policy, quiz_left, record

DUE = 120


@pytest.fixture
def mixed(things):
    """Due and fresh rows in turn, so that every batch meets both; they are several blocks."""
    things.execute("ALTER TABLE things ADD filler text DEFAULT repeat('x', 300)")
    for start in range(1, DUE + 1, 10):
        add_things(things, start, start + 9)
        add_things(things, 10_000 + start, 10_000 + start, days=1)
    things.execute("ANALYZE things")
    return things


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["--batch-size", "1"], "index:made_at"),
        (["--batch-size", "2"], "index:made_at"),
        (["--batch-size", "40"], "sweep"),
        (["--batch-size", "1000"], "sweep"),
        (["--limit", "1000"], "index:made_at"),
    ],
)
@pytest.mark.pooled
def test_every_path_and_batch_size_deletes_the_same_rows(apply, mixed, arguments, path):
    run = apply({"things": policy()}, *arguments)

    assert run.code == 0
    assert run.event("policy_started")["path"] == [path]
    assert left(mixed) == list(range(10_001, 10_000 + DUE, 10))
    assert sorted(audited(mixed), key=int) == [str(n) for n in range(1, DUE + 1)]
    assert run.closing["records_deleted"] == DUE


@pytest.mark.pooled
def test_few_due_rows_are_looked_up_by_the_index(apply, things):
    add_things(things, 1, 4)
    add_things(things, 5, 104, days=1)
    things.execute("ANALYZE things")

    run = apply({"things": policy()})

    assert run.event("policy_started")["path"] == ["index:made_at"]
    assert left(things) == list(range(5, 105))


def test_a_table_that_was_never_analyzed_is_purged_all_the_same(apply, things):
    add_things(things, 1, 500)
    add_things(things, 501, 502, days=1)

    assert apply({"things": policy()}, "--batch-size", "100").code == 0
    assert left(things) == [501, 502]


def test_many_rows_of_one_moment_are_walked_in_batches_smaller_than_they_are(apply, things):
    things.execute("INSERT INTO things (id, made_at) SELECT n, %s FROM generate_series(1, 25) n", (ago(days=90),))

    run = apply({"things": policy()}, "--batch-size", "2")

    assert left(things) == []
    assert run.closing["records_deleted"] == 25
    assert record(things)["batches"] == 13


def test_two_rules_on_two_columns_are_walked_one_after_the_other(run_job, admin, plain_file):
    for number in range(5):
        add_quiz(admin, f"delivered {number}", delivered=ago(days=2, minutes=number))
        add_quiz(admin, f"abandoned {number}", created=ago(days=2, minutes=number))
    add_quiz(admin, "fresh", created=ago(hours=1))

    run = run_job("--batch-size", "2", "--policy-file", str(plain_file))

    assert run.event("policy_started")["path"] == ["index:pdf_delivered_at", "index:created_at"]
    assert quiz_left(admin) == {"fresh"}


def test_the_limit_is_exact_and_the_next_run_takes_the_rest(apply, mixed):
    limited = apply({"things": policy()}, "--limit", "10")

    assert (limited.code, limited.closing["stop_reason"]) == (0, "limit_reached")
    assert (limited.closing["records_deleted"], limited.closing["records_remaining"]) == (10, DUE - 10)
    assert len(audited(mixed)) == 10
    assert record(mixed)["status"] == "partial"
    # The oldest go first.
    assert left(mixed)[0] == 1
    assert DUE not in left(mixed)
    assert apply({"things": policy()}).closing["records_deleted"] == DUE - 10


@pytest.mark.parametrize("batch", ["3", "7", "1000"])
def test_the_limit_is_exact_whatever_the_batch_size(apply, mixed, batch):
    run = apply({"things": policy()}, "--limit", "10", "--batch-size", batch)

    assert run.closing["records_deleted"] == len(audited(mixed)) == 10


def test_a_limit_that_was_just_enough_leaves_a_completed_run(apply, things):
    add_things(things, 1, 10)

    run = apply({"things": policy()}, "--limit", "10")

    assert (run.code, run.closing["records_remaining"]) == (0, 0)
    assert record(things)["status"] == "completed"


def test_a_limited_run_that_puts_items_on_the_queue_says_so(run_job, admin):
    add_quiz(admin, "owed", created=ago(days=2), paid=True)
    for number in range(3):
        add_quiz(admin, f"abandoned {number}", created=ago(days=2))

    run = run_job("--limit", "1")

    assert (run.code, run.closing["records_deleted"], run.closing["records_queued"]) == (4, 1, 1)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE things SET made_at = made_at - interval '90 days' WHERE id = 10001",
        "INSERT INTO things (id, made_at) VALUES (20000, '2025-01-01')",
    ],
)
def test_a_row_that_appears_behind_the_sweep_is_taken_by_the_closing_walk(apply, mixed, change):
    (last,) = mixed.execute("SELECT id FROM things WHERE id < 10000 ORDER BY ctid DESC LIMIT 1").fetchone()
    mixed.execute(
        "CREATE FUNCTION moves() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
        f" $$ BEGIN {change}; RETURN NULL; END $$;"
        f"CREATE TRIGGER moves AFTER DELETE ON things FOR EACH ROW WHEN (OLD.id = {last}) EXECUTE FUNCTION moves()"
    )

    run = apply({"things": policy()}, "--batch-size", "40")

    assert run.event("policy_started")["path"] == ["sweep"]
    assert run.closing["records_deleted"] == DUE + 1
    assert (run.code, run.closing["records_remaining"]) == (0, 0)
    assert min(left(mixed)) == (10_011 if "UPDATE" in change else 10_001)
