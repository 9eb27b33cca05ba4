"""Foreign keys that no policy declares: what would go along unseen is refused, what is still needed stays."""

from __future__ import annotations

import threading
import time

import pytest
import yaml

from scripts.lifecycle.engine import preflight
from tests.lifecycle.support import add_things, audited, left, policy, queue_items, record


def add_notes(admin, on_delete, *, notes=((1, 1), (2, 2)), index=True):
    """Notes that refer to things; each is (id, thing)."""
    admin.execute(
        "CREATE TABLE notes (id bigint PRIMARY KEY, thing_id bigint DEFAULT 99 CONSTRAINT notes_of_things"
        f" REFERENCES things ON DELETE {on_delete}); GRANT SELECT ON notes TO lifecycle_jobs"
    )
    if index:
        admin.execute("CREATE INDEX ON notes (thing_id)")
    admin.cursor().executemany("INSERT INTO notes VALUES (%s, %s)", notes)


@pytest.fixture
def five(things):
    """Five due things and number 99, which is fresh."""
    add_things(things, 1, 5)
    add_things(things, 99, 99, days=1)
    return things


@pytest.mark.parametrize("on_delete", ["CASCADE", "SET NULL", "SET DEFAULT"])
@pytest.mark.parametrize("notes", [((1, 1), (2, 2)), ()])
def test_what_would_change_rows_unseen_is_refused_by_name_even_while_there_are_none(apply, five, on_delete, notes):
    add_notes(five, on_delete, notes=notes)

    dry, run = apply({"things": policy()}, "--dry-run"), apply({"things": policy()})

    for refused in (dry, run):
        assert (refused.code, refused.closing["stop_reason"]) == (1, "preflight_failed")
        assert "foreign key notes_of_things" in refused.closing["error"]
        assert "dependants" in refused.closing["error"]
    assert left(five) == [1, 2, 3, 4, 5, 99]
    assert five.execute("SELECT id, thing_id FROM notes ORDER BY 1").fetchall() == list(notes)
    assert audited(five) == []


@pytest.mark.parametrize("on_delete", ["RESTRICT", "NO ACTION"])
def test_rows_that_are_still_referred_to_stay_and_one_item_counts_them(apply, five, on_delete):
    add_notes(five, on_delete)

    first, second = apply({"things": policy()}), apply({"things": policy()})

    assert left(five) == [1, 2, 99]
    assert audited(five) == ["3", "4", "5"]
    assert (first.code, first.closing["records_remaining"], first.closing["records_queued"]) == (4, 2, 1)
    assert (second.code, second.closing["records_remaining"], second.closing["records_queued"]) == (0, 2, 0)
    (item,) = queue_items(five, "item_type, resource_type, resource_id, occurrences, context")
    assert item == (
        *("foreign_key_violation", "public.things", "things", 2),
        {"policy": "things", "rows": 2, "tables": ["public.notes"], "constraints": ["notes_of_things"]},
    )


def test_a_row_that_is_no_longer_referred_to_goes_with_the_next_run(apply, five):
    add_notes(five, "RESTRICT")
    apply({"things": policy()})
    five.execute("DELETE FROM notes WHERE thing_id = 1")

    assert apply({"things": policy()}).closing["records_deleted"] == 1
    assert left(five) == [2, 99]


def test_a_key_on_another_unique_column_counts_as_well(apply, five):
    five.execute("ALTER TABLE things ADD code text UNIQUE; UPDATE things SET code = 'c' || id")
    five.execute(
        "CREATE TABLE notes (id bigint PRIMARY KEY, code text REFERENCES things (code));"
        "INSERT INTO notes VALUES (1, 'c4'), (2, NULL); GRANT SELECT ON notes TO lifecycle_jobs"
    )

    assert apply({"things": policy()}).code == 4
    assert left(five) == [4, 99]


def test_a_key_of_two_columns_counts_as_well(apply, five):
    five.execute("UPDATE things SET kind = 'k'; ALTER TABLE things ADD UNIQUE (id, kind)")
    five.execute(
        "CREATE TABLE notes (id bigint PRIMARY KEY, thing_id bigint, kind text,"
        " FOREIGN KEY (thing_id, kind) REFERENCES things (id, kind));"
        # With a null in it, a reference refers to nothing.
        "INSERT INTO notes VALUES (1, 3, 'k'), (2, 4, NULL); GRANT SELECT ON notes TO lifecycle_jobs"
    )

    apply({"things": policy()})

    assert left(five) == [3, 99]


def test_rows_that_refer_to_rows_of_their_own_table_go_and_the_needed_one_stays(apply, five):
    five.execute("ALTER TABLE things ADD parent bigint REFERENCES things; CREATE INDEX ON things (parent)")
    five.execute("UPDATE things SET parent = 1 WHERE id = 2; UPDATE things SET parent = 3 WHERE id = 99")

    apply({"things": policy()})

    # 1 was freed by 2's going and is taken by the closing walk.
    assert left(five) == [3, 99]


def test_a_cascade_on_the_parent_of_a_partition_is_seen_from_the_partition(apply, admin):
    admin.execute(
        "CREATE TABLE logs (id bigint PRIMARY KEY, made_at timestamptz) PARTITION BY RANGE (id);"
        "CREATE TABLE logs_1 PARTITION OF logs FOR VALUES FROM (0) TO (100); CREATE INDEX ON logs_1 (made_at);"
        "CREATE TABLE marks (id bigint PRIMARY KEY, log_id bigint REFERENCES logs ON DELETE CASCADE);"
        "INSERT INTO logs VALUES (1, '2020-01-01'); INSERT INTO marks VALUES (1, 1); GRANT SELECT ON marks TO PUBLIC"
    )

    run = apply({"logs": policy(table="public.logs_1")})

    assert (run.code, run.closing["stop_reason"]) == (1, "preflight_failed")
    assert (left(admin, "logs"), left(admin, "marks")) == ([1], [1])


@pytest.mark.parametrize("limit", [1 << 40, 0])
def test_a_foreign_key_without_an_index_is_a_warning_on_a_small_table_and_refused_on_a_large_one(
    apply, five, monkeypatch, limit
):
    monkeypatch.setattr(preflight, "LARGE_TABLE_BYTES", limit)
    # A large table is also asked for its plan; this keeps the planner from reading so few rows one by one.
    five.execute(f"ALTER ROLE lifecycle_jobs IN DATABASE {five.info.dbname} SET enable_seqscan = off")
    add_notes(five, "RESTRICT", index=False)

    run = apply({"things": policy()})

    said = "foreign key notes_of_things on public.notes has no index"
    if limit:
        assert said in run.event("preflight_warning")["problem"]
        assert (run.code, left(five)) == (4, [1, 2, 99])
    else:
        assert said in run.closing["error"]
        assert (run.code, left(five)) == (1, [1, 2, 3, 4, 5, 99])


def test_a_foreign_key_that_the_role_may_not_look_at_stops_the_policy(apply, five):
    apply({"things": policy()}, "--dry-run")
    add_notes(five, "RESTRICT")
    five.execute("REVOKE SELECT ON notes FROM lifecycle_jobs")

    run = apply({"things": policy()}, grant=False)

    assert run.code == 1
    assert "no right to SELECT on public.notes, for foreign key notes_of_things" in run.closing["error"]
    assert len(left(five)) == 6

    assert apply({"things": policy()}).code == 4  # what is referred to is told to a person
    assert left(five) == [1, 2, 99]


@pytest.mark.parametrize("on_delete", ["CASCADE", "SET NULL", "RESTRICT"])
def test_a_child_that_is_being_added_while_its_parent_goes_is_neither_deleted_nor_cut_off(
    apply, five, database, on_delete
):
    add_notes(five, on_delete, notes=())
    refuse = [{"table": "public.notes", "column": "thing_id", "action": "refuse"}]
    adding = database.superuser()
    adding.execute("BEGIN")
    adding.execute("INSERT INTO notes VALUES (7, 3)")

    def commit_once_waited_for():
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        end = time.monotonic() + 10
        while five.execute(waiting).fetchone() == (0,) and time.monotonic() < end:
            time.sleep(0.005)
        adding.execute("COMMIT")

    committing = threading.Thread(target=commit_once_waited_for)
    committing.start()
    run = apply({"things": policy(dependants=refuse)})
    committing.join()

    assert five.execute("SELECT id, thing_id FROM notes").fetchall() == [(7, 3)]
    assert left(five) == [3, 99]
    assert (audited(five), run.closing["records_deleted"]) == (["1", "2", "4", "5"], 4)
    assert record(five)["status"] != "failed"


NO_INDEX = {
    "partial": "CREATE INDEX ON notes (thing_id) WHERE id > 5",
    "of an expression": "CREATE INDEX ON notes ((thing_id + 0))",
    "of another column first": "CREATE INDEX ON notes (id, thing_id)",
    "that cannot find a value": "CREATE INDEX ON notes USING brin (thing_id)",
    "that is invalid": (
        "CREATE INDEX broken ON notes (thing_id);"
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'broken'::regclass"
    ),
    "that is not ready": (
        "CREATE INDEX broken ON notes (thing_id);"
        "UPDATE pg_index SET indisready = false WHERE indexrelid = 'broken'::regclass"
    ),
}
AN_INDEX = {
    "plain": "CREATE INDEX ON notes (thing_id)",
    "with more": "CREATE INDEX ON notes (thing_id DESC, id)",
    "of what is not null": "CREATE INDEX ON notes (thing_id) WHERE thing_id IS NOT NULL",
    "hash": "CREATE INDEX ON notes USING hash (thing_id)",
    "partial beside a whole one": (
        "CREATE INDEX ON notes (thing_id) WHERE id > 5; CREATE UNIQUE INDEX ON notes (thing_id)"
    ),
}


@pytest.mark.parametrize("kind", NO_INDEX)
def test_an_index_that_cannot_find_every_referring_row_is_none(apply, five, monkeypatch, kind):
    monkeypatch.setattr(preflight, "LARGE_TABLE_BYTES", 0)
    add_notes(five, "NO ACTION", index=False)
    five.execute(NO_INDEX[kind])

    run = apply({"things": policy()})

    assert (run.code, len(left(five))) == (1, 6)
    assert "foreign key notes_of_things on public.notes has no index" in run.closing["error"]


@pytest.mark.parametrize("kind", AN_INDEX)
def test_an_index_that_finds_every_referring_row_will_do(apply, five, kind):
    add_notes(five, "NO ACTION", index=False)
    five.execute(AN_INDEX[kind])

    assert apply({"things": policy()}).events("preflight_warning") == []


def test_of_a_key_of_two_columns_either_may_come_first_in_the_index(apply, five):
    five.execute(
        "UPDATE things SET kind = 'k'; ALTER TABLE things ADD UNIQUE (id, kind);"
        "CREATE TABLE notes (id bigint PRIMARY KEY, thing_id bigint, kind text,"
        " FOREIGN KEY (thing_id, kind) REFERENCES things (id, kind)); CREATE INDEX ON notes (kind, thing_id);"
        "GRANT SELECT ON notes TO lifecycle_jobs"
    )

    assert apply({"things": policy()}).events("preflight_warning") == []


CURES = {
    "CASCADE": "- {table: public.notes, column: thing_id, action: delete, key: number} (or action set_null or refuse)",
    "SET NULL": "- {table: public.notes, column: thing_id, action: set_null, key: number} (or action delete or refuse)",
    "RESTRICT": "- {table: public.notes, column: thing_id, action: refuse, key: number} (or action delete or set_null)",
}


@pytest.mark.parametrize("on_delete", CURES)
def test_the_line_that_declares_a_forgotten_child_is_printed_and_cures_it(apply, five, on_delete):
    apply({"things": policy()}, "--dry-run")
    add_notes(five, on_delete)
    five.execute("ALTER TABLE notes RENAME id TO number; REVOKE SELECT ON notes FROM lifecycle_jobs")

    said = apply({"things": policy()}, grant=False).closing["error"]

    assert f"add to dependants of policy things the line {CURES[on_delete]}" in said
    line = yaml.safe_load(said.partition("the line - ")[2].partition("}")[0] + "}")
    cured = apply({"things": policy(dependants=[line])})
    assert (cured.code, cured.closing["stop_reason"]) != (1, "preflight_failed")
    assert 5 not in left(five)
