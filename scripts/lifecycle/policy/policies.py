"""Parse the policy file into frozen objects, and name every problem of the file with its place and line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from cronsim import CronSim, CronSimError
from dateutil.relativedelta import relativedelta
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Strict,
    Tag,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from scripts.lifecycle.policy import mistakes, shapes
from scripts.lifecycle.policy.defaults import partly
from scripts.utils import composing as sql
from scripts.utils import durations
from scripts.utils.errors import Misconfigured
from scripts.utils.yaml_defaults import filled_in

DEFAULT_POLICY_FILE = Path(__file__).resolve().parents[2] / "retention" / "retention_policies.yaml"

Priority = Literal["critical", "high", "medium", "low"]
"""How urgent an item of the manual-resolution queue is."""
PRIORITIES: tuple[str, ...] = get_args(Priority)

NOW = "now"
"""As a decision's new value: the database's clock."""
_UNIT = re.compile(r"(minute|hour|day|week|month|year)s?")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_PART = r"[^.\s\"](?:[^.\"]*[^.\s\"])?"
_TABLE = re.compile(rf"{_PART}\.{_PART}")
# As PostgreSQL itself writes a name that needs quotation marks, each mark in it doubled.
_QUOTED = re.compile(r'"((?:[^"]|"")+)"\."((?:[^"]|"")+)"')
# The key under which a policy's name is passed to the model. No file can hold it: it is not a name.
_NAME_KEY = "(name)"
_LOCK = re.compile(r"lock:[a-z_]+:[a-z_]+")
# The audit and what proves it. No policy may change these tables, whatever the policy file says.
_NEVER_CHANGED = frozenset(
    {
        *("ops.audit_batches", "ops.audit_head", "ops.audit_log", "ops.policy_versions", "ops.schema_migrations"),
        *("ops.detached_partitions", "ops.partition_rights"),
    }
)
# The first days of 48 months. Periods are compared on each of them: 365 days are shorter than a leap year, and 31 days
# are longer than some months.
_CALENDAR = tuple(datetime(2000 + month // 12, 1 + month % 12, 1, tzinfo=UTC) for month in range(48))


@dataclass(frozen=True)
class Period:
    """How long something is kept. Months and years are calendar months and years, in UTC."""

    text: str
    length: relativedelta | None
    """None: forever."""

    def before(self, moment: datetime) -> datetime | None:
        """Return the moment before which a row's anchor must lie for the row to be due; None: it is never due."""
        return None if self.length is None else moment - self.length

    def is_shorter_than(self, other: Period, at: datetime) -> bool:
        """Tell whether, at one moment, rows are due by this period that are not due by the other one."""
        mine, theirs = self.before(at), other.before(at)
        return mine is not None and (theirs is None or mine > theirs)

    def may_be_shorter_than(self, other: Period) -> bool:
        """Tell whether this period is the shorter one at the beginning of any month of four years."""
        return any(self.is_shorter_than(other, day) for day in _CALENDAR)


def _period(value: object) -> Period:
    if value == "forever":
        return Period("forever", None)
    length = durations.number_and_unit(str(value), durations.PERIODS)
    if length is None:
        raise ValueError("is not a period: write a number and a unit, such as '24 hours' or '7 years', or 'forever'")
    number, unit = length
    period = Period(durations.spelled_out(number, unit), relativedelta(**{unit + "s": number}))  # type: ignore[arg-type]
    try:
        period.before(datetime(2000, 1, 1, tzinfo=UTC))
    except (OverflowError, ValueError):
        raise ValueError("reaches back beyond the calendar: write 'forever'") from None
    return period


def _duration(value: object) -> timedelta:
    length = durations.number_and_unit(str(value), durations.DURATIONS)
    if length is None or length[0] == 0:
        raise ValueError("is not a duration: write a number and a unit, such as '500 milliseconds' or '25 hours'")
    try:
        return timedelta(**{length[1] + "s": length[0]})
    except OverflowError:
        raise ValueError("is too long") from None


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


@dataclass(frozen=True)
class Treatment:
    """What happens to one column's value when its row is anonymised."""

    how: Literal["null", "constant", "pseudonym", "truncate_ip", "suppression"]
    constant: str | None = None


def _treatment(value: object) -> Treatment:
    if value is None:
        return Treatment("null")
    if value in ("pseudonym", "truncate_ip"):
        return Treatment(value)
    if isinstance(value, dict) and value.keys() == {"constant"} and isinstance(value["constant"], str | int):
        return Treatment("constant", written(value["constant"]))
    raise ValueError("is not a treatment: write null, pseudonym, truncate_ip or {constant: ...}")


def _erasure_treatment(value: object) -> Treatment:
    return Treatment("suppression") if value == "suppression" else _treatment(value)


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"is not {what}")
        return value

    return AfterValidator(check)


def _cron(value: str) -> str:
    if not value.isascii():
        raise ValueError("is not a cron expression: its digits and names are ASCII")
    try:
        CronSim(value, datetime(2026, 1, 1))  # noqa: DTZ001 - only the expression is checked
    except CronSimError as error:
        raise ValueError(f"is not a cron expression: {error}") from None
    return value


Number = Annotated[int, Strict()]
"""A whole number as such: ``true``, ``1.0`` and ``"1"`` are none."""
Truth = Annotated[bool, Strict()]
"""``true`` or ``false`` as such: ``1`` and ``"yes"`` are neither."""
Name = Annotated[
    str, _matching(_NAME, "a name of lower-case letters, digits and underscores"), WithJsonSchema(shapes.NAME)
]


def table_name(value: str) -> str:
    """Return ``schema.table`` without quotation marks: the form that audit, holds and queue name a table by.

    Raises:
        ValueError: The text names no table, or not one alone.
    """
    quoted = _QUOTED.fullmatch(value)
    schema, name = (part.replace('""', '"') for part in quoted.groups()) if quoted else ("", "")
    if quoted and "." not in schema:
        return f"{schema}.{name}"
    if not _TABLE.fullmatch(value):
        raise ValueError("is not a table with its schema, such as public.quiz_responses")
    return value


Table = Annotated[str, AfterValidator(table_name), WithJsonSchema(shapes.TABLE)]
"""A table with its schema; in quotation marks, both of them, where a name holds a dot or a quotation mark."""
Column = Annotated[str, Field(min_length=1)]


def _columns(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _each_once(columns: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(columns)) < len(columns):
        raise ValueError("names a column twice")
    return columns


Columns = Annotated[
    tuple[Column, ...],
    Field(min_length=1, max_length=8),
    BeforeValidator(_columns),
    AfterValidator(_each_once),
    WithJsonSchema(shapes.COLUMNS),
]
"""One column, or a list of several."""
PeriodField = Annotated[Period, BeforeValidator(_period), WithJsonSchema(shapes.PERIOD)]
ConditionField = Annotated[Condition, BeforeValidator(_condition), WithJsonSchema(shapes.CONDITION)]
TreatmentField = Annotated[Treatment, BeforeValidator(_treatment), WithJsonSchema(shapes.TREATMENT)]
ErasureTreatmentField = Annotated[
    Treatment, BeforeValidator(_erasure_treatment), WithJsonSchema(shapes.ERASURE_TREATMENT)
]
Duration = Annotated[timedelta, BeforeValidator(_duration), WithJsonSchema(shapes.DURATION)]


def parts_of(table: str) -> tuple[str, str]:
    """Return schema and name of ``schema.table``; a dot after the first one belongs to the name."""
    schema, _, name = table.partition(".")
    return schema, name


def table_identifier(table: str) -> sql.Identifier:
    """Return ``schema.table`` quoted for SQL."""
    return sql.Identifier(*parts_of(table))


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class _Lines(dict[str, int]):
    """The line of each place in the policy file. All are equal: where a rule stands says nothing about the rule."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Lines)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None


class _Located(_Model):
    _lines: _Lines = PrivateAttr(default_factory=_Lines)

    def at(self, *path: str | int) -> str:
        """Return a place below this entry as messages name it, with its line if the entry was read from a file."""
        place = ".".join(map(str, path))
        while path and ".".join(map(str, path)) not in self._lines:
            path = path[:-1]  # what the file leaves out, such as a key's default
        line = self._lines.get(".".join(map(str, path)))
        return f"{place} (line {line})" if line else place


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


class Lookup(_Model):
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


class LookedUp(Lookup):
    """A condition on a value of another table."""

    what: ConditionField = Field(alias="is")
    """What that value must be."""

    @property
    def lookup(self) -> Lookup:
        """The value, whatever it must be: two conditions on one value are one lookup."""
        return Lookup.model_construct(take=self.take, from_table=self.from_table, same=self.same, latest=self.latest)


def _unit(value: str) -> str:
    if not _UNIT.fullmatch(value):
        raise ValueError("is not a unit: write minutes, hours, days, weeks, months or years")
    return value.removesuffix("s")


class RowPeriod(_Model):
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


def _tagged(mapping: str, other: str, *, having: str | None = None) -> Discriminator:
    """Return what tells the two ways of writing a value apart. In parentheses: no key of a file is called that."""

    def choose(value: object) -> str:
        written = isinstance(value, dict) and (having is None or having in value)
        return mapping if written or isinstance(value, _Model) else other

    return Discriminator(choose)


AnchorField = Annotated[
    Annotated[Lookup, Tag("(lookup)")] | Annotated[Column, Tag("(column)")], _tagged("(lookup)", "(column)")
]
"""A column of the row, or a value of another table."""
KeepField = Annotated[
    Annotated[RowPeriod, Tag("(row)")] | Annotated[PeriodField, Tag("(period)")], _tagged("(row)", "(period)")
]
"""One period for all rows, or a period that each row says itself."""


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
            _tagged("(lookup)", "(condition)", having="from"),
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


class Rule(_Model):
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


class QueueRule(_Model):
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


class RowException(_Model):
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


class Dependant(_Model):
    """A foreign key that points at the policy's table, and what happens to the rows that hold it."""

    table: Table
    """The table, with its schema, that holds the foreign key."""
    column: Columns
    """The foreign key's columns. The first one is enough if no other foreign key of that table begins with it."""
    action: Literal["delete", "set_null", "refuse"]
    """What becomes of its rows: they are deleted, their foreign key is set to null, or the parent stays."""
    key: Columns = ("id",)
    """The columns that identify one of its rows."""
    person: Column | None = None
    """The column that names the person a row is about, for legal holds. If the key is missing in the file, it is the
    person column of the first policy on that table."""


class Batch(_Model):
    """How many rows a batch has at most, how long it waits for a lock, and how long one statement may run."""

    rows: Number = Field(ge=1, le=100_000)
    """How many rows one transaction deletes at most."""
    lock_timeout: Duration
    """The longest wait for a locked row. A batch that waited longer is tried again later."""
    statement_timeout: Duration
    """The longest time that one statement may run."""


class Overdue(_Model):
    """How far past its date the oldest row may be."""

    warning: Duration
    """Past its date for longer than this, a row makes the service level a warning."""
    critical: Duration
    """Past its date for longer than this, a row makes the service level critical."""

    @model_validator(mode="after")
    def _in_order(self) -> Overdue:
        if self.warning > self.critical:
            raise ValueError("warning must not be longer than critical")
        return self


class SoftDelete(_Model):
    """The columns that mark a row as deleted. A second policy, anchored at ``deleted_at``, deletes the row."""

    flag: Column | None = None
    """Set to true, where the table has such a column."""
    deleted_at: Column
    """The column that is set to the moment of the run."""


class Blob(_Model):
    """The blob that a row names, and what happens to the row once the blob is deleted."""

    column: Column
    """Holds the blob's URL or pathname."""
    deleted_at: Column | None
    """The column that is set to the moment (UTC) at which the blob was deleted."""
    cleared: str | None = None
    """What the column holds afterwards: null, or a text where it may not be null."""
    prefix: str = Field(min_length=1)
    """Only blobs whose pathname starts with this are the policy's; nothing else in the store is touched."""
    orphans: PeriodField
    """How long a blob that no row names is kept after its upload."""
    item_type: Name
    """What a blob that cannot be deleted is on the manual-resolution queue."""
    priority: Priority
    """How urgent that item is."""


class Anonymize(_Model):
    """What happens to each personal column. The row stays."""

    columns: dict[Column, TreatmentField] = Field(min_length=1)
    """Each personal column and its new value: null, pseudonym, truncate_ip or {constant: ...}."""
    marker: Column | None
    """The column that is set to the moment at which the row was anonymised. None: a row counts as anonymised when every
    column has its final value, so each run looks at every row past its date."""

    @property
    def pseudonymised(self) -> tuple[str, ...]:
        """The columns whose new value is computed in Python, because the pseudonyms' key must not reach the server."""
        return tuple(name for name, treatment in self.columns.items() if treatment.how == "pseudonym")


class Remedy(_Model):
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


class Archive(_Model):
    """How a row is archived before it is deleted."""

    personal: tuple[Column, ...]
    """These columns are encrypted with a key of the person's own. Destroying that key makes them unreadable; all other
    columns stay readable."""
    keep: PeriodField
    """How long an archive is kept after it was sealed."""
    rows: Number = Field(ge=1, le=50_000)
    """How many rows one archive has at most."""


class ErasureStep(_Located):
    """What happens to one table's rows about a person who asked for erasure (GDPR Art. 17)."""

    table: Table
    """The table, with its schema."""
    key: Columns
    """The columns that identify a row."""
    person: Column | None
    """Says whose row it is, as ``normalized_email``; null: its foreign keys alone say it."""
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
        if self.table in _NEVER_CHANGED:
            raise ValueError(f"{self.table} is proof: it holds no personal data, and nothing changes it")
        return self

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """The values of other tables that decide whether a row is blocked."""
        named = [each.lookup for conditions in self.blocked_by.values() for each in lookups_of(conditions).values()]
        return tuple(dict.fromkeys(named))


class Policy(_Located):
    """What is kept, for how long, why, and what happens to it afterwards."""

    name: Name = Field(validation_alias=_NAME_KEY)
    description: str = Field(min_length=1)
    """What the rows are, in a few words; the compliance report quotes it."""
    table: Table
    """The table, with its schema."""
    key: Columns
    """The columns that identify a row."""
    person: Column | None
    """The column that names the person a row is about, for legal holds and erasures; null: no person."""
    action: Literal["delete", "soft_delete", "delete_blob", "archive_then_delete", "anonymize", "retain"]
    """What happens to a row that is due."""
    soft_delete: SoftDelete | None = None
    """The columns that the action ``soft_delete`` sets."""
    archive: Archive | None = None
    """How the action ``archive_then_delete`` archives."""
    blob: Blob | None = None
    """The blob that the action ``delete_blob`` deletes."""
    anonymize: Anonymize | None = None
    """The columns that the action ``anonymize`` changes."""
    rules: dict[Name, Rule]
    """When a row is due. One rule that is met is enough."""
    exceptions: dict[Name, RowException] = Field(default_factory=dict)
    """Rows that no rule may take, whatever their age."""
    dependants: tuple[Dependant, ...]
    """The foreign keys that point at the table. One that the file does not name makes the policy stop."""
    drop_partitions: Truth = True
    """Whether a partition of which every row is due may be dropped instead of emptied."""
    decisions: dict[Name, dict[Name, Remedy]] = Field(default_factory=dict)
    """The decisions that a person may take about a row, by the type of its item on the manual-resolution queue."""
    legal_basis: str = Field(min_length=1)
    """Why the rows are kept so long and no longer."""
    owner: str = Field(min_length=1)
    """Who answers for the policy."""
    decision: str = Field(min_length=1)
    """The page that explains the policy."""
    max_rows: Number = Field(ge=1)
    """How many rows one run may delete without being asked for more."""
    max_poison: Number = Field(ge=0)
    """How many rows the database may refuse before the policy stops."""
    batch: Batch
    """How large and how long one transaction is."""
    overdue: Overdue
    """When the service level of the policy is broken."""

    @model_validator(mode="before")
    @classmethod
    def _needs_little_to_stay(cls, policy: Any) -> Any:
        """Fill in batch, caps and thresholds of a policy that only counts: it does not need them."""
        if isinstance(policy, dict) and policy.get("action") == "retain":
            return _OF_WHAT_STAYS | policy
        return policy

    @model_validator(mode="after")
    def _says_what_its_action_needs(self) -> Policy:
        for action, name, section in (
            ("soft_delete", "soft_delete", self.soft_delete),
            ("delete_blob", "blob", self.blob),
            ("archive_then_delete", "archive", self.archive),
            ("anonymize", "anonymize", self.anonymize),
        ):
            if (self.action == action) != (section is not None):
                raise ValueError(f"action {action} and the section {name} belong together")
        if not self.removes_rows and self.dependants:
            raise ValueError(f"dependants are for rows that go; action {self.action} keeps them")
        if any(remedy.delete for remedy in self.remedies) and self.action not in ("delete", "soft_delete"):
            raise ValueError(f"decisions cannot delete rows where the action is {self.action}")
        if self.anonymize and {*self.key, self.anonymize.marker} & self.anonymize.columns.keys():
            raise ValueError("anonymize.columns must name neither the key, which is audited, nor the marker")
        if self.archive:
            self._says_what_its_archive_needs(self.archive)
        return self

    def _says_what_its_archive_needs(self, archive: Archive) -> None:
        if any(dependant.action != "refuse" for dependant in self.dependants):
            raise ValueError("a row is archived without its dependants: they may only be 'refuse' here")
        if len(set(archive.personal)) < len(archive.personal):
            raise ValueError("archive.personal names a column twice")
        if self.person and self.person not in archive.personal:
            raise ValueError("archive.personal must name the person column: it is the first thing that is personal")
        if archive.personal and not self.person:
            raise ValueError("archive.personal needs the person column: whose key would they be under?")
        if set(archive.personal) >= {*self.key, *(rule.anchor for rule in self.rules.values())}:
            raise ValueError("archive.personal must leave out an anchor: ops.archives says how old its rows are")

    @model_validator(mode="after")
    def _stays_or_goes(self) -> Policy:
        if self.action != "retain":
            if not self.rules:
                raise ValueError("rules: Dictionary should have at least 1 item, or nothing would ever be due")
            changed = {self.table, *(dependant.table for dependant in self.dependants)} & _NEVER_CHANGED
            if changed:
                raise ValueError(
                    f"{', '.join(sorted(changed))} is proof: no policy changes it; only retain may name it"
                )
        elif any(rule.ends for rule in self.rules.values()):
            raise ValueError("what is retained has no period that ends: its rules keep 'forever'")
        elif self.exceptions or self.decisions:
            raise ValueError("what is retained has no exceptions and no decisions: nothing happens to it")
        return self

    @property
    def removes_rows(self) -> bool:
        """Whether the action removes rows from the table."""
        return self.action in ("delete", "archive_then_delete")

    @property
    def dropping_rule(self) -> str | None:
        """The rule by which whole partitions may be dropped; None: this policy deletes row by row."""
        due = [name for name, rule in self.rules.items() if rule.ends]
        whole = self.removes_rows and self.drop_partitions and len(self.key) == 1
        # Nothing keeps what is looked up as it is from the last look at every row until a large partition is gone, and
        # the right to drop is bound to a shortest period.
        whole &= not self.lookups and all(
            rule.floor is not None for rule in self.rules.values() if isinstance(rule.keep, RowPeriod)
        )
        return due[0] if whole and len(due) == 1 == len(self.rules) else None

    @property
    def written(self) -> tuple[str, ...]:
        """The columns that the action itself changes."""
        if self.soft_delete:
            return tuple(filter(None, (self.soft_delete.flag, self.soft_delete.deleted_at)))
        if self.blob:
            return tuple(filter(None, (self.blob.column, self.blob.deleted_at)))
        if self.anonymize:
            return tuple(filter(None, (*self.anonymize.columns, self.anonymize.marker)))
        return ()

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """The values of other tables that decide whether a row is due."""
        every = [rule.lookups for rule in self.rules.values()]
        every += [exception.lookups for exception in self.exceptions.values()]
        return tuple(dict.fromkeys(lookup for lookups in every for lookup in lookups))

    @property
    def decided_lookups(self) -> tuple[Lookup, ...]:
        """The values of other tables that a person's decision about a row sets a column to."""
        values = [value for remedy in self.remedies for value in remedy.set.values()]
        return tuple(dict.fromkeys(value for value in values if isinstance(value, Lookup)))

    @property
    def remedies(self) -> tuple[Remedy, ...]:
        """All decisions that a person may take about one of the policy's rows."""
        return tuple(remedy for named in self.decisions.values() for remedy in named.values())

    def reason(self, rule: str) -> str:
        """Return the audit's reason code for a row that went by this rule."""
        return f"retention_policy:{self.name}/{rule}"


_OF_WHAT_STAYS: dict[str, Any] = {
    "rules": {},
    "dependants": [],
    "max_rows": 1,
    "max_poison": 0,
    "batch": {"rows": 1, "lock_timeout": "500 milliseconds", "statement_timeout": "60 seconds"},
    "overdue": {"warning": "1 day", "critical": "1 day"},
}


class JobSpec(_Model):
    """When a script runs, how long it may take, its lock, and the policies that it carries out."""

    schedule: Annotated[str, AfterValidator(_cron)]
    """When the script starts: a cron expression, in UTC."""
    budget: Duration
    """How long the script may take; then it stops after a batch, and the next run goes on."""
    policies: tuple[Name, ...] = ()
    """The policies that the script carries out. Each policy belongs to one job."""
    lock: (
        Annotated[
            str,
            _matching(_LOCK, "a lock's name, such as lock:cleanup:quiz_responses"),
            WithJsonSchema(shapes.LOCK),
        ]
        | None
    ) = None
    """The name of the lock that keeps a second run from starting. A script that changes data has one."""


_DEFAULTS = partly(
    Policy,
    (
        *("key", "person", "dependants", "drop_partitions", "legal_basis", "owner"),
        *("max_rows", "max_poison", "batch", "overdue"),
    ),
    # No default says that nobody is concerned: a policy that forgot the column would ignore legal holds.
    person=Column,
    batch=partly(Batch),
    overdue=partly(Overdue),
)


class Document(_Model):
    """The policy file."""

    defaults: _DEFAULTS | None = None  # type: ignore[valid-type]
    """What every policy repeats; a policy's own keys come first. The steps of an erasure get ``key`` and ``person``."""
    policies: dict[Name, Policy] = Field(min_length=1)
    """What is kept, how long and why, by the name of the policy."""
    jobs: dict[Name, JobSpec]
    """When each script runs and which policies it carries out, by the name of the script."""
    kept: dict[Table, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    """Tables with personal data that no policy deletes from, and the reason for each."""
    erasure: dict[Name, ErasureStep] = Field(default_factory=dict)
    """What an erasure does with the rows of a person, step by step, by the name of the step."""

    @model_validator(mode="before")
    @classmethod
    def _name_policies(cls, document: Any) -> Any:
        if isinstance(document, dict) and isinstance(document.get("policies"), dict):
            named = {
                name: {**policy, _NAME_KEY: name} if isinstance(policy, dict) else policy
                for name, policy in document["policies"].items()
            }
            return document | {"policies": named}
        return document

    @model_validator(mode="after")
    def _one_policy_for_one_thing(self) -> Document:
        seen: dict[tuple[str, str], str] = {}
        for name, policy in self.policies.items():
            other = seen.setdefault((policy.table, policy.action), name)
            if other != name:
                raise ValueError(f"policies.{name}: {other} already says what to {policy.action} in {policy.table}")
        return self

    @model_validator(mode="after")
    def _each_blob_belongs_to_one_policy(self) -> Document:
        # What one table does not name, another one may: its blobs would be orphans.
        prefixes = {name: policy.blob.prefix for name, policy in self.policies.items() if policy.blob}
        for name, prefix in prefixes.items():
            for other, shorter in prefixes.items():
                if other != name and prefix.startswith(shorter):
                    raise ValueError(f"policies.{name}.blob.prefix: {prefix} lies below that of {other}, {shorter}")
        return self

    @model_validator(mode="after")
    def _erasure_reaches_every_person(self) -> Document:
        steps: dict[str, ErasureStep] = {}
        for name, step in self.erasure.items():
            first = steps.setdefault(step.table, step)
            if (first.key, first.person) != (step.key, step.person):
                raise ValueError(f"erasure.{name}: its key and person differ from another step of {step.table}")
        for name, policy in self.policies.items():
            if self.erasure and policy.person and policy.table not in steps:
                raise ValueError(f"erasure: no step is about {policy.table}, where policy {name} knows a person")
            if self.erasure and policy.person and policy.person != steps[policy.table].person:
                raise ValueError(f"erasure: {policy.table} and policy {name} differ about the person column")
        return self


@dataclass(frozen=True)
class PolicySet:
    """One version of the policy file."""

    policies: dict[str, Policy]
    jobs: dict[str, JobSpec]
    hash: str
    """sha-256 of the file's bytes, hexadecimal."""
    document: str
    kept: dict[str, str] = field(default_factory=dict)
    """Tables with personal data that no policy deletes from, and the reason for each."""
    erasure: dict[str, ErasureStep] = field(default_factory=dict)
    """The steps of an erasure, by name, in the file's order."""

    def policy(self, name: str) -> Policy:
        """Return the policy of a name.

        Raises:
            Misconfigured: The file has no such policy.
        """
        if name not in self.policies:
            known = ", ".join(self.policies)
            raise Misconfigured(f"the policy file has no policy {name}, which this script carries out; it has {known}")
        return self.policies[name]

    def job(self, name: str) -> JobSpec:
        """Return the job of a name.

        Raises:
            Misconfigured: The file has no such job.
        """
        if name not in self.jobs:
            raise Misconfigured(f"the policy file has no job {name}: add it under jobs, with its policies")
        return self.jobs[name]

    def job_of(self, policy: str) -> str | None:
        """Return the name of the job that carries out a policy; None: no job names the policy."""
        return next((name for name, job in self.jobs.items() if policy in job.policies), None)


def load_policies(path: Path = DEFAULT_POLICY_FILE) -> PolicySet:
    """Read and check a policy file.

    Raises:
        Misconfigured: Names every problem with its place.
    """
    try:
        text = path.read_bytes().decode()  # unchanged: the hash covers the line ends
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise Misconfigured(
            f"policy file {path}, line {line}: cannot be read (UnicodeDecodeError): save the file as UTF-8"
        ) from None
    except OSError as error:
        raise Misconfigured(f"policy file {path}: cannot be read ({type(error).__name__})") from None
    return parse_policies(text, str(path))


def parse_policies(text: str, place: str) -> PolicySet:
    """Check the text of a policy file; ``place`` names it in messages.

    Raises:
        Misconfigured: Names every problem with its place.
    """
    try:
        loader = mistakes.CollectingLoader(text)
        written = loader.get_single_node()
        root = filled_in(written) if written else None
        content = loader.construct_document(root) if root else None
    except yaml.YAMLError as error:
        raise Misconfigured(f"policy file {place}{mistakes.syntax(error, text)}") from None
    if root is None:
        raise Misconfigured(f"policy file {place}: is empty: it must hold policies and jobs")
    document = _checked(content, root, loader.refused, place)
    digest = hashlib.sha256(text.encode()).hexdigest()
    for section, entries in (("policies", document.policies), ("erasure", document.erasure)):
        for name, entry in entries.items():
            entry._lines.update(_lines_below(root, section, name))  # noqa: SLF001 - filled here, and nowhere else
    policies = {
        name: policy.model_copy(update={"dependants": with_people(document.policies, policy.dependants)})
        for name, policy in document.policies.items()
    }
    return PolicySet(policies, document.jobs, digest, text, document.kept, document.erasure)


def with_people(policies: Mapping[str, Policy], dependants: Iterable[Dependant]) -> tuple[Dependant, ...]:
    """Return the dependants; one without the key ``person`` gets the person column of the first policy on its table."""
    people = {policy.table: policy.person for policy in reversed(list(policies.values())) if policy.person}
    return tuple(
        dependant
        if "person" in dependant.model_fields_set or dependant.table not in people
        else dependant.model_copy(update={"person": people[dependant.table]})
        for dependant in dependants
    )


def _checked(content: Any, root: yaml.Node, refused: dict[tuple[int, int], str], place: str) -> Document:
    details: list[Any] = [
        {"type": "value_error", "loc": loc, "msg": said, "input": None}
        for loc, said in mistakes.jobs_without_policies(root)
    ]
    try:
        document = Document.model_validate(content)
    except ValidationError as error:
        details += error.errors(include_url=False)
    if not details and not refused:
        return document
    found = mistakes.problems(details, root, Document, refused)
    raise Misconfigured(f"policy file {place}: {mistakes.told(found)}") from None


def _lines_below(node: yaml.Node | None, *path: str) -> Iterator[tuple[str, int]]:
    """Return each place below an entry of the file, as :meth:`_Located.at` is given it, with its line."""
    for step in path:
        child = mistakes.child_of(node, step)
        if child is None:
            return
        node = child[1]
        found: tuple[int, yaml.Node] = (child[0].start_mark.line + 1, child[1])
    yield from _every_line(".".join(path), *found)


def _every_line(place: str, line: int, node: yaml.Node) -> Iterator[tuple[str, int]]:
    yield place, line
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _every_line(f"{place}.{key.value}", key.start_mark.line + 1, value)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _every_line(f"{place}.{number}", value.start_mark.line + 1, value)
