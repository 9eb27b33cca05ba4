"""What must be true before the first row goes; what is not stops its policy, by name, and no other."""

from __future__ import annotations

import pytest

from scripts.lifecycle.engine import preflight
from tests.lifecycle.support import add_things, audited, left, policy, record

REQUIRED = "UPDATE things SET kind = id; ALTER TABLE things ALTER kind SET NOT NULL"
WRONG = {
    "no table": ("", {"table": "public.thongs"}, "table public.thongs does not exist"),
    "no schema": ("", {"table": "pubic.things"}, "table pubic.things does not exist"),
    "wrong case": ("", {"table": "public.Things"}, "table public.Things does not exist"),
    "no key": ("", {"key": "uuid"}, "column public.things.uuid does not exist"),
    "no anchor": (
        "",
        {"rules": {"old": {"anchor": "born_at", "keep": "1 day"}}},
        "column public.things.born_at does not exist",
    ),
    "no condition": (
        "",
        {"rules": {"old": {"when": {"colour": "set"}, "anchor": "made_at", "keep": "1 day"}}},
        "column public.things.colour does not exist",
    ),
    "no exception": (
        "",
        {"exceptions": {"x": {"when": {"colour": "set"}}}},
        "column public.things.colour does not exist",
    ),
    "no person": ("", {"person": "mail"}, "column public.things.mail does not exist"),
    "text anchor": (
        "",
        {"rules": {"old": {"anchor": "kind", "keep": "1 day"}}},
        "public.things.kind is text, not a date or timestamp",
    ),
    "number anchor": (
        "ALTER TABLE things ADD born bigint; CREATE INDEX ON things (born)",
        {"rules": {"old": {"anchor": "born", "keep": "1 day"}}},
        "public.things.born is bigint, not a date or timestamp",
    ),
    "time anchor": (
        "ALTER TABLE things ADD born time",
        {"rules": {"old": {"anchor": "born", "keep": "1 day"}}},
        "public.things.born is time without time zone, not a date or timestamp",
    ),
    "queue anchor": (
        "",
        {
            "exceptions": {
                "x": {
                    "when": {"person": "set"},
                    "queue": {"item_type": "x", "priority": "low", "anchor": "kind", "after": "1 day", "reason": "x"},
                }
            }
        },
        "public.things.kind is text, not a date or timestamp",
    ),
    "key not unique": ("", {"key": "person"}, "public.things.person is not a unique, non-null key"),
    "key unique but null": (
        "ALTER TABLE things ADD UNIQUE (kind)",
        {"key": "kind"},
        "kind is not a unique, non-null key",
    ),
    "key unique in part": (
        f"{REQUIRED}; CREATE UNIQUE INDEX ON things (kind) WHERE id > 5",
        {"key": "kind"},
        "kind is not a unique, non-null key",
    ),
    "key unique with another": (
        f"{REQUIRED}; ALTER TABLE things ADD UNIQUE (kind, id)",
        {"key": "kind"},
        "kind is not a unique, non-null key",
    ),
    "keys not unique": ("", {"key": ["person", "kind"]}, "public.things.(person, kind) is not a unique, non-null key"),
    "keys unique but null": (
        "ALTER TABLE things ADD UNIQUE (kind, person)",
        {"key": ["person", "kind"]},
        "(person, kind) is not a unique, non-null key",
    ),
    "a key with no one text": (
        "ALTER TABLE things ADD share float NOT NULL DEFAULT 0",
        {"key": ["id", "share"]},
        "share (double precision) cannot be part of a key of several columns",
    ),
    "no column to set to null": (
        (
            "ALTER TABLE things ADD UNIQUE (id, kind); CREATE TABLE notes (id int PRIMARY KEY, thing bigint NOT NULL,"
            " kind text NOT NULL, FOREIGN KEY (thing, kind) REFERENCES things (id, kind));"
            " GRANT SELECT, UPDATE ON notes TO lifecycle_jobs"
        ),
        {"dependants": [{"table": "public.notes", "column": ["thing", "kind"], "action": "set_null"}]},
        "no column of foreign key notes_thing_kind_fkey on public.notes may be null",
    ),
    "a view": ("CREATE VIEW seen AS SELECT * FROM things", {"table": "public.seen"}, "public.seen is not a table"),
    "a materialized view": (
        "CREATE MATERIALIZED VIEW seen AS SELECT * FROM things",
        {"table": "public.seen"},
        "public.seen is not a table",
    ),
    "an index": ("", {"table": "public.things_pkey"}, "public.things_pkey is not a table"),
    "row-level security": (
        "ALTER TABLE things ENABLE ROW LEVEL SECURITY; CREATE POLICY mine ON things USING (id < 3)",
        {},
        "row-level security on public.things hides rows from this role",
    ),
    "may not read": ("REVOKE SELECT ON things FROM lifecycle_jobs", {}, "no right to SELECT on public.things"),
    "may not delete": ("REVOKE DELETE ON things FROM lifecycle_jobs", {}, "no right to DELETE on public.things"),
    "may not lock": (
        "REVOKE UPDATE (id) ON things FROM lifecycle_jobs",
        {},
        "no right to UPDATE any column of public.things",
    ),
    "may not enter": (
        "CREATE SCHEMA hidden; ALTER TABLE things SET SCHEMA hidden; SET search_path TO hidden, public",
        {"table": "hidden.things"},
        "no right to USAGE of the schema of hidden.things",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_the_database_contradicts_stops_the_policy_and_no_other(apply, things, case):
    statement, changes, said = WRONG[case]
    add_things(things, 1, 9)
    things.execute("CREATE TABLE others (LIKE things INCLUDING ALL); INSERT INTO others SELECT * FROM things")
    good = policy(table="public.others", rules={"old": {"anchor": "made_at", "keep": "30 days"}})
    apply({"things": policy(), "others": good}, "--dry-run")  # grants what is usual
    things.execute(statement)

    run = apply({"wrong": policy(**changes), "others": good}, grant=False)

    assert (run.code, run.closing["stop_reason"]) == (1, "preflight_failed")
    assert said in run.closing["error"]
    row = record(things, "wrong")
    assert (row["status"], row["exit_code"], row["records_processed"]) == ("failed", 1, 0)
    # Not counted is not zero.
    assert (row["records_remaining"], row["records_held"], run.closing["records_remaining"]) == (None, None, None)
    assert (row["oldest_overdue_seconds"], row["sla_status"]) == (None, "warning")
    assert left(things) == list(range(1, 10))
    assert (left(things, "others"), record(things, "others")["status"]) == ([], "completed")
    assert audited(things) == audited(things, "public.seen") == []


def test_everything_that_is_wrong_is_named_at_once(apply, things):
    wrong = policy(key="uuid", person="mail", rules={"old": {"anchor": "kind", "keep": "1 day"}})

    error = apply({"things": wrong}, grant=False).closing["error"]

    for said in ("no right to DELETE", "things.uuid does not exist", "things.mail does not exist", "kind is text"):
        assert said in error


@pytest.fixture
def large(monkeypatch, things):
    """Every table counts as large, and has been analyzed."""
    monkeypatch.setattr(preflight, "LARGE_TABLE_BYTES", 0)
    add_things(things, 1, 2000)
    add_things(things, 3001, 3050, days=1)
    things.execute("ANALYZE things")
    return things


def test_a_cut_off_without_an_index_is_a_warning_on_a_small_table(apply, things):
    add_things(things, 1, 3)
    things.execute("DROP INDEX things_made_at_idx")

    run = apply({"things": policy()})

    assert (run.code, left(things)) == (0, [])
    assert run.event("preflight_warning")["problem"].startswith("public.things.made_at has no index")


def test_a_cut_off_without_an_index_is_refused_on_a_large_table(apply, large):
    large.execute("DROP INDEX things_made_at_idx")

    run = apply({"things": policy()})

    assert (run.code, run.closing["stop_reason"]) == (1, "preflight_failed")
    assert (
        'public.things.made_at has no index: CREATE INDEX CONCURRENTLY ON "public"."things" ("made_at")'
        in run.closing["error"]
    )
    assert len(left(large)) == 2050


@pytest.mark.parametrize("arguments", [[], ["--limit", "5"]])
def test_a_large_table_with_its_index_is_purged(apply, large, arguments):
    assert apply({"things": policy()}, "--batch-size", "300", "--dry-run", *arguments).code == 0

    run = apply({"things": policy()}, "--batch-size", "300", *arguments)

    assert run.code == 0
    assert len(left(large)) == (2045 if arguments else 50)


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_a_plan_that_reads_all_of_a_large_table_for_each_batch_is_refused(apply, large, database, arguments):
    large.execute("DROP INDEX things_made_at_idx")
    database.superuser().execute("BEGIN; SELECT pg_current_xact_id()")
    # The old version may still be seen by that transaction. PostgreSQL leaves an index that is made now unused until it
    # ends.
    large.execute("UPDATE things SET made_at = made_at + interval '1 second' WHERE id = 3050")
    large.execute("CREATE INDEX ON things (made_at)")

    run = apply({"things": policy()}, "--limit", "5", *arguments)

    assert (run.code, run.closing["stop_reason"]) == (1, "preflight_failed")
    assert "PostgreSQL would read all of public.things for each batch" in run.closing["error"]
    assert len(left(large)) == 2050
