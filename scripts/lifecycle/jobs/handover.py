"""Puts on the manual-resolution queue what a machine must not decide; everything enters the queue here.

Raising is idempotent per open item: the same resource and type seen again is one more occurrence, never a second row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from scripts.lifecycle.audit import audit
from scripts.lifecycle.policy.fields import PRIORITIES
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.utils.db_utils import Connection, Database
from scripts.utils.errors import Misconfigured
from scripts.utils.free_text import names_somebody
from scripts.utils.pseudonyms import pseudonym
from scripts.utils.settings import Settings

# What a person may have to decide. A policy file may name types of its own; they are known by being there.
ITEM_TYPES = {
    "pdf_deletion_failed": "the store does not delete a blob",
    "quiz_orphaned": "a quiz response's user_id names nobody",
    "quiz_undelivered": "paid for, and not delivered in time",
    "blacklist_disputed": "somebody says that an entry is wrong",
    "retention_exception": "something that is due is still needed",
    "foreign_key_violation": "other tables still refer to what is due",
    "row_deletion_failed": "the database refuses to delete a row",
    "erasure_blocked": "something is in the way of an erasure",
    "archive_failed": "what must be archived first could not be",
}
_TEXTS = ("item_type", "resource_type", "resource_id", "priority", "reason")

_RAISE = sql.SQL("""
INSERT INTO ops.manual_resolution_queue AS q
       (item_type, resource_type, resource_id, priority, reason, context, raised_by, deadline_at)
SELECT %(item_type)s, %(resource_type)s, r.resource_id, %(priority)s, %(reason)s, %(context)s, %(raised_by)s,
       now() + make_interval(hours => %(hours)s)
  FROM {rows} r
    ON CONFLICT (item_type, resource_type, resource_id) WHERE status <> 'resolved'
    DO UPDATE SET occurrences = q.occurrences + 1, last_seen_at = now(), context = EXCLUDED.context
RETURNING xmax = 0 AS is_new, id::text, resource_id
""")
# What stands in the key's place once the item is closed (ops.forget_queue_row).
_SAY = """
UPDATE ops.manual_resolution_queue q SET said = s.said
  FROM unnest(%s::uuid[], %s::text[]) AS s (id, said) WHERE q.id = s.id AND q.said IS NULL
"""


@dataclass(frozen=True)
class Item:
    """What a queue item says, without the resource that it is about."""

    item_type: str
    resource_type: str
    priority: str
    reason: str
    raised_by: str
    context: dict[str, Any]
    """Facts that a decision needs; no personal data."""

    def parameters(self, settings: Settings) -> dict[str, Any]:
        """Return the statement's parameters; the deadline follows from the priority."""
        return {
            "item_type": self.item_type,
            "resource_type": self.resource_type,
            "priority": self.priority,
            "reason": self.reason,
            "context": Jsonb(self.context),
            "raised_by": self.raised_by,
            "hours": settings.hours_by_priority[self.priority],
        }


def raise_item(database: Database, settings: Settings, item: Item, resource_id: str) -> int:
    """Put one resource on the queue.

    Args:
        database: The database.
        settings: Hold the deadlines of queue items, in hours.
        item: What the item says.
        resource_id: The id of the resource, such as a row's key.

    Returns:
        1 if the item is new, 0 if it was open already.
    """
    return int(raise_items(database, settings, [(item, resource_id)])[0])


def raise_items(database: Database, settings: Settings, items: Sequence[tuple[Item, str]]) -> list[bool]:
    """Put several resources on the queue, all or none.

    Returns:
        For each whether it is new.
    """
    row = sql.SQL("(SELECT %(resource_id)s::text AS resource_id)")
    with database.transaction() as connection:
        return [
            bool(raise_rows(connection, settings, item, row, {"resource_id": resource_id}))
            for item, resource_id in items
        ]


def raise_rows(
    connection: Connection, settings: Settings, item: Item, rows: sql.Composable, parameters: Mapping[str, Any]
) -> int:
    """Put every row of a sub-query on the queue; what an operator raises is audited in the same transaction.

    Args:
        connection: A connection in the caller's transaction.
        settings: Hold the deadlines of queue items, in hours, and the key of pseudonyms.
        item: What the item of each row says.
        rows: A sub-query in parentheses with one column, ``resource_id``.
        parameters: The sub-query's parameters.

    Returns:
        How many items are new.
    """
    raised = connection.execute(_RAISE.format(rows=rows), item.parameters(settings) | dict(parameters)).fetchall()
    if raised and item.raised_by.startswith("operator:"):
        audit.append(
            connection,
            actor=item.raised_by,
            action="queue_item_raised",
            resource_type="ops.manual_resolution_queue",
            resource_ids=[key for _, key, _ in raised],
            reason=item.item_type,
        )
    # Without a key of pseudonyms no policy has rows with such keys: its preflight asks for one.
    personal = [(key, resource) for _, key, resource in raised if names_somebody(resource)]
    if personal and settings.audit_pseudonym_key:
        said = [pseudonym(settings, resource) for _, resource in personal]
        connection.execute(_SAY, ([key for key, _ in personal], said))
    return sum(is_new for is_new, _, _ in raised)


def count_new(
    connection: Connection,
    item_type: str,
    resource_type: str,
    rows: sql.Composable,
    parameters: Mapping[str, Any],
) -> int:
    """Return how many items :func:`raise_rows` would add for the rows of a sub-query.

    Args:
        connection: A connection.
        item_type: The items' type.
        resource_type: The table that the rows belong to, with its schema.
        rows: A sub-query in parentheses with one column, ``resource_id``.
        parameters: The sub-query's parameters.
    """
    found = connection.execute(
        sql.SQL(
            "SELECT count(*) FROM {} r WHERE NOT EXISTS (SELECT FROM ops.manual_resolution_queue q WHERE"
            " q.status <> 'resolved' AND q.item_type = %(item_type)s AND q.resource_type = %(resource_type)s"
            " AND q.resource_id = r.resource_id)"
        ).format(rows),
        {"item_type": item_type, "resource_type": resource_type, **parameters},
    ).fetchone()
    return int(found[0]) if found else 0


def described(policies: PolicySet, facts: Any, *, raised_by: str) -> tuple[Item, str]:
    """Read an item and the id of its resource from facts that a person or another program gave.

    Raises:
        Misconfigured: The facts are not complete or not allowed; the message names everything that is wrong.
    """
    if not isinstance(facts, Mapping):
        raise Misconfigured("the item is not an object of names and values")
    problems = [f"{name} is missing" for name in _TEXTS if not isinstance(facts.get(name), str) or not facts[name]]
    problems += [f"{name} is not known" for name in sorted(facts.keys() - {*_TEXTS, "context"})]
    context = facts.get("context", {})
    if not isinstance(context, dict):
        problems.append("context is not an object of names and values")
    elif names_somebody(json.dumps(context, ensure_ascii=False)) or names_somebody(str(facts.get("reason"))):
        problems.append("context and reason must not hold an e-mail address: name the row, not the person")
    types = item_types(policies)
    if facts.get("item_type") and facts["item_type"] not in types:
        problems.append(f"item_type is none of {', '.join(types)}")
    if facts.get("priority") and facts["priority"] not in PRIORITIES:
        problems.append(f"priority is none of {', '.join(PRIORITIES)}")
    if problems:
        raise Misconfigured("; ".join(problems))
    item = Item(
        item_type=facts["item_type"],
        resource_type=facts["resource_type"],
        priority=facts["priority"],
        reason=facts["reason"],
        raised_by=raised_by,
        context=context,
    )
    return item, facts["resource_id"]


def item_types(policies: PolicySet) -> list[str]:
    """Return the types that items may have: the suite's own, and those that the policy file names."""
    named = [e.queue.item_type for p in policies.policies.values() for e in p.exceptions.values() if e.queue]
    named += [policy.blob.item_type for policy in policies.policies.values() if policy.blob]
    named += [item_type for policy in policies.policies.values() for item_type in policy.decisions]
    return list(dict.fromkeys([*ITEM_TYPES, *named]))


def is_open(connection: Connection, item_type: str, resource_type: str, resource_id: str) -> bool:
    """Return whether an item is open, so that :func:`raise_item` would add no new one.

    Args:
        connection: A connection.
        item_type: The item's type.
        resource_type: The table of the resource, with its schema.
        resource_id: The id of the resource.
    """
    row = connection.execute(
        "SELECT FROM ops.manual_resolution_queue WHERE status <> 'resolved'"
        " AND item_type = %s AND resource_type = %s AND resource_id = %s",
        (item_type, resource_type, resource_id),
    ).fetchone()
    return row is not None
