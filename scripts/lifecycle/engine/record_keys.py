"""What tells one row of a table from every other, and the one text by which audit, holds and queue name a row.

A key of one column is named by its value's text, as PostgreSQL writes it. A key of several columns is named by a JSON
array of their values, in the policy file's order, as PostgreSQL's jsonb writes it: ``[7, 42]``, ``["0b1e…", 42]``. Only
types whose JSON has one form, whatever the session is set to, may be part of such a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg import sql

# Keys that cannot hold an address or a name; any other type must look like a UUID to stand in the audit.
_IMPERSONAL_TYPES = frozenset(
    {
        "uuid",
        "bigint",
        "integer",
        "smallint",
        "numeric",
        "boolean",
        "date",
        "timestamp without time zone",
        "timestamp with time zone",
    }
)
_TEXTS = frozenset({"text", "character varying", "character"})


def problem_of(columns: Sequence[str], types: Mapping[str, str]) -> str | None:
    """Return why these columns cannot be a key; None: they can, as far as their types go."""
    if len(columns) == 1:
        return None
    strange = [name for name in columns if name in types and types[name] not in _IMPERSONAL_TYPES | _TEXTS]
    if not strange:
        return None
    named = ", ".join(f"{name} ({types[name]})" for name in strange)
    return f"{named} cannot be part of a key of several columns: its text has more than one form"


class RecordKey:
    """The key of one table, as SQL.

    Args:
        columns: Its columns, in the policy file's order.
        types: The type of each, as ``format_type`` writes it.
    """

    def __init__(self, columns: Sequence[str], types: Mapping[str, str]) -> None:
        self.names = tuple(columns)
        self._columns = tuple(map(sql.Identifier, columns))
        self._kinds = tuple(types[name] for name in columns)
        self._types = tuple(map(sql.SQL, self._kinds))
        self._personal = tuple(kind not in _IMPERSONAL_TYPES for kind in self._kinds)

    @property
    def impersonal(self) -> bool:
        """Whether no value of it can be personal data."""
        return not any(self._personal)

    def columns(self, alias: str) -> sql.Composed:
        """Return the columns, separated by commas."""
        return sql.SQL(", ").join(self._of(alias))

    def ordered(self, alias: str, direction: str) -> sql.Composed:
        """Return the columns for an ORDER BY, each ``ASC`` or ``DESC``."""
        return sql.SQL(", ").join(sql.SQL("{} {}").format(each, sql.SQL(direction)) for each in self._of(alias))

    @property
    def numbered(self) -> RecordKey:
        """The same key where its columns are named ``key_0``, ``key_1`` and so on, as :meth:`named` names them."""
        names = [f"key_{place}" for place, _ in enumerate(self._types)]
        return RecordKey(names, dict(zip(names, self._kinds, strict=True)))

    def named(self, alias: str) -> sql.Composed:
        """Return the columns as ``key_0``, ``key_1`` and so on."""
        return sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(each, sql.Identifier(f"key_{place}"))
            for place, each in enumerate(self._of(alias))
        )

    def same(self, alias: str, other: str) -> sql.Composed:
        """Return the condition that a row has the key that ``other`` has as ``key_0``, ``key_1`` and so on."""
        return sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(each, sql.Identifier(other, f"key_{place}"))
            for place, each in enumerate(self._of(alias))
        )

    def id(self, alias: str) -> sql.Composed:
        """Return the text that names a row."""
        if len(self._columns) == 1:
            return sql.SQL("{}::text").format(*self._of(alias))
        return sql.SQL("jsonb_build_array({})::text").format(self.columns(alias))

    def values(self, text: sql.Composable) -> sql.Composed:
        """Return the key's values, separated by commas, from the text that names a row."""
        return sql.SQL(", ").join(self._values(text))

    def is_(self, alias: str, text: sql.Composable) -> sql.Composed:
        """Return the condition that a row is the one that a text names; a text that is none is an error."""
        return sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(column, value)
            for column, value in zip(self._of(alias), self._values(text), strict=True)
        )

    def among(self, alias: str, texts: sql.Composable) -> sql.Composed:
        """Return the condition that a row is one of those that an array of texts names."""
        if len(self._columns) == 1:
            return sql.SQL("{} = ANY({}::{}[])").format(*self._of(alias), texts, *self._types)
        return sql.SQL("({}) IN (SELECT {} FROM unnest({}::text[]) AS e (id))").format(
            self.columns(alias), self.values(sql.Identifier("e", "id")), texts
        )

    def nameable(self, alias: str) -> sql.Composed:
        """Return the condition that it is no personal data: a text that is no UUID could be an e-mail address."""
        # Together as strict as one regular expression with counts, at a tenth of its cost.
        parts = [
            sql.SQL(
                "({key}::text LIKE '________-____-____-____-____________' AND {key}::text !~ '[^0-9a-fA-F-]')"
            ).format(key=column)
            for column, personal in zip(self._of(alias), self._personal, strict=True)
            if personal
        ]
        return sql.SQL(" AND ").join(parts) if parts else sql.SQL("true").format()

    def _of(self, alias: str) -> list[sql.Composed]:
        return [sql.SQL("{}.{}").format(sql.SQL(alias), column) for column in self._columns]

    def _values(self, text: sql.Composable) -> list[sql.Composed]:
        if len(self._columns) == 1:
            return [sql.SQL("{}::{}").format(text, *self._types)]
        return [
            sql.SQL("({}::jsonb ->> {})::{}").format(text, sql.Literal(place), kind)
            for place, kind in enumerate(self._types)
        ]
