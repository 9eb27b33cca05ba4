"""What a table sets off, or refuses, when rows of it are deleted or changed: triggers, rules, logical replication.

PostgreSQL reports these only when the first row goes. They are read from the catalogue instead, of the whole tree of
the table, so that a dry run, ``--check`` and a role that may only read see them too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import psycopg

from scripts.lifecycle.engine.catalogue import DOER, rows_of, tree_of
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection, Database, ReadOnlyDatabase, connection_lost
from scripts.utils.errors import OpsError, PolicyFailed, describe_database_error, functions_of

Event = Literal["INSERT", "UPDATE", "DELETE"]

# Bits of pg_trigger.tgtype, and letters of pg_rewrite.ev_type.
_BITS: dict[str, int] = {"INSERT": 4, "DELETE": 8, "UPDATE": 16}
_LETTERS: dict[str, str] = {"UPDATE": "2", "INSERT": "3", "DELETE": "4"}

# A statement on a table fires the row triggers of every table of its tree, and the statement triggers of its own.
_TRIGGERS = f"""
SELECT DISTINCT g.tgname AS name, n.nspname || '.' || c.relname AS "table", g.tgfoid::bigint AS function,
       f.proname AS function_name, g.tgtype & 3 = 3 AS may_keep_rows, g.tgrelid = %(oid)s AS own,
       g.tgqual IS NOT NULL AS conditional, g.tgtype & 1 = 1 AS each_row, g.tgoldtable IS NOT NULL AS as_a_table
  FROM {tree_of("%(oid)s")} t JOIN pg_trigger g ON g.tgrelid = t.relid JOIN pg_proc f ON f.oid = g.tgfoid
  JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE NOT g.tgisinternal AND g.tgenabled IN ('O', 'A') AND g.tgtype & %(bit)s <> 0
   AND (g.tgtype & 1 = 1 OR g.tgrelid = %(oid)s)
   AND (%(columns)s::text[] IS NULL OR g.tgattr = ''
        OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = g.tgrelid AND a.attnum = ANY (g.tgattr::int2[])
                      AND a.attname = ANY (%(columns)s)))
 ORDER BY 2, 1
"""  # noqa: S608 - constants

_RULES = f"""
SELECT r.rulename AS name, n.nspname || '.' || c.relname AS "table"
  FROM {tree_of("%(oid)s")} t JOIN pg_rewrite r ON r.ev_class = t.relid
  JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE r.ev_type::text = %(letter)s AND r.ev_enabled IN ('O', 'A') ORDER BY 2, 1
"""  # noqa: S608 - constants

# A subscriber finds the row that goes by its replica identity; without one PostgreSQL refuses the statement.
_NO_IDENTITY = f"""
SELECT n.nspname || '.' || c.relname AS "table", string_agg(DISTINCT b.pubname::text, ', ') AS publications
  FROM pg_publication b CROSS JOIN {tree_of("%(oid)s")} t
  JOIN pg_class c ON c.oid = t.relid AND c.relkind = 'r' AND c.relpersistence = 'p'
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE CASE %(event)s WHEN 'DELETE' THEN b.pubdelete ELSE b.pubupdate END
   AND NOT coalesce(CASE c.relreplident
           WHEN 'f' THEN true
           WHEN 'd' THEN (SELECT i.indisvalid AND i.indimmediate FROM pg_index i
                           WHERE i.indrelid = c.oid AND i.indisprimary)
           WHEN 'i' THEN (SELECT i.indisvalid FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident) END, false)
   AND EXISTS (SELECT FROM pg_publication_tables x JOIN pg_namespace s ON s.nspname = x.schemaname
                 JOIN pg_class p ON p.relnamespace = s.oid AND p.relname = x.tablename
                WHERE x.pubname = b.pubname
                  AND (p.oid = c.oid OR p.oid IN (SELECT relid FROM pg_partition_ancestors(c.oid))))
 GROUP BY 1 ORDER BY 1
"""  # noqa: S608 - constants

# An error of these says that the statement cannot be carried out at all, whatever the rows hold.
_REFUSED_WHOLE = ("0A", "25", "42")


@dataclass(frozen=True)
class Trigger:
    """A trigger that fires when rows of a table are deleted or changed."""

    name: str
    table: str
    function: int
    function_name: str
    may_keep_rows: bool
    """Whether it is asked before each row, and can keep the row as it is."""
    own: bool
    """Whether it stands at the table itself, not at one of its partitions or children."""
    conditional: bool
    """Whether it has a WHEN condition."""
    each_row: bool
    """Whether it fires for each row; False: once a statement, also if no row goes."""
    as_a_table: bool
    """Whether it sees the rows that went as a table (REFERENCING OLD TABLE)."""

    @property
    def sees_rows(self) -> bool:
        """Whether what it refuses may depend on the rows, so that it may let other rows go."""
        return self.each_row or self.as_a_table

    def __str__(self) -> str:
        """Return its name and its table's."""
        return f"trigger {self.name} on {self.table}"


def triggers_of(connection: Connection, oid: int, event: Event, columns: list[str] | None = None) -> list[Trigger]:
    """Return the triggers of a table and its tree, by table and name.

    Args:
        connection: Where the table is.
        oid: The table.
        event: What happens to its rows.
        columns: The columns that an UPDATE changes; None: every trigger of the event counts.
    """
    parameters = {"oid": oid, "bit": _BITS[event], "columns": columns}
    return [Trigger(**row) for row in rows_of(connection, _TRIGGERS, parameters)]


def refusals(connection: Connection, oid: int, event: Event) -> Iterator[str]:
    """Say what makes PostgreSQL refuse or rewrite a statement on a table, whatever its rows hold."""
    verb = "deletes" if event == "DELETE" else "updates"
    for row in rows_of(connection, _RULES, {"oid": oid, "letter": _LETTERS[event]}):
        yield (
            f"rule {row['name']} on {row['table']} rewrites {event} statements, so rows could stay, or others go"
            " unseen: DROP RULE, and write a trigger in its place"
        )
    for row in rows_of(connection, _NO_IDENTITY, {"oid": oid, "event": event}):
        yield (
            f"{row['table']} is published ({row['publications']}) and has no replica identity, so PostgreSQL refuses"
            f" {verb}: add a primary key, or ALTER TABLE {row['table']} REPLICA IDENTITY USING INDEX a unique index of"
            " columns that are not null, or FULL"
        )


def try_out(connection: Connection, selection: Selection) -> list[str]:
    """Have PostgreSQL plan the very statements of a run, and return what it refuses.

    EXPLAIN without ANALYZE checks rights, replica identity and rules and changes nothing, so it is allowed in a
    transaction that is READ ONLY. A role that only reads, a standby and a database without ``ops`` cannot be asked.

    Raises:
        psycopg.Error: PostgreSQL refused for a reason that says nothing of the statement, such as a lost connection.
    """
    row = connection.execute(
        f"{DOER} SELECT doer.role = current_user AND NOT pg_is_in_recovery()"  # noqa: S608 - a constant
        " AND EXISTS (SELECT FROM pg_namespace WHERE nspname = 'ops') FROM doer"
    ).fetchone()
    if not (row and row[0]):
        return []
    found = []
    for what, table, statement in _statements(selection, selection.removable):
        try:
            with connection.transaction(force_rollback=True):
                connection.execute(sql.SQL("EXPLAIN {}").format(statement), selection.parameters)
        except psycopg.Error as error:
            if not (error.sqlstate or "").startswith(_REFUSED_WHOLE) and error.sqlstate != "55000":
                raise
            found.append(f"PostgreSQL would refuse to {what} {table}: {describe_database_error(error)}")
    return found


def require_statements_pass(database: Database, selection: Selection) -> None:
    """Change no row, in the way that a run changes rows, and roll that back: triggers FOR EACH STATEMENT fire.

    A batch that finds nothing fires them in the same way, so nothing happens here that could not happen anyway.
    A trigger FOR EACH ROW cannot be tried without a row: what it does may outlive a rollback. Where no trigger fires
    once a statement, nothing is tried.

    Args:
        database: Where; the jobs' role must be connected.
        selection: What the policy selects.

    Raises:
        PolicyFailed: A trigger refuses; the message names it, its table and its function.
        psycopg.Error: The connection broke.
    """
    policy = selection.policy
    fired = database.read(lambda connection: triggers_behind(connection, policy))
    if all(each.each_row for each in fired):
        return
    batch = policy.batch
    waits = {
        "lock_timeout": batch.lock_timeout.total_seconds(),
        "statement_timeout": batch.statement_timeout.total_seconds(),
    }
    refused = []
    for what, table, statement in _statements(selection, sql.SQL("false")):
        try:
            with database.transaction(**waits) as connection, connection.transaction(force_rollback=True):
                connection.execute(statement, selection.parameters)
        except psycopg.errors.LockNotAvailable:
            return  # a batch waits for the lock with patience, and says what it waits for
        except psycopg.Error as error:
            if connection_lost(error):
                raise
            refused.append(f"PostgreSQL refuses to {what} {table}, even no row: {told(error, fired)}")
    if refused:
        raise PolicyFailed("preflight_failed", f"policy {policy.name} was not started: {'; '.join(refused)}")


def _statements(selection: Selection, rows: sql.Composable) -> Iterator[tuple[str, str, sql.Composed]]:
    """Return the statements of a run for the rows that a condition chooses, each with its verb and its table."""
    policy = selection.policy
    names: dict[str, sql.Composable] = {"table": selection.table, "rows": rows}
    if policy.removes_rows:
        yield "delete from", policy.table, sql.SQL("DELETE FROM {table} t WHERE {rows}").format(**names)
    elif policy.written:
        same = sql.SQL(", ").join(sql.SQL("{0} = t.{0}").format(sql.Identifier(column)) for column in policy.written)
        yield "update", policy.table, sql.SQL("UPDATE {table} t SET {same} WHERE {rows}").format(same=same, **names)
    for reach in selection.reaches:
        child = table_identifier(reach.foreign_key.table)
        names |= {"child": child, "joins": reach.foreign_key.joins("c")}
        if reach.action == "delete":
            change = sql.SQL("DELETE FROM {child} c USING {table} t WHERE {joins} AND {rows}").format(**names)
            yield "delete from", reach.foreign_key.table, change
        else:
            nulls = sql.SQL(", ").join(sql.SQL("{} = NULL").format(sql.Identifier(c)) for c in reach.nulled)
            cut_off = sql.SQL("UPDATE {child} c SET {nulls} FROM {table} t WHERE {joins} AND {rows}")
            yield "update", reach.foreign_key.table, cut_off.format(nulls=nulls, **names)


def triggers_behind(connection: Connection, policy: Policy) -> list[Trigger]:
    """Return the triggers that a policy's statements fire, on its table and on its dependants."""
    changed: dict[str, Event] = {policy.table: "DELETE" if policy.removes_rows else "UPDATE"}
    changed |= {each.table: "DELETE" if each.action == "delete" else "UPDATE" for each in policy.dependants}
    oids = connection.execute(
        "SELECT n.nspname || '.' || c.relname, c.oid::bigint FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname || '.' || c.relname = ANY (%s)",
        (list(changed),),
    ).fetchall()
    return [each for table, oid in oids for each in triggers_of(connection, oid, changed[table])]


def raised_in(error: psycopg.Error, fired: list[Trigger]) -> list[Trigger]:
    """Return those of the triggers in whose functions an error was raised."""
    raising = functions_of(error)
    return [each for each in fired if each.function_name in raising]


def told(error: psycopg.Error, fired: list[Trigger]) -> str:
    """Say what PostgreSQL refused, and in which trigger if it was in one, with the cure."""
    said = describe_database_error(error)
    names = list(dict.fromkeys(str(each) for each in raised_in(error, fired)))
    return (
        f"{said}; raised in {' and '.join(names)}: correct its function, or what the function needs" if names else said
    )


def known_triggers(database: ReadOnlyDatabase, policy: Policy) -> list[Trigger]:
    """Return what :func:`triggers_behind` does; nothing if it cannot be read, so that the refusal at hand is told."""
    try:
        return database.read(lambda connection: triggers_behind(connection, policy))
    except (psycopg.Error, OpsError):
        return []


def blame(database: ReadOnlyDatabase, policy: Policy, error: psycopg.Error) -> str:
    """Say what PostgreSQL refused of a policy's statements: on which table, and in which trigger if it was in one."""
    fired = known_triggers(database, policy) if functions_of(error) else []
    return f"PostgreSQL refused what policy {policy.name} does to {policy.table}: {told(error, fired)}"
