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
    """Block ranges of the table file, by TID range scan (PostgreSQL 14).

    The sweep misses rows that are inserted or moved behind it; an index walk at the end finds them.
    """

    name = "sweep"
    _CLAUSE = sql.SQL("t.ctid >= %(from_tid)s::tid AND t.ctid < %(to_tid)s::tid")

    def __init__(self, table: sql.Composable, *, blocks: int, rows_per_block: float) -> None:
        self._table = table
        self._blocks = blocks
        self._rows_per_block = max(rows_per_block, 1.0)

    def question(self, window: Window | None, rows: int) -> tuple[sql.Composed, dict[str, Any]] | None:  # noqa: ARG002
        """Return a query that reads the range behind the window. Its count is not used: all ranges are known.

        Reading a page prunes its deleted rows while the page is in the cache and already in the WAL. Otherwise the
        survey after the run would write every page once more.
        """
        if window is None or window.parameters["behind_tid"] == window.parameters["from_tid"]:
            return None
        behind = sql.SQL("SELECT count(*) FROM {} t WHERE t.ctid >= %(behind_tid)s::tid AND t.ctid < %(from_tid)s::tid")
        return behind.format(self._table), window.parameters

    def following(self, window: Window | None, answer: tuple[Any, ...] | None, rows: int) -> Window | None:  # noqa: ARG002
        """Return the next range of about ``rows`` rows."""
        start: int = window.parameters["to_block"] if window else 0
        behind = window.parameters["from_tid"] if window else "(0,0)"
        if start >= self._blocks:
            return None
        end = min(start + max(1, int(rows / self._rows_per_block)), self._blocks)
        return Window(
            self._CLAUSE,
            {"behind_tid": behind, "from_tid": f"({start},0)", "to_tid": f"({end},0)", "to_block": end},
            end / self._blocks,
        )


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
