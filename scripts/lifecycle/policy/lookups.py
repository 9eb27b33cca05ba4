"""A value that is taken from another table: from the row that has the same values in some columns."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from scripts.lifecycle.policy import shapes
from scripts.lifecycle.policy.fields import Model
from scripts.lifecycle.policy.tables import Column, Table


def _pairs(value: object) -> object:
    """Return columns that are compared as pairs, own first, from the file's three ways of writing them."""
    if isinstance(value, str):
        return ((value, value),)
    if isinstance(value, list):
        return tuple((column, column) for column in value)
    if isinstance(value, dict):
        return tuple(value.items())
    return value


def _pair_each_once(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    if any(len(set(columns)) < len(columns) for columns in zip(*pairs, strict=True)):
        raise ValueError("names a column twice")
    return pairs


Same = Annotated[
    tuple[tuple[Column, Column], ...],
    Field(min_length=1, max_length=8),
    BeforeValidator(_pairs),
    AfterValidator(_pair_each_once),
    WithJsonSchema(shapes.SAME),
]
"""A column of both tables, a list of several, or ``{own: theirs}`` where the names differ."""


class Lookup(Model):
    """A value that is taken from another table: from the row that has the same values in the columns ``same``.

    Null equals nothing. No such row, or null in it, is an unset value. Of several such rows the latest one counts: of
    dates and timestamps the greatest value; of anything else that of the row whose ``latest`` is the greatest. Without
    ``latest`` there may be only one such row, and a unique index must say so.
    """

    take: Column
    """The column of the other table whose value is taken."""
    from_table: Table = Field(alias="from")
    """The other table, with its schema."""
    same: Same
    """The columns by which the row of the other table is found: a column of both, a list, or {own: theirs}."""
    latest: Column | None = None
    """Of several rows that match, the one with the greatest value in this column counts."""

    @property
    def own(self) -> tuple[str, ...]:
        """The columns of the policy's table that are compared."""
        return tuple(own for own, _ in self.same)

    @property
    def theirs(self) -> tuple[str, ...]:
        """The columns of the other table that they are compared with."""
        return tuple(theirs for _, theirs in self.same)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the other table that are read."""
        return tuple(dict.fromkeys([*self.theirs, self.take, *([self.latest] if self.latest else [])]))

    def __str__(self) -> str:
        """Name the value in a message and in a report."""
        same = ", ".join(own if own == theirs else f"{own} ({theirs} there)" for own, theirs in self.same)
        return f"{self.from_table}.{self.take} of the same {same}"


def tagged(mapping: str, other: str, *, having: str | None = None) -> Discriminator:
    """Return what tells the two ways of writing a value apart. In parentheses: no key of a file is called that."""

    def choose(value: object) -> str:
        written = isinstance(value, dict) and (having is None or having in value)
        return mapping if written or isinstance(value, Model) else other

    return Discriminator(choose)


AnchorField = Annotated[
    Annotated[Lookup, Tag("(lookup)")] | Annotated[Column, Tag("(column)")], tagged("(lookup)", "(column)")
]
"""A column of the row, or a value of another table."""
