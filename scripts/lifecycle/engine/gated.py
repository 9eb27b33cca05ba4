"""One transaction behind the gate, in one round trip.

BEGIN, settings and gate, the statements, COMMIT go out as one pipeline. The statements see a snapshot taken after the
gate: a hold, a lease take-over or a stop that was committed before is seen, one that comes later waits until this
transaction is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg import Cursor, sql
from psycopg.abc import QueryNoTemplate

from scripts.lifecycle.policy.policies import Batch
from scripts.utils.db_utils import AUDIT_HEAD_LOCKED, Connection, Database, connection_lost, is_deadlock
from scripts.utils.errors import StoppedEarly
from scripts.utils.retry_utils import retry
from scripts.utils.session_settings import local_settings

Statement = tuple[QueryNoTemplate, dict[str, Any]]
Result = TypeVar("Result")

# Whoever is closing the gate may himself wait for another job's batch: no locked row, so not a matter of lock_timeout.
_GATE_SECONDS = 10.0
_REPEATING_SECONDS = 60.0

# Right after a large purge the planner still believes in the rows that are gone, and would read the whole table for a
# small window: it is told which path is meant.
_GATE = sql.SQL("SELECT ops.gate_shared(), set_config('enable_seqscan', 'off', true)")

MAY_RUN = sql.SQL("""
may_run AS MATERIALIZED (
    SELECT %(lease)s::text IS NULL
               OR EXISTS (SELECT FROM ops.leases WHERE name = %(lease)s AND fencing_token = %(fencing_token)s) AS owned,
           EXISTS (SELECT FROM ops.stop_switches WHERE job IN ('*', %(script)s, %(job)s)) AS stopped
)
""")


@dataclass(frozen=True)
class Context:
    """What stays the same for every batch of a run."""

    lease: str | None
    """None: an operator's decision on one row, which no other run of a job does."""
    fencing_token: int
    script: str
    run_id: UUID
    """The run record, or the queue item that was decided on."""
    operator: str | None = None
    """Who decided, if a person did."""
    job: str | None = None
    """The job whose work is done, where another script does it: its stop switch holds as well."""
    policy_hash: str | None = None
    """The policy file that is carried out: run records go after a year, and the audit must still know."""

    def parameters(self) -> dict[str, Any]:
        """Return what :data:`MAY_RUN` and an audit entry ask for."""
        return {
            "lease": self.lease,
            "fencing_token": self.fencing_token,
            "script": self.script,
            "job": self.job or self.script,
            "actor": f"operator:{self.operator}" if self.operator else f"system:{self.script}",
            "run_id": self.run_id,
        }

    def noted(self, facts: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        """Return what the audit keeps of each rule, with the policy file that it stands in."""
        known = {"policy_hash": self.policy_hash} if self.policy_hash else {}
        return {rule: fact | known for rule, fact in facts.items()}


def require_may_run(*, owned: bool, stopped: bool) -> None:
    """Take :data:`MAY_RUN` at its word.

    Raises:
        StoppedEarly: The lease is another run's, or the stop switch is on.
    """
    if not owned:
        raise StoppedEarly("lock_lost", "the lease was taken over by another run")
    if stopped:
        raise StoppedEarly("stop_switch", "the stop switch was turned on")


class Blocked(Exception):
    """Another session kept a gated transaction from its end; nothing of it happened, and it may succeed later."""

    stop_reason: str
    meaning: str

    def stop(self) -> StoppedEarly:
        """Return what it means that every attempt was blocked."""
        return StoppedEarly(self.stop_reason, self.meaning)


class GateClosed(Blocked):
    """The gate was held exclusively for too long: by a hold, a stop or a lease in a transaction left open."""

    stop_reason = "gate_closed"
    meaning = (
        "another session is about to place a hold, set the stop switch or take a lease over, and does not"
        " commit: look for it in pg_stat_activity"
    )


class AuditHeadLocked(Blocked):
    """The head of the audit was locked for too long: by a transaction that has an audit entry and does not commit."""

    stop_reason = "audit_head_locked"
    meaning = (
        "another session keeps the head of the audit locked (ops.audit_head) and does not commit: look for it in"
        " pg_stat_activity; the policy's own table is not what was waited for"
    )


def repeated(once: Callable[[], Result], *, attempts: int) -> Result:
    """Do a gated transaction that is safe to repeat, again through lost connections, locked rows and deadlocks.

    Args:
        once: The transaction: what it did already it finds done.
        attempts: At most, within a minute.

    Raises:
        StoppedEarly: The gate stays closed, or the audit's head locked.
        psycopg.Error: What the server refused in the last attempt.
    """
    try:
        return retry(
            once,
            on=lambda error: (
                connection_lost(error)
                or is_deadlock(error)
                or isinstance(error, Blocked | psycopg.errors.LockNotAvailable)
            ),
            attempts=attempts,
            seconds=_REPEATING_SECONDS,
        )
    except Blocked as blocked:
        raise blocked.stop() from None


@contextmanager
def telling_the_head() -> Iterator[None]:
    """Turn the error of ops.lock_audit_head into :class:`AuditHeadLocked`; it comes with the COMMIT.

    Raises:
        AuditHeadLocked: The audit's entries could not be chained in time; nothing happened.
    """
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate == AUDIT_HEAD_LOCKED:
            raise AuditHeadLocked from error
        raise


class GatedTransaction:
    """Sends transactions under the lock and statement time-outs of a policy's batches."""

    def __init__(self, batch: Batch) -> None:
        self._set, self._at_the_gate = local_settings(lock_timeout=_GATE_SECONDS, statement_timeout=2 * _GATE_SECONDS)
        _, self._in_the_batch = local_settings(
            lock_timeout=batch.lock_timeout.total_seconds(),
            statement_timeout=batch.statement_timeout.total_seconds(),
        )

    @contextmanager
    def opened(self, database: Database) -> Iterator[Connection]:
        """Lend a transaction behind the gate, for what needs an answer before it goes on.

        Raises:
            GateClosed: The gate could not be passed in time; nothing happened.
            AuditHeadLocked: The audit's head was not free in time; nothing happened.
        """
        with telling_the_head(), database.connection() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            connection.execute(self._set, self._at_the_gate)
            try:
                connection.execute(_GATE)
            except psycopg.errors.LockNotAvailable as error:
                raise GateClosed from error
            connection.execute(self._set, self._in_the_batch)
            yield connection

    @contextmanager
    def reading(self, connection: Connection) -> Iterator[None]:
        """Lend what a batch has to read before it begins: its time-outs, but no gate and no lock."""
        with connection.transaction():
            connection.execute(self._set, self._in_the_batch)
            yield

    def send(self, connection: Connection, statements: Sequence[Statement]) -> list[Cursor[Any]]:
        """Run the statements and return their cursors.

        Raises:
            GateClosed: The gate could not be passed in time; nothing happened.
            AuditHeadLocked: The audit's head was not free in time; nothing happened.
            psycopg.Error: Anything else that the server refused; nothing happened, unless the connection broke.
        """
        passed: Cursor[Any] | None = None
        try:
            with telling_the_head(), connection.pipeline():
                connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
                connection.execute(self._set, self._at_the_gate)
                passed = connection.execute(_GATE)
                connection.execute(self._set, self._in_the_batch)
                cursors = [connection.execute(statement, parameters) for statement, parameters in statements]
                connection.execute("COMMIT")
        except BaseException as error:
            if not connection.closed:
                connection.rollback()
            if isinstance(error, psycopg.errors.LockNotAvailable) and passed is not None and passed.pgresult is None:
                raise GateClosed from error
            raise
        return cursors
