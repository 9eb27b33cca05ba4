"""A period of time as a person names it: days and moments, UTC; by default the last whole calendar month."""

from __future__ import annotations

import argparse
from contextlib import suppress
from datetime import UTC, date, datetime, time

from dateutil.relativedelta import relativedelta

from scripts.lifecycle.jobs.arguments import moment
from scripts.utils.errors import Misconfigured

# PostgreSQL knows moments beyond these, but no audit will.
END = (datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))


def day_or_moment(text: str) -> datetime:
    """Read a day, which means its first moment in UTC, or a moment with its zone, from the command line.

    Raises:
        argparse.ArgumentTypeError: The text is neither, or lies beyond the calendar.
    """
    with suppress(ValueError):
        return datetime.combine(date.fromisoformat(text), time(), UTC)
    try:
        return moment(text)
    except OverflowError:
        raise argparse.ArgumentTypeError(f"{text!r} lies beyond the calendar") from None


def month_or(since: datetime | None, until: datetime | None, now: datetime) -> tuple[datetime, datetime]:
    """Return a period with both its ends.

    Args:
        since: Its first moment; by default a month before its end.
        until: The moment after its last; by default the beginning of this calendar month, or a month after ``since``.
        now: The database's clock.

    Raises:
        Misconfigured: It ends before it begins, or has not begun.
    """
    month = relativedelta(months=1)
    first = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    try:
        if until is None:
            until = since + month if since else first
        since = since or until - month
    except (OverflowError, ValueError):
        raise Misconfigured("--since or --until lies at the end of the calendar: name both") from None
    if since >= until:
        raise Misconfigured(f"--since {since:%Y-%m-%d} is not before --until {until:%Y-%m-%d}: no period lies between")
    if since > now:
        raise Misconfigured(f"--since {since:%Y-%m-%d} lies in the future: nothing can be reported of it")
    return since, until
