"""Rows that the database refuses to delete: found one by one, handed to a person, and everything else goes."""

from __future__ import annotations

import pytest

from tests.lifecycle.support import add_things, audited, left, policy, queue_items, record

POISON = [17, 18, 60]
SECRET = "anna@example.com"


@pytest.fixture
def hundred(things):
    """A hundred due things; the database refuses three of them with a message that quotes the person."""
    add_things(things, 1, 100)
    things.execute("UPDATE things SET person = %s", (SECRET,))
    things.execute("CREATE TABLE refused (id bigint PRIMARY KEY); INSERT INTO refused VALUES (17), (18), (60)")
    things.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        " IF EXISTS (SELECT FROM public.refused WHERE id = OLD.id) THEN"
        "  RAISE EXCEPTION 'not %', OLD.person USING DETAIL = OLD.person, ERRCODE = coalesce(TG_ARGV[0], 'P0001');"
        " END IF; RETURN OLD; END $$"
    )
    return things


def refuse(admin, how="before", code="P0001"):
    kind = "TRIGGER refuse BEFORE DELETE" if how == "before" else "CONSTRAINT TRIGGER refuse AFTER DELETE"
    when = "DEFERRABLE INITIALLY DEFERRED " if how == "at commit" else ""
    admin.execute(f"CREATE {kind} ON things {when}FOR EACH ROW EXECUTE FUNCTION refuse('{code}')")


@pytest.mark.parametrize("how", ["before", "after", "at commit"])
@pytest.mark.parametrize("batch", ["2", "1000"])
def test_refused_rows_go_to_a_person_and_all_the_others_go(apply, hundred, how, batch):
    refuse(hundred, how)

    run = apply({"things": policy()}, "--batch-size", batch)

    assert (run.code, run.closing["stop_reason"]) == (4, "done")
    assert left(hundred) == POISON
    assert sorted(audited(hundred), key=int) == [str(n) for n in range(1, 101) if n not in POISON]
    assert (run.closing["records_deleted"], run.closing["records_queued"]) == (97, 3)
    assert run.closing["records_remaining"] == 3
    assert (record(hundred)["status"], record(hundred)["records_queued"]) == ("completed", 3)


def test_the_item_names_row_policy_and_sqlstate_and_no_value_of_the_row(apply, hundred):
    refuse(hundred)

    run = apply({"things": policy(person="person")})

    items = queue_items(hundred, "item_type, resource_type, resource_id, priority, raised_by, context")
    facts = {"policy": "things", "sqlstate": "P0001", "constraint": None, "table": None, "functions": ["refuse"]}
    raised_by = "system:cleanup_things"
    assert items == [("row_deletion_failed", "public.things", str(n), "medium", raised_by, facts) for n in POISON]
    for text in (str(run.lines), str(items), str(hundred.execute("SELECT * FROM ops.job_runs").fetchall())):
        assert SECRET not in text


def test_the_next_run_counts_them_again_and_raises_nothing_new(apply, hundred):
    refuse(hundred)
    apply({"things": policy()})
    add_things(hundred, 200, 201)

    run = apply({"things": policy()})

    assert (run.code, run.closing["records_deleted"], run.closing["records_queued"]) == (0, 2, 0)
    assert queue_items(hundred, "resource_id, occurrences") == [(str(n), 2) for n in POISON]


def test_a_row_that_is_no_longer_refused_goes(apply, hundred):
    refuse(hundred)
    apply({"things": policy()})
    hundred.execute("DELETE FROM refused WHERE id = 18")

    assert apply({"things": policy()}).closing["records_deleted"] == 1
    assert left(hundred) == [17, 60]


@pytest.mark.parametrize(
    ("code", "item_type"),
    [
        ("23503", "foreign_key_violation"),
        ("23514", "row_deletion_failed"),
        ("22012", "row_deletion_failed"),
        ("P0002", "row_deletion_failed"),
    ],
)
def test_errors_that_are_about_a_row_are_isolated(apply, hundred, code, item_type):
    refuse(hundred, code=code)

    assert apply({"things": policy()}).code == 4
    assert queue_items(hundred, "item_type, context ->> 'sqlstate'") == [(item_type, code)] * 3
    assert left(hundred) == POISON


@pytest.mark.parametrize("code", ["42501", "53100", "XX000"])
def test_errors_that_are_about_the_run_stop_the_policy_and_blame_no_row(apply, hundred, code):
    refuse(hundred, code=code)

    run = apply({"things": policy()}, "--batch-size", "10")

    assert (run.code, run.closing["stop_reason"]) == (1, "database_error")
    assert code in run.closing["error"]
    assert SECRET not in str(run.lines)
    assert queue_items(hundred) == []
    gone = [int(key) for key in audited(hundred)]
    assert sorted(gone + left(hundred)) == list(range(1, 101))
    assert run.closing["records_deleted"] == len(gone) < 97
    # Counted afresh after the failure, not left at what was known before it.
    assert run.closing["records_remaining"] == len(left(hundred))


def test_max_poison_rows_are_borne_and_one_more_is_not(apply, hundred):
    refuse(hundred)

    assert apply({"things": policy(max_poison=3)}).code == 4

    add_things(hundred, 1, 16)
    stopped = apply({"things": policy(max_poison=2)}, "--batch-size", "1")

    assert (stopped.code, stopped.closing["stop_reason"]) == (1, "too_many_poison_rows")
    assert "refused 3 rows of public.things, max_poison is 2" in stopped.closing["error"]
    assert record(hundred)["status"] == "failed"


def test_with_too_many_the_rows_that_went_before_are_gone_and_audited(apply, hundred):
    refuse(hundred)

    run = apply({"things": policy(max_poison=0)}, "--batch-size", "10")

    assert run.closing["stop_reason"] == "too_many_poison_rows"
    assert run.closing["records_queued"] == 1
    gone = sorted(int(key) for key in audited(hundred))
    assert run.closing["records_deleted"] == len(gone) > 0
    assert sorted(gone + left(hundred)) == list(range(1, 101))


def test_a_stopped_policy_does_not_stop_the_next(apply, hundred):
    hundred.execute("CREATE TABLE others (LIKE things INCLUDING ALL); INSERT INTO others SELECT * FROM things")
    refuse(hundred)

    run = apply({"things": policy(max_poison=0), "others": policy(table="public.others")})

    assert (run.code, left(hundred, "others")) == (1, [])
    assert record(hundred, "others")["status"] == "completed"


def test_a_trigger_that_silently_keeps_rows_does_not_make_a_green_run(apply, hundred):
    hundred.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
        "CREATE TRIGGER keep BEFORE DELETE ON things FOR EACH ROW WHEN (OLD.id > 90) EXECUTE FUNCTION keep()"
    )

    run = apply({"things": policy()})

    assert (run.code, run.closing["stop_reason"]) == (3, "rows_left")
    assert (run.closing["records_deleted"], run.closing["records_remaining"]) == (90, 10)
    assert len(audited(hundred)) == 90
    assert record(hundred)["status"] == "partial"


@pytest.mark.parametrize("check", ["", "DEFERRABLE INITIALLY DEFERRED"])
def test_a_reference_that_appears_while_its_row_goes_is_a_foreign_key_violation_by_name(apply, hundred, check):
    hundred.execute(
        "CREATE TABLE notes (id bigint PRIMARY KEY, thing bigint CONSTRAINT notes_of_things REFERENCES things"
        f" ON DELETE NO ACTION {check}); CREATE INDEX ON notes (thing); GRANT SELECT ON notes TO lifecycle_jobs;"
        "CREATE FUNCTION refer() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
        " $$ BEGIN INSERT INTO public.notes VALUES (1, OLD.id); RETURN OLD; END $$;"
        "CREATE TRIGGER refer BEFORE DELETE ON things FOR EACH ROW WHEN (OLD.id = 17) EXECUTE FUNCTION refer()"
    )

    run = apply({"things": policy()})

    assert (run.code, run.closing["records_deleted"]) == (4, 99)
    assert (left(hundred), left(hundred, "notes")) == ([17], [])
    facts = {
        "policy": "things",
        "sqlstate": "23503",
        "constraint": "notes_of_things",
        "table": "notes",
        "functions": [],
    }
    assert queue_items(hundred, "item_type, resource_id, context") == [("foreign_key_violation", "17", facts)]


def guarded(admin, condition):
    admin.execute(
        f"CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {condition} THEN"
        " RAISE EXCEPTION 'not this one'; END IF; RETURN OLD; END $$;"
        "CREATE TRIGGER guard BEFORE DELETE ON things FOR EACH ROW EXECUTE FUNCTION guard()"
    )


def test_a_trigger_that_refuses_every_row_in_one_way_is_blamed_instead_of_the_rows(apply, things):
    add_things(things, 1, 500)
    guarded(things, "OLD.kind IS NULL")

    run = apply({"things": policy(max_poison=1000)})

    assert (run.code, run.closing["stop_reason"]) == (1, "trigger_refuses")
    for said in (
        "refused each of the 10 rows of public.things that were tried, and all alike",
        "SQLSTATE P0001, in function guard",
        "raised in trigger guard on public.things: correct its function",
    ):
        assert said in run.closing["error"]
    assert (len(left(things)), len(queue_items(things)), audited(things)) == (500, 10, [])


@pytest.mark.parametrize(("first", "last"), [(251, 500), (1, 250), (100, 480)])
def test_a_trigger_that_refuses_a_stretch_of_the_table_lets_the_others_go(apply, things, first, last):
    add_things(things, 1, 500)
    guarded(things, f"OLD.id BETWEEN {first} AND {last}")

    run = apply({"things": policy(max_poison=1000)})

    kept = list(range(first, last + 1))
    assert (run.code, left(things), len(queue_items(things))) == (4, kept, len(kept))


def test_rows_that_were_refused_before_say_nothing_of_their_trigger(apply, things):
    add_things(things, 1, 40)
    guarded(things, "OLD.id <= 20")
    assert apply({"things": policy(max_poison=1000)}).code == 4

    again = apply({"things": policy(max_poison=1000)})

    assert (again.code, again.closing["records_queued"], left(things)) == (0, 0, list(range(1, 21)))


def test_what_too_many_rows_were_refused_by_is_named(apply, things):
    add_things(things, 1, 40)
    guarded(things, "OLD.id <= 20")

    run = apply({"things": policy(max_poison=2)})

    assert run.closing["stop_reason"] == "too_many_poison_rows"
    assert "raised in trigger guard on public.things" in run.closing["error"]
