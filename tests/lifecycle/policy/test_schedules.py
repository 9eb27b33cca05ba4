"""When a job is due, and how far apart its runs lie."""

from datetime import UTC, datetime, timedelta

import pytest

from scripts.lifecycle.policy.schedules import last_due, longest_interval, next_due


@pytest.mark.parametrize(
    ("schedule", "interval"),
    [
        ("*/15 * * * *", timedelta(minutes=15)),
        ("10 * * * *", timedelta(hours=1)),
        ("0 2 * * *", timedelta(days=1)),
        ("30 4 1 * *", timedelta(days=31)),
        ("0 9,12 * * *", timedelta(hours=21)),
    ],
)
def test_intervals(schedule, interval):
    assert longest_interval(schedule) == interval


@pytest.mark.parametrize(
    ("at", "last", "following"),
    [
        ("01:59:59", "2026-11-21T02:00", "2026-11-22T02:00"),
        ("02:00:00", "2026-11-22T02:00", "2026-11-23T02:00"),
        ("02:00:01", "2026-11-22T02:00", "2026-11-23T02:00"),
    ],
)
def test_a_minute_that_is_due_itself_was_due(at, last, following):
    moment = datetime.fromisoformat(f"2026-11-22T{at}+00:00")
    assert last_due("0 2 * * *", moment) == datetime.fromisoformat(last).replace(tzinfo=UTC)
    assert next_due("0 2 * * *", moment) == datetime.fromisoformat(following).replace(tzinfo=UTC)
