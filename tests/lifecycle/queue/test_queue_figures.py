"""Depth and age of the queue as figures."""

import pytest

from scripts.lifecycle.queue.figures import queue_figures
from scripts.utils.metrics_utils import METRICS


def measure(db):
    figures = db.read(queue_figures)
    assert {figure.name for figure in figures} <= METRICS.keys()
    return {(figure.name.removeprefix("lifecycle_queue_"), *figure.labels.values()): figure.value for figure in figures}


def test_an_empty_queue_is_zero_everywhere(db):
    found = measure(db)
    assert set(found.values()) == {0}
    assert {key[1] for key in found if key[0] == "depth"} == {"critical", "high", "medium", "low"}


def test_what_lies_there(db, admin):
    admin.execute(
        "INSERT INTO ops.manual_resolution_queue (item_type, resource_type, resource_id, reason, raised_by, priority,"
        " status, first_seen_at, deadline_at, resolved_at, deferred_until) VALUES"
        " ('t', 'r', '1', 'why', 'system:x', 'high', 'pending', now() - interval '3 hours', now() - interval '1 hour', NULL, NULL),"
        " ('t', 'r', '2', 'why', 'system:x', 'high', 'assigned', now() - interval '1 hour', now() + interval '1 hour', NULL, NULL),"
        " ('t', 'r', '3', 'why', 'system:x', 'low', 'deferred', now() - interval '9 hours', now() + interval '1 hour', NULL, now()),"
        " ('t', 'r', '4', 'why', 'system:x', 'critical', 'resolved', now() - interval '99 hours', now(), now(), NULL)"
    )
    found = measure(db)
    assert (found["depth", "high"], found["depth", "low"], found["depth", "critical"]) == (2, 1, 0)
    assert (found["past_deadline", "high"], found["past_deadline", "low"]) == (1, 0)
    assert found["oldest_age_seconds",] == pytest.approx(3 * 3600, abs=60)
    assert found["mean_age_seconds",] == pytest.approx(2 * 3600, abs=60)
