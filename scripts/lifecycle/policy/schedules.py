"""Work out from a cron expression (UTC) when a job is due and how far apart its runs are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

from cronsim import CronSim

_LOOK_AHEAD = 60


def last_due(schedule: str, at: datetime) -> datetime:
    """Return the last moment, not after ``at``, at which a job was due."""
    minute = at.astimezone(UTC).replace(second=0, microsecond=0)
    # Backwards, CronSim returns moments before its start. Starting from the next due moment includes a due `minute`.
    following = next(CronSim(schedule, minute))
    back = CronSim(schedule, following, reverse=True)
    return next(back)


def next_due(schedule: str, at: datetime) -> datetime:
    """Return the first moment after ``at`` at which a job is due."""
    return next(CronSim(schedule, at.astimezone(UTC)))


def longest_interval(schedule: str) -> timedelta:
    """Return the longest time between two of the next 60 runs of a schedule (UTC)."""
    runs = islice(CronSim(schedule, datetime.now(UTC)), _LOOK_AHEAD)
    return max((later - earlier for earlier, later in pairwise(runs)), default=timedelta(0))
