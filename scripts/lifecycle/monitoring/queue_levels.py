"""The service level of the manual-resolution queue: how many items are open, how old they are, how many get resolved.

Deferred items are left out: a person has looked at them and set the date on which they come back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg.rows import class_row

from scripts.lifecycle.monitoring.alerts import Alert, AlertKind
from scripts.lifecycle.monitoring.observations import Observation, Status
from scripts.utils.alert_sinks import Severity
from scripts.utils.db_utils import Connection
from scripts.utils.pages import duration
from scripts.utils.settings import Settings

SCOPE = "mrq:queue:"
SUBJECT = "manual_resolution_queue"
# The average is of the four weeks before the last day.
_AVERAGE_DAYS = 28
# Below one item a day a quiet day says nothing.
_LEAST_A_DAY = 1.0

_LOOK = """
SELECT now() AS now, count(*) FILTER (WHERE open) AS depth,
       coalesce(avg(extract(epoch FROM now() - first_seen_at)) FILTER (WHERE open), 0)::float AS mean_seconds,
       coalesce(max(extract(epoch FROM now() - first_seen_at)) FILTER (WHERE open), 0)::float AS oldest_seconds,
       count(*) FILTER (WHERE open AND deadline_at < now()) AS past_deadline,
       count(*) FILTER (WHERE resolved_at > now() - interval '1 day') AS resolved_today,
       (count(*) FILTER (WHERE resolved_at <= now() - interval '1 day'
                           AND resolved_at > now() - make_interval(days => 1 + %(days)s)))::float / %(days)s
           AS resolved_a_day
  FROM (SELECT *, status NOT IN ('resolved', 'deferred') AS open FROM ops.manual_resolution_queue
         WHERE status <> 'resolved' OR resolved_at > now() - make_interval(days => 1 + %(days)s)) q
"""


@dataclass(frozen=True)
class QueueView:
    """What is known of the queue at one moment; ages in seconds."""

    now: datetime
    depth: int
    mean_seconds: float
    oldest_seconds: float
    past_deadline: int
    resolved_today: int
    """Items resolved in the last 24 hours."""
    resolved_a_day: float
    """Items resolved a day, on average of the four weeks before."""


def look(connection: Connection) -> QueueView:
    """Measure the queue."""
    with connection.cursor(row_factory=class_row(QueueView)) as cursor:
        view = cursor.execute(_LOOK, {"days": _AVERAGE_DAYS}).fetchone()
    if view is None:
        raise AssertionError("an aggregate gives one row")
    return view


def queue_alerts(view: QueueView, settings: Settings) -> list[Alert]:
    """Return what is wrong with the queue."""
    return [*_depth(view, settings), *_mean_age(view, settings), *_oldest(view, settings), *_rate(view)]


def observation(view: QueueView, alerts: list[Alert], at: datetime) -> Observation:
    """Return the observation to be written for a look at the queue."""
    severities = {alert.severity for alert in alerts}
    status: Status = "breached" if "critical" in severities else "warning" if severities else "within_sla"
    figures = {
        "mean_seconds": round(view.mean_seconds, 1),
        "past_deadline": view.past_deadline,
        "resolved_today": view.resolved_today,
        "resolved_a_day": round(view.resolved_a_day, 3),
    }
    return Observation(SUBJECT, at, status, view.depth, view.oldest_seconds, figures)


def _alert(
    kind: AlertKind, severity: Severity, what: str, how_bad: str, what_to_do: str, since: datetime | None = None
) -> Alert:
    key = SCOPE + kind.removeprefix("queue_")
    return Alert(key, severity, what, how_bad, what_to_do, kind.runbook, since)


def _depth(view: QueueView, settings: Settings) -> Iterator[Alert]:
    if view.depth <= settings.mrq_depth_warning:
        return
    critical = view.depth > settings.mrq_depth_critical
    yield _alert(
        AlertKind.QUEUE_DEPTH,
        "critical" if critical else "warning",
        "too much lies on the manual-resolution queue",
        f"{view.depth:,} open items (warns above {settings.mrq_depth_warning:,}, critical above"
        f" {settings.mrq_depth_critical:,}); {view.past_deadline:,} past their deadline;"
        f" {view.resolved_today:,} resolved in the last 24 h",
        "see report_metrics.py by type: one type that grows has one cause, which ends the rest",
    )


def _mean_age(view: QueueView, settings: Settings) -> Iterator[Alert]:
    limit = timedelta(hours=settings.mrq_age_warning_hours).total_seconds()
    if view.depth and view.mean_seconds > limit:
        yield _alert(
            AlertKind.QUEUE_MEAN_AGE,
            "warning",
            "items lie on the manual-resolution queue for too long",
            f"mean age {duration(view.mean_seconds)} of {view.depth:,} open items (warns above {duration(limit)})",
            "see who works on the queue, the oldest first",
        )


def _oldest(view: QueueView, settings: Settings) -> Iterator[Alert]:
    limit = timedelta(hours=settings.mrq_age_escalation_hours).total_seconds()
    if view.oldest_seconds > limit:
        yield _alert(
            AlertKind.QUEUE_OLDEST,
            "critical",
            "an item on the manual-resolution queue waits for a person",
            f"the oldest open item is {duration(view.oldest_seconds)} old (critical above {duration(limit)})",
            "decide it, or defer it to a date with a reason",
            view.now - timedelta(seconds=view.oldest_seconds - limit),
        )


def _rate(view: QueueView) -> Iterator[Alert]:
    if not view.depth or view.resolved_a_day < _LEAST_A_DAY or view.resolved_today >= view.resolved_a_day / 2:
        return
    yield _alert(
        AlertKind.QUEUE_RESOLUTION_RATE,
        "warning",
        "less than half as much as usual is resolved on the manual-resolution queue",
        f"{view.resolved_today:,} in the last 24 h; {view.resolved_a_day:,.1f} a day in the four weeks before;"
        f" {view.depth:,} are open",
        "see who should be working on the queue",
    )
