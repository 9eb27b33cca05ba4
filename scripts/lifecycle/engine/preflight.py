"""Checks a policy against the database before its first row is deleted (DESIGN, section 7, point 1).

A failed preflight stops its policy and no other. A table that cannot be looked at fails too: a table that is hidden,
was renamed or has lost a column must not be reported as "nothing to do". ``catalogue`` asks about the tables,
``obstacles`` about triggers, rules and replication; both ask of a table's whole tree. ``trigger_functions`` reads
what a trigger's function does.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from scripts.lifecycle.engine import anonymisation, indexes, obstacles, rights, trigger_functions, values
from scripts.lifecycle.engine.anonymisation import Described
from scripts.lifecycle.engine.bounded import bounded
from scripts.lifecycle.engine.catalogue import (
    PARTITIONED_KEY,
    PRIMARY_KEY,
    TABLE,
    UNIQUE,
    columns_of,
    foreign_key,
    rows_of,
    rows_pointing_at,
)
from scripts.lifecycle.engine.lookup_checks import LookupFinder
from scripts.lifecycle.engine.lookups import Found
from scripts.lifecycle.engine.obstacles import Event
from scripts.lifecycle.engine.record_keys import RecordKey, problem_of
from scripts.lifecycle.engine.row_periods import INTERVAL, NUMBERS
from scripts.lifecycle.engine.selection import ANCHOR_TYPES, ForeignKey, Reach, Selection
from scripts.lifecycle.engine.windows import Path
from scripts.lifecycle.policy.conditions import own_columns
from scripts.lifecycle.policy.lookups import Lookup
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.remedies import NOW
from scripts.lifecycle.policy.row_periods import RowPeriod
from scripts.lifecycle.policy.sections import Dependant
from scripts.lifecycle.policy.tables import parts_of
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection
from scripts.utils.errors import PolicyFailed
from scripts.utils.logging_utils import get_logger

# These actions find the row that they change by its key alone, so of two rows with one key both would change.
_CHANGES_BY_KEY = frozenset({"soft_delete", "delete_blob", "anonymize"})

_TID_RANGES = 140_000  # the first version that reads blocks by range

# Bytes. Above this size a missing index turns one batch into minutes; below it PostgreSQL reads the whole table anyway.
LARGE_TABLE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class TableFacts:
    """What the catalogue says of a table's size."""

    blocks: int
    rows: float
    """The planner's estimate, at least 1."""
    rows_per_block: float
    large: bool
    sweepable: bool
    """Whether its blocks can be read by range (a plain table without children, PostgreSQL 14 or later)."""
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
            sweepable=table["relkind"] == "r" and not table["has_children"] and table["server_version"] >= _TID_RANGES,
            oid=table["oid"],
        )


@dataclass(frozen=True)
class Cleared:
    """What a passed preflight gives: the selection, and the facts of its table."""

    selection: Selection
    facts: TableFacts


def preflight(connection: Connection, policy: Policy, cutoff: datetime, *, blob_store: str = "") -> Cleared:
    """Check a policy against the database.

    Args:
        connection: Where.
        policy: The policy.
        cutoff: The run's cut-off, time-zone aware.
        blob_store: The id of the store that the policy's blobs are in.

    Raises:
        PolicyFailed: A check failed; the message names every problem and its cure.
    """
    check = _Preflight(connection, policy)
    try:
        return check.run(cutoff, blob_store)
    finally:
        for warning in check.warnings + check.missing_indexes:
            get_logger().warning("preflight_warning", policy=policy.name, problem=warning)


def inspect(connection: Connection, policy: Policy, cutoff: datetime) -> tuple[list[str], list[str], list[str]]:
    """Return the problems that would stop a policy, the warnings that would not, and the indexes that are missing."""
    check = _Preflight(connection, policy)
    with contextlib.suppress(PolicyFailed):
        selection = check.run(cutoff).selection
        check.problems += obstacles.try_out(connection, selection)
        check.warnings += bounded(connection, selection)
    return check.problems, check.warnings, check.missing_indexes


def referring(connection: Connection, policy: Policy) -> list[tuple[ForeignKey, tuple[str, ...]]]:
    """Return every constraint that points at the policy's table, each with its own table's primary key, if it has one.

    Raises:
        PolicyFailed: The policy's table does not exist.
    """
    return _Preflight(connection, policy).referring()


def _in_own_table(key: ForeignKey, dependant: Dependant, table: str) -> bool:
    """Tell whether children stand in the policy's own table: each goes by its own date, and before its parent."""
    return dependant.action == "delete" and key.table == table


class _Preflight:
    def __init__(self, connection: Connection, policy: Policy) -> None:
        self._connection = connection
        self._policy = policy
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.missing_indexes: list[str] = []

    def run(self, cutoff: datetime, blob_store: str = "") -> Cleared:
        table = self._table(self._policy.table)
        types = self._columns(table)
        policy = self._policy
        finder = LookupFinder(self._connection, policy.table, table["oid"], values.conditions_of(policy))
        found = finder.find(policy.lookups, policy.decided_lookups)
        self.problems += finder.problems
        self.missing_indexes += finder.missing_indexes
        self._moments_and_periods(types, found)
        readings, unreadable = values.read(self._connection, self._policy.table, values.of_policy(self._policy))
        self.problems += unreadable
        # Only a row that is removed changes, or is kept by, the rows that refer to it.
        reaches, refusing = self._foreign_keys(table["oid"]) if self._policy.removes_rows else ([], [])
        if self._policy.removes_rows:
            self._sets_off(table["oid"], "DELETE")
        elif self._policy.written:
            self._sets_off(table["oid"], "UPDATE", self._policy.written)
        self.problems += [
            f"set_null of {reach.foreign_key.table} changes {', '.join(sorted(used))}, by which {self._policy.table}"
            f" looks {lookup.take} up there: a row would no longer be due once its dependants are cut off"
            for reach in reaches
            for lookup in self._policy.lookups
            if lookup.from_table == reach.foreign_key.table and (used := {*lookup.columns} & {*reach.nulled})
        ]
        if self.problems:
            raise self._failure()
        tree = table["relkind"] == "p" or table["has_children"]
        parts = tuple(reaches), tuple(refusing), tree, blob_store, readings
        return Cleared(Selection(self._policy, cutoff, types, *parts, found=found), TableFacts.of(table))

    def referring(self) -> list[tuple[ForeignKey, tuple[str, ...]]]:
        """Do what the function :func:`referring` says."""
        table = self._table(self._policy.table)
        found = rows_pointing_at(self._connection, table["oid"])
        return [(key, self._primary_key(key.table)) for key in map(foreign_key, found)]

    def _failure(self) -> PolicyFailed:
        return PolicyFailed(
            "preflight_failed", f"policy {self._policy.name} was not started: " + "; ".join(self.problems)
        )

    def _rows(self, query: str, parameters: Any) -> list[dict[str, Any]]:
        return rows_of(self._connection, query, parameters)

    def _table(self, name: str) -> dict[str, Any]:
        rows = self._rows(TABLE, parts_of(name))
        if not rows:
            self.problems.append(f"table {name} does not exist")
            raise self._failure()
        table = rows[0]
        if table["relkind"] not in ("r", "p"):
            self.problems.append(f"{name} is not a table")
        self.problems += [
            f"row-level security on {each} hides rows from this role: delete nothing rather than believe it;"
            " give the role BYPASSRLS or a policy-free table"
            for each in table["row_security"]
        ]
        if not table["may_use_schema"]:
            self.problems.append(
                f"no right to USAGE of the schema of {name}: run backend/migrate.py --grants with this policy file"
            )
        needed = list(rights.of_policy(self._policy))
        self.problems += rights.lacking(self._connection, needed)
        self.warnings += rights.by_public(self._connection, needed)
        return table

    def _columns(self, table: dict[str, Any]) -> dict[str, str]:
        policy = self._policy
        found = columns_of(self._connection, table["oid"])
        anchors = {anchor for anchor in self._anchors() if isinstance(anchor, str)}
        named = {*policy.key, *anchors, *policy.written, *([policy.person] if policy.person else [])}
        named |= set(policy.archive.personal) if policy.archive else set()
        periods = [rule.keep for rule in policy.rules.values() if isinstance(rule.keep, RowPeriod)]
        named |= {keep.take for keep in periods if keep.lookup is None}
        for when in [rule.when for rule in policy.rules.values()] + [e.when for e in policy.exceptions.values()]:
            named |= set(own_columns(when))
        named |= {column for remedy in policy.remedies for column in remedy.set}
        for column in sorted(named - found.keys()):
            self.problems.append(f"column {policy.table}.{column} does not exist")
        for column in sorted(anchors & found.keys()):
            if found[column]["type"] not in ANCHOR_TYPES:
                self.problems.append(f"{policy.table}.{column} is {found[column]['type']}, not a date or timestamp")
            if not found[column]["indexed"] and policy.action != "retain":
                self._slow(
                    table["bytes"], f"{policy.table}.{column} has no index: {indexes.to_create(policy.table, column)}"
                )
        types = {name: row["type"] for name, row in found.items()}
        self._key(policy.table, policy.key, found, table["oid"], accepted=self._unique_by_partition(table))
        self._written(table, found)
        self._decided(found)
        return types

    def _anchors(self) -> list[str | Lookup]:
        policy = self._policy
        queued = [exception.queue.anchor for exception in policy.exceptions.values() if exception.queue]
        return [*(rule.anchor for rule in policy.rules.values()), *queued]

    def _moments_and_periods(self, types: dict[str, str], found: dict[Lookup, Found]) -> None:
        """Check that an anchor from another table is a moment, and that what says a row's period can say one."""
        for anchor in self._anchors():
            if isinstance(anchor, Lookup) and anchor in found and found[anchor].kind.read_as not in ANCHOR_TYPES:
                self.problems.append(
                    f"{anchor.from_table}.{anchor.take} is {found[anchor].kind.stored_as}, not a date or timestamp"
                )
        for name, rule in self._policy.rules.items():
            keep = rule.keep
            if not isinstance(keep, RowPeriod):
                continue
            lookup = keep.lookup
            kind = found[lookup].kind.read_as if lookup in found else None if lookup else types.get(keep.take)
            wanted = "a number" if keep.unit else "an interval"
            if kind and kind not in (NUMBERS if keep.unit else {INTERVAL}):
                cure = (
                    "leave out unit" if kind == INTERVAL else "say the unit" if kind in NUMBERS else "it is no period"
                )
                where = lookup.from_table if lookup else self._policy.table
                self.problems.append(f"rules.{name}.keep: {where}.{keep.take} is {kind}, not {wanted}: {cure}")

    def _unique_by_partition(self, table: dict[str, Any]) -> bool:
        policy = self._policy
        if table["relkind"] != "p" or policy.action in _CHANGES_BY_KEY or len(policy.key) > 1:
            return False
        row = self._rows(PARTITIONED_KEY, {"oid": table["oid"], "column": policy.key[0]})
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
        """Check that a key identifies one row and has one text form; ``oid`` None: its uniqueness is not checked."""
        name = key[0] if len(key) == 1 else f"({', '.join(key)})"
        problem = problem_of(key, {column: row["type"] for column, row in found.items()})
        if problem:
            self.problems.append(f"{table}: {problem}")
        if oid is None or not found.keys() >= set(key):
            return
        unique = accepted or any(set(row["columns"]) <= set(key) for row in self._rows(UNIQUE, {"oid": oid}))
        if not unique or not all(found[column]["attnotnull"] for column in key):
            self.problems.append(f"{table}.{name} is not a unique, non-null key")

    def _written(self, table: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
        """Check rights and types of the columns that the action changes."""
        policy = self._policy
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
        if not indexes.has_blob_key(self._connection, table["oid"], policy.blob.column):
            self.missing_indexes.append(
                f"{policy.table} has no index on ops.blob_key({policy.blob.column}): each claim of blobs reads the"
                f" whole table to see which rows name them; {indexes.CURE}"
            )

    def _decided(self, found: dict[str, dict[str, Any]]) -> None:
        """Check what decisions set columns to; values of their types are read with all the others."""
        for item_type, remedies in self._policy.decisions.items():
            for name, remedy in remedies.items():
                for column, value in remedy.set.items():
                    place, kind = f"decisions.{item_type}.{name}.set.{column}", found.get(column)
                    if kind and value == NOW and kind["type"] not in ANCHOR_TYPES:
                        self.problems.append(f"{place}: now is for a date or timestamp, the column is {kind['type']}")
                    elif kind and value is None and kind["attnotnull"]:
                        self.problems.append(f"{place}: the column may not be null")

    def _foreign_keys(self, oid: int) -> tuple[list[Reach], list[ForeignKey]]:
        declared = list(self._policy.dependants)
        reaches: list[Reach] = []
        refusing: list[ForeignKey] = []
        table = self._policy.table
        for row in rows_pointing_at(self._connection, oid):
            key = foreign_key(row)
            # All the columns before the first alone: two foreign keys may begin with the same one.
            meant = [each for each in declared if key.is_named(each.table, each.column)]
            dependant = max(meant, key=lambda each: len(each.column), default=None)
            if dependant is not None:
                declared.remove(dependant)
            self._readable(key, row, dependant)
            if dependant is None and key.changes_children:
                what = {"c": "deletes", "n": "sets to null", "d": "resets"}[key.on_delete]
                undeclared = f"foreign key {key.name} {what} rows of {key.table} that no policy declares"
                self.problems.append(f"{undeclared}: {self._to_declare(key)}")
            elif dependant is None or dependant.action == "refuse" or _in_own_table(key, dependant, table):
                refusing.append(key)
            elif reach := self._reach(key, row, dependant):
                reaches.append(reach)
        self.problems.extend(
            f"dependant {each.table}.{', '.join(each.column)} is declared, but no foreign key there points at {table}"
            for each in declared
        )
        return reaches, refusing

    def _readable(self, key: ForeignKey, row: dict[str, Any], dependant: Dependant | None) -> None:
        """Check that the referring rows can be seen, all of them, and found by an index."""
        # What a dependant's line names was checked with the policy's other rights.
        named = [dependant] if dependant else []
        needed = rights.of_reference(self._connection, self._policy.table, key, named)
        for problem in rights.lacking(self._connection, needed) if dependant or not key.changes_children else ():
            refers = f"foreign key {key.name} on {key.table} refers to {self._policy.table}"
            cure = "" if dependant else f", no policy declares it; {self._to_declare(key)}"
            self.problems.append(f"{refers}{cure}: {problem}")
        if row["may_hide"]:
            self.problems.append(
                f"row-level security on {key.table}, which refers to {self._policy.table}, hides rows from this role:"
                " give the role BYPASSRLS"
            )
        if not key.indexed:
            self._slow(
                key.table_bytes,
                f"foreign key {key.name} on {key.table} has no index over all rows that begins with"
                f" {' or '.join(key.columns)}: {indexes.to_create(key.table, *key.columns)}",
            )

    def _to_declare(self, key: ForeignKey) -> str:
        """Say which line of the policy file declares a foreign key."""
        usual = {"c": "delete", "n": "set_null"}.get(key.on_delete, "refuse")
        others = " or ".join(action for action in ("delete", "set_null", "refuse") if action != usual)
        primary = self._primary_key(key.table)
        # The policy file's default is a key named id.
        named = "" if primary in ((), ("id",)) else f", key: {_listed(primary)}"
        return (
            f"add to dependants of policy {self._policy.name} the line"
            f" - {{table: {key.table}, column: {_listed(key.columns)}, action: {usual}{named}}} (or action {others})"
        )

    def _primary_key(self, table: str) -> tuple[str, ...]:
        return tuple(row["attname"] for row in self._rows(PRIMARY_KEY, {"table": table}))

    def _reach(self, key: ForeignKey, row: dict[str, Any], dependant: Dependant) -> Reach | None:
        """Check a dependant whose rows are deleted or cut off; None: a column of it does not exist."""
        columns = columns_of(self._connection, row["oid"])
        needed = [*dependant.key, *([dependant.person] if dependant.person else [])]
        missing = [name for name in needed if name not in columns]
        self.problems.extend(f"column {key.table}.{name} does not exist" for name in missing)
        if missing:
            return None
        self._key(key.table, dependant.key, columns, None)
        nulled = self._nulled(key, columns) if dependant.action == "set_null" else ()
        if dependant.action == "delete":
            self._no_further_reach(key.table, row["oid"])
            self._sets_off(row["oid"], "DELETE", own=False)
        else:
            self._sets_off(row["oid"], "UPDATE", nulled, own=False)
        record = RecordKey(dependant.key, {name: each["type"] for name, each in columns.items()})
        return Reach(key, dependant.action, record, nulled, dependant.person)

    def _sets_off(self, oid: int, event: Event, columns: tuple[str, ...] | None = None, *, own: bool = True) -> None:
        """Check what a change of a table sets off, or what refuses the change."""
        self.problems += obstacles.refusals(self._connection, oid, event)
        named = list(columns) if columns else None
        for found in dict.fromkeys(trigger_functions.read(self._connection, oid, event, named, own=own)):
            (self.problems if found.certain else self.warnings).append(found.text)

    def _nulled(self, key: ForeignKey, columns: dict[str, dict[str, Any]]) -> tuple[str, ...]:
        """Return the columns that are set to null: those of the foreign key that may be; one null ends a reference."""
        nulled = tuple(name for name in key.set_columns or key.columns if not columns[name]["attnotnull"])
        if not nulled:
            self.problems.append(
                f"no column of foreign key {key.name} on {key.table} may be null: set_null cannot be done there"
            )
        return nulled

    def _no_further_reach(self, table: str, oid: int) -> None:
        deeper = rows_pointing_at(self._connection, oid)
        self.problems.extend(
            f"foreign key {row['name']} on {row['table']} reaches beyond the dependant {table}:"
            f" give {table} a policy of its own"
            for row in deeper
        )

    def _slow(self, table_bytes: int, problem: str) -> None:
        if table_bytes > LARGE_TABLE_BYTES:
            self.problems.append(problem)
        else:
            self.missing_indexes.append(problem)


def _listed(columns: tuple[str, ...]) -> str:
    """Write columns as the policy file does."""
    return columns[0] if len(columns) == 1 else f"[{', '.join(columns)}]"


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
