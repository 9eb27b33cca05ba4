"""Count the rows that are past their date at one moment, by a query on the data itself.

The same query gives the dry run's prediction, the figure that caps are compared with, and the residue after a run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from scripts.lifecycle.engine.fragments import Fragment, fragment, joined
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
    unfit: int = 0
    """Rows, not held, whose blob the store must not be asked to delete: a person has to decide."""
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
        unfit=sum(row[7] for row in rows),
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
    statement = fragment(
        "SELECT rule, count(*), count(*) FILTER (WHERE NOT held AND NOT referenced AND trouble IS NULL),"
        " count(*) FILTER (WHERE held), count(*) FILTER (WHERE referenced AND NOT held),"
        " count(*) FILTER (WHERE NOT nameable), extract(epoch FROM max(overdue) FILTER (WHERE NOT held)),"
        " count(*) FILTER (WHERE trouble IS NOT NULL AND NOT held) FROM {due} GROUP BY rule ORDER BY rule",
        due=due_rows(selection),
    )
    return connection.execute(statement, statement.parameters).fetchall()


def left_out(connection: Connection, selection: Selection) -> tuple[str, ...]:
    """Return the due rows that stay because of their blob (``Selection.place_of_row``), by one pass over the table.

    Another row needs it, or the store must not be asked to delete it.
    """
    statement = fragment(
        "SELECT place FROM {} WHERE (referenced OR trouble IS NOT NULL) AND NOT held", due_rows(selection)
    )
    return tuple(key for (key,) in connection.execute(statement, statement.parameters))


def unfit_rows(selection: Selection, trouble: str | None = None) -> Fragment:
    """Return a sub-query with the keys, as ``resource_id``, of the due rows whose blob is not the policy's to delete.

    Args:
        selection: What the policy selects.
        trouble: The code of :meth:`BlobName.trouble`; None: any.
    """
    return fragment(
        "(SELECT id AS resource_id FROM {} WHERE NOT held AND CASE WHEN %(trouble)s::text IS NULL"
        " THEN trouble IS NOT NULL ELSE trouble = %(trouble)s END)",
        due_rows(selection),
        parameters={"trouble": trouble},
    )


def due_rows(selection: Selection) -> Fragment:
    """Return the sub-query ``due``: the due rows, and what is true of each.

    A run takes those of which ``held`` and ``referenced`` are false and ``trouble`` is null.
    """
    selection = selection.joined()
    rules = selection.due_before
    cases = [fragment("WHEN {} THEN {}", selection.rule(name), selection.overdue(name)) for name in rules]
    overdue = fragment("CASE {} END", joined(" ", cases)) if cases else fragment("NULL::interval")
    blob = selection.policy.blob
    parts: dict[str, sql.Composable] = {
        "id": selection.record.id("t"),
        "place": selection.place_of_row,
        "rule": selection.rule_name,
        "held": selection.held,
        "nameable": selection.nameable,
        "overdue": overdue,
        "due": selection.due,
        "source": selection.source,
        "referenced": replace(selection, left_out=()).referenced_for_good,
    }
    # OFFSET 0: otherwise the planner works the holds out anew for every count that mentions them.
    if blob is None:
        return fragment(
            "(SELECT {id} AS id, {place} AS place, {rule} AS rule, {held} AS held, {referenced} AS referenced,"
            " {nameable} AS nameable,"
            " {overdue} AS overdue, NULL::text AS trouble FROM {source} WHERE {due} OFFSET 0) due",
            parameters=None,
            **parts,
        )
    # Every row that names a blob, sorted by what it names: a join's cost would depend on an index and on what the
    # planner believes. A row that is kept needs its blob; one of which it is not certain what it means, all of its key.
    return fragment(
        "(SELECT * FROM (SELECT each.*, trouble IS NULL AND ("
        "  bool_or(keeps AND NOT certain) OVER (PARTITION BY key)"
        "  OR bool_or(keeps AND certain) OVER (PARTITION BY key, pathname)) OR refers AS referenced FROM ("
        "   SELECT mine.*, n.pathname, m.key, m.first, n.certain AND NOT m.doubtful AS certain,"
        "          ops.blob_trouble(n.store, n.pathname, %(blob_store)s, %(blob_prefix)s) AS trouble,"
        "          NOT (mine.due AND NOT mine.held)"
        "          AND (%(blob_store)s = '' OR m.doubtful OR n.store IS NULL"
        "               OR n.store IN ('', %(blob_store)s)) AS keeps"
        "     FROM (SELECT {id} AS id, {place} AS place, {rule} AS rule, {held} AS held, {referenced} AS refers,"
        "                  {nameable} AS nameable,"
        "                  {overdue} AS overdue, ({due}) IS TRUE AS due, {column} AS blob"
        "             FROM {source} WHERE {names} OFFSET 0) mine"
        "     CROSS JOIN LATERAL ops.blob_parts(mine.blob) n"
        "     CROSS JOIN LATERAL ops.blob_meanings(mine.blob, n.key) m OFFSET 0) each) named WHERE due AND first) due",
        **parts,
        column=sql.Identifier("t", blob.column),
        names=selection.names_blob("t"),
        parameters={"blob_store": selection.blob_store, "blob_prefix": blob.prefix},
    )
