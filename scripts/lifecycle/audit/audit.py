"""The audit log: append-only, one sealed entry a batch, chained, and free of personal data.

``ops.note_audit`` takes an entry, the COMMIT seals and chains it; audit_chain.py proves that nothing was changed since.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from scripts.lifecycle.audit.audit_chain import Finding, Head, Span, Verification, verify
from scripts.utils.db_utils import Connection

__all__ = ["Finding", "Head", "Span", "Verification", "append", "chained_now", "head", "verify"]


def append(
    connection: Connection,
    *,
    actor: str,
    action: str,
    resource_type: str,
    resource_ids: list[str],
    reason: str,
    run_id: UUID | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Note one entry in the caller's transaction; it is chained when that commits.

    The head of the chain, for which every other transaction of the suite waits, is locked by the COMMIT alone. An entry
    that cannot be chained undoes the whole transaction.

    Args:
        connection: A connection inside a transaction.
        actor: ``system:<script>`` or ``operator:<handle>``.
        action: What was done, such as ``hold_placed``.
        resource_type: The kind of the records.
        resource_ids: Their ids; never personal data.
        reason: A code; free text stays where it was given.
        run_id: The run, if there is one.
        metadata: Further facts; never personal data.
    """
    connection.execute(
        "SELECT ops.note_audit(%s, %s, %s, %s, %s, %s, %s, %s)",
        (uuid4(), actor, action, resource_type, reason, run_id, resource_ids, Jsonb(metadata or {})),
    )


def chained_now(connection: Connection) -> str:
    """Chain what the transaction has noted and return the head, ``seq:seal``, which stays locked until it commits.

    Only for the last step of a transaction that needs to know the head, as a certificate does.
    """
    connection.execute("SET CONSTRAINTS ops.audit_notes_chained IMMEDIATE")
    return head(connection)


def head(connection: Connection) -> str:
    """Return the chain's head, ``seq:seal``: what a log store keeps as an anchor."""
    row = connection.execute("SELECT seq || ':' || encode(seal, 'hex') FROM ops.audit_head").fetchone()
    return str(row[0]) if row else ""
