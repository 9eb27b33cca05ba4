"""One version of the policy file, as every other room reads it."""

from __future__ import annotations

from dataclasses import dataclass, field

from scripts.lifecycle.policy.erasure_steps import ErasureStep
from scripts.lifecycle.policy.job_specs import JobSpec
from scripts.lifecycle.policy.policies import Policy
from scripts.utils.errors import Misconfigured


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
