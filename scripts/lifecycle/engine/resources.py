"""Looks up the tables and rows that a person names: whether they exist, and what is true of a row right now."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from scripts.lifecycle.engine.catalogue import tree_of
from scripts.lifecycle.engine.record_keys import RecordKey
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.engine.survey import detached_from
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.lifecycle.policy.tables import parts_of, table_identifier
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection
from scripts.utils.errors import Misconfigured, PolicyFailed, describe_database_error
from scripts.utils.logging_utils import get_logger
from scripts.utils.session_settings import local_settings

_LOOK_SECONDS = 5.0
# With a modifier of -1 char(36) is named bpchar; without one it is character, which in a cast keeps one letter.
_TYPES = """
SELECT a.attname, format_type(a.atttypid, -1) FROM pg_attribute a
 WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
"""
_CANNOT_LOOK = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
)


# The table of the policy file that has the asked table as a part; the one that is a part of the asked table; whether
# the asked table refers to any of them; and the asked table's primary key.
_RELATED = f"""
WITH asked AS (
    SELECT c.oid, t.relid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     CROSS JOIN LATERAL {tree_of("c.oid")} t WHERE n.nspname || '.' || c.relname = %(table)s
), known AS (
    SELECT c.oid, n.nspname || '.' || c.relname AS name, t.relid FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL {tree_of("c.oid")} t
     WHERE n.nspname || '.' || c.relname = ANY (%(known)s)
)
SELECT (SELECT min(k.name) FROM known k JOIN asked a ON a.oid = k.relid),
       (SELECT min(k.name) FROM known k JOIN asked a ON a.relid = k.oid),
       EXISTS (SELECT FROM pg_constraint f JOIN asked a ON a.relid = f.conrelid JOIN known k ON k.relid = f.confrelid
                WHERE f.contype = 'f'),
       (SELECT array_agg(c.attname::text ORDER BY p.place) FROM pg_index i
         CROSS JOIN unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS p (attnum, place)
          JOIN pg_attribute c ON c.attrelid = i.indrelid AND c.attnum = p.attnum
         WHERE i.indisprimary AND i.indrelid IN (SELECT oid FROM asked))
"""  # noqa: S608 - a constant


def _keys(policies: PolicySet) -> dict[str, tuple[str, ...]]:
    """Return the key of every table from which the policy file lets a row go: policies first, then their dependants."""
    named = [(policy.table, policy.key) for policy in policies.policies.values()]
    named += [(each.table, each.key) for policy in policies.policies.values() for each in policy.dependants]
    named += [(step.table, step.key) for step in policies.erasure.values()]
    return dict(reversed(named))


def key_of(policies: PolicySet, table: str) -> tuple[str, ...] | None:
    """Return the key columns of a table by the policy file; None: it does not name the table."""
    return _keys(policies).get(table)


def key_to_hold(connection: Connection, policies: PolicySet, table: str) -> tuple[str, ...] | None:
    """Return the key by which a row to be held is looked for; None: the table has no primary key, so it is not.

    A table that refers to a table of the policy file may be held although the file does not name it: a foreign key
    could take its rows along.

    Raises:
        Misconfigured: There is no such table, a hold on it would keep nothing, or the policy is on another table of its
            tree, where the hold must be.
    """
    if key := key_of(policies, table):
        return key
    if not table_exists(connection, table):
        raise Misconfigured(f"there is no table {table}: name it with its schema, as the policy file does")
    row = connection.execute(_RELATED, {"table": table, "known": sorted(_keys(policies))}).fetchone()
    whole, part, refers, primary = row or (None, None, False, None)
    if whole or part:
        what = f"is a part of {whole}" if whole else f"has {part} as a part"
        raise Misconfigured(f"{table} {what}, which the policy file names: place the hold on {whole or part}")
    if not refers:
        raise Misconfigured(f"no policy deletes from {table}; it needs no hold")
    return tuple(primary) if primary else None


def column_types(connection: Connection, table: str) -> dict[str, str]:
    """Return the type of each column of a table, as ``format_type`` writes it; empty: there is no such table."""
    name = sql.quoted(*parts_of(table))
    return dict(connection.execute(_TYPES, (name,)).fetchall())


def require_resource(connection: Connection, policies: PolicySet, table: str, resource_id: str) -> None:
    """Check that a table exists and, where a policy names its key, that the row does.

    Raises:
        Misconfigured: One of them does not.
    """
    if not table_exists(connection, table):
        raise Misconfigured(f"there is no table {table}: name it with its schema, as the policy file does")
    if key := key_of(policies, table):
        require_row(connection, table, key, resource_id)


def require_row(connection: Connection, table: str, key: tuple[str, ...], resource_id: str) -> None:
    """Check that a row exists, under the key as it is written.

    Where the row cannot be looked for, a warning says so and the row is accepted: a hold too many does no harm.

    Args:
        connection: In the transaction that will hold the row.
        table: The table's name with its schema.
        key: Its key columns.
        resource_id: The row's key, as the audit would write it.

    Raises:
        Misconfigured: There is no such row, or its key is written otherwise.
    """
    types = column_types(connection, table)
    if not types.keys() >= set(key):
        get_logger().warning("row_not_checked", table=table, error=f"the table has no column {' and '.join(key)}")
        return
    record = RecordKey(key, types)
    row = None
    try:
        with connection.transaction():
            # The gate is closed meanwhile, so every job's batch waits for this answer.
            connection.execute(*local_settings(lock_timeout=_LOOK_SECONDS, statement_timeout=_LOOK_SECONDS))
            # A job may have detached the row's partition. The row still exists and can still be kept.
            for place in (table, *detached_from(connection, table)):
                statement = sql.SQL("SELECT {id} FROM {table} t WHERE {is_it}").format(
                    id=record.id("t"), table=table_identifier(place), is_it=record.is_("t", sql.Placeholder("row_key"))
                )
                row = row or connection.execute(statement, {"row_key": resource_id}).fetchone()
    except psycopg.DataError:
        row = None  # such as letters where the key is a number
    except _CANNOT_LOOK as error:
        get_logger().warning("row_not_checked", table=table, error=describe_database_error(error))
        return
    if row is None:
        names = key[0] if len(key) == 1 else f"({', '.join(key)})"
        raise Misconfigured(f"there is no row in {table} whose {names} is the given id")
    # The engine compares keys as text, so a hold on a UUID in capital letters would keep nothing.
    if row[0] != resource_id:
        raise Misconfigured(f"the id is not written as {table} has it: write it exactly so: {row[0]}")


@dataclass(frozen=True)
class RowState:
    """What is true of one row right now."""

    due: bool
    held: bool
    referenced: bool
    nameable: bool
    names_blob: bool
    moments: dict[str, str | None]
    """The columns that its policy looks at, if they are moments, as text (UTC)."""

    @property
    def why_kept(self) -> str:
        """The reasons that keep the row, as text; empty: there is none."""
        reasons = {
            "a legal hold keeps it (legal_holds.py list)": self.held,
            "something else still needs it": self.referenced,
            "its period has not ended, or an exception keeps it": not self.due,
        }
        return "; ".join(reason for reason, applies in reasons.items() if applies)


def row_state(connection: Connection, selection: Selection, key: str) -> RowState | None:
    """Return what is true of a row; None: it is not there.

    Raises:
        PolicyFailed: Two rows have the key, in two children of the table: nobody can tell which one is meant.
    """
    statement = sql.SQL(
        "SELECT {due}, {held}, {referenced}, {nameable}, {names_blob}, jsonb_build_object({moments})"
        " FROM {table} t WHERE {is_it}"
    ).format(
        due=selection.due,
        held=selection.held,
        referenced=selection.referenced,
        nameable=selection.nameable,
        names_blob=selection.names_blob("t") if selection.policy.blob else sql.SQL("false"),
        moments=sql.SQL(", ").join(
            sql.SQL("{}::text, t.{}::text").format(sql.Literal(name), sql.Identifier(name))
            for name in selection.moments
        ),
        table=selection.table,
        is_it=selection.record.is_("t", sql.Placeholder("row_key")),
    )
    try:
        with connection.transaction():
            rows = connection.execute(statement, selection.parameters | {"row_key": key}).fetchall()
    except psycopg.DataError:
        return None  # such as letters where the key is a number
    if len(rows) > 1:
        raise PolicyFailed(
            "ambiguous_key", f"{len(rows)} rows of children of {selection.policy.table} have this key: nothing was done"
        )
    return RowState(*rows[0]) if rows else None


def blob_named_by(connection: Connection, selection: Selection, key: str) -> str | None:
    """Return the value that names a row's blob; None: it names none, or there is no such row."""
    if selection.policy.blob is None:
        return None
    row = connection.execute(
        sql.SQL("SELECT CASE WHEN {} THEN t.{} END FROM {} t WHERE {}").format(
            selection.names_blob("t"),
            sql.Identifier(selection.policy.blob.column),
            selection.table,
            selection.record.is_("t", sql.Placeholder("row_key")),
        ),
        {"row_key": key},
    ).fetchone()
    return row[0] if row else None


def table_exists(connection: Connection, table: str) -> bool:
    """Tell whether there is such a table."""
    schema, _, name = table.partition(".")
    row = connection.execute(
        "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')",
        (schema, name),
    ).fetchone()
    return row is not None
