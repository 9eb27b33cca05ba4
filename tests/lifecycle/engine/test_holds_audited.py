"""Every change to a legal hold is in the audit, by whatever statement it was made."""

from __future__ import annotations

import psycopg
import pytest

from scripts.lifecycle.audit import audit
from scripts.lifecycle.engine import holds
from tests.lifecycle.support import ANNA

TABLE = "public.quiz_responses"
BY = {"operator": "olga", "reason": "lawsuit 12/26"}


def entries(admin):
    return admin.execute(
        "SELECT actor, action, reason, metadata - 'session_user', metadata ->> 'session_user' FROM ops.audit_batches"
        " WHERE resource_type = 'ops.legal_holds' ORDER BY seq"
    ).fetchall()


def test_a_hold_that_a_job_lets_run_out_and_deletes_leaves_its_trace(db, admin, database):
    jobs = database.connect()
    hold = holds.place(db, table=TABLE, **BY)

    jobs.execute("UPDATE ops.legal_holds SET expires_at = '2020-01-01Z' WHERE id = %s", (hold,))
    admin.execute("DELETE FROM ops.legal_holds WHERE id = %s", (hold,))

    changed = {"changed": ["expires_at"], "expired_at": None, "expires_at": "2020-01-01T00:00:00+00:00"}
    assert entries(admin) == [
        ("operator:olga", "hold_placed", "legal_hold/table", {}, "lifecycle_jobs"),
        ("system:database", "hold_changed", "legal_hold/table", changed, "lifecycle_jobs"),
        ("system:database", "hold_deleted", "legal_hold/table", {}, "postgres"),
    ]
    assert audit.verify(db).intact


@pytest.mark.parametrize(
    ("change", "action", "columns"),
    [
        ("released_at = now(), released_by = 'otto', person = NULL", "hold_released", None),
        ("person = 'someone.else@example.com'", "hold_changed", ["person"]),
        ("scope = 'table', table_name = 'public.x', person = NULL", "hold_changed", ["person", "scope", "table_name"]),
        ("reason = 'Anna asked'", "hold_changed", ["reason"]),
    ],
)
def test_a_change_by_hand_is_audited_without_what_was_written(db, admin, change, action, columns):
    holds.place(db, person=ANNA, **BY)

    admin.execute(f"UPDATE ops.legal_holds SET {change}")

    (actor, done, _, facts, login) = entries(admin)[-1]
    assert (actor, done, login) == (
        ("operator:otto" if action == "hold_released" else "system:database"),
        action,
        "postgres",
    )
    assert columns is None or facts["changed"] == columns
    (said,) = admin.execute(
        "SELECT string_agg(metadata::text || resource_ids::text, ' ') FROM ops.audit_batches"
    ).fetchone()
    assert ANNA not in said
    assert "someone" not in said
    assert "Anna" not in said


def test_several_changes_of_one_statement_are_an_entry_each_and_no_change_is_none(db, admin):
    for _ in range(3):
        holds.place(db, table=TABLE, **BY)

    admin.execute("UPDATE ops.legal_holds SET reason = reason")
    assert len(entries(admin)) == 3
    admin.execute("UPDATE ops.legal_holds SET released_at = now(), released_by = 'otto'")

    assert [each[:2] for each in entries(admin)[3:]] == [("operator:otto", "hold_released")] * 3


def test_what_is_rolled_back_is_not_audited(admin):
    with admin.transaction():
        admin.execute(
            "INSERT INTO ops.legal_holds (scope, table_name, reason, placed_by) VALUES ('table', 'a.b', 'r', 'o')"
        )
        raise psycopg.Rollback

    assert entries(admin) == []


def test_no_session_setting_keeps_a_change_out_of_the_audit_and_nothing_truncates(db, admin):
    holds.place(db, table=TABLE, **BY)

    admin.execute("SET session_replication_role = replica")
    admin.execute("UPDATE ops.legal_holds SET expires_at = now()")
    admin.execute("DELETE FROM ops.legal_holds")
    admin.execute("RESET session_replication_role")

    assert [each[1] for each in entries(admin)] == ["hold_placed", "hold_changed", "hold_deleted"]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        admin.execute("TRUNCATE ops.legal_holds")
