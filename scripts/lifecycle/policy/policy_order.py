"""Put policies in order: children before parents, by the catalogue's foreign keys; on one table, changes first.

A policy whose last run was cut short goes as early as the foreign keys allow, and so do the policies that must go
before it. A cycle of foreign keys has no such order: it is reported, and broken where the file's order says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Protocol

from scripts.utils.db_utils import Connection

# On one table the blob is deleted before the row that names it, and a row is marked before marked rows are deleted.
_ON_ONE_TABLE = ("retain", "delete_blob", "anonymize", "soft_delete", "archive_then_delete", "delete")
_USUAL = 2

# A foreign key at a partition or an inheritance child, on either side, is one of every table above it too.
_FOREIGN_KEYS = """
WITH RECURSIVE above (oid, name) AS (
    SELECT c.oid, c.oid FROM pg_class c WHERE c.relkind IN ('r', 'p')
     UNION
    SELECT a.oid, i.inhparent FROM above a JOIN pg_inherits i ON i.inhrelid = a.name
)
SELECT DISTINCT cn.nspname || '.' || c.relname, pn.nspname || '.' || p.relname
  FROM pg_constraint k
  JOIN above child ON child.oid = k.conrelid JOIN above parent ON parent.oid = k.confrelid
  JOIN pg_class c ON c.oid = child.name JOIN pg_namespace cn ON cn.oid = c.relnamespace
  JOIN pg_class p ON p.oid = parent.name JOIN pg_namespace pn ON pn.oid = p.relnamespace
 WHERE k.contype = 'f' AND c.oid <> p.oid
"""


class Step(Protocol):
    """A policy or a step of an erasure, as far as its place in the order depends on it."""

    @property
    def name(self) -> str:
        """The name of the policy or step."""

    @property
    def table(self) -> str:
        """The table whose rows it changes."""

    @property
    def action(self) -> str:
        """The action, by the name that policies use."""

    @property
    def removes_rows(self) -> bool:
        """Whether the action removes rows from the table."""


@dataclass(frozen=True)
class Order:
    """The order of the policies, and the cycles of foreign keys that contradict it."""

    names: list[str]
    cycles: list[list[str]]
    """Each is a list of tables of which each refers to the next; the first table stands at the end again."""


def foreign_keys(connection: Connection) -> set[tuple[str, str]]:
    """Return every pair of child and parent table."""
    return {(child, parent) for child, parent in connection.execute(_FOREIGN_KEYS)}


def in_order(policies: Iterable[Step], keys: set[tuple[str, str]], urgent: Mapping[str, int] | None = None) -> Order:
    """Put policies in the order in which they are carried out.

    Args:
        policies: The policies in the file's order.
        keys: Child and parent table of every foreign key.
        urgent: Policies whose last run was cut short, with a number; the smaller the number, the earlier the policy.
    """
    listed = list(policies)
    place = {policy.name: number for number, policy in enumerate(listed)}
    table = {policy.name: policy.table for policy in listed}
    before: dict[str, set[str]] = {policy.name: set() for policy in listed}
    for first in listed:
        for then in listed:
            if first is not then and _goes_before(first, then, keys):
                before[then.name].add(first.name)
    cycles = _broken(before, place, table)
    rank = {name: (urgent or {}).get(name, _USUAL) for name in place}
    for name in TopologicalSorter(before).static_order():
        # A policy that must go before an urgent one is as urgent as that one.
        for earlier in _all_before(name, before):
            rank[earlier] = min(rank[earlier], rank[name])
    return Order(_sorted(before, rank, place), cycles)


def _goes_before(first: Step, then: Step, keys: set[tuple[str, str]]) -> bool:
    if first.table == then.table:
        return _ON_ONE_TABLE.index(first.action) < _ON_ONE_TABLE.index(then.action)
    return then.removes_rows and (first.table, then.table) in keys


def _broken(before: dict[str, set[str]], place: dict[str, int], table: dict[str, str]) -> list[list[str]]:
    """Remove from every cycle one requirement that the file's order contradicts, and return the cycles."""
    cycles = []
    while True:
        try:
            TopologicalSorter(before).prepare()
        except CycleError as error:
            ring: list[str] = error.args[1]  # each goes before the next
            cycles.append([table[name] for name in ring])
            earlier, later = next((a, b) for a, b in pairwise(ring) if place[a] > place[b])
            before[later].discard(earlier)
        else:
            return cycles


def _all_before(name: str, before: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = [name]
    while todo:
        todo += [each for each in before[todo.pop()] if each not in found]
        found.update(todo)
    return found


def _sorted(before: dict[str, set[str]], rank: dict[str, int], place: dict[str, int]) -> list[str]:
    names: list[str] = []
    while len(names) < len(before):
        ready = [name for name in before if name not in names and before[name] <= set(names)]
        names.append(min(ready, key=lambda name: (rank[name], place[name])))
    return names
