"""The sections of a policy: dependants, batch, service level, and what each action needs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from scripts.lifecycle.policy.fields import Model, Name, Number, Priority
from scripts.lifecycle.policy.periods import Duration, PeriodField
from scripts.lifecycle.policy.tables import Column, Columns, Table
from scripts.lifecycle.policy.treatments import TreatmentField


class Dependant(Model):
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


class Batch(Model):
    """How many rows a batch has at most, how long it waits for a lock, and how long one statement may run."""

    rows: Number = Field(ge=1, le=100_000)
    """How many rows one transaction deletes at most."""
    lock_timeout: Duration
    """The longest wait for a locked row. A batch that waited longer is tried again later."""
    statement_timeout: Duration
    """The longest time that one statement may run."""


class Overdue(Model):
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


class SoftDelete(Model):
    """The columns that mark a row as deleted. A second policy, anchored at ``deleted_at``, deletes the row."""

    flag: Column | None = None
    """Set to true, where the table has such a column."""
    deleted_at: Column
    """The column that is set to the moment of the run."""


class Blob(Model):
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


class Anonymize(Model):
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


class Archive(Model):
    """How a row is archived before it is deleted."""

    personal: tuple[Column, ...]
    """These columns are encrypted with a key of the person's own. Destroying that key makes them unreadable; all other
    columns stay readable."""
    keep: PeriodField
    """How long an archive is kept after it was sealed."""
    rows: Number = Field(ge=1, le=50_000)
    """How many rows one archive has at most."""
