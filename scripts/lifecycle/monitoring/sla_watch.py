"""One look at every job and policy of the policy file: what is wrong, and what could not be judged.

This module only reads. The monitor script writes what follows: observations, alerts, and runs marked as abandoned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import psycopg
from redis.exceptions import RedisError

from scripts.lifecycle.jobs import stop_switch
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.monitoring import observations, run_history
from scripts.lifecycle.monitoring.alerts import Alert, AlertKind
from scripts.lifecycle.monitoring.job_levels import JobView, job_alerts, key_of
from scripts.lifecycle.monitoring.observations import LONGEST_DAYS, Observation
from scripts.lifecycle.monitoring.policy_levels import PolicyView, policy_alerts
from scripts.lifecycle.monitoring.residue import Residue, measure
from scripts.lifecycle.monitoring.run_history import RunFacts
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.schedules import last_due
from scripts.utils import error_reporting
from scripts.utils.db_utils import Connection, connection_lost
from scripts.utils.errors import OpsError, PolicyFailed, StoppedEarly
from scripts.utils.logging_utils import get_logger

NO_JOB = "no_job"
# The share of its own time budget in which the monitor counts; the rest is for writing and telling what it found.
_COUNTING_SHARE = 0.7
_LEAST_SECONDS = 1.0


@dataclass
class Picture:
    """Everything that one look found."""

    now: datetime
    slot: datetime
    jobs: list[JobView] = field(default_factory=list)
    policies: list[PolicyView] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Prefixes of the keys of alerts that this look cannot judge."""
    dead: list[RunFacts] = field(default_factory=list)
    """Runs that are recorded as running and whose process is gone."""

    def observations(self) -> list[Observation]:
        """Return the observations to be written, one for each policy."""
        return [_observation(view, self.slot) for view in self.policies]


def look(run: Run) -> Picture:
    """Look at every policy's data, and at every job that leaves run records.

    Raises:
        StoppedEarly: A signal came.
    """
    now = run.database.now()
    spec = run.policies.jobs.get(run.script)
    picture = Picture(now, last_due(spec.schedule if spec else "*/15 * * * *", now))
    for name, policy in run.policies.policies.items():
        _heed_signals(run)
        view, alerts = _policy_view_whatever_it_holds(run, policy, picture)
        picture.policies.append(view)
        picture.alerts += alerts
        picture.unknown += view.unknown
        if run.policies.job_of(name) is None:
            picture.alerts.append(_unclaimed(name))
    for name in run.policies.jobs:
        job = _job_view(run, name, now)
        if job is None:
            continue
        picture.jobs.append(job)
        picture.alerts += job_alerts(job, run.settings)
        picture.dead += [each for each in job.runs if job.is_dead(each, run.settings)]
    return picture


def _heed_signals(run: Run) -> None:
    try:
        run.checkpoint()
    except StoppedEarly as stop:
        # Out of time, the monitor still tells what it has found, and reports the rest as not counted.
        if stop.stop_reason != "time_budget":
            raise


def _policy_view_whatever_it_holds(run: Run, policy: Policy, picture: Picture) -> tuple[PolicyView, list[Alert]]:
    """Look at a policy and judge it; what goes wrong with one policy's values does not end the look at the others."""
    try:
        view = _policy_view(run, policy, picture)
        return view, policy_alerts(view)
    except OpsError:
        raise
    except Exception as error:
        if isinstance(error, psycopg.Error) and connection_lost(error):
            raise
        error_reporting.report(error)
        because = f"policy {policy.name}: unexpected {error_reporting.describe(error)}"
        get_logger().error("policy_not_counted", policy=policy.name, stop_reason="bug", error=because)
        job = run.policies.job_of(policy.name) or NO_JOB
        view = PolicyView(job, policy, picture.now, None, because, [], None, None)
        return view, policy_alerts(view)


def _policy_view(run: Run, policy: Policy, picture: Picture) -> PolicyView:
    job, now = run.policies.job_of(policy.name), picture.now

    def read(
        connection: Connection,
    ) -> tuple[list[Observation], tuple[datetime, datetime, int] | None]:
        history = observations.since(connection, run.script, policy.name, now - (LONGEST_DAYS + 1) * observations.DAY)
        return history, run_history.last_completed(connection, job, policy.name) if job else None

    history, completed = run.database.read(read)
    residue: Residue | None = None
    because = None
    try:
        residue = _count(run, policy, now, completed[0] if completed else None)
    except PolicyFailed as error:
        because = str(error)
        get_logger().warning("policy_not_counted", policy=policy.name, stop_reason=error.stop_reason, error=because)
    counted = residue
    forecast = None
    if counted:
        forecast = run.database.read(
            lambda connection: observations.forecast(
                connection, history, policy=policy.name, now=now, remaining=counted.remaining, backlog=counted.late
            )
        )
    return PolicyView(job or NO_JOB, policy, now, residue, because, history, completed, forecast)


def _count(run: Run, policy: Policy, now: datetime, completed: datetime | None) -> Residue:
    left = _COUNTING_SHARE * run.budget_seconds - run.duration()
    if left < _LEAST_SECONDS:
        raise PolicyFailed("time_budget", f"the monitor's own time was used up before {policy.name}")
    seconds = min(run.settings.sla_count_seconds, left)
    return measure(run.database, run.settings, policy, now=now, completed=completed, seconds=seconds)


def _job_view(run: Run, name: str, now: datetime) -> JobView | None:
    """Return what is known of a job; None: it leaves no run records, so there is nothing to look at."""
    spec = run.policies.jobs[name]
    if spec.lock is None and not spec.policies:
        return None

    def read(connection: Connection) -> tuple[list[RunFacts], list[datetime]]:
        slots = [observations.first_slot(connection, run.script, policy) for policy in spec.policies]
        return run_history.history(connection, name, now), [first for first in slots if first]

    runs, watched = run.database.read(read)
    if not spec.policies:
        # No policy of it is observed, so the job counts as watched since its first run on record.
        first = run.database.read(lambda connection: run_history.first_run(connection, name))
        if first is None:
            return None
        watched = [first]
    switches = [switch for switch in stop_switch.status(run.database).switches if switch.stops(name)]
    return JobView(
        name=name,
        spec=spec,
        now=now,
        watched_since=min(watched, default=None),
        runs=runs,
        switch=switches[0] if switches else None,
        lock_value=_lock_value(run, spec.lock) if spec.lock else "",
    )


def _lock_value(run: Run, lock: str) -> str | None:
    try:
        with run.redis() as client:
            value = client.get(lock)
    except RedisError as error:
        get_logger().warning("redis_unavailable", lock=lock, error=type(error).__name__, effect="who lives is unknown")
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


def _unclaimed(policy: str) -> Alert:
    return Alert(
        key_of(AlertKind.UNCLAIMED, NO_JOB, policy),
        "warning",
        f"no job says that it carries out the policy {policy}",
        "whether it is carried out on time cannot be watched",
        "name it under the job's policies: in the policy file",
        AlertKind.UNCLAIMED.runbook,
    )


def _observation(view: PolicyView, at: datetime) -> Observation:
    residue = view.residue
    if residue is None:
        return Observation(view.policy.name, at, "unknown", None, None, {"job": view.job, "because": view.because})
    figures: dict[str, object] = {
        "job": view.job,
        "held": residue.held,
        "late": residue.late,
        "left_behind": residue.left_behind,
    }
    if view.forecast:
        figures |= {
            "arrivals_per_day": round(view.forecast.arrivals_per_day, 3),
            "deletions_per_day": round(view.forecast.deletions_per_day, 3),
            "days_left": view.forecast.days_left,
        }
    return Observation(view.policy.name, at, view.status, residue.remaining, residue.oldest_overdue_seconds, figures)
