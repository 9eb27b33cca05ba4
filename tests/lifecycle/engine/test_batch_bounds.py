"""A batch has at most as many records as it may, dependants included, whatever the statistics say."""

from __future__ import annotations

import pytest

from scripts.lifecycle.engine import holds
from scripts.lifecycle.engine.batches import BatchWriter
from tests.lifecycle.support import add_things, audited, left, policy

ROWS = 900
WITH_NOTES = policy(dependants=[{"table": "public.notes", "column": "thing_id", "action": "delete"}])


def largest_transaction(admin):
    """Records of the largest transaction: all entries of one have one xmin."""
    return admin.execute(
        "SELECT max(records) FROM (SELECT sum(cardinality(resource_ids)) AS records FROM ops.audit_batches"
        " GROUP BY xmin::text) t"
    ).fetchone()[0]


def stale(admin, how):
    """Leave the table with statistics that are missing or wrong."""
    if how == "never analyzed":
        admin.execute("ALTER TABLE things SET (autovacuum_enabled = off)")
        add_things(admin, 1, ROWS)
    elif how == "purged, vacuumed and filled again":
        add_things(admin, 1, 40 * ROWS)
        # The last row keeps the file as long as it is.
        admin.execute(f"DELETE FROM things WHERE id < {40 * ROWS}")
        admin.execute("VACUUM (ANALYZE) things")
        add_things(admin, 100_001, 100_000 + 30 * ROWS)
    else:
        admin.execute("ALTER TABLE things ADD filler text")
        admin.execute(
            "INSERT INTO things SELECT n, '2025-01-01', NULL, NULL, repeat('x', 1500) FROM generate_series(1, 200) n;"
            "ANALYZE things"
        )
        add_things(admin, 1001, 1000 + 10 * ROWS)


@pytest.mark.parametrize("how", ["never analyzed", "purged, vacuumed and filled again", "wide rows, then narrow ones"])
@pytest.mark.parametrize("rows", [200, 50])
def test_no_batch_is_larger_than_it_may_be(apply, things, how, rows):
    stale(things, how)
    due = len(left(things))

    run = apply({"things": policy(max_rows=1_000_000)}, "--batch-size", str(rows))

    assert (run.code, run.closing["records_deleted"], left(things)) == (0, due, [])
    assert largest_transaction(things) <= rows
    assert len(audited(things)) == due


def test_the_path_is_chosen_by_what_is_in_the_table(apply, things):
    """Statistics of a table that was nearly empty would make every due row a large share of it."""
    things.execute("ALTER TABLE things SET (autovacuum_enabled = off)")
    add_things(things, 1, 3)
    things.execute("ANALYZE things")
    add_things(things, 10_001, 40_000, days=1)

    run = apply({"things": policy()})

    assert run.event("policy_started")["path"] == ["index:made_at"]
    assert run.closing["records_deleted"] == 3


@pytest.fixture(params=["RESTRICT", "CASCADE", "SET NULL"])
def family(request, things):
    """Things 1 to 3 are due, 1 has 500 notes, 2 none, 3 has 3; 99 is fresh and has one."""
    add_things(things, 1, 3)
    add_things(things, 99, 99, days=1)
    things.execute(
        f"CREATE TABLE notes (id bigint PRIMARY KEY, thing_id bigint REFERENCES things ON DELETE {request.param});"
        "CREATE INDEX ON notes (thing_id);"
        "INSERT INTO notes SELECT n, 1 FROM generate_series(1, 500) n; INSERT INTO notes VALUES (601, 3), (602, 3),"
        " (603, 3), (991, 99)"
    )
    return things


@pytest.mark.parametrize("action", ["delete", "set_null"])
def test_the_dependants_of_one_row_go_in_batches_before_it(apply, family, action):
    what = policy(dependants=[{"table": "public.notes", "column": "thing_id", "action": action}])

    run = apply({"things": what}, "--batch-size", "40")

    assert (run.code, left(family)) == (0, [99])
    assert (run.closing["records_deleted"], run.closing["dependants_deleted"]) == (3, 503)
    assert len(audited(family, "public.notes", action)) == 503
    assert family.execute("SELECT count(*) FROM notes WHERE thing_id <> 99").fetchone() == (0,)
    assert largest_transaction(family) <= 40
    first = family.execute(
        "SELECT resource_type FROM ops.audit_batches WHERE resource_ids && ARRAY['1', '500'] ORDER BY seq DESC LIMIT 1"
    ).fetchone()
    assert first == ("public.things",), "the parent went after the last of its children"


@pytest.mark.parametrize("hold", [{"table": "public.notes", "resource_id": "250"}, {"table": "public.things"}])
def test_what_a_hold_keeps_keeps_every_dependant(apply, family, db, hold):
    holds.place(db, operator="olga", reason="lawsuit", **hold)

    run = apply({"things": WITH_NOTES}, "--batch-size", "40")

    assert 1 in left(family)
    assert family.execute("SELECT count(*) FROM notes WHERE thing_id = 1").fetchone() == (500,)
    assert run.closing["records_held"] == (1 if "resource_id" in hold else 3)


def test_a_hold_that_comes_while_dependants_go_keeps_the_others_and_their_parent(apply, family, db, monkeypatch):
    some, calls = BatchWriter.dependants_of, []

    def then_hold(self, *arguments, **options):
        outcome = some(self, *arguments, **options)
        calls.append(outcome)
        if len(calls) == 3:
            holds.place(db, operator="olga", reason="lawsuit", table="public.things", resource_id="1")
        return outcome

    monkeypatch.setattr(BatchWriter, "dependants_of", then_hold)

    apply({"things": WITH_NOTES}, "--batch-size", "40")

    assert left(family) == [1, 99]
    assert family.execute("SELECT count(*) FROM notes WHERE thing_id = 1").fetchone() == (500 - 3 * 40,)
    assert len(audited(family, "public.notes")) == 3 * 40 + 3


def test_dependants_count_in_the_dry_run_and_against_the_cap(apply, family):
    capped = WITH_NOTES | {"max_rows": 100}

    dry, run = apply({"things": capped}, "--dry-run"), apply({"things": capped})

    assert (dry.code, dry.closing["records_to_delete"], dry.closing["dependants_to_delete"]) == (1, 3, 503)
    assert (run.code, run.closing["stop_reason"]) == (1, "cap_exceeded")
    assert "503" in run.closing["error"]
    assert (left(family), len(left(family, "notes"))) == ([1, 2, 3, 99], 504)
    assert apply({"things": capped}, "--confirm-cap", "505").code == 1
    done = apply({"things": capped}, "--confirm-cap", "506")
    assert (done.code, done.closing["records_deleted"], done.closing["dependants_deleted"]) == (0, 3, 503)
    assert family.execute(
        "SELECT records_processed, dependants_processed FROM ops.job_runs ORDER BY started_at DESC LIMIT 1"
    ).fetchone() == (3, 503)


BY_ANOTHER_TABLE = {"anchor": {"take": "ended_at", "from": "public.contracts", "same": {"id": "thing"}}}
BY_ROW = {"anchor": "made_at", "keep": {"take": "keeps", "unit": "days", "else": "100 days"}}


@pytest.mark.parametrize("first", [BY_ANOTHER_TABLE | {"keep": "30 days"}, BY_ROW], ids=["lookup", "period by row"])
@pytest.mark.parametrize("flags", [("--limit", "7"), ("--batch-size", "7"), ("--batch-size", "1", "--limit", "7")])
def test_rows_that_are_due_by_another_rule_count_in_a_window_of_the_first(apply, things, first, flags):
    things.execute(
        "CREATE TABLE contracts (thing bigint PRIMARY KEY, ended_at timestamptz); ALTER TABLE things ADD keeps integer"
    )
    add_things(things, 1, 60)  # 90 days old: due by the second rule only
    things.execute("UPDATE things SET keeps = 10 WHERE id = 60")  # due by the first one as well
    things.execute("INSERT INTO contracts VALUES (60, '2025-01-01')")
    rules = {"first": first, "old": {"anchor": "made_at", "keep": "30 days"}}

    run = apply({"things": policy(rules=rules)}, *flags)

    assert run.closing["records_deleted"] == 60 - len(left(things)) == (7 if "--limit" in flags else 60)
    assert largest_transaction(things) <= 7
