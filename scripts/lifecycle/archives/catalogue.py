"""The catalogue of archives: ops.archives.

Its states: ``writing`` (an object may be in the store, whole, in part or not at all; nothing was deleted for it)
becomes ``sealed`` in the very transaction that deletes its rows, or ``discarded`` and is gone with its object.
``sealed`` becomes ``expiring`` when the archive's own period has ended, and ``expired`` once the store has deleted the
object. What a crash left ``writing``, ``discarded`` or ``expiring`` is taken up by the next run.
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
from scripts.utils.moments import AnyMomentLoader

_COLUMNS = (
    "id, policy, table_name, object, status, row_count, bytes, sha256, oldest::text, newest::text,"
    " manifest::text AS manifest_text, created_at, sealed_at"
)


@dataclass(frozen=True)
class Begun:
    """An archive that is being written."""

    id: UUID
    object: str
    key: bytes = field(repr=False)


class Layout(BaseModel, frozen=True, strict=True):
    """What a row of an archive consists of: its personal columns, then its key, then the rest.

    It is read from the catalogue's manifest. The object's header must say the same, but nothing is taken from it.
    """

    key: tuple[str, ...]
    personal: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    """Name and type of each when it was archived, in the order of a row's values."""

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
        return self.personal + self.key


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue."""

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
    """As text: one line that nobody can read must not keep the others from being read."""
    created_at: datetime
    sealed_at: datetime | None

    @property
    def manifest(self) -> dict[str, Any]:
        """What was noted of the object when it went to the store.

        Raises:
            ArchiveBroken: It cannot be read.
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
        """What its rows consist of.

        Raises:
            ArchiveBroken: The catalogue does not say it.
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
    """What is archived, and where.

    Args:
        database: Where ops.archives is.
        store: Where the objects are.
        keys: The keys.
    """

    def __init__(self, database: Database, store: ArchiveStore, keys: ArchiveKeys) -> None:
        self._database = database
        self._store = store
        self._keys = keys

    def begin(self, policy: Policy, run_id: UUID) -> Begun:
        """Note an archive before anything of it is in the store, with a key that was never used."""
        archive = uuid4()
        name = f"{policy.name}/{archive}.archive"

        def work(connection: Connection) -> bytes | None:
            noted = connection.execute(
                "INSERT INTO ops.archives (id, policy, table_name, object, run_id) VALUES (%s, %s, %s, %s, %s)"
                " ON CONFLICT (id) DO NOTHING",
                (archive, policy.name, policy.table, name, run_id),
            )
            return self._keys.new_object_key(connection, archive) if noted.rowcount else None

        # None: the answer to an earlier COMMIT was lost.
        key = self._database.write(work) or self._keys.object_key(archive)
        return Begun(archive, name, key)

    def uploaded(
        self, begun: Begun, written: Written, manifest: dict[str, Any], oldest: str | None, newest: str | None
    ) -> None:
        """Note what went to the store, before it is read back."""
        self._database.write(
            lambda connection: connection.execute(
                "UPDATE ops.archives SET row_count = %s, bytes = %s, sha256 = %s, manifest = %s, oldest = %s,"
                " newest = %s WHERE id = %s AND status = 'writing'",
                (written.rows, written.bytes, written.sha256, Jsonb(manifest), oldest, newest, begun.id),
            )
        )

    def discard(self, archive: UUID, name: str) -> bool:
        """Remove an archive that was not sealed: its object, then its line with its key.

        Whoever is about to seal it holds its line, so this waits, and then finds it sealed: an object that rows were
        deleted for is never touched.

        Returns:
            Whether it was removed.
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
        """Return what runs that are over have left behind."""
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
        """Settle a COMMIT whose answer was lost."""
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
    """Return lines of the catalogue, the newest first."""
    with connection.cursor(row_factory=class_row(Entry)) as cursor:
        cursor.adapters.register_loader("timestamptz", AnyMomentLoader)
        return cursor.execute(
            f"SELECT {_COLUMNS} FROM ops.archives"  # noqa: S608 - a constant
            " WHERE policy = coalesce(%s, policy) AND (%s::uuid[] IS NULL OR id = ANY(%s::uuid[]))"
            " AND (%s::text[] IS NULL OR status = ANY(%s::text[])) ORDER BY created_at DESC, id",
            (policy, ids, ids, statuses, statuses),
        ).fetchall()
