"""Name the indexes that a policy file needs and the application's tables lack, with the statements that make them.

A job starts without such an index while the table is small, and refuses once the table is large: each batch would read
the whole table. The tables are the application's, so no job ever makes an index; `backend/migrate.py --indexes` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scripts.lifecycle.engine.catalogue import catalogue_of, columns_of, pointing_at, rows_of, tree_of
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection

CURE = "backend/migrate.py --indexes prints the statement that makes it"

# A table stores its own rows; of a partitioned one the partitions do.
_STORED = f"""
SELECT c.oid, n.nspname || '.' || c.relname AS name FROM {tree_of("%(oid)s")} t
  JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' ORDER BY 2
"""  # noqa: S608 - a constant

# PostgreSQL may write a cast to text around the column.
_ON_BLOB_KEY = """
SELECT 1 AS found FROM pg_index i WHERE i.indrelid = %(oid)s AND i.indisvalid
   AND strpos(pg_get_indexdef(i.indexrelid, 1, true), 'ops.blob_key(' || quote_ident(%(column)s)) = 1
"""


# One that is being built by another session just now is invalid as well: it is not left behind.
_INVALID = f"""
SELECT n.nspname AS schema, x.relname AS name FROM {tree_of("%(oid)s")} t
  JOIN pg_index i ON i.indrelid = t.relid JOIN pg_class x ON x.oid = i.indexrelid
  JOIN pg_namespace n ON n.oid = x.relnamespace
 WHERE NOT i.indisvalid AND x.relkind = 'i'
   AND pg_get_indexdef(i.indexrelid, 1, true) IN (%(first)s, quote_ident(%(first)s))
   AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid)
"""  # noqa: S608 - a constant


@dataclass(frozen=True)
class MissingIndex:
    """An index that a policy or a step of an erasure needs, and that is not there."""

    table: str
    columns: tuple[str, ...]
    reasons: tuple[str, ...]
    """What looks rows up by it, each with the place in the policy file."""
    statements: tuple[sql.Composed, ...]
    """One for each table that lacks it. Of a partitioned table the last one joins the partitions' indexes into one."""


def missing_indexes(connection: Connection, policy_set: PolicySet) -> list[MissingIndex]:
    """Return the indexes that the policies and the erasure steps need and that are not there, in the file's order.

    Tables and columns that do not exist are left out: `--check` names them.
    """
    found: dict[tuple[str, tuple[str, ...]], MissingIndex] = {}
    for index in _wanted(connection, policy_set):
        key = index.table, index.columns
        reasons = found[key].reasons + index.reasons if key in found else index.reasons
        found[key] = replace(index, reasons=tuple(dict.fromkeys(reasons)))
    return list(found.values())


def left_behind(connection: Connection, index: MissingIndex) -> list[sql.Identifier]:
    """Return the invalid indexes that an earlier, interrupted attempt to make an index left on its table."""
    table, _ = catalogue_of(connection, index.table)
    rows = rows_of(connection, _INVALID, {"oid": table["oid"], "first": index.columns[0]})
    return [sql.Identifier(row["schema"], row["name"]) for row in rows]


def to_create(table: str, *columns: str) -> str:
    """Return the statement that makes an index on columns of a table, as a person types it."""
    return _create(table, _listed(columns)).as_string(None)


def blob_key(column: str) -> sql.Composed:
    """Return the expression by which rows are looked up that name one blob, however they spell its name."""
    return sql.SQL("ops.blob_key({})").format(sql.Identifier(column))


def has_blob_key(connection: Connection, oid: int, column: str) -> bool:
    """Tell whether a table has an index by which the rows that name one blob can be looked up."""
    return bool(rows_of(connection, _ON_BLOB_KEY, {"oid": oid, "column": column}))


def _wanted(connection: Connection, policy_set: PolicySet) -> Iterator[MissingIndex]:
    for policy in policy_set.policies.values():
        if policy.action != "retain":
            yield from _of_policy(connection, policy)
    for name, step in policy_set.erasure.items():
        table, columns = catalogue_of(connection, step.table)
        if step.person in columns and not columns[step.person]["indexed"]:
            yield _on_columns(
                connection, step.table, (step.person,), f"erasure {name}: each request looks for a person"
            )
        if table and step.action == "delete":
            yield from _of_foreign_keys(connection, table["oid"], f"erasure {name}")


def _of_policy(connection: Connection, policy: Policy) -> Iterator[MissingIndex]:
    table, columns = catalogue_of(connection, policy.table)
    if not table:
        return
    anchors: dict[object, str] = {rule.anchor: f"rule {name}" for name, rule in policy.rules.items()}
    anchors |= {
        exception.queue.anchor: f"exception {name}" for name, exception in policy.exceptions.items() if exception.queue
    }
    for lookup in policy.lookups:
        _, theirs = catalogue_of(connection, lookup.from_table)
        if theirs.keys() >= set(lookup.theirs) and not any(theirs[name]["indexed"] for name in lookup.theirs):
            reason = f"policy {policy.name}: each row looks {lookup.take} up by it"
            yield _on_columns(connection, lookup.from_table, lookup.theirs, reason)
    for anchor, place in anchors.items():
        if isinstance(anchor, str) and anchor in columns and not columns[anchor]["indexed"]:
            reason = f"policy {policy.name}, {place}: due rows are looked for by it"
            yield _on_columns(connection, policy.table, (anchor,), reason)
    if policy.blob and policy.blob.column in columns:
        column = policy.blob.column
        statements = [
            _create(part, blob_key(column))
            for part, oid in _stored(connection, table["oid"])
            if not has_blob_key(connection, oid, column)
        ]
        if statements:
            whole = [_create_from_partitions(policy.table, blob_key(column))] if table["relkind"] == "p" else []
            reason = f"policy {policy.name}: each blob that is about to go is looked for in all rows"
            named = (f"ops.blob_key({column})",)
            yield MissingIndex(policy.table, named, (reason,), (*statements, *whole))
    if policy.removes_rows:
        yield from _of_foreign_keys(connection, table["oid"], f"policy {policy.name}")


def _of_foreign_keys(connection: Connection, oid: int, place: str) -> Iterator[MissingIndex]:
    for key in pointing_at(connection, oid):
        if not key.indexed:
            reason = f"{place}: foreign key {key.name}; PostgreSQL looks for referring rows whenever a row goes"
            yield _on_columns(connection, key.table, key.columns, reason)


def _on_columns(connection: Connection, table: str, columns: tuple[str, ...], reason: str) -> MissingIndex:
    facts, _ = catalogue_of(connection, table)
    statements = [
        _create(part, _listed(columns))
        for part, oid in _stored(connection, facts["oid"])
        if not columns_of(connection, oid)[columns[0]]["indexed"]
    ]
    if facts["relkind"] == "p":
        statements.append(_create_from_partitions(table, _listed(columns)))
    return MissingIndex(table, columns, (reason,), tuple(statements))


def _stored(connection: Connection, oid: int) -> list[tuple[str, int]]:
    return [(row["name"], row["oid"]) for row in rows_of(connection, _STORED, {"oid": oid})]


def _listed(columns: tuple[str, ...]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _create(table: str, what: sql.Composed) -> sql.Composed:
    return sql.SQL("CREATE INDEX CONCURRENTLY ON {} ({})").format(table_identifier(table), what)


def _create_from_partitions(table: str, what: sql.Composed) -> sql.Composed:
    # PostgreSQL makes no index of a partitioned table CONCURRENTLY; this one takes over those of the partitions.
    return sql.SQL("CREATE INDEX ON {} ({})").format(table_identifier(table), what)
