"""What columns must be: of the row itself, or of another table's row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag, WithJsonSchema

from scripts.lifecycle.policy import shapes
from scripts.lifecycle.policy.lookups import Lookup, tagged
from scripts.lifecycle.policy.tables import Column


def written(value: str | int | bool) -> str:
    """Return a value as it stands in the policy file; PostgreSQL reads it as a value of the column's type."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Condition:
    """What one column must be; each of ``values`` is read as the column's type.

    ``in`` and ``not_in`` compare the column with all of them, ``before`` and ``not_before`` with one, by its order.
    A null is not in any list, and neither before nor not before anything.
    """

    operator: Literal["set", "unset", "in", "not_in", "before", "not_before"]
    values: tuple[str, ...] = ()


def _condition(value: object) -> Condition:
    if value in ("set", "unset"):
        return Condition(value)
    operator: Any
    operator, operands = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else ("in", [value])
    if operator in ("before", "not_before"):
        operands = [operands]
    if (
        operator not in ("in", "not_in", "before", "not_before")
        or not isinstance(operands, list)
        or not operands
        or not all(isinstance(operand, str | int) for operand in operands)
    ):
        raise ValueError(
            "is not a condition: write set, unset, a value, {in: [...]}, {not_in: [...]}, {before: ...} or"
            " {not_before: ...}; quote a fraction or a day"
        )
    return Condition(operator, tuple(map(written, operands)))


ConditionField = Annotated[Condition, BeforeValidator(_condition), WithJsonSchema(shapes.CONDITION)]


class LookedUp(Lookup):
    """A condition on a value of another table."""

    what: ConditionField = Field(alias="is")
    """What that value must be."""

    @property
    def lookup(self) -> Lookup:
        """The value, whatever it must be: two conditions on one value are one lookup."""
        return Lookup.model_construct(take=self.take, from_table=self.from_table, same=self.same, latest=self.latest)


def _named(conditions: object) -> object:
    """Let the name of a condition on another table's value be the column, where it says no other one."""
    if not isinstance(conditions, dict):
        return conditions
    return {
        name: {"take": name} | value if isinstance(value, dict) and "from" in value else value
        for name, value in conditions.items()
    }


Conditions = Annotated[
    dict[
        Column,
        Annotated[
            Annotated[LookedUp, Tag("(lookup)")] | Annotated[ConditionField, Tag("(condition)")],
            tagged("(lookup)", "(condition)", having="from"),
        ],
    ],
    BeforeValidator(_named),
]
"""What columns must be. A condition on another table's value stands under that column's name, or under any other name
if it says what to ``take``."""


def own_columns(conditions: Mapping[str, Condition | LookedUp]) -> dict[str, Condition]:
    """Return the conditions on the row's own columns."""
    return {column: each for column, each in conditions.items() if isinstance(each, Condition)}


def lookups_of(conditions: Mapping[str, Condition | LookedUp]) -> dict[str, LookedUp]:
    """Return the conditions on values of other tables."""
    return {name: each for name, each in conditions.items() if isinstance(each, LookedUp)}
