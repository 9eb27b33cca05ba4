"""Silences for maintenance: alerts whose key begins with a scope are noted and not told, until a fixed moment.

Every silence has an end. The next run of any monitor after it tells the alerts that are still open. That an alert has
ended is told during a silence too, to the sinks that were told of the alert.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg.rows import class_row, dict_row

from scripts.lifecycle.audit import audit
from scripts.utils.db_utils import Connection, Database
from scripts.utils.errors import Misconfigured

LONGEST = timedelta(days=7)


@dataclass(frozen=True)
class Silence:
    """A silence in force."""

    id: UUID
    scope: str
    reason: str
    silenced_by: str
    silenced_at: datetime
    until: datetime


def check(scope: str, length: timedelta, reason: str) -> None:
    """Check a silence before it is written.

    Raises:
        Misconfigured: It is longer than :data:`LONGEST`, gives no reason, or its scope is no prefix of a key.
    """
    if not reason.strip():
        raise Misconfigured("--reason is empty: a person who misses an alert must be able to read why")
    if not timedelta() < length <= LONGEST:
        raise Misconfigured(
            f"--for must be at most {LONGEST.days} days: a silence that nobody ends hides the next problem"
        )
    if scope != scope.strip() or "@" in scope:
        raise Misconfigured("the scope is the beginning of an alert's key, such as sla:cleanup_pdfs:")


def silence(database: Database, scope: str, *, length: timedelta, reason: str, operator: str) -> Silence:
    """Silence the alerts whose key begins with a scope.

    Args:
        database: Holds ``ops.alert_silences``.
        scope: The prefix; empty: every alert.
        length: For how long.
        reason: Why, for a person who misses an alert.
        operator: The handle of the person who silences.

    Raises:
        Misconfigured: As :func:`check` raises it.
    """
    check(scope, length, reason)
    with database.transaction() as connection:
        with connection.cursor(row_factory=class_row(Silence)) as cursor:
            made = cursor.execute(
                "INSERT INTO ops.alert_silences (scope, reason, silenced_by, until) VALUES (%s, %s, %s, now() + %s)"
                " RETURNING id, scope, reason, silenced_by, silenced_at, until",
                (scope, reason, operator, length),
            ).fetchone()
        if made is None:
            raise AssertionError("an INSERT with RETURNING gives a row")
        _audit(connection, "alerts_silenced", made.id, operator)
    return made


def end(database: Database, silence_id: UUID, *, operator: str) -> bool:
    """End a silence before its time.

    Returns:
        Whether it was in force.
    """
    with database.transaction() as connection:
        ended = connection.execute(
            "UPDATE ops.alert_silences SET ended_at = now(), ended_by = %s"
            " WHERE id = %s AND ended_at IS NULL AND until > now()",
            (operator, silence_id),
        ).rowcount
        if ended:
            _audit(connection, "alerts_unsilenced", silence_id, operator)
    return bool(ended)


def in_force(connection: Connection) -> list[Silence]:
    """Return the silences in force, the first to end first."""
    with connection.cursor(row_factory=class_row(Silence)) as cursor:
        return cursor.execute(
            "SELECT id, scope, reason, silenced_by, silenced_at, until FROM ops.alert_silences"
            " WHERE ended_at IS NULL AND until > now() ORDER BY until, id"
        ).fetchall()


def open_alerts(connection: Connection) -> list[dict[str, Any]]:
    """Return the open alerts, the worst first, with the sinks still to be told and whether a silence covers each."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT key, severity, what, how_bad, what_to_do, runbook, raised_by, since, raised_at, last_seen_at,"
            " occurrences, waiting, EXISTS (SELECT FROM ops.alert_silences s WHERE s.ended_at IS NULL"
            " AND s.until > now() AND starts_with(a.key, s.scope)) AS silenced FROM ops.alerts a"
            " WHERE resolved_at IS NULL"
            " ORDER BY array_position(ARRAY['critical', 'warning', 'info'], severity), since, key"
        ).fetchall()


def _audit(connection: Connection, action: str, silence_id: UUID, operator: str) -> None:
    audit.append(
        connection,
        actor=f"operator:{operator}",
        action=action,
        resource_type="ops.alert_silences",
        resource_ids=[str(silence_id)],
        reason="maintenance",
    )
