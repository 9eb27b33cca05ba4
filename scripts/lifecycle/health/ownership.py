"""Follows foreign keys from every table that knows its people, and finds whose rows no line of the file decides about.

What a table's columns are called says little. That its rows refer to a person's rows makes them the person's, whatever
they hold: a row of answers that has nothing but a number of a patient is about that patient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scripts.lifecycle.engine import people
from scripts.lifecycle.health.findings import Context, Finding, failed, passed, warned
from scripts.lifecycle.health.personal_data import COVERING
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.utils.db_utils import Connection

# Each foreign key once, between the tables at the top of their trees: a partition or an inheritance child is written by
# its table's name in the policy file.
_REFERENCES = """
WITH RECURSIVE above (oid, top) AS (
    SELECT c.oid, c.oid FROM pg_class c WHERE c.relkind IN ('r', 'p')
     UNION
    SELECT a.oid, i.inhparent FROM above a JOIN pg_inherits i ON i.inhrelid = a.top
), top AS (
    SELECT a.oid, n.nspname || '.' || c.relname AS name
      FROM above a JOIN pg_class c ON c.oid = a.top JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = a.top)
       AND n.nspname NOT IN ('ops', 'information_schema') AND n.nspname !~ '^pg_'
)
SELECT DISTINCT child.name, parent.name,
       (SELECT array_agg(a.attname::text ORDER BY p.place) FROM unnest(k.conkey) WITH ORDINALITY AS p (attnum, place)
          JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = p.attnum),
       CASE k.confdeltype WHEN 'n' THEN 'set_null' WHEN 'c' THEN 'delete' ELSE 'refuse' END
  FROM pg_constraint k JOIN top child ON child.oid = k.conrelid JOIN top parent ON parent.oid = k.confrelid
 WHERE k.contype = 'f' ORDER BY 1, 2, 3
"""
# A unique index without nulls names a row as a primary key does.
_KEYS = """
SELECT DISTINCT ON (1) n.nspname || '.' || c.relname, k.columns
  FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 CROSS JOIN LATERAL (
       SELECT array_agg(a.attname::text ORDER BY p.place) AS columns, bool_and(a.attnotnull) AS filled
         FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS p (attnum, place)
         JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = p.attnum) k
 WHERE i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AND k.filled
 ORDER BY 1, i.indisprimary DESC, i.indnkeyatts, i.indexrelid
"""


@dataclass(frozen=True)
class Reference:
    """A foreign key, between the tables that the policy file would name."""

    table: str
    """The table that refers."""
    parent: str
    columns: tuple[str, ...]
    action: str
    """What PostgreSQL does when the parent's row goes, in the words of a dependant's line."""


def references(connection: Connection) -> list[Reference]:
    """Return every foreign key of the application's tables."""
    return [
        Reference(child, parent, tuple(columns), do) for child, parent, columns, do in connection.execute(_REFERENCES)
    ]


def row_keys(connection: Connection) -> dict[str, tuple[str, ...]]:
    """Return the columns that name a row of each table, by the table's name: its primary key, or the like of one."""
    return {table: tuple(columns) for table, columns in connection.execute(_KEYS)}


def owned(known: set[str], keys: list[Reference], kept: set[str]) -> dict[str, list[Reference]]:
    """Return what foreign keys make a person's, by table: the references that lead to a person's rows.

    Args:
        known: The tables in which the file knows the person of each row.
        keys: Every foreign key.
        kept: Tables that the file keeps knowingly. They are followed no further, unless they have people.
    """
    reached: dict[str, list[Reference]] = {}
    todo = sorted(known)
    while todo:
        parent = todo.pop()
        for key in keys:
            if key.parent != parent or key.table == parent:
                continue
            found = reached.setdefault(key.table, [])
            if key in found:
                continue
            found.append(key)
            if key.table not in known and key.table not in kept and len(found) == 1:
                todo.append(key.table)
    return reached


def ownership(context: Context) -> Iterator[Finding]:
    """Compare what foreign keys make a person's with the policy file; also where a role may not read the tables."""
    policies = context.run.policies
    keys, names, nameless = context.run.database.read(
        lambda link: (references(link), row_keys(link), people.nameless(link, policies))
    )
    found = owned(people_of(policies), keys, set(policies.kept))
    known = decided(policies)
    findings = [failed("person", problem, people.CURE) for problem in nameless]
    for table, why in sorted(found.items()):
        if table not in known:
            cure = to_decide(policies, table, why, names.get(table, ()))
            findings.append(warned(table, f"{_whose(why)}, and no line of the file says what becomes of them", cure))
        elif undecided := _several_owners(policies, table, why):
            findings.append(undecided)
    yield from findings or [passed("owners", f"{len(found)} tables refer to a person's rows; each has its line")]


def to_decide(policies: PolicySet, table: str, why: list[Reference], key: tuple[str, ...]) -> str:
    """Return the lines of the policy file that would decide about a table, each where it belongs.

    Args:
        policies: The file.
        table: The table, with its schema.
        why: Its references to a person's rows.
        key: The columns that name its rows; empty: it has none.
    """
    lines = []
    named = "" if key in ((), ("id",)) else f", key: {_listed(key)}"
    if policies.erasure:
        by = f", by: {_listed(_columns(why))}" if len(why) > 1 else ""
        lines.append(
            f"under erasure the step {_short(table)}: {{table: {table}{named}, person: null{by}, action: delete,"
            " ground: why}"
        )
    for policy in policies.policies.values():
        lines += [
            f"under dependants of policy {policy.name} the line"
            f" - {{table: {table}, column: {_listed(each.columns)}, action: {each.action}{named}}}"
            for each in why
            if policy.removes_rows and policy.table == each.parent
        ]
    lines.append(f"under kept the line {table}: why nothing deletes its rows")
    return "add " + "; or ".join(lines)


def people_of(policies: PolicySet) -> set[str]:
    """Return the tables in which the file knows the person of each row."""
    known = {policy.table for policy in policies.policies.values() if policy.person}
    return known | {step.table for step in policies.erasure.values() if step.person}


def decided(policies: PolicySet) -> set[str]:
    """Return the tables about whose rows the file says something."""
    every = list(policies.policies.values())
    tables = {policy.table for policy in every if policy.action in COVERING}
    tables |= {dependant.table for policy in every for dependant in policy.dependants}
    tables |= {step.table for step in policies.erasure.values()}
    return tables | set(policies.kept)


def _several_owners(policies: PolicySet, table: str, why: list[Reference]) -> Finding | None:
    """Return the finding about a table whose rows may be two people's, where its steps do not say whose they are."""
    steps = {name: step for name, step in policies.erasure.items() if step.table == table}
    followed = {step.table for step in policies.erasure.values()}
    why = [each for each in why if each.parent in followed]
    if not steps or len({each.columns for each in why}) < 2 or any(step.person or step.by for step in steps.values()):  # noqa: PLR2004
        return None
    said = "; ".join(f"{_listed(each.columns)} refers to {each.parent}" for each in why)
    return warned(
        table,
        f"its rows may be the rows of several people: {said}; an erasure of one of them would take all",
        f"say in erasure.{next(iter(steps))} by which a row is hers, such as by: {_listed(why[0].columns)}",
    )


def _whose(why: list[Reference]) -> str:
    return "its rows refer to a person's: " + "; ".join(f"{_listed(each.columns)} to {each.parent}" for each in why)


def _columns(why: list[Reference]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(column for each in why for column in each.columns))


def _listed(columns: tuple[str, ...]) -> str:
    """Write columns as the policy file does."""
    return columns[0] if len(columns) == 1 else f"[{', '.join(columns)}]"


def _short(table: str) -> str:
    return table.partition(".")[2]
