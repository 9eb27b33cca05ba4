"""What a batch decided by values of other tables: kept in its transaction, and decided once more before its COMMIT.

A DELETE that waited for a row looks again at that row and not at the others (PostgreSQL, "Read Committed Isolation
Level"), and nothing keeps a row of another table from changing while the batch works. So the batch keeps, of each row
that it took, the columns that its decision rests on. When nothing is left to wait for, the audit's head included, one
more statement decides on them again, in a snapshot of its own, and undoes the batch if a row may not go any more. The
rows themselves cannot change: the batch has deleted, changed or locked them. If no transaction at all was committed
between the two snapshots, there is nothing to decide again (``docs/decisions/0024-lookups-and-periods-by-row.md``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from scripts.lifecycle.engine.fragments import Fragment, fragment, joined
from scripts.lifecycle.engine.lookups import Found
from scripts.lifecycle.engine.selection import Reach, Selection
from scripts.lifecycle.policy.conditions import own_columns
from scripts.lifecycle.policy.lookups import Lookup
from scripts.lifecycle.policy.row_periods import RowPeriod
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql

# What waits for the end of the transaction happens now: deferred constraints, and the audit's head, which may be locked
# by another session for seconds. From here on the batch waits for nothing.
_WAIT_NOW = sql.SQL("SET CONSTRAINTS ALL IMMEDIATE").format()

# Settings of the transaction, each an array with an entry for every row. Arrays, because a JSON object for each row
# takes longer than the DELETE.
_DECIDED = "lifecycle.decided_{}"
_READ = sql.SQL("nullif(current_setting({}, true), '')::text[]")
_KEEP_ONE = sql.SQL("set_config({}, array_agg({})::text, true)")
_SNAPSHOT = sql.SQL("set_config('lifecycle.decided_in', pg_current_snapshot()::text, true)")
_KEEP = sql.SQL(", kept AS MATERIALIZED (SELECT {settings} FROM gone g)")
_KEPT = sql.SQL(", kept WHERE kept IS NOT NULL OR true")

# Chosen and locked before anything goes, because dependants that go first may be what the decision rests on.
_CHOOSE = sql.SQL("""
WITH {may_run}, gone AS MATERIALIZED (
    SELECT {rule} AS rule, t.tableoid AS part, t.ctid AS place{decided} FROM {table} t
     WHERE {rows} AND {removable} AND (SELECT owned AND NOT stopped FROM may_run) FOR UPDATE {skip_locked}
)
SELECT {settings} FROM gone g
""")


class Decided:
    """Composes what keeps a batch's decisions, and what repeats them.

    Args:
        selection: What the policy selects.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self.lookups: tuple[Lookup, ...] = () if selection.cause else selection.policy.lookups
        """The values of other tables that decide; empty: there is nothing to decide again."""

    @property
    def first(self) -> bool:
        """Whether rows are chosen before anything goes, because dependants go before them."""
        return bool(self.lookups and self._selection.reaches)

    @cached_property
    def _columns(self) -> tuple[str, ...]:
        """The columns of the table that its rows' decisions rest on."""
        policy = self._selection.policy
        named: list[str] = []
        for rule in policy.rules.values():
            named += [*own_columns(rule.when), *([rule.anchor] if isinstance(rule.anchor, str) else [])]
            named += [rule.keep.take] if isinstance(rule.keep, RowPeriod) and rule.keep.lookup is None else []
        for exception in policy.exceptions.values():
            named += own_columns(exception.when)
        for lookup in self.lookups:
            named += lookup.own
            named += lookup.columns if lookup.from_table == policy.table else ()
        return tuple(dict.fromkeys(named))

    @property
    def _kept(self) -> dict[str, str]:
        """What is kept of each row: columns of ``gone``, by the names of the settings that hold them."""
        names = ["rule", *(f"decided_{number}" for number, _ in enumerate(self._columns))]
        return {_DECIDED.format(name): name for name in names}

    @property
    def _returned(self) -> sql.Composed:
        return _named(self._columns, "t")

    def kept_with(self, alias: str = "") -> dict[str, sql.Composable]:
        """Return the parts that a statement which changes rows has besides, so that what it decided is kept.

        Args:
            alias: Of the rows that were chosen before they were changed; empty: they are chosen as they change.
        """
        if not self.lookups:
            return dict.fromkeys(("decided", "passed_on", "remembered", "kept"), sql.SQL(""))
        passed_on = [sql.SQL(", {}.{}").format(sql.SQL(alias), sql.Identifier(name)) for name in self._kept.values()]
        return {
            "decided": self._returned,
            "passed_on": sql.SQL("").join(passed_on[1:] if alias else []),
            "remembered": _KEEP.format(settings=_with_snapshot(self._kept)),
            "kept": _KEPT,
        }

    @property
    def settling(self) -> list[sql.Composed]:
        """The last statements of a batch: wait for all that is left to wait for, and decide again."""
        return [_WAIT_NOW, self.again] if self.lookups else []

    def choice(
        self, rows: sql.Composable, removable: sql.Composable, *, skip_locked: bool, may_run: sql.SQL
    ) -> sql.Composed:
        """Return the statement that chooses, locks and keeps the rows of a batch whose dependants go first."""
        places = {_DECIDED.format(name): name for name in ("part", "place")}
        return _CHOOSE.format(
            may_run=may_run,
            rule=self._selection.rule_of_due,
            decided=self._returned,
            table=self._selection.table,
            rows=rows,
            removable=removable,
            skip_locked=sql.SQL("SKIP LOCKED" if skip_locked else ""),
            settings=_with_snapshot(self._kept | places),
        )

    @property
    def chosen(self) -> sql.Composed:
        """The condition that a row of ``t`` was chosen by :meth:`choice`."""
        return sql.SQL("(t.tableoid, t.ctid) IN (SELECT d.part, d.place FROM {})").format(self.choices)

    @property
    def choices(self) -> sql.Composed:
        """The chosen rows, as ``d``: where each is, and the name of its rule."""
        kinds = (("part", "oid"), ("place", "tid"), ("rule", "text"))
        rows = _unnested([(_DECIDED.format(name), name, kind) for name, kind in kinds])
        return sql.SQL("({}) d").format(rows)

    def gone_with(self, number: int, reach: Reach) -> tuple[sql.Composed, sql.Composed]:
        """Return what a statement that deletes dependants returns besides, and what keeps it."""
        columns = self._of_dependants(reach)
        if not columns:
            return sql.SQL("").format(), sql.SQL("").format()
        kept = {_removed(number, column): f"decided_{place}" for place, column in enumerate(columns)}
        condition = sql.SQL(" WHERE (SELECT ({}) IS NOT NULL OR true FROM reached g)")
        return _named(columns, "c"), condition.format(_settings(kept))

    def _of_dependants(self, reach: Reach) -> tuple[str, ...]:
        table = reach.foreign_key.table
        if reach.action != "delete":
            return ()
        return tuple(dict.fromkeys(c for each in self.lookups if each.from_table == table for c in each.columns))

    @cached_property
    def again(self) -> Fragment:
        """The statement that decides again; it raises :class:`Rescued` if a row that was taken may not go any more."""
        # Those alone: joined, the planner would often read a whole index of the other table for a few thousand rows.
        removed = {each: found for each in self.lookups if (found := self._removed_of(each))}
        selection = replace(self._selection, joins=frozenset(removed))
        columns = [
            (_DECIDED.format(f"decided_{number}"), name, selection.types[name])
            for number, name in enumerate(self._columns)
        ]
        return fragment(
            "WITH decided AS MATERIALIZED ({rows}"
            " WHERE pg_current_snapshot()::text IS DISTINCT FROM current_setting('lifecycle.decided_in', true))"
            " SELECT ops.none_rescued(count(*)) FROM decided t{joins}"
            " WHERE (({wanted}) AND {rule} = t.{kept}) IS NOT TRUE",
            rows=_unnested([(_DECIDED.format("rule"), "(rule)", "text"), *columns]),
            joins=selection.joined_to(lambda found: self._still_there(found, removed[found.lookup])),
            wanted=selection.wanted,
            rule=selection.rule_of_due,
            kept=sql.Identifier("(rule)"),
        )

    def _removed_of(self, lookup: Lookup) -> list[sql.Composed]:
        """Return queries for the rows of the other table that this batch removes itself."""
        columns = sql.SQL(", ").join(sql.SQL("o.{}").format(sql.Identifier(name)) for name in lookup.columns)
        removed: list[sql.Composed] = []
        if lookup.from_table == self._selection.policy.table:
            removed.append(sql.SQL("SELECT {} FROM decided o").format(columns))
        for number, reach in enumerate(self._selection.reaches):
            if reach.foreign_key.table == lookup.from_table and (names := self._of_dependants(reach)):
                types = self._selection.found[lookup].types
                gone = _unnested([(_removed(number, name), name, types[name]) for name in names])
                removed.append(sql.SQL("SELECT {} FROM ({}) o").format(columns, gone))
        return removed

    def _still_there(self, found: Found, removed: list[sql.Composed]) -> Fragment:
        """Return the rows of the other table that the decided ones look up, with those that this batch has removed.

        What the batch has removed itself does not change its decision.
        """
        lookup = found.lookup
        # OFFSET 0: an index finds each, and all are found once. Otherwise each row would look through all others.
        return fragment(
            "(SELECT o.* FROM (SELECT DISTINCT {own} FROM decided t) d CROSS JOIN LATERAL"
            " (SELECT {columns} FROM {table} o WHERE {matches} OFFSET 0) o UNION ALL {removed} OFFSET 0)",
            own=sql.SQL(", ").join(sql.Identifier("t", name) for name in dict.fromkeys(lookup.own)),
            columns=sql.SQL(", ").join(sql.SQL("o.{}").format(sql.Identifier(name)) for name in lookup.columns),
            table=table_identifier(lookup.from_table),
            matches=found.matches("o", "d"),
            removed=joined(" UNION ALL ", removed),
        )


def _named(columns: Sequence[str], alias: str) -> sql.Composed:
    """Return columns for a select list that has others before them, as ``decided_0`` and so on."""
    return sql.SQL("").join(
        sql.SQL(", {} AS {}").format(sql.Identifier(alias, column), sql.Identifier(f"decided_{number}"))
        for number, column in enumerate(columns)
    )


def _settings(kept: Mapping[str, str]) -> sql.Composed:
    """Return a select list that keeps columns of ``g``, by the names of settings."""
    return sql.SQL(", ").join(
        _KEEP_ONE.format(sql.Literal(setting), sql.SQL("g.{}::text").format(sql.Identifier(name)))
        for setting, name in kept.items()
    )


def _with_snapshot(kept: Mapping[str, str]) -> sql.Composed:
    """Return the same select list, and what keeps the snapshot in which the rows were decided on."""
    return sql.SQL("{}, {}").format(_settings(kept), _SNAPSHOT)


def _unnested(kept: Sequence[tuple[str, str, str]]) -> sql.Composed:
    """Return a query for rows that were kept, by setting, name and type of each column."""
    names = [sql.Identifier(f"u{place}") for place, _ in enumerate(kept)]
    columns = [
        sql.SQL("u.{}::{} AS {}").format(place, sql.SQL(kind), sql.Identifier(name))
        for place, (_, name, kind) in zip(names, kept, strict=True)
    ]
    arrays = [_READ.format(sql.Literal(setting)) for setting, _, _ in kept]
    listed = [sql.SQL(", ").join(each) for each in (columns, arrays, names)]
    return sql.SQL("SELECT {} FROM unnest({}) AS u ({})").format(*listed)


def _removed(number: int, column: str) -> str:
    """Return the setting's name for a column of rows that a batch removed: names of settings are short and plain."""
    return f"lifecycle.removed_{number}_{hashlib.sha256(column.encode()).hexdigest()[:16]}"
