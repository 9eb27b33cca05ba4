"""Two paths through a table in bounded windows: the millionth window costs what the first one did.

A ``LIMIT`` loop from the left edge reads every dead index entry again in every batch, and its cost grows quadratically
while another session holds an old snapshot. Both paths here give each window a lower and an upper bound, so they never
look back. A sweep over physical block ranges is for tables of which much is due; a walk along the anchor's index is for
tables of which little is due.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from scripts.lifecycle.engine.fragments import Fragment, fragment
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.policy.lookups import Lookup
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection

_STRETCHES, _STRETCH_BLOCKS = 16, 4


@dataclass(frozen=True)
class Window:
    """A bounded part of the table: a condition on the alias ``t``, and its parameters."""

    clause: sql.Composable
    parameters: dict[str, Any] = field(default_factory=dict)
    position: float = 0.0
    """The share of the path that ends with this window, from 0 to 1; 0 if it is unknown."""


class Path(Protocol):
    """A sequence of windows that together cover what is due in a table."""

    name: str

    def question(self, window: Window | None, rows: int) -> tuple[sql.Composed, dict[str, Any]] | None:
        """Return the query whose answer determines the window after this one; None: no query is needed.

        Args:
            window: The window before; None: the first window is asked for.
            rows: About how many rows the next window should have.
        """

    def following(self, window: Window | None, answer: tuple[Any, ...] | None, rows: int) -> Window | None:
        """Return the window after this one, or None at the end of the path.

        Args:
            window: The window before; None: the first window is asked for.
            answer: The answer to :meth:`question`.
            rows: About how many rows the next window should have.
        """


class Sweep:
    """Ranges of the table file, by TID range scan (PostgreSQL 14), each with a bounded number of rows.

    Statistics may be missing or out of date, so no range is taken on their word: the rows ahead are looked at, and the
    range is cut at the last one that fits. What they tell is how far to look, and the ranges seen so far correct them.
    Rows that arrive or move behind the sweep are left to a closing index walk.

    Args:
        table: The table.
        blocks: Its size when the sweep begins; what is appended later is left to the closing walk.
        rows_per_block: As far as it is known.
    """

    name = "sweep"
    _CLAUSE = sql.SQL("t.ctid >= %(from_tid)s::tid AND t.ctid < %(to_tid)s::tid")
    # A stretch that looks empty is crossed in leaps; one of them is looked at as a whole, so it has a bound.
    _LONGEST_LOOK_BLOCKS = 8192
    _LEAP = 4

    def __init__(self, table: sql.Composable, *, blocks: int, rows_per_block: float) -> None:
        self._table = table
        self._blocks = blocks
        self._rows_per_block = rows_per_block
        self._looked_blocks = 0

    def question(self, window: Window | None, rows: int) -> tuple[sql.Composed, dict[str, Any]] | None:
        """Ask where the range after this window ends: before its first row too many, or a look ahead of its beginning.

        And read the range behind the window, whose count is of no use. Reading a page prunes its deleted rows while it
        is in the cache and already in the WAL. Otherwise the survey after the run would write every page once more.
        """
        start, behind = _edges(window)
        if _block(start) >= self._blocks:
            return None
        parameters = {"behind_tid": behind, "from_tid": window.parameters["from_tid"] if window else start}
        ask = sql.SQL(
            "SELECT"
            " (SELECT count(*) FROM {table} t WHERE t.ctid >= %(behind_tid)s::tid AND t.ctid < %(from_tid)s::tid),"
            " count(*), (min(tid) FILTER (WHERE place > {rows}))::text"
            " FROM (SELECT t.ctid AS tid, row_number() OVER (ORDER BY t.ctid) AS place FROM {table} t"
            " WHERE t.ctid >= %(start_tid)s::tid AND t.ctid < %(look_tid)s::tid) ahead"
        ).format(table=self._table, rows=sql.Literal(rows))
        return ask, parameters | {"start_tid": start, "look_tid": f"({self._look(start, rows)},0)"}

    def following(self, window: Window | None, answer: tuple[Any, ...] | None, rows: int) -> Window | None:
        """Return the range that was asked for."""
        start, behind = _edges(window)
        if answer is None:
            return None
        _, found, cut = answer
        look = self._look(start, rows)
        self._looked_blocks = look - _block(start)
        self._rows_per_block = found / self._looked_blocks
        end: str = cut or f"({look},0)"
        return Window(
            self._CLAUSE,
            {"behind_tid": behind, "from_tid": start, "to_tid": end},
            min(_block(end) / self._blocks, 1.0),
        )

    def _look(self, start: str, rows: int) -> int:
        """Return the block before which to look for ``rows`` rows."""
        most = self._LEAP * max(self._looked_blocks, 16)
        wanted = rows / self._rows_per_block if self._rows_per_block else most
        look = _block(start) + max(1, min(round(wanted), most, self._LONGEST_LOOK_BLOCKS))
        return min(look, self._blocks)


def _edges(window: Window | None) -> tuple[str, str]:
    """Return where the range after a window begins, and where the window itself does."""
    if window is None:
        return "(0,0)", "(0,0)"
    return window.parameters["to_tid"], window.parameters["from_tid"]


def _block(tid: str) -> int:
    return int(tid[1:].partition(",")[0])


def measured_rows_per_block(connection: Connection, table: sql.Composable, blocks: int) -> float:
    """Count the rows in a few stretches of a plain table, because its statistics may be missing or out of date.

    Args:
        connection: In a transaction.
        table: The table.
        blocks: Its size.

    Returns:
        Rows a block, on average; 0 where none was seen.
    """
    stretches = range(0, blocks, max(1, blocks // _STRETCHES))
    counts = [
        sql.SQL("(SELECT count(*) FROM {} t WHERE t.ctid >= {}::tid AND t.ctid < {}::tid)").format(
            table, f"({first},0)", f"({first + _STRETCH_BLOCKS},0)"
        )
        for first in stretches
    ]
    if not counts:
        return 0.0
    row = connection.execute(sql.SQL("SELECT {}").format(sql.SQL(" + ").join(counts)), {}).fetchone()
    looked_at = sum(min(first + _STRETCH_BLOCKS, blocks) - first for first in stretches)
    return row[0] / looked_at if row else 0.0


class IndexWalk:
    """Windows of a given number of entries of an index, in the order of the anchor and the key, or of the key alone.

    Args:
        selection: The policy's selection.
        anchor: The indexed column; None: the walk goes along the key, because the anchor is another table's.
        bound: What a row must meet to count as an entry; holds the upper bound of the anchor.
        counted: What a row must meet besides to count towards the number of rows, where the anchor's bound alone lets
            in many rows that are not due. The others are crossed, so many at a time that no question takes long.
    """

    _CROSSED = 50_000

    def __init__(
        self, selection: Selection, anchor: str | None, bound: Fragment, counted: Fragment | None = None
    ) -> None:
        self.name = f"index:{anchor or ','.join(selection.policy.key)}"
        self._bound = bound
        self._counted = counted
        self._record = selection.record
        self._edge = selection.record.numbered
        names: dict[str, sql.Composable] = {
            "table": selection.table,
            "key": selection.record.columns("t"),
            "after_key": selection.record.values(sql.Placeholder("after_key")),
            "until_key": selection.record.values(sql.Placeholder("until_key")),
            "anchor": sql.SQL(""),
            "after_anchor": sql.SQL(""),
            "until_anchor": sql.SQL(""),
        }
        redundant = sql.SQL("").format(), sql.SQL("").format()
        if anchor:
            column, kind = sql.Identifier("t", anchor), selection.column_type(anchor)
            names["anchor"] = sql.SQL("{}, ").format(column)
            names |= {
                f"{edge}_anchor": sql.SQL("{}::{}, ").format(sql.Placeholder(f"{edge}_anchor"), kind)
                for edge in ("after", "until")
            }
            if selection.partitioned:
                # Redundant, but PostgreSQL prunes partitions by conditions on one column, never by a row comparison.
                redundant = (
                    sql.SQL(" AND {} >= {}::{}").format(column, sql.Placeholder("after_anchor"), kind),
                    sql.SQL(" AND {} <= {}::{}").format(column, sql.Placeholder("until_anchor"), kind),
                )
        self._after = sql.SQL("({anchor}{key}) > ({after_anchor}{after_key}){}").format(redundant[0], **names)
        self._until = sql.SQL("({anchor}{key}) <= ({until_anchor}{until_key}){}").format(redundant[1], **names)
        self._names = names | {
            "value": sql.Identifier("t", anchor) if anchor else sql.SQL("NULL::text"),
            "id": self._edge.id("e"),
            "named": self._record.numbered_columns("t"),
            "forwards": self._edge.ordered("a", "ASC"),
            "backwards": self._edge.ordered("e", "DESC"),
        }

    def question(self, window: Window | None, rows: int) -> tuple[sql.Composed, dict[str, Any]]:
        """Ask for the entry that ends the next window."""
        bound, parameters = self._lower(window)
        names = self._names | {"bound": sql.SQL(" AND ").join([self._bound, *bound]), "rows": sql.Literal(rows)}
        known = dict(self._bound.parameters)
        if self._counted is None:
            edge = sql.SQL(
                "SELECT e.anchor::text, {id} FROM (SELECT {value} AS anchor, {named} FROM {table} t"
                " WHERE {bound} ORDER BY {anchor}{key} LIMIT {rows}) e ORDER BY e.anchor DESC, {backwards} LIMIT 1"
            ).format(**names)
            return edge, known | parameters
        # Before the entry that would be one too many: the entries up to there may have any number that do not count.
        edge = sql.SQL(
            "SELECT e.anchor::text, {id} FROM ("
            "SELECT a.*, sum(a.counts) OVER (ORDER BY a.anchor, {forwards} ROWS UNBOUNDED PRECEDING) AS place FROM ("
            "SELECT {value} AS anchor, {named}, CASE WHEN {counted} THEN 1 ELSE 0 END AS counts FROM {table} t"
            " WHERE {bound} ORDER BY {anchor}{key} LIMIT {crossed}) a) e"
            " WHERE e.place <= {rows} ORDER BY e.anchor DESC, {backwards} LIMIT 1"
        ).format(counted=self._counted, crossed=sql.Literal(self._CROSSED), **names)
        return edge, known | dict(self._counted.parameters) | parameters

    def following(self, window: Window | None, answer: tuple[Any, ...] | None, rows: int) -> Window | None:  # noqa: ARG002
        """Return the window that ends at the answered entry."""
        if answer is None:
            return None
        bound, parameters = self._lower(window)
        clause = sql.SQL(" AND ").join([self._bound, *bound, self._until])
        until = {"until_anchor": answer[0], "until_key": answer[1]}
        return Window(clause, dict(self._bound.parameters) | parameters | until)

    def _lower(self, window: Window | None) -> tuple[list[sql.Composed], dict[str, Any]]:
        if window is None:
            return [], {}
        after = {"after_anchor": window.parameters["until_anchor"], "after_key": window.parameters["until_key"]}
        return [self._after], after


def walk_along(
    selection: Selection, anchor: str | Lookup, bound: Fragment, counted: Fragment | None = None
) -> IndexWalk:
    """Return the walk along an anchor; along the key, if no index of the table has the anchor.

    Args:
        selection: The policy's selection.
        anchor: The column, or the value of another table.
        bound: What the anchor must meet.
        counted: What a row must meet to count; None: the bound.
    """
    if isinstance(anchor, str):
        return IndexWalk(selection, anchor, bound, counted)
    return IndexWalk(selection, None, fragment("true"), counted or bound)


def chosen_keys(selection: Selection, keys: list[str]) -> Window:
    """Return a window of exactly these keys."""
    return Window(selection.record.among("t", sql.Placeholder("chosen_keys")), {"chosen_keys": keys})
