"""The audit log: append-only, one sealed entry a batch, chained, and free of personal data.

``ops.append_audit`` seals and chains; audit_chain.py proves that nothing was changed since.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from scripts.lifecycle.audit.audit_chain import Finding, Head, Span, Verification, verify
from scripts.utils.db_utils import Connection

__all__ = ["Finding", "Head", "Span", "Verification", "append", "head", "verify"]


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
) -> str:
    """Write one entry in the caller's transaction.

    Args:
        connection: A connection inside a transaction.
        actor: ``system:<script>`` or ``operator:<handle>``.
        action: What was done, such as ``hold_placed``.
        resource_type: The kind of the records.
        resource_ids: Their ids; never personal data.
        reason: A code; free text stays where it was given.
        run_id: The run, if there is one.
        metadata: Further facts; never personal data.

    Returns:
        The new head, ``seq:seal``.
    """
    row = connection.execute(
        "SELECT ops.append_audit(%s, %s, %s, %s, %s, %s, %s, %s)",
        (uuid4(), actor, action, resource_type, reason, run_id, resource_ids, Jsonb(metadata or {})),
    ).fetchone()
    return str(row[0]) if row else ""


def head(connection: Connection) -> str:
    """Return the chain's head, ``seq:seal``: what a log store keeps as an anchor."""
    row = connection.execute("SELECT seq || ':' || encode(seal, 'hex') FROM ops.audit_head").fetchone()
    return str(row[0]) if row else ""
