"""The purge: what every deletion by age goes through.

Preflight, one cut-off, cap, batches by the cheaper of two paths, a closing pass for rows that moved, and the residue:
what is still past its date is counted by a fresh query, because a job that is green and deletes nothing is the failure
that everybody else has. A dry run is the same up to the first batch, in a transaction that cannot write.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from uuid import UUID

import psycopg
from psycopg import sql

from scripts.lifecycle import queue, runs
from scripts.lifecycle.caps import refusal
from scripts.lifecycle.deleter import Deleter
from scripts.lifecycle.policies import Policy
from scripts.lifecycle.politeness import PAUSE_SHARE, Politeness
from scripts.lifecycle.preflight import Cleared, check_access_path, preflight
from scripts.lifecycle.results import PolicyResult, seconds_paused
from scripts.lifecycle.selection import Selection
from scripts.lifecycle.survey import Survey, survey
from scripts.lifecycle.windows import IndexWalk, Path, Sweep
from scripts.utils.db_utils import Connection, connection_lost
from scripts.utils.errors import (
    DatabaseUnavailable,
    ExitCode,
    PolicyFailed,
    StoppedEarly,
    describe_database_error,
)
from scripts.utils.logging_utils import get_logger
from scripts.utils.retry_utils import retry
from scripts.utils.run import Run, sla_status

# From this share of rows on, reading every block once is cheaper than going through the index: half the time and a
# quarter of the WAL (benchmarks/README.md).
SWEEP_SHARE = 0.05
SURVEY_SECONDS = 1800.0
# The queue item of a policy whose rows other tables still refer to.
REFERENCED = "foreign_key_violation"


@dataclass(frozen=True)
class Ending:
    """How a policy's run ended."""

    status: str
    stop_reason: str
    exit_code: ExitCode
    error: str | None = None


def purge(run: Run, policy: str) -> None:
    """Delete what a policy says has expired, or in a dry run say what would be deleted.

    The result is added to ``run.results``. A policy that fails is recorded and does not stop the others.

    Raises:
        StoppedEarly: A signal, the time budget, the stop switch, a lost lock or an open circuit breaker.
        DatabaseUnavailable: PostgreSQL went away for good.
    """
    rules = run.policies.policies[policy]
    if run.options.dry_run:
        _predict(run, rules)
    else:
        _Purge(run, rules).carry_out()


def _predict(run: Run, policy: Policy) -> None:
    try:
        with run.database.transaction(read_only=True, statement_timeout=SURVEY_SECONDS) as connection:
            cleared, found = _look(run, connection, policy)
            refused = refusal(run, connection, policy, found)
            to_queue = sum(
                queue.count_new(connection, cleared.selection, name)
                for name, exception in policy.exceptions.items()
                if exception.queue
            )
            if found.referenced and not queue.is_open(connection, REFERENCED, policy.table, policy.name):
                to_queue += 1
    except PolicyFailed as error:
        run.fail(policy.name, error)
        return
    except psycopg.Error as error:
        run.fail(policy.name, PolicyFailed("database_error", f"policy {policy.name}: {describe_database_error(error)}"))
        return
    limit = run.options.limit
    deleted = found.removable if limit is None else min(limit, found.removable)
    run.results.append(
        PolicyResult(
            policy=policy.name,
            status="failed" if refused else "completed",
            stop_reason="would_be_refused" if refused else "dry_run",
            exit_code=ExitCode.FAILED if refused else ExitCode.DONE,
            records_deleted=deleted,
            records_held=found.held,
            records_queued=to_queue,
            records_remaining=found.remaining - deleted,
            oldest_overdue_seconds=found.oldest_overdue_seconds,
            by_rule=found.by_rule,
            sla_status=sla_status(run, found.oldest_overdue_seconds, policy.overdue.warning, policy.overdue.critical),
            error=refused,
        )
    )


def _look(run: Run, connection: Connection, policy: Policy) -> tuple[Cleared, Survey]:
    """Check the policy against the database, and count."""
    cleared = preflight(connection, policy, run.cutoff)
    found = survey(connection, cleared.selection)
    if found.unnameable:
        whose = f"{policy.table} or of its dependants" if policy.dependants else policy.table
        raise PolicyFailed(
            "preflight_failed",
            f"policy {policy.name} was not started: {found.unnameable} due rows of {whose} have a text key"
            " that is no UUID and may be personal data, which the audit must not hold",
        )
    return cleared, found


class _Purge:
    """One policy in one real run."""

    def __init__(self, run: Run, policy: Policy) -> None:
        self._run = run
        self._policy = policy
        self._log = get_logger().bind(policy=policy.name)
        self._selection: Selection | None = None
        self._residue: Survey | None = None
        self._batches = 0
        self._politeness = Politeness(allowance=PAUSE_SHARE * run.budget_seconds - seconds_paused(run.results))
        self._queued = 0

    def carry_out(self) -> None:
        """Run the policy from its record's first line to its last."""
        run_id = self._open()
        ending = Ending("failed", "bug", ExitCode.FAILED)
        try:
            ending = self._work(run_id)
        except StoppedEarly as stop:
            by_signal = stop.exit_code in (ExitCode.SIGTERM, ExitCode.SIGINT)
            status = "interrupted" if by_signal else "partial"
            ending = Ending(status, stop.stop_reason, stop.exit_code, str(stop))
            raise
        except DatabaseUnavailable as error:
            ending = Ending("failed", "database_unavailable", error.exit_code, str(error))
            raise
        except PolicyFailed as error:
            ending = Ending("failed", error.stop_reason, error.exit_code, str(error))
        except psycopg.Error as error:
            ending = Ending("failed", "database_error", ExitCode.FAILED, describe_database_error(error))
        finally:
            if ending.status == "failed":
                self._log.error("policy_failed", stop_reason=ending.stop_reason, error=ending.error)
            self._close(run_id, ending)

    def _open(self) -> UUID:
        with self._run.database.transaction() as connection:
            return runs.open_run(
                connection,
                script=self._run.script,
                policy=self._policy.name,
                correlation_id=self._run.correlation_id,
                cutoff=self._run.cutoff,
                policy_hash=self._run.policies.hash,
                fencing_token=self._run.lock.fencing_token,
                budget_seconds=self._run.budget_seconds,
                version=self._run.settings.render_git_commit,
            )

    def _work(self, run_id: UUID) -> Ending:
        with self._run.database.transaction(read_only=True, statement_timeout=SURVEY_SECONDS) as connection:
            # Before the counting, so that the first batch already knows whether others were at work meanwhile.
            self._politeness.begin(connection)
            cleared, found = _look(self._run, connection, self._policy)
            self._selection = cleared.selection
            refused = refusal(self._run, connection, self._policy, found)
            if refused:
                raise PolicyFailed("cap_exceeded", f"policy {self._policy.name} deleted nothing: {refused}")
        self._run.expect(self._policy.name, found.removable)
        if found.referenced:
            self._queued += self._queue_referenced(cleared.selection, found)
        with closing(Deleter(self._run, cleared.selection, run_id, self._politeness)) as deleter:
            try:
                self._delete(deleter, cleared, found)
            finally:
                self._batches = deleter.batches
                self._queued += deleter.queued
        self._queued += self._queue_excepted(cleared)
        return self._judge(deleter)

    def _delete(self, deleter: Deleter, cleared: Cleared, found: Survey) -> None:
        paths = self._paths(deleter, cleared, found)
        if self._politeness.not_visible:
            self._log.info(
                "politeness_not_visible",
                what=self._politeness.not_visible,
                effect="not heeded; replica_lag needs the role pg_read_all_stats",
            )
        self._log.info(
            "policy_started",
            due=found.due,
            removable=found.removable,
            held=found.held,
            path=[path.name for path in paths],
            batch_rows=deleter.batch_rows,
        )
        for path in paths:
            deleter.follow(path)
        residue = self._survey(cleared.selection)
        # Rows that were locked, or moved behind the sweep, get a second chance; refused ones do not.
        if residue.removable > len(deleter.poison) and not deleter.limit_reached:
            for path in _walks(cleared.selection):
                deleter.follow(path)
            residue = self._survey(cleared.selection)
        self._residue = residue

    def _judge(self, deleter: Deleter) -> Ending:
        code = ExitCode.NEEDS_A_PERSON if self._queued else ExitCode.DONE
        left = self._residue.removable - len(deleter.poison) if self._residue else 0
        if left <= 0:
            return Ending("completed", "done", code)
        if deleter.limit_reached:
            return Ending("partial", "limit_reached", code)
        if deleter.locked:
            message = f"{left} due rows stayed locked by other sessions"
            return Ending("partial", "rows_locked", ExitCode.STOPPED_EARLY, message)
        message = f"{left} due rows are still there although nothing refused them: look for a trigger that keeps them"
        return Ending("partial", "rows_left", ExitCode.STOPPED_EARLY, message)

    def _queue_referenced(self, selection: Selection, found: Survey) -> int:
        item = queue.Item(
            item_type=REFERENCED,
            resource_type=self._policy.table,
            priority="medium",
            reason="rows past their date are still referred to by other tables",
            raised_by=f"system:{self._run.script}",
            context={
                "policy": self._policy.name,
                "rows": found.referenced,
                "constraints": [foreign_key.name for foreign_key in selection.refusing],
                "tables": sorted({foreign_key.table for foreign_key in selection.refusing}),
            },
        )
        return queue.raise_item(self._run.database, self._run.settings, item, self._policy.name)

    def _queue_excepted(self, cleared: Cleared) -> int:
        new = 0
        for name, exception in self._policy.exceptions.items():
            if not exception.queue:
                continue
            overdue = queue.overdue_exception(cleared.selection, name)
            walk = IndexWalk(cleared.selection, exception.queue.anchor, overdue)
            new += queue.raise_excepted(
                self._run.database,
                self._run.settings,
                cleared.selection,
                name,
                _sweep(cleared) if cleared.facts.sweepable else walk,
                raised_by=f"system:{self._run.script}",
                between_pages=self._run.checkpoint,
            )
        return new

    def _paths(self, deleter: Deleter, cleared: Cleared, found: Survey) -> list[Path]:
        facts = cleared.facts
        suits = (
            facts.sweepable
            and found.removable >= SWEEP_SHARE * facts.rows
            # A block is the smallest piece of a sweep: a smaller batch, or an exact limit, needs the index.
            and deleter.batch_rows >= facts.rows_per_block
            and self._run.options.limit is None
        )
        paths: list[Path] = [_sweep(cleared)] if suits else _walks(cleared.selection)
        if facts.large:
            with self._run.database.transaction(read_only=True, statement_timeout=SURVEY_SECONDS) as connection:
                for path in paths:
                    check_access_path(connection, cleared.selection, path, deleter.batch_rows)
        return paths

    def _survey(self, selection: Selection) -> Survey:
        return self._run.database.read(
            lambda connection: survey(connection, selection), statement_timeout=SURVEY_SECONDS
        )

    def _close(self, run_id: UUID, ending: Ending) -> None:
        """Record what became of the run, counted from the data and the audit, not from memory."""
        deleted = 0
        try:
            with self._run.database.transaction(read_only=True) as connection:
                deleted = runs.audited_rows(connection, run_id, self._policy.table)
            if self._residue is None and self._selection is not None:
                self._residue = self._survey(self._selection)
        except (psycopg.Error, DatabaseUnavailable) as error:
            self._log.warning("residue_not_counted", error=type(error).__name__)
        found, overdue = self._residue, self._policy.overdue
        age = found.oldest_overdue_seconds if found else None
        result = PolicyResult(
            policy=self._policy.name,
            status=ending.status,
            stop_reason=ending.stop_reason,
            exit_code=ending.exit_code,
            error=ending.error,
            records_deleted=deleted,
            records_held=found.held if found else None,
            records_queued=self._queued,
            records_remaining=found.remaining if found else None,
            oldest_overdue_seconds=age,
            batches=self._batches,
            pauses=self._politeness.pauses,
            sla_status=sla_status(self._run, age, overdue.warning, overdue.critical),
        )
        self._run.results.append(result)
        try:
            retry(
                lambda: runs.close_run(self._run.database, run_id, result),
                on=connection_lost,
                attempts=4,
                seconds=10.0,
            )
        except (psycopg.Error, DatabaseUnavailable) as error:
            self._log.error("run_record_not_closed", error=type(error).__name__)


def _sweep(cleared: Cleared) -> Sweep:
    return Sweep(cleared.selection.table, blocks=cleared.facts.blocks, rows_per_block=cleared.facts.rows_per_block)


def _walks(selection: Selection) -> list[Path]:
    """One walk along each rule's anchor."""
    return [
        IndexWalk(
            selection,
            selection.policy.rules[name].anchor,
            sql.SQL("t.{} < {}").format(
                sql.Identifier(selection.policy.rules[name].anchor),
                selection.moment(selection.policy.rules[name].anchor, f"due_{name}"),
            ),
        )
        for name in selection.due_before
    ]
