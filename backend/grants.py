"""Gives the suite's roles the least rights that a policy file needs, column by column, and takes back all others.

``lifecycle_jobs`` reads and changes what the statements of the suite name; ``lifecycle_reader`` reads the same columns;
``lifecycle_export`` reads what an export of a person's data holds. Only an archive needs whole rows. What a role holds
outside the schema ``ops`` and the policy file does not need is revoked, also what a person granted: on tables, their
columns, partitions and children, and on views. Two things stay: what the functions of the tables' triggers seem to
need, and the right on a partition that a run has detached, which ends with it. In ``ops`` the migrations give the
rights; what ``--grants`` added there is taken back as well.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from scripts.lifecycle.engine import rights, trigger_functions
from scripts.lifecycle.engine.catalogue import columns_of
from scripts.lifecycle.engine.rights import WHOLE, Right
from scripts.lifecycle.policy.exported import left_out
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.lifecycle.policy.tables import parts_of
from scripts.utils.errors import OpsError

Connection = psycopg.Connection[Any]

ROLE = "lifecycle_jobs"
READER = "lifecycle_reader"
EXPORT = "lifecycle_export"
ROLES = (ROLE, READER, EXPORT)

# What the roles were given themselves, by table and column. An owner has every right without being given one.
_HELD = """
SELECT r.rolname::text AS role, c.oid::bigint AS oid, n.nspname::text AS schema, c.relname::text AS name,
       e.privilege_type AS verb, coalesce(a.attname::text, '') AS column, e.grantor = c.relowner AS by_owner,
       pg_has_role(c.relowner, 'USAGE') AS may_revoke, pg_get_userbyid(e.grantor)::text AS grantor
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 CROSS JOIN LATERAL (
       SELECT 0 AS attnum, x.* FROM aclexplode(c.relacl) x UNION ALL
       SELECT k.attnum, x.* FROM pg_attribute k CROSS JOIN LATERAL aclexplode(k.attacl) x
        WHERE k.attrelid = c.oid AND NOT k.attisdropped) e
  JOIN pg_roles r ON r.oid = e.grantee
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = e.attnum AND e.attnum <> 0
 WHERE r.rolname = ANY (%(roles)s) AND e.grantee <> c.relowner AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
   AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_t%%'
   AND c.oid <> ALL (%(detached)s::bigint[])
 ORDER BY 1, 3, 4, 5, e.attnum
"""
_DETACHED = """
SELECT coalesce(array_agg(partition_oid::bigint), '{}') FROM ops.detached_partitions WHERE state = 'detached'
"""
# Rights by another way than a grant to the role itself: from PUBLIC, from a role that it is a member of, as an owner.
_OTHERWISE = """
WITH tables AS MATERIALIZED (
    SELECT c.oid, c.relowner, c.relacl, n.nspname, c.relname
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
       AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'ops') AND n.nspname NOT LIKE 'pg\\_t%%'
       AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                          AND d.deptype = 'e')
)
SELECT r.rolname::text AS role, c.nspname::text AS schema, c.relname::text AS name, v.verb,
       CASE WHEN r.rolsuper THEN 'as a superuser' WHEN pg_has_role(r.oid, c.relowner, 'USAGE') THEN 'as its owner'
            WHEN bool_or(e.grantee = 0) THEN 'as PUBLIC' ELSE 'as a member of another role' END AS why,
       array_agg(DISTINCT a.attname::text) AS columns
  FROM pg_roles r CROSS JOIN tables c CROSS JOIN (VALUES ('SELECT'), ('UPDATE'), ('INSERT')) v (verb)
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN LATERAL (SELECT * FROM aclexplode(c.relacl) UNION ALL SELECT * FROM aclexplode(a.attacl)) e
    ON e.privilege_type = v.verb AND e.grantee = 0
 WHERE r.rolname = ANY (%(roles)s) AND has_column_privilege(r.oid, c.oid, a.attnum, v.verb)
   AND NOT EXISTS (SELECT FROM (SELECT * FROM aclexplode(c.relacl) UNION ALL SELECT * FROM aclexplode(a.attacl)) x
                    WHERE x.grantee = r.oid AND x.privilege_type = v.verb)
 GROUP BY r.rolname, r.rolsuper, r.oid, c.oid, c.relowner, c.nspname, c.relname, v.verb ORDER BY 1, 2, 3, 4
"""
# USAGE of schemas in which a role holds nothing and calls nothing: a trigger's function may need that of others.
_EMPTY_SCHEMAS = """
SELECT r.rolname::text, n.nspname::text FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) e
  JOIN pg_roles r ON r.oid = e.grantee
 WHERE r.rolname = ANY (%s) AND e.privilege_type = 'USAGE' AND e.grantor = n.nspowner AND n.nspname <> 'ops'
   AND pg_has_role(n.nspowner, 'USAGE')
   AND NOT EXISTS (SELECT FROM pg_proc f WHERE f.pronamespace = n.oid)
   AND NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND (
           EXISTS (SELECT FROM aclexplode(c.relacl) x WHERE x.grantee = r.oid)
        OR EXISTS (SELECT FROM pg_attribute a CROSS JOIN LATERAL aclexplode(a.attacl) x
                    WHERE a.attrelid = c.oid AND x.grantee = r.oid)))
 ORDER BY 1, 2
"""
_NAMED_AT_MOST = 10
_GIVEN_IN_OPS = re.compile(r"\b(GRANT|REVOKE)\s+([A-Z, ]+?)\s+ON\s+(ops\.[\w.,\s]+?)\s+(?:TO|FROM)\s+lifecycle_jobs")

_PARTITIONED = """
    SELECT FROM pg_partitioned_table p JOIN pg_class c ON c.oid = p.partrelid
      JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
     WHERE n.nspname = %s AND c.relname = %s AND a.attname = %s AND p.partstrat = 'r' AND p.partnatts = 1
"""
# The functions by which the jobs drop partitions, and whether they may call them.
_FUNCTIONS = ("detach_partition", "lock_partition", "drop_partition", "attach_partition")
_MAY_CALL = """
SELECT bool_and(has_function_privilege(%s, oid, 'EXECUTE')) FROM pg_proc
 WHERE pronamespace = 'ops'::regnamespace AND proname = ANY (%s)
"""
_RIGHT = """
SELECT FROM ops.partition_rights
 WHERE policy = %s AND table_name = %s AND anchor = %s AND key = %s AND person IS NOT DISTINCT FROM %s
   AND keep::text = %s::interval::text AND archives = %s
"""


@dataclass(frozen=True)
class Given:
    """What was done: the statements executed, and what a person should know or do besides."""

    statements: list[str]
    notes: list[str]
    missing: list[str] = field(default_factory=list)
    """Columns that the policy file names and that do not exist, with their places: rights on them were not given."""


def given_by_migrations(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Return the rights, as verb and table, that migrations with these texts give to the jobs in the schema ops."""
    wanted: dict[tuple[str, str], None] = {}
    for verb, verbs, tables in (match for text in texts for match in _GIVEN_IN_OPS.findall(text)):
        for each in verbs.split(","):
            for table in tables.split(","):
                key = (each.strip(), table.strip())
                if verb == "GRANT":
                    wanted[key] = None
                else:
                    wanted.pop(key, None)
    return list(wanted)


def wanted_by_role(connection: Connection, policies: PolicySet) -> tuple[dict[str, list[Right]], list[str]]:
    """Return the rights that each role needs, and the columns named in the file that do not exist, with their places.

    Raises:
        OpsError: Tables do not exist; names all of them.
    """
    needed = rights.needed(connection, policies)
    there = {table: _columns(connection, table) for table in dict.fromkeys(right.table for right in needed)}
    missing = {right.table: right for right in reversed(needed) if not there[right.table]}
    if missing:
        named = "; ".join(f"{right.place}: table {table} does not exist" for table, right in sorted(missing.items()))
        raise OpsError(f"No rights were changed: {named}")
    absent: dict[tuple[str, str], str] = {}
    for right in needed:
        if right.column != WHOLE and right.column not in there[right.table]:
            said = f"{right.place}: column {right.table}.{right.column} does not exist"
            absent.setdefault((right.table, right.column), said)
    needed = [right for right in needed if (right.table, right.column) not in absent]
    whole = {(right.table, right.verb) for right in needed if right.column == WHOLE}
    read = [right for right in needed if right.verb == "SELECT" and right.column != WHOLE]
    wanted = {
        ROLE: [right for right in needed if right.column == WHOLE or (right.table, right.verb) not in whole],
        READER: read,
        EXPORT: _for_an_export(connection, policies, read),
    }
    return wanted, list(absent.values())


def give(connection: Connection, policies: PolicySet, *, migrations: Iterable[str] = ()) -> Given:
    """Give what is missing, take back what is too much, and say both; what is as it should be is left alone.

    Args:
        connection: As an owner of the tables, in a transaction.
        policies: The policy file: all that the roles may do.
        migrations: The texts of the migrations that were applied; their rights in ``ops`` stay.
    """
    roles = _roles(connection)
    needed, missing = wanted_by_role(connection, policies)
    wanted = {role: each for role, each in needed.items() if role in roles}
    kept = _of_triggers(connection, wanted[ROLE]) if ROLE in wanted else set()
    done: list[str] = []

    def execute(statement: sql.Composed) -> None:
        connection.execute(statement)
        done.append(statement.as_string(connection))

    held = _held(connection, roles)
    mine = [row for row in held if row["may_revoke"]]
    if surplus := _too_much(mine, wanted, kept, set(given_by_migrations(migrations))):
        for statement in surplus:
            execute(statement)
        held = _held(connection, roles)  # what is taken back from a table is taken back from its columns as well
    for role, each in wanted.items():
        for statement in _missing(connection, held, role, each):
            execute(statement)
    for statement in of_partitions(connection, policies):
        execute(statement)
    for role, schema in connection.execute(_EMPTY_SCHEMAS, (roles,)).fetchall():
        execute(sql.SQL("REVOKE USAGE ON SCHEMA {} FROM {}").format(sql.Identifier(schema), sql.Identifier(role)))
    notes = [
        f"{row['role']} may still {row['verb']} {_named(row)}: {row['grantor']} granted it, so connect as"
        f" {row['grantor']} and REVOKE it"
        for row in held
        if not (row["by_owner"] and row["may_revoke"]) and not _is_wanted(row, wanted, kept) and row["schema"] != "ops"
    ]
    notes += otherwise(connection)
    return Given(done, list(dict.fromkeys(notes)), missing)


def of_partitions(connection: Connection, policies: PolicySet) -> list[sql.Composed]:
    """List what lets the jobs drop expired partitions: of the tables that are partitioned as their policy needs it.

    A policy that left the file, or whose table is no longer partitioned that way, loses the right.
    """
    if connection.execute("SELECT to_regclass('ops.partition_rights')").fetchone() == (None,):
        return []
    wanted: dict[str, tuple[Any, ...]] = {}
    for policy in policies.policies.values():
        rule = policy.rules[policy.dropping_rule] if policy.dropping_rule else None
        if rule and connection.execute(_PARTITIONED, (*parts_of(policy.table), rule.anchor)).fetchone() is not None:
            archives = policy.archive is not None
            wanted[policy.name] = (policy.table, rule.anchor, policy.key[0], policy.person, rule.least.text, archives)
    new = {name: row for name, row in wanted.items() if connection.execute(_RIGHT, (name, *row)).fetchone() is None}
    stale = connection.execute(
        "SELECT policy FROM ops.partition_rights WHERE policy <> ALL(%s) ORDER BY 1", (list(wanted.keys() - new),)
    ).fetchall()
    statements = [
        sql.SQL("DELETE FROM ops.partition_rights WHERE policy = {}").format(sql.Literal(name)) for (name,) in stale
    ]
    statements += [
        sql.SQL(
            "INSERT INTO ops.partition_rights (policy, table_name, anchor, key, person, keep, archives) VALUES ({})"
        ).format(sql.SQL(", ").join(map(sql.Literal, (name, *row))))
        for name, row in new.items()
    ]
    may_call = connection.execute(_MAY_CALL, (ROLE, list(_FUNCTIONS))).fetchone() == (True,)
    # What a run has detached is attached again by these functions, also after its policy has gone.
    open_mark = connection.execute("SELECT FROM ops.detached_partitions WHERE state = 'detached' LIMIT 1").fetchone()
    needed = bool(wanted) or open_mark is not None
    if needed != may_call:
        do, to = ("GRANT", "TO") if needed else ("REVOKE", "FROM")
        statements.append(
            sql.SQL("{} EXECUTE ON FUNCTION {} {} {}").format(
                sql.SQL(do),
                sql.SQL(", ").join(sql.Identifier("ops", name) for name in _FUNCTIONS),
                sql.SQL(to),
                sql.Identifier(ROLE),
            )
        )
    return statements


def pending(connection: Connection, policies: PolicySet, *, migrations: Iterable[str] = ()) -> list[str]:
    """Return what :func:`give` would revoke, then what it would grant; the arguments are the same. Writes nothing.

    Raises:
        OpsError: Tables or columns of the policy file do not exist.
    """
    needed, missing = wanted_by_role(connection, policies)
    if missing:
        raise OpsError("; ".join(missing))
    roles = _roles(connection)
    wanted = {role: each for role, each in needed.items() if role in roles}
    kept = _of_triggers(connection, wanted[ROLE]) if ROLE in wanted else set()
    held = _held(connection, roles)
    statements = _too_much(held, wanted, kept, set(given_by_migrations(migrations)))
    statements += [statement for role, each in wanted.items() for statement in _missing(connection, held, role, each)]
    return [statement.as_string(connection) for statement in statements]


def otherwise(connection: Connection) -> list[str]:
    """Say what the roles may do on the application's tables by a right that is not their own, such as PUBLIC's."""
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in _rows(connection, _OTHERWISE, {"roles": list(ROLES)}):
        found[row["role"], row["why"], row["verb"]].append(f"{row['schema']}.{row['name']}")
    return [
        f"{role} may {verb} columns of {_some(tables)} {why}, whatever the policy file says: REVOKE that"
        for (role, why, verb), tables in found.items()
    ]


def _some(tables: list[str]) -> str:
    shown, more = tables[:_NAMED_AT_MOST], len(tables) - _NAMED_AT_MOST
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _roles(connection: Connection) -> list[str]:
    query = "SELECT rolname::text FROM pg_roles WHERE rolname = ANY(%s)"
    return [name for (name,) in connection.execute(query, (list(ROLES),))]


def _for_an_export(connection: Connection, policies: PolicySet, read: list[Right]) -> list[Right]:
    """Return what an export reads: every column of the person's rows but the secrets, and what finds the rows."""
    found = []
    tables = dict.fromkeys(step.table for step in policies.erasure.values())
    for table in tables:
        columns = [column for column in _columns(connection, table) if column not in rights.PLACE_OF_A_ROW]
        without = left_out(policies, table, columns)
        found += [Right(table, "SELECT", column, "an export") for column in columns if column not in without]
    found += [right for right in read if right.table in tables]
    return list({(right.table, right.column): right for right in found}.values())


def _columns(connection: Connection, table: str) -> list[str]:
    """Return a table's columns and the system columns that statements name; none: there is no such table."""
    oid = rights.oid_of(connection, table)
    return [*columns_of(connection, oid), *rights.PLACE_OF_A_ROW] if oid else []


def _of_triggers(connection: Connection, wanted: list[Right]) -> set[tuple[int, str]]:
    """Return table and verb of what the functions of triggers seem to need, whose rights a person grants."""
    events: dict[tuple[str, str], list[str]] = defaultdict(list)
    for right in wanted:
        if right.verb in ("INSERT", "UPDATE", "DELETE"):
            events[right.table, right.verb].append(right.column)
    found: set[tuple[int, str]] = set()
    for (table, verb), columns in events.items():
        if oid := rights.oid_of(connection, table):
            changed = columns if verb == "UPDATE" else None
            found |= set(trigger_functions.needs(connection, oid, verb, changed))  # type: ignore[arg-type]
    return found


def _too_much(
    held: list[dict[str, Any]],
    wanted: dict[str, list[Right]],
    kept: set[tuple[int, str]],
    migrated: set[tuple[str, str]],
) -> list[sql.Composed]:
    """Return the statements that take back what no policy needs, one for each role, table and verb."""
    surplus: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for row in held:
        # Given by migrations, as are all SELECT rights there.
        if (
            row["schema"] == "ops"
            and row["column"] == WHOLE
            and (row["verb"] != "DELETE" or (row["verb"], f"ops.{row['name']}") in migrated)
        ):
            continue
        if row["by_owner"] and not _is_wanted(row, wanted, kept):
            surplus[row["role"], row["schema"], row["name"], row["verb"]].append(row["column"])
    return [
        _statement("REVOKE", verb, schema, name, [] if WHOLE in columns else columns, role)
        for (role, schema, name, verb), columns in surplus.items()
    ]


def _missing(
    connection: Connection, held_by_all: list[dict[str, Any]], role: str, wanted: list[Right]
) -> list[sql.Composed]:
    """Return the statements that give a role what it needs and does not hold."""
    held = {
        (f"{row['schema']}.{row['name']}", row["verb"], row["column"]) for row in held_by_all if row["role"] == role
    }
    lacking: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for right in wanted:
        # In ops the migrations gave whole tables.
        if not held & {(right.table, right.verb, right.column), (right.table, right.verb, WHOLE)}:
            lacking[(*parts_of(right.table), right.verb)].append(right.column)
    usage = connection.execute(
        "SELECT n.nspname::text FROM pg_namespace n WHERE n.nspname = ANY(%s) AND NOT EXISTS ("
        " SELECT FROM aclexplode(n.nspacl) e WHERE e.privilege_type = 'USAGE' AND e.grantee = to_regrole(%s))",
        (sorted({parts_of(right.table)[0] for right in wanted}), role),
    ).fetchall()
    schemas = [
        sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(name), sql.Identifier(role))
        for (name,) in usage
    ]
    return schemas + [
        _statement("GRANT", verb, schema, name, [] if WHOLE in columns else columns, role)
        for (schema, name, verb), columns in lacking.items()
    ]


def _held(connection: Connection, roles: list[str]) -> list[dict[str, Any]]:
    detached: list[int] = []
    if connection.execute("SELECT to_regclass('ops.detached_partitions')").fetchone() != (None,):
        row = connection.execute(_DETACHED).fetchone()
        detached = row[0] if row else []
    return _rows(connection, _HELD, {"roles": roles, "detached": detached})


def _is_wanted(row: dict[str, Any], wanted: dict[str, list[Right]], kept: set[tuple[int, str]]) -> bool:
    if row["role"] == ROLE and (row["oid"], row["verb"]) in kept:
        return True
    table = f"{row['schema']}.{row['name']}"
    return any(
        (right.table, right.verb, right.column) == (table, row["verb"], row["column"]) for right in wanted[row["role"]]
    )


def _statement(do: str, verb: str, schema: str, name: str, columns: list[str], role: str) -> sql.Composed:
    listed = sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, columns))) if columns else sql.SQL("")
    return sql.SQL("{do} {verb}{columns} ON {table} {to} {role}").format(
        do=sql.SQL(do),
        verb=sql.SQL(verb),
        columns=listed,
        table=sql.Identifier(schema, name),
        to=sql.SQL("TO" if do == "GRANT" else "FROM"),
        role=sql.Identifier(role),
    )


def _named(row: dict[str, Any]) -> str:
    return ".".join(filter(None, (row["schema"], row["name"], row["column"])))


def _rows(connection: Connection, query: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        return cursor.execute(query, parameters).fetchall()
