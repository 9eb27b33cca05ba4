"""Figures of the manual-resolution queue: open items, time to resolution, deadlines kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg.rows import dict_row

from scripts.lifecycle.policy.fields import PRIORITIES
from scripts.utils.db_utils import Connection
from scripts.utils.errors import Misconfigured
from scripts.utils.redaction import redact

PERIOD = timedelta(days=30)
_NAME_CHARACTERS = 120

# Depth is that of now: the queue does not record since when an item is deferred, so no earlier depth is known.
_DEPTH = """
SELECT {} AS name,
       count(*) FILTER (WHERE status <> 'deferred') AS open_count,
       count(*) FILTER (WHERE status = 'deferred') AS deferred_count
  FROM ops.manual_resolution_queue
 WHERE status <> 'resolved'
 GROUP BY 1 ORDER BY count(*) DESC, 1
"""
_DEPTH_BY_PRIORITY = _DEPTH.format("priority")
_DEPTH_BY_TYPE = _DEPTH.format("item_type")

_AGE = """
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM now() - first_seen_at)) AS median_seconds,
       max(extract(epoch FROM now() - first_seen_at))::float AS max_seconds
  FROM ops.manual_resolution_queue
 WHERE status NOT IN ('resolved', 'deferred')
"""

_RESOLUTION = """
SELECT item_type AS name, count(*) AS resolved_count,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM resolved_at - first_seen_at)) AS median_seconds,
       percentile_cont(0.9) WITHIN GROUP (ORDER BY extract(epoch FROM resolved_at - first_seen_at)) AS p90_seconds
  FROM ops.manual_resolution_queue
 WHERE resolved_at >= %(since)s AND resolved_at < %(until)s
 GROUP BY GROUPING SETS ((), (item_type)) ORDER BY grouping(item_type) DESC, 2 DESC, 1
"""

_DEADLINES = """
SELECT count(*) FILTER (WHERE resolved_at <= deadline_at) AS kept_count,
       count(*) FILTER (WHERE resolved_at > deadline_at) AS missed_resolved_count,
       count(*) FILTER (WHERE resolved_at IS NULL) AS missed_open_count
  FROM ops.manual_resolution_queue
 WHERE (resolved_at >= %(since)s AND resolved_at < %(until)s)
    OR (resolved_at IS NULL AND deadline_at < least(%(until)s, now()))
"""

_ESCALATION = """
SELECT count(*) AS raised_count, count(escalated_at) AS escalated_count
  FROM ops.manual_resolution_queue
 WHERE first_seen_at >= %(since)s AND first_seen_at < %(until)s
"""

_DECISIONS = """
SELECT resolved_by AS operator, decision, count(*) AS resolved_count
  FROM ops.manual_resolution_queue
 WHERE resolved_at >= %(since)s AND resolved_at < %(until)s
 GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2
"""

# Each item is counted on its own day, and the days are summed up: one pass over a million items instead of thirty.
_TREND = """
WITH days AS (SELECT generate_series(%(first_day)s::date, %(last_day)s::date, '1 day')::date AS day),
     raised AS (SELECT (first_seen_at AT TIME ZONE 'UTC')::date AS day, count(*) AS items
                  FROM ops.manual_resolution_queue WHERE first_seen_at < %(until)s GROUP BY 1),
     resolved AS (SELECT (resolved_at AT TIME ZONE 'UTC')::date AS day, count(*) AS items
                    FROM ops.manual_resolution_queue
                   WHERE first_seen_at < %(until)s AND resolved_at < %(until)s GROUP BY 1),
     before AS (SELECT coalesce((SELECT sum(items) FROM raised WHERE day < %(first_day)s::date), 0)
                     - coalesce((SELECT sum(items) FROM resolved WHERE day < %(first_day)s::date), 0) AS items)
SELECT day, coalesce(raised.items, 0)::bigint AS raised_count, coalesce(resolved.items, 0)::bigint AS resolved_count,
       (before.items + sum(coalesce(raised.items, 0) - coalesce(resolved.items, 0)) OVER (ORDER BY day))::bigint
           AS unresolved_count
  FROM days LEFT JOIN raised USING (day) LEFT JOIN resolved USING (day) CROSS JOIN before
 ORDER BY day
"""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class QueueMetrics:
    """The figures. Times are in seconds, shares in percent; None means that there was nothing to compute from."""

    measured_at: datetime
    since: datetime
    until: datetime
    by_priority: Rows
    by_type: Rows
    age: dict[str, Any]
    resolution: dict[str, Any]
    resolution_by_type: Rows
    deadlines: dict[str, Any]
    escalation: dict[str, Any]
    decisions: Rows
    trend: Rows

    def as_dict(self) -> dict[str, Any]:
        """Return one object with stable keys, ready for JSON."""
        return {
            "measured_at": _text(self.measured_at),
            "since": _text(self.since),
            "until": _text(self.until),
            "open_count": sum(row["open_count"] for row in self.by_priority),
            "deferred_count": sum(row["deferred_count"] for row in self.by_priority),
            "depth_by_priority": [_renamed(row, "priority") for row in self.by_priority],
            "depth_by_type": [_renamed(row, "item_type") for row in self.by_type],
            "open_age_median_seconds": self.age["median_seconds"],
            "open_age_max_seconds": self.age["max_seconds"],
            "resolved_count": self.resolution["resolved_count"],
            "resolution_median_seconds": self.resolution["median_seconds"],
            "resolution_p90_seconds": self.resolution["p90_seconds"],
            "resolution_by_type": [
                {
                    "item_type": row["name"],
                    "resolved_count": row["resolved_count"],
                    "resolution_median_seconds": row["median_seconds"],
                    "resolution_p90_seconds": row["p90_seconds"],
                }
                for row in self.resolution_by_type
            ],
            "deadlines_kept_count": self.deadlines["kept_count"],
            "deadlines_missed_count": self.deadlines["missed_resolved_count"] + self.deadlines["missed_open_count"],
            "deadlines_missed_open_count": self.deadlines["missed_open_count"],
            "deadlines_kept_percent": _percent(self.deadlines["kept_count"], sum(self.deadlines.values())),
            "raised_count": self.escalation["raised_count"],
            "escalated_count": self.escalation["escalated_count"],
            "escalated_percent": _percent(self.escalation["escalated_count"], self.escalation["raised_count"]),
            "decisions": self.decisions,
            "trend": [{**row, "day": row["day"].isoformat()} for row in self.trend],
        }


def measure(connection: Connection, since: datetime | None = None, until: datetime | None = None) -> QueueMetrics:
    """Compute every figure from the snapshot of the caller's read-only transaction.

    Args:
        connection: In a READ ONLY transaction of one snapshot.
        since: The period's first moment, UTC; by default 30 days before its end.
        until: The moment after its last, UTC; by default the database's now.

    Raises:
        Misconfigured: The period ends before it begins.
    """
    with connection.cursor(row_factory=dict_row) as cursor:

        def rows(query: str, **parameters: Any) -> Rows:
            return [_clean(row) for row in cursor.execute(query.encode(), parameters).fetchall()]

        now: datetime = rows("SELECT now() AS now")[0]["now"].astimezone(UTC)
        until = until or now
        try:
            since = since or until - PERIOD
            first_day = (until - PERIOD + timedelta(days=1)).date()
        except OverflowError:
            raise Misconfigured("--until lies before any period that could end there") from None
        if since >= until:
            raise Misconfigured(f"--since {_text(since)} is not before --until {_text(until)}: no period lies between")
        period = {"since": since, "until": until}
        # The period ends before `until`: with midnight as the end, the day that begins then is not part of it.
        last_day = (until - timedelta(microseconds=1)).date()
        overall, *by_type = rows(_RESOLUTION, **period)
        depth = {row["name"]: row for row in rows(_DEPTH_BY_PRIORITY)}
        nothing = {"open_count": 0, "deferred_count": 0}
        return QueueMetrics(
            now,
            since,
            until,
            [depth.get(name, {"name": name, **nothing}) for name in PRIORITIES],
            rows(_DEPTH_BY_TYPE),
            rows(_AGE)[0],
            overall,
            by_type,
            rows(_DEADLINES, **period)[0],
            rows(_ESCALATION, **period)[0],
            rows(_DECISIONS, **period),
            rows(_TREND, until=until, first_day=min(first_day, last_day), last_day=last_day),
        )


def _clean(row: dict[str, Any]) -> dict[str, Any]:
    """Redact addresses that somebody used as a handle, and cut names that are too long to be shown."""
    return {key: _name(value) if isinstance(value, str) else value for key, value in row.items()}


def _name(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(redact(text)))
    return shown if len(shown) <= _NAME_CHARACTERS else shown[:_NAME_CHARACTERS] + "…"


def _renamed(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: row["name"], "open_count": row["open_count"], "deferred_count": row["deferred_count"]}


def _percent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 2) if whole else None


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
