"""What the catalogue says of the values that a policy looks up in other tables, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import psycopg

from scripts.lifecycle.engine.catalogue import UNIQUE, catalogue_of, rows_of
from scripts.lifecycle.engine.fragments import fragment
from scripts.lifecycle.engine.indexes import to_create
from scripts.lifecycle.engine.lookups import Found
from scripts.lifecycle.engine.rights import CURE
from scripts.lifecycle.engine.selection import ANCHOR_TYPES
from scripts.lifecycle.engine.values import kinds_of, of_lookup, read
from scripts.lifecycle.policy.conditions import Condition, LookedUp
from scripts.lifecycle.policy.lookups import Lookup
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils.db_utils import Connection

# Bytes. Above this size a probe without an index takes longer than everything else that is done with a row.
_UNINDEXED_BYTES = 1024 * 1024

_COLUMNS = """
SELECT a.attname::text AS name, format_type(a.atttypid, -1) AS type,
       CASE WHEN c.oid IS NOT NULL THEN ARRAY[n.nspname::text, c.collname::text] END AS collation
  FROM pg_attribute a LEFT JOIN pg_collation c ON c.oid = a.attcollation
  LEFT JOIN pg_namespace n ON n.oid = c.collnamespace
 WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
"""


_INCOMPARABLE = psycopg.errors.UndefinedFunction, psycopg.errors.DatatypeMismatch, psycopg.errors.CollationMismatch


Placed = tuple[str, Mapping[str, Condition | LookedUp]]
"""Conditions, with their place in the policy file."""


class LookupFinder:
    """Finds out what the catalogue says of the lookups of one table's rows, and what is wrong with them.

    Args:
        connection: In a transaction.
        table: The table, with its schema.
        oid: The table.
        conditions: The conditions on what is looked up, each with its place in the policy file.
    """

    def __init__(self, connection: Connection, table: str, oid: int, conditions: Iterable[Placed]) -> None:
        self._connection = connection
        self._table = table
        self._conditions = list(conditions)
        self._own = self._columns(oid)
        self.problems: list[str] = []
        self.missing_indexes: list[str] = []

    def find(self, deciding: Iterable[Lookup], others: Iterable[Lookup] = ()) -> dict[Lookup, Found]:
        """Look lookups up; one with a problem is left out.

        Args:
            deciding: Those that decide whether something happens to a row.
            others: Those that a person's decision sets a column to.
        """
        self._deciding = frozenset(deciding)
        found = {lookup: self._find(lookup) for lookup in dict.fromkeys([*self._deciding, *others])}
        return {lookup: each for lookup, each in found.items() if each}

    def _find(self, lookup: Lookup) -> Found | None:
        table, columns = catalogue_of(self._connection, lookup.from_table)
        if not self._is_there(lookup, table, columns):
            return None
        kinds = kinds_of(self._connection, lookup.from_table, [lookup.take])
        written = list(of_lookup(self._conditions, lookup))
        readings, unreadable = read(self._connection, lookup.from_table, written)
        self.problems += unreadable
        theirs = self._columns(table["oid"])
        unique = rows_of(self._connection, UNIQUE, {"oid": table["oid"]})
        # An index of a table does not know the rows of its children; that of a partitioned one does.
        whole = table["relkind"] == "p" or not table["has_children"]
        single = whole and any(set(row["columns"]) <= set(lookup.theirs) for row in unique)
        found = Found(
            lookup,
            kinds[lookup.take],
            single,
            tuple(
                theirs[their]["collation"] and tuple(theirs[their]["collation"])
                if theirs[their]["collation"] != self._own[own]["collation"]
                else None
                for own, their in lookup.same
            ),
            readings,
            {name: row["type"] for name, row in theirs.items()},
        )
        decides = lookup in self._deciding
        if decides and not single and not lookup.latest and found.kind.read_as not in ANCHOR_TYPES:
            self.problems.append(
                f"several rows of {lookup.from_table} may have the same {', '.join(lookup.theirs)}: say which of them"
                f" counts for {lookup.take}, with latest: and a column, or give it a unique index there"
            )
        if not any(columns[name]["indexed"] for name in lookup.theirs):
            say = self.problems if decides and table["bytes"] > _UNINDEXED_BYTES else self.missing_indexes
            say.append(
                f"{lookup.from_table} has no index that begins with {' or '.join(lookup.theirs)}, by which"
                f" {self._table} looks {lookup.take} up: {to_create(lookup.from_table, *lookup.theirs)}"
            )
        return found if self._works(found) else None

    def _is_there(self, lookup: Lookup, table: dict[str, Any], columns: dict[str, Any]) -> bool:
        """Check that table and columns exist and may be read, all rows of them."""
        before = len(self.problems)
        if not table:
            self.problems.append(f"table {lookup.from_table} does not exist, in which {lookup.take} is looked up")
            return False
        if table["relkind"] not in ("r", "p"):
            self.problems.append(f"{lookup.from_table} is not a table, so {lookup.take} cannot be looked up there")
        missing = [f"{self._table}.{name}" for name in lookup.own if name not in self._own]
        missing += [f"{lookup.from_table}.{name}" for name in lookup.columns if name not in columns]
        self.problems += [f"column {name} does not exist" for name in missing]
        self.problems += [
            f"row-level security on {each} hides rows from this role, so what is looked up there may not be what"
            " counts; give the role BYPASSRLS or a policy-free table"
            for each in table["row_security"]
        ]
        # Which columns the role may not read is named with the policy's other rights (rights.py).
        if not table["may_use_schema"]:
            self.problems.append(f"no right to USAGE of the schema of {lookup.from_table}: {CURE}")
        return len(self.problems) == before

    def _works(self, found: Found) -> bool:
        """Let PostgreSQL plan the lookup: it refuses to compare types that have no equality."""
        query = fragment("EXPLAIN SELECT {} FROM {} t", found.probed(strictly=True), table_identifier(self._table))
        try:
            with self._connection.transaction():
                self._connection.execute(query, query.parameters)
        except psycopg.errors.InsufficientPrivilege:
            return True  # named with the policy's other rights
        except _INCOMPARABLE as error:
            pairs = " and ".join(
                f"{self._table}.{own} ({self._own[own]['type']}) and {found.lookup.from_table}.{their}"
                f" ({self._columns_of(found.lookup)[their]['type']})"
                for own, their in found.lookup.same
            )
            self.problems.append(f"{pairs} cannot be compared: {error.diag.message_primary}")
            return False
        return True

    def _columns_of(self, lookup: Lookup) -> dict[str, dict[str, Any]]:
        table, _ = catalogue_of(self._connection, lookup.from_table)
        return self._columns(table["oid"])

    def _columns(self, oid: int) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in rows_of(self._connection, _COLUMNS, {"oid": oid})}
