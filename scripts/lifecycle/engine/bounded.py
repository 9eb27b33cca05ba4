"""Count the values that say a period beyond the floor or the ceiling of their rule, or that are no period."""

from __future__ import annotations

from scripts.lifecycle.engine.fragments import fragment
from scripts.lifecycle.engine.row_periods import RowMoments
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.policy.row_periods import RowPeriod
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection


def bounded(connection: Connection, selection: Selection) -> list[str]:
    """Say of each rule whose rows say their period how many of those values do not count as they stand.

    Args:
        connection: In a transaction.
        selection: What the policy selects.
    """
    told: list[str] = []
    for name, rule in selection.policy.rules.items():
        keep = rule.keep
        if not isinstance(keep, RowPeriod):
            continue
        moments = RowMoments(name, rule, keep, selection.cutoff)
        value = sql.Identifier("o", keep.take)
        table = keep.from_table or selection.policy.table
        query = fragment(
            "SELECT count(*) FILTER (WHERE {}), count(*) FILTER (WHERE {}), count(*) FILTER (WHERE {}) FROM {} o",
            moments.is_below(value),
            moments.is_above(value),
            moments.is_no_period(value),
            table_identifier(table),
        )
        below, above, none = connection.execute(query, query.parameters).fetchone() or (0, 0, 0)
        ends = f"go at the ceiling of {rule.ceiling.text}" if rule.ceiling else "stay"
        said = [
            f"{below} below the floor of {rule.floor.text if rule.floor else ''}, which counts" if below else "",
            f"{above} above the ceiling of {rule.ceiling.text if rule.ceiling else ''}, which counts" if above else "",
            f"{none} that are no period, whose rows {ends}" if none else "",
        ]
        if any(said):
            told.append(f"rules.{name}.keep: {table}.{keep.take} has {', '.join(filter(None, said))}")
    return told
