"""The rights that the policy file needs, column by column, and which of them a role lacks.

The statements of the suite read the columns that the policy file names, the columns of foreign keys, and three system
columns; they change few columns, and delete rows. ``migrate.py --grants`` gives these rights and takes back all others,
and the preflight checks the same list, so that the two cannot differ (docs/decisions/0023-column-rights.md).

Beginning: :func:`of_policy` and :func:`of_step` read the file, :func:`of_references` the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from scripts.lifecycle.engine.catalogue import DOER, columns_of, pointing_at, rows_of
from scripts.lifecycle.engine.selection import ForeignKey
from scripts.lifecycle.policy.conditions import Condition, LookedUp
from scripts.lifecycle.policy.erasure_steps import ErasureStep
from scripts.lifecycle.policy.lookups import Lookup
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.lifecycle.policy.row_periods import RowPeriod
from scripts.lifecycle.policy.sections import Dependant
from scripts.lifecycle.policy.tables import parts_of
from scripts.utils.db_utils import Connection

Verb = Literal["SELECT", "INSERT", "UPDATE", "DELETE", "LOCK"]
"""LOCK is SELECT ... FOR UPDATE, which asks for UPDATE on any one column."""

WHOLE = ""
"""In place of a column: a right on the whole table."""
PLACE_OF_A_ROW = ("ctid", "tableoid", "xmin")
"""System columns by which a statement names one version of one row. Like any other column, each needs a right."""
CURE = "run backend/migrate.py --grants with this policy file"

_LACKING = f"""{DOER}
SELECT w.place AS number, c.oid IS NOT NULL AND NOT EXISTS (
           SELECT FROM pg_attribute each WHERE each.attrelid = c.oid AND each.attnum > 0 AND NOT each.attisdropped
              AND CASE WHEN w.verb IN ('SELECT', 'UPDATE')
                       THEN has_column_privilege(r.role, c.oid, each.attnum, w.verb) END
       ) AS none
  FROM doer, unnest(%(schemas)s::text[], %(names)s::text[], %(verbs)s::text[], %(columns)s::text[])
       WITH ORDINALITY AS w (schema, name, verb, "column", place)
  JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = w.column AND NOT a.attisdropped
 CROSS JOIN LATERAL (SELECT doer.role UNION SELECT current_user WHERE w.verb = 'SELECT' AND w."column" <> '') r (role)
 WHERE CASE WHEN w.verb = 'LOCK' THEN has_any_column_privilege(r.role, c.oid, 'UPDATE')
            WHEN w."column" = '' THEN has_table_privilege(r.role, c.oid, w.verb)
            ELSE has_column_privilege(r.role, c.oid, a.attnum, w.verb) END IS FALSE
 ORDER BY 1
"""  # noqa: S608 - constants

# Rights that PUBLIC has on a table or its column, and the role has by no other way.
_BY_PUBLIC = f"""{DOER}
SELECT DISTINCT w.schema || '.' || w.name AS "table", w.verb
  FROM doer, unnest(%(schemas)s::text[], %(names)s::text[], %(verbs)s::text[], %(columns)s::text[])
       AS w (schema, name, verb, "column")
  JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = w.column AND NOT a.attisdropped
 CROSS JOIN LATERAL (
     SELECT bool_or(e.grantee = 0) AS everybody, bool_or(e.grantee <> 0 AND pg_has_role(doer.role, e.grantee, 'USAGE'))
            AS own
       FROM (SELECT * FROM aclexplode(c.relacl) UNION ALL SELECT * FROM aclexplode(a.attacl)) e
      WHERE e.privilege_type = w.verb) held
 WHERE held.everybody AND NOT held.own AND NOT pg_has_role(doer.role, c.relowner, 'USAGE') ORDER BY 1, 2
"""  # noqa: S608 - constants


@dataclass(frozen=True)
class Right:
    """One right that a statement of the suite needs."""

    table: str
    verb: Verb
    column: str
    """A column, or :data:`WHOLE`; of LOCK the one to grant UPDATE on if no other column is changed."""
    place: str
    """What needs it: a place in the policy file with its line, or a foreign key."""


def of_policy(policy: Policy) -> Iterator[Right]:
    """Return the rights that a policy needs by its own words; what foreign keys add says :func:`of_references`."""
    home = ("policies", policy.name)
    yield from _of_row(policy, *home)
    for name, rule in policy.rules.items():
        yield from _of_value(policy, rule.anchor, *home, "rules", name, "anchor")
        if isinstance(rule.keep, RowPeriod):
            yield from _of_value(policy, rule.keep.lookup or rule.keep.take, *home, "rules", name, "keep")
        yield from _conditions(policy, rule.when, *home, "rules", name, "when")
    for name, exception in policy.exceptions.items():
        yield from _conditions(policy, exception.when, *home, "exceptions", name, "when")
        if exception.queue:
            yield from _of_value(policy, exception.queue.anchor, *home, "exceptions", name, "queue", "anchor")
    yield from _of_action(policy)
    yield from _of_decisions(policy)
    for number, dependant in enumerate(policy.dependants):
        yield from _of_dependant(dependant, policy.at(*home, "dependants", number))


def of_step(name: str, step: ErasureStep) -> Iterator[Right]:
    """Return the rights that an erasure step needs by its own words."""
    table, home = step.table, ("erasure", name)
    yield from _of_row(step, *home)
    yield from _conditions(step, step.when, *home, "when")
    for reason, conditions in step.blocked_by.items():
        yield from _conditions(step, conditions, *home, "blocked_by", reason)
    for column, treatment in step.columns.items():
        place = step.at(*home, "columns", column)
        yield Right(table, "SELECT", column, place)
        yield Right(table, "UPDATE", column, place)
        if treatment.how == "suppression":
            # A person who is on the suppression list already needs no second row: the one that names the address goes.
            yield Right(table, "DELETE", WHOLE, place)
    if step.action == "delete":
        yield Right(table, "DELETE", WHOLE, step.at(*home, "action"))
    yield Right(table, "LOCK", step.key[0], step.at(*home, "key"))


def of_references(
    connection: Connection, table: str, oid: int, dependants: Iterable[Dependant] = ()
) -> Iterator[Right]:
    """Return the rights that the foreign keys need which point at a table whose rows go.

    Args:
        connection: Where the table is.
        table: The table.
        oid: Its oid.
        dependants: What the policy file says of these foreign keys.
    """
    declared = list(dependants)
    for key in pointing_at(connection, oid):
        yield from of_reference(connection, table, key, declared)


def of_reference(connection: Connection, table: str, key: ForeignKey, declared: list[Dependant]) -> Iterator[Right]:
    """Return the rights that one foreign key needs; the arguments are those of :func:`of_references`."""
    place = f"foreign key {key.name} on {key.table}"
    for column in key.columns:
        yield Right(key.table, "SELECT", column, place)
    for column in key.referenced:
        yield Right(table, "SELECT", column, place)
    yield from _versions(key.table, place)
    meant = [each for each in declared if key.is_named(each.table, each.column)]
    dependant = max(meant, key=lambda each: len(each.column), default=None)
    if dependant is not None and dependant.action == "set_null":
        found = rows_of(connection, "SELECT to_regclass(%s)::oid AS oid", (_quoted(key.table),))
        columns = columns_of(connection, found[0]["oid"]) if found and found[0]["oid"] else {}
        for column in key.set_columns or key.columns:
            if column in columns and not columns[column]["attnotnull"]:
                yield Right(key.table, "UPDATE", column, place)


def lacking(connection: Connection, rights: Iterable[Right]) -> list[str]:
    """Say which rights are missing, one problem for each table and verb, with the places that need them.

    They are checked for the role that changes data; SELECT on columns for the connected role as well. Columns and
    tables that do not exist are left out: that is another problem.
    """
    wanted = list(dict.fromkeys(rights))
    found: dict[tuple[str, Verb], list[Right]] = {}
    unheld: set[tuple[str, Verb]] = set()
    for row in rows_of(connection, _LACKING, _arrays(wanted)):
        right = wanted[row["number"] - 1]
        if right not in found.setdefault((right.table, right.verb), []):
            found[right.table, right.verb].append(right)
        if row["none"]:
            unheld.add((right.table, right.verb))
    return [_problem(table, verb, each, none=(table, verb) in unheld) for (table, verb), each in found.items()]


def by_public(connection: Connection, rights: Iterable[Right]) -> list[str]:
    """Say which rights come from PUBLIC alone: any role has them too, and the job stops when they are revoked."""
    return [
        f"{row['verb']} on {row['table']} is a right of PUBLIC and not of the role: {CURE}, then REVOKE it FROM PUBLIC"
        for row in rows_of(connection, _BY_PUBLIC, _arrays(list(dict.fromkeys(rights))))
    ]


def needed(connection: Connection, policies: PolicySet) -> list[Right]:
    """Return every right that the policy file needs in this database, each once, in the file's order."""
    rights: list[Right] = []
    tables = [policy.table for policy in policies.policies.values()]
    tables += [step.table for step in policies.erasure.values()]
    oids = {table: oid for table in dict.fromkeys(tables) if (oid := oid_of(connection, table))}
    for policy in policies.policies.values():
        rights += of_policy(policy)
        if policy.removes_rows and policy.table in oids:
            rights += of_references(connection, policy.table, oids[policy.table], policy.dependants)
    for name, step in policies.erasure.items():
        rights += of_step(name, step)
        if step.table in oids:
            rights += of_references(connection, step.table, oids[step.table])
    changed = {right.table for right in rights if right.verb == "UPDATE"}
    # A column that no statement changes is granted for locks only where nothing else is.
    rights = [
        replace(each, verb="UPDATE") if each.verb == "LOCK" else each
        for each in rights
        if each.verb != "LOCK" or each.table not in changed
    ]
    first: dict[tuple[str, str, str], Right] = {}
    for right in rights:
        first.setdefault((right.table, right.verb, right.column), right)
    return list(first.values())


def oid_of(connection: Connection, table: str) -> int | None:
    """Return the oid of a table; None: there is none."""
    query = "SELECT c.oid::bigint AS oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    found = rows_of(connection, f"{query} WHERE n.nspname = %s AND c.relname = %s", parts_of(table))
    return found[0]["oid"] if found else None


def _of_row(entry: Policy | ErasureStep, *home: str) -> Iterator[Right]:
    """Return what finds a row and names it."""
    for column in entry.key:
        yield Right(entry.table, "SELECT", column, entry.at(*home, "key"))
    if entry.person:
        yield Right(entry.table, "SELECT", entry.person, entry.at(*home, "person"))
    yield from _versions(entry.table, entry.at(*home, "table"))


def _of_action(policy: Policy) -> Iterator[Right]:
    table, home = policy.table, ("policies", policy.name)
    section = policy.at(*home, "blob" if policy.blob else policy.action)
    for column in policy.written:
        yield Right(table, "SELECT", column, section)
        yield Right(table, "UPDATE", column, section)
    if policy.archive:
        # An archive holds every column, also one that the application adds tomorrow; a restore puts the rows back.
        yield Right(table, "SELECT", WHOLE, policy.at(*home, "action"))
        yield Right(table, "INSERT", WHOLE, policy.at(*home, "action"))
        for column in policy.archive.personal:
            yield Right(table, "SELECT", column, policy.at(*home, "archive", "personal"))
    if policy.removes_rows:
        yield Right(table, "DELETE", WHOLE, policy.at(*home, "action"))
    if policy.action != "retain":
        yield Right(table, "LOCK", policy.key[0], policy.at(*home, "key"))


def _of_decisions(policy: Policy) -> Iterator[Right]:
    for item_type, remedies in policy.decisions.items():
        for name, remedy in remedies.items():
            for column, value in remedy.set.items():
                home = ("policies", policy.name, "decisions", item_type, name, "set", column)
                yield Right(policy.table, "UPDATE", column, policy.at(*home))
                if isinstance(value, Lookup):
                    yield Right(policy.table, "SELECT", column, policy.at(*home))
                    yield from _of_value(policy, value, *home)


def _of_dependant(dependant: Dependant, place: str) -> Iterator[Right]:
    # Of rows that stay nobody asks which they are.
    key = dependant.key if dependant.action != "refuse" else ()
    for column in (*dependant.column, *key, *([dependant.person] if dependant.person else [])):
        yield Right(dependant.table, "SELECT", column, place)
    if dependant.action == "delete":
        yield Right(dependant.table, "DELETE", WHOLE, place)
    yield from _versions(dependant.table, place)


def _of_value(entry: Policy | ErasureStep, value: str | Lookup, *path: str) -> Iterator[Right]:
    """Return what a column needs, or a value of another table: the columns that are compared, on both sides, and it."""
    if isinstance(value, str):
        yield Right(entry.table, "SELECT", value, entry.at(*path))
        return
    for column in value.own:
        yield Right(entry.table, "SELECT", column, entry.at(*path, "same"))
    for column in value.columns:
        yield Right(value.from_table, "SELECT", column, entry.at(*path))


def _conditions(
    entry: Policy | ErasureStep, conditions: Mapping[str, Condition | LookedUp], *path: str
) -> Iterator[Right]:
    for name, condition in conditions.items():
        value = condition.lookup if isinstance(condition, LookedUp) else name
        yield from _of_value(entry, value, *path, name)


def _versions(table: str, place: str) -> Iterator[Right]:
    for column in PLACE_OF_A_ROW:
        yield Right(table, "SELECT", column, place)


def _arrays(rights: list[Right]) -> dict[str, list[str]]:
    parts = [parts_of(right.table) for right in rights]
    return {
        "schemas": [schema for schema, _ in parts],
        "names": [name for _, name in parts],
        "verbs": [right.verb for right in rights],
        "columns": [right.column for right in rights],
    }


def _problem(table: str, verb: Verb, rights: list[Right], *, none: bool) -> str:
    place = rights[0].place
    if verb == "LOCK":
        return f"no right to UPDATE any column of {table}, without which no row can be locked for {place}: {CURE}"
    if none or rights[0].column == WHOLE:
        return f"no right to {verb} on {table}, for {place}: {CURE}"
    named = [right for right in rights if right.column not in PLACE_OF_A_ROW] or rights
    said = ", ".join(f"{table}.{right.column} for {right.place}" for right in named)
    return f"no right to {verb} {said}: {CURE}"


def _quoted(table: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts_of(table))
