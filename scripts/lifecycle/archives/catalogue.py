"""The catalogue of archives: the table ops.archives.

The states of an archive:
- ``writing``: the store may have the object whole, in part or not at all; no row was deleted for it.
- ``sealed``: the transaction that deleted its rows has set this.
- ``discarded``: it was not sealed; the object is removed from the store, then the line from the table.
- ``expiring``: its own period has ended, and the store is asked to delete the object.
- ``expired``: the store has deleted the object.
The next run finishes what a crash left in ``writing``, ``discarded`` or ``expiring``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from pydantic import BaseModel, ValidationError, field_validator, model_validator

from scripts.lifecycle.archives.format import ArchiveBroken, Written
from scripts.lifecycle.archives.keys import ArchiveKeys
from scripts.lifecycle.policy.policies import Policy
from scripts.utils import strict_json
from scripts.utils.archive_store import ArchiveStore
from scripts.utils.db_utils import Connection, Database

_COLUMNS = (
    "id, policy, table_name, object, status, row_count, bytes, sha256, oldest::text, newest::text,"
    " manifest::text AS manifest_text, created_at, sealed_at"
)


@dataclass(frozen=True)
class Begun:
    """An archive in status ``writing``."""

    id: UUID
    object: str
    key: bytes = field(repr=False)


class Layout(BaseModel, frozen=True, strict=True):
    """The columns of an archived row, in order: the personal columns, then the key, then the rest.

    A key that is personal itself stands among the personal columns.

    They are read from the manifest in the catalogue. The object's header must agree, but is never the source.
    """

    key: tuple[str, ...]
    personal: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    """Name and type of each column at the time of archiving, in the order of a row's values."""

    @field_validator("key", mode="before")
    @classmethod
    def _one_or_many(cls, key: object) -> object:
        return (key,) if isinstance(key, str) else tuple(key) if isinstance(key, list) else key

    @model_validator(mode="after")
    def _in_order(self) -> Layout:
        names = self.names
        if len(set(names)) < len(names) or not self.key or names[: len(self._first)] != self._first:
            raise ValueError("columns must be the personal ones, then the key, then the rest, each once")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, in their order."""
        return tuple(name for name, _ in self.columns)

    @property
    def _first(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.personal + self.key))


@dataclass(frozen=True)
class Entry:
    """A row of ops.archives."""

    id: UUID
    policy: str
    table_name: str
    object: str
    status: str
    row_count: int | None
    bytes: int | None
    sha256: str | None
    oldest: str | None
    newest: str | None
    manifest_text: str | None = field(repr=False)
    """The manifest as text. It is parsed on demand, so that one unreadable line does not break a list of all."""
    created_at: datetime
    sealed_at: datetime | None

    @property
    def manifest(self) -> dict[str, Any]:
        """What the run noted about the object when it had uploaded it: header, row count, hashes.

        Raises:
            ArchiveBroken: The manifest is missing or is no JSON object.
        """
        try:
            found = strict_json.loads(self.manifest_text or "null")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._unreadable()
        return found

    @property
    def layout(self) -> Layout:
        """The columns of the archive's rows.

        Raises:
            ArchiveBroken: The manifest does not describe them.
        """
        try:
            return Layout.model_validate_json(self.manifest_text or "null")
        except ValidationError:
            raise self._unreadable() from None

    def _unreadable(self) -> ArchiveBroken:
        return ArchiveBroken(
            f"archive {self.object}: its line in ops.archives (manifest) does not describe an archive; restore that"
            " line from a backup"
        )


class Catalogue:
    """Writes the states of archives.

    Args:
        database: The database with ops.archives.
        store: The store with the objects.
        keys: Makes and opens the objects' keys.
    """

    def __init__(self, database: Database, store: ArchiveStore, keys: ArchiveKeys) -> None:
        self._database = database
        self._store = store
        self._keys = keys

    def begin(self, policy: Policy, run_id: UUID) -> Begun:
        """Insert an archive in status ``writing``, with a new key, before any byte goes to the store."""
        archive = uuid4()
        name = f"{policy.name}/{archive}.archive"

        def work(connection: Connection) -> bytes | None:
            noted = connection.execute(
                "INSERT INTO ops.archives (id, policy, table_name, object, run_id) VALUES (%s, %s, %s, %s, %s)"
                " ON CONFLICT (id) DO NOTHING",
                (archive, policy.name, policy.table, name, run_id),
            )
            return self._keys.new_object_key(connection, archive) if noted.rowcount else None

        # None: the row is there, because only the answer to an earlier COMMIT was lost.
        key = self._database.write(work) or self._keys.object_key(archive)
        return Begun(archive, name, key)

    def uploaded(
        self, begun: Begun, written: Written, manifest: dict[str, Any], oldest: str | None, newest: str | None
    ) -> None:
        """Note size, hashes and manifest of the uploaded object, before it is read back.

        Args:
            begun: The archive, in status ``writing``.
            written: Row count, size in bytes and hashes of the object.
            manifest: The header, with row count and hashes.
            oldest: Anchor of the oldest row, as PostgreSQL's text.
            newest: Anchor of the newest row.
        """
        self._database.write(
            lambda connection: connection.execute(
                "UPDATE ops.archives SET row_count = %s, bytes = %s, sha256 = %s, manifest = %s, oldest = %s,"
                " newest = %s WHERE id = %s AND status = 'writing'",
                (written.rows, written.bytes, written.sha256, Jsonb(manifest), oldest, newest, begun.id),
            )
        )

    def discard(self, archive: UUID, name: str) -> bool:
        """Remove an archive that was not sealed: first its object, then its row and its key.

        A transaction that is about to seal the archive holds a row lock on it. The UPDATE here waits for that lock and
        then finds the status ``sealed``, so an object that rows were deleted for is never removed.

        Returns:
            Whether it was removed; False: the archive was sealed meanwhile.

        Raises:
            ArchiveStoreFailed: The store did not delete the object; the next run tries again.
        """
        claimed = self._database.write(
            lambda connection: (
                connection.execute(
                    "UPDATE ops.archives SET status = 'discarded' WHERE id = %s AND status IN ('writing', 'discarded')",
                    (archive,),
                ).rowcount
            )
        )
        if not claimed:
            return False
        self._store.delete(name)
        self._database.write(
            lambda connection: connection.execute(
                "DELETE FROM ops.archives WHERE id = %s AND status = 'discarded'", (archive,)
            )
        )
        return True

    def unfinished(self) -> list[Entry]:
        """Return the unsealed archives whose run is not running any more."""
        return self._database.read(
            lambda connection: [
                entry
                for entry in entries(connection, statuses=["writing", "discarded"])
                if connection.execute(
                    "SELECT FROM ops.archives a JOIN ops.job_runs r ON r.id = a.run_id"
                    " WHERE a.id = %s AND r.status = 'running'",
                    (entry.id,),
                ).fetchone()
                is None
            ]
        )

    def is_sealed(self, archive: UUID) -> bool:
        """Tell whether an archive was sealed, after the answer to its COMMIT was lost."""
        with self._database.closing_gate() as connection:
            row = connection.execute("SELECT status FROM ops.archives WHERE id = %s", (archive,)).fetchone()
        return row is not None and row[0] == "sealed"


def entries(
    connection: Connection,
    *,
    policy: str | None = None,
    ids: list[UUID] | None = None,
    statuses: list[str] | None = None,
) -> list[Entry]:
    """Return rows of ops.archives, the newest first.

    Args:
        connection: Where to read.
        policy: Only this policy's; None: every policy's.
        ids: Only these archives; None: all.
        statuses: Only archives in one of these states; None: in any.
    """
    with connection.cursor(row_factory=class_row(Entry)) as cursor:
        return cursor.execute(
            f"SELECT {_COLUMNS} FROM ops.archives"  # noqa: S608 - a constant
            " WHERE policy = coalesce(%s, policy) AND (%s::uuid[] IS NULL OR id = ANY(%s::uuid[]))"
            " AND (%s::text[] IS NULL OR status = ANY(%s::text[])) ORDER BY created_at DESC, id",
            (policy, ids, ids, statuses, statuses),
        ).fetchall()
