"""Verify the audit: recompute every seal along the chain, and compare it with heads that others kept.

``seal = sha256(previous seal ‖ content)``, the content being PostgreSQL's binary form of the entry's columns. It is
recomputed in Python, because a person who can alter the log can also alter a function in the database. One COPY sends
the rows in that binary form, one message a row: memory does not grow with the chain, and Python reads one row a batch.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from psycopg import sql

from scripts.utils.db_utils import Connection, ReadOnlyDatabase
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
_IDS = list(_SEALED).index("resource_ids")
_OIDS = [struct.pack("!I", oid) for oid in _SEALED.values()]
_COUNT = struct.pack("!i", len(_SEALED))
_COPY_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_COPY_HEADER = len(_COPY_SIGNATURE) + 8
# An empty chain's head is 0 and no seal.
_HEAD = re.compile(r"0:|[1-9]\d{0,17}:[0-9a-f]{64}")
# One statement reads the whole chain, which may take hours: the usual statement time-out would end it.
_SECONDS = 86_400.0
_LOOKED_UP = 1000


@dataclass(frozen=True)
class Head:
    """A head of the chain that a log store or an anchor kept."""

    seq: int
    seal: bytes
    keeper: str | None = None
    """Where the head was kept, for messages."""

    @classmethod
    def parsed(cls, text: str, keeper: str | None = None) -> Head:
        """Read ``seq:seal``.

        Raises:
            Misconfigured: The text is no head.
        """
        if not _HEAD.fullmatch(text):
            raise Misconfigured(
                f"{keeper or '--head'}: that is not an audit_head: a number, a colon and 64 hexadecimal digits"
            )
        seq, _, seal = text.partition(":")
        return cls(int(seq), bytes.fromhex(seal), keeper)

    def __str__(self) -> str:
        """Return ``seq:seal``, as a closing line writes a head."""
        return f"{self.seq}:{self.seal.hex()}"


@dataclass(frozen=True)
class Span:
    """A part of the chain, by the numbers of its first and last batch; empty where the last is before the first."""

    first: int = 1
    last: int | None = None
    """None: to the head."""


@dataclass(frozen=True)
class Finding:
    """One place where the chain is broken."""

    kind: str
    """``altered``, ``missing``, ``added``, ``replaced`` (differs from a head that was kept) or ``head``."""
    seq: int
    batch_id: str | None = None
    until: int | None = None
    """Last of a range of missing batches."""
    keeper: str | None = None
    """Where a head is kept that says otherwise."""

    def __str__(self) -> str:
        """Describe the finding to an operator."""
        if self.kind == "head":
            return f"the head does not match batch {self.seq}: batches at the end were replaced"
        if self.kind == "missing":
            span = (
                f"batch {self.seq} is" if self.until in (None, self.seq) else f"batches {self.seq} to {self.until} are"
            )
            return f"{span} missing" + (f": {self.keeper} has a head of them" if self.keeper else "")
        told = f": {self.keeper} has another seal for it" if self.keeper else ""
        return f"batch {self.seq} ({self.batch_id}) was {self.kind}{told}"


@dataclass
class Verification:
    """What a walk along the chain, or a part of it, found."""

    batches: int = 0
    entries: int = 0
    head: str = "0:"
    span: Span = field(default_factory=Span)
    """The part of the chain that was verified."""
    heads: int = 0
    """Number of kept heads that were compared."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        """Tell whether nothing was altered, removed or added."""
        return not self.findings


@dataclass(frozen=True)
class _Row:
    seq: int
    batch_id: str
    seal: bytes
    entries: int
    content: tuple[bytes, ...]

    def follows(self, previous: bytes) -> bool:
        made = hashlib.sha256(previous)
        for piece in self.content:
            made.update(piece)
        return made.digest() == self.seal


def verify(
    database: ReadOnlyDatabase,
    *heads: str | Head,
    span: Span | None = None,
    period: tuple[datetime, datetime] | None = None,
) -> Verification:
    """Walk along the chain in a read-only snapshot of its own; arguments, result and errors as :func:`verify_within`.

    Args:
        database: Where the chain is.
        heads: Each an ``audit_head`` that a log store or an anchor kept.
        span: The part to walk; None: all of it.
        period: The same by time, instead.
    """
    kept = [Head.parsed(head) if isinstance(head, str) else head for head in heads]
    with database.snapshot(statement_timeout=_SECONDS) as connection:
        if period:
            span = span_of(connection, *period)
        return verify_within(connection, kept, span)


def verify_within(connection: Connection, heads: Iterable[Head] = (), span: Span | None = None) -> Verification:
    """Walk along the chain and recompute every seal; memory does not grow with its length.

    A part of the chain is verified from the seal before it to the batch after it, which seals its last one.

    Args:
        connection: In a READ ONLY transaction of one snapshot.
        heads: Heads that others kept. Someone who can rewrite the whole chain cannot rewrite these. Each must be in the
            chain at its place, also outside the span.
        span: The part to walk; None: all of it.

    Raises:
        Misconfigured: The span begins beyond the chain.
    """
    row = connection.execute("SELECT seq, seal FROM ops.audit_head").fetchone()
    head = Head(row[0], bytes(row[1])) if row else Head(0, b"")
    span = span or Span()
    if span.first > max(head.seq, 0) + 1:
        raise Misconfigured(f"there is no batch {span.first}: the chain's last one is {head.seq}")
    result = Verification(head=str(head), span=span)
    _walk(connection, span, head, result)
    _compare(connection, heads, head, result)
    return result


def span_of(connection: Connection, since: datetime, until: datetime) -> Span:
    """Return the part of the chain that was written in a period, with the gaps at its edges.

    A batch whose time was altered so that it lies outside is found by a walk along the whole chain only.
    """
    row = connection.execute(
        "WITH inside AS (SELECT min(seq) FILTER (WHERE occurred_at >= %(since)s) AS first,"
        " max(seq) FILTER (WHERE occurred_at < %(until)s) AS last FROM ops.audit_batches)"
        " SELECT coalesce((SELECT max(seq) FROM ops.audit_batches WHERE seq < first OR first IS NULL), 0) + 1,"
        " coalesce((SELECT min(seq) FROM ops.audit_batches WHERE seq > coalesce(last, 0)) - 1,"
        " (SELECT seq FROM ops.audit_head), 0) FROM inside",
        {"since": since, "until": until},
    ).fetchone()
    return Span(max(1, row[0]), row[1]) if row else Span()


def _walk(connection: Connection, span: Span, head: Head, result: Verification) -> None:
    whole = span == Span()
    last = head.seq if span.last is None else min(span.last, head.seq)
    previous, expected = _seal_before(connection, span.first), span.first
    if previous is None:
        result.findings.append(Finding("missing", span.first - 1))
    for row in _rows(connection, None if whole else Span(span.first, last + 1)):
        inside = whole or row.seq <= last
        result.batches += inside
        result.entries += row.entries if inside else 0
        if row.seq > head.seq or row.seq < expected:
            result.findings.append(Finding("added", row.seq, row.batch_id))
            continue
        if row.seq > expected:
            result.findings.append(Finding("missing", expected, until=row.seq - 1))
        elif previous is not None and not row.follows(previous):
            result.findings.append(Finding("altered", row.seq, row.batch_id))
        previous, expected = row.seal, row.seq + 1
    if expected <= last:
        result.findings.append(Finding("missing", expected, until=last))
    elif expected > head.seq and previous is not None and previous != head.seal:
        result.findings.append(Finding("head", head.seq))


def _seal_before(connection: Connection, first: int) -> bytes | None:
    if first == 1:
        return b""
    row = connection.execute("SELECT seal FROM ops.audit_batches WHERE seq = %s LIMIT 1", (first - 1,)).fetchone()
    return bytes(row[0]) if row else None


def _rows(connection: Connection, span: Span | None) -> Iterator[_Row]:
    where = sql.SQL("").format()
    if span:
        where = sql.SQL("WHERE seq BETWEEN {} AND {} ").format(sql.Literal(span.first), sql.Literal(span.last))
    # One statement, not pages by number: with the constraints dropped, a batch could be hidden behind another one of
    # the same number.
    statement = sql.SQL(
        "COPY (SELECT {}, seal FROM ops.audit_batches {}ORDER BY seq) TO STDOUT (FORMAT binary)"
    ).format(sql.SQL(", ").join(map(sql.Identifier, _SEALED)), where)
    with connection.cursor().copy(statement) as copy:
        for message in copy:
            if row := _row(bytes(message)):
                yield row


def _row(message: bytes) -> _Row | None:
    """Take a row apart: a number of columns, then for each its length and its bytes. None: the end."""
    at = _COPY_HEADER if message.startswith(_COPY_SIGNATURE) else 0
    if len(message) < at + 2 or message[at : at + 2] == b"\xff\xff":
        return None
    at += 2
    columns = []
    for _ in range(len(_SEALED) + 1):
        (length,) = struct.unpack_from("!i", message, at)
        end = at + 4 + max(length, 0)
        columns.append((at, end))
        at = end
    seal_at, seal_end = columns.pop()
    # record_send writes the same, with each column's type before its length. The ids are most of it: not copied again.
    pieces = [_COUNT]
    for oid, (begin, end) in zip(_OIDS, columns, strict=True):
        pieces += [oid, message[begin:end]]
    ids = pieces[2 + 2 * _IDS]
    return _Row(
        seq=int.from_bytes(pieces[2][4:], "big", signed=True),
        batch_id=str(UUID(bytes=pieces[4][4:])) if len(pieces[4]) > 4 else "",  # noqa: PLR2004 - no more than a length
        seal=message[seal_at + 4 : seal_end],
        entries=_cardinality(ids),
        content=(b"".join(pieces[: 2 + 2 * _IDS]), ids, b"".join(pieces[3 + 2 * _IDS :])),
    )


def _cardinality(array: bytes) -> int:
    """Return how many elements an array has: length, dimensions, flags, type, then each dimension's size and bound."""
    length, *dimensions = struct.unpack_from("!ii", array) if len(array) > 4 else (0, 0)  # noqa: PLR2004 - as above
    if length <= 0 or dimensions[0] == 0:
        return 0
    product = 1
    for number in range(dimensions[0]):
        product *= struct.unpack_from("!i", array, 16 + 8 * number)[0]
    return product


def _compare(connection: Connection, heads: Iterable[Head], head: Head, result: Verification) -> None:
    """Look for each head at its place; what the walk has missed already is not said twice."""
    beyond: Head | None = None
    batch: list[Head] = []
    for kept in heads:
        result.heads += 1
        if kept.seq > head.seq:
            beyond = kept if beyond is None or kept.seq > beyond.seq else beyond
        elif kept.seq > 0:
            batch.append(kept)
        if len(batch) == _LOOKED_UP:
            _look_up(connection, batch, result)
            batch = []
    _look_up(connection, batch, result)
    if beyond:
        result.findings.append(Finding("missing", head.seq + 1, until=beyond.seq, keeper=beyond.keeper))


def _look_up(connection: Connection, heads: list[Head], result: Verification) -> None:
    if not heads:
        return
    seals: dict[int, list[tuple[str, bytes]]] = {}
    for seq, batch_id, seal in connection.execute(
        "SELECT seq, id::text, seal FROM ops.audit_batches WHERE seq = ANY(%s)", ([kept.seq for kept in heads],)
    ):
        seals.setdefault(seq, []).append((batch_id, bytes(seal)))
    for kept in heads:
        found = seals.get(kept.seq, [])
        if not found:
            missed = any(
                each.kind == "missing" and each.seq <= kept.seq <= (each.until or each.seq) for each in result.findings
            )
            if not missed:
                result.findings.append(Finding("missing", kept.seq, keeper=kept.keeper))
        elif kept.seal not in (seal for _, seal in found):
            result.findings.append(Finding("replaced", kept.seq, found[0][0], keeper=kept.keeper))
