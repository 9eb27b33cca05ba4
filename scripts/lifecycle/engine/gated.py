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

from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.sections import Batch
from scripts.utils.db_utils import AUDIT_HEAD_LOCKED, Connection, Database, connection_lost, is_deadlock
from scripts.utils.errors import StoppedEarly
from scripts.utils.retry_utils import retry
from scripts.utils.session_settings import local_settings

Statement = tuple[QueryNoTemplate, dict[str, Any]]
Result = TypeVar("Result")

# Seconds to wait for the gate. Separate from a policy's lock_timeout: the session that holds the gate exclusively may
# itself be waiting for a batch of another job.
_GATE_SECONDS = 10.0
_REPEATING_SECONDS = 60.0
_RESCUED = "LA004"  # raised by ops.none_rescued

# After a large purge the statistics still count the rows that are gone, and the planner would read the whole table for
# a small window: sequential scans are switched off for the transaction.
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
    """The facts that every batch of a run checks or writes: lease, script, run record, operator, policy file."""

    lease: str | None
    """The lock's name; None for an operator's decision on one row, which needs no lock because no job makes it."""
    fencing_token: int
    script: str
    run_id: UUID
    """The run record, or the queue item that was decided on."""
    operator: str | None = None
    """The handle of the person who decided; None: a job."""
    job: str | None = None
    """The job on whose behalf another script works; its stop switch stops this run as well."""
    policy_hash: str | None = None
    """The hash of the policy file. It stands in each audit entry, because run records are deleted after a year."""

    @classmethod
    def of(cls, run: Run, run_id: UUID) -> Context:
        """Return the context of a run that holds its job's lock.

        Args:
            run: The run.
            run_id: Its record, or the request that is carried out.
        """
        lock = run.lock
        return cls(lock.name, lock.fencing_token, run.script, run_id, job=run.job, policy_hash=run.policies.hash)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of :data:`MAY_RUN` and of an audit entry."""
        return {
            "lease": self.lease,
            "fencing_token": self.fencing_token,
            "script": self.script,
            "job": self.job or self.script,
            "actor": f"operator:{self.operator}" if self.operator else f"system:{self.script}",
            "run_id": self.run_id,
        }

    def noted(self, facts: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        """Return the audit metadata of each rule, with the hash of the policy file added."""
        known = {"policy_hash": self.policy_hash} if self.policy_hash else {}
        return {rule: fact | known for rule, fact in facts.items()}


def require_may_run(*, owned: bool, stopped: bool) -> None:
    """Stop the run if a batch found that it may not run, by the answer of :data:`MAY_RUN`.

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


class Rescued(Blocked):
    """What a row looks up in another table was changed while the transaction was at work, and the row may stay now."""

    stop_reason = "rows_rescued"
    meaning = (
        "what rows look up in another table is changed again and again while their batch is at work: run again when"
        " those changes have ended"
    )


def repeated(once: Callable[[], Result], *, attempts: int) -> Result:
    """Run a gated transaction, and repeat it after a lost connection, a locked row, a deadlock or a blocked attempt.

    Args:
        once: The transaction. It must be safe to repeat: a second call finds done what the first one did.
        attempts: The number of calls at most; no further one begins later than 60 seconds after the first.

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
def telling_what_blocks() -> Iterator[None]:
    """Turn the errors of ops.lock_audit_head and ops.none_rescued into what they mean; they come with the COMMIT.

    Raises:
        AuditHeadLocked: The audit's entries could not be chained in time; nothing happened.
        Rescued: A row may stay now; nothing happened.
        psycopg.Error: What else the server refused, unchanged.
    """
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate == AUDIT_HEAD_LOCKED:
            raise AuditHeadLocked from error
        if error.sqlstate == _RESCUED:
            raise Rescued from error
        raise


class GatedTransaction:
    """Run transactions behind the gate, with the lock and statement time-outs of a policy's batches.

    Args:
        batch: The policy's batch settings.
    """

    def __init__(self, batch: Batch) -> None:
        self._set, self._at_the_gate = local_settings(lock_timeout=_GATE_SECONDS, statement_timeout=2 * _GATE_SECONDS)
        _, self._in_the_batch = local_settings(
            lock_timeout=batch.lock_timeout.total_seconds(),
            statement_timeout=batch.statement_timeout.total_seconds(),
        )

    @contextmanager
    def opened(self, database: Database) -> Iterator[Connection]:
        """Lend a transaction behind the gate, for work whose next statement depends on the answer to the one before.

        Raises:
            GateClosed: The gate could not be passed in time; nothing happened.
            AuditHeadLocked: The audit's head was not free in time; nothing happened.
            Rescued: What a row looks up in another table was changed meanwhile; nothing happened.
        """
        with telling_what_blocks(), database.connection() as connection, connection.transaction():
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
        """Lend a transaction for reading before a batch, with the batch's time-outs but without gate and locks."""
        with connection.transaction():
            connection.execute(self._set, self._in_the_batch)
            yield

    def send(self, connection: Connection, statements: Sequence[Statement]) -> list[Cursor[Any]]:
        """Run the statements in one transaction and one round trip, and return their cursors.

        Raises:
            GateClosed: The gate could not be passed in time; nothing happened.
            AuditHeadLocked: The audit's head was not free in time; nothing happened.
            Rescued: What a row looks up in another table was changed meanwhile; nothing happened.
            psycopg.Error: Anything else that the server refused; nothing happened, unless the connection broke.
        """
        passed: Cursor[Any] | None = None
        try:
            with telling_what_blocks(), connection.pipeline():
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
