"""Archive a partition's rows before the partition is detached and dropped.

The rows are not deleted one by one. The transaction that drops the partition computes a digest of the row versions that
are there, for the range of each archive. It seals the archives and drops the partition only if every digest is the one
of the archive. So the store has each row version that is dropped.
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
    """An archive, with what ops.drop_partition checks: the last anchor and key in it, and the digest of its rows."""

    archive: Begun
    until_anchor: str
    until_key: str
    sha256: str

    @property
    def claim(self) -> dict[str, str]:
        """The piece as a JSON object that ops.drop_partition takes."""
        return {
            "archive": str(self.archive.id),
            "until_anchor": self.until_anchor,
            "until_key": self.until_key,
            "sha256": self.sha256,
        }


@contextmanager
def archived(archiver: Archiver, walk: IndexWalk) -> Iterator[list[Piece]]:
    """Archive the rows that a walk meets; discard at the end of the block the archives that were not sealed in it.

    Yields:
        The archives in the order of the walk, without their rows: memory does not grow with the partition.

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
                break  # database or store cannot be reached for the others either; the next run removes them


def walk_through(
    selection: Selection, anchor: str, partition: int, starts_at: datetime | None, ends_at: datetime
) -> IndexWalk:
    """Return the walk through one partition, by queries on the parent table: the jobs may not read the partition.

    Args:
        selection: The selection on the parent table.
        anchor: The column that the table is partitioned by.
        partition: The partition's oid.
        starts_at: The lower bound of the partition; None: it has none.
        ends_at: The upper bound of the partition.
    """
    # The oid alone decides which rows are read. PostgreSQL prunes partitions by bounds of the column only, so these
    # are given as well.
    bounds = [
        fragment("t.tableoid = %(partition)s::oid", parameters={"partition": partition}),
        selection.before(anchor, ends_at, "partition_ends"),
    ]
    # Read into Python, a bound at -infinity is the first moment that Python can hold: the same as no bound.
    if starts_at is not None and starts_at > FIRST:
        bounds.append(selection.not_before(anchor, starts_at, "partition_starts"))
    return IndexWalk(selection, anchor, joined(" AND ", bounds))
