"""Legal holds: what must not be deleted although its period has ended (GDPR Art. 17(3)(e)).

The view ``ops.holds_in_force`` says what a hold in force is: neither released nor past its expiry. Every statement that
deletes asks it. Placing, changing or releasing a hold closes the gate (a trigger on ``ops.legal_holds``): the change
waits for the batches under way, and every batch that begins afterwards sees it. Once :func:`place` has returned,
nothing under the hold is deleted, except blobs whose deletion the store had been asked for before: their rows are
logged. Another trigger writes the audit entry of each change, so this module writes none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypedDict, Unpack
from uuid import UUID

from psycopg.rows import class_row

from scripts.lifecycle.engine.resources import require_row, table_exists
from scripts.utils.db_utils import Connection, Database, ReadOnlyDatabase
from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.logging_utils import get_logger

_BY_DECISION = "queue item %"
WARNING = timedelta(days=14)
"""How long before its expiry a hold is reported: time enough for a lawyer to answer."""
_COLUMNS = "h.id, h.scope, h.table_name, h.resource_id, h.reason, h.placed_by, h.placed_at, h.expires_at"


@dataclass(frozen=True)
class Hold:
    """A hold in force, without its person: a list of holds ends up in terminals and logs."""

    id: UUID
    scope: str
    table_name: str | None
    resource_id: str | None
    reason: str
    placed_by: str
    placed_at: datetime
    expires_at: datetime | None

    def ends_soon(self, now: datetime) -> bool:
        """Tell whether the hold expires within :data:`WARNING`."""
        return self.expires_at is not None and self.expires_at <= now + WARNING

    @property
    def subject(self) -> str:
        """What is held, without who or which."""
        if self.scope == "person":
            return "on a person"
        return f"on {'a row' if self.scope == 'row' else 'all'} of {self.table_name}"


class HeldByOthers(OpsError):
    """The row is under a hold that no decision on the queue placed, so no decision on the queue may end it."""

    stop_reason = "held"


class What(TypedDict, total=False):
    """What is held: a row (table and resource id), a person, or a whole table."""

    table: str | None
    """With its schema, as the policy file writes it."""
    resource_id: str | None
    """One row of the table."""
    person: str | None
    """A normalized e-mail address."""
    expires_at: datetime | None
    """When the hold expires; None: it lasts until it is released."""
    key: tuple[str, ...] | None
    """The table's key columns, to check that the row exists; None: that is not checked."""


def place(database: Database, *, operator: str, reason: str, **what: Unpack[What]) -> UUID:
    """Hold something, in a transaction of its own.

    Args:
        database: Where the holds are.
        operator: The handle of the person who places it.
        reason: Free text, kept on the hold.
        what: What is held.

    Returns:
        The hold's id.

    Raises:
        Misconfigured: As :func:`check` raises it.
        GateBusy: The batches under way did not end in time; nothing is held.
    """
    with database.closing_gate() as connection:
        return place_within(connection, operator=operator, reason=reason, **what)


def place_within(connection: Connection, *, operator: str, reason: str, **what: Unpack[What]) -> UUID:
    """Place a hold in a transaction of :meth:`Database.closing_gate`; it holds once that is committed.

    Arguments, result and errors as for :func:`place`.
    """
    scope = check(connection, **what)
    table, resource_id, person = what.get("table"), what.get("resource_id"), what.get("person")
    row = connection.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, person, reason, placed_by, expires_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING id",
        (scope, table, resource_id, person, reason, operator, what.get("expires_at")),
    ).fetchone()
    if row is None:
        raise AssertionError("an INSERT that is not refused returns its row")
    hold_id: UUID = row[0]
    in_flight = _keep_blobs(connection, table, resource_id, person)
    if in_flight:
        get_logger().warning(
            "blobs_in_flight",
            hold=str(hold_id),
            rows=in_flight,
            effect="the store was asked to delete their blobs before this hold, and may have done so",
        )
    return hold_id


def check(connection: Connection, **what: Unpack[What]) -> str:
    """Check that a hold would hold something; arguments as for :func:`place`.

    Returns:
        Its scope: ``row``, ``person`` or ``table``.

    Raises:
        Misconfigured: Not exactly one of the three is named, table or row do not exist, or the expiry has passed.
    """
    table, resource_id, person = what.get("table"), what.get("resource_id"), what.get("person")
    if bool(person) == bool(table) or (resource_id is not None and not (table and resource_id)):
        raise Misconfigured("a hold is on a table, on a row of a table, or on a person: name exactly one of them")
    if table and not table_exists(connection, table):
        raise Misconfigured(f"there is no table {table}: name it with its schema, as the policy file does")
    row = connection.execute("SELECT %s::timestamptz <= now()", (what.get("expires_at"),)).fetchone()
    if row and row[0]:
        raise Misconfigured("the hold would already have expired")
    if table and resource_id and (key := what.get("key")):
        require_row(connection, table, key, resource_id)
    return "person" if person else "row" if resource_id else "table"


def _keep_blobs(connection: Connection, table: str | None, resource_id: str | None, person: str | None) -> list[str]:
    """Cancel the pending blob deletions under a hold; return the rows whose blobs are being deleted already.

    A key that may be personal is returned as its pseudonym: the caller logs it.
    """
    rows = connection.execute(
        "WITH under AS ("
        " SELECT id, status, coalesce(said, resource_id) AS said FROM ops.blob_deletions"
        " WHERE closed_at IS NULL AND (person = %(person)s"
        " OR table_name = %(table)s AND (resource_id = %(id)s OR %(id)s::text IS NULL))"
        "), kept AS ("
        " UPDATE ops.blob_deletions d SET status = 'cancelled', reason = 'held', closed_at = now(), blob = NULL,"
        " person = NULL FROM under u WHERE d.id = u.id AND u.status = 'pending'"
        ") SELECT said FROM under WHERE status = 'sending' ORDER BY said",
        {"person": person, "table": table, "id": resource_id},
    ).fetchall()
    return [key for (key,) in rows]


def active(database: ReadOnlyDatabase) -> list[Hold]:
    """Return the holds in force, oldest first."""
    with database.snapshot() as connection, connection.cursor(row_factory=class_row(Hold)) as cursor:
        return cursor.execute(
            f"SELECT {_COLUMNS} FROM ops.holds_in_force h ORDER BY h.placed_at, h.id"  # noqa: S608 - a constant
        ).fetchall()


def ending(database: ReadOnlyDatabase) -> list[Hold]:
    """Return the holds that expire within :data:`WARNING`, the next one first.

    A hold is left out where another one on the same subject lasts longer: nothing becomes free at its expiry.
    """
    with database.snapshot() as connection, connection.cursor(row_factory=class_row(Hold)) as cursor:
        return cursor.execute(
            f"SELECT {_COLUMNS} FROM ops.holds_in_force h"  # noqa: S608 - a constant
            " WHERE h.expires_at <= now() + %s"
            " AND NOT EXISTS (SELECT FROM ops.holds_in_force o WHERE o.scope = h.scope"
            " AND (o.expires_at IS NULL OR o.expires_at > h.expires_at)"
            " AND (o.table_name, o.resource_id, o.person) IS NOT DISTINCT FROM (h.table_name, h.resource_id, h.person))"
            " ORDER BY h.expires_at, h.id",
            (WARNING,),
        ).fetchall()


def release(database: Database, hold_id: UUID, *, operator: str) -> None:
    """End a hold and forget its person; the next run takes what is due.

    Raises:
        OpsError: There is no such hold in force; someone may have released it first.
    """
    with database.closing_gate() as connection:
        row = connection.execute(
            "UPDATE ops.legal_holds SET released_at = now(), released_by = %s, person = NULL"
            " WHERE id = %s AND released_at IS NULL RETURNING id",
            (operator, hold_id),
        ).fetchone()
        if row is None:
            raise _not_in_force(hold_id)


def forget_expired(database: Database, person: str, *, actor: str) -> None:
    """Clear a person from the holds on that person that have expired: an erasure request has been made (GDPR Art. 17).

    The trigger on ``ops.legal_holds`` writes ``hold_forgotten`` under the person's open request.

    Args:
        database: Where the holds are.
        person: The normalized address.
        actor: ``system:<script>``.

    Raises:
        GateBusy: The batches under way did not end in time; nothing was cleared.
    """
    with database.closing_gate() as connection:
        connection.execute(
            "UPDATE ops.legal_holds SET released_at = expires_at, released_by = %s, person = NULL"
            " WHERE scope = 'person' AND person = %s AND released_at IS NULL AND expires_at <= now()",
            (actor, person),
        )


def release_row(connection: Connection, table: str, resource_id: str, *, operator: str) -> int:
    """End the holds that decisions on the queue placed on one row, in a transaction of :meth:`Database.closing_gate`.

    Returns:
        How many there were.

    Raises:
        HeldByOthers: Somebody else's hold is on the row too; nothing was released.
    """
    other = connection.execute(
        "SELECT id, placed_by FROM ops.holds_in_force WHERE scope = 'row' AND table_name = %s AND resource_id = %s"
        " AND reason NOT LIKE %s LIMIT 1",
        (table, resource_id, _BY_DECISION),
    ).fetchone()
    if other:
        raise HeldByOthers(f"hold {other[0]}, placed by {other[1]}, is on the row: it is released by legal_holds.py")
    rows = connection.execute(
        "UPDATE ops.legal_holds SET released_at = now(), released_by = %s WHERE scope = 'row' AND table_name = %s"
        " AND resource_id = %s AND released_at IS NULL AND reason LIKE %s RETURNING id",
        (operator, table, resource_id, _BY_DECISION),
    ).fetchall()
    return len(rows)


def require_in_force(connection: Connection, hold_id: UUID) -> None:
    """Check that there is something to release.

    Raises:
        OpsError: There is no such hold in force.
    """
    row = connection.execute("SELECT FROM ops.legal_holds WHERE id = %s AND released_at IS NULL", (hold_id,)).fetchone()
    if row is None:
        raise _not_in_force(hold_id)


def _not_in_force(hold_id: UUID) -> OpsError:
    return OpsError(f"no hold {hold_id} is in force: it does not exist, or was released already")
