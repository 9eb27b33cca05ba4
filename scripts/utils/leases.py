"""Writes ``ops.leases``, the table that decides which run of a job may work; no other module writes to it.

A lease is a row with a name, a fencing token and a heartbeat. Every take-over raises the token, and every batch checks
it (Kleppmann, "How to do distributed locking"), so a former holder can delete nothing more. A lease without a heartbeat
is free.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from scripts.utils.db_utils import Connection

BEAT = sql.SQL(
    "UPDATE ops.leases SET heartbeat_at = clock_timestamp() WHERE name = %(lease)s AND fencing_token = %(token)s"
)
"""Shows that a lease's holder is alive; parameters ``lease`` and ``token``. A batch has it in its own transaction."""


@dataclass(frozen=True)
class Held:
    """A lease as it is held now.

    Attributes:
        run: The holder's correlation id.
        host: The host that it runs on.
        pid: Its process number there.
        since: When it took the lease, UTC, as ISO 8601.
        left_ms: Milliseconds until it ends without a further heartbeat.
    """

    run: str
    host: str
    pid: int
    since: str
    left_ms: int


def held(connection: Connection, name: str, timeout: float) -> Held | None:
    """Return the holder of a lease; None: it is free.

    Args:
        connection: A connection to the database that has the lease.
        name: The lease's name.
        timeout: Seconds after which a lease without a heartbeat ends (REDIS_LOCK_TIMEOUT).
    """
    row = connection.execute(
        'SELECT owner_run, owner_host, owner_pid, to_char(acquired_at, \'YYYY-MM-DD"T"HH24:MI:SS"Z"\'),'
        " (1000 * (%s + extract(epoch FROM heartbeat_at - clock_timestamp())))::bigint"
        " FROM ops.leases WHERE name = %s AND heartbeat_at IS NOT NULL",
        (timeout, name),
    ).fetchone()
    return Held(*row) if row else None


def take_free(connection: Connection, name: str, *, run: str, host: str, pid: int) -> int | None:
    """Take a lease that nobody holds, by a compare-and-set on its row. No gate is needed: no holder has a batch.

    Both statements pass over a lease that is held, and so never wait for the row lock of a batch with a heartbeat.

    Args:
        connection: In a READ COMMITTED transaction: of two that take the lease at once, the later one must see it held.
        name: The lease's name.
        run: The new holder's correlation id.
        host: Its host.
        pid: Its process number.

    Returns:
        The new fencing token; None: somebody holds the lease.
    """
    values = {"name": name, "host": host, "pid": pid, "run": run}
    row = connection.execute(
        "UPDATE ops.leases SET fencing_token = fencing_token + 1, owner_host = %(host)s, owner_pid = %(pid)s,"
        " owner_run = %(run)s, acquired_at = clock_timestamp(), heartbeat_at = clock_timestamp()"
        " WHERE name = %(name)s AND heartbeat_at IS NULL RETURNING fencing_token",
        values,
    ).fetchone()
    row = (
        row
        or connection.execute(
            "INSERT INTO ops.leases (name, fencing_token, owner_host, owner_pid, owner_run, acquired_at, heartbeat_at)"
            " VALUES (%(name)s, 1, %(host)s, %(pid)s, %(run)s, clock_timestamp(), clock_timestamp())"
            " ON CONFLICT (name) DO NOTHING RETURNING fencing_token",
            values,
        ).fetchone()
    )
    return int(row[0]) if row else None


def take(
    connection: Connection, name: str, *, run: str, host: str, pid: int, at_once: bool, timeout: float
) -> int | None:
    """Take a lease over, behind the closed gate: no batch of the former holder is under way when its token becomes old.

    Args:
        connection: In a transaction that has closed the gate.
        name: The lease's name.
        run: The new holder's correlation id.
        host: Its host.
        pid: Its process number.
        at_once: Whether a live holder is replaced too; False: only one that is silent for so long.
        timeout: Seconds after which a silent holder is replaced.

    Returns:
        The new fencing token; None: somebody else holds the lease.
    """
    row = connection.execute(
        "INSERT INTO ops.leases AS l"
        " (name, fencing_token, owner_host, owner_pid, owner_run, acquired_at, heartbeat_at)"
        " VALUES (%(name)s, 1, %(host)s, %(pid)s, %(run)s, clock_timestamp(), clock_timestamp())"
        " ON CONFLICT (name) DO UPDATE SET fencing_token = l.fencing_token + 1,"
        " owner_host = EXCLUDED.owner_host, owner_pid = EXCLUDED.owner_pid, owner_run = EXCLUDED.owner_run,"
        " acquired_at = EXCLUDED.acquired_at, heartbeat_at = EXCLUDED.heartbeat_at"
        " WHERE %(at_once)s OR l.heartbeat_at IS NULL"
        " OR l.heartbeat_at < clock_timestamp() - make_interval(secs => %(timeout)s)"
        " RETURNING fencing_token",
        {"name": name, "host": host, "pid": pid, "run": run, "at_once": at_once, "timeout": timeout},
    ).fetchone()
    return int(row[0]) if row else None


def show_life(connection: Connection, name: str, token: int) -> None:
    """Renew a lease's heartbeat, unless it was taken over."""
    connection.execute(BEAT, {"lease": name, "token": token})


def is_held(connection: Connection, name: str, token: int) -> bool:
    """Tell whether a lease is still held with this token."""
    statement = "SELECT 1 FROM ops.leases WHERE name = %s AND fencing_token = %s"
    return connection.execute(statement, (name, token)).fetchone() is not None


def release(connection: Connection, name: str, token: int) -> None:
    """Free a lease, unless it was taken over."""
    connection.execute(
        "UPDATE ops.leases SET heartbeat_at = NULL, owner_host = NULL, owner_pid = NULL, owner_run = NULL"
        " WHERE name = %s AND fencing_token = %s",
        (name, token),
    )
