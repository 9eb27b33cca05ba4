"""Count the rows that are past their date at one moment, by a query on the data itself.

The same query gives the dry run's prediction, the figure that caps are compared with, and the residue after a run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from scripts.lifecycle.engine.selection import Selection
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection


@dataclass(frozen=True)
class Survey:
    """The numbers of rows that are past their date at one moment, by one query."""

    due: int = 0
    removable: int = 0
    held: int = 0
    referenced: int = 0
    unnameable: int = 0
    """Due rows whose key, or a dependant's, may be personal."""
    by_rule: dict[str, int] = field(default_factory=dict)
    """Removable rows by the name of the rule."""
    dependants: int = 0
    """Rows of other tables that go with the removable ones, or are cut off from them."""
    oldest_overdue_seconds: float = 0.0
    """Seconds since the period of the oldest row ended that no legal hold keeps."""

    @property
    def remaining(self) -> int:
        """Rows that are past their date and that no legal hold keeps."""
        return self.due - self.held


def survey(connection: Connection, selection: Selection) -> Survey:
    """Count the rows past their date in one pass over the table and over each partition that a run left detached."""
    if not selection.due_before:
        return Survey()
    rows = _rules(connection, selection)
    if selection.policy.removes_rows and selection.partitioned:
        for name in detached_from(connection, selection.policy.table):
            rows += _rules(connection, selection.at(name))
    by_rule: Counter[str] = Counter()
    for row in rows:
        by_rule[row[0]] += row[2]
    return Survey(
        due=sum(row[1] for row in rows),
        removable=sum(row[2] for row in rows),
        held=sum(row[3] for row in rows),
        referenced=sum(row[4] for row in rows),
        unnameable=sum(row[5] for row in rows),
        by_rule={rule: count for rule, count in sorted(by_rule.items()) if count},
        oldest_overdue_seconds=max((float(row[6] or 0) for row in rows), default=0.0),
    )


def detached_from(connection: Connection, table: str) -> list[str]:
    """Return the names of the partitions that a run has detached from a table and that still exist."""
    # A partition that somebody attached again by hand is part of its table and is left out.
    rows = connection.execute(
        "SELECT n.nspname || '.' || c.relname FROM ops.detached_partitions d"
        " JOIN pg_class c ON c.oid = d.partition_oid AND c.relkind = 'r' AND NOT c.relispartition"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE d.state = 'detached' AND d.table_name = %s ORDER BY d.ends_at",
        (table,),
    ).fetchall()
    return [name for (name,) in rows]


def _rules(connection: Connection, selection: Selection) -> list[tuple[Any, ...]]:
    """Return one row of counts for each rule, for one table."""
    overdue = sql.SQL(" ").join(
        sql.SQL("WHEN {} THEN {}").format(selection.rule(name), selection.overdue(name))
        for name in selection.due_before
    )
    # OFFSET 0 keeps the planner from computing the holds again for every count that mentions them.
    statement = sql.SQL(
        "SELECT rule, count(*), count(*) FILTER (WHERE NOT held AND NOT referenced),"
        " count(*) FILTER (WHERE held), count(*) FILTER (WHERE referenced AND NOT held),"
        " count(*) FILTER (WHERE NOT nameable), extract(epoch FROM max(overdue) FILTER (WHERE NOT held))"
        " FROM (SELECT {rule} AS rule, {held} AS held, {referenced} AS referenced, {nameable} AS nameable,"
        " CASE {overdue} END AS overdue FROM {table} t WHERE {due} OFFSET 0) rows GROUP BY rule ORDER BY rule"
    ).format(
        rule=selection.rule_name,
        held=selection.held,
        referenced=selection.referenced,
        nameable=selection.nameable,
        overdue=overdue,
        table=selection.table,
        due=selection.due,
    )
    return connection.execute(statement, selection.parameters).fetchall()
