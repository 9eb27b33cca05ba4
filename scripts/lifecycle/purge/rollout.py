"""Roll a policy out in steps: 10 rows, 100, 1,000, then the rest, each checked before the next.

A step is a dry run and a run at the same cut-off. A difference between the two is a surprise and ends the rollout.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from scripts.lifecycle.jobs.results import PolicyResult, total_pauses
from scripts.lifecycle.jobs.run import Run
from scripts.utils.errors import ExitCode, PolicyFailed
from scripts.utils.logging_utils import get_logger

STEPS = (10, 100, 1000, None)
# A row of a later step should take less time, because more rows share the cost of starting.
SLOWER = 10


def roll_out(run: Run, *, predict: Callable[[], PolicyResult], carry_out: Callable[[], None]) -> None:
    """Carry out a policy step by step; add one result for all steps to ``run.results``.

    Args:
        run: The run; its limit is set for each step.
        predict: Says what a run would do, without doing it.
        carry_out: Does it, and adds its result to ``run.results``.

    Raises:
        PolicyFailed: The policy cannot be carried out, or would be refused as a whole.
        StoppedEarly: The run must stop.
    """
    options = run.options
    whole = predict()
    if whole.error:
        raise PolicyFailed(whole.stop_reason, whole.error)
    before = list(run.results)
    total: PolicyResult | None = None
    usual: float | None = None
    for limit in STEPS:
        run.options = replace(options, limit=limit)
        expected = predict()
        started = time.monotonic()
        try:
            carry_out()
        finally:
            step = run.results[-1]
            total = step if total is None else added(total, step)
            run.results[:] = [*before, total]
            run.options = options
        pace = (time.monotonic() - started) / max(1, step.records_deleted)
        surprise = _surprise(expected, step, pace, usual)
        get_logger().info(
            "rollout_step",
            policy=step.policy,
            limit=limit,
            surprise=surprise,
            records_deleted=step.records_deleted,
            records_remaining=step.records_remaining,
        )
        if surprise:
            run.results[-1] = replace(
                total, status="failed", stop_reason="rollout_surprise", exit_code=ExitCode.FAILED, error=surprise
            )
            return
        if step.stop_reason != "limit_reached":
            return
        usual = pace


def _surprise(expected: PolicyResult, step: PolicyResult, pace: float, usual: float | None) -> str | None:
    """Return the differences between a step and its prediction."""
    if step.stop_reason not in ("done", "limit_reached"):
        return f"the step ended with {step.stop_reason}: {step.error}"
    for name in ("records_deleted", "records_queued", "records_held", "records_remaining", "partitions"):
        predicted, found = getattr(expected, name), getattr(step, name)
        if predicted != found:
            return f"{name} should have been {predicted} and was {found}"
    if usual is not None and pace > SLOWER * usual:
        return f"a row took {pace * 1000:.1f} ms, in the step before {usual * 1000:.1f} ms"
    return None


def added(total: PolicyResult, step: PolicyResult) -> PolicyResult:
    """Add a step's result to that of the steps before: rows done are summed, rows left are those of the last step."""
    queued = total.records_queued + step.records_queued
    return replace(
        step,
        records_deleted=total.records_deleted + step.records_deleted,
        dependants_deleted=total.dependants_deleted + step.dependants_deleted,
        records_queued=queued,
        batches=total.batches + step.batches,
        partitions=(*total.partitions, *step.partitions),
        pauses=total_pauses([total, step]),
        exit_code=ExitCode.NEEDS_A_PERSON if queued and step.exit_code is ExitCode.DONE else step.exit_code,
    )
