"""Observations: one row for each subject and slot of the monitor's schedule, so that trends and a forecast exist."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from scripts.utils.db_utils import Connection

Status = Literal["within_sla", "warning", "breached", "unknown"]

DAY = timedelta(days=1)
LONGEST_DAYS = 7
# A slot may have been missed: the slot before or after it is taken instead.
_TOLERANCE = timedelta(hours=1)


@dataclass(frozen=True)
class Observation:
    """What one look found of a subject; ``items`` is None where they could not be counted."""

    subject: str
    slot: datetime
    status: Status
    items: int | None
    oldest_seconds: float | None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Forecast:
    """How many rows arrive and go in a day, and when the backlog ends at that rate."""

    arrivals_per_day: float
    deletions_per_day: float
    days: int
    """How many days the two rates are averaged over."""
    backlog: int

    @property
    def days_left(self) -> float | None:
        """Days until the backlog is worked off; None: it does not shrink."""
        gain = self.deletions_per_day - self.arrivals_per_day
        if self.backlog == 0:
            return 0.0
        return self.backlog / gain if gain > 0 else None

    def __str__(self) -> str:
        """Return the forecast as one sentence."""
        rates = f"{self.arrivals_per_day:,.0f} arrive and {self.deletions_per_day:,.0f} go a day (over {self.days} d)"
        if self.backlog == 0:
            return f"{rates}: no backlog"
        left = self.days_left
        return f"{rates}: the backlog of {self.backlog:,} " + (
            "never ends" if left is None else f"ends in {left:,.1f} days"
        )


def note(connection: Connection, script: str, observation: Observation) -> bool:
    """Write an observation; the first one of a slot is kept.

    Returns:
        Whether this one was the first.
    """
    return (
        connection.execute(
            "INSERT INTO ops.sla_observations (script, subject, slot, status, items, oldest_seconds, figures)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (script, subject, slot) DO NOTHING",
            (
                script,
                observation.subject,
                observation.slot,
                observation.status,
                observation.items,
                observation.oldest_seconds,
                Jsonb(observation.figures),
            ),
        ).rowcount
        == 1
    )


def since(connection: Connection, script: str, subject: str, moment: datetime) -> list[Observation]:
    """Return a subject's observations from a moment on, oldest first."""
    with connection.cursor(row_factory=class_row(Observation)) as cursor:
        return cursor.execute(
            "SELECT subject, slot, status, items, oldest_seconds, figures FROM ops.sla_observations"
            " WHERE script = %s AND subject = %s AND slot >= %s ORDER BY slot",
            (script, subject, moment),
        ).fetchall()


def first_slot(connection: Connection, script: str, subject: str) -> datetime | None:
    """Return the first slot in which a subject was observed; None: it never was."""
    row = connection.execute(
        "SELECT min(slot) FROM ops.sla_observations WHERE script = %s AND subject = %s", (script, subject)
    ).fetchone()
    return row[0] if row else None


def forecast(
    connection: Connection, history: list[Observation], *, policy: str, now: datetime, remaining: int, backlog: int
) -> Forecast | None:
    """Forecast the backlog by comparing with the same hour some days ago.

    The same hour, because the number of due rows grows and falls between two runs of a daily job. The rows that arrived
    are those there now, less those there then, plus those deleted meanwhile.

    Args:
        connection: Holds the run records.
        history: The policy's observations, oldest first.
        policy: The policy's name.
        now: The database's now.
        remaining: Rows past their date now.
        backlog: Rows of these past the policy's warning threshold.

    Returns:
        The forecast; None: nothing was observed a whole day ago.
    """
    for days in range(LONGEST_DAYS, 0, -1):
        then = now - days * DAY
        near = [seen for seen in history if seen.items is not None and abs(seen.slot - then) <= _TOLERANCE]
        if not near:
            continue
        start = min(near, key=lambda seen: abs(seen.slot - then))
        row = connection.execute(
            "SELECT coalesce(sum(records_processed), 0) FROM ops.job_runs WHERE policy = %s AND started_at >= %s",
            (policy, start.slot),
        ).fetchone()
        deleted = int(row[0]) if row else 0
        length = (now - start.slot) / DAY
        arrived = max(0, remaining - (start.items or 0) + deleted)
        return Forecast(arrived / length, deleted / length, days, backlog)
    return None
