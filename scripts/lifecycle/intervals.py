"""What a cron expression means in time: how far apart two runs lie, and how late one may begin."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

from cronsim import CronSim

_LOOK_AHEAD = 60
_LATE_AT_LEAST, _LATE_AT_MOST = timedelta(minutes=5), timedelta(minutes=30)


def longest_interval(schedule: str) -> timedelta:
    """Return the longest time between two of the next 60 runs of a schedule (UTC)."""
    runs = islice(CronSim(schedule, datetime.now(UTC)), _LOOK_AHEAD)
    return max((later - earlier for earlier, later in pairwise(runs)), default=timedelta(0))


def lateness(schedule: str) -> timedelta:
    """Return how late a run may begin before it counts as missed: a tenth of the interval, 5 to 30 minutes."""
    return min(max(longest_interval(schedule) / 10, _LATE_AT_LEAST), _LATE_AT_MOST)
