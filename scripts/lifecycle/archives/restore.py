"""The way back: archived rows into their table, or into one beside it.

Safe to repeat: a row whose key is there already is left as it is. Nobody who was erased comes back: rows whose person's
key was destroyed are left out, or, where that is asked for, come without their personal columns. A table that has
changed since is met column by column: a value that would not survive the way there and back is refused, with its
column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

import psycopg

from scripts.lifecycle.archives.catalogue import Entry
from scripts.lifecycle.archives.export import TEXT_SETTINGS, Column
from scripts.lifecycle.archives.format import (
    NOBODY,
    Block,
    lines_of,
    open_sealed,
    unescaped,
)
from scripts.lifecycle.archives.keys import ArchiveKeys
from scripts.lifecycle.archives.verify import blocks_of
from scripts.lifecycle.audit import audit
from scripts.lifecycle.engine.record_keys import RecordKey
from scripts.lifecycle.policy.policies import table_identifier
from scripts.utils import composing as sql
from scripts.utils.archive_store import ArchiveStore
from scripts.utils.db_utils import Connection, Database
from scripts.utils.errors import OpsError, describe_database_error

RESTORE_SECONDS = 3600.0
_STAGE = sql.Identifier("pg_temp", "restored_rows")

# With a modifier of -1 char(36) is named bpchar; without one it is character, which in a cast keeps one letter.
_TARGET = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), format_type(a.atttypid, -1), a.attgenerated <> '',
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
  FROM pg_attribute a WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
"""
_HOLDS_ROWS = """
SELECT DISTINCT (metadata ->> 'archive')::uuid FROM ops.audit_batches
 WHERE action = 'archive_then_delete' AND resource_type = %s AND resource_ids && %s::text[]
"""


class RestoreRefused(OpsError):
    """The table is not one that the rows fit into; nothing was written."""

    stop_reason = "restore_refused"


@dataclass(frozen=True)
class Wish:
    """What is to come back, and how."""

    into: str
    """The table, with its schema."""
    ids: frozenset[str] = frozenset()
    """Only these rows; none: all."""
    erased: bool = False
    """Rows of people who were erased come too, without their personal columns."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Columns that have another name by now: then, and now."""
    dropped: frozenset[str] = frozenset()
    """Columns that are to be left out."""


@dataclass(frozen=True)
class Restored:
    """What became of one archive's rows."""

    rows: int
    """Put back now."""
    present: int
    """There already."""
    erased: int
    """Of people who were erased: left out, or without their personal columns."""


def archives_with(connection: Connection, table: str, ids: frozenset[str]) -> list[UUID]:
    """Return the archives that hold these rows, as the audit knows it."""
    return [archive for (archive,) in connection.execute(_HOLDS_ROWS, (table, sorted(ids)))]


def restore(
    database: Database,
    store: ArchiveStore,
    keys: ArchiveKeys,
    entry: Entry,
    wish: Wish,
    *,
    operator: str,
    between: Callable[[], None],
    dry_run: bool = False,
) -> Restored:
    """Put an archive's rows back, in one transaction with its audit entry.

    Args:
        database: Where to.
        store: Where the object is.
        keys: The keys.
        entry: The archive.
        wish: What of it, and how.
        operator: Who does it, a handle.
        between: Called between blocks; may raise to stop, and nothing is restored.
        dry_run: Do all of it but the last step.

    Raises:
        RestoreRefused: Column or value do not fit.
        ArchiveBroken: The object is not what was written.
        KeyLost: A key is not there.
    """
    layout = entry.layout
    columns = [Column(*each) for each in layout.columns]
    try:
        with database.transaction(statement_timeout=RESTORE_SECONDS) as connection:
            connection.execute(TEXT_SETTINGS)
            assignments = _assignments(connection, columns, wish)
            _create_stage(connection, columns)
            types = _types(connection, columns)
            wanted = _wanted(connection, wish, layout.key, types)
            rows = _Rows(connection, keys, entry, wish, wanted, len(layout.personal), len(layout.key))
            for block in blocks_of(store, keys, entry):
                between()
                _copy(connection, columns, rows.of(block))
            _refuse_lossy(connection, assignments, types)
            put_back, present = _insert(connection, wish, layout.key, assignments, entry, operator)
            if dry_run:
                raise psycopg.Rollback  # everything was tried, nothing is to stay
    except psycopg.Error as error:
        raise RestoreRefused(
            f"archive {entry.object} was not restored into {wish.into}: {describe_database_error(error)}"
        ) from error
    return Restored(put_back, present, rows.erased)


def _types(connection: Connection, columns: list[Column]) -> dict[str, sql.SQL]:
    """Return each column's type in PostgreSQL's own words, without length or precision; text, if it is gone.

    The names go to PostgreSQL as values: what it does not know as the name of a type never becomes part of a statement.

    Raises:
        RestoreRefused: One is not even written like the name of a type.
    """
    found = {}
    for column in columns:
        try:
            row = connection.execute("SELECT format_type(to_regtype(%s), -1)", (column.type,)).fetchone()
        except psycopg.errors.SyntaxError:
            raise RestoreRefused(f"the type of column {column.name} in ops.archives (manifest) is none") from None
        found[column.name] = sql.SQL(row[0] if row and row[0] not in {None, "-"} else "text")
    return found


def _wanted(
    connection: Connection, wish: Wish, key: tuple[str, ...], types: dict[str, sql.SQL]
) -> frozenset[tuple[bytes, ...]]:
    """Return the keys of the rows that are asked for, as they are in the archive; none: all rows are."""
    if len(key) == 1 or not wish.ids:
        return frozenset((each.encode(),) for each in wish.ids)
    texts = sql.SQL(", ").join(
        sql.SQL("((e.id::jsonb ->> {})::{})::text").format(sql.Literal(place), types[name])
        for place, name in enumerate(key)
    )
    statement = sql.SQL("SELECT {} FROM unnest(%s::text[]) AS e (id)").format(texts)
    rows = connection.execute(statement, (sorted(wish.ids),)).fetchall()
    return frozenset(tuple((value or "").encode() for value in row) for row in rows)


class _Rows:
    """Puts the rows of blocks together again, as lines for COPY."""

    def __init__(
        self,
        connection: Connection,
        keys: ArchiveKeys,
        entry: Entry,
        wish: Wish,
        wanted: frozenset[tuple[bytes, ...]],
        personal: int,
        key_columns: int,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._entry = entry
        self._wish = wish
        self._wanted = wanted
        self._key_columns = key_columns
        self._personal = personal
        self._nothing = b"\t".join([b"\\N"] * personal)
        self.erased = 0

    def of(self, block: Block) -> list[bytes]:
        """Return the lines that are wanted."""
        rest = lines_of(block.rest)
        wanted = [self._is_wanted(line) for line in rest]
        if not any(wanted):
            return []
        lots = self._opened(block)
        own = iter(lines_of(block.own))
        lines = []
        for line, owner, is_wanted in zip(rest, block.owners, wanted, strict=True):
            lot = own if owner == NOBODY else lots[owner]
            mine = None if lot is None else next(lot)
            if not is_wanted:
                continue
            if mine is None:
                self.erased += 1
                if not self._wish.erased:
                    continue
                mine = self._nothing
            lines.append((mine + b"\t" if self._personal else b"") + line + b"\n")
        return lines

    def _is_wanted(self, line: bytes) -> bool:
        fields = line.split(b"\t", self._key_columns)[: self._key_columns] if self._wanted else ()
        return not self._wanted or tuple(map(unescaped, fields)) in self._wanted

    def _opened(self, block: Block) -> list[Iterator[bytes] | None]:
        # Kept until the transaction is over: nobody is erased between this look and the rows' return.
        people = block.people
        found = self._keys.opened(self._connection, {each.key_id for each in people}, keep=True)
        lots: list[Iterator[bytes] | None] = []
        for sealed in people:
            key = found[sealed.key_id]
            lots.append(
                None if key is None else iter(open_sealed(key, self._entry.id.bytes, sealed, self._entry.object))
            )
        return lots


@dataclass(frozen=True)
class _Assignment:
    """A column of the archive, and the one that takes its values."""

    column: Column
    target: str
    type: str
    base_type: str
    """Without length or precision: a value that is too long is an error, and not cut."""

    @property
    def value(self) -> sql.Composed:
        """The staged text as a value for the column."""
        return sql.SQL("s.{}::{}").format(sql.Identifier(self.column.name), sql.SQL(self.base_type))


def _assignments(connection: Connection, columns: list[Column], wish: Wish) -> list[_Assignment]:
    table = table_identifier(wish.into).as_string(connection)
    found = {row[0]: row[1:] for row in connection.execute(_TARGET, (table,))}
    if not found:
        raise RestoreRefused(f"there is no table {wish.into}, or this role may not see it")
    problems, assignments = [], []
    names = {column.name for column in columns}
    problems += [f"the archive has no column {name}" for name in sorted({*wish.renamed, *wish.dropped} - names)]
    for column in columns:
        target = wish.renamed.get(column.name, column.name)
        if column.name in wish.dropped:
            continue
        if target not in found:
            problems.append(f"{wish.into} has no column {target} any more: name the new one with --map, or --drop it")
        elif not found[target][2]:
            assignments.append(_Assignment(column, target, found[target][0], found[target][1]))
    taken = {assignment.target for assignment in assignments}
    problems += [
        f"{wish.into}.{name} must not be null, has no default, and is not in the archive"
        for name, (*_, required) in found.items()
        if required and name not in taken
    ]
    if problems:
        raise RestoreRefused("nothing was restored: " + "; ".join(problems))
    return assignments


def _create_stage(connection: Connection, columns: list[Column]) -> None:
    definitions = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(column.name)) for column in columns)
    connection.execute(sql.SQL("CREATE TEMPORARY TABLE restored_rows ({}) ON COMMIT DROP").format(definitions), {})


def _copy(connection: Connection, columns: list[Column], lines: list[bytes]) -> None:
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)
    statement = sql.SQL("COPY {} ({}) FROM STDIN (ENCODING 'UTF8')").format(_STAGE, names)
    with connection.cursor().copy(statement, sql.NO_PARAMETERS) as copy:
        copy.write(b"".join(lines))


def _refuse_lossy(connection: Connection, assignments: list[_Assignment], types: dict[str, sql.SQL]) -> None:
    """Refuse a column of another type in which a value would not be the same any more."""
    for each in assignments:
        if each.type == each.column.type:
            continue
        # Numbers are compared as numbers: 1.50 in a column with one decimal is 1.5, and the same. All else by its text.
        former = types[each.column.name]
        same = sql.SQL("{}" if former.as_string() == "numeric" else "{}::text")
        there_and_back, as_archived = (
            same.format(
                sql.SQL(value).format(column=sql.Identifier(each.column.name), new=sql.SQL(each.type), old=former)
            )
            for value in ("(s.{column}::{new}::{old})", "(s.{column}::{old})")
        )
        row = connection.execute(
            sql.SQL("SELECT count(*) FROM {} s WHERE {} IS DISTINCT FROM {}").format(
                _STAGE, there_and_back, as_archived
            ),
            {},
        ).fetchone()
        if row and row[0]:
            raise RestoreRefused(
                f"nothing was restored: {row[0]} values of {each.column.name} ({former.as_string()}) would not be the"
                f" same in {each.target} ({each.type}): restore into a table whose column is wide enough, or --drop it"
            )


def _insert(
    connection: Connection,
    wish: Wish,
    key: tuple[str, ...],
    assignments: list[_Assignment],
    entry: Entry,
    operator: str,
) -> tuple[int, int]:
    """Put in what is not there; return how many rows went in and how many were there."""
    by_name = {each.column.name: each for each in assignments}
    if missing := [name for name in key if name not in by_name]:
        raise RestoreRefused(
            f"the key {', '.join(missing)} must not be left out: without it nothing tells what is there already"
        )
    targets = [by_name[name] for name in key]
    record = RecordKey([each.target for each in targets], {each.target: each.base_type for each in targets})
    names = {
        "table": table_identifier(wish.into),
        "stage": _STAGE,
        "id": record.id("t"),
        "there": sql.SQL(" AND ").join(
            sql.SQL("x.{} = {}").format(sql.Identifier(each.target), each.value) for each in targets
        ),
        "columns": sql.SQL(", ").join(sql.Identifier(each.target) for each in assignments),
        "values": sql.SQL(", ").join(each.value for each in assignments),
    }
    row = connection.execute(
        sql.SQL(
            "WITH put AS (INSERT INTO {table} AS t ({columns}) OVERRIDING SYSTEM VALUE SELECT {values} FROM {stage} s"
            " WHERE NOT EXISTS (SELECT FROM {table} x WHERE {there}) RETURNING {id} AS key)"
            " SELECT (SELECT array_agg(key) FROM put), (SELECT count(*) FROM {stage})"
        ).format(**names),
        {},
    ).fetchone()
    put, staged = (row[0] or [], row[1]) if row else ([], 0)
    if put:
        audit.append(
            connection,
            actor=f"operator:{operator}",
            action="restore",
            resource_type=wish.into,
            resource_ids=put,
            reason=f"archive:{entry.policy}",
            metadata={"archive": str(entry.id)},
        )
    return len(put), staged - len(put)
