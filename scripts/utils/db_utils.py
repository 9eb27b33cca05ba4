"""Connections to PostgreSQL that are safe behind a transaction pooler and with a database that sleeps.

Nothing is kept in a session: PgBouncer in transaction mode hands the next transaction to another one. Every setting is
``SET LOCAL``, nothing is prepared, no session advisory lock is taken (PgBouncer documentation, "Features").
A serverless database (Neon) refuses or cuts connections while it wakes up: connecting is retried, within bounds.
The server must show who it is (``tls.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import sql
from psycopg_pool import ConnectionPool, PoolTimeout

from scripts.utils import tls
from scripts.utils.errors import (
    DatabaseFailed,
    DatabaseRefused,
    DatabaseUnavailable,
    GateBusy,
    OpsError,
    describe_database_error,
)
from scripts.utils.logging_utils import get_logger
from scripts.utils.retry_utils import retry

Connection = psycopg.Connection[Any]
Result = TypeVar("Result")

CONNECT_TIMEOUT_SECONDS = 10
CONNECT_ATTEMPTS = 6
CONNECT_SECONDS = 30.0
# Closing the gate waits for a batch in hand, which may take as long as its policy's statement time-out.
GATE_SECONDS = 120.0
# Who waited that long in vain waits no longer than this for each thing still to be said: record, lease, audit head.
LAST_WORD_SECONDS = 1.0

# libpq gives no SQLSTATE for a refused login, only the server's or the pooler's English text.
_REFUSALS = (
    "authentication failed",
    "no such database",
    "no such user",
    "no password supplied",
    "does not exist",
    "not permitted to log in",
    "pg_hba.conf",
    "permission denied for database",
    "not currently accepting connections",
)

# Shut down, crashed, starting up, too many clients, idle in transaction for too long.
_GONE = frozenset({"57P01", "57P02", "57P03", "53300", "25P03"})

# TimeZone, because naive columns hold UTC. row_security off makes a policy that would hide rows an error.
# jit off: enable_seqscan = off makes an unavoidable scan cost 1e10, so PostgreSQL would compile statements that run for
# milliseconds; on Debian's packages, where jit is on, that took most of an erasure's time.
_LOCAL_SETTINGS = sql.SQL(
    "SELECT set_config('TimeZone', 'UTC', true), set_config('row_security', 'off', true),"
    " set_config('jit', 'off', true), set_config('lock_timeout', %(lock_ms)s, true),"
    " set_config('statement_timeout', %(statement_ms)s, true),"
    " set_config('idle_in_transaction_session_timeout', %(statement_ms)s, true)"
)


def local_settings(*, lock_timeout: float, statement_timeout: float) -> tuple[sql.SQL, dict[str, str]]:
    """Return the statement that gives a transaction its settings, and its parameters.

    Args:
        lock_timeout: Longest wait for one lock, in seconds.
        statement_timeout: Longest run time of one statement, in seconds.
    """
    return _LOCAL_SETTINGS, {
        "lock_ms": str(max(1, int(lock_timeout * 1000))),
        "statement_ms": str(max(1, int(statement_timeout * 1000))),
    }


def connection_lost(error: BaseException) -> bool:
    """Tell whether the connection, and with it the answer, is gone."""
    if not isinstance(error, psycopg.OperationalError):
        return False
    return error.sqlstate is None or error.sqlstate in _GONE or error.sqlstate.startswith("08")


def explained(error: psycopg.Error) -> OpsError:
    """Return what an operator has to know of a driver error that reached the end of a run."""
    if connection_lost(error):
        return DatabaseUnavailable(
            f"the connection to PostgreSQL broke ({describe_database_error(error)}): what was committed stands, the"
            " rest did not happen; run again, a rerun is safe"
        )
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return DatabaseFailed(
            "a table of the schema ops stays locked by another session: look for it in pg_stat_activity, have it end,"
            " and run again; a rerun is safe"
        )
    return DatabaseFailed(describe_database_error(error))


def is_deadlock(error: BaseException) -> bool:
    """Tell whether the server undid the transaction in favour of another one: it may succeed when repeated."""
    return isinstance(error, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure)


class Database:
    """The pool of one process.

    Args:
        url: PostgreSQL URL.
        application_name: Shown in ``pg_stat_activity``; at most 63 bytes are kept by the server.
        max_size: Most connections at a time.
    """

    def __init__(self, url: str, *, application_name: str, max_size: int) -> None:
        self._url = url
        self._patience = CONNECT_SECONDS
        self._kwargs: dict[str, Any] = {
            "autocommit": True,
            "prepare_threshold": None,
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": application_name,
            "client_encoding": "UTF8",
            **tls.libpq_options(url),
        }
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            url,
            kwargs=self._kwargs,
            min_size=1,
            max_size=max_size,
            open=False,
            check=ConnectionPool.check_connection,
            max_idle=240,  # seconds; a sleeping Neon cuts idle connections after 300
            timeout=CONNECT_SECONDS,
            reconnect_timeout=CONNECT_SECONDS,
        )

    def open(self) -> None:
        """Connect, waiting for a database that is waking up.

        Raises:
            DatabaseRefused: Wrong password, role or database, or a server that does not show who it is.
            DatabaseUnavailable: No answer within the bounds.
        """
        try:
            retry(
                self._probe,
                on=lambda error: isinstance(error, psycopg.OperationalError) and not _is_refusal(error),
                attempts=CONNECT_ATTEMPTS,
                seconds=CONNECT_SECONDS,
                before_wait=lambda attempt, _: get_logger().warning("database_connect_retry", attempt=attempt),
            )
            self._pool.open(wait=True, timeout=CONNECT_SECONDS)
        except psycopg.OperationalError as error:
            if unsafe := tls.problem(str(error)):
                raise DatabaseRefused(f"the server in DATABASE_URL is not to be trusted: {unsafe}") from None
            if _is_refusal(error):
                raise DatabaseRefused(
                    "PostgreSQL refuses the login: check user, password, database and sslmode in DATABASE_URL, and that"
                    " the role has a password (ALTER ROLE … PASSWORD)"
                ) from None
            raise DatabaseUnavailable(
                "PostgreSQL does not answer at the host of DATABASE_URL: check host, port and network, then run again"
            ) from None

    def _probe(self) -> None:
        psycopg.connect(self._url, **self._kwargs).close()  # noqa: TID251 - this is its one home

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend an autocommit connection; a broken one is replaced before it is lent.

        Raises:
            DatabaseUnavailable: None could be had in time.
        """
        try:
            connection = self._pool.getconn(self._patience)
        except PoolTimeout:
            waited, self._patience = self._patience, LAST_WORD_SECONDS
            raise DatabaseUnavailable(f"PostgreSQL did not give a connection within {waited:.0f} s") from None
        self._patience = CONNECT_SECONDS
        try:
            yield connection
        finally:
            self._pool.putconn(connection)

    @contextmanager
    def transaction(
        self, *, read_only: bool = False, lock_timeout: float = 10.0, statement_timeout: float = 300.0
    ) -> Iterator[Connection]:
        """Lend a connection inside one transaction with its own settings, in seconds.

        A read-only transaction sees one snapshot throughout (REPEATABLE READ) and cannot write. Any other one is READ
        COMMITTED whatever the role's default: after waiting for the gate it must see what was committed meanwhile.
        """
        statement, parameters = local_settings(lock_timeout=lock_timeout, statement_timeout=statement_timeout)
        with self.connection() as connection, connection.transaction():
            level: LiteralString = "REPEATABLE READ, READ ONLY" if read_only else "READ COMMITTED"
            connection.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
            connection.execute(statement, parameters)
            yield connection

    @contextmanager
    def closing_gate(self) -> Iterator[Connection]:
        """Lend a transaction that holds the gate exclusively until it ends.

        The lock is taken before the caller's first statement. It waits for the batches
        under way, and for the server process of a broken connection that may still be working on one; what they
        committed is seen, and every later batch waits for this transaction.

        Raises:
            GateBusy: It could not be closed in time; nothing was done.
        """
        try:
            # The statement's time is longer: it is the lock that must be seen to run out.
            with self.transaction(lock_timeout=GATE_SECONDS, statement_timeout=2 * GATE_SECONDS) as connection:
                connection.execute("SELECT ops.gate_exclusive()")
                yield connection
        except psycopg.errors.LockNotAvailable:
            raise GateBusy(
                f"the gate could not be closed within {GATE_SECONDS:.0f} s: a batch, or a session about to place"
                " a hold or set the stop switch, does not end; look for it in pg_stat_activity"
            ) from None

    def read(self, work: Callable[[Connection], Result], *, statement_timeout: float = 300.0) -> Result:
        """Read in one read-only snapshot, again from the start where the connection breaks.

        Raises:
            DatabaseUnavailable: The connection broke in every attempt.
            psycopg.Error: What else the server refused.
        """

        def once() -> Result:
            with self.transaction(read_only=True, statement_timeout=statement_timeout) as connection:
                return work(connection)

        return self._repeat(once, "read")

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Write in one transaction, again from the start where the connection breaks.

        Args:
            work: May be done twice: a COMMIT whose answer was lost is not told from one that never arrived.

        Raises:
            DatabaseUnavailable: The connection broke in every attempt.
            psycopg.Error: What else the server refused.
        """

        def once() -> Result:
            with self.transaction() as connection:
                return work(connection)

        return self._repeat(once, "write")

    def _repeat(self, once: Callable[[], Result], what: str) -> Result:
        try:
            return retry(
                once,
                on=connection_lost,
                attempts=CONNECT_ATTEMPTS,
                seconds=CONNECT_SECONDS,
                before_wait=lambda attempt, _: get_logger().warning(f"database_{what}_retry", attempt=attempt),
            )
        except psycopg.OperationalError as error:
            if connection_lost(error):
                raise DatabaseUnavailable(
                    f"the connection to PostgreSQL broke in every attempt to {what}: what was committed stands;"
                    " run again when the database is well, a rerun is safe"
                ) from error
            raise

    def now(self) -> datetime:
        """Return the database's clock, time-zone aware (UTC)."""
        now: datetime = self.read(lambda connection: connection.execute("SELECT now()").fetchone())[0]  # type: ignore[index]
        return now


def _is_refusal(error: psycopg.Error) -> bool:
    text = str(error)
    return tls.problem(text) is not None or any(refusal in text for refusal in _REFUSALS)
