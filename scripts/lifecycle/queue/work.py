"""The states of an item of the manual-resolution queue, and every change that a person can make.

Each change is a compare-and-set on the state that the operator saw, with the audit entry in the same statement. Two
operators never get the same item: the second one gets ``SomebodyWasFirst``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from scripts.utils.db_utils import Connection, ReadOnlyDatabase, is_deadlock, writable
from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.free_text import names_somebody
from scripts.utils.pseudonyms import pseudonym
from scripts.utils.retry_utils import retry
from scripts.utils.settings import Settings

# Every allowed change of state, and its purpose. No other change is possible.
TRANSITIONS: dict[tuple[str, str], str] = {
    ("pending", "assigned"): "an operator claims it",
    ("assigned", "pending"): "the operator gives it back, or the claim ran out",
    ("pending", "escalated"): "its deadline passed, or somebody asks for help",
    ("assigned", "escalated"): "the same, while somebody has it",
    ("pending", "deferred"): "nothing can be done before a date",
    ("assigned", "deferred"): "the same, found while working on it",
    ("escalated", "deferred"): "the same, decided by the person to whom it was escalated",
    ("escalated", "pending"): "its author takes the escalation back",
    ("deferred", "pending"): "its date has come, or somebody takes it up before",
    ("deferred", "assigned"): "an operator claims it once its date has come",
    ("assigned", "resolved"): "the operator decided",
    ("escalated", "resolved"): "the person to whom it was escalated decided",
    ("deferred", "resolved"): "settled before its date came",
    ("pending", "resolved"): "the machine found it settled, or it was decided without a claim",
    ("resolved", "pending"): "the decision turned out wrong: reopened",
}

_COLUMNS = sql.SQL(
    "id, item_type, resource_type, resource_id, priority, status, reason, context, raised_by, occurrences,"
    " first_seen_at, last_seen_at, deadline_at, assigned_to, claim_expires_at, deferred_until, escalated_at,"
    " resolved_at, resolved_by, decision, justification"
)

_CLAIM = sql.SQL("""
WITH claimed AS (
    UPDATE ops.manual_resolution_queue q
       SET status = CASE q.status WHEN 'escalated' THEN 'escalated' ELSE 'assigned' END, assigned_to = %(operator)s,
           assigned_at = clock_timestamp(), deferred_until = NULL,
           claim_expires_at = clock_timestamp() + make_interval(mins => %(minutes)s),
           before_last = jsonb_build_object('by', %(operator)s::text, 'status', q.status,
                                            'deferred_until', q.deferred_until)
     WHERE q.id = (SELECT w.id FROM ops.manual_resolution_queue w
                    WHERE w.status <> 'resolved' AND w.claimable_at <= now() AND w.id <> ALL(%(skipping)s) AND {only}
                    ORDER BY w.deadline_at, w.priority_rank, w.first_seen_at, w.id
                    LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING {columns}
), noted AS (
    SELECT ops.note_queue_change(id, %(actor)s, 'queue_item_claimed', item_type, '{{}}') FROM claimed
)
SELECT c.* FROM claimed c, noted
""")

_CHANGE = sql.SQL("""
WITH changed AS (
    UPDATE ops.manual_resolution_queue q SET {assignments}
     WHERE q.id = %(id)s AND q.status = ANY(%(from)s)
       AND (q.assigned_to IS NULL OR q.assigned_to = %(operator)s OR q.claim_expires_at < now() OR %(over)s) AND {only}
    RETURNING {columns}
), noted AS (
    SELECT ops.note_queue_change(id, %(actor)s, %(action)s, item_type, %(metadata)s::jsonb) FROM changed
)
SELECT c.* FROM changed c, noted
""")


@dataclass(frozen=True)
class QueueItem:
    """An item as an operator sees it. Times are time-zone aware."""

    id: UUID
    item_type: str
    resource_type: str
    resource_id: str
    priority: str
    status: str
    reason: str
    context: dict[str, Any]
    raised_by: str
    occurrences: int
    first_seen_at: datetime
    last_seen_at: datetime
    deadline_at: datetime
    assigned_to: str | None
    claim_expires_at: datetime | None
    deferred_until: datetime | None
    escalated_at: datetime | None
    resolved_at: datetime | None
    resolved_by: str | None
    decision: str | None
    justification: str | None


@dataclass(frozen=True)
class Filter:
    """Which items: those that meet every condition that is set."""

    item_id: UUID | None = None
    item_type: str | None = None
    priority: str | None = None
    status: str | None = None
    older_than: datetime | None = None
    """First seen before this moment."""

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of :data:`_ONLY`."""
        return {
            "id": self.item_id,
            "type": self.item_type,
            "priority": self.priority,
            "status": self.status,
            "older": self.older_than,
        }


# In these conditions the alias of the table is w.
_ONLY = sql.SQL(
    "(%(id)s::uuid IS NULL OR w.id = %(id)s) AND (%(type)s::text IS NULL OR w.item_type = %(type)s)"
    " AND (%(priority)s::text IS NULL OR w.priority = %(priority)s)"
    " AND (%(status)s::text IS NULL OR w.status = %(status)s)"
    " AND (%(older)s::timestamptz IS NULL OR w.first_seen_at < %(older)s)"
)
ANY = Filter()


class SomebodyWasFirst(OpsError):
    """The item is no longer in the state that the operator saw: another operator or a job has changed it."""

    stop_reason = "somebody_was_first"


class Work:
    """One operator's work on the queue.

    Args:
        database: The database with the queue.
        settings: Have the deadlines, the length of a claim, and the key of the audit's digests.
        operator: The operator's handle.
    """

    def __init__(self, database: ReadOnlyDatabase, settings: Settings, operator: str) -> None:
        self._database = database
        self._settings = settings
        self._operator = operator

    def claim(self, only: Filter = ANY, *, skipping: Sequence[UUID] = ()) -> QueueItem | None:
        """Claim the worst item that nobody has, until the claim expires. This takes one round trip.

        Args:
            only: Which items may be taken.
            skipping: Ids of items that are not taken.

        Returns:
            The item; None: there is none, or other operators have them all.
        """
        statement = _CLAIM.format(columns=_COLUMNS, only=_ONLY)
        parameters = {
            "operator": self._operator,
            "actor": f"operator:{self._operator}",
            "minutes": self._settings.mrq_claim_minutes,
            "skipping": list(skipping),
            **only.parameters(),
        }
        return self._one(statement, parameters)

    def release(self, item_id: UUID) -> QueueItem:
        """Give a claimed item back; an escalated item stays escalated.

        Raises:
            SomebodyWasFirst: This operator does not have it any more.
        """
        return self._change(
            item_id,
            "queue_item_released",
            ("assigned", "escalated"),
            "status = CASE q.status WHEN 'assigned' THEN 'pending' ELSE q.status END, assigned_to = NULL,"
            " assigned_at = NULL, claim_expires_at = NULL, before_last = NULL",
        )

    def defer(self, item_id: UUID, until: datetime) -> QueueItem:
        """Defer an item until a moment, time-zone aware.

        Raises:
            Misconfigured: The moment has passed.
            SomebodyWasFirst: Somebody else has it, or it is resolved.
        """
        if until <= self._database.now():
            raise Misconfigured("--until lies in the past")
        return self._change(
            item_id,
            "queue_item_deferred",
            _from("deferred"),
            "before_last = jsonb_build_object('by', %(operator)s::text, 'status', q.status), status = 'deferred',"
            " deferred_until = %(until)s, assigned_to = NULL, assigned_at = NULL, claim_expires_at = NULL",
            until=until,
        )

    def escalate(self, item_id: UUID) -> QueueItem:
        """Escalate an item to somebody else; the deadline stays.

        Raises:
            SomebodyWasFirst: Somebody else has it, or it is resolved.
        """
        return self._change(
            item_id,
            "queue_item_escalated",
            _from("escalated"),
            "before_last = jsonb_build_object('by', %(operator)s::text, 'status', q.status), status = 'escalated',"
            " escalated_at = clock_timestamp(), assigned_to = NULL, assigned_at = NULL, claim_expires_at = NULL",
        )

    def resolve(
        self, item_id: UUID, decision: str, justification: str, *, within: Connection | None = None
    ) -> QueueItem:
        """Close an item. The justification stays on it; the audit gets the decision's code and a keyed digest.

        Args:
            item_id: The item.
            decision: The decision's code.
            justification: The operator's reason, in free words without an e-mail address.
            within: The transaction that carries out the decision, so that both happen or neither; None: one of its own.

        Raises:
            Misconfigured: There is no justification, or no key for its digest.
            SomebodyWasFirst: Somebody else has it, or it is resolved.
        """
        note = self.note(decision, justification)
        return self._change(
            item_id,
            "queue_item_resolved",
            _from("resolved"),
            # The context is cleared: it is of no use after the decision, and may be about a person.
            "status = 'resolved', resolved_at = clock_timestamp(), resolved_by = 'operator:' || %(operator)s::text,"
            " decision = %(decision)s, justification = %(justification)s, context = '{}', claim_expires_at = NULL,"
            " deferred_until = NULL, before_last = NULL",
            metadata=note,
            within=within,
            decision=decision,
            justification=justification,
        )

    def note(self, decision: str, justification: str) -> dict[str, str]:
        """Return what the audit keeps of a decision: its code, and a keyed digest of the justification.

        Raises:
            Misconfigured: There is no justification, it names a person, or there is no key for its digest.
        """
        if not justification.strip():
            raise Misconfigured("a decision needs a justification")
        if names_somebody(justification):
            raise Misconfigured("a justification must not hold an e-mail address: name the case, not the person")
        return {"decision": decision, "justification": pseudonym(self._settings, justification)}

    def require_mine(self, connection: Connection, item_id: UUID) -> None:
        """Lock an item until the transaction ends, so that it is decided once.

        Raises:
            SomebodyWasFirst: Somebody else has it, or it is resolved.
        """
        row = connection.execute(
            "SELECT FROM ops.manual_resolution_queue q WHERE id = %s AND status <> 'resolved'"
            " AND (assigned_to IS NULL OR assigned_to = %s OR claim_expires_at < now()) FOR UPDATE",
            (item_id, self._operator),
        ).fetchone()
        if row is None:
            raise SomebodyWasFirst(f"item {item_id}: {_why_not(connection, item_id)}")

    def reopen(self, item_id: UUID) -> QueueItem:
        """Open a resolved item again; its deadline is counted from now.

        Raises:
            SomebodyWasFirst: It is not resolved, another open item has the same resource and type, or its row's key
                was an address and has gone.
        """
        hours = self._settings.hours_by_priority
        return self._change(
            item_id,
            "queue_item_reopened",
            ("resolved",),
            "status = 'pending', resolved_at = NULL, resolved_by = NULL, decision = NULL, justification = NULL,"
            " assigned_to = NULL, assigned_at = NULL,"
            " deadline_at = now() + make_interval(hours => (%(hours)s::jsonb ->> q.priority)::int)",
            over=True,
            only="q.said IS NULL",
            hours=Jsonb(hours),
        )

    def undo(self, item_id: UUID) -> QueueItem:
        """Undo this operator's last claim, deferral or escalation of an item.

        Raises:
            SomebodyWasFirst: The last change was another operator's, or cannot be undone.
        """
        return self._change(
            item_id,
            "queue_item_undone",
            ("assigned", "escalated", "deferred"),
            "status = CASE q.before_last ->> 'status' WHEN 'assigned' THEN 'pending'"
            " ELSE q.before_last ->> 'status' END, deferred_until = (q.before_last ->> 'deferred_until')::timestamptz,"
            " escalated_at = CASE WHEN q.before_last ->> 'status' = 'escalated' THEN q.escalated_at END,"
            " assigned_to = NULL, assigned_at = NULL, claim_expires_at = NULL, before_last = NULL",
            only="q.before_last ->> 'by' = %(operator)s",
        )

    def _change(
        self,
        item_id: UUID,
        action: str,
        states: Sequence[str],
        assignments: LiteralString,
        *,
        metadata: dict[str, Any] | None = None,
        over: bool = False,
        only: LiteralString = "true",
        within: Connection | None = None,
        **values: Any,
    ) -> QueueItem:
        statement = _CHANGE.format(assignments=sql.SQL(assignments), only=sql.SQL(only), columns=_COLUMNS)
        parameters = {
            "id": item_id,
            "from": list(states),
            "operator": self._operator,
            "actor": f"operator:{self._operator}",
            "action": action,
            "metadata": Jsonb(metadata or {}),
            "over": over,
            **values,
        }
        try:
            changed = _first(within, statement, parameters) if within else self._one(statement, parameters)
        except psycopg.errors.UniqueViolation:
            raise SomebodyWasFirst(f"item {item_id}: the same matter is open already, as another item") from None
        if changed is None:
            # Use the connection of the transaction: the pool may have no second one.
            with nullcontext(within) if within else self._database.snapshot() as connection:
                raise SomebodyWasFirst(f"item {item_id}: {_why_not(connection, item_id)}")
        return changed

    def _one(self, statement: sql.Composed, parameters: dict[str, Any]) -> QueueItem | None:
        def once() -> QueueItem | None:
            with writable(self._database).transaction() as connection:
                return _first(connection, statement, parameters)

        # A job that closes the same item locks the head of the audit first, an operator the item: they may deadlock.
        return retry(once, on=is_deadlock, attempts=4, seconds=10.0)


def _why_not(connection: Connection, item_id: UUID) -> str:
    row = connection.execute(
        "SELECT status, assigned_to, said IS NOT NULL FROM ops.manual_resolution_queue WHERE id = %s", (item_id,)
    ).fetchone()
    if row is None:
        return "there is no such item"
    if row[0] == "resolved" and row[2]:
        return (
            "it is resolved, and its row's key, an address, was not kept: if the row still needs a person,"
            " add_to_queue.py or the next run puts it on the queue"
        )
    return f"it is {row[0]}, {row[1]} has it" if row[1] else f"it is {row[0]}"


def _first(connection: Connection, statement: sql.Composed, parameters: dict[str, Any]) -> QueueItem | None:
    with connection.cursor(row_factory=class_row(QueueItem)) as cursor:
        return cursor.execute(statement, parameters).fetchone()


def _from(target: str) -> list[str]:
    """Return the states from which this one can be reached."""
    return [state for state, to in TRANSITIONS if to == target]


def get(database: ReadOnlyDatabase, item_id: UUID) -> QueueItem | None:
    """Return one item; None: there is none of this id."""
    found = items(database, Filter(item_id=item_id), open_only=False, limit=1)
    return found[0] if found else None


def items(
    database: ReadOnlyDatabase, only: Filter = ANY, *, open_only: bool = True, claimable: bool = False, limit: int = 100
) -> list[QueueItem]:
    """Return items, the worst first (by deadline, then priority, then age).

    Args:
        database: The database with the queue.
        only: Which items.
        open_only: Leave out resolved items.
        claimable: Only items that a claim could take.
        limit: The most items to return.
    """
    statement = sql.SQL(
        "SELECT {columns} FROM ops.manual_resolution_queue w WHERE (NOT %(open)s OR status <> 'resolved')"
        " AND (NOT %(claimable)s OR claimable_at <= now()) AND {only}"
        " ORDER BY deadline_at, priority_rank, first_seen_at, id LIMIT %(limit)s"
    ).format(columns=_COLUMNS, only=_ONLY)
    parameters = {"open": open_only, "claimable": claimable, "limit": limit, **only.parameters()}

    def read(connection: Connection) -> list[QueueItem]:
        with connection.cursor(row_factory=class_row(QueueItem)) as cursor:
            return cursor.execute(statement, parameters).fetchall()

    return database.read(read)


@dataclass(frozen=True)
class Backlog:
    """How many items are open and not deferred."""

    open: int
    past_deadline: int
    claimable: int
    """How many of these nobody has claimed."""


def backlog(database: ReadOnlyDatabase, only: Filter = ANY) -> Backlog:
    """Count the items that are open and not deferred."""
    statement = sql.SQL(
        "SELECT count(*), count(*) FILTER (WHERE deadline_at < now()),"
        " count(*) FILTER (WHERE claimable_at <= now()) FROM ops.manual_resolution_queue w"
        " WHERE status <> 'resolved' AND NOT (status = 'deferred' AND deferred_until > now()) AND {only}"
    ).format(only=_ONLY)
    row = database.read(lambda connection: connection.execute(statement, only.parameters()).fetchone())
    return Backlog(*(row or (0, 0, 0)))
