"""The gate: only the suite's roles can close it, and nobody who merely reads the database holds it up."""

from __future__ import annotations

import psycopg
import pytest

from backend import migrate
from scripts.lifecycle.engine import holds
from tests.faults.stage import in_background, wait_until
from tests.lifecycle.support import add_quiz, ago, quiz_left

TABLE = "public.quiz_responses"
BY = {"operator": "olga", "reason": "lawsuit 12/26"}
THE_KEY_OF_OLD = 7236846154820113733
CLOSING = [
    "SELECT ops.gate_exclusive()",
    "SELECT ops.gate_shared()",
    "LOCK TABLE ops.gate IN EXCLUSIVE MODE",
    "LOCK TABLE ops.gate IN ROW SHARE MODE",
    "SELECT FROM ops.gate FOR UPDATE",
    "ALTER TABLE ops.gate ADD COLUMN x int",
    "DROP TABLE ops.gate",
    "TRUNCATE ops.gate",
    "CREATE TABLE public.child () INHERITS (ops.gate)",
]


@pytest.fixture
def stranger(database):
    """A login of the same database that the suite gave nothing, though somebody let it look into the schema."""
    superuser, role = database.superuser(), f"stranger_{database.name}"
    superuser.execute(f"CREATE ROLE {role} LOGIN")
    superuser.execute(f"GRANT USAGE ON SCHEMA ops TO {role}; GRANT CREATE ON SCHEMA public TO {role}")
    link = database.superuser()
    link.execute(f"SET SESSION AUTHORIZATION {role}")
    yield link
    link.close()
    superuser.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def at_the_gate(admin):
    return lambda: admin.execute(
        "SELECT pid FROM pg_locks WHERE relation = 'ops.gate'::regclass AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    ).fetchone()


@pytest.mark.parametrize("statement", CLOSING)
def test_neither_a_stranger_nor_the_reader_can_close_or_pass_the_gate(database, stranger, statement):
    reader = database._open(database.straight_url.replace(migrate.ROLE, migrate.READER))
    for link in (stranger, reader):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), link.transaction():
            link.execute(statement)


def test_whoever_holds_the_advisory_lock_of_old_holds_up_nobody(run_job, admin, db, stranger):
    add_quiz(admin, "gone", created=ago(days=2))
    stranger.execute("SELECT pg_advisory_lock(%s)", (THE_KEY_OF_OLD,))

    holds.place(db, table="public.meal_plans", **BY)

    assert run_job().code == 0
    assert quiz_left(admin) == set()


def test_a_dump_and_a_vacuum_hold_up_neither_a_batch_nor_a_hold(run_job, admin, db, database):
    """pg_dump locks each table ACCESS SHARE to its end."""
    add_quiz(admin, "gone", created=ago(days=2))
    dump = database.superuser()
    dump.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK TABLE ops.gate, ops.legal_holds IN ACCESS SHARE MODE")

    holds.place(db, table="public.meal_plans", **BY)

    assert run_job().code == 0
    dump.execute("COMMIT")
    admin.execute("VACUUM ops.gate")


def test_batches_that_come_later_queue_behind_a_hold_that_waits(db, admin, database):
    first, later = database.connect(), database.connect()
    first.execute("BEGIN; SELECT ops.gate_shared()")
    later.execute("BEGIN; SELECT ops.gate_shared()")  # shared: two batches at once
    later.execute("ROLLBACK")
    placed = in_background(holds.place, db, table=TABLE, **BY)
    wait_until(at_the_gate(admin), what="the hold at the gate")

    later.execute("BEGIN; SET LOCAL lock_timeout = '200ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        later.execute("SELECT ops.gate_shared()")
    later.execute("ROLLBACK")
    first.execute("COMMIT")

    hold = placed()

    assert admin.execute("SELECT id FROM ops.holds_in_force").fetchall() == [(hold,)]


def test_a_snapshot_from_before_the_gate_does_not_pass_it(database):
    link = database.connect()
    link.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    with pytest.raises(psycopg.errors.InvalidTransactionState, match="READ COMMITTED"):
        link.execute("SELECT ops.gate_shared()")
    link.execute("ROLLBACK")


def test_a_role_whose_default_is_repeatable_read_works_all_the_same(run_job, admin, database):
    add_quiz(admin, "gone", created=ago(days=2))
    admin.execute(f"ALTER DATABASE {database.name} SET default_transaction_isolation = 'repeatable read'")

    assert run_job().code == 0
    assert quiz_left(admin) == set()
