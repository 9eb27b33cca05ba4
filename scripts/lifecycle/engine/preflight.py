"""What must be true of the database before a policy deletes its first row.

A failed preflight stops its policy, never the others. "Could not look" is a failure too: a table that is hidden, has
been renamed or has lost a column must not read as "nothing to do".
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row

from scripts.lifecycle.engine import anonymisation
from scripts.lifecycle.engine.anonymisation import Described
from scripts.lifecycle.engine.record_keys import RecordKey, problem_of
from scripts.lifecycle.engine.selection import ANCHOR_TYPES, ForeignKey, Reach, Selection
from scripts.lifecycle.engine.windows import Path
from scripts.lifecycle.policy.policies import Policy
from scripts.utils.db_utils import Connection
from scripts.utils.errors import PolicyFailed
from scripts.utils.logging_utils import get_logger

# These find the row that they change by its key alone: two rows with one key would both be changed.
_CHANGES_BY_KEY = frozenset({"soft_delete", "delete_blob", "anonymize"})

# Above this size a missing index turns one batch into minutes; below it PostgreSQL reads the whole table anyway.
LARGE_TABLE_BYTES = 64 * 1024 * 1024

# Whoever may only look, looks on the jobs' behalf: a dry run says what they would meet.
_DOER = """
WITH doer (role) AS (
    SELECT CASE WHEN bool_or(rolname = 'lifecycle_reader') AND NOT bool_or(rolname = 'lifecycle_jobs')
                THEN 'lifecycle_jobs' ELSE current_user END
      FROM pg_roles WHERE rolname IN ('lifecycle_reader', 'lifecycle_jobs') AND pg_has_role(oid, 'USAGE')
)
"""

_TABLE = f"""{_DOER}
SELECT c.oid, c.relkind, pg_relation_size(c.oid) AS heap_bytes,
       CASE c.relkind WHEN 'p' THEN (SELECT sum(pg_table_size(relid))::bigint FROM pg_partition_tree(c.oid))
                      ELSE pg_table_size(c.oid) END AS bytes,
       current_setting('block_size')::int AS block_bytes, c.reltuples, c.relpages,
       row_security_active(c.oid) AS row_security, has_schema_privilege(n.oid, 'USAGE') AS may_use_schema,
       has_table_privilege(c.oid, 'SELECT') AS may_select,
       has_table_privilege(doer.role, c.oid, 'DELETE') AS may_delete,
       has_any_column_privilege(doer.role, c.oid, 'UPDATE') AS may_lock,
       (SELECT coalesce(array_agg(a.attname::text), '{{}}') FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           AND NOT has_column_privilege(doer.role, c.oid, a.attnum, 'UPDATE')) AS may_not_update,
       current_setting('server_version_num')::int AS server_version
  FROM doer, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s
"""  # noqa: S608 - constants

# With a modifier of -1 char(36) is named bpchar; without one it is character, which in a cast keeps one letter.
_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, -1) AS type, a.attnotnull,
       CASE WHEN a.atttypid IN ('varchar'::regtype, 'bpchar'::regtype) AND a.atttypmod > 4
            THEN a.atttypmod - 4 END AS length,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisvalid AND i.indkey[0] = a.attnum)
           AS indexed
  FROM pg_attribute a WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
"""

_UNIQUE = """
SELECT (SELECT array_agg(a.attname::text) FROM unnest(i.indkey[0:i.indnkeyatts - 1]) AS p (attnum)
          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = p.attnum) AS columns
  FROM pg_index i
 WHERE i.indrelid = %(oid)s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
"""

# A partitioned table can have no unique index without the columns that it is partitioned by. Such a one will do where
# rows are only looked for in order to delete them: of two rows with one key, each goes by its own date. Or each
# partition has an index of its own, as pg_partman makes them from a template.
_PARTITIONED_KEY = """
SELECT EXISTS (
        SELECT FROM pg_index i JOIN pg_partitioned_table p ON p.partrelid = i.indrelid
         WHERE i.indrelid = %(oid)s AND i.indisvalid AND i.indisunique AND i.indpred IS NULL
           AND (SELECT bool_and(k = a.attnum OR k = ANY (p.partattrs::int2[])) AND bool_or(k = a.attnum)
                  FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) k))
    OR NOT EXISTS (
        SELECT FROM pg_partition_tree(%(oid)s) l
         WHERE l.isleaf AND l.relid <> %(oid)s AND NOT EXISTS (
               SELECT FROM pg_index i JOIN pg_attribute c ON c.attrelid = i.indrelid AND c.attnum = i.indkey[0]
                WHERE i.indrelid = l.relid AND i.indisvalid AND i.indisunique AND i.indnkeyatts = 1
                  AND i.indpred IS NULL AND c.attname = a.attname)) AS unique
  FROM pg_attribute a WHERE a.attrelid = %(oid)s AND a.attname = %(column)s
"""

_FOREIGN_KEYS = f"""{_DOER}
SELECT c.oid, k.conname AS name, n.nspname || '.' || c.relname AS "table", k.confdeltype::text AS on_delete,
       pg_table_size(c.oid) AS table_bytes, has_table_privilege(c.oid, 'SELECT') AS may_select,
       has_table_privilege(doer.role, c.oid, 'DELETE') AS may_delete,
       (SELECT bool_and(has_column_privilege(doer.role, c.oid, p.attnum, 'UPDATE')) FROM unnest(k.conkey) AS p (attnum))
           AS may_update,
       (SELECT array_agg(a.attname::text ORDER BY p.place) FROM unnest(k.conkey) WITH ORDINALITY AS p (attnum, place)
          JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = p.attnum) AS columns,
       (SELECT array_agg(a.attname::text ORDER BY p.place) FROM unnest(k.confkey) WITH ORDINALITY AS p (attnum, place)
          JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = p.attnum) AS referenced,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = k.conrelid AND i.indisvalid AND i.indkey[0] = k.conkey[1])
           AS indexed,
       -- By way of JSON: before PostgreSQL 15 there is no such column.
       (SELECT coalesce(array_agg(a.attname::text), '{{}}')
          FROM jsonb_array_elements_text(coalesce(nullif(to_jsonb(k) -> 'confdelsetcols', 'null'), '[]')) AS p (attnum)
          JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = p.attnum::int) AS set_columns
  FROM doer, pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE k.contype = 'f' AND k.confrelid = %(oid)s
       -- A partition's share of a constraint repeats it; but a key on the table above the policy's own points here too.
   AND NOT EXISTS (SELECT FROM pg_constraint p WHERE p.oid = k.conparentid AND p.confrelid = k.confrelid)
 ORDER BY 2, 1
"""  # noqa: S608 - constants

_PRIMARY_KEY = """
SELECT a.attname FROM pg_index i
  CROSS JOIN unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS p (attnum, place)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = p.attnum
 WHERE i.indrelid = %(oid)s AND i.indisprimary ORDER BY p.place
"""


@dataclass(frozen=True)
class TableFacts:
    """What the catalogue says of a table's size."""

    blocks: int
    rows: float
    """The planner's estimate, at least 1."""
    rows_per_block: float
    large: bool
    sweepable: bool
    """Whether its blocks can be read by range (a plain table, PostgreSQL 14 or later)."""
    oid: int = 0

    @classmethod
    def of(cls, table: dict[str, Any]) -> TableFacts:
        """Read the facts from the catalogue's row."""
        blocks = -(-table["heap_bytes"] // table["block_bytes"])
        analyzed = table["reltuples"] > 0 and table["relpages"] > 0
        per_block = max(table["reltuples"] / table["relpages"], 1.0) if analyzed else 10.0
        return cls(
            blocks=blocks,
            rows=max(per_block * blocks, 1.0),
            rows_per_block=per_block,
            large=table["bytes"] > LARGE_TABLE_BYTES,
            sweepable=table["relkind"] == "r" and table["server_version"] >= 140_000,  # noqa: PLR2004
            oid=table["oid"],
        )


@dataclass(frozen=True)
class Cleared:
    """A policy that may run, and what it runs on."""

    selection: Selection
    facts: TableFacts


def preflight(connection: Connection, policy: Policy, cutoff: datetime) -> Cleared:
    """Check a policy against the database.

    Raises:
        PolicyFailed: Names everything that is wrong and what to do.
    """
    check = _Preflight(connection, policy)
    try:
        return check.run(cutoff)
    finally:
        for warning in check.warnings:
            get_logger().warning("preflight_warning", policy=policy.name, problem=warning)


def inspect(connection: Connection, policy: Policy, cutoff: datetime) -> tuple[list[str], list[str]]:
    """Return what would stop a policy, and what would only be warned of."""
    check = _Preflight(connection, policy)
    with contextlib.suppress(PolicyFailed):
        check.run(cutoff)
    return check.problems, check.warnings


def referring(connection: Connection, policy: Policy) -> list[tuple[ForeignKey, tuple[str, ...]]]:
    """Return every constraint that points at the policy's table, each with its own table's primary key, if it has one.

    Raises:
        PolicyFailed: The policy's table does not exist.
    """
    return _Preflight(connection, policy).referring()


def catalogue_of(connection: Connection, table: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return what the catalogue says of a table, and by their names of its columns; nothing: there is no such table."""
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(_TABLE, table.split(".")).fetchone()
        if found is None:
            return {}, {}
        columns = cursor.execute(_COLUMNS, {"oid": found["oid"], "unique": False}).fetchall()
        return found, {row["attname"]: row for row in columns}


def pointing_at(connection: Connection, oid: int) -> list[ForeignKey]:
    """Return every constraint that points at a table."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return [_foreign_key(row) for row in cursor.execute(_FOREIGN_KEYS, {"oid": oid})]


class _Preflight:
    def __init__(self, connection: Connection, policy: Policy) -> None:
        self._connection = connection
        self._policy = policy
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def run(self, cutoff: datetime) -> Cleared:
        table = self._table(self._policy.table)
        types = self._columns(table)
        # A row that stays keeps whatever refers to it.
        reaches, refusing = self._foreign_keys(table["oid"]) if self._policy.removes_rows else ([], [])
        if self.problems:
            raise self._failure()
        selection = Selection(self._policy, cutoff, types, reaches, refusing, partitioned=table["relkind"] == "p")
        return Cleared(selection, TableFacts.of(table))

    def referring(self) -> list[tuple[ForeignKey, tuple[str, ...]]]:
        """As the function of this name."""
        table = self._table(self._policy.table)
        found = self._rows(_FOREIGN_KEYS, {"oid": table["oid"]})
        keys = [self._rows(_PRIMARY_KEY, {"oid": row["oid"]}) for row in found]
        return [
            (_foreign_key(row), tuple(column["attname"] for column in key))
            for row, key in zip(found, keys, strict=True)
        ]

    def _failure(self) -> PolicyFailed:
        return PolicyFailed(
            "preflight_failed", f"policy {self._policy.name} was not started: " + "; ".join(self.problems)
        )

    def _rows(self, query: str, parameters: Any) -> list[dict[str, Any]]:
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, parameters).fetchall()

    def _table(self, name: str) -> dict[str, Any]:
        rows = self._rows(_TABLE, name.split("."))
        if not rows:
            self.problems.append(f"table {name} does not exist")
            raise self._failure()
        table = rows[0]
        if table["relkind"] not in ("r", "p"):
            self.problems.append(f"{name} is not a table")
        if table["row_security"]:
            self.problems.append(
                f"row-level security on {name} hides rows from this role: delete nothing rather than believe it;"
                " give the role BYPASSRLS or a policy-free table"
            )
        if not table["may_use_schema"]:
            self.problems.append(
                f"no right to USAGE of the schema of {name}: run backend/migrate.py --grants with this policy file"
            )
        for right in ("select", "delete") if self._policy.removes_rows else ("select",):
            if not table[f"may_{right}"]:
                self.problems.append(
                    f"no right to {right.upper()} on {name}: run backend/migrate.py --grants with this policy file"
                )
        if not table["may_lock"] and self._policy.action != "retain":
            self.problems.append(
                f"no right to UPDATE any column of {name}, without which no row can be locked:"
                " run backend/migrate.py --grants with this policy file"
            )
        return table

    def _columns(self, table: dict[str, Any]) -> dict[str, str]:
        policy = self._policy
        found = {row["attname"]: row for row in self._rows(_COLUMNS, {"oid": table["oid"]})}
        anchors = {rule.anchor for rule in policy.rules.values()}
        anchors |= {e.queue.anchor for e in policy.exceptions.values() if e.queue}
        named = {*policy.key, *anchors, *policy.written, *([policy.person] if policy.person else [])}
        named |= set(policy.archive.personal) if policy.archive else set()
        for when in [rule.when for rule in policy.rules.values()] + [e.when for e in policy.exceptions.values()]:
            named |= set(when)
        for column in sorted(named - found.keys()):
            self.problems.append(f"column {policy.table}.{column} does not exist")
        for column in sorted(anchors & found.keys()):
            if found[column]["type"] not in ANCHOR_TYPES:
                self.problems.append(f"{policy.table}.{column} is {found[column]['type']}, not a date or timestamp")
            if not found[column]["indexed"] and policy.action != "retain":
                self._slow(table["bytes"], f"{policy.table}.{column} has no index: CREATE INDEX CONCURRENTLY one")
        types = {name: row["type"] for name, row in found.items()}
        self._key(policy.table, policy.key, found, table["oid"], accepted=self._unique_by_partition(table))
        self._written(table, found)
        return types

    def _unique_by_partition(self, table: dict[str, Any]) -> bool:
        policy = self._policy
        if table["relkind"] != "p" or policy.action in _CHANGES_BY_KEY or len(policy.key) > 1:
            return False
        row = self._rows(_PARTITIONED_KEY, {"oid": table["oid"], "column": policy.key[0]})
        return bool(row and row[0]["unique"])

    def _key(
        self,
        table: str,
        key: tuple[str, ...],
        found: dict[str, dict[str, Any]],
        oid: int | None,
        *,
        accepted: bool = False,
    ) -> None:
        """Check that a key names one row, and has one text; ``oid`` None: whether it is unique is not asked."""
        name = key[0] if len(key) == 1 else f"({', '.join(key)})"
        problem = problem_of(key, {column: row["type"] for column, row in found.items()})
        if problem:
            self.problems.append(f"{table}: {problem}")
        if oid is None or not found.keys() >= set(key):
            return
        unique = accepted or any(set(row["columns"]) <= set(key) for row in self._rows(_UNIQUE, {"oid": oid}))
        if not unique or not all(found[column]["attnotnull"] for column in key):
            self.problems.append(f"{table}.{name} is not a unique, non-null key")

    def _written(self, table: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
        """Check the columns that the action changes."""
        policy = self._policy
        for column in sorted(set(policy.written) & set(table["may_not_update"])):
            self.problems.append(
                f"no right to UPDATE {policy.table}.{column}: run backend/migrate.py --grants with this policy file"
            )
        if policy.anonymize:
            self.problems += [
                f"{policy.table}.{problem}"
                for problem in anonymisation.problems(
                    policy.anonymize,
                    {name: Described(row["type"], row["attnotnull"], row["length"]) for name, row in found.items()},
                )
            ]
        section = policy.soft_delete or policy.blob
        if section and section.deleted_at in found and found[section.deleted_at]["type"] not in ANCHOR_TYPES:
            self.problems.append(f"{policy.table}.{section.deleted_at} is not a date or timestamp")
        flag = policy.soft_delete.flag if policy.soft_delete else None
        if flag in found and found[flag]["type"] != "boolean":
            self.problems.append(f"{policy.table}.{flag} is not a boolean")
        if policy.blob is None or policy.blob.column not in found:
            return
        blob = found[policy.blob.column]
        if blob["attnotnull"] and policy.blob.cleared is None:
            self.problems.append(f"{policy.table}.{policy.blob.column} may not be null: say blob.cleared, such as ''")
        if not blob["indexed"]:
            what = "whether another row names a blob is asked for each"
            self._slow(table["bytes"], f"{policy.table}.{policy.blob.column} has no index, and {what}")

    def _foreign_keys(self, oid: int) -> tuple[list[Reach], list[ForeignKey]]:
        declared = list(self._policy.dependants)
        reaches: list[Reach] = []
        refusing: list[ForeignKey] = []
        table = self._policy.table
        for row in self._rows(_FOREIGN_KEYS, {"oid": oid}):
            child = row["oid"]
            may = {right: row[f"may_{right}"] for right in ("select", "delete", "update")}
            key = _foreign_key(row)
            # All the columns before the first alone: two foreign keys may begin with the same one.
            meant = [each for each in declared if key.is_named(each.table, each.column)]
            dependant = max(meant, key=lambda each: len(each.column), default=None)
            if dependant is not None:
                declared.remove(dependant)
            if not may["select"]:
                self.problems.append(f"no right to SELECT on {key.table}, which refers to {table}")
            if not key.indexed:
                self._slow(key.table_bytes, f"foreign key {key.name} on {key.table} has no index")
            if dependant is None and key.changes_children:
                what = {"c": "deletes", "n": "sets to null", "d": "resets"}[key.on_delete]
                self.problems.append(
                    f"foreign key {key.name} {what} rows of {key.table} that no policy declares:"
                    f" add it to the policy's dependants as delete, set_null or refuse"
                )
            elif dependant is None or dependant.action == "refuse":
                refusing.append(key)
            else:
                right = "delete" if dependant.action == "delete" else "update"
                if not may[right]:
                    self.problems.append(
                        f"no right to {right.upper()} on {key.table}: run backend/migrate.py --grants with this file"
                    )
                columns = {row["attname"]: row for row in self._rows(_COLUMNS, {"oid": child})}
                needed = [*dependant.key, *([dependant.person] if dependant.person else [])]
                missing = [name for name in needed if name not in columns]
                self.problems.extend(f"column {key.table}.{name} does not exist" for name in missing)
                if missing:
                    continue
                self._key(key.table, dependant.key, columns, None)
                nulled = self._nulled(key, columns) if dependant.action == "set_null" else ()
                record = RecordKey(dependant.key, {name: row["type"] for name, row in columns.items()})
                reaches.append(Reach(key, dependant.action, record, nulled, dependant.person))
                if dependant.action == "delete":
                    self._no_further_reach(key.table, child)
        self.problems.extend(
            f"dependant {each.table}.{', '.join(each.column)} is declared, but no foreign key there points at {table}"
            for each in declared
        )
        return reaches, refusing

    def _nulled(self, key: ForeignKey, columns: dict[str, dict[str, Any]]) -> tuple[str, ...]:
        """Return the columns that are set to null: one is enough to cut a row off, and some may not be null."""
        nulled = tuple(name for name in key.set_columns or key.columns if not columns[name]["attnotnull"])
        if not nulled:
            self.problems.append(
                f"no column of foreign key {key.name} on {key.table} may be null: set_null cannot be done there"
            )
        return nulled

    def _no_further_reach(self, table: str, oid: int) -> None:
        deeper = self._rows(_FOREIGN_KEYS, {"oid": oid})
        self.problems.extend(
            f"foreign key {row['name']} on {row['table']} reaches beyond the dependant {table}:"
            f" give {table} a policy of its own"
            for row in deeper
        )

    def _slow(self, table_bytes: int, problem: str) -> None:
        if table_bytes > LARGE_TABLE_BYTES:
            self.problems.append(problem)
        else:
            self.warnings.append(problem)


def _foreign_key(row: dict[str, Any]) -> ForeignKey:
    facts = {name: value for name, value in row.items() if name != "oid" and not name.startswith("may_")}
    return ForeignKey(**facts | {name: tuple(row[name]) for name in ("columns", "referenced", "set_columns")})


def check_access_path(connection: Connection, selection: Selection, path: Path, rows: int) -> None:
    """Refuse a plan that would read the whole table for every batch of about ``rows`` rows.

    Raises:
        PolicyFailed: The planner reads the table sequentially for one window.
    """
    question = path.question(None, rows)
    answer = connection.execute(*question).fetchone() if question else None
    window = path.following(None, answer, rows)
    if window is None:
        return
    connection.execute("SELECT set_config('enable_seqscan', 'off', true)")  # as in a batch
    row = connection.execute(
        sql.SQL("EXPLAIN (FORMAT JSON) SELECT FROM {} t WHERE {} AND {}").format(
            selection.table, window.clause, selection.removable
        ),
        selection.parameters | window.parameters,
    ).fetchone()
    plan = row[0][0]["Plan"] if row else {}
    # Of a partitioned table, each partition is called t_1, t_2, and so on.
    if any(
        node["Node Type"] == "Seq Scan" and re.fullmatch(r"t(_\d+)?", node.get("Alias", "")) for node in _nodes(plan)
    ):
        raise PolicyFailed(
            "preflight_failed",
            f"policy {selection.policy.name} was not started: PostgreSQL would read all of {selection.policy.table} for"
            " each batch; check that the cut-off's index is there and valid",
        )


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]
