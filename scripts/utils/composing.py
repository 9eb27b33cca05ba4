"""SQL for statements that have parameters: psycopg.sql, with names and constants in which a % stands for itself.

psycopg reads every % of a statement with parameters as the beginning of a placeholder, in a quoted name too. Here it is
doubled, so a column such as ``discount%`` can be named. A statement composed of these must always be sent with its
parameters, if only with ``{}``: without any, psycopg leaves %% as it is.
"""

from __future__ import annotations

from psycopg import sql
from psycopg.abc import AdaptContext
from psycopg.sql import SQL, Composable, Composed, Placeholder

__all__ = ["NO_PARAMETERS", "SQL", "Composable", "Composed", "Identifier", "Literal", "Placeholder", "quoted"]


class Identifier(sql.Identifier):
    """A name, quoted."""

    def as_bytes(self, context: AdaptContext | None = None) -> bytes:
        """Return the quoted name."""
        return super().as_bytes(context).replace(b"%", b"%%")


class Literal(sql.Literal):
    """A constant, quoted."""

    def as_bytes(self, context: AdaptContext | None = None) -> bytes:
        """Return the quoted constant."""
        return super().as_bytes(context).replace(b"%", b"%%")


NO_PARAMETERS = {"none": None}
"""For COPY, of which psycopg reads the %% only where it is given at least one parameter."""


def quoted(*names: str) -> str:
    """Return a qualified name, quoted, as the text that ``to_regclass`` takes as a parameter."""
    return sql.Identifier(*names).as_string()
