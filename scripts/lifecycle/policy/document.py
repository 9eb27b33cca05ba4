"""The policy file as a whole: its defaults, and what its policies and erasure steps must be to each other."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from scripts.lifecycle.policy.defaults import partly
from scripts.lifecycle.policy.erasure_steps import ErasureStep
from scripts.lifecycle.policy.fields import NAME_KEY, Model, Name
from scripts.lifecycle.policy.job_specs import JobSpec
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.sections import Batch, Overdue
from scripts.lifecycle.policy.tables import Column, Table

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


class Document(Model):
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
                name: {**policy, NAME_KEY: name} if isinstance(policy, dict) else policy
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
