"""Moments that PostgreSQL knows and Python does not: infinity, years before 1, years after 9999.

psycopg raises an error for them, and one such value would end a loop over everything. They are read as the nearest
moment that Python can hold instead. What is decided about rows is decided in SQL, on the values themselves.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from psycopg import DataError, adapters
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap
from psycopg.types.datetime import DateLoader, TimestampLoader, TimestamptzLoader

FIRST = datetime.min.replace(tzinfo=UTC)
LAST = datetime.max.replace(tzinfo=UTC)


def before(moment: datetime, seconds: float) -> datetime:
    """Return the moment ``seconds`` earlier, or the first moment that Python can hold."""
    try:
        return moment - timedelta(seconds=seconds)
    except OverflowError:
        return FIRST


def _is_early(data: Buffer) -> bool:
    text = bytes(data)
    return text.startswith(b"-") or text.endswith(b"BC")


class _Timestamptz(TimestamptzLoader):
    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except DataError:
            return FIRST if _is_early(data) else LAST


class _Timestamp(TimestampLoader):
    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except DataError:
            return (FIRST if _is_early(data) else LAST).replace(tzinfo=None)


class _Date(DateLoader):
    def load(self, data: Buffer) -> date:
        try:
            return super().load(data)
        except DataError:
            return date.min if _is_early(data) else date.max


class _Context:
    """What a connection is made with; psycopg.abc.AdaptContext."""

    connection = None

    def __init__(self) -> None:
        self.adapters = AdaptersMap(adapters)
        for name, loader in (("timestamptz", _Timestamptz), ("timestamp", _Timestamp), ("date", _Date)):
            self.adapters.register_loader(name, loader)


CONTEXT: AdaptContext = _Context()
