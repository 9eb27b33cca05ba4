"""Legal holds: what must not be deleted although its period has ended (GDPR Art. 17(3)(e)).

Placing, changing or releasing one closes the gate (a trigger on ops.legal_holds): it waits for the batches under way,
and every batch that begins afterwards sees it. Once :func:`place` has returned, nothing under the hold is deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row

from scripts.lifecycle import audit
from scripts.utils.db_utils import Connection, Database
from scripts.utils.errors import Misconfigured, OpsError


@dataclass(frozen=True)
class Hold:
    """A hold in force. Its person, if it has one, is not shown: a list ends up in terminals and logs."""

    id: UUID
    scope: str
    table_name: str | None
    resource_id: str | None
    reason: str
    placed_by: str
    placed_at: datetime
    expires_at: datetime | None


def normalize_email(address: str) -> str:
    """Return the address as the application's ``normalized_email`` columns hold it.

    Lower case; for Gmail, dots and ``+tag`` removed and googlemail.com folded into gmail.com.

    Raises:
        Misconfigured: It is not an e-mail address.
    """
    local, _, domain = address.strip().lower().rpartition("@")
    if domain in ("gmail.com", "googlemail.com"):
        local, domain = local.split("+")[0].replace(".", ""), "gmail.com"
    if not local or "." not in domain or any(c.isspace() for c in local + domain):
        raise Misconfigured("that is not an e-mail address")
    return f"{local}@{domain}"


def place(
    database: Database,
    *,
    operator: str,
    reason: str,
    table: str | None = None,
    resource_id: str | None = None,
    person: str | None = None,
    expires_at: datetime | None = None,
) -> UUID:
    """Hold a row (table and resource id), a person (a normalized e-mail address) or a whole table.

    Returns:
        The hold's id.

    Raises:
        Misconfigured: Not exactly one of the three is named, the table does not exist, or the expiry has passed.
    """
    if bool(person) == bool(table) or (resource_id and not table):
        raise Misconfigured("a hold is on a table, on a row of a table, or on a person: name exactly one of them")
    scope = "person" if person else "row" if resource_id else "table"
    with database.closing_gate() as connection:
        if table and not _exists(connection, table):
            raise Misconfigured(f"there is no table {table}: name it with its schema, as the policy file does")
        row = connection.execute(
            "INSERT INTO ops.legal_holds (scope, table_name, resource_id, person, reason, placed_by, expires_at)"
            " SELECT %(scope)s, %(table)s, %(resource_id)s, %(person)s, %(reason)s, %(operator)s, %(expires_at)s"
            " WHERE %(expires_at)s::timestamptz IS NULL OR %(expires_at)s::timestamptz > now() RETURNING id",
            {
                "scope": scope,
                "table": table,
                "resource_id": resource_id,
                "person": person,
                "reason": reason,
                "operator": operator,
                "expires_at": expires_at,
            },
        ).fetchone()
        if row is None:
            raise Misconfigured("the hold would already have expired")
        hold_id: UUID = row[0]
        _audit(connection, hold_id, "hold_placed", operator, scope)
    return hold_id


def active(database: Database) -> list[Hold]:
    """Return the holds in force, oldest first."""
    with database.transaction(read_only=True) as connection, connection.cursor(row_factory=class_row(Hold)) as cursor:
        return cursor.execute(
            "SELECT id, scope, table_name, resource_id, reason, placed_by, placed_at, expires_at FROM ops.legal_holds"
            " WHERE released_at IS NULL AND (expires_at IS NULL OR expires_at > now()) ORDER BY placed_at, id"
        ).fetchall()


def release(database: Database, hold_id: UUID, *, operator: str) -> None:
    """End a hold and forget its person; the next run takes what is due.

    Raises:
        OpsError: There is no such hold in force; someone may have released it first.
    """
    with database.closing_gate() as connection:
        row = connection.execute(
            "UPDATE ops.legal_holds SET released_at = now(), released_by = %s, person = NULL"
            " WHERE id = %s AND released_at IS NULL RETURNING scope",
            (operator, hold_id),
        ).fetchone()
        if row is None:
            raise OpsError(f"no hold {hold_id} is in force: it does not exist, or was released already")
        _audit(connection, hold_id, "hold_released", operator, row[0])


def _exists(connection: Connection, table: str) -> bool:
    schema, _, name = table.partition(".")
    row = connection.execute(
        "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')",
        (schema, name),
    ).fetchone()
    return row is not None


def _audit(connection: Connection, hold_id: UUID, action: str, operator: str, scope: str) -> None:
    audit.append(
        connection,
        actor=f"operator:{operator}",
        action=action,
        resource_type="ops.legal_holds",
        resource_ids=[str(hold_id)],
        reason=f"legal_hold/{scope}",
    )
