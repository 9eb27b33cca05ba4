"""Checks whether a request to be erased could be fulfilled today."""

from __future__ import annotations

from collections.abc import Iterator

from scripts.lifecycle.erasure.plan import ErasurePlan
from scripts.lifecycle.health.findings import Context, Finding, failed, passed, warned
from scripts.utils.errors import PolicyFailed


def erasure(context: Context) -> Iterator[Finding]:
    """Check the file's erasure steps against the database, and that a step reaches every table under ``kept``."""
    policies = context.run.policies
    if not policies.erasure:
        yield warned("erasure", "the policy file says nothing about it", "add erasure: with a step for each table")
        return
    try:
        plan = context.run.database.read(lambda connection: ErasurePlan(connection, policies))
    except PolicyFailed as error:
        yield failed(
            "erasure", str(error), "correct the steps, or backend/migrate.py --grants POLICY_FILE, as the owner"
        )
        return
    for table in policies.kept.keys() - plan.targets.keys():
        yield failed(table, "is kept with personal data, and no step erases it", "add a step under erasure:")
    yield passed("erasure", f"{len(plan.order)} steps: {' → '.join(plan.order)}")
