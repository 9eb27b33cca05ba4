"""Search of the archives for one person's rows, for a request for access (GDPR Art. 15)."""

from __future__ import annotations

from collections.abc import Iterator

from scripts.lifecycle.archives.catalogue import Entry
from scripts.lifecycle.archives.export import HOME
from scripts.lifecycle.archives.format import Block, lines_of, open_sealed, values_of
from scripts.lifecycle.archives.keys import ArchiveKeys, key_of_person
from scripts.lifecycle.archives.verify import blocks_of
from scripts.utils.archive_store import ArchiveStore
from scripts.utils.db_utils import ReadOnlyDatabase

Row = dict[str, str | None]


def rows_of(
    database: ReadOnlyDatabase, store: ArchiveStore, keys: ArchiveKeys, person: str, chosen: list[Entry]
) -> Iterator[Row]:
    """Return a person's archived rows, each value as PostgreSQL's text.

    Args:
        database: The database with the keys.
        store: The store with the objects.
        keys: Opens the keys.
        person: The value of the policy's person column.
        chosen: Sealed archives.

    Raises:
        ArchiveBroken: An object is not what was written.
        ArchiveStoreFailed: The store did not hand out an object.
        KeyLost: An object's key is missing.
    """
    hers = database.read(lambda connection: key_of_person(connection, keys, person))
    if hers is None:
        return
    key_id, key = hers
    for entry in chosen:
        names = entry.layout.names
        for block in blocks_of(store, keys, entry):
            yield from _of_block(block, key_id, key, entry, names)


def _of_block(block: Block, key_id: int, key: bytes, entry: Entry, names: tuple[str, ...]) -> Iterator[Row]:
    for place, sealed in enumerate(block.people):
        if sealed.key_id != key_id:
            continue
        own = iter(open_sealed(key, entry.id.bytes, sealed, entry.object))
        for line, owner in zip(lines_of(block.rest), block.owners, strict=True):
            if owner == place:
                found = dict(zip(names, values_of(next(own) + b"\t" + line), strict=True))
                found.pop(HOME, None)  # in which child it lay is nothing about a person
                yield found
