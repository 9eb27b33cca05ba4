"""The audit log: append-only, one sealed entry a batch, chained, and free of personal data.

``seal = sha256(previous seal ‖ content)``, the content being PostgreSQL's binary form of the entry's columns. It is
recomputed here, not by a function in the database that whoever alters the log could alter as well.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from scripts.utils.db_utils import Connection, Database
from scripts.utils.errors import Misconfigured

# The columns under the seal, in ops.append_audit's order, with the type that record_send writes before each.
_SEALED = {
    "seq": 20,
    "id": 2950,
    "occurred_at": 1184,
    "actor": 25,
    "action": 25,
    "resource_type": 25,
    "reason": 25,
    "run_id": 2950,
    "resource_ids": 1009,
    "metadata": 3802,
}
_PAGE = 200
# An empty chain's head is 0 and no seal.
_HEAD = re.compile(r"0:|[1-9]\d{0,17}:[0-9a-f]{64}")


@dataclass(frozen=True)
class Finding:
    """One place where the chain is broken."""

    kind: str
    """``altered``, ``missing``, ``added``, ``replaced`` (differs from the anchor) or ``head``."""
    seq: int
    batch_id: str | None = None
    until: int | None = None
    """Last of a range of missing batches."""

    def __str__(self) -> str:
        """Say it to an operator."""
        if self.kind == "head":
            return f"the head does not match batch {self.seq}: batches at the end were replaced"
        if self.kind == "missing":
            span = (
                f"batch {self.seq} is" if self.until in (None, self.seq) else f"batches {self.seq} to {self.until} are"
            )
            return f"{span} missing"
        return f"batch {self.seq} ({self.batch_id}) was {self.kind}"


@dataclass
class Verification:
    """What a walk along the whole chain found."""

    batches: int = 0
    entries: int = 0
    head: str = "0:"
    findings: list[Finding] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        """Tell whether nothing was altered, removed or added."""
        return not self.findings


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


def verify(database: Database, anchor: str | None = None) -> Verification:
    """Walk along the chain and recompute every seal; memory does not grow with its length.

    Args:
        database: Where the chain is.
        anchor: An ``audit_head`` that a log store kept. Whoever can rewrite the whole chain cannot rewrite that line.

    Raises:
        Misconfigured: The anchor is no head.
    """
    result = Verification()
    anchor_seq, anchor_seal = _parse_head(anchor) if anchor is not None else (0, b"")
    with database.transaction(read_only=True) as connection:
        row = connection.execute("SELECT seq, seal FROM ops.audit_head").fetchone()
        head_seq, head_seal = (row[0], bytes(row[1])) if row else (0, b"")
        result.head = f"{head_seq}:{head_seal.hex()}"
        previous, expected = b"", 1
        for seq, batch_id, content, seal, entries in _walk(connection):
            result.batches += 1
            result.entries += entries
            if seq > head_seq or seq < expected:
                result.findings.append(Finding("added", seq, batch_id))
                continue
            if seq > expected:
                result.findings.append(Finding("missing", expected, until=seq - 1))
            elif hashlib.sha256(previous + content).digest() != seal:
                result.findings.append(Finding("altered", seq, batch_id))
            if seq == anchor_seq and seal != anchor_seal:
                result.findings.append(Finding("replaced", seq, batch_id))
            previous, expected = seal, seq + 1
    if expected <= head_seq:
        result.findings.append(Finding("missing", expected, until=head_seq))
    elif previous != head_seal:
        result.findings.append(Finding("head", head_seq))
    if anchor_seq > head_seq:
        result.findings.append(Finding("missing", head_seq + 1, until=anchor_seq))
    return result


def _parse_head(head: str) -> tuple[int, bytes]:
    if not _HEAD.fullmatch(head):
        raise Misconfigured("--head is not an audit_head: a number, a colon and 64 hexadecimal digits")
    seq, _, seal = head.partition(":")
    return int(seq), bytes.fromhex(seal)


def _walk(connection: Connection) -> Iterator[tuple[int, str, bytes, bytes, int]]:
    columns = ", ".join(_SEALED)
    # A cursor, not pages by number: whoever drops the constraints could hide a batch behind one of the same number.
    connection.execute(
        f"DECLARE chain NO SCROLL CURSOR FOR SELECT {columns}, seal, cardinality(resource_ids)"  # noqa: S608 - constants
        " FROM ops.audit_batches ORDER BY seq"
    )
    while True:
        cursor = connection.cursor(binary=True)
        cursor.execute(f"FETCH {_PAGE} FROM chain")
        # The raw bytes are what the seal covers; turning a thousand ids a batch into strings would only cost time.
        page = cursor.pgresult
        if page is None or page.ntuples == 0:
            return
        for index in range(page.ntuples):
            values = [page.get_value(index, number) for number in range(len(_SEALED) + 2)]
            seq = int.from_bytes(values[0] or b"", "big", signed=True)
            content = struct.pack("!i", len(_SEALED)) + b"".join(
                struct.pack("!Ii", oid, -1) if value is None else struct.pack("!Ii", oid, len(value)) + value
                for oid, value in zip(_SEALED.values(), values, strict=False)
            )
            entries = int.from_bytes(values[-1] or b"", "big")
            yield seq, str(UUID(bytes=bytes(values[1] or b""))), content, bytes(values[-2] or b""), entries
