"""Export of one archive: COPY reads the rows, they are encrypted, and they reach the store as a stream.

Each row is exported with its ctid and xmin. Together they identify one version of one row for as long as an archive
takes, because no version that is written later can carry the xmin of an earlier transaction. The DELETE asks for both
again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import select
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
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
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.sections import Archive
from scripts.lifecycle.policy.tables import parts_of
from scripts.utils import composing as sql
from scripts.utils.archive_store import ArchiveStore
from scripts.utils.db_utils import Connection, Database
from scripts.utils.errors import OpsError

BLOCK_ROWS = 5_000
BLOCK_BYTES = 4 * 1024 * 1024
# Seconds that one archive may take. Its snapshot keeps vacuum from removing dead rows for as long.
EXPORT_SECONDS = 3600.0

# The text of a value must not depend on the settings of server, role or session.
TEXT_SETTINGS = (
    "SELECT set_config('DateStyle', 'ISO, YMD', true), set_config('IntervalStyle', 'postgres', true),"
    " set_config('extra_float_digits', '1', true), set_config('bytea_output', 'hex', true),"
    " set_config('TimeZone', 'UTC', true)"
)

# Without generated columns: PostgreSQL computes them again when a row is restored.
_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
 WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum
"""
# Children of one table may have rows of one key: an archive says in which child each row was. Partitions may not.
_HAS_CHILDREN = """
SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhparent WHERE c.oid = %s::regclass AND c.relkind = 'r'
"""
HOME = "tableoid"
"""The name of the archive's column with a row's own table, quoted for SQL. No column of a table can have this name."""
_HOME_OF = sql.SQL(
    "(SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = t.tableoid)"
).format()
_COPY = sql.SQL("""
COPY (SELECT {id}, t.tableoid, t.ctid, t.xmin, CASE {anchors} END, {person}{personal}, {mark}, {rest} FROM {table} t
       WHERE {rows} AND {removable} AND {id} <> ALL(%(excluded)s::text[])) TO STDOUT (ENCODING 'UTF8')
""")
_NULL = b"\\N"
_HYPHEN, _ZERO = b"-0"
_BROKEN = -2  # of PQgetCopyData


@dataclass(frozen=True)
class Column:
    """A column of the table at the time of archiving."""

    name: str
    type: str


@dataclass(frozen=True)
class Exported:
    """An uploaded archive, and which versions of which rows it holds. The lists are array literals of PostgreSQL."""

    begun: Begun
    written: Written
    texts: list[bytes] = field(repr=False)
    """The keys as COPY wrote them."""
    homes: str
    """The table, partition or child (oid) of each row: a ctid names a row in each of them."""
    tids: str
    xmins: str

    @property
    def digest(self) -> str:
        """SHA-256 over "ctid xmin key" of every row, sorted by bytes, as ops.drop_partition computes it too."""
        tids, xmins = (each[2:-2].split('","') for each in (self.tids, self.xmins))
        lines = sorted(map(" ".join, zip(tids, xmins, self.key_list(), strict=True)))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def keys(self) -> str:
        """The keys of the archive's rows, as an array literal."""
        return _array(_quoted(self.texts))

    @property
    def rows(self) -> set[tuple[str, str]]:
        """The table (oid) and the key of each row."""
        return set(zip(self.homes[2:-2].split('","'), self.key_list(), strict=True))

    def key_list(self) -> list[str]:
        """Return the keys of the archive's rows."""
        return [unescaped(text).decode() for text in self.texts]


class Exporter:
    """Writes one policy's archives.

    Args:
        database: The database with the rows.
        selection: Which rows are due.
        context: Names the run.
        catalogue: Notes the archives.
        store: Takes the objects.
        keys: Makes and opens the keys.
        between: Called between blocks; may raise to stop, because nothing was deleted so far.
        about: What every header also says: the policy file's hash and the version of the suite.
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

    def export(self, window: Window, excluded: list[str], *, nameable: bool) -> Exported | None:
        """Write the due rows of a window to the store, and note the archive in the catalogue.

        Args:
            window: Which part of the table.
            excluded: Keys of rows that are left out.
            nameable: Leave out rows whose key may be personal.

        Returns:
            The archive; None: no row of the window is due.

        Raises:
            ArchiveStoreFailed: The store did not take the object. It is discarded, if the store still answers.
        """
        with (
            self._database.snapshot(statement_timeout=EXPORT_SECONDS) as snapshot,
            self._database.connection() as keyring,
        ):
            snapshot.execute(TEXT_SETTINGS)
            snapshot.execute("SELECT set_config('enable_seqscan', 'off', true)")  # as in a batch
            columns = columns_of(snapshot, self._policy)
            parameters = self._selection.parameters | window.parameters | {"excluded": excluded}
            # Separates personal from other columns. It is random, so no value of a row can contain it on purpose.
            mark = secrets.token_hex(8)
            blocks = _blocks(copied(snapshot, self._copy(window, columns, mark, nameable=nameable), parameters))
            first = next(blocks, None)
            if first is None:
                return None
            return self._write(columns, first, blocks, keyring, mark)

    def _copy(self, window: Window, columns: list[Column], mark: str, *, nameable: bool) -> sql.Composed:
        selection = self._selection
        # The person's key is found by the normalized address, however the row spells the address.
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
            rest=sql.SQL(", ").join(
                _HOME_OF if column.name == HOME else sql.SQL("t.{}").format(sql.Identifier(column.name))
                for column in rest
            ),
            table=selection.table,
            rows=window.clause,
            removable=selection.droppable if nameable else selection.removable,
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
            # If it cannot be removed now, it stays in status writing, and the next run removes it.
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
            "oldest": contents.oldest.decode(),
            "newest": contents.newest.decode(),
            "sha256": written.sha256,
            "content_sha256": written.content_sha256,
        }
        self._catalogue.uploaded(begun, written, manifest, contents.oldest.decode(), contents.newest.decode())
        return Exported(
            begun,
            written,
            contents.keys,
            _array(contents.homes),
            _array(contents.tids),
            _array(contents.xmins),
        )


class _Contents:
    """Turns lines of COPY into blocks, and collects keys, ctids and xmins for the DELETE."""

    def __init__(self, begun: Begun, keys: ArchiveKeys, keyring: Connection, mark: str) -> None:
        self._archive = begun.id.bytes
        self._store_keys = keys
        self._keyring = keyring
        self._mark = b"\t" + mark.encode() + b"\t"
        self.keys: list[bytes] = []
        self.homes: list[bytes] = []
        self.tids: list[bytes] = []
        self.xmins: list[bytes] = []
        self.oldest = b""
        self.newest = b""

    def block(self, lines: list[bytes]) -> Block:
        mark = self._mark
        halves = [line.split(mark, 1) for line in lines]
        fields = [left.split(b"\t", 6) for left, _ in halves]
        keys, homes, tids, xmins, moments, people, *own = zip(*fields, strict=True)
        self.keys += keys
        self.homes += homes
        self.tids += tids
        self.xmins += xmins
        # Text of ISO moments in one zone is in the order of time, which is far cheaper to compare; but for odd ones.
        odd = any(each[4] != _HYPHEN or each[-1] != _ZERO for each in moments)
        oldest, newest = min(moments, key=_in_time if odd else None), max(moments, key=_in_time if odd else None)
        self.oldest = min(oldest, self.oldest or oldest, key=_in_time)
        self.newest = max(newest, self.newest or newest, key=_in_time)
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
        # Looked up for each block: a key that an erasure destroys meanwhile must not be used for the next block.
        # Sorted: two archives that are written at once may insert keys for the same people, and would deadlock.
        found = self._store_keys.people(self._keyring, sorted(set(pseudonyms)))
        return [found[pseudonym] for pseudonym in pseudonyms]


def _in_time(moment: bytes) -> tuple[int, int, bytes]:
    """Return what sorts PostgreSQL's text of moments (ISO, UTC) by time, also infinities and years BC or after 9999."""
    if moment.endswith(b"infinity"):
        return (-1 if moment.startswith(b"-") else 1), 0, b""
    year, _, rest = moment.partition(b"-")
    return 0, -int(year) if moment.endswith(b"BC") else int(year), rest


def archive_of(policy: Policy) -> Archive:
    """Return the policy's ``archive`` section.

    Raises:
        ValueError: The policy does not archive.
    """
    if policy.archive is None:
        raise ValueError(f"policy {policy.name} archives nothing")
    return policy.archive


def columns_of(connection: Connection, policy: Policy) -> list[Column]:
    """Return the table's columns in the order of the archive: the personal ones, then the key, then the rest."""
    personal = archive_of(policy).personal
    name = sql.quoted(*parts_of(policy.table))
    types = dict(connection.execute(_COLUMNS, (name,)).fetchall())
    if connection.execute(_HAS_CHILDREN, (name,)).fetchone() is not None:
        types[HOME] = "text"
    order = dict.fromkeys([*(each for each in personal if each in types), *policy.key, *types])
    return [Column(each, types[each]) for each in order]


def copied(connection: Connection, statement: sql.Composed, parameters: dict[str, Any]) -> Iterator[bytes]:
    """Return the lines of a COPY TO STDOUT as they arrive.

    This calls libpq directly: psycopg's own loop costs more for each line than everything that is done with it here.

    Raises:
        psycopg.Error: The server refused the statement, or the connection broke.
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
                # Wait here and not inside libpq, which would block every other thread, the lock's renewal among them.
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
    """Cancel a COPY that was not read to its end, so that its transaction can be rolled back."""
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
    """Return keys as COPY wrote them for :func:`_array`: texts, and keys of several columns, may need escapes."""
    if not any(b"\\" in key or b'"' in key for key in keys):
        return keys
    return [unescaped(key).replace(b"\\", b"\\\\").replace(b'"', b'\\"') for key in keys]


def _array(values: list[bytes]) -> str:
    """Write an array as PostgreSQL does, of what holds no quotation marks and backslashes or has them escaped."""
    return '{"' + b'","'.join(values).decode() + '"}'
