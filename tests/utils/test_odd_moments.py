"""Moments that Python cannot hold are read as the nearest that it can: one odd value ends no loop."""

from __future__ import annotations

from datetime import UTC, date, datetime

import psycopg
import pytest

from scripts.utils.odd_moments import CONTEXT, FIRST, LAST, before

EARLY = ["-infinity", "0001-01-01 BC", "4713-01-01 BC"]
LATE = ["infinity", "10000-01-01", "294276-12-31"]


@pytest.fixture(params=["UTC", "Asia/Tokyo", "America/New_York"])
def link(request, database):
    with psycopg.connect(database.url, autocommit=True, context=CONTEXT) as connection:
        connection.execute("SELECT set_config('TimeZone', %s, false)", (request.param,))
        yield connection


@pytest.mark.parametrize(("texts", "aware", "day"), [(EARLY, FIRST, date.min), (LATE, LAST, date.max)])
def test_what_lies_beyond_is_read_as_the_edge(link, texts, aware, day):
    for text in texts:
        row = link.execute("SELECT %(t)s::text::timestamptz, %(t)s::text::timestamp, %(t)s::text::date", {"t": text})

        assert row.fetchone() == (aware, aware.replace(tzinfo=None), day)


def test_every_other_moment_is_read_as_ever(link):
    moment = datetime(2026, 1, 31, 2, tzinfo=UTC)

    assert link.execute("SELECT %s::timestamptz, '9999-12-31'::date", (moment,)).fetchone() == (moment, date.max)


def test_a_time_before_the_first_moment_is_the_first_moment():
    assert before(datetime(2026, 1, 1, tzinfo=UTC), 6.4e10) == FIRST
    assert before(datetime(2026, 1, 2, tzinfo=UTC), 86400) == datetime(2026, 1, 1, tzinfo=UTC)
