"""Depth and age of the manual-resolution queue as metrics, for monitor_manual_resolution_queue.py."""

from __future__ import annotations

from scripts.lifecycle.policy.fields import PRIORITIES
from scripts.utils.db_utils import Connection
from scripts.utils.metrics_utils import Figure

_BY_PRIORITY = """
SELECT priority, count(*), count(*) FILTER (WHERE deadline_at < now())
  FROM ops.manual_resolution_queue WHERE status <> 'resolved' GROUP BY priority
"""
_AGES = """
SELECT coalesce(max(age), 0)::float, coalesce(avg(age), 0)::float
  FROM (SELECT extract(epoch FROM now() - first_seen_at) AS age
          FROM ops.manual_resolution_queue WHERE status NOT IN ('resolved', 'deferred')) open
"""


def queue_figures(connection: Connection) -> list[Figure]:
    """Return the queue's metrics; a priority without an item has the value 0 and is not left out."""
    found = {priority: (depth, late) for priority, depth, late in connection.execute(_BY_PRIORITY).fetchall()}
    figures = []
    for priority in PRIORITIES:
        depth, late = found.get(priority, (0, 0))
        figures.append(Figure("lifecycle_queue_depth", depth, {"priority": priority}))
        figures.append(Figure("lifecycle_queue_past_deadline", late, {"priority": priority}))
    row = connection.execute(_AGES).fetchone()
    oldest, mean = row or (0.0, 0.0)
    figures.append(Figure("lifecycle_queue_oldest_age_seconds", round(oldest, 3)))
    figures.append(Figure("lifecycle_queue_mean_age_seconds", round(mean, 3)))
    return figures
