"""Declared dependants: deleted, cut off or refused, each counted and audited, and each able to keep its parent."""

from __future__ import annotations

import pytest

from scripts.lifecycle.engine import holds
from tests.lifecycle.support import ANNA, BEN, add_things, audited, left, policy, queue_items

UUID = "00000000-0000-4000-8000-000000000001"


def declared(action, **changes):
    return policy(dependants=[{"table": "public.notes", "column": "thing_id", "action": action} | changes])


def notes_left(admin):
    return admin.execute("SELECT id, thing_id FROM notes ORDER BY id").fetchall()


def refuse_delete(admin, table, key, how="RAISE EXCEPTION 'no'"):
    admin.execute(
        f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {how}; END $$;"
        f"CREATE TRIGGER refuse BEFORE DELETE ON {table} FOR EACH ROW WHEN (OLD.id = {key}) EXECUTE FUNCTION refuse()"
    )


@pytest.fixture(params=["NO ACTION"])
def family(request, things):
    """Things 1 to 4 are due, 99 is fresh; 1 has two notes, 2 and 99 have one."""
    add_things(things, 1, 4)
    add_things(things, 99, 99, days=1)
    things.execute(
        f"CREATE TABLE notes (id bigint PRIMARY KEY, thing_id bigint REFERENCES things ON DELETE {request.param});"
        "CREATE INDEX ON notes (thing_id); INSERT INTO notes VALUES (11, 1), (12, 1), (21, 2), (991, 99), (0, NULL)"
    )
    return things


BOTH = pytest.mark.parametrize("family", ["CASCADE", "SET NULL", "RESTRICT"], indirect=True)


@BOTH
def test_declared_to_be_deleted_they_go_with_their_parent_and_are_audited(apply, family):
    run = apply({"things": declared("delete")}, "--batch-size", "3")

    assert (run.code, run.closing["records_deleted"], run.closing["records_remaining"]) == (0, 4, 0)
    assert (left(family), notes_left(family)) == ([99], [(0, None), (991, 99)])
    assert audited(family) == ["1", "2", "3", "4"]
    assert audited(family, "public.notes") == ["11", "12", "21"]
    assert family.execute(
        "SELECT DISTINCT actor, reason, run_id = (SELECT id FROM ops.job_runs) FROM ops.audit_log"
        " WHERE resource_type = 'public.notes'"
    ).fetchall() == [("system:cleanup_things", "retention_policy:things/dependant", True)]


@BOTH
def test_declared_to_be_set_null_they_stay_cut_off_and_are_audited(apply, family):
    run = apply({"things": declared("set_null")})

    assert (run.code, run.closing["records_deleted"]) == (0, 4)
    assert left(family) == [99]
    assert notes_left(family) == [(0, None), (11, None), (12, None), (21, None), (991, 99)]
    assert audited(family, "public.notes", "set_null") == ["11", "12", "21"]
    assert audited(family, "public.notes", "delete") == []


@pytest.mark.parametrize("due", [False, True])
def test_rows_that_refer_to_their_own_table_are_cut_off_and_not_counted_as_deleted(apply, things, due):
    add_things(things, 1, 2)
    add_things(things, 10, 14, days=1)
    things.execute(
        "ALTER TABLE things ADD parent_id bigint REFERENCES things; CREATE INDEX ON things (parent_id);"
        "UPDATE things SET parent_id = 1 WHERE id >= 10"
    )
    if due:
        things.execute("UPDATE things SET parent_id = 1 WHERE id = 2")
    cut_off = {"table": "public.things", "column": "parent_id", "action": "set_null"}

    dry = apply({"things": policy(dependants=[cut_off])}, "--dry-run")
    run = apply({"things": policy(dependants=[cut_off])})

    assert (run.code, left(things)) == (0, [10, 11, 12, 13, 14])
    assert things.execute("SELECT count(parent_id) FROM things").fetchone() == (0,)
    numbers = run.closing["records_deleted"], run.closing["dependants_deleted"]
    assert numbers == (2, len(audited(things, "public.things", "set_null")))
    assert (dry.closing["records_to_delete"], dry.closing["dependants_to_delete"]) == numbers
    assert things.execute("SELECT records_processed, dependants_processed FROM ops.job_runs").fetchall() == [numbers]


@BOTH
def test_declared_to_refuse_they_keep_their_parent_and_one_item_counts_it(apply, family):
    run = apply({"things": declared("refuse")})

    assert (run.code, run.closing["records_deleted"], run.closing["records_remaining"]) == (4, 2, 2)
    assert left(family) == [1, 2, 99]
    assert len(notes_left(family)) == 5
    assert queue_items(family, "item_type, resource_id, context ->> 'rows'") == [
        ("foreign_key_violation", "things", "2")
    ]


@pytest.mark.parametrize("action", ["delete", "set_null"])
@pytest.mark.parametrize("hold", [{"table": "public.notes", "resource_id": "12"}, {"table": "public.notes"}])
def test_a_held_dependant_keeps_its_parent_and_its_siblings(apply, family, db, action, hold):
    placed = holds.place(db, operator="olga", reason="lawsuit", **hold)

    dry, run = apply({"things": declared(action)}, "--dry-run"), apply({"things": declared(action)})

    kept = [1] if "resource_id" in hold else [1, 2]
    assert dry.closing["records_held"] == run.closing["records_held"] == len(kept)
    assert dry.closing["records_to_delete"] == run.closing["records_deleted"] == 4 - len(kept)
    assert left(family) == [*kept, 99]
    assert set(notes_left(family)) >= {(11, 1), (12, 1)}

    holds.release(db, placed, operator="olga")
    assert apply({"things": declared(action)}).closing["records_deleted"] == len(kept)
    assert left(family) == [99]


@pytest.mark.parametrize("said", ["at the dependant", "by the policy on its table"])
@pytest.mark.parametrize("action", ["delete", "set_null"])
def test_a_dependant_about_a_person_under_a_hold_keeps_its_parent(apply, family, db, said, action):
    family.execute(
        f"ALTER TABLE notes ADD who text; UPDATE notes SET who = CASE id WHEN 12 THEN '{ANNA}' ELSE '{BEN}' END"
    )
    placed = holds.place(db, operator="olga", reason="lawsuit", person=ANNA)
    policies = {"things": declared(action, person="who")}
    if said == "by the policy on its table":
        kept = {"action": "retain", "table": "public.notes", "person": "who", "rules": {}}
        policies = {"things": declared(action), "notes": policy(**kept)}

    dry, run = apply(policies, "--dry-run"), apply(policies)

    assert (dry.closing["records_to_delete"], run.closing["records_deleted"]) == (3, 3)
    assert (left(family), set(notes_left(family)) >= {(11, 1), (12, 1)}) == ([1, 99], True)
    assert audited(family) == ["2", "3", "4"]
    assert run.code == 0

    holds.release(db, placed, operator="olga")
    apply(policies)
    assert left(family) == [99]


def test_a_dependant_s_person_that_is_no_column_stops_the_policy(apply, family):
    run = apply({"things": declared("delete", person="who")})

    assert (run.code, left(family)) == (1, [1, 2, 3, 4, 99])
    assert "column public.notes.who does not exist" in run.closing["error"]


def test_a_held_parent_keeps_its_dependants(apply, family, db):
    holds.place(db, operator="olga", reason="lawsuit", table="public.things", resource_id="1")

    apply({"things": declared("delete")})

    assert (left(family), notes_left(family)) == ([1, 99], [(0, None), (11, 1), (12, 1), (991, 99)])


@pytest.mark.parametrize(("table", "key"), [("things", 1), ("notes", 12)])
def test_what_the_database_refuses_stays_with_its_whole_family(apply, family, table, key):
    refuse_delete(family, table, key)

    run = apply({"things": declared("delete")})

    assert (run.code, run.closing["records_deleted"]) == (4, 3)
    assert (left(family), notes_left(family)) == ([1, 99], [(0, None), (11, 1), (12, 1), (991, 99)])
    assert audited(family, "public.notes") == ["21"]
    assert queue_items(family, "resource_type, resource_id") == [("public.things", "1")]


def test_a_dependant_that_does_not_go_keeps_its_parent_and_the_run_says_so(apply, family):
    refuse_delete(family, "notes", 21, how="RETURN NULL")

    run = apply({"things": declared("delete")})

    assert (run.code, run.closing["stop_reason"], run.closing["records_remaining"]) == (3, "rows_left", 1)
    assert (left(family), notes_left(family)) == ([2, 99], [(0, None), (21, 2), (991, 99)])


def test_two_dependants_each_have_their_own_entry(apply, family):
    family.execute(
        "CREATE TABLE marks (mark uuid PRIMARY KEY, thing bigint REFERENCES things); CREATE INDEX ON marks (thing);"
        f"INSERT INTO marks VALUES ('{UUID}', 2)"
    )
    both = policy(
        dependants=[
            {"table": "public.notes", "column": "thing_id", "action": "set_null"},
            {"table": "public.marks", "column": "thing", "action": "delete", "key": "mark"},
        ]
    )

    run = apply({"things": both})

    assert (run.code, left(family), left(family, "marks", "mark")) == (0, [99], [])
    assert audited(family, "public.marks") == [UUID]
    assert audited(family, "public.notes", "set_null") == ["11", "12", "21"]


@pytest.mark.parametrize("limit", ["1", "2"])
def test_a_limit_counts_parents_and_leaves_the_others_families_alone(apply, family, limit):
    run = apply({"things": declared("delete")}, "--limit", limit)

    assert run.closing["records_deleted"] == int(limit) == len(audited(family))
    for _, thing in notes_left(family):
        assert thing is None or thing in left(family)


REFUSED = [
    ({"column": "no_such"}, "dependant public.notes.no_such is declared, but no foreign key there points at"),
    ({"table": "public.users", "column": "email"}, "foreign key notes_thing_id_fkey deletes rows of public.notes"),
    ({"key": "number"}, "column public.notes.number does not exist"),
]


@pytest.mark.parametrize("family", ["CASCADE"], indirect=True)
@pytest.mark.parametrize(("wrong", "said"), REFUSED)
def test_a_wrong_declaration_is_refused_and_deletes_nothing(apply, family, wrong, said):
    apply({"things": declared("delete")}, "--dry-run")  # grants what a right declaration needs

    run = apply({"things": declared("delete", **wrong)}, grant=False)

    assert (run.code, run.closing["stop_reason"]) == (1, "preflight_failed")
    assert said in run.closing["error"]
    assert (len(left(family)), len(notes_left(family))) == (5, 5)


@pytest.mark.parametrize("on_delete", ["CASCADE", "SET NULL", "NO ACTION"])
def test_what_reaches_beyond_a_dependant_is_refused_by_name(apply, family, on_delete):
    family.execute(
        f"CREATE TABLE stars (id bigint PRIMARY KEY, note bigint CONSTRAINT stars_of_notes REFERENCES notes"
        f" ON DELETE {on_delete}); INSERT INTO stars VALUES (1, 11)"
    )

    run = apply({"things": declared("delete")})

    assert run.code == 1
    assert (
        "foreign key stars_of_notes on public.stars reaches beyond the dependant public.notes" in run.closing["error"]
    )
    assert (len(left(family)), len(notes_left(family)), left(family, "stars")) == (5, 5, [1])


def test_missing_rights_on_a_dependant_are_named_before_anything_goes(apply, family):
    family.execute("GRANT SELECT, DELETE, UPDATE ON things TO lifecycle_jobs; GRANT SELECT ON notes TO lifecycle_jobs")

    for action, right in (("delete", "DELETE"), ("set_null", "UPDATE")):
        run = apply({"things": declared(action)}, grant=False)
        assert (run.code, run.closing["stop_reason"]) == (1, "preflight_failed")
        assert f"no right to {right} on public.notes" in run.closing["error"]
    assert (len(left(family)), len(notes_left(family))) == (5, 5)


def test_a_dependants_key_that_may_be_personal_is_never_audited(apply, family):
    family.execute("ALTER TABLE notes ADD mail text; UPDATE notes SET mail = 'anna' || id || '@example.com'")
    family.execute("ALTER TABLE notes DROP CONSTRAINT notes_pkey; ALTER TABLE notes ADD PRIMARY KEY (mail)")

    run = apply({"things": declared("delete", key="mail")})

    assert run.code == 1
    assert "that is no UUID" in run.closing["error"]
    assert family.execute("SELECT count(*) FROM ops.audit_log").fetchone() == (0,)
    assert (len(left(family)), len(notes_left(family))) == (5, 5)
