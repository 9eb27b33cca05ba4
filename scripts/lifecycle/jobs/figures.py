"""A run's metrics: its duration, its results, and the rows that are left past their date."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from scripts.lifecycle.jobs.results import PolicyResult
from scripts.lifecycle.policy.job_specs import JobSpec
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.schedules import longest_interval
from scripts.utils.errors import ExitCode
from scripts.utils.metrics_utils import Figure


def figures_of(
    script: str,
    results: Iterable[PolicyResult],
    *,
    duration_seconds: float,
    exit_code: int,
    budget_seconds: float,
    spec: JobSpec | None = None,
    policies: Mapping[str, Policy] | None = None,
) -> list[Figure]:
    """Return a run's figures.

    Args:
        script: The script's name.
        results: One result a policy.
        duration_seconds: How long the run took.
        exit_code: Its exit code, before EXIT_ZERO_FOR.
        budget_seconds: How long it may take.
        spec: Its line under jobs: in the policy file; None: it has none.
        policies: The policies, for their overdue thresholds.
    """
    job = {"script": script}
    now = time.time()
    figures = [
        Figure("lifecycle_job_last_completion_timestamp_seconds", now, job),
        Figure("lifecycle_job_last_run_duration_seconds", round(duration_seconds, 3), job),
        Figure("lifecycle_job_last_exit_code", exit_code, job),
        Figure("lifecycle_job_budget_seconds", budget_seconds, job),
        Figure("lifecycle_job_sla_utilization_ratio", round(duration_seconds / budget_seconds, 6), job),
    ]
    # A failed run sends no last success: the figure of the last successful run must stay.
    if exit_code in (ExitCode.DONE, ExitCode.NEEDS_A_PERSON):
        figures.append(Figure("lifecycle_job_last_success_timestamp_seconds", now, job))
    if spec:
        figures.append(Figure("lifecycle_job_interval_seconds", longest_interval(spec.schedule).total_seconds(), job))
    results = list(results)
    # An earlier run's count must not stand for a run that did not come so far.
    for policy_name in set(spec.policies if spec else ()) - {result.policy for result in results}:
        labels = {**job, "policy": policy_name}
        figures += [
            Figure("lifecycle_job_records_remaining", None, labels),
            Figure("lifecycle_job_oldest_overdue_seconds", None, labels),
        ]
    for result in results:
        labels = {**job, "policy": result.policy}
        figures += [
            Figure("lifecycle_job_last_run_records_deleted", result.records_deleted, labels),
            Figure("lifecycle_job_last_run_records_queued", result.records_queued, labels),
            Figure("lifecycle_job_records_remaining", result.records_remaining, labels),
            Figure("lifecycle_job_oldest_overdue_seconds", result.oldest_overdue_seconds, labels),
        ]
        if policy := (policies or {}).get(result.policy):
            overdue = policy.overdue
            figures += [
                Figure("lifecycle_policy_overdue_warning_seconds", overdue.warning.total_seconds(), labels),
                Figure("lifecycle_policy_overdue_critical_seconds", overdue.critical.total_seconds(), labels),
            ]
    return figures
