"""The service level of a policy's data: how far past their date rows are, and whether they become fewer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from scripts.lifecycle.monitoring.alerts import Alert, AlertKind
from scripts.lifecycle.monitoring.job_levels import key_of
from scripts.lifecycle.monitoring.observations import Forecast, Observation, Status
from scripts.lifecycle.monitoring.residue import Residue
from scripts.lifecycle.policy.policies import Policy
from scripts.utils.odd_moments import before
from scripts.utils.pages import duration

# These kinds are judged from the count. Where the count failed, none of their alerts ends.
COUNTED_KINDS = (AlertKind.OVERDUE, AlertKind.DELETES_NOTHING, AlertKind.BACKLOG)


@dataclass(frozen=True)
class PolicyView:
    """What is known of a policy's data at one moment."""

    job: str
    policy: Policy
    now: datetime
    residue: Residue | None
    """None: the rows could not be counted."""
    because: str | None
    """Why they could not be counted."""
    history: list[Observation]
    completed: tuple[datetime, datetime, int] | None
    """Cut-off, start and deleted rows of the last run whose record says ``completed``."""
    forecast: Forecast | None

    @property
    def status(self) -> Status:
        """How the data stands against the policy's thresholds."""
        if self.residue is None:
            return "unknown"
        overdue = timedelta(seconds=self.residue.oldest_overdue_seconds)
        if overdue > self.policy.overdue.critical:
            return "breached"
        return "warning" if overdue > self.policy.overdue.warning else "within_sla"

    @property
    def unknown(self) -> list[str]:
        """Keys of the alerts that this view cannot judge."""
        if self.residue:
            return []
        return [key_of(kind, self.job, self.policy.name) for kind in COUNTED_KINDS]


def policy_alerts(view: PolicyView) -> list[Alert]:
    """Return what is wrong with a policy's data."""
    if view.residue is None:
        return [_uncounted(view)]
    return [*_overdue(view, view.residue), *_deletes_nothing(view, view.residue), *_backlog(view, view.residue)]


def _key(view: PolicyView, kind: AlertKind) -> tuple[str, str]:
    return key_of(kind, view.job, view.policy.name), kind.runbook


def _uncounted(view: PolicyView) -> Alert:
    key, runbook = _key(view, AlertKind.UNCOUNTED)
    counted = [seen for seen in view.history if seen.items is not None]
    since = counted[-1].slot if counted else (view.history[0].slot if view.history else view.now)
    for_too_long = view.now - since > view.policy.overdue.warning
    last = f"last counted {since:%Y-%m-%d %H:%M} UTC: {counted[-1].items:,} rows" if counted else "never counted yet"
    return Alert(
        key,
        "critical" if for_too_long else "warning",
        f"what is past its date in {view.policy.table} cannot be counted",
        f"{view.because}; {last}",
        "whether the period is kept is unknown: mend what the reason names; the job itself will fail on it too",
        runbook,
        since,
    )


def _overdue(view: PolicyView, residue: Residue) -> Iterator[Alert]:
    if view.status == "within_sla":
        return
    overdue = view.policy.overdue
    key, runbook = _key(view, AlertKind.OVERDUE)
    yield Alert(
        key,
        "critical" if view.status == "breached" else "warning",
        f"{view.policy.table} holds data that should be gone ({view.policy.name})",
        f"the oldest row is {duration(residue.oldest_overdue_seconds)} past its date (warns at"
        f" {duration(overdue.warning.total_seconds())}, critical at {duration(overdue.critical.total_seconds())});"
        f" {residue.remaining:,} rows are past theirs, {residue.late:,} of them late; "
        + (str(view.forecast) if view.forecast else "no forecast yet: watched for less than a day"),
        f"see what {view.job}'s last run says, then run it by hand, first with --dry-run",
        runbook,
        before(view.now, residue.oldest_overdue_seconds) + overdue.warning,
    )


def _deletes_nothing(view: PolicyView, residue: Residue) -> Iterator[Alert]:
    """Find a job that reports success while the rows that it had to delete stay."""
    if view.completed is None or not residue.left_behind:
        return
    _, started, deleted = view.completed
    before = [seen for seen in view.history if seen.items is not None and seen.slot < started]
    # Only rows that were counted before the run count: a row that came later with an old date proves nothing.
    if not before or not before[-1].items:
        return
    # A run that deleted something must leave fewer rows. For a run that deleted nothing, fewer rows are no excuse:
    # somebody else may have deleted them.
    if deleted and (residue.left_behind < before[-1].items or deleted >= residue.left_behind):
        return
    key, runbook = _key(view, AlertKind.DELETES_NOTHING)
    yield Alert(
        key,
        "critical",
        f"{view.job} reports success and does not delete ({view.policy.name})",
        f"its run of {started:%Y-%m-%d %H:%M} UTC says that it completed and deleted {deleted:,} rows;"
        f" {residue.left_behind:,} rows that were due then are still in {view.policy.table}"
        f" (before it: {before[-1].items:,})",
        "compare the run's cutoff_at and policy_hash with the policy file; does it work on this very database?",
        runbook,
        started,
    )


def _backlog(view: PolicyView, residue: Residue) -> Iterator[Alert]:
    if not residue.late or view.forecast is None or view.forecast.days_left is not None:
        return
    key, runbook = _key(view, AlertKind.BACKLOG)
    yield Alert(
        key,
        "warning",
        f"the backlog in {view.policy.table} never ends ({view.policy.name})",
        str(view.forecast),
        f"give {view.job} more time or a shorter schedule, or find what slows it",
        runbook,
        None,
    )
