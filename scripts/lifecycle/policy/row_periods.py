"""A period that each row says itself: in a column of its own, or in a row of another table."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, Tag, WithJsonSchema, field_validator, model_validator

from scripts.lifecycle.policy import shapes
from scripts.lifecycle.policy.fields import Model, Number
from scripts.lifecycle.policy.lookups import Lookup, Same, tagged
from scripts.lifecycle.policy.periods import PeriodField
from scripts.lifecycle.policy.tables import Column, Table

_UNIT = re.compile(r"(minute|hour|day|week|month|year)s?")


def _unit(value: str) -> str:
    if not _UNIT.fullmatch(value):
        raise ValueError("is not a unit: write minutes, hours, days, weeks, months or years")
    return value.removesuffix("s")


class RowPeriod(Model):
    """A period that each row says itself: in a column of its own, or in a row of another table."""

    take: Column
    """The column that holds the period."""
    unit: Annotated[str, AfterValidator(_unit), WithJsonSchema(shapes.UNIT)] | None = None
    """Of a number; None: the column is an interval."""
    from_table: Table | None = Field(default=None, alias="from")
    """None: the column is the row's own."""
    same: Same | None = None
    """The columns by which the row of the other table is found."""
    latest: Column | None = None
    """Of several rows that match, the one with the greatest value in this column counts."""
    otherwise: PeriodField = Field(alias="else")
    """The period of a row that says none: null, or no row in the other table."""
    forever: Annotated[tuple[Number | None, ...], WithJsonSchema(shapes.FOREVER)] = ()
    """The values that mean ``forever``, such as null or -1. Null is ``else`` if it is not among them."""

    @field_validator("forever", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return value if isinstance(value, list | tuple) else (value,)

    @model_validator(mode="after")
    def _says_where(self) -> RowPeriod:
        if (self.from_table is None) != (self.same is None):
            raise ValueError("from and same belong together: from which table, and by which columns of both")
        if self.latest and self.from_table is None:
            raise ValueError("latest chooses among rows of another table: say from which one")
        if self.unit is None and any(value is not None for value in self.forever):
            raise ValueError("forever lists numbers, and an interval is none: say the unit, or list null alone")
        return self

    @property
    def lookup(self) -> Lookup | None:
        """Where the period stands if it is not the row's own."""
        if self.from_table is None or self.same is None:
            return None
        return Lookup.model_construct(take=self.take, from_table=self.from_table, same=self.same, latest=self.latest)

    @property
    def text(self) -> str:
        """The period in words."""
        told = f"{self.lookup or self.take}{f' ({self.unit}s)' if self.unit else ''}, else {self.otherwise.text}"
        words = ["null" if value is None else str(value) for value in self.forever]
        return f"{told}; {' or '.join(words)} is forever" if words else told


KeepField = Annotated[
    Annotated[RowPeriod, Tag("(row)")] | Annotated[PeriodField, Tag("(period)")], tagged("(row)", "(period)")
]
"""One period for all rows, or a period that each row says itself."""
