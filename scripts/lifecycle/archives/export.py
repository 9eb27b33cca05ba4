"""One archive's way out: rows leave PostgreSQL by COPY, are sealed, and reach the store as a stream.

A row's version goes along (ctid and xmin): together they name one version of one row for as long as an archive takes,
because a transaction's number never stands on a version written after that transaction. The DELETE asks for it again.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import select
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count, repeat
from typing import Any

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus

from scripts.lifecycle.archives.catalogue import Begun, Catalogue
from scripts.lifecycle.archives.format import NOBODY, NONCE_BYTES, Block, ObjectWriter, Written, pack, unescaped
from scripts.lifecycle.archives.keys import ArchiveKeys
from scripts.lifecycle.engine.gated import Context
from scripts.lifecycle.engine.selection import Selection, normal_address
from scripts.lifecycle.engine.windows import Window
from scripts.lifecycle.policy.policies import Archive, Policy, parts_of
from scripts.utils import composing as sql
from scripts.utils.archive_store import ArchiveStore
from scripts.utils.db_utils import Connection, Database
from scripts.utils.errors import OpsError

BLOCK_ROWS = 5_000
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
COPY (SELECT {id}, t.ctid, t.xmin, CASE {anchors} END, {person}{personal}, {mark}, {rest} FROM {table} t
       WHERE {rows} AND {removable} AND {id} <> ALL(%(excluded)s::text[])) TO STDOUT (ENCODING 'UTF8')
""")
_ESCAPED_KEY = re.compile(r"\\(.)")
_NULL = b"\\N"
_BROKEN = -2  # of PQgetCopyData


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
    keys: str
    tids: str
    xmins: str
    calls: int
    """Statements that were sent for it, each a transaction."""

    @property
    def digest(self) -> str:
        """Of its rows' versions, as ops.drop_partition works it out anew: "ctid xmin key" each, sorted by bytes."""
        tids, xmins = (each[2:-2].split('","') for each in (self.tids, self.xmins))
        lines = sorted(map(" ".join, zip(tids, xmins, self.key_list(), strict=True)))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def key_list(self) -> list[str]:
        """Return the keys of its rows."""
        # A quotation mark within a key has a backslash before it.
        keys = self.keys[2:-2].split('","')
        return [_ESCAPED_KEY.sub(r"\1", key) for key in keys] if "\\" in self.keys else keys


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
            self._database.snapshot(statement_timeout=EXPORT_SECONDS) as snapshot,
            self._database.connection() as keyring,
        ):
            snapshot.execute(TEXT_SETTINGS)
            snapshot.execute("SELECT set_config('enable_seqscan', 'off', true)")  # as in a batch
            columns = columns_of(snapshot, self._policy)
            parameters = self._selection.parameters | window.parameters | {"excluded": excluded}
            # Between what is personal and what is not; no value can be it, because nobody knows it beforehand.
            mark = secrets.token_hex(8)
            blocks = _blocks(copied(snapshot, self._copy(window, columns, mark), parameters))
            first = next(blocks, None)
            if first is None:
                return None
            return self._write(columns, first, blocks, keyring, mark)

    def _copy(self, window: Window, columns: list[Column], mark: str) -> sql.Composed:
        selection = self._selection
        # The person's key is found by her normal address, however the row spells her.
        person = normal_address("t", self._policy.person) if self._policy.person else sql.SQL("NULL").format()
        personal = [column for column in columns if column.name in self._archive.personal]
        rest = [column for column in columns if column.name not in self._archive.personal]
        return _COPY.format(
            id=selection.record.id("t"),
            anchors=sql.SQL(" ").join(
                sql.SQL("WHEN {} THEN {}").format(
                    selection.rule(name), selection.instant(self._policy.rules[name].anchor)
                )
                for name in selection.due_before
            ),
            person=person,
            personal=sql.Composed([sql.SQL(", t.{}").format(sql.Identifier(column.name)) for column in personal]),
            mark=sql.Literal(mark),
            rest=sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(column.name)) for column in rest),
            table=selection.table,
            rows=window.clause,
            removable=selection.droppable,
        )

    def _write(
        self, columns: list[Column], first: list[bytes], blocks: Iterator[list[bytes]], keyring: Connection, mark: str
    ) -> Exported:
        begun = self._catalogue.begin(self._policy, self._context.run_id)
        personal = [column.name for column in columns if column.name in self._archive.personal]
        header = {
            "format": 1,
            "archive": str(begun.id),
            "policy": self._policy.name,
            "table": self._policy.table,
            "key": self._policy.key[0] if len(self._policy.key) == 1 else self._policy.key,
            "personal": personal,
            "columns": [[column.name, column.type] for column in columns],
            **self._about,
        }
        try:
            return self._stream(begun, header, _Contents(begun, self._keys, keyring, mark), first, blocks)
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
            _array(_quoted(contents.keys)),
            _array(contents.tids),
            _array(contents.xmins),
            contents.calls,
        )


class _Contents:
    """Turns lines into blocks, and remembers what the DELETE has to ask for."""

    def __init__(self, begun: Begun, keys: ArchiveKeys, keyring: Connection, mark: str) -> None:
        self._archive = begun.id.bytes
        self._store_keys = keys
        self._keyring = keyring
        self._mark = b"\t" + mark.encode() + b"\t"
        self.keys: list[bytes] = []
        self.tids: list[bytes] = []
        self.xmins: list[bytes] = []
        self.oldest: str | None = None
        self.newest: str | None = None
        self.calls = 0

    def block(self, lines: list[bytes]) -> Block:
        mark = self._mark
        halves = [line.split(mark, 1) for line in lines]
        fields = [left.split(b"\t", 5) for left, _ in halves]
        keys, tids, xmins, moments, people, *own = zip(*fields, strict=True)
        self.keys += keys
        self.tids += tids
        self.xmins += xmins
        oldest, newest = min(moments).decode(), max(moments).decode()  # ISO, in one zone: their text is in their order
        self.oldest = oldest if self.oldest is None else min(self.oldest, oldest)
        self.newest = newest if self.newest is None else max(self.newest, newest)
        lots: dict[bytes, list[bytes]] = {}
        for whose, personal in zip(people, own[0] if own else repeat(b""), strict=False):
            if whose in lots:
                lots[whose].append(personal)
            else:
                lots[whose] = [personal]
        nobody = lots.pop(_NULL, [])
        places = dict(zip(lots, count(), strict=False)) | {_NULL: NOBODY}
        nonces = os.urandom(NONCE_BYTES * len(lots))
        packed = pack(self._keys_of(list(lots)), lots.values(), self._archive, nonces)
        return Block(
            b"".join([rest for _, rest in halves]),
            b"".join([line + b"\n" for line in nobody]),
            array("I", map(places.__getitem__, people)),
            b"".join(packed),
        )

    def _keys_of(self, people: list[bytes]) -> list[tuple[int, bytes]]:
        if not people:
            return []
        pseudonyms = self._store_keys.pseudonyms(map(unescaped, people))
        # For this block only: a key that is destroyed meanwhile must not be used for the next one.
        # In one order: two archives that are written at once may make keys for the same people.
        found = self._store_keys.people(self._keyring, sorted(set(pseudonyms)))
        self.calls += 3
        return [found[pseudonym] for pseudonym in pseudonyms]


def archive_of(policy: Policy) -> Archive:
    """Return what the policy says of archives."""
    if policy.archive is None:
        raise ValueError(f"policy {policy.name} archives nothing")
    return policy.archive


def columns_of(connection: Connection, policy: Policy) -> list[Column]:
    """Return the table's columns as they are archived: the personal ones first, then the key."""
    personal = archive_of(policy).personal
    name = sql.quoted(*parts_of(policy.table))
    types = dict(connection.execute(_COLUMNS, (name,)).fetchall())
    order = dict.fromkeys([*(each for each in personal if each in types), *policy.key, *types])
    return [Column(each, types[each]) for each in order]


def copied(connection: Connection, statement: sql.Composed, parameters: dict[str, Any]) -> Iterator[bytes]:
    """Return the lines of a COPY TO STDOUT as they come.

    Straight from libpq: psycopg's own loop costs more for each line than all that is done with it here.

    Raises:
        psycopg.Error: What the server refused.
    """
    pgconn = connection.pgconn
    query = psycopg.ClientCursor(connection).mogrify(statement, parameters).encode()
    result = pgconn.exec_(query)
    if result.status != ExecStatus.COPY_OUT:
        raise error_from_result(result, encoding="utf-8")
    finished = False
    arrived = select.poll()
    arrived.register(pgconn.socket, select.POLLIN)
    try:
        while True:
            length, line = pgconn.get_copy_data(1)
            if length > 0:
                yield bytes(line)
            elif length == 0:
                # Not inside libpq: it would keep every other thread from running, the lock's renewal among them.
                arrived.poll()
                pgconn.consume_input()
            else:
                break
        finished = True
        if length == _BROKEN:
            raise psycopg.OperationalError("the connection broke while rows were read")
        while ended := pgconn.get_result():
            if ended.status != ExecStatus.COMMAND_OK:
                raise error_from_result(ended, encoding="utf-8")
    finally:
        if not finished:
            _abandon(connection)


def _abandon(connection: Connection) -> None:
    """End a COPY that nobody reads any more, so that its transaction can be rolled back."""
    pgconn = connection.pgconn
    with suppress(psycopg.Error):  # of a broken connection there is nothing to end
        connection.cancel_safe(timeout=5)
        while pgconn.get_copy_data(0)[0] > 0:
            pass
        while pgconn.get_result():
            pass


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


def _quoted(keys: list[bytes]) -> list[bytes]:
    """Return keys as COPY wrote them for :func:`_array`: those of several columns hold quotation marks."""
    if not keys[0].startswith(b"["):
        return keys
    return [unescaped(key).replace(b"\\", b"\\\\").replace(b'"', b'\\"') for key in keys]


def _array(values: list[bytes]) -> str:
    """Write an array as PostgreSQL does, of what holds no quotation marks and backslashes or has them escaped."""
    return '{"' + b'","'.join(values).decode() + '"}'
