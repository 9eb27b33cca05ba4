"""Connections to PostgreSQL that are safe behind a transaction pooler and with a database that sleeps.

Two types say what a run may do: a :class:`ReadOnlyDatabase` has READ ONLY transactions and no method that writes; a
:class:`Database` adds those. A dry run is given the first.

Nothing that a statement relies on is kept in a session: PgBouncer in transaction mode hands the next transaction to
another one. Every setting is ``SET LOCAL`` (``session_settings.py``), nothing is prepared, no session advisory lock is
taken (PgBouncer documentation, "Features"). A serverless database (Neon) refuses or cuts connections while it wakes up:
connecting is retried, within bounds. The server must prove its identity by a certificate (``tls.py``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote

import psycopg
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from scripts.utils import odd_moments, tls
from scripts.utils.connect_errors import cause_of, explained_connect
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
from scripts.utils.session_settings import local_settings, pin

Connection = psycopg.Connection[Any]
Result = TypeVar("Result")

CONNECT_TIMEOUT_SECONDS = 10
CONNECT_ATTEMPTS = 6
CONNECT_SECONDS = 30.0
# Closing the gate waits for a batch in hand, which may take as long as its policy's statement time-out.
GATE_SECONDS = 120.0
# After one wait of CONNECT_SECONDS in vain, each further one is this short: record, lease and audit head still follow.
LAST_WORD_SECONDS = 1.0
# How long a request to cancel a statement may take, in seconds.
CANCEL_SECONDS = 5.0

# SQLSTATEs after which the session is gone, each with what happened.
_GONE = {
    "57P01": "an administrator, or the server's shutdown, ended the session",
    "57P02": "the server crashed and is recovering",
    "57P03": "the server is starting or stopping",
    "57P05": "the session was idle for longer than idle_session_timeout",
    "53300": "the server has no connection left: lower DB_POOL_SIZE, or raise max_connections",
    "25P03": "the transaction was idle for longer than idle_in_transaction_session_timeout",
    "25P04": "the transaction took longer than transaction_timeout",
}

# ops.lock_audit_head raises this: a row lock alone would not say what was waited for.
AUDIT_HEAD_LOCKED = "LA002"


def connection_lost(error: BaseException) -> bool:
    """Tell whether the connection, and with it the answer, is gone.

    A server that a pooler lost shows as an error of the driver without SQLSTATE, of more than one class: two results
    where one was due is an InternalError.
    """
    if not isinstance(error, psycopg.OperationalError | psycopg.InternalError | psycopg.InterfaceError):
        return False
    return error.sqlstate is None or error.sqlstate in _GONE or error.sqlstate.startswith("08")


def explained(error: psycopg.Error) -> OpsError:
    """Return what an operator has to know of a driver error that reached the end of a run."""
    if connection_lost(error):
        why = _GONE.get(error.sqlstate or "", "the network, a pooler or the server cut it")
        return DatabaseUnavailable(
            f"the connection to PostgreSQL broke ({describe_database_error(error)}: {why}): what was committed stands,"
            " the rest did not happen; run again, a rerun is safe"
        )
    if error.sqlstate == AUDIT_HEAD_LOCKED:
        return DatabaseFailed(
            "another session keeps the head of the audit locked (ops.audit_head) and does not commit: look for it in"
            " pg_stat_activity, have it end, and run again; a rerun is safe"
        )
    if _takes_no_writes(error):
        return DatabaseRefused(
            "the server is a standby, which takes no writes: name the primary in DATABASE_URL; after a failover, run"
            " again once the new primary answers there"
        )
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return DatabaseFailed(
            "a table of the schema ops stays locked by another session: look for it in pg_stat_activity, have it end,"
            " and run again; a rerun is safe"
        )
    return DatabaseFailed(describe_database_error(error))


def _takes_no_writes(error: psycopg.Error) -> bool:
    # BEGIN READ WRITE is refused with an SQLSTATE that means other things as well.
    return isinstance(error, psycopg.errors.FeatureNotSupported) and "recovery" in (error.diag.message_primary or "")


def is_deadlock(error: BaseException) -> bool:
    """Tell whether the server undid the transaction in favour of another one: it may succeed when repeated."""
    return isinstance(error, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure)


class _Look:
    """A read-only transaction under way, which may be ended from another thread."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.stop: OpsError | None = None


class _CountedConnection(psycopg.Connection[Any]):
    """A connection that counts the transactions that it has the server do."""

    sent: Callable[[], object] = staticmethod(lambda: None)
    """Called for each of them."""
    _piped = False

    def _count(self) -> None:
        if not self._piped and self.info.transaction_status is TransactionStatus.IDLE:
            self.sent()

    def execute(self, *args: Any, **options: Any) -> Any:
        """Execute a statement; outside a transaction it is one by itself."""
        self._count()
        return super().execute(*args, **options)

    @contextmanager
    def transaction(self, *args: Any, **options: Any) -> Iterator[psycopg.Transaction]:
        """Open a transaction, or a savepoint in one."""
        self._count()
        with super().transaction(*args, **options) as opened:
            yield opened

    @contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        """Open a pipeline, which has one transaction here: inside, the client cannot know where one begins."""
        self._count()
        self._piped = True
        try:
            with super().pipeline() as opened:
                yield opened
        finally:
            self._piped = False


class ReadOnlyDatabase:
    """The connection pool of one process, for READ ONLY transactions only.

    Args:
        url: PostgreSQL URL.
        application_name: Shown in ``pg_stat_activity``; at most 63 bytes are kept by the server.
        max_size: Most connections at a time.
    """

    def __init__(self, url: str, *, application_name: str, max_size: int) -> None:
        self._url = url
        self._patience = CONNECT_SECONDS
        self.in_doubt = False
        """Whether a connection broke, so that its server process may still have a COMMIT to do."""
        self._looks: set[_Look] = set()
        self._looks_lock = threading.Lock()
        self._transactions = 0
        self._transactions_lock = threading.Lock()
        self._kwargs: dict[str, Any] = {
            "autocommit": True,
            "prepare_threshold": None,
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": application_name,
            "client_encoding": "UTF8",
            "context": odd_moments.CONTEXT,
            **tls.libpq_options(url),
        }
        self._pool: ConnectionPool[_CountedConnection] = ConnectionPool(
            url,
            connection_class=_CountedConnection,
            configure=self._have_counted,
            kwargs=self._kwargs,
            min_size=1,
            max_size=max_size,
            open=False,
            max_idle=240,  # seconds; a sleeping Neon cuts idle connections after 300
            timeout=CONNECT_SECONDS,
            reconnect_timeout=CONNECT_SECONDS,
        )

    def _have_counted(self, connection: _CountedConnection) -> None:
        connection.sent = self._count

    def _count(self) -> None:
        with self._transactions_lock:  # an archive is written in a thread of its own
            self._transactions += 1

    @property
    def transactions(self) -> int:
        """How many transactions this process has had the server do, as far as it can know them."""
        return self._transactions

    def open(self, pause: Callable[[float], None] = time.sleep) -> None:
        """Connect, waiting for a database that is waking up.

        Args:
            pause: Waits for the given seconds between two attempts; may raise to give up.

        Raises:
            DatabaseRefused: Wrong password, role or database, or a server without a trusted certificate.
            DatabaseUnavailable: No answer within the bounds; the message says why.
        """
        try:
            retry(
                self._probe,
                on=lambda error: isinstance(error, psycopg.OperationalError) and not cause_of(error).refused,
                attempts=CONNECT_ATTEMPTS,
                seconds=CONNECT_SECONDS,
                before_wait=lambda attempt, error: get_logger().warning(
                    "database_connect_retry", attempt=attempt, reason=cause_of(error).code
                ),
                sleep=pause,
            )
            self._pool.open(wait=True, timeout=CONNECT_SECONDS)
        except PoolTimeout:
            raise self._no_connection(CONNECT_SECONDS) from None
        except psycopg.OperationalError as error:
            raise explained_connect(error) from None

    def _probe(self) -> None:
        psycopg.connect(self._url, **self._kwargs).close()  # noqa: TID251 - this is its one home

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()

    @contextmanager
    def _lent(self) -> Iterator[Connection]:
        """Lend an autocommit connection; a broken one is replaced before it is lent.

        Raises:
            DatabaseUnavailable: None could be had in time.
        """
        try:
            connection = self._alive(self._patience)
        except PoolTimeout:
            waited, self._patience = self._patience, LAST_WORD_SECONDS
            raise self._no_connection(waited) from None
        self._patience = CONNECT_SECONDS
        try:
            yield connection
        except psycopg.Error as error:
            if connection_lost(error):
                connection.close()
                self._pool.drain()
            raise
        finally:
            self.in_doubt |= connection.closed
            self._pool.putconn(connection)

    def _alive(self, patience: float) -> _CountedConnection:
        """Return a connection that answers.

        If one does not answer, all connections in the pool are replaced at once, because the others are as old. The
        pool's own check would try them one by one, and wait twice as long after each (psycopg_pool 3.3,
        ``_getconn_with_check_loop``).

        Args:
            patience: Seconds to wait at most.

        Raises:
            PoolTimeout: No connection answered in that time.
        """
        until = time.monotonic() + patience
        while True:
            connection = self._pool.getconn(until - time.monotonic())
            try:
                ConnectionPool.check_connection(connection)
                pin(connection)
                # BEGIN says both, so default_transaction_isolation and default_transaction_read_only do not count.
                connection.isolation_level = IsolationLevel.READ_COMMITTED
                connection.read_only = connection.deferrable = False
            except psycopg.Error:
                self._pool.drain()
                self._pool.putconn(connection)
            except BaseException:
                self._pool.putconn(connection)
                raise
            else:
                return connection

    def _no_connection(self, waited: float) -> OpsError:
        """Return the reason why the pool had no connection: it does not tell, so a connection of our own is tried."""
        said = f"PostgreSQL did not give a connection within {waited:.0f} s"
        if waited < CONNECT_SECONDS:
            return DatabaseUnavailable(said)
        try:
            self._probe()
        except psycopg.OperationalError as error:
            return DatabaseUnavailable(f"{said}: {cause_of(error).message}")
        return DatabaseUnavailable(f"{said}: all of DB_POOL_SIZE + DB_MAX_OVERFLOW are in use")

    @contextmanager
    def snapshot(self, *, lock_timeout: float = 10.0, statement_timeout: float = 300.0) -> Iterator[Connection]:
        """Lend a connection inside one READ ONLY transaction that sees one snapshot throughout (REPEATABLE READ).

        Args:
            lock_timeout: Longest wait for one lock, in seconds.
            statement_timeout: Longest run time of one statement, in seconds.

        Raises:
            OpsError: What :meth:`interrupt` was given, where that ended it.
        """
        with self._lent() as connection:
            connection.isolation_level, connection.read_only = IsolationLevel.REPEATABLE_READ, True
            with self._interruptible(connection), connection.transaction():
                connection.execute(*local_settings(lock_timeout=lock_timeout, statement_timeout=statement_timeout))
                yield connection

    @contextmanager
    def _interruptible(self, connection: Connection) -> Iterator[None]:
        look = _Look(connection)
        with self._looks_lock:
            self._looks.add(look)
        try:
            yield
        except psycopg.errors.QueryCanceled:
            if look.stop is None:
                raise
            connection.close()  # the server may have another request to cancel still under way
            raise look.stop from None
        finally:
            with self._looks_lock:  # waits for a request to cancel: it must not reach a later statement
                self._looks.discard(look)

    def interrupt(self, stop: OpsError) -> None:
        """End every statement that only looks, at once; its :meth:`snapshot` raises ``stop``.

        What writes is left alone: a batch in hand is finished. A signal handler may call this: the requests go out from
        a thread of their own, as the handler may have interrupted anything.
        """

        def cancel() -> None:
            with self._looks_lock:
                for look in self._looks:
                    look.stop = stop
                    try:
                        look.connection.cancel_safe(timeout=CANCEL_SECONDS)
                    except psycopg.Error as error:
                        get_logger().warning("statement_not_cancelled", error=type(error).__name__)

        threading.Thread(target=cancel, name="cancel", daemon=True).start()

    def read(self, work: Callable[[Connection], Result], *, statement_timeout: float = 300.0) -> Result:
        """Read in one :meth:`snapshot`, again from the start where the connection breaks.

        Args:
            work: What to read.
            statement_timeout: Longest run time of one statement, in seconds.

        Raises:
            DatabaseUnavailable: The connection broke in every attempt.
            psycopg.Error: What else the server refused.
        """

        def once() -> Result:
            with self.snapshot(statement_timeout=statement_timeout) as connection:
                return work(connection)

        return self._repeat(once, "read")

    def _repeat(self, once: Callable[[], Result], what: str) -> Result:
        try:
            return retry(
                once,
                on=connection_lost,
                attempts=CONNECT_ATTEMPTS,
                seconds=CONNECT_SECONDS,
                before_wait=lambda attempt, error: get_logger().warning(
                    f"database_{what}_retry", attempt=attempt, reason=getattr(error, "sqlstate", None)
                ),
            )
        except psycopg.Error as error:
            if connection_lost(error):
                why = _GONE.get(error.sqlstate or "", "the network, a pooler or the server cut it")
                raise DatabaseUnavailable(
                    f"the connection to PostgreSQL broke in every attempt to {what} ({why}): what was committed stands;"
                    " run again when the database is well, a rerun is safe"
                ) from error
            raise

    def identity(self) -> str:
        """Return what tells this database from any other, without a blank: ``<system identifier>-<name>``.

        The system identifier is the cluster's, made by initdb. A copy made by pg_dump, a staging database and a second
        application differ from the original in it or in the name. A physical copy (base backup, snapshot, branch) that
        keeps the name does not differ. Where the role may not read the identifier, ``unknown`` stands for it.
        """

        def look(connection: Connection) -> str:
            may = "SELECT has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE'), current_database()"
            allowed, name = connection.execute(may).fetchone() or (False, "")
            system = "unknown"
            if allowed:
                row = connection.execute("SELECT system_identifier FROM pg_catalog.pg_control_system()").fetchone()
                system = str(row[0]) if row else system
            return f"{system}-{quote(name, safe='').replace('%', '~')}"

        return self.read(look)

    def now(self) -> datetime:
        """Return the database's clock, time-zone aware (UTC)."""
        now: datetime = self.read(lambda connection: connection.execute("SELECT now()").fetchone())[0]  # type: ignore[index]
        return now


class Database(ReadOnlyDatabase):
    """The same pool with the methods that write; a dry run has none of this type."""

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend an autocommit connection, for what sends its own BEGIN and COMMIT.

        Raises:
            DatabaseUnavailable: None could be had in time.
        """
        with self._lent() as connection:
            yield connection

    @contextmanager
    def transaction(self, *, lock_timeout: float = 10.0, statement_timeout: float = 300.0) -> Iterator[Connection]:
        """Lend a connection inside one READ COMMITTED transaction with its own settings.

        Args:
            lock_timeout: Longest wait for one lock, in seconds.
            statement_timeout: Longest run time of one statement, in seconds.
        """
        statement, parameters = local_settings(lock_timeout=lock_timeout, statement_timeout=statement_timeout)
        with self.connection() as connection, connection.transaction():
            connection.execute(statement, parameters)
            yield connection

    @contextmanager
    def closing_gate(self, seconds: float | None = None) -> Iterator[Connection]:
        """Lend a transaction that holds the gate exclusively until it ends.

        The lock is taken before the caller's first statement. It waits for the batches
        under way, and for the server process of a broken connection that may still be working on one; what they
        committed is seen, and every later batch waits for this transaction.

        Args:
            seconds: The longest wait for it; by default :data:`GATE_SECONDS`.

        Raises:
            GateBusy: It could not be closed in time; nothing was done.
        """
        seconds = GATE_SECONDS if seconds is None else seconds
        try:
            # The statement's time is longer: it is the lock that must be seen to run out.
            with self.transaction(lock_timeout=seconds, statement_timeout=2 * seconds) as connection:
                connection.execute("SELECT ops.gate_exclusive()")
                self.in_doubt = False
                yield connection
        except psycopg.errors.LockNotAvailable:
            raise GateBusy(
                f"the gate could not be closed within {seconds:.0f} s: a batch, or a session about to place"
                " a hold or set the stop switch, does not end; look for it in pg_stat_activity"
            ) from None

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Write in one transaction; if the connection breaks, repeat the transaction from the start.

        Args:
            work: The statements. They may be carried out twice: if the answer to a COMMIT is lost, the client cannot
                know whether the COMMIT arrived.

        Raises:
            DatabaseUnavailable: The connection broke in every attempt.
            psycopg.Error: What else the server refused.
        """

        def once() -> Result:
            with self.transaction() as connection:
                return work(connection)

        return self._repeat(once, "write")


def writable(database: ReadOnlyDatabase) -> Database:
    """Return the database of an object that mostly reads, for the step that writes.

    Raises:
        RuntimeError: This is a dry run, which has no way to write: the caller forgot to ask.
    """
    if not isinstance(database, Database):
        raise RuntimeError("a dry run has no database that writes")  # noqa: TRY004 - no argument has a wrong type
    return database
