"""Count the rows of other tables that go with a policy's rows, or are cut off from them.

The dry run, the caps and the closing line name them beside the policy's own rows: three rows may have a hundred
thousand dependants.
"""

from __future__ import annotations

from collections import defaultdict

from scripts.lifecycle.engine.selection import Reach, Selection
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection


def count(connection: Connection, selection: Selection, limit: int | None) -> int:
    """Count what goes with the rows that a run would take.

    Args:
        connection: In a transaction.
        selection: What the policy selects.
        limit: Rows that the run takes at most; None: all. Of a policy with several rules the number is then that of
            all rows, an upper bound: which rows go depends on what the first rule's walk finds.
    """
    if not selection.due_before:
        return 0
    selection = selection.joined()
    rows = _rows(selection, limit)
    together: dict[tuple[str, str], list[Reach]] = defaultdict(list)
    for number, reach in enumerate(selection.reaches):
        # A child that two constraints delete goes once; one that two constraints cut off is changed twice.
        kind = "delete" if reach.action == "delete" else f"{reach.action} {number}"
        together[reach.foreign_key.table, kind].append(reach)
    total = 0
    for reaches in together.values():
        found = sql.SQL(" UNION ").join(
            sql.SQL("SELECT c.tableoid, c.ctid FROM {} c JOIN {} t ON {}").format(
                table_identifier(reach.foreign_key.table), rows, reach.foreign_key.joins("c")
            )
            for reach in reaches
        )
        row = connection.execute(
            sql.SQL("SELECT count(*) FROM ({}) found").format(found), selection.parameters
        ).fetchone()
        total += row[0] if row else 0
    return total


def _rows(selection: Selection, limit: int | None) -> sql.Composed:
    """Return the policy's rows that go, as a subquery."""
    referenced = dict.fromkeys(
        ["tableoid", *(each for reach in selection.reaches for each in reach.foreign_key.referenced)]
    )
    # No more than what the foreign keys refer to: the role may read no other columns.
    columns = sql.SQL(", ").join(sql.Identifier("t", name) for name in referenced)
    names = {"source": selection.source, "removable": selection.removable_in_the_end, "columns": columns}
    if limit is None or len(selection.due_before) > 1:
        return sql.SQL("(SELECT {columns} FROM {source} WHERE {removable})").format(**names)
    (rule,) = selection.due_before
    anchor = selection.policy.rules[rule].anchor
    along = sql.SQL("t.{}, ").format(sql.Identifier(anchor)) if isinstance(anchor, str) else sql.SQL("").format()
    order = along + selection.record.columns("t")
    return sql.SQL("(SELECT {columns} FROM {source} WHERE {removable} ORDER BY {order} LIMIT {limit})").format(
        order=order, limit=sql.Literal(limit), **names
    )
