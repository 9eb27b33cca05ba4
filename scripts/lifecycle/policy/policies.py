"""One policy: what is kept, for how long, why, and what happens to it afterwards."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from scripts.lifecycle.policy.fields import NAME_KEY, Located, Name, Number, Truth
from scripts.lifecycle.policy.lookups import Lookup
from scripts.lifecycle.policy.remedies import Remedy
from scripts.lifecycle.policy.row_periods import RowPeriod
from scripts.lifecycle.policy.rules import RowException, Rule
from scripts.lifecycle.policy.sections import Anonymize, Archive, Batch, Blob, Dependant, Overdue, SoftDelete
from scripts.lifecycle.policy.tables import NEVER_CHANGED, Column, Columns, Table


class Policy(Located):
    """What is kept, for how long, why, and what happens to it afterwards."""

    name: Name = Field(validation_alias=NAME_KEY)
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
            changed = {self.table, *(dependant.table for dependant in self.dependants)} & NEVER_CHANGED
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
