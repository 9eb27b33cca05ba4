"""What an erasure does with one table's rows about a person."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from scripts.lifecycle.policy.conditions import ConditionField, Conditions, lookups_of
from scripts.lifecycle.policy.fields import Located, Name
from scripts.lifecycle.policy.lookups import Lookup
from scripts.lifecycle.policy.tables import NEVER_CHANGED, Column, Columns, Table
from scripts.lifecycle.policy.treatments import ErasureTreatmentField


class ErasureStep(Located):
    """What happens to one table's rows about a person who asked for erasure (GDPR Art. 17)."""

    table: Table
    """The table, with its schema."""
    key: Columns
    """The columns that identify a row."""
    person: Column | None
    """Says whose row it is, as ``normalized_email``; null: its foreign keys alone say it."""
    by: Columns | None = None
    """Columns of foreign keys: the step is about rows that refer to a person's rows by these, such as a message by its
    sender. Without the key, any foreign key that refers to a person's rows makes a row the person's."""
    action: Literal["delete", "anonymize"]
    """Whether the rows are deleted or their personal columns get another value."""
    when: dict[Column, ConditionField] = Field(default_factory=dict)
    """Only the person's rows that meet these conditions."""
    columns: dict[Column, ErasureTreatmentField] = Field(default_factory=dict)
    """What happens to each personal column, where the row stays."""
    blocked_by: dict[Name, Conditions] = Field(default_factory=dict)
    """Conditions of rows that stay until a person has decided about them, by the name of the reason."""
    not_exported: tuple[Column, ...] | None = None
    """Columns that ``export`` leaves out; None: those whose names are a secret's, such as a token's hash."""
    ground: str = Field(min_length=1)
    """Why the rows are erased, or why what stays may stay. The certificate quotes it."""

    @model_validator(mode="after")
    def _says_what_its_action_needs(self) -> ErasureStep:
        if (self.action == "anonymize") != bool(self.columns):
            raise ValueError("action anonymize and the section columns belong together")
        if self.columns.keys() & set(self.key):
            raise ValueError("columns must not name the key: it is audited")
        if self.table in NEVER_CHANGED:
            raise ValueError(f"{self.table} is proof: it holds no personal data, and nothing changes it")
        return self

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """The values of other tables that decide whether a row is blocked."""
        named = [each.lookup for conditions in self.blocked_by.values() for each in lookups_of(conditions).values()]
        return tuple(dict.fromkeys(named))
