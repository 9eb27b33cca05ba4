"""Verification of archives: read again from the store, decrypted with the keys of the database, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scripts.lifecycle.archives.catalogue import Entry, entries
from scripts.lifecycle.archives.format import NOBODY, ArchiveBroken, Block, ObjectReader, Trailer, open_sealed
from scripts.lifecycle.archives.keys import ArchiveKeys, KeyLost
from scripts.utils.archive_store import ArchiveStore, ObjectMissing
from scripts.utils.db_utils import ReadOnlyDatabase
from scripts.utils.errors import OpsError


@dataclass(frozen=True)
class Finding:
    """One object that differs from what the catalogue says."""

    kind: str
    """``broken``, ``missing``, ``key_lost`` or ``unknown`` (an object in the store without a line in the catalogue)."""
    object: str
    error: str


class KeyStillThere(OpsError):
    """The archive key of an erased person still exists, so an archive that holds the person can be read."""

    stop_reason = "archive_key_still_there"


def read_back(store: ArchiveStore, name: str, key: bytes, *, rows: int, sha256: str) -> None:
    """Read an object from the store and compare it with what was written.

    Args:
        store: The store.
        name: The object's name.
        key: The object's key.
        rows: How many rows it must have.
        sha256: The hash that its bytes must have.

    Raises:
        ArchiveBroken: It differs.
        ArchiveStoreFailed: The store did not hand it out.
    """
    for _ in _checked(ObjectReader(name, store.read(name)), name, key, rows=rows, sha256=sha256):
        pass


def blocks_of(store: ArchiveStore, keys: ArchiveKeys, entry: Entry) -> Iterator[Block]:
    """Return an archive's blocks, and compare the object with its line in the catalogue.

    Each block is authentic when it is returned. Only after the last one is it known that the object is complete and is
    the catalogue's: what was made of the blocks must not be committed before.

    Raises:
        ArchiveBroken: Bytes, row count, hash or header are not those of the catalogue.
        ArchiveStoreFailed: The store did not hand it out.
        KeyLost: The object's key is not there.
    """
    reader = ObjectReader(entry.object, store.read(entry.object))
    key = keys.object_key(entry.id)
    yield from _checked(reader, entry.object, key, rows=entry.row_count or 0, sha256=entry.sha256 or "")
    if not reader.header or not reader.header.items() <= entry.manifest.items():
        raise ArchiveBroken(f"archive {entry.object} is broken: its header says something else than the catalogue")


def _checked(reader: ObjectReader, name: str, key: bytes, *, rows: int, sha256: str) -> Iterator[Block]:
    found = 0
    for part in reader.blocks(key):
        if isinstance(part, Trailer):
            found = part.rows
        else:
            yield part
    if reader.sha256 != sha256:
        raise ArchiveBroken(f"archive {name} is broken: its hash is not the catalogue's")
    if found != rows:
        raise ArchiveBroken(f"archive {name} is broken: it has {found} rows, the catalogue says {rows}")


def verify(
    database: ReadOnlyDatabase,
    store: ArchiveStore,
    keys: ArchiveKeys,
    chosen: list[Entry],
    *,
    between: Callable[[], None],
    tell: Callable[[Entry, int], None],
) -> list[Finding]:
    """Check every row and every person's columns of these archives, and return what is wrong.

    Args:
        database: The database with the keys.
        store: The store with the objects.
        keys: Opens the keys.
        chosen: Sealed archives.
        between: Called before each archive; may raise to stop.
        tell: Called after each intact archive, with the number of its rows whose person was erased.

    Raises:
        ArchiveStoreFailed: The store fails otherwise than by a missing object.
    """
    findings = []
    for entry in chosen:
        between()
        try:
            tell(entry, _whole(database, store, keys, entry))
        except ArchiveBroken as error:
            findings.append(Finding("broken", entry.object, str(error)))
        except ObjectMissing as error:
            findings.append(Finding("missing", entry.object, str(error)))
        except KeyLost as error:
            findings.append(Finding("key_lost", entry.object, str(error)))
    return findings


def rows_out_of_reach(
    database: ReadOnlyDatabase,
    store: ArchiveStore,
    keys: ArchiveKeys,
    chosen: list[Entry],
    destroyed: set[int],
    *,
    between: Callable[[], None],
) -> int:
    """Read archives again, and count the rows whose personal columns are encrypted under destroyed keys.

    Args:
        database: The database with the keys.
        store: The store with the objects.
        keys: Opens the keys.
        chosen: Sealed archives.
        destroyed: The ids of the keys that must be destroyed.
        between: Called before each archive; may raise to stop.

    Raises:
        KeyStillThere: One of these keys still exists.
        ArchiveBroken: An object is not what was written.
    """
    rows = 0
    for entry in chosen:
        between()
        for block in blocks_of(store, keys, entry):
            hers = {place: each.key_id for place, each in enumerate(block.people) if each.key_id in destroyed}
            wanted = set(hers.values())
            opened = database.read(lambda connection, ids=wanted: keys.opened(connection, ids))  # type: ignore[misc]
            if any(key is not None for key in opened.values()):
                raise KeyStillThere(f"a key that was destroyed is in ops.archive_keys, and opens {entry.object}")
            rows += sum(owner in hers for owner in block.owners)
    return rows


def _whole(database: ReadOnlyDatabase, store: ArchiveStore, keys: ArchiveKeys, entry: Entry) -> int:
    erased = 0
    for block in blocks_of(store, keys, entry):
        people = block.people
        ids = {each.key_id for each in people}
        opened = database.read(lambda connection, ids=ids: keys.opened(connection, ids))  # type: ignore[misc]
        rows_of = Counter(block.owners)
        if rows_of.keys() - {NOBODY, *range(len(people))}:
            raise ArchiveBroken(f"archive {entry.object} is broken: a row's person is not there")
        for place, sealed in enumerate(people):
            own = opened[sealed.key_id]
            if own is None:
                erased += rows_of[place]
            elif len(open_sealed(own, entry.id.bytes, sealed, entry.object)) != rows_of[place]:
                raise ArchiveBroken(f"archive {entry.object} is broken: a person has another number of rows")
    return erased


def strangers(database: ReadOnlyDatabase, store: ArchiveStore) -> list[Finding]:
    """Return the objects in the store that have no line in the catalogue. Nothing deletes them."""
    known = {entry.object for entry in database.read(entries) if entry.status != "expired"}
    return [
        Finding("unknown", name, f"{name} is in the store, and the catalogue does not know it")
        for name in store.names()
        if name.endswith(".archive") and name not in known
    ]
