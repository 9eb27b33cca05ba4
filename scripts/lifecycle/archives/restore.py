"""Restore: archived rows are put back into their table, or into another one.

A restore can be repeated: a row whose key exists in the table is left as it is. Nobody who was erased comes back: rows
whose person's key was destroyed are left out, or are restored without their personal columns (--include-erased). If the
table has changed since, each column is compared: a value that would change in the column's new type is refused, and the
column is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg

from scripts.lifecycle.archives.catalogue import Entry
from scripts.lifecycle.archives.export import HOME, TEXT_SETTINGS, Column
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
from scripts.lifecycle.policy.tables import parts_of, table_identifier
from scripts.utils import composing as sql
from scripts.utils.archive_store import ArchiveStore
from scripts.utils.db_utils import Connection, Database
from scripts.utils.errors import OpsError, describe_database_error

RESTORE_SECONDS = 3600.0
# No table may have a column that is named like a system column.
_STAGED_HOME = "home: the table that the row was in"
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
    """The rows do not fit into the table; nothing was written."""

    stop_reason = "restore_refused"


@dataclass(frozen=True)
class Wish:
    """What a restore shall put back, and how."""

    into: str
    """The table to restore into, with its schema."""
    ids: frozenset[str] = frozenset()
    """Keys of the rows to restore; empty: all rows."""
    erased: bool = False
    """Whether rows of erased people are restored too, without their personal columns."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Columns that were renamed: the name in the archive, and the name in the table."""
    dropped: frozenset[str] = frozenset()
    """Columns to leave out."""


@dataclass(frozen=True)
class Restored:
    """What became of the rows of one archive."""

    rows: int
    """How many rows were inserted."""
    present: int
    """How many rows were in the table already."""
    erased: int
    """How many rows belong to erased people: left out, or restored without their personal columns."""


def archives_with(connection: Connection, table: str, ids: frozenset[str]) -> list[UUID]:
    """Return the archives that hold these rows, according to the audit.

    Args:
        connection: Where to read.
        table: The table, with its schema.
        ids: What the audit may call the rows: their keys, and the pseudonyms of those that may be personal.
    """
    return [archive for (archive,) in connection.execute(_HOLDS_ROWS, (table, sorted(ids)))]


def restore(
    database: Database,
    store: ArchiveStore,
    keys: ArchiveKeys,
    entry: Entry,
    wish: Wish,
    *,
    operator: str,
    pseudonym_of: Callable[[str], str],
    between: Callable[[], None],
    dry_run: bool = False,
) -> Restored:
    """Put an archive's rows back, in one transaction with the audit entry.

    Args:
        database: The database to restore into.
        store: The store with the object.
        keys: Opens the keys.
        entry: The archive.
        wish: Which rows and columns, and into which table.
        operator: The handle of the person who restores.
        pseudonym_of: Returns the keyed pseudonym of a key that may be personal.
        between: Called between blocks; may raise to stop, and then nothing is restored.
        dry_run: Do everything, and roll back. This is the one dry run that writes: into a temporary table.

    Raises:
        RestoreRefused: A column or a value does not fit.
        ArchiveBroken: The object is not what was written.
        KeyLost: A key is missing.
        ObjectMissing: The object is not in the store.
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
            rows = _Rows(connection, keys, entry, wish, wanted)
            for block in blocks_of(store, keys, entry):
                between()
                _copy(connection, columns, rows.of(block))
            _refuse_lossy(connection, assignments, types)
            counts = [
                _insert(connection, wish, part, assignments, entry, operator, pseudonym_of)
                for part in _parts(connection, wish, entry)
            ]
            put_back, present = sum(put for put, _ in counts), sum(there for _, there in counts)
            if dry_run:
                raise psycopg.Rollback  # every statement was tried; none of them may stay
    except psycopg.Error as error:
        raise RestoreRefused(
            f"archive {entry.object} was not restored into {wish.into}: {describe_database_error(error)}"
        ) from error
    return Restored(put_back, present, rows.erased)


def _types(connection: Connection, columns: list[Column]) -> dict[str, sql.SQL]:
    """Return each column's type as PostgreSQL names it, without length or precision; ``text``, if the type is gone.

    The names from the catalogue reach PostgreSQL as parameters; only its own answer becomes part of a statement.

    Raises:
        RestoreRefused: A name is not the name of a type.
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
    """Return the keys of the wanted rows as COPY's text has them; empty: all rows are wanted."""
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
    """Joins the personal and the other columns of each row to a line for COPY."""

    def __init__(
        self,
        connection: Connection,
        keys: ArchiveKeys,
        entry: Entry,
        wish: Wish,
        wanted: frozenset[tuple[bytes, ...]],
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._entry = entry
        self._wish = wish
        self._wanted = wanted
        layout = entry.layout
        self._personal = len(layout.personal)
        self._nothing = b"\t".join([b"\\N"] * self._personal)
        self._key_places = [layout.names.index(name) for name in layout.key]
        self._sealed_key = bool({*layout.key} & {*layout.personal})
        """Whether the key can be read only with the person's key."""
        self.erased = 0

    def of(self, block: Block) -> list[bytes]:
        """Return the lines of the wanted rows."""
        rest = lines_of(block.rest)
        # Unless the key itself is under the persons' keys, a block without a wanted row is not decrypted any further.
        wanted = [self._sealed_key or self._is_wanted(self._nothing, line) for line in rest]
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
                if self._sealed_key or not self._wish.erased:  # without its key it is no row
                    continue
                mine = self._nothing
            if self._sealed_key and not self._is_wanted(mine, line):
                continue
            lines.append(self._whole(mine, line) + b"\n")
        return lines

    def _whole(self, mine: bytes, line: bytes) -> bytes:
        return mine + b"\t" + line if self._personal else line

    def _is_wanted(self, mine: bytes, line: bytes) -> bool:
        if not self._wanted:
            return True
        fields = self._whole(mine, line).split(b"\t", max(self._key_places) + 1)
        return tuple(unescaped(fields[place]) for place in self._key_places) in self._wanted

    def _opened(self, block: Block) -> list[Iterator[bytes] | None]:
        # The key rows stay locked until the transaction ends: nobody is erased between this look and the INSERT.
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
    """A column of the archive, and the column of the table that takes its values."""

    column: Column
    target: str
    type: str
    base_type: str
    """The type without length or precision, so that a value that is too long is an error and is not cut."""

    @property
    def value(self) -> sql.Composed:
        """The staged text, cast to the column's type."""
        return sql.SQL("s.{}::{}").format(sql.Identifier(self.column.name), sql.SQL(self.base_type))


def _assignments(connection: Connection, columns: list[Column], wish: Wish) -> list[_Assignment]:
    table = sql.quoted(*parts_of(wish.into))
    found = {row[0]: row[1:] for row in connection.execute(_TARGET, (table,))}
    if not found:
        raise RestoreRefused(f"there is no table {wish.into}, or this role may not see it")
    problems, assignments = [], []
    names = {column.name for column in columns}
    problems += [f"the archive has no column {name}" for name in sorted({*wish.renamed, *wish.dropped} - names)]
    for column in columns:
        target = wish.renamed.get(column.name, column.name)
        if column.name in wish.dropped or column.name == HOME:
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


def _staged(column: Column) -> sql.Identifier:
    """Return the column's name in the stage."""
    return sql.Identifier(_STAGED_HOME if column.name == HOME else column.name)


def _create_stage(connection: Connection, columns: list[Column]) -> None:
    definitions = sql.SQL(", ").join(sql.SQL("{} text").format(_staged(column)) for column in columns)
    connection.execute(sql.SQL("CREATE TEMPORARY TABLE restored_rows ({}) ON COMMIT DROP").format(definitions), {})


def _copy(connection: Connection, columns: list[Column], lines: list[bytes]) -> None:
    names = sql.SQL(", ").join(map(_staged, columns))
    statement = sql.SQL("COPY {} ({}) FROM STDIN (ENCODING 'UTF8')").format(_STAGE, names)
    with connection.cursor().copy(statement, sql.NO_PARAMETERS) as copy:
        copy.write(b"".join(lines))


def _refuse_lossy(connection: Connection, assignments: list[_Assignment], types: dict[str, sql.SQL]) -> None:
    """Compare the values of each column whose type has changed, before and after a cast to the new type.

    Raises:
        RestoreRefused: A value would not be the same any more.
    """
    for each in assignments:
        if each.type == each.column.type:
            continue
        # numeric is compared as a number (1.50 equals 1.5), every other type by its text.
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


@dataclass(frozen=True)
class _Part:
    """Staged rows that go into one table."""

    table: sql.Identifier
    which: sql.Composed
    """The condition for the staged rows, alias ``s``."""
    beside: sql.Composed
    """The condition for the rows, alias ``x``, whose key may not come a second time."""
    parameters: dict[str, Any] = field(default_factory=dict)


def _parts(connection: Connection, wish: Wish, entry: Entry) -> list[_Part]:
    """Return what goes into which table: each row into the child of the table that it was in, if that is still there.

    Another child may have a row with the same key. It is another row, and keeps no row from coming back.
    """
    whole = table_identifier(wish.into)
    yes = sql.SQL("true").format()
    if HOME not in entry.layout.names or wish.into != entry.table_name:
        return [_Part(whole, yes, yes)]
    column = sql.Identifier("s", _STAGED_HOME)
    rows = connection.execute(
        sql.SQL(
            "WITH RECURSIVE tree (oid) AS (SELECT %(table)s::regclass::oid UNION"
            " SELECT i.inhrelid FROM pg_inherits i JOIN tree ON tree.oid = i.inhparent)"
            " SELECT s.home, n.nspname, c.relname, tree.oid FROM (SELECT DISTINCT {} AS home FROM {} s) s"
            " JOIN (tree JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace)"
            " ON quote_ident(n.nspname) || '.' || quote_ident(c.relname) = s.home"
        ).format(column, _STAGE),
        {"table": sql.quoted(*parts_of(wish.into))},
    ).fetchall()
    parts = [
        _Part(
            sql.Identifier(schema, name),
            sql.SQL("{} = %(home)s").format(column),
            sql.SQL("x.tableoid = %(oid)s::oid").format(),
            {"home": home, "oid": oid},
        )
        for home, schema, name, oid in rows
    ]
    strays = sql.SQL("({} = ANY(%(homes)s::text[])) IS NOT TRUE").format(column)
    return [*parts, _Part(whole, strays, yes, {"homes": [row[0] for row in rows]})]


def _insert(
    connection: Connection,
    wish: Wish,
    part: _Part,
    assignments: list[_Assignment],
    entry: Entry,
    operator: str,
    pseudonym_of: Callable[[str], str],
) -> tuple[int, int]:
    """Insert the rows whose key is not in the table, with the audit entry.

    Args:
        connection: In the transaction of the restore, with the staged rows.
        wish: Names the table.
        part: Which of the staged rows, and the table or child that takes them.
        assignments: The columns to fill.
        entry: The archive.
        operator: The handle of the person who restores.
        pseudonym_of: Returns the keyed pseudonym of a key that may be personal.

    Returns:
        How many rows were inserted, and how many were there.

    Raises:
        RestoreRefused: A column of the key is left out.
    """
    by_name = {each.column.name: each for each in assignments}
    key = entry.layout.key
    if missing := [name for name in key if name not in by_name]:
        raise RestoreRefused(
            f"the key {', '.join(missing)} must not be left out: without it nothing tells what is there already"
        )
    targets = [by_name[name] for name in key]
    record = RecordKey([each.target for each in targets], {each.target: each.base_type for each in targets})
    names = {
        "into": part.table,
        "which": part.which,
        "beside": part.beside,
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
            "WITH put AS (INSERT INTO {into} AS t ({columns}) OVERRIDING SYSTEM VALUE SELECT {values} FROM {stage} s"
            " WHERE {which} AND NOT EXISTS (SELECT FROM {table} x WHERE {there} AND {beside}) RETURNING {id} AS key)"
            " SELECT (SELECT array_agg(key) FROM put), (SELECT count(*) FROM {stage} s WHERE {which})"
        ).format(**names),
        part.parameters,
    ).fetchone()
    put, staged = (row[0] or [], row[1]) if row else ([], 0)
    if put:
        audit.append(
            connection,
            actor=f"operator:{operator}",
            action="restore",
            resource_type=wish.into,
            resource_ids=[key if record.is_nameable(key) else pseudonym_of(key) for key in put],
            reason=f"archive:{entry.policy}",
            metadata={"archive": str(entry.id)},
        )
    return len(put), staged - len(put)
