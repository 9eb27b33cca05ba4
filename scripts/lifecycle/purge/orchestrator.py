"""Carry out many policies in one run: in order, each with a share of the time; a failure stops its policy alone.

A policy that belongs to another job is carried out under that job's lock and stop switch, so that the two never work at
once. A policy that its share was too short for goes on in the time that the others leave. A policy that the whole time
budget was too short for is taken first in the next run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import psycopg

from scripts.lifecycle.jobs import runs, stop_switch
from scripts.lifecycle.jobs.results import PolicyResult
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policy_order import Order, foreign_keys, in_order
from scripts.lifecycle.purge.purge import purge
from scripts.lifecycle.purge.rollout import added
from scripts.utils import error_reporting, leases
from scripts.utils.db_utils import Connection, explained
from scripts.utils.errors import (
    DatabaseUnavailable,
    ExitCode,
    NotRun,
    OpsError,
    PolicyFailed,
    StoppedEarly,
    SwitchedOff,
)
from scripts.utils.logging_utils import get_logger
from scripts.utils.redis_lock import JobLock

# In a shorter share, a policy would spend the time on its preflight and its last count.
SHORTEST_SHARE_SECONDS = 1.0


def own_policies(run: Run) -> list[str]:
    """Return the policies that no other script carries out."""
    own = [name for name in run.policies.policies if run.policies.job_of(name) in (None, run.script)]
    unclaimed = [name for name in own if run.policies.job_of(name) is None]
    if unclaimed:
        get_logger().warning(
            "policies_unclaimed",
            policies=unclaimed,
            effect="carried out, but not watched: name them under a job's policies",
        )
    return own


def ordered(run: Run, names: Sequence[str]) -> list[str]:
    """Put policies in the order in which this run takes them; log a warning for each cycle of foreign keys."""

    def look(connection: Connection) -> Order:
        policies = [run.policies.policies[name] for name in names]
        return in_order(policies, foreign_keys(connection), runs.cut_short(connection, run.script, names))

    order = run.database.read(look)
    for cycle in order.cycles:
        get_logger().warning(
            "foreign_key_cycle", tables=cycle, effect="no order suits all of them: the file's order decides"
        )
    return order.names


def carry_out(run: Run, names: Sequence[str]) -> None:
    """Carry out policies in the order given; add one result for each to ``run.results``.

    Raises:
        StoppedEarly: A signal came, the run lost its own lock, its stop switch is on, or the time budget is used up.
            Each policy that was not begun has a result that says so.
        DatabaseUnavailable: PostgreSQL went away and did not come back.
    """
    _Orchestra(run).carry_out(names)


class _Orchestra:
    def __init__(self, run: Run) -> None:
        self._run = run
        self._own = None if run.options.dry_run else run.lock

    def carry_out(self, names: Sequence[str]) -> None:
        todo = list(names)
        begun: set[str] = set()
        try:
            while todo:
                cut = []
                for place, name in enumerate(todo):
                    self._run.checkpoint()
                    left = self._run.budget_seconds - self._run.duration()
                    begun.add(name)
                    if self._one(name, left / (len(todo) - place)):
                        cut.append(name)
                left = self._run.budget_seconds - self._run.duration()
                todo = cut if cut and left / len(cut) >= SHORTEST_SHARE_SECONDS else []
        except StoppedEarly as stop:
            for name in [name for name in names if name not in begun]:
                self._not_begun(name, stop.stop_reason, f"not begun: {stop}", stop.exit_code)
            raise

    def _one(self, name: str, seconds: float) -> bool:
        """Carry out one policy; return whether its share of the time was too short.

        Args:
            name: The policy's name.
            seconds: Its share of the time.

        Raises:
            StoppedEarly: The whole run must stop.
            DatabaseUnavailable: PostgreSQL went away and did not come back.
        """
        run = self._run
        before = list(run.results)
        began = run.duration()
        failure: OpsError | None = None
        try:
            with self._its_lock(name) as lock, run.work_of(self._job_of(name), lock, seconds):
                self._work(name)
        except NotRun as error:
            self._not_begun(name, error.stop_reason, str(error), ExitCode.STOPPED_EARLY)
        except StoppedEarly as stop:
            if self._ends_everything(stop):
                raise
            failure = stop
        except DatabaseUnavailable:
            raise
        except OpsError as error:
            failure = error
        except psycopg.Error as error:
            failure = explained(error)
            if isinstance(failure, DatabaseUnavailable):
                raise failure from error
        except Exception as error:  # noqa: BLE001 - a bug in one policy must not stop the others
            error_reporting.report(error)
            failure = PolicyFailed("bug", error_reporting.describe(error))
        finally:
            self._join(name, before, failure)
        result = run.results[-1]
        get_logger().info(
            "policy_done",
            policy=name,
            status=result.status,
            stop_reason=result.stop_reason,
            records_deleted=result.records_deleted,
            records_remaining=result.records_remaining,
            duration_seconds=round(run.duration() - began, 3),
            share_seconds=round(seconds, 3),
        )
        return result.stop_reason == "time_share"

    def _work(self, name: str) -> None:
        if self._run.policies.policies[name].action != "archive_then_delete":
            purge(self._run, policy=name)
            return
        from scripts.lifecycle.purge.archive_job import archive_policy  # its import takes 0.1 s; most runs do without

        archive_policy(self._run, name)

    def _join(self, name: str, before: list[PolicyResult], failure: OpsError | None) -> None:
        """Add the result of this share to that of an earlier share, so that each policy has one result.

        Args:
            name: The policy's name.
            before: The run's results before this share.
            failure: Why the share ended early; None: it did not. A share that ended before it had a result gets one.
        """
        run = self._run
        new = run.results[len(before) :]
        if failure is not None and not new:
            run.fail(name, failure)
            new = run.results[len(before) :]
        elif failure is not None and new[-1].exit_code is ExitCode.DONE:
            # The rows are done; what failed came after them: the expiry of archives past their own period.
            run.fail(name, failure)
            reason, code = failure.stop_reason, failure.exit_code
            status = "partial" if isinstance(failure, StoppedEarly) else "failed"
            new = [replace(new[-1], status=status, stop_reason=reason, exit_code=code, error=str(failure))]
            run.results[:] = [*before, *new]
        former = [result for result in before if result.policy == name]
        if former and new:
            run.results[:] = [result for result in before if result.policy != name] + [added(former[0], new[-1])]

    def _job_of(self, name: str) -> str:
        return self._run.policies.job_of(name) or self._run.script

    @contextmanager
    def _its_lock(self, name: str) -> Iterator[JobLock | None]:
        """Take the lock of the job that the policy belongs to.

        Yields:
            The lock; None: the run's own lock covers the policy, or this is a dry run.

        Raises:
            LockHeld: That job is running; the message names the run that holds the lock.
            SwitchedOff: The job's stop switch is on.
        """
        run, job = self._run, self._job_of(name)
        if self._own is None:
            yield None
            return
        self._show_life(self._own)
        if job == run.script:
            yield None
            return
        stop_switch.refuse_if_on(run.database, job)
        wanted = run.policies.jobs[job].lock
        if wanted is None or wanted == self._own.name:
            yield None
            return
        client = run.redis()
        timeout = run.settings.redis_lock_timeout
        lock = JobLock(run.writer, client, name=wanted, timeout=timeout, run=run.correlation_id)
        lock.acquire()
        try:
            yield lock
        finally:
            lock.release()

    def _show_life(self, lock: JobLock) -> None:
        """Renew the run's own lease: the batches renew only the lease of the policy's job."""
        self._run.writer.write(lambda connection: leases.show_life(connection, lock.name, lock.fencing_token))

    def _ends_everything(self, stop: StoppedEarly) -> bool:
        """Return whether a stop ends the whole run; False: it ends one policy."""
        if stop.stop_reason == "time_budget" or stop.exit_code in (ExitCode.SIGTERM, ExitCode.SIGINT):
            return True
        if self._own is not None and self._own.lost.is_set():
            return True
        if stop.stop_reason == "stop_switch":
            try:
                stop_switch.refuse_if_on(self._run.database, self._run.script)
            except SwitchedOff:
                return True
        return stop.stop_reason == "lock_lost" and not self._still_own()

    def _still_own(self) -> bool:
        """Return whether this run still holds its lease in PostgreSQL: the lease decides, not Redis."""
        if self._own is None:
            return True
        name, token = self._own.name, self._own.fencing_token
        return self._run.database.read(lambda connection: leases.is_held(connection, name, token))

    def _not_begun(self, name: str, reason: str, message: str, code: ExitCode) -> None:
        run = self._run
        get_logger().warning("policy_not_begun", policy=name, stop_reason=reason, error=message)
        result = PolicyResult(name, "partial", reason, code, error=message, sla_status="warning")
        run.results.append(result)
        facts = {
            "script": run.script,
            "policy": name,
            "correlation_id": run.correlation_id,
            "cutoff": run.cutoff,
            "result": result,
            "version": run.settings.render_git_commit,
        }
        try:
            run.note(lambda connection: runs.note_not_begun(connection, run.policies, **facts))  # type: ignore[arg-type]
        except (psycopg.Error, OpsError) as error:
            get_logger().warning("policy_not_noted", policy=name, error=type(error).__name__)
