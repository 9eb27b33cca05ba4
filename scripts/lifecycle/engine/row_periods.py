"""A period that each row says itself, as SQL: the moment before which that row's anchor must lie.

Whatever stands in a row, it never shortens a period below the rule's floor, and it is never an error: a value that is
no period (negative, NaN, over a thousand years; 0 where the rule has no floor) keeps its rows, up to the ceiling.
Moments are computed without a time zone, in UTC, so no server's time zone and no clock change shifts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from scripts.lifecycle.engine.fragments import Fragment, fragment, joined
from scripts.lifecycle.policy.periods import Period
from scripts.lifecycle.policy.row_periods import RowPeriod
from scripts.lifecycle.policy.rules import Rule
from scripts.utils import composing as sql

NUMBERS = frozenset({"smallint", "integer", "bigint", "numeric", "real", "double precision"})
INTERVAL = "interval"
UNBOUNDED = "-infinity"

# A thousand years in each unit. Further back PostgreSQL's calendar could end, and that would be an error.
_MOST = {
    "minute": 525_960_000,
    "hour": 8_766_000,
    "day": 365_250,
    "week": 52_178,
    "month": 12_000,
    "year": 1_000,
}


@dataclass(frozen=True)
class RowMoments:
    """The moments of one rule at one cut-off: naive timestamps that hold UTC.

    Args:
        name: The rule's name; it stands in the names of parameters.
        rule: The rule.
        keep: Its period.
        cutoff: The run's cut-off, time-zone aware.
    """

    name: str
    rule: Rule
    keep: RowPeriod
    cutoff: datetime

    def of(self, value: sql.Composable) -> Fragment:
        """Return the moment before which the anchor must lie, by the value that says the period."""
        cases = [fragment("WHEN {} IS NULL THEN {}", value, self._of_null)]
        if any(number is not None for number in self.keep.forever):
            cases.append(fragment("WHEN {} THEN '-infinity'::timestamp", self._means_forever(value)))
        cases.append(fragment("WHEN {} THEN {}", self.is_usable(value), self._bounded(self._plain(value))))
        return fragment("CASE {} ELSE {} END", joined(" ", cases), self._bound("ceiling", self.rule.ceiling))

    @property
    def of_none(self) -> Fragment:
        """The moment of a row for which there is no value."""
        return self._bound("else", self.keep.otherwise)

    @property
    def _of_null(self) -> Fragment:
        return fragment("'-infinity'::timestamp") if None in self.keep.forever else self.of_none

    def is_usable(self, value: sql.Composable) -> Fragment:
        """Return the condition that a value is a period."""
        least = ">=" if self.rule.floor else ">"
        if self.keep.unit:
            # NaN is greater than every number.
            return fragment(
                "{v} {least} 0 AND {v} <= {most}",
                v=value,
                least=sql.SQL(least),
                most=sql.Literal(_MOST[self.keep.unit]),
            )
        # Each part by itself: +1000000 months -30000000 days is less than a day, and cannot be subtracted.
        return fragment(
            "CASE WHEN abs(date_part('year', {v})) <= 1000 AND abs(date_part('day', {v})) <= 366000"
            " AND abs(date_part('hour', {v})) <= 8800000 THEN {plain} {most} {cut} ELSE false END",
            v=value,
            plain=self._plain(value),
            most=sql.SQL("<=" if self.rule.floor else "<"),
            cut=self._cut,
        )

    def is_below(self, value: sql.Composable) -> Fragment:
        """Return the condition that a value is a period shorter than the floor."""
        if self.rule.floor is None:
            return fragment("false")
        return fragment(
            "CASE WHEN {} THEN {} > {} ELSE false END",
            self.is_usable(value),
            self._plain(value),
            self._bound("floor", self.rule.floor),
        )

    def is_above(self, value: sql.Composable) -> Fragment:
        """Return the condition that a value is a period longer than the ceiling."""
        if self.rule.ceiling is None:
            return fragment("false")
        return fragment(
            "CASE WHEN {} THEN {} < {} ELSE false END",
            self.is_usable(value),
            self._plain(value),
            self._bound("ceiling", self.rule.ceiling),
        )

    def is_no_period(self, value: sql.Composable) -> Fragment:
        """Return the condition that a value is neither null, nor said to mean forever, nor a period."""
        return fragment(
            "{v} IS NOT NULL AND NOT {forever} AND ({usable}) IS NOT TRUE",
            v=value,
            forever=self._means_forever(value),
            usable=self.is_usable(value),
        )

    def says(self, value: sql.Composable) -> Fragment:
        """Return the condition that a value says something else than the rule's ``else``."""
        return fragment("true") if None in self.keep.forever else fragment("{} IS NOT NULL", value)

    def said(self, value: sql.Composable) -> Fragment:
        """Return the period that a value says, as an interval, without floor and ceiling; null: it is not to end."""
        period = fragment("{}", value)
        if self.keep.unit:
            period = fragment("{} * {}::interval", value, sql.Literal(f"1 {self.keep.unit}"))
        return fragment(
            "CASE WHEN NOT {} AND ({}) THEN {} END", self._means_forever(value), self.is_usable(value), period
        )

    def of_said(self, period: sql.Composable) -> Fragment:
        """Return the moment before which the anchor must lie, by what :meth:`said` returns."""
        ceiling = self._bound("ceiling", self.rule.ceiling)
        moment = self._bounded(fragment("{} - {}", self._cut, period))
        return fragment("CASE WHEN {} IS NULL THEN {} ELSE {} END", period, ceiling, moment)

    def _means_forever(self, value: sql.Composable) -> Fragment:
        numbers = [number for number in self.keep.forever if number is not None]
        if not numbers:
            return fragment("false")
        named = f"forever_{self.name}"
        return fragment(
            "({}::numeric = ANY({}::numeric[]))", value, sql.Placeholder(named), parameters={named: numbers}
        )

    def _plain(self, value: sql.Composable) -> Fragment:
        if self.keep.unit:
            return fragment("{} - {} * {}::interval", self._cut, value, sql.Literal(f"1 {self.keep.unit}"))
        return fragment("{} - {}", self._cut, value)

    def _bounded(self, moment: Fragment) -> Fragment:
        if self.rule.ceiling:
            moment = fragment("greatest({}, {})", moment, self._bound("ceiling", self.rule.ceiling))
        if self.rule.floor:
            moment = fragment("least({}, {})", moment, self._bound("floor", self.rule.floor))
        return moment

    @property
    def _cut(self) -> Fragment:
        return _utc(f"cut_{self.name}", self.cutoff)

    def _bound(self, what: str, period: Period | None) -> Fragment:
        return _utc(f"{what}_{self.name}", (period.before(self.cutoff) if period else None) or UNBOUNDED)


def _utc(parameter: str, moment: datetime | str) -> Fragment:
    return fragment("({}::timestamptz AT TIME ZONE 'UTC')", sql.Placeholder(parameter), parameters={parameter: moment})
