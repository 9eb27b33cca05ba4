"""How far apart runs lie, and how late one may begin."""

from datetime import timedelta

import pytest

from scripts.lifecycle.intervals import lateness, longest_interval


@pytest.mark.parametrize(
    ("schedule", "interval", "late"),
    [
        ("*/15 * * * *", timedelta(minutes=15), timedelta(minutes=5)),
        ("10 * * * *", timedelta(hours=1), timedelta(minutes=6)),
        ("0 2 * * *", timedelta(days=1), timedelta(minutes=30)),
        ("30 4 1 * *", timedelta(days=31), timedelta(minutes=30)),
        ("0 9,12 * * *", timedelta(hours=21), timedelta(minutes=30)),
    ],
)
def test_intervals(schedule, interval, late):
    assert longest_interval(schedule) == interval
    assert lateness(schedule) == late
