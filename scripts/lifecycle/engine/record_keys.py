"""Compose SQL for the key of a table, and for the one text by which audit, legal holds and queue name a row.

A key of one column is named by the text of its value, as PostgreSQL writes it. A key of several columns is named by a
JSON array of the values, in the policy file's order, as PostgreSQL's jsonb writes it: ``[7, 42]``, ``["0b1e…", 42]``.
Only a type whose JSON does not depend on session settings may be part of such a key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from scripts.utils import composing as sql

# Values of these types cannot be an address or a name. A value of any other type may stand in the audit only if it
# looks like a UUID; otherwise the audit has its pseudonym (DESIGN, section 5; GDPR Art. 4(5)).
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
# As strict as :meth:`RecordKey.nameable`; a test compares the two.
_UUID = re.compile(r"[0-9a-fA-F-]{8}-[0-9a-fA-F-]{4}-[0-9a-fA-F-]{4}-[0-9a-fA-F-]{4}-[0-9a-fA-F-]{12}")
_TEXTS = frozenset({"text", "character varying", "character"})


def problem_of(columns: Sequence[str], types: Mapping[str, str]) -> str | None:
    """Return why columns of these types cannot be a key; None: they can."""
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
        columns: The key's columns, in the policy file's order.
        types: The type of each column, as ``format_type`` writes it.
    """

    def __init__(self, columns: Sequence[str], types: Mapping[str, str]) -> None:
        self.names = tuple(columns)
        self._columns = tuple(map(sql.Identifier, columns))
        self._kinds = tuple(types[name] for name in columns)
        self._types = tuple(map(sql.SQL, self._kinds))
        self._personal = tuple(kind not in _IMPERSONAL_TYPES for kind in self._kinds)

    @property
    def impersonal(self) -> bool:
        """Whether no value of this key can be personal data, judged by the types of its columns."""
        return not any(self._personal)

    @property
    def personal(self) -> frozenset[str]:
        """The columns whose values may be personal data, judged by their types."""
        return frozenset(name for name, personal in zip(self.names, self._personal, strict=True) if personal)

    def columns(self, alias: str) -> sql.Composed:
        """Return the columns, separated by commas."""
        return sql.SQL(", ").join(self._of(alias))

    def ordered(self, alias: str, direction: str) -> sql.Composed:
        """Return the columns for an ORDER BY, each ``ASC`` or ``DESC``."""
        return sql.SQL(", ").join(sql.SQL("{} {}").format(each, sql.SQL(direction)) for each in self._of(alias))

    @property
    def numbered(self) -> RecordKey:
        """The same key on columns that are named ``key_0``, ``key_1`` and so on, as :meth:`named` names them."""
        names = [f"key_{place}" for place, _ in enumerate(self._types)]
        return RecordKey(names, dict(zip(names, self._kinds, strict=True)))

    def named(self, alias: str) -> sql.Composed:
        """Return a select list: the row's table and place (ctid), and the columns as ``key_0``, ``key_1`` and so on."""
        place = sql.SQL("{0}.tableoid AS key_table, {0}.ctid AS key_place").format(sql.SQL(alias))
        return sql.SQL("{}, {}").format(place, self.numbered_columns(alias))

    def numbered_columns(self, alias: str) -> sql.Composed:
        """Return a select list: the columns as ``key_0``, ``key_1`` and so on."""
        return sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(each, sql.Identifier(f"key_{place}"))
            for place, each in enumerate(self._of(alias))
        )

    def same(self, alias: str, other: str) -> sql.Composed:
        """Return the condition that a row has the key and lies in the table that ``other`` holds (:meth:`named`)."""
        parts = [
            sql.SQL("{} = {}").format(each, sql.Identifier(other, f"key_{place}"))
            for place, each in enumerate(self._of(alias))
        ]
        table = sql.SQL("{}.tableoid = {}").format(sql.SQL(alias), sql.Identifier(other, "key_table"))
        return sql.SQL(" AND ").join([*parts, table])

    def exactly(self, alias: str, other: str) -> sql.Composed:
        """Return the condition that a row is the very row version that ``other`` holds (:meth:`named`).

        This is for tables with inheritance children: no unique index spans two children, so two rows may have one key.
        A row that was updated after the statement began is not found; a later batch takes it.
        """
        return sql.SQL("{}.tableoid = {other} AND {}.ctid = {place}").format(
            sql.SQL(alias),
            sql.SQL(alias),
            other=sql.Identifier(other, "key_table"),
            place=sql.Identifier(other, "key_place"),
        )

    def id(self, alias: str) -> sql.Composed:
        """Return SQL for the text that names a row."""
        if len(self._columns) == 1:
            return sql.SQL("{}::text").format(*self._of(alias))
        return sql.SQL("jsonb_build_array({})::text").format(self.columns(alias))

    def values(self, text: sql.Composable) -> sql.Composed:
        """Return SQL for the key's values, separated by commas, taken from the text that names a row."""
        return sql.SQL(", ").join(self._values(text))

    def is_(self, alias: str, text: sql.Composable) -> sql.Composed:
        """Return the condition that a row is the one that a text names. A malformed text is an error."""
        return sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(column, value)
            for column, value in zip(self._of(alias), self._values(text), strict=True)
        )

    def among(self, alias: str, texts: sql.Composable) -> sql.Composed:
        """Return the condition that a row is named by one of the texts of an array."""
        if len(self._columns) == 1:
            return sql.SQL("{} = ANY({}::{}[])").format(*self._of(alias), texts, *self._types)
        return sql.SQL("({}) IN (SELECT {} FROM unnest({}::text[]) AS e (id))").format(
            self.columns(alias), self.values(sql.Identifier("e", "id")), texts
        )

    def nameable(self, alias: str) -> sql.Composed:
        """Return the condition that the key is no personal data: a text that is no UUID could be an e-mail address."""
        # LIKE and the character class together are as strict as one regular expression with counts, at a tenth of its
        # cost.
        parts = [
            sql.SQL(
                "({key}::text LIKE '________-____-____-____-____________' AND {key}::text !~ '[^0-9a-fA-F-]')"
            ).format(key=column)
            for column, personal in zip(self._of(alias), self._personal, strict=True)
            if personal
        ]
        return sql.SQL(" AND ").join(parts) if parts else sql.SQL("true").format()

    def is_nameable(self, text: str) -> bool:
        """Tell the same as :meth:`nameable`, of the text that names a row."""
        if self.impersonal:
            return True
        values = [text] if len(self._columns) == 1 else json.loads(text)
        return all(
            _UUID.fullmatch(str(value)) is not None
            for value, personal in zip(values, self._personal, strict=True)
            if personal
        )

    def said(self, alias: str, names: sql.Composable) -> sql.Composed:
        """Return SQL for the text by which the audit names a row: the key, or its pseudonym if it may be personal.

        Args:
            alias: The row's alias.
            names: A JSON object that has the pseudonym of each key's text. A key that is not in it gives null.
        """
        if self.impersonal:
            return self.id(alias)
        return sql.SQL("CASE WHEN {} THEN {} ELSE {}::jsonb ->> ({}) END").format(
            self.nameable(alias), self.id(alias), names, self.id(alias)
        )

    def sayable(self, alias: str, names: sql.Composable) -> sql.Composed:
        """Return the condition that :meth:`said` is not null; the arguments are the same."""
        if self.impersonal:
            return sql.SQL("true").format()
        return sql.SQL("({} OR {}::jsonb ? ({}))").format(self.nameable(alias), names, self.id(alias))

    def _of(self, alias: str) -> list[sql.Composed]:
        return [sql.SQL("{}.{}").format(sql.SQL(alias), column) for column in self._columns]

    def _values(self, text: sql.Composable) -> list[sql.Composed]:
        if len(self._columns) == 1:
            return [sql.SQL("{}::{}").format(text, *self._types)]
        return [
            sql.SQL("({}::jsonb ->> {})::{}").format(text, sql.Literal(place), kind)
            for place, kind in enumerate(self._types)
        ]
