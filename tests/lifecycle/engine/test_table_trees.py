"""A statement on a table reaches its partitions and children: what is asked about a table is asked of all of them."""

from __future__ import annotations

import pytest

from scripts.lifecycle.engine import preflight
from scripts.lifecycle.policy.policy_order import foreign_keys
from tests.lifecycle.support import add_things, ago, audited, left, policy

PARTITIONED = """
    ALTER TABLE things RENAME TO old_things;
    CREATE TABLE things (id bigint, made_at timestamptz, person text, kind text, PRIMARY KEY (id, made_at))
        PARTITION BY RANGE (made_at);
    CREATE TABLE things_old PARTITION OF things FOR VALUES FROM ('2000-01-01') TO ('2026-01-01')
        PARTITION BY RANGE (made_at);
    CREATE TABLE things_deep PARTITION OF things_old FOR VALUES FROM ('2000-01-01') TO ('2026-01-01');
    CREATE TABLE things_new PARTITION OF things FOR VALUES FROM ('2026-01-01') TO ('2030-01-01');
    CREATE INDEX ON things (made_at);
    CREATE UNIQUE INDEX ON things_deep (id); CREATE UNIQUE INDEX ON things_new (id)
"""
INHERITED = """
    CREATE TABLE things_old () INHERITS (things);
    CREATE TABLE things_deep (PRIMARY KEY (id)) INHERITS (things_old);
    CREATE TABLE things_new (PRIMARY KEY (id)) INHERITS (things);
    CREATE INDEX ON things_old (made_at); CREATE INDEX ON things_deep (made_at); CREATE INDEX ON things_new (made_at)
"""
TREES = {"partitions": PARTITIONED, "children": INHERITED}


@pytest.fixture(params=TREES)
def tree(request, things):
    """Three due things in a part two levels down."""
    things.execute(TREES[request.param])
    into = "things" if request.param == "partitions" else "things_deep"
    add_things(things, 1, 3, table=into)
    return things


def add_notes(admin, on_delete, *, to="things_deep", index="(thing_id)"):
    admin.execute(
        "CREATE TABLE notes (id bigint PRIMARY KEY, thing_id bigint DEFAULT 3 CONSTRAINT notes_of_deep"
        f" REFERENCES {to} (id) ON DELETE {on_delete}); INSERT INTO notes VALUES (1, 1), (2, 2);"
        f" GRANT SELECT, DELETE ON notes TO lifecycle_jobs; CREATE INDEX ON notes {index}"
    )


@pytest.mark.parametrize("on_delete", ["CASCADE", "SET NULL", "SET DEFAULT"])
def test_a_foreign_key_at_a_part_that_changes_rows_unseen_is_refused(apply, tree, on_delete):
    add_notes(tree, on_delete)

    for run in (apply({"things": policy()}, "--dry-run"), apply({"things": policy()})):
        assert (run.code, run.closing["stop_reason"]) == (1, "preflight_failed")
        assert "foreign key notes_of_deep" in run.closing["error"]
        assert "add to dependants of policy things the line - {table: public.notes," in run.closing["error"]
    assert (left(tree), left(tree, "notes"), audited(tree)) == ([1, 2, 3], [1, 2], [])


@pytest.mark.parametrize("on_delete", ["NO ACTION", "RESTRICT"])
def test_rows_that_a_foreign_key_at_a_part_still_needs_stay(apply, tree, on_delete):
    add_notes(tree, on_delete)

    run = apply({"things": policy()})

    assert (run.code, left(tree), audited(tree)) == (4, [1, 2], ["3"])


@pytest.mark.parametrize("on_delete", ["CASCADE", "NO ACTION"])
def test_declared_dependants_of_a_part_go_counted_and_audited_and_those_of_other_parts_stay(apply, tree, on_delete):
    add_notes(tree, on_delete)
    # A row of another part, due later, has the number of a note's thing.
    tree.execute("INSERT INTO things_new (id, made_at) VALUES (2, %s)", (ago(days=1),))
    tree.execute("DELETE FROM things_deep WHERE id = 3")
    dependants = [{"table": "public.notes", "column": "thing_id", "action": "delete"}]

    run = apply({"things": policy(dependants=dependants)})

    assert run.code == 0
    assert (left(tree), left(tree, "notes")) == ([2], [])
    assert (audited(tree), audited(tree, "public.notes")) == (["1", "2"], ["1", "2"])


def test_what_refers_to_one_part_does_not_go_with_a_row_of_another_part_that_has_the_same_key(apply, tree):
    tree.execute("INSERT INTO things_new (id, made_at) VALUES (1, %s)", (ago(days=1),))
    add_notes_to_new = (
        "CREATE TABLE notes (id bigint PRIMARY KEY, thing_id bigint REFERENCES things_new (id) ON DELETE CASCADE);"
        "CREATE INDEX ON notes (thing_id); INSERT INTO notes VALUES (1, 1);"
        "GRANT SELECT, DELETE ON notes TO lifecycle_jobs"
    )
    tree.execute(add_notes_to_new)
    dependants = [{"table": "public.notes", "column": "thing_id", "action": "delete"}]

    run = apply({"things": policy(dependants=dependants)})

    assert run.code == 0
    assert (left(tree), left(tree, "notes"), audited(tree, "public.notes")) == ([1], [1], [])


def test_a_foreign_key_to_an_inheritance_parent_knows_nothing_of_its_children(apply, things):
    things.execute(INHERITED)
    add_things(things, 1, 2, table="things_new")
    add_things(things, 2, 2, days=1)
    things.execute(
        "CREATE TABLE notes (id bigint PRIMARY KEY, thing_id bigint REFERENCES things ON DELETE CASCADE);"
        "CREATE INDEX ON notes (thing_id); INSERT INTO notes VALUES (1, 2);"
        "GRANT SELECT, DELETE ON notes TO lifecycle_jobs"
    )
    dependants = [{"table": "public.notes", "column": "thing_id", "action": "delete"}]

    run = apply({"things": policy(dependants=dependants)})

    assert run.code == 0
    assert (left(things), left(things, "notes")) == ([2], [1])


def test_a_foreign_key_beyond_a_part_of_a_dependant_is_refused(apply, things):
    add_things(things, 1, 1)
    things.execute(
        "CREATE TABLE notes (id bigint, thing_id bigint REFERENCES things ON DELETE CASCADE, PRIMARY KEY (id))"
        " PARTITION BY RANGE (id); CREATE TABLE notes_1 PARTITION OF notes FOR VALUES FROM (0) TO (9);"
        "CREATE INDEX ON notes (thing_id);"
        "CREATE TABLE marks (id bigint PRIMARY KEY, note bigint CONSTRAINT beyond REFERENCES notes_1 ON DELETE CASCADE);"
        "INSERT INTO notes VALUES (1, 1); INSERT INTO marks VALUES (1, 1); GRANT ALL ON notes, marks TO lifecycle_jobs"
    )
    dependants = [{"table": "public.notes", "column": "thing_id", "action": "delete"}]

    run = apply({"things": policy(dependants=dependants)})

    assert (run.code, left(things), left(things, "marks")) == (1, [1], [1])
    assert "foreign key beyond on public.marks reaches beyond the dependant public.notes" in run.closing["error"]


def test_a_constraint_that_postgresql_repeats_for_every_partition_counts_once(apply, things):
    things.execute(PARTITIONED)
    add_things(things, 1, 2)
    things.execute(
        "ALTER TABLE things_deep ADD UNIQUE (made_at, id);"
        "CREATE TABLE notes (id bigint, thing_id bigint, thing_at timestamptz, PRIMARY KEY (id),"
        " FOREIGN KEY (thing_id, thing_at) REFERENCES things (id, made_at) ON DELETE CASCADE) PARTITION BY RANGE (id);"
        "CREATE TABLE notes_1 PARTITION OF notes FOR VALUES FROM (0) TO (9); CREATE INDEX ON notes (thing_id);"
        "INSERT INTO notes SELECT id, id, made_at FROM things WHERE id = 1;"
        "GRANT SELECT, DELETE ON notes TO lifecycle_jobs"
    )
    dependants = [{"table": "public.notes", "column": "thing_id", "action": "delete"}]

    run = apply({"things": policy(dependants=dependants)})
    of_a_part = apply({"deep": policy(table="public.things_deep", dependants=dependants)})

    assert (run.code, left(things), audited(things, "public.notes")) == (0, [], ["1"])
    assert of_a_part.code == 0


@pytest.mark.parametrize("part", ["things_deep", "things_new"])
def test_row_level_security_of_a_part_is_named(apply, tree, part):
    apply({"things": policy()}, "--dry-run")  # grants
    tree.execute(f"ALTER TABLE {part} ENABLE ROW LEVEL SECURITY")

    run = apply({"things": policy()}, grant=False)

    assert (run.code, left(tree)) == (1, [1, 2, 3])
    assert f"row-level security on public.{part}" in run.closing["error"]


def test_row_level_security_of_a_referring_table_is_named(apply, things):
    add_things(things, 1, 1)
    things.execute(
        "CREATE TABLE notes (id bigint PRIMARY KEY, thing_id bigint REFERENCES things); CREATE INDEX ON notes (thing_id);"
        "ALTER TABLE notes ENABLE ROW LEVEL SECURITY; GRANT SELECT ON notes TO lifecycle_jobs"
    )

    run = apply({"things": policy()})

    assert (run.code, left(things)) == (1, [1])
    assert "row-level security on public.notes, which refers to public.things" in run.closing["error"]


@pytest.mark.parametrize("part", ["things_deep", "things_new"])
def test_a_part_without_an_index_on_the_anchor_is_named(apply, things, monkeypatch, part):
    monkeypatch.setattr(preflight, "LARGE_TABLE_BYTES", 0)
    things.execute(INHERITED)
    add_things(things, 1, 3, table=part)
    things.execute(f"DROP INDEX {part}_made_at_idx")

    run = apply({"things": policy()})

    assert (run.code, left(things)) == (1, [1, 2, 3])
    assert "public.things.made_at has no index" in run.closing["error"]


def test_children_go_before_what_they_refer_to_also_where_the_foreign_key_is_at_a_part(tree):
    add_notes(tree, "NO ACTION")

    assert ("public.notes", "public.things") in foreign_keys(tree)
    assert ("public.notes", "public.things_deep") in foreign_keys(tree)
