"""What a legal hold keeps, and that nothing else keeps it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from scripts.lifecycle.engine import holds
from scripts.utils.errors import Misconfigured, OpsError
from tests.lifecycle.support import ANNA, BEN, add_quiz, ago, audited, key_of, quiz_left, record

TABLE = "public.quiz_responses"
BY = {"operator": "olga", "reason": "lawsuit 12/26"}


@pytest.fixture
def answers(admin):
    """Three due rows: two of Anna, one of Ben."""
    for name, person in {"anna 1": ANNA, "anna 2": ANNA, "ben 1": BEN}.items():
        add_quiz(admin, name, created=ago(days=2), person=person)
    return admin


SCOPES = {
    "row": ({"table": TABLE, "resource_id": key_of("anna 1")}, {"anna 1"}),
    "person": ({"person": ANNA}, {"anna 1", "anna 2"}),
    "table": ({"table": TABLE}, {"anna 1", "anna 2", "ben 1"}),
    "another row": ({"table": TABLE, "resource_id": key_of("nobody")}, set()),
    "same row elsewhere": ({"table": "public.meal_plans", "resource_id": key_of("anna 1")}, set()),
    "another person": ({"person": "dora@example.com"}, set()),
    "another table": ({"table": "public.meal_plans"}, set()),
}


@pytest.mark.parametrize("scope", SCOPES)
def test_a_hold_keeps_its_rows_and_the_others_go_and_after_its_release_they_go_too(run_job, answers, db, scope):
    where, kept = SCOPES[scope]
    hold = holds.place(db, **where, **BY)

    dry, run = run_job("--dry-run"), run_job("--batch-size", "2")

    assert quiz_left(answers) == kept
    assert dry.closing["records_held"] == run.closing["records_held"] == len(kept)
    assert (run.code, run.closing["records_deleted"], run.closing["records_remaining"]) == (0, 3 - len(kept), 0)
    assert record(answers, "quiz_responses")["records_held"] == len(kept)
    assert not {key_of(name) for name in kept} & set(audited(answers, TABLE))

    holds.release(db, hold, operator="otto")

    assert run_job().closing["records_deleted"] == len(kept)
    assert quiz_left(answers) == set()


def test_a_held_row_is_not_overdue(run_job, answers, db):
    answers.execute("UPDATE quiz_responses SET created_at = '2020-01-01' WHERE quiz_data ->> 'name' = 'anna 1'")
    holds.place(db, table=TABLE, resource_id=key_of("anna 1"), **BY)

    run = run_job()

    assert (run.closing["oldest_overdue_seconds"], run.closing["sla_status"]) == (0.0, "within_sla")


def test_an_expired_hold_keeps_nothing_and_one_that_expires_later_does(run_job, answers, db):
    later = holds.place(db, person=BEN, expires_at=datetime.now(UTC) + timedelta(hours=1), **BY)
    ended = holds.place(db, person=ANNA, expires_at=datetime.now(UTC) + timedelta(hours=1), **BY)
    answers.execute("UPDATE ops.legal_holds SET expires_at = now() - interval '1 second' WHERE id = %s", (ended,))

    run_job()

    assert quiz_left(answers) == {"ben 1"}
    assert [hold.id for hold in holds.active(db)] == [later]


def test_a_value_that_is_no_plain_address_and_may_name_a_held_person_keeps_its_row(run_job, answers, db):
    for number, value in enumerate((f"Anna <{ANNA}>", f"mailto:{ANNA}", f"{ANNA},{BEN}", f"Ben <{BEN}>")):
        add_quiz(answers, f"odd {number}", created=ago(days=2), person=value)
    hold = holds.place(db, person=ANNA, **BY)

    assert run_job("--dry-run").closing["records_to_delete"] == 2
    assert run_job().closing["records_held"] == 5
    assert quiz_left(answers) == {"anna 1", "anna 2", "odd 0", "odd 1", "odd 2"}
    holds.release(db, hold, operator="otto")
    run_job()
    assert quiz_left(answers) == set()


def test_two_holds_on_one_row_keep_it_until_both_are_released(run_job, answers, db):
    first = holds.place(db, person=BEN, **BY)
    second = holds.place(db, table=TABLE, resource_id=key_of("ben 1"), **BY)

    holds.release(db, first, operator="otto")
    assert run_job().closing["records_held"] == 1
    holds.release(db, second, operator="otto")

    assert run_job().closing["records_deleted"] == 1


def test_placing_and_releasing_are_audited_under_the_operator_and_without_the_person(db, admin):
    hold = holds.place(db, person=ANNA, **BY)
    holds.release(db, hold, operator="otto")

    assert admin.execute(
        "SELECT actor, action, resource_type, resource_id, reason FROM ops.audit_log ORDER BY seq"
    ).fetchall() == [
        ("operator:olga", "hold_placed", "ops.legal_holds", str(hold), "legal_hold/person"),
        ("operator:otto", "hold_released", "ops.legal_holds", str(hold), "legal_hold/person"),
    ]
    assert admin.execute("SELECT person, released_by, released_at IS NULL FROM ops.legal_holds").fetchall() == [
        (None, "otto", False)
    ]


def test_a_list_shows_the_holds_in_force_and_no_person(db):
    placed = [holds.place(db, person=ANNA, **BY), holds.place(db, table=TABLE, **BY)]
    gone = holds.place(db, person=BEN, **BY)
    holds.release(db, gone, operator="otto")

    listed = holds.active(db)

    assert [(hold.id, hold.scope, hold.placed_by, hold.reason) for hold in listed] == [
        (placed[0], "person", "olga", "lawsuit 12/26"),
        (placed[1], "table", "olga", "lawsuit 12/26"),
    ]
    assert "example.com" not in repr(listed)


def test_a_hold_is_released_once(db, admin):
    hold = holds.place(db, person=ANNA, **BY)
    holds.release(db, hold, operator="otto")

    for unknown in (hold, uuid4()):
        with pytest.raises(OpsError, match="was released already"):
            holds.release(db, unknown, operator="eve")

    assert admin.execute("SELECT released_by FROM ops.legal_holds").fetchall() == [("otto",)]
    assert len(audited(admin, "ops.legal_holds", "hold_released")) == 1


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"person": ANNA, "table": TABLE},
        {"resource_id": "1"},
        {"person": ANNA, "resource_id": "1"},
        {"table": "quiz_responses"},
        {"table": "public.quiz_response", "resource_id": "1"},
        {"person": ANNA, "expires_at": datetime(2020, 1, 1, tzinfo=UTC)},
    ],
)
def test_a_hold_that_would_hold_nothing_is_refused(db, admin, where):
    with pytest.raises(Misconfigured):
        holds.place(db, **where, **BY)

    assert admin.execute("SELECT count(*) FROM ops.legal_holds").fetchone() == (0,)
    assert admin.execute("SELECT count(*) FROM ops.audit_log").fetchone() == (0,)


def test_the_view_shows_the_holds_that_are_neither_released_nor_past_their_expiry(admin, db):
    """Every statement that asks for a hold in force asks ops.holds_in_force."""
    forever = holds.place(db, table=TABLE, **BY)
    later = holds.place(db, person=ANNA, expires_at=datetime.now(UTC) + timedelta(days=1), **BY)
    released = holds.place(db, person=BEN, **BY)
    holds.release(db, released, operator="otto")
    admin.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, reason, placed_by, expires_at)"
        " VALUES ('table', %s, 'over', 'olga', now())",
        (TABLE,),
    )

    shown = admin.execute("SELECT id, person FROM ops.holds_in_force ORDER BY placed_at").fetchall()

    assert shown == [(forever, None), (later, ANNA)]
