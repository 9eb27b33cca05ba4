"""The decisions that a person may take about a row."""

from __future__ import annotations

from pydantic import Field, model_validator

from scripts.lifecycle.policy.fields import Model, Truth
from scripts.lifecycle.policy.lookups import Lookup
from scripts.lifecycle.policy.tables import Column

NOW = "now"
"""As a decision's new value: the database's clock."""


class Remedy(Model):
    """A decision that a person may take about a row. It deletes the row, sets columns, or is only recorded."""

    label: str = Field(min_length=1)
    """What the person reads before choosing."""
    delete: Truth = False
    """Whether the decision deletes the row."""
    set: dict[Column, str | int | bool | Lookup | None] = Field(default_factory=dict)
    """Columns and their new values: :data:`NOW`, null, a value of the column's type, or a lookup."""

    @model_validator(mode="after")
    def _does_one_thing(self) -> Remedy:
        if self.delete and self.set:
            raise ValueError("a row that is deleted has nothing to set")
        return self
