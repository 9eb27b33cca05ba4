"""Moments that PostgreSQL holds and Python does not: the infinities, years before 1 and after 9999."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
from psycopg.abc import Buffer
from psycopg.types.datetime import TimestamptzLoader

FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)
"""Stands for every moment before the year 1, ``-infinity`` too."""
LAST_MOMENT = datetime.max.replace(tzinfo=UTC)
"""Stands for every moment after the year 9999, ``infinity`` too."""


class AnyMomentLoader(TimestamptzLoader):
    """Reads every timestamptz, so that one odd value does not keep a reader from all the other rows.

    Register it on a cursor whose rows are compared and shown, never on one whose values are written back.
    """

    def load(self, data: Buffer) -> datetime:
        """Return a moment in UTC."""
        try:
            return super().load(data).astimezone(UTC)
        except (psycopg.DataError, OverflowError):
            text = bytes(data)
            return FIRST_MOMENT if text.startswith(b"-") or text.endswith(b"BC") else LAST_MOMENT
