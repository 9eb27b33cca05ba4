"""When a row is due, and which rows no rule may take."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from dateutil.relativedelta import relativedelta
from pydantic import Field, ValidationInfo, field_validator

from scripts.lifecycle.policy.conditions import Conditions, lookups_of
from scripts.lifecycle.policy.fields import Model, Name, Priority
from scripts.lifecycle.policy.lookups import AnchorField, Lookup
from scripts.lifecycle.policy.periods import Period, PeriodField
from scripts.lifecycle.policy.row_periods import KeepField, RowPeriod


class Rule(Model):
    """A row that meets ``when`` is due once its ``anchor`` lies more than ``keep`` in the past."""

    when: Conditions = Field(default_factory=dict)
    """Only rows that meet all of these conditions; without it, every row."""
    anchor: AnchorField
    """The column, or a value of another table, from which the period is counted."""
    floor: PeriodField | None = None
    """The shortest period that the law or a promise allows; ``keep`` may not be shorter."""
    ceiling: PeriodField | None = None
    """The longest period that the law or a promise allows; ``keep`` may not be longer."""
    keep: KeepField
    """How long a row is kept after its anchor. It is due once the anchor lies more than that in the past."""

    @field_validator("ceiling")
    @classmethod
    def _above_the_floor(cls, ceiling: Period | None, info: ValidationInfo) -> Period | None:
        floor = info.data.get("floor")
        if ceiling and floor and ceiling.may_be_shorter_than(floor):
            raise ValueError(f"must not be shorter than the floor of {floor.text}")
        return ceiling

    @field_validator("keep")
    @classmethod
    def _within_the_law(cls, keep: Period | RowPeriod, info: ValidationInfo) -> Period | RowPeriod:
        floor, ceiling = info.data.get("floor"), info.data.get("ceiling")
        # What a row says is bounded row by row; what the file says must be within the bounds.
        said = keep.otherwise if isinstance(keep, RowPeriod) else keep
        if floor and said.may_be_shorter_than(floor):
            raise ValueError(f"{said.text} is shorter than the floor of {floor.text}")
        if ceiling and ceiling.may_be_shorter_than(said):
            raise ValueError(f"{said.text} is longer than the ceiling of {ceiling.text}")
        if ceiling and isinstance(keep, RowPeriod) and keep.forever and ceiling.length is not None:
            raise ValueError(f"forever is longer than the ceiling of {ceiling.text}")
        return keep

    @property
    def ends(self) -> bool:
        """Whether the period of some row can end."""
        return isinstance(self.keep, RowPeriod) or self.keep.length is not None

    @property
    def least(self) -> Period:
        """The shortest period that any row can have."""
        if not isinstance(self.keep, RowPeriod):
            return self.keep
        return self.floor or Period("0 minutes", relativedelta())

    def due_before(self, moment: datetime) -> datetime | None:
        """Return the moment before which a row's anchor must lie for the row to be due; None: no row is ever due.

        Where each row says its period, it is the latest of these moments: no row is due whose anchor is later.
        """
        return self.least.before(moment)

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """The values of other tables that the rule needs, its period's last."""
        named = [each.lookup for each in lookups_of(self.when).values()]
        named += [self.anchor] if isinstance(self.anchor, Lookup) else []
        named += [self.keep.lookup] if isinstance(self.keep, RowPeriod) and self.keep.lookup else []
        return tuple(named)


class QueueRule(Model):
    """An item for the manual-resolution queue, raised once for each excepted row that is older than ``after``."""

    item_type: Name
    """The kind of item on the manual-resolution queue; ``decisions`` says what a person may do with it."""
    priority: Priority
    """How urgent the item is: how soon a person must have decided."""
    anchor: AnchorField
    """The column, or a value of another table, from which ``after`` is counted."""
    after: PeriodField
    """How old the anchor must be before the item is raised."""
    reason: str = Field(min_length=1)
    """What the person reads. It names no person."""


class RowException(Model):
    """Rows that no rule may take, whatever their age."""

    when: Annotated[Conditions, Field(min_length=1)]
    """The rows: those that meet all of these conditions."""
    queue: QueueRule | None = None
    """The item that a person gets about such a row; without it, nobody is asked."""

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """The values of other tables that the exception needs, its queue rule's last."""
        named = [each.lookup for each in lookups_of(self.when).values()]
        named += [self.queue.anchor] if self.queue and isinstance(self.queue.anchor, Lookup) else []
        return tuple(named)
