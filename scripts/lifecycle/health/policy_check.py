"""``--check``: whether every policy would start, and whether every table with personal data has a policy.

It is meant for a developer's CI, where the tables are empty. A warning fails here too, but for a missing index: the
application may make it later, and until the table is large every job runs without it.
"""

from __future__ import annotations

from collections.abc import Iterator

from scripts.lifecycle.health import database
from scripts.lifecycle.health.erasure import erasure
from scripts.lifecycle.health.findings import Check, Context, Finding, examine, failed, passed
from scripts.lifecycle.health.ownership import ownership
from scripts.lifecycle.health.personal_data import personal_data
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policy_order import foreign_keys, in_order
from scripts.utils.errors import ExitCode, Unwell
from scripts.utils.logging_utils import get_logger


def check(run: Run) -> None:
    """Check the policy file against the database; each finding is a line.

    Raises:
        Unwell: Something would not work, or is not covered (exit 1).
        StoppedEarly: The run must stop.
    """
    flags = run.options.flags
    context = Context(run, flags.policy_file, flags.policy_file)
    checks = [Check("policies", database.policies), Check("order", _order)]
    checks += [Check("personal_data", personal_data), Check("owners", ownership)]
    if run.policies.erasure:
        checks.append(Check("erasure", erasure))
    findings = list(examine(context, checks))
    for finding in findings:
        log = get_logger().error if _must_be_cured(finding) else get_logger().info
        log = get_logger().warning if finding.advice else log
        log("policy_check", **finding.as_dict())
    bad = sum(map(_must_be_cured, findings))
    if bad:
        raise Unwell(f"{bad} of {len(findings)} findings must be cured before this file is used", ExitCode.FAILED)


def _must_be_cured(finding: Finding) -> bool:
    return finding.status != "PASS" and not finding.advice


def _order(context: Context) -> Iterator[Finding]:
    policies = context.run.policies
    order = in_order(policies.policies.values(), context.run.database.read(foreign_keys))
    for name in policies.policies:
        if policies.job_of(name) is None:
            cure = "name it under the policies of a job"
            yield failed(name, "no job carries it out, so nobody would notice if it were not", cure)
    for cycle in order.cycles:
        get_logger().warning("foreign_key_cycle", tables=cycle, effect="the file's order decides")
    yield passed("order", " → ".join(order.names))
