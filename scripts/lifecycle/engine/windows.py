"""Two paths through a table in bounded windows: the millionth window costs what the first one did.

A ``LIMIT`` loop from the left edge reads every dead index entry again in every batch, and its cost grows quadratically
while another session holds an old snapshot. Both paths here give each window a lower and an upper bound, so they never
look back. A sweep over physical block ranges is for tables of which much is due; a walk along the anchor's index is for
tables of which little is due.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from scripts.lifecycle.engine.fragments import Fragment
from scripts.lifecycle.engine.selection import Selection
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
    """Windows of a given number of entries of the anchor's index, in the order of anchor and key.

    Args:
        selection: The policy's selection.
        anchor: The indexed column.
        bound: What a row must meet to count as an entry; holds the upper bound of the anchor.
    """

    def __init__(self, selection: Selection, anchor: str, bound: Fragment) -> None:
        self.name = f"index:{anchor}"
        self._bound = bound
        names = {
            "table": selection.table,
            "anchor": sql.Identifier(anchor),
            "key": selection.record.columns("t"),
            "anchor_type": selection.column_type(anchor),
            "after_key": selection.record.values(sql.Placeholder("after_key")),
            "until_key": selection.record.values(sql.Placeholder("until_key")),
        }
        self._bound_to = dict(bound.parameters)
        self._record = selection.record
        self._edge = selection.record.numbered
        self._after = sql.SQL("(t.{anchor}, {key}) > (%(after_anchor)s::{anchor_type}, {after_key})").format(**names)
        self._until = sql.SQL("(t.{anchor}, {key}) <= (%(until_anchor)s::{anchor_type}, {until_key})").format(**names)
        if selection.partitioned:
            # Redundant, but PostgreSQL prunes partitions by conditions on one column, never by a row comparison.
            self._after += sql.SQL(" AND t.{anchor} >= %(after_anchor)s::{anchor_type}").format(**names)
            self._until += sql.SQL(" AND t.{anchor} <= %(until_anchor)s::{anchor_type}").format(**names)
        self._names = names

    def question(self, window: Window | None, rows: int) -> tuple[sql.Composed, dict[str, Any]]:
        """Ask for the entry that ends the next window."""
        bound, parameters = self._lower(window)
        edge = sql.SQL(
            "SELECT e.anchor::text, {id} FROM (SELECT t.{anchor} AS anchor, {named} FROM {table} t"
            " WHERE {bound} ORDER BY t.{anchor}, {key} LIMIT {rows}) e ORDER BY e.anchor DESC, {backwards} LIMIT 1"
        ).format(
            bound=sql.SQL(" AND ").join([self._bound, *bound]),
            rows=sql.Literal(rows),
            named=self._record.numbered_columns("t"),
            id=self._edge.id("e"),
            backwards=self._edge.ordered("e", "DESC"),
            **self._names,
        )
        return edge, self._bound_to | parameters

    def following(self, window: Window | None, answer: tuple[Any, ...] | None, rows: int) -> Window | None:  # noqa: ARG002
        """Return the window that ends at the answered entry."""
        if answer is None:
            return None
        bound, parameters = self._lower(window)
        clause = sql.SQL(" AND ").join([self._bound, *bound, self._until])
        until = {"until_anchor": answer[0], "until_key": answer[1]}
        return Window(clause, self._bound_to | parameters | until)

    def _lower(self, window: Window | None) -> tuple[list[sql.Composed], dict[str, Any]]:
        if window is None:
            return [], {}
        after = {"after_anchor": window.parameters["until_anchor"], "after_key": window.parameters["until_key"]}
        return [self._after], after


def chosen_keys(selection: Selection, keys: list[str]) -> Window:
    """Return a window of exactly these keys."""
    return Window(selection.record.among("t", sql.Placeholder("chosen_keys")), {"chosen_keys": keys})
