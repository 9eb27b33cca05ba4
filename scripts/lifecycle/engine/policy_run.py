"""Carry out one policy in one run: open its run record, do the work, count what is left, close the record.

The record's figures are counted from the data and from the audit, not from memory: a job that ends well and has deleted
nothing must be seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

import psycopg

from scripts.lifecycle.engine import dependants, obstacles
from scripts.lifecycle.engine.bounded import bounded
from scripts.lifecycle.engine.politeness import PAUSE_SHARE, Politeness
from scripts.lifecycle.engine.preflight import Cleared, TableFacts, preflight
from scripts.lifecycle.engine.selection import Selection, store_for
from scripts.lifecycle.engine.survey import Survey, survey
from scripts.lifecycle.engine.windows import measured_rows_per_block
from scripts.lifecycle.jobs import runs
from scripts.lifecycle.jobs.results import PolicyResult, seconds_paused
from scripts.lifecycle.jobs.run import Run, sla_status
from scripts.lifecycle.policy.policies import Policy
from scripts.utils import error_reporting
from scripts.utils.db_utils import Connection, Result, connection_lost, explained
from scripts.utils.errors import DatabaseUnavailable, ExitCode, OpsError, PolicyFailed, StoppedEarly
from scripts.utils.logging_utils import get_logger
from scripts.utils.retry_utils import retry
from scripts.utils.tracing import span

SURVEY_SECONDS = 1800.0
# Seconds for the last count after a signal. SIGKILL follows, on Render after 30 seconds; the run record must be closed.
SIGNALLED_SURVEY_SECONDS = 5.0
# A statement is cancelled after the budget's end and not before it, so that the budget is what stopped the run.
_GRACE_SECONDS = 0.1
# Seconds for the last count of a run that stops early for another reason, or has used its budget up.
STOPPED_SURVEY_SECONDS = 60.0


@dataclass(frozen=True)
class Ending:
    """How a policy's run ended."""

    status: str
    stop_reason: str
    exit_code: ExitCode
    error: str | None = None


def first_look(run: Run, connection: Connection, policy: Policy) -> tuple[Cleared, Survey]:
    """Check the policy against the database, measure the table and count what is due.

    Raises:
        PolicyFailed: The database contradicts the policy, a table stays locked, or keys may be personal and cannot be
            pseudonymised.
    """
    with naming_what_is_locked(policy):
        with span("preflight", policy.name):
            cleared = preflight(connection, policy, run.cutoff, blob_store=store_for(policy, run.settings))
            if refused := obstacles.try_out(connection, cleared.selection):
                raise PolicyFailed("preflight_failed", f"policy {policy.name} was not started: {'; '.join(refused)}")
        for said in bounded(connection, cleared.selection):
            get_logger().warning("row_periods", policy=policy.name, problem=said)
        with span("survey", policy.name) as facts:
            found = survey(connection, cleared.selection)
            found = replace(found, dependants=dependants.count(connection, cleared.selection, run.options.limit))
            facts["due"] = found.due
        cleared = replace(cleared, facts=_measured(connection, cleared))
    if found.unnameable:
        _require_pseudonyms(run, cleared.selection, found.unnameable)
        cleared = replace(cleared, selection=replace(cleared.selection, pseudonymous=True))
    return cleared, found


def _require_pseudonyms(run: Run, selection: Selection, rows: int) -> None:
    """See that keys that may be personal can stand in the audit as pseudonyms (docs/decisions/0022).

    Raises:
        PolicyFailed: AUDIT_PSEUDONYM_KEY is not set, or an archive would hold the keys in the clear.
    """
    policy = selection.policy
    whose = f"{policy.table} or of its dependants" if policy.dependants else policy.table
    problem = f"{rows} due rows of {whose} have a text key that is no UUID and may be personal data"
    if policy.archive and policy.person and not selection.record.personal <= set(policy.archive.personal):
        raise PolicyFailed(
            "preflight_failed",
            f"policy {policy.name} was not started: {problem}; name the key under archive.personal, so that an erasure"
            " makes it unreadable in the archive, too",
        )
    if run.settings.audit_pseudonym_key is None:
        raise PolicyFailed(
            "preflight_failed",
            f"policy {policy.name} was not started: {problem}; set AUDIT_PSEUDONYM_KEY, so that the audit names them by"
            " their pseudonyms",
        )


def _measured(connection: Connection, cleared: Cleared) -> TableFacts:
    """Return the table's facts with what was seen in it, where its statistics may say anything."""
    facts = cleared.facts
    if not facts.sweepable:
        return facts
    seen = measured_rows_per_block(connection, cleared.selection.table, facts.blocks)
    return replace(facts, rows_per_block=seen, rows=max(seen * facts.blocks, 1.0))


def within_budget(run: Run, look: Callable[[Connection], Result]) -> Result:
    """Read in one snapshot, by statements that end at the latest when the run's time is used up.

    Raises:
        StoppedEarly: The time budget, or this policy's share of it, is used up; or the run must stop anyway.
        PolicyFailed: A statement took longer than :data:`SURVEY_SECONDS`.
    """
    try:
        return run.database.read(look, statement_timeout=min(SURVEY_SECONDS, run.seconds_left + _GRACE_SECONDS))
    except psycopg.errors.QueryCanceled as error:
        run.checkpoint()
        raise PolicyFailed(
            "count_timeout",
            f"a count was not done within {SURVEY_SECONDS:.0f} s: see that the rules' columns are indexed and that the"
            " table is analysed",
        ) from error


@contextmanager
def naming_what_is_locked(policy: Policy) -> Iterator[None]:
    """Name the tables that a lock time-out may be about: PostgreSQL does not say which one it waited for.

    Raises:
        PolicyFailed: A lock could not be had in time.
    """
    try:
        yield
    except psycopg.errors.LockNotAvailable as error:
        tables = " or ".join(sorted({policy.table, *(dependant.table for dependant in policy.dependants)}))
        raise PolicyFailed(
            "table_locked",
            f"policy {policy.name}: {tables} stays locked by another session, even against reading; look for the"
            " session in pg_stat_activity, have it end, and run again",
        ) from error


class PolicyRun(ABC):
    """One policy in one real run, from its record's first line to its last."""

    def __init__(self, run: Run, policy: Policy) -> None:
        self._run = run
        self._policy = policy
        self._name = policy.name
        self._log = get_logger().bind(policy=policy.name)
        self._selection: Selection | None = None
        self._residue: Survey | None = None
        self._deleted = 0
        self._batches = 0
        self._partitions: list[str] = []
        self._politeness = Politeness(
            allowance=PAUSE_SHARE * run.budget_seconds - seconds_paused(run.results),
            ours=lambda: run.database.transactions,
        )
        self._queued = 0
        self._last_look_seconds = SURVEY_SECONDS

    def carry_out(self) -> None:
        """Run the policy from its record's first line to its last."""
        with error_reporting.about(self._name), span("policy", self._name) as facts:
            self._carry_out()
            facts["records_deleted"] = self._run.results[-1].records_deleted

    def _carry_out(self) -> None:
        run_id = self._open()
        ending = Ending("failed", "bug", ExitCode.FAILED)
        try:
            ending = self.work(run_id)
        except StoppedEarly as stop:
            by_signal = stop.exit_code in (ExitCode.SIGTERM, ExitCode.SIGINT)
            status = "interrupted" if by_signal else "partial"
            self._last_look_seconds = SIGNALLED_SURVEY_SECONDS if by_signal else STOPPED_SURVEY_SECONDS
            ending = Ending(status, stop.stop_reason, stop.exit_code, str(stop))
            raise
        except DatabaseUnavailable as error:
            ending = Ending("failed", "database_unavailable", error.exit_code, str(error))
            raise
        except PolicyFailed as error:
            ending = Ending("failed", error.stop_reason, error.exit_code, str(error))
        except psycopg.Error as error:
            known = explained(error)
            if isinstance(known, DatabaseUnavailable):
                ending = Ending("failed", known.stop_reason, known.exit_code, str(known))
                raise known from error
            said = obstacles.blame(self._run.database, self._policy, error)
            ending = Ending("failed", known.stop_reason, known.exit_code, said)
        finally:
            if ending.status == "failed":
                self._log.error("policy_failed", stop_reason=ending.stop_reason, error=ending.error)
            self._close(run_id, ending)

    @abstractmethod
    def work(self, run_id: UUID) -> Ending:
        """Do what this run is for.

        Raises:
            StoppedEarly: The run must stop.
            PolicyFailed: The policy cannot be carried out.
        """

    def _open(self) -> UUID:
        run_id = uuid4()
        self._run.writer.write(
            lambda connection: runs.open_run(
                connection,
                run_id,
                script=self._run.script,
                policy=self._name,
                correlation_id=self._run.correlation_id,
                cutoff=self._run.cutoff,
                policy_hash=self._run.policies.hash,
                fencing_token=self._run.lock.fencing_token,
                budget_seconds=self._run.budget_seconds,
                version=self._run.settings.render_git_commit,
                trace_id=self._run.trace.trace_id,
            )
        )
        return run_id

    def _survey(self, selection: Selection, seconds: float = SURVEY_SECONDS) -> Survey:
        with naming_what_is_locked(self._policy):
            return self._run.database.read(lambda connection: survey(connection, selection), statement_timeout=seconds)

    def _counted(self, selection: Selection) -> Survey:
        """Count while the run is at work, within its time budget."""
        with naming_what_is_locked(self._policy):
            return within_budget(self._run, lambda connection: survey(connection, selection))

    def _close(self, run_id: UUID, ending: Ending) -> None:
        """Close the run record with figures from the data and the audit; from memory only if the database is gone."""
        deleted, with_them = self._deleted, 0
        try:
            with self._run.database.snapshot() as connection:
                deleted = runs.audited_rows(connection, run_id, self._policy.table)
                with_them = runs.audited_dependants(connection, run_id)
            if self._residue is None and self._selection is not None:
                self._residue = self._survey(self._selection, self._last_look_seconds)
        except (psycopg.Error, OpsError) as error:
            self._log.warning("residue_not_counted", error=type(error).__name__)
        found, overdue = self._residue, self._policy.overdue
        age = found.oldest_overdue_seconds if found else None
        result = PolicyResult(
            policy=self._name,
            status=ending.status,
            stop_reason=ending.stop_reason,
            exit_code=ending.exit_code,
            error=ending.error,
            records_deleted=deleted,
            dependants_deleted=with_them,
            records_held=found.held if found else None,
            records_queued=self._queued,
            records_remaining=found.remaining if found else None,
            oldest_overdue_seconds=age,
            batches=self._batches,
            partitions=tuple(self._partitions),
            pauses=self._politeness.pauses,
            sla_status=sla_status(self._run, age, overdue.warning, overdue.critical),
        )
        self._run.results.append(result)
        try:
            retry(
                lambda: runs.close_run(self._run.writer, run_id, result),
                on=connection_lost,
                attempts=4,
                seconds=10.0,
            )
        except (psycopg.Error, DatabaseUnavailable) as error:
            self._log.error("run_record_not_closed", error=type(error).__name__)
