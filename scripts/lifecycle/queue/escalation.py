"""Changes of the queue that need no person: claims expire, deferrals end, and late items are escalated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import sql

from scripts.lifecycle.monitoring.alerts import Alert, Alerts
from scripts.utils.db_utils import Connection, Database, ReadOnlyDatabase, is_deadlock
from scripts.utils.retry_utils import retry

SCOPE = "queue:item:"
_RUNBOOK = "scripts/manual-resolution/README.md#past-its-deadline-escalate_breachespy"
_FIRST = UUID(int=0)
# Number of items that change in one transaction, with one audit entry.
_ITEMS = 1000

_STALE = sql.SQL("status IN ('assigned', 'escalated') AND claim_expires_at < now()")
_DUE = sql.SQL("status = 'deferred' AND deferred_until <= now()")
_BREACHED = sql.SQL("status IN ('pending', 'assigned') AND deadline_at < now()")

# An escalated item stays escalated. An operator who has claimed an item keeps it when it is escalated.
_FREE = sql.SQL(
    "status = CASE q.status WHEN 'escalated' THEN 'escalated' ELSE 'pending' END, assigned_to = NULL,"
    " assigned_at = NULL, claim_expires_at = NULL, deferred_until = NULL, before_last = NULL"
)
_ESCALATE = sql.SQL("status = 'escalated', escalated_at = clock_timestamp(), before_last = NULL")

_CHANGE = sql.SQL("""
WITH chosen AS MATERIALIZED (
    SELECT id FROM ops.manual_resolution_queue WHERE {which} AND id > %(after)s ORDER BY id LIMIT {items}
       FOR UPDATE SKIP LOCKED
), changed AS (
    UPDATE ops.manual_resolution_queue q SET {change} FROM chosen c WHERE q.id = c.id RETURNING q.id::text AS key
), noted AS (
    SELECT ops.note_audit(gen_random_uuid(), %(actor)s, %(action)s, 'ops.manual_resolution_queue', %(reason)s, NULL,
                            array_agg(key), '{{}}') AS entry
      FROM changed HAVING count(*) > 0
)
SELECT (SELECT count(*) FROM changed), (SELECT id FROM chosen ORDER BY id DESC LIMIT 1),
       (SELECT count(entry) FROM noted)
""")


@dataclass(frozen=True)
class Moved:
    """How many items were changed, or would be."""

    claims_expired: int
    deferrals_due: int
    escalated: int


_STEPS = {
    "claims_expired": (_STALE, _FREE, "queue_claim_expired", "claim_expired"),
    "deferrals_due": (_DUE, _FREE, "queue_deferral_ended", "deferral_due"),
    "escalated": (_BREACHED, _ESCALATE, "queue_item_escalated", "deadline_passed"),
}


def predict(database: ReadOnlyDatabase) -> Moved:
    """Count what :func:`move` would change. A deferral that ends may be counted as past its deadline too."""

    def read(connection: Connection) -> Moved:
        counts = {}
        for name, (which, *_) in _STEPS.items():
            row = connection.execute(
                sql.SQL("SELECT count(*) FROM ops.manual_resolution_queue WHERE {}").format(which)
            ).fetchone()
            counts[name] = int(row[0]) if row else 0
        return Moved(**counts)

    return database.read(read)


def move(database: Database, *, script: str, between: Callable[[], None]) -> Moved:
    """End expired claims and deferrals, and escalate each item that is past its deadline, once.

    Args:
        database: The database with the queue.
        script: Name of the script, for the audit's actor.
        between: Called between two transactions; may raise to stop.

    Returns:
        How many items were changed, by kind.
    """
    moved = dict.fromkeys(_STEPS, 0)
    for name, (which, change, action, reason) in _STEPS.items():
        statement = _CHANGE.format(which=which, change=change, items=sql.Literal(_ITEMS))
        # Go forward only: a new search from the beginning would read every item that was changed before.
        after: UUID | None = _FIRST
        while after:
            between()
            facts = {"actor": f"system:{script}", "action": action, "reason": reason, "after": after}
            count, after = _change(database, statement, facts)
            moved[name] += count
    return Moved(**moved)


def _change(database: Database, statement: sql.Composed, facts: dict[str, Any]) -> tuple[int, UUID | None]:
    def once() -> tuple[int, UUID | None]:
        row = database.write(lambda connection: connection.execute(statement, facts).fetchone())
        return (row[0], row[1]) if row else (0, None)

    # A job that closes the same items locks the head of the audit first; the other order would deadlock.
    return retry(once, on=is_deadlock, attempts=4, seconds=10.0)


def tell(database: ReadOnlyDatabase, alerts: Alerts, *, between: Callable[[], None]) -> dict[str, int]:
    """Raise one alert for each escalated item past its deadline, and end the alerts of resolved items.

    Args:
        database: The database with the queue.
        alerts: Raises and ends alerts.
        between: Called between two items; may raise to stop.

    Returns:
        How many alerts are new, and how many have ended.
    """
    now = database.now()
    rows = database.read(
        lambda connection: connection.execute(
            "SELECT id, item_type, priority, deadline_at, resource_type, occurrences FROM ops.manual_resolution_queue"
            " WHERE status = 'escalated' AND deadline_at < now() ORDER BY deadline_at, id"
        ).fetchall()
    )
    view = [
        Alert(
            key=f"{SCOPE}{item}",
            # Priority critical means a promise to a person: the alert pages the person on call.
            severity="critical" if priority == "critical" else "warning",
            what=f"{item_type} ({priority}) is past its deadline on the manual-resolution queue",
            how_bad=f"past its deadline since {deadline:%Y-%m-%d %H:%M} UTC; {table}, seen {times} times",
            what_to_do=f"decide it: process_queue.py show {item}",
            runbook=_RUNBOOK,
            since=deadline,
        )
        for item, item_type, priority, deadline, table, times in rows
    ]
    settled = alerts.settle(SCOPE, view, measured_at=now, between=between)
    return {"alerts_raised": len(settled.raised), "alerts_recovered": len(settled.recovered)}
