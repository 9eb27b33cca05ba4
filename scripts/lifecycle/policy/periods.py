"""Periods (calendar months and years, or forever) and durations, as the policy file writes them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from dateutil.relativedelta import relativedelta
from pydantic import BeforeValidator, WithJsonSchema

from scripts.lifecycle.policy import shapes
from scripts.utils import durations

# The first days of 48 months. Periods are compared on each of them: 365 days are shorter than a leap year, and 31 days
# are longer than some months.
_CALENDAR = tuple(datetime(2000 + month // 12, 1 + month % 12, 1, tzinfo=UTC) for month in range(48))


@dataclass(frozen=True)
class Period:
    """How long something is kept. Months and years are calendar months and years, in UTC."""

    text: str
    length: relativedelta | None
    """None: forever."""

    def before(self, moment: datetime) -> datetime | None:
        """Return the moment before which a row's anchor must lie for the row to be due; None: it is never due."""
        return None if self.length is None else moment - self.length

    def is_shorter_than(self, other: Period, at: datetime) -> bool:
        """Tell whether, at one moment, rows are due by this period that are not due by the other one."""
        mine, theirs = self.before(at), other.before(at)
        return mine is not None and (theirs is None or mine > theirs)

    def may_be_shorter_than(self, other: Period) -> bool:
        """Tell whether this period is the shorter one at the beginning of any month of four years."""
        return any(self.is_shorter_than(other, day) for day in _CALENDAR)


def _period(value: object) -> Period:
    if value == "forever":
        return Period("forever", None)
    if value == "???":
        raise ValueError("is yours to decide: how long is a row kept, such as '90 days', '7 years' or 'forever'?")
    length = durations.number_and_unit(str(value), durations.PERIODS)
    if length is None:
        raise ValueError("is not a period: write a number and a unit, such as '24 hours' or '7 years', or 'forever'")
    number, unit = length
    period = Period(durations.spelled_out(number, unit), relativedelta(**{unit + "s": number}))  # type: ignore[arg-type]
    try:
        period.before(datetime(2000, 1, 1, tzinfo=UTC))
    except (OverflowError, ValueError):
        raise ValueError("reaches back beyond the calendar: write 'forever'") from None
    return period


def _duration(value: object) -> timedelta:
    length = durations.number_and_unit(str(value), durations.DURATIONS)
    if length is None or length[0] == 0:
        raise ValueError("is not a duration: write a number and a unit, such as '500 milliseconds' or '25 hours'")
    try:
        return timedelta(**{length[1] + "s": length[0]})
    except OverflowError:
        raise ValueError("is too long") from None


PeriodField = Annotated[Period, BeforeValidator(_period), WithJsonSchema(shapes.PERIOD)]
Duration = Annotated[timedelta, BeforeValidator(_duration), WithJsonSchema(shapes.DURATION)]
