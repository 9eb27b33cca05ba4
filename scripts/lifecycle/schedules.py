"""When a job is due, by its cron expression (UTC)."""

from __future__ import annotations

from datetime import UTC, datetime

from cronsim import CronSim


def last_due(schedule: str, at: datetime) -> datetime:
    """Return the last moment, not after ``at``, at which a job was due."""
    minute = at.astimezone(UTC).replace(second=0, microsecond=0)
    # Backwards it gives moments before its start, so a minute that is due itself is asked for from the next one.
    following = next(CronSim(schedule, minute))
    back = CronSim(schedule, following, reverse=True)
    return next(back)


def next_due(schedule: str, at: datetime) -> datetime:
    """Return the first moment after ``at`` at which a job is due."""
    return next(CronSim(schedule, at.astimezone(UTC)))
