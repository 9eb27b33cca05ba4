"""A partition's rows in archives, before it leaves its table: the store has each version that is going to be dropped.

Nothing is deleted for them one by one. The transaction that drops the partition works out anew, piece by piece, which
versions of which rows are there; only if they are those of the archives are the archives sealed and the partition gone.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from scripts.lifecycle.archives.batches import Archiver, cycles_left_alone
from scripts.lifecycle.archives.catalogue import Begun
from scripts.lifecycle.engine.fragments import fragment, joined
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.engine.windows import IndexWalk
from scripts.utils.odd_moments import FIRST


@dataclass(frozen=True)
class Piece:
    """An archive, and what ops.drop_partition compares it with: how far it reaches, and the digest of its rows."""

    archive: Begun
    until_anchor: str
    until_key: str
    sha256: str

    @property
    def claim(self) -> dict[str, str]:
        """The same as ops.drop_partition takes it."""
        return {
            "archive": str(self.archive.id),
            "until_anchor": self.until_anchor,
            "until_key": self.until_key,
            "sha256": self.sha256,
        }


@contextmanager
def archived(archiver: Archiver, walk: IndexWalk) -> Iterator[list[Piece]]:
    """Archive what a walk meets; what is not sealed by the end of the block is thrown away.

    Yields:
        The archives in their order: a few words each, for the rows themselves may be many.

    Raises:
        StoppedEarly: The run must stop.
        PolicyFailed: The store fails, or an object is not what was written.
    """
    pieces: list[Piece] = []
    try:
        with cycles_left_alone():
            for window, exported in archiver.written(walk):
                until = window.parameters
                pieces.append(Piece(exported.begun, until["until_anchor"], until["until_key"], exported.digest))
                del exported
                gc.collect()
        yield pieces
    finally:
        for piece in pieces:
            if not archiver.discard(piece.archive):
                break  # what is away now stays away for the others; the next run removes them


def walk_through(
    selection: Selection, anchor: str, partition: int, starts_at: datetime | None, ends_at: datetime
) -> IndexWalk:
    """Return the walk through one partition, by way of its table: the jobs have no rights on the partition itself.

    Args:
        selection: On the table.
        anchor: The column that it is partitioned by.
        partition: Its oid.
        starts_at: The beginning of its bound; None: it has none.
        ends_at: The end of its bound.
    """
    # Says nothing new after the first, but PostgreSQL leaves the other partitions out by the column's bounds only.
    bounds = [
        fragment("t.tableoid = %(partition)s::oid", parameters={"partition": partition}),
        selection.before(anchor, ends_at, "partition_ends"),
    ]
    # A bound at -infinity is no bound; read, it is the first moment that Python can hold.
    if starts_at is not None and starts_at > FIRST:
        bounds.append(selection.not_before(anchor, starts_at, "partition_starts"))
    return IndexWalk(selection, anchor, joined(" AND ", bounds))
