"""The audit's head is locked by the COMMIT alone: no slow work of one job makes another one wait."""

from __future__ import annotations

import threading
from uuid import uuid4

import psycopg
import pytest

from scripts.lifecycle.audit import audit
from scripts.lifecycle.engine import holds
from scripts.utils.db_utils import explained
from tests.faults.stage import wait_until
from tests.lifecycle.support import ENTRY, add_things, audited, left, policy

VALVE = 4712
# Every place in which an application can be slow while its rows go.
SLOW = {
    "before a row": "CREATE TRIGGER valve BEFORE DELETE ON things FOR EACH ROW",
    "after the rows": "CREATE TRIGGER valve AFTER DELETE ON things FOR EACH ROW",
    "at the end of the statement": "CREATE TRIGGER valve AFTER DELETE ON things FOR EACH STATEMENT",
    "at the COMMIT": "CREATE CONSTRAINT TRIGGER valve AFTER DELETE ON things DEFERRABLE INITIALLY DEFERRED FOR EACH ROW",
}


@pytest.fixture
def family(things):
    """Things 1 to 3 are due, each with a note."""
    add_things(things, 1, 3)
    things.execute(
        "CREATE TABLE notes (id bigint PRIMARY KEY, thing_id bigint REFERENCES things);"
        "CREATE INDEX ON notes (thing_id); INSERT INTO notes SELECT 10 * n, n FROM generate_series(1, 3) n;"
        "CREATE FUNCTION valve() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = 0"
        f" AS 'BEGIN PERFORM pg_advisory_xact_lock_shared({VALVE}); RETURN OLD; END'"
    )
    return things


@pytest.mark.parametrize("slow", SLOW.values(), ids=SLOW)
def test_while_a_batch_is_slow_others_write_their_entries(apply, family, database, slow):
    family.execute(f"{slow} EXECUTE FUNCTION valve()")
    keeper, other = database.superuser(), database.connect()
    keeper.execute("SELECT pg_advisory_lock(%s)", (VALVE,))
    wrote = []

    def write_meanwhile():
        try:
            wait_until(
                lambda: keeper.execute(
                    "SELECT true FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted", (VALVE,)
                ).fetchone(),
                what="the batch in the trigger",
            )
            with other.transaction():
                other.execute("SET LOCAL lock_timeout = '5s'")
                audit.append(other, **ENTRY, resource_ids=["meanwhile"])
            wrote.append(left(keeper))
        finally:
            keeper.execute("SELECT pg_advisory_unlock(%s)", (VALVE,))

    thread = threading.Thread(target=write_meanwhile)
    thread.start()
    run = apply({"things": policy(dependants=[{"table": "public.notes", "column": "thing_id", "action": "delete"}])})
    thread.join()

    assert wrote == [[1, 2, 3]]
    assert (run.code, left(family), left(family, "notes")) == (0, [], [])
    order = family.execute("SELECT resource_type, resource_ids FROM ops.audit_batches ORDER BY seq").fetchall()
    assert [(kind, sorted(ids)) for kind, ids in order] == [
        (ENTRY["resource_type"], ["meanwhile"]),
        ("public.notes", ["10", "20", "30"]),
        ("public.things", ["1", "2", "3"]),
    ]
    assert family.execute("SELECT count(*) FROM ops.audit_notes").fetchone() == (0,)


@pytest.fixture
def head_kept(admin, database):
    """Another session has an entry in a transaction that it leaves open; the suite's patience is a short one."""
    admin.execute("ALTER FUNCTION ops.lock_audit_head() SET lock_timeout = '100ms'")
    other = database.superuser()
    other.execute("BEGIN")
    other.execute("SELECT ops.append_audit(gen_random_uuid(), 'system:x', 'delete', 't', 'r', NULL, ARRAY['1'], '{}')")
    return other


def test_a_job_that_waits_for_the_head_says_so_and_deletes_nothing(apply, things, head_kept):
    add_things(things, 1, 3)

    run = apply({"things": policy()})

    assert (run.code, run.closing["stop_reason"], run.closing["records_deleted"]) == (3, "audit_head_locked", 0)
    assert {line["error"] for line in run.events("batch_retry")} == {"AuditHeadLocked"}
    assert not run.events("rows_locked")
    assert left(things) == [1, 2, 3]
    head_kept.execute("ROLLBACK")
    assert apply({"things": policy()}).closing["records_deleted"] == 3


def test_an_operator_who_waits_for_the_head_is_told_so(db, head_kept, admin):
    with pytest.raises(psycopg.Error) as refused:
        holds.place(db, operator="olga", reason="lawsuit", person="anna@example.com")

    assert "head of the audit" in str(explained(refused.value))
    assert admin.execute("SELECT count(*) FROM ops.legal_holds").fetchone() == (0,)


def test_what_was_noted_is_chained_whatever_the_session_has_turned_off(admin):
    with admin.transaction():
        admin.execute("SET LOCAL session_replication_role = replica")
        audit.append(admin, **ENTRY, resource_ids=["1"])

    assert audited(admin, ENTRY["resource_type"], ENTRY["action"]) == ["1"]


def test_what_was_undone_to_a_savepoint_is_not_chained(db, admin):
    with admin.transaction():
        audit.append(admin, **ENTRY, resource_ids=["1"], run_id=uuid4())
        with admin.transaction():
            audit.append(admin, **ENTRY, resource_ids=["2"])
            raise psycopg.Rollback
        audit.append(admin, **ENTRY, resource_ids=["3"])

    assert audited(admin, ENTRY["resource_type"], ENTRY["action"]) == ["1", "3"]
    assert audit.verify(db).intact
