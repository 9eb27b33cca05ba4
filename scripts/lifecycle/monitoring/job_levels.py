"""The service level of a job's runs: whether they start, end, succeed, and keep to their budget and their own speed.

Each rule is one function and looks at the present state only, so an alert ends when its rule is met no more. Times are
by the database's clock. The thresholds are in scripts/sla-monitoring/README.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from scripts.lifecycle.jobs.stop_switch import Switch
from scripts.lifecycle.monitoring.alerts import Alert, AlertKind
from scripts.lifecycle.monitoring.run_history import RunFacts, throughput
from scripts.lifecycle.policy.job_specs import JobSpec
from scripts.lifecycle.policy.schedules import last_due
from scripts.utils.alert_sinks import Severity
from scripts.utils.pages import duration
from scripts.utils.settings import Settings

SCOPE = "sla:"
SUCCESS_PERCENT = 95.0
FAILURES_IN_A_ROW = 3
LOCK_CONFLICTS = 3
# With fewer runs a day a single failure is below the rate, and would stay below it although the next run succeeded.
RATE_RUNS = 20
_DAY = timedelta(days=1)
# The scheduler's clock may be ahead of the database's.
_EARLY = timedelta(minutes=1)


@dataclass(frozen=True)
class JobView:
    """What is known of a job at one moment."""

    name: str
    spec: JobSpec
    now: datetime
    watched_since: datetime | None
    runs: list[RunFacts]
    """Newest first."""
    switch: Switch | None
    """The stop switch that keeps it from starting."""
    lock_value: str | None
    """The value of the lock in Redis; empty: the lock is free; None: Redis could not be asked."""

    @property
    def attempts(self) -> list[RunFacts]:
        """The runs that were not skipped."""
        return [run for run in self.runs if run.outcome != "skipped"]

    def silent(self, run: RunFacts) -> float:
        """Return the seconds since a run's last heartbeat."""
        return (self.now - run.heartbeat_at).total_seconds()

    def is_dead(self, run: RunFacts, settings: Settings) -> bool:
        """Tell whether the process of a run that is recorded as running is gone.

        A live process renews its lock in Redis, also while it counts a large table and writes no heartbeat.
        """
        silent_for_long = self.silent(run) > settings.redis_lock_timeout
        holder = (self.lock_value or "").partition(" ")[0]
        return (
            run.outcome == "running"
            and silent_for_long
            and self.lock_value is not None
            and holder != run.correlation_id
        )


def job_alerts(view: JobView, settings: Settings) -> list[Alert]:
    """Return what is wrong with a job's runs."""
    rules = (_missed, _killed, _stuck, _in_a_row, _rate, _budget, _throughput, _lock)
    return [alert for rule in rules for alert in rule(view, settings)]


def key_of(kind: AlertKind, *names: str) -> str:
    """Return an alert's key: the job, perhaps the policy, and the kind."""
    return f"{SCOPE}{':'.join((*names, kind))}"


def _alert(
    view: JobView,
    kind: AlertKind,
    severity: Severity,
    what: str,
    how_bad: str,
    what_to_do: str,
    since: datetime | None,
) -> Alert:
    return Alert(key_of(kind, view.name), severity, what, how_bad, what_to_do, kind.runbook, since)


def _missed(view: JobView, settings: Settings) -> Iterator[Alert]:
    grace = timedelta(minutes=settings.sla_start_grace_minutes)
    due = last_due(view.spec.schedule, view.now - grace)
    # A job that was not watched at the time may not have existed yet.
    watched = view.watched_since is not None and view.watched_since <= due
    # A run that still works at the next tick delays it: the scheduler starts no second run beside it.
    started = any(
        run.started_at >= due - _EARLY or (run.outcome == "running" and not view.is_dead(run, settings))
        for run in view.runs
    )
    if not watched or started:
        return
    last = view.attempts[0] if view.attempts else None
    before = f"the last run started {_ago(view, last.started_at)} ago" if last else "no run is on record"
    how_bad = f"due {due:%Y-%m-%d %H:%M} UTC, {_ago(view, due)} ago; {before}"
    if view.switch:
        yield _alert(
            view,
            AlertKind.SWITCHED_OFF,
            "warning",
            f"{view.name} is kept from starting by the stop switch",
            f"{how_bad}; {view.switch}",
            f"ask {view.switch.stopped_by}, then: stop_switch.py go --job {view.name}",
            max(due, view.switch.stopped_at),
        )
        return
    yield _alert(
        view,
        AlertKind.MISSED,
        "critical",
        f"{view.name} did not start on its schedule",
        how_bad,
        f"look for the service in the scheduler's dashboard, then start scripts/…/{view.name}.py by hand",
        due + grace,
    )


def _killed(view: JobView, settings: Settings) -> Iterator[Alert]:
    last = view.attempts[0] if view.attempts else None
    if last is None or not (last.outcome == "abandoned" or view.is_dead(last, settings)):
        return
    held = view.spec.lock or "no lock"
    yield _alert(
        view,
        AlertKind.KILLED,
        "critical",
        f"{view.name} was killed in the middle of a run",
        f"{last.who} held {held} with token {last.fencing_token}; started {_utc(last.started_at)}, last sign of life"
        f" {_utc(last.heartbeat_at)}; {last.deleted:,} records are done and audited",
        f"start {view.name}.py again: it carries on at once; then look for what killed it (memory, deploy, time)",
        last.heartbeat_at,
    )


def _stuck(view: JobView, settings: Settings) -> Iterator[Alert]:
    for run in view.attempts[:1]:
        silent = view.silent(run)
        if run.outcome != "running" or view.is_dead(run, settings) or silent <= settings.sla_stuck_minutes * 60:
            continue
        alive = "its process holds its lock" if view.lock_value else "Redis cannot be asked whether it still lives"
        yield _alert(
            view,
            AlertKind.STUCK,
            "critical",
            f"{view.name} has stopped making progress",
            f"{run.who} has been silent for {duration(silent)}; {alive}; {run.deleted:,} records done",
            "look for its session in pg_stat_activity and what it waits for; stop_switch.py stops it",
            run.heartbeat_at,
        )


def _in_a_row(view: JobView, _settings: Settings) -> Iterator[Alert]:
    ended = [run for run in view.attempts if run.outcome not in ("running", "stopped")]
    bad = 0
    while bad < len(ended) and ended[bad].outcome != "done":
        bad += 1
    if bad >= FAILURES_IN_A_ROW:
        reasons = sorted({run.stop_reason or run.outcome for run in ended[:bad]})
        yield _alert(
            view,
            AlertKind.FAILURES,
            "critical",
            f"{view.name} has failed {bad} times in a row",
            f"since {_utc(ended[bad - 1].started_at)}; reasons: {', '.join(reasons)}",
            f"read the closing line of run {ended[0].correlation_id}, mend it, run again",
            ended[bad - 1].started_at,
        )


def _rate(view: JobView, _settings: Settings) -> Iterator[Alert]:
    counted = [
        run
        for run in view.attempts
        if run.outcome in ("done", "failed", "abandoned") and run.started_at > view.now - _DAY
    ]
    done = sum(run.outcome == "done" for run in counted)
    if not counted or 100 * done / len(counted) >= SUCCESS_PERCENT:
        return
    if len(counted) < RATE_RUNS and counted[0].outcome == "done":
        return
    bad = [run for run in counted if run.outcome != "done"]
    yield _alert(
        view,
        AlertKind.SUCCESS_RATE,
        "critical",
        f"{view.name} fails too often",
        f"{done} of {len(counted)} runs of the last 24 h were done ({100 * done / len(counted):.0f} %, at least"
        f" {SUCCESS_PERCENT:.0f} % wanted); last reason: {bad[0].stop_reason or bad[0].outcome}",
        f"read the closing line of run {bad[0].correlation_id}, mend it, run again",
        bad[-1].started_at,
    )


def budget_percent(view: JobView, run: RunFacts, settings: Settings) -> float:
    """Return the share of its time budget that a run used, or has used until now."""
    budget = settings.cleanup_max_duration_seconds or view.spec.budget.total_seconds()
    # A run that was given more time by hand is measured by that time.
    return 100 * run.seconds(view.now) / max(budget, run.budget_seconds or 0.0)


def _budget(view: JobView, settings: Settings) -> Iterator[Alert]:
    last = next((run for run in view.attempts if run.outcome != "abandoned"), None)
    if last is None or view.is_dead(last, settings):
        return
    percent = budget_percent(view, last, settings)
    if percent < settings.sla_warning_threshold_percent:
        return
    critical = percent >= settings.sla_critical_threshold_percent
    yield _alert(
        view,
        AlertKind.BUDGET,
        "critical" if critical else "warning",
        f"{view.name} " + ("used up its time budget" if critical else "comes close to its time budget"),
        f"{last.who}: {duration(last.seconds(view.now))}, {percent:.0f} % of the budget (warns at"
        f" {settings.sla_warning_threshold_percent} %, critical at {settings.sla_critical_threshold_percent} %)",
        "look at the run's pauses and batches; more due than usual needs more time once, a slow database needs care",
        last.started_at,
    )


def _throughput(view: JobView, _settings: Settings) -> Iterator[Alert]:
    rates = throughput(view.attempts, view.now)
    if rates is None or rates[0] >= rates[1] / 2:
        return
    yield _alert(
        view,
        AlertKind.THROUGHPUT,
        "warning",
        f"{view.name} is less than half as fast as usual",
        f"{rates[0]:,.1f} records a second; the median of its earlier runs is {rates[1]:,.1f}",
        "look at the pauses in ops.job_runs: who else is at work, who waits, does a replica lag?",
        None,
    )


def _lock(view: JobView, _settings: Settings) -> Iterator[Alert]:
    skipped = [run for run in view.runs if run.outcome == "skipped" and run.started_at > view.now - _DAY]
    newest = bool(view.runs) and view.runs[0].outcome == "skipped"
    if not (skipped and newest) and len(skipped) < LOCK_CONFLICTS:
        return
    holder = f"now held by {view.lock_value}" if view.lock_value else "now free"
    yield _alert(
        view,
        AlertKind.LOCK,
        "warning",
        f"{view.name} finds its lock held",
        f"{len(skipped)} runs of the last 24 h did not run; {view.spec.lock} is {holder}",
        "two services with one job, or a run longer than its schedule? redis-cli DEL releases a stuck lock",
        skipped[-1].started_at,
    )


def _ago(view: JobView, moment: datetime) -> str:
    return duration((view.now - moment).total_seconds())


def _utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
