"""What a table sets off, or refuses, when rows of it are deleted or changed: triggers, rules, logical replication.

PostgreSQL reports these only when the first row goes. They are read from the catalogue instead, of the whole tree of
the table, so that a dry run, ``--check`` and a role that may only read see them too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from scripts.lifecycle.engine.catalogue import DOER, rows_of, tree_of
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.policy.policies import Policy, table_identifier
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection, ReadOnlyDatabase
from scripts.utils.errors import OpsError, describe_database_error, functions_of

Event = Literal["INSERT", "UPDATE", "DELETE"]

# Bits of pg_trigger.tgtype, and letters of pg_rewrite.ev_type.
_BITS: dict[str, int] = {"INSERT": 4, "DELETE": 8, "UPDATE": 16}
_LETTERS: dict[str, str] = {"UPDATE": "2", "INSERT": "3", "DELETE": "4"}

# A statement on a table fires the row triggers of every table of its tree, and the statement triggers of its own.
_TRIGGERS = f"""
SELECT DISTINCT g.tgname AS name, n.nspname || '.' || c.relname AS "table", g.tgfoid::bigint AS function,
       f.proname AS function_name, g.tgtype & 3 = 3 AS may_keep_rows
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

# A function that is not SECURITY DEFINER runs with the rights of the role whose statement fired the trigger.
_FUNCTIONS = f"""{DOER}
SELECT f.oid::bigint AS oid, n.nspname || '.' || f.proname AS name, f.prosecdef AS definer, f.prosrc AS body,
       has_function_privilege(doer.role, f.oid, 'EXECUTE') AS may_execute, doer.role,
       coalesce((SELECT regexp_split_to_array(replace(substr(c, 13), '"', ''), '\\s*,\\s*') FROM unnest(f.proconfig) c
                  WHERE c LIKE 'search_path=%%'), current_schemas(false)::text[]) AS path
  FROM doer, pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
  JOIN pg_language l ON l.oid = f.prolang AND l.lanname IN ('plpgsql', 'sql')
 WHERE f.oid = ANY (%(oids)s) OR n.nspname NOT IN ('pg_catalog', 'information_schema')
   AND EXISTS (SELECT FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS w (schema, name)
                WHERE f.proname = w.name
                  AND (w.schema = n.nspname OR w.schema = '' AND n.nspname = ANY (%(path)s::text[])))
"""  # noqa: S608 - constants

_TARGETS = f"""{DOER}
SELECT c.oid::bigint AS oid, n.nspname || '.' || c.relname AS name, w.right AS "right",
       has_schema_privilege(doer.role, n.oid, 'USAGE') AS may_use_schema,
       CASE w.right WHEN 'DELETE' THEN has_table_privilege(doer.role, c.oid, 'DELETE')
                    ELSE has_any_column_privilege(doer.role, c.oid, w.right) END AS allowed,
       (SELECT coalesce(array_agg(sn.nspname || '.' || s.relname), '{{}}')
          FROM pg_attrdef d JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
                                            AND p.refclassid = 'pg_class'::regclass
          JOIN pg_class s ON s.oid = p.refobjid JOIN pg_namespace sn ON sn.oid = s.relnamespace
         WHERE w.right = 'INSERT' AND d.adrelid = c.oid
           AND CASE s.relkind WHEN 'S' THEN NOT has_sequence_privilege(doer.role, s.oid, 'USAGE, UPDATE') END)
       AS sequences
  FROM doer, unnest(%(schemas)s::text[], %(names)s::text[], %(rights)s::text[]) AS w (schema, name, "right")
  JOIN pg_class c ON c.relname = w.name AND c.relkind IN ('r', 'p', 'v', 'f')
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE w.schema = n.nspname OR w.schema = '' AND n.nspname = ANY (%(path)s::text[])
"""  # noqa: S608 - constants

_NAME = r'((?:"[^"]+"|\w+)(?:\s*\.\s*(?:"[^"]+"|\w+))?)'
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_WRITES: dict[str, re.Pattern[str]] = {
    "INSERT": re.compile(rf"\bINSERT\s+INTO\s+{_NAME}", re.IGNORECASE),
    "UPDATE": re.compile(rf"\bUPDATE\s+(?:ONLY\s+)?{_NAME}(?:\s+(?:AS\s+)?(?!SET\b)\w+)?\s+SET\b", re.IGNORECASE),
    "DELETE": re.compile(rf"\bDELETE\s+FROM\s+(?:ONLY\s+)?{_NAME}", re.IGNORECASE),
    "SELECT": re.compile(rf"(?<!DELETE )\b(?:FROM|JOIN)\s+(?:ONLY\s+)?{_NAME}(?!\s*\()", re.IGNORECASE),
}
_CALL = re.compile(rf"""(?<!INTO )(?<![\w".]){_NAME}\s*\(""", re.IGNORECASE)
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


def lacking_rights(connection: Connection, oid: int, event: Event, columns: list[str] | None = None) -> Iterator[str]:
    """Say which rights the functions of a table's triggers seem to need and the jobs' role does not have.

    The text of a function is read, not run: what it does in another branch only, or builds as text, is not told apart.
    So this is a warning, and never stops a run by itself. Arguments as for :func:`triggers_of`.
    """
    for trigger, function, target in _walked(connection, oid, event, columns):
        if "body" not in target:
            yield from (
                f"{trigger} runs {function['name']}, {problem}" for problem in _missing(target, function["role"])
            )
        elif not target["may_execute"]:
            right = f"EXECUTE on {target['name']}"
            yield f"{trigger} runs {function['name']}, {_cure(right, target['role'])}"


def needs_of_triggers(
    connection: Connection, oid: int, event: Event, columns: list[str] | None = None
) -> Iterator[tuple[int, str]]:
    """Return table (oid) and verb of the rights that the functions of a table's triggers seem to need.

    Arguments, and what cannot be seen, are as for :func:`lacking_rights`.
    """
    for _, _, target in _walked(connection, oid, event, columns):
        if "body" not in target:
            yield target["oid"], target["right"]


def _walked(
    connection: Connection, oid: int, event: Event, columns: list[str] | None
) -> Iterator[tuple[Trigger, dict[str, Any], dict[str, Any]]]:
    """Return trigger, function, and each table and function that its text names; functions have a ``body``."""
    todo = [(each, each.function) for each in triggers_of(connection, oid, event, columns)]
    known: set[int] = set()
    while todo:
        trigger, function = todo.pop(0)
        if function in known:
            continue
        known.add(function)
        called: dict[str, Any] = {"oids": [function], "schemas": [], "names": [], "path": []}
        for row in rows_of(connection, _FUNCTIONS, called):
            if row["definer"]:
                continue
            body = " ".join(_COMMENT.sub(" ", row["body"]).split())
            for target in _targets(connection, body, row["path"]):
                yield trigger, row, target
                if target["right"] != "SELECT":
                    further = triggers_of(connection, target["oid"], target["right"])
                    todo += [(trigger, each.function) for each in further]
            for callee in _called(connection, body, row["path"]):
                yield trigger, row, callee
                todo.append((trigger, callee["oid"]))


def _targets(connection: Connection, body: str, path: list[str]) -> list[dict[str, Any]]:
    """Return the tables that the text of a function names, with what it does to them."""
    found = sorted({(*_split(name), right) for right, verb in _WRITES.items() for name in verb.findall(body)})
    if not found:
        return []
    schemas, names, rights = map(list, zip(*found, strict=True))
    return rows_of(connection, _TARGETS, {"schemas": schemas, "names": names, "rights": rights, "path": path})


def _called(connection: Connection, body: str, path: list[str]) -> list[dict[str, Any]]:
    found = sorted({_split(name) for name in _CALL.findall(body)})
    schemas, names = [schema for schema, _ in found], [name for _, name in found]
    return rows_of(connection, _FUNCTIONS, {"oids": [], "schemas": schemas, "names": names, "path": path})


def _split(name: str) -> tuple[str, str]:
    """Return schema (empty: none is written) and name, as the catalogue has them."""
    parts = [part[1:-1] if part.startswith('"') else part.lower() for part in re.split(r"\s*\.\s*", name)]
    return (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])


def _missing(target: dict[str, Any], role: str) -> Iterator[str]:
    if not target["may_use_schema"]:
        yield _cure(f"USAGE on the schema of {target['name']}", role)
    if not target["allowed"]:
        yield _cure(f"{target['right']} on {target['name']}", role)
    yield from (_cure(f"USAGE on sequence {sequence}", role) for sequence in target["sequences"])


def _cure(right: str, role: str) -> str:
    return (
        f"which needs {right}, and {role} does not have it: GRANT it, or make the function SECURITY DEFINER with a"
        " search_path of its own"
    )


def try_out(connection: Connection, selection: Selection) -> list[str]:
    """Have PostgreSQL plan the very statements of a run, and return what it refuses.

    EXPLAIN without ANALYZE checks rights, replica identity and rules and changes nothing, so it is allowed in a
    transaction that is READ ONLY. A role that only reads, a standby and a database without ``ops`` cannot be asked.
    """
    row = connection.execute(
        f"{DOER} SELECT doer.role = current_user AND NOT pg_is_in_recovery()"  # noqa: S608 - a constant
        " AND EXISTS (SELECT FROM pg_namespace WHERE nspname = 'ops') FROM doer"
    ).fetchone()
    if not (row and row[0]):
        return []
    found = []
    for what, table, statement in _statements(selection):
        try:
            with connection.transaction(force_rollback=True):
                connection.execute(sql.SQL("EXPLAIN {}").format(statement), selection.parameters)
        except psycopg.Error as error:
            if not (error.sqlstate or "").startswith(_REFUSED_WHOLE) and error.sqlstate != "55000":
                raise
            found.append(f"PostgreSQL would refuse to {what} {table}: {describe_database_error(error)}")
    return found


def _statements(selection: Selection) -> Iterator[tuple[str, str, sql.Composed]]:
    policy = selection.policy
    names: dict[str, sql.Composable] = {"table": selection.table, "due": selection.removable}
    if policy.removes_rows:
        yield "delete from", policy.table, sql.SQL("DELETE FROM {table} t WHERE {due}").format(**names)
    elif policy.written:
        same = sql.SQL(", ").join(sql.SQL("{0} = t.{0}").format(sql.Identifier(column)) for column in policy.written)
        yield "update", policy.table, sql.SQL("UPDATE {table} t SET {same} WHERE {due}").format(same=same, **names)
    for reach in selection.reaches:
        child = table_identifier(reach.foreign_key.table)
        names |= {"child": child, "joins": reach.foreign_key.joins("c")}
        if reach.action == "delete":
            change = sql.SQL("DELETE FROM {child} c USING {table} t WHERE {joins} AND {due}").format(**names)
            yield "delete from", reach.foreign_key.table, change
        else:
            nulls = sql.SQL(", ").join(sql.SQL("{} = NULL").format(sql.Identifier(c)) for c in reach.nulled)
            cut_off = sql.SQL("UPDATE {child} c SET {nulls} FROM {table} t WHERE {joins} AND {due}")
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


def blame(database: ReadOnlyDatabase, policy: Policy, error: psycopg.Error) -> str:
    """Say what PostgreSQL refused of a policy's statements: on which table, and in which trigger if it was in one."""
    said = f"PostgreSQL refused what policy {policy.name} does to {policy.table}: {describe_database_error(error)}"
    raising = functions_of(error)
    if not raising:
        return said
    try:
        fired = database.read(lambda connection: triggers_behind(connection, policy))
    except (psycopg.Error, OpsError):
        return said  # the refusal is what matters: it must not be hidden by a second one
    names = [str(each) for each in fired if each.function_name in raising]
    return (
        f"{said}; raised in {' and '.join(names)}: correct its function, or what the function needs" if names else said
    )
