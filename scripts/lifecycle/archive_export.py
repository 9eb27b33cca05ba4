"""One archive's way out: rows leave PostgreSQL by COPY, are sealed, and reach the store as a stream.

A row's version goes along (ctid and xmin): together they name one version of one row for as long as an archive takes,
because a transaction's number never stands on a version written after that transaction. The DELETE asks for it again.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import psycopg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import sql

from scripts.lifecycle.archive_catalogue import Begun, Catalogue
from scripts.lifecycle.archive_format import NOBODY, Block, ObjectWriter, Written, seal_for
from scripts.lifecycle.archive_keys import ArchiveKeys
from scripts.lifecycle.gated import Context
from scripts.lifecycle.policies import Archive, Policy
from scripts.lifecycle.selection import Selection
from scripts.lifecycle.windows import Window
from scripts.utils.archive_store import ArchiveStore
from scripts.utils.db_utils import Connection, Database
from scripts.utils.errors import OpsError

BLOCK_ROWS = 2_000
BLOCK_BYTES = 4 * 1024 * 1024
# As long as one archive may take; its snapshot keeps vacuum from cleaning up.
EXPORT_SECONDS = 3600.0

# What a value looks like as text must not depend on how server, role or session are set.
TEXT_SETTINGS = (
    "SELECT set_config('DateStyle', 'ISO, YMD', true), set_config('IntervalStyle', 'postgres', true),"
    " set_config('extra_float_digits', '1', true), set_config('bytea_output', 'hex', true),"
    " set_config('TimeZone', 'UTC', true)"
)

# A generated column is worked out anew by whoever restores.
_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
 WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum
"""
_COPY = sql.SQL("""
COPY (SELECT t.{key}::text, t.ctid, t.xmin, CASE {anchors} END, {columns} FROM {table} t
       WHERE {rows} AND {removable} AND t.{key}::text <> ALL(%(excluded)s::text[])) TO STDOUT (ENCODING 'UTF8')
""")
_ESCAPES = {
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
}
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_NULL = b"\\N"


@dataclass(frozen=True)
class Column:
    """A column of the table when it was archived."""

    name: str
    type: str


@dataclass(frozen=True)
class Exported:
    """An archive in the store, and which versions of which rows it holds; the lists as PostgreSQL writes arrays."""

    begun: Begun
    written: Written
    keys: list[str]
    tids: str
    xmins: str
    calls: int
    """Statements that were sent for it, each a transaction."""


def unescaped(field: bytes) -> bytes:
    """Return the text that COPY wrote as a field."""
    if b"\\" not in field:
        return field
    return _ESCAPED.sub(lambda match: _ESCAPES.get(match[1], match[1]), field)


class Exporter:
    """Writes one policy's archives.

    Args:
        database: Where the rows are.
        selection: Which rows.
        context: The run.
        catalogue: Where archives are noted.
        store: Where they go.
        keys: What seals them.
        between: Called between blocks; may raise to stop, for nothing is deleted yet.
        about: What every header says: the policy file's hash and the version of the suite.
    """

    def __init__(
        self,
        database: Database,
        selection: Selection,
        context: Context,
        *,
        catalogue: Catalogue,
        store: ArchiveStore,
        keys: ArchiveKeys,
        between: Callable[[], None],
        about: dict[str, str],
    ) -> None:
        self._database = database
        self._selection = selection
        self._policy: Policy = selection.policy
        self._archive = archive_of(selection.policy)
        self._context = context
        self._catalogue = catalogue
        self._store = store
        self._keys = keys
        self._between = between
        self._about = about

    def export(self, window: Window, excluded: list[str]) -> Exported | None:
        """Write what is due in a window to the store, and note it in the catalogue.

        Returns:
            None: nothing there is due.

        Raises:
            ArchiveStoreFailed: The store did not take it; nothing is left behind if the store still answers.
        """
        with (
            self._database.transaction(read_only=True, statement_timeout=EXPORT_SECONDS) as snapshot,
            self._database.connection() as keyring,
        ):
            snapshot.execute(TEXT_SETTINGS)
            snapshot.execute("SELECT set_config('enable_seqscan', 'off', true)")  # as in a batch
            columns = columns_of(snapshot, self._policy)
            parameters = self._selection.parameters | window.parameters | {"excluded": excluded}
            with snapshot.cursor().copy(self._copy(window, columns), parameters) as copy:
                blocks = _blocks(bytes(line) for line in copy)
                first = next(blocks, None)
                if first is None:
                    return None
                return self._write(columns, first, blocks, keyring)

    def _copy(self, window: Window, columns: list[Column]) -> sql.Composed:
        selection = self._selection
        person = sql.SQL("t.{}::text").format(sql.Identifier(self._policy.person)) if self._policy.person else "NULL"
        names = [sql.SQL("t.{}").format(sql.Identifier(column.name)) for column in columns]
        return _COPY.format(
            key=selection.key,
            anchors=sql.SQL(" ").join(
                sql.SQL("WHEN {} THEN {}").format(
                    selection.rule(name), selection.instant(self._policy.rules[name].anchor)
                )
                for name in selection.due_before
            ),
            columns=sql.SQL(", ").join([sql.SQL(person) if isinstance(person, str) else person, *names]),
            table=selection.table,
            rows=window.clause,
            removable=selection.removable,
        )

    def _write(
        self, columns: list[Column], first: list[bytes], blocks: Iterator[list[bytes]], keyring: Connection
    ) -> Exported:
        begun = self._catalogue.begin(self._policy, self._context.run_id)
        personal = [column.name for column in columns if column.name in self._archive.personal]
        header = {
            "format": 1,
            "archive": str(begun.id),
            "policy": self._policy.name,
            "table": self._policy.table,
            "key": self._policy.key,
            "personal": personal,
            "columns": [[column.name, column.type] for column in columns],
            **self._about,
        }
        try:
            return self._stream(begun, header, _Contents(begun, self._keys, keyring, len(personal)), first, blocks)
        except BaseException:
            # What cannot be removed now stays 'writing', and the next run tries again.
            with suppress(OpsError, psycopg.Error):
                self._catalogue.discard(begun.id, begun.object)
            raise

    def _stream(
        self,
        begun: Begun,
        header: dict[str, Any],
        contents: _Contents,
        first: list[bytes],
        blocks: Iterator[list[bytes]],
    ) -> Exported:
        with self._store.writing(begun.object) as out:
            writer = ObjectWriter(out, begun.key, header)
            for lines in chain([first], blocks):
                writer.add(contents.block(lines))
                self._between()
            written = writer.finish()
        manifest = header | {
            "rows": written.rows,
            "oldest": contents.oldest,
            "newest": contents.newest,
            "sha256": written.sha256,
            "content_sha256": written.content_sha256,
        }
        self._catalogue.uploaded(begun, written, manifest, contents.oldest, contents.newest)
        return Exported(
            begun,
            written,
            [key.decode() for key in contents.keys],
            _array(contents.tids),
            _array(contents.xmins),
            contents.calls,
        )


class _Contents:
    """Turns lines into blocks, and remembers what the DELETE has to ask for."""

    def __init__(self, begun: Begun, keys: ArchiveKeys, keyring: Connection, personal: int) -> None:
        self._archive = begun.id.bytes
        self._store_keys = keys
        self._keyring = keyring
        self._personal = personal
        # For this archive only: a key that is destroyed meanwhile must not be used for the next one.
        self._ciphers: dict[bytes, tuple[int, AESGCM]] = {}
        self.keys: list[bytes] = []
        self.tids: list[bytes] = []
        self.xmins: list[bytes] = []
        self.oldest: str | None = None
        self.newest: str | None = None
        self.calls = 0

    def block(self, lines: list[bytes]) -> Block:
        fields = [line.split(b"\t", 5 + self._personal) for line in lines]
        keys, tids, xmins, moments, people, *_ = zip(*fields, strict=True)
        self.keys += keys
        self.tids += tids
        self.xmins += xmins
        oldest, newest = min(moments).decode(), max(moments).decode()  # ISO, in one zone: their text is in their order
        self.oldest = oldest if self.oldest is None else min(self.oldest, oldest)
        self.newest = newest if self.newest is None else max(self.newest, newest)
        places: dict[bytes, int] = {}
        owners = array("I", [NOBODY if whose == _NULL else places.setdefault(whose, len(places)) for whose in people])
        own: list[bytes] = []
        lots: list[list[bytes]] = [[] for _ in places]
        last = 5 + self._personal
        for row, owner in zip(fields, owners, strict=True):
            line = b"\t".join(row[5:last]) + b"\n"
            (own if owner == NOBODY else lots[owner]).append(line)
        ciphers = self._ciphers_of(list(places))
        sealed = [
            seal_for(cipher, key_id, self._archive, b"".join(lot))
            for (key_id, cipher), lot in zip(ciphers, lots, strict=True)
        ]
        return Block(b"".join([row[last] for row in fields]), b"".join(own), owners, sealed)

    def _ciphers_of(self, people: list[bytes]) -> list[tuple[int, AESGCM]]:
        new = [person for person in people if person not in self._ciphers]
        if new:
            pseudonyms = self._store_keys.pseudonyms(map(unescaped, new))
            found = self._store_keys.people(self._keyring, sorted(set(pseudonyms)))
            self.calls += 3
            for person, pseudonym in zip(new, pseudonyms, strict=True):
                key_id, key = found[pseudonym]
                self._ciphers[person] = (key_id, AESGCM(key))
        return [self._ciphers[person] for person in people]


def archive_of(policy: Policy) -> Archive:
    """Return what the policy says of archives."""
    if policy.archive is None:
        raise ValueError(f"policy {policy.name} archives nothing")
    return policy.archive


def columns_of(connection: Connection, policy: Policy) -> list[Column]:
    """Return the table's columns as they are archived: the personal ones first, then the key."""
    personal = archive_of(policy).personal
    name = sql.SQL(".").join(map(sql.Identifier, policy.table.split("."))).as_string(connection)
    types = dict(connection.execute(_COLUMNS, (name,)).fetchall())
    order = dict.fromkeys([*(each for each in personal if each in types), policy.key, *types])
    return [Column(each, types[each]) for each in order]


def _blocks(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line)
        if len(block) >= BLOCK_ROWS or size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _array(values: list[bytes]) -> str:
    """Write an array as PostgreSQL does; of numbers and places in a table only."""
    return '{"' + b'","'.join(values).decode() + '"}'
