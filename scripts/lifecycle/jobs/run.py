"""A job, and one run of it: the object that a script's work is given, and that collects its results."""

from __future__ import annotations

import argparse
import getpass
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from types import FrameType
from typing import TypeVar
from uuid import uuid4

import redis

from scripts.lifecycle.jobs.results import SLA_ORDER, PolicyResult, SlaStatus
from scripts.lifecycle.jobs.terminal import Display
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.utils import metrics_utils
from scripts.utils.db_utils import Connection, Database, ReadOnlyDatabase, writable
from scripts.utils.errors import ExitCode, Misconfigured, OpsError, StoppedEarly
from scripts.utils.logging_utils import get_logger
from scripts.utils.metrics_utils import Figure
from scripts.utils.redis_lock import JobLock, connect_redis
from scripts.utils.settings import Settings, handle
from scripts.utils.tracing import Trace

_PAUSE_SLICE_SECONDS = 0.05

AnyDatabase = TypeVar("AnyDatabase", bound=ReadOnlyDatabase)


class Kind(Enum):
    """What :func:`main` does around a job's work."""

    PURGES = auto()
    """It takes the job's lock, knows ``--dry-run`` and the caps, and closes with what was deleted."""
    CHANGES_DATA = auto()
    """It takes the job's lock and knows ``--dry-run``, but carries out no policy and has no caps."""
    TAKES_NO_LOCK = auto()
    """It is a monitor, a report, or a command of an operator: it has neither lock nor caps."""
    HEALTH_CHECK = auto()
    """It takes no lock, and needs no database: it reports itself that the database is away."""


@dataclass(frozen=True)
class Job:
    """What a script is.

    Args:
        name: The script's name without ``.py``; also its key under ``jobs:`` in the policy file.
        work: What it does, given the run.
        description: First line of ``--help``.
        kind: What is around its work: lock, caps, connection.
        events: Prefix of its start and closing events.
        arguments: Adds flags of its own.
        commands: Of a job with verbs: those that are an operator's commands, with neither lock nor caps.
        spelled: Returns the command line as the parser knows it, from one as earlier versions knew it.
    """

    name: str
    work: Callable[[Run], None]
    description: str
    kind: Kind = Kind.PURGES
    events: str = "cleanup"
    arguments: Callable[[argparse.ArgumentParser], None] | None = None
    commands: frozenset[str] = frozenset()
    spelled: Callable[[list[str]], list[str]] = list

    @property
    def purges(self) -> bool:
        """Whether it deletes by policy: knows the caps, and closes with what was deleted."""
        return self.kind is Kind.PURGES

    @property
    def changes_data(self) -> bool:
        """Whether it takes the job's lock, and knows ``--dry-run``."""
        return self.kind in (Kind.PURGES, Kind.CHANGES_DATA)


@dataclass(frozen=True)
class Options:
    """The run's switches after flags, environment and policy file were weighed; durations in seconds."""

    dry_run: bool
    limit: int | None
    batch_size: int | None
    max_duration: float
    confirm_cap: int | None
    as_of: datetime | None
    rollout: bool
    flags: argparse.Namespace


class Run:
    """One run of a script: what its work needs, and where its results go."""

    def __init__(self, job: Job, settings: Settings, policies: PolicySet, options: Options, display: Display) -> None:
        self.script = job.name
        self.job = job.name
        """The name of the job that the run works for now; :meth:`work_of` sets another one."""
        self.settings = settings
        self.policies = policies
        self.options = options
        self.display = display
        self.correlation_id = uuid4().hex[:16]
        self.trace = Trace.taken_up(settings.traceparent)
        self.budget_seconds = options.max_duration
        self.results: list[PolicyResult] = []
        self.facts: dict[str, object] = {}
        """Facts for the closing line of a run that carries out no policy."""
        self.ending = ExitCode.DONE
        """Exit code of a run that carries out no policy: 4 if something new needs a person, 3 if work is left."""
        self.database: ReadOnlyDatabase = self._pool(ReadOnlyDatabase if options.dry_run else Database)
        """For what looks; what writes goes through :attr:`writer`."""
        self.started = time.monotonic()
        self._signal: signal.Signals | None = None
        self._lock: JobLock | None = None
        self._outer: list[JobLock] = []
        self._until: float | None = None
        self._cutoff: datetime | None = None

    def _pool(self, kind: type[AnyDatabase]) -> AnyDatabase:
        return kind(
            self.settings.database_url.get_secret_value(),
            application_name=f"{self.job} {self.correlation_id}",
            max_size=self.settings.db_pool_size + self.settings.db_max_overflow,
        )

    @property
    def writer(self) -> Database:
        """The database of a real run, for what writes.

        Raises:
            RuntimeError: This is a dry run, which has none.
        """
        return writable(self.database)

    def note(self, work: Callable[[Connection], object]) -> None:
        """Write what only a real run leaves behind, such as an observation; a dry run leaves nothing."""
        if isinstance(self.database, Database):
            self.database.write(work)

    def emit(self, figures: Sequence[Figure]) -> None:
        """Send figures to the sinks that are set; a dry run has none."""
        if not self.options.dry_run:
            metrics_utils.emit(self.settings, self.script, figures)

    def redis(self) -> redis.Redis:
        """Return a client of Redis; a dry run's cannot write."""
        url = self.settings.redis_url.get_secret_value()
        return connect_redis(url, self.script, read_only=self.options.dry_run)

    @contextmanager
    def rehearsal(self) -> Iterator[Database]:
        """Lend a database that writes, also to a dry run: the one exception, for ``restore --dry-run``.

        It fills a temporary table, tries the rows against the target's constraints, and rolls the transaction back.
        """
        if isinstance(self.database, Database):
            yield self.database
            return
        database = self._pool(Database)
        database.open()
        try:
            yield database
        finally:
            database.close()

    @property
    def cutoff(self) -> datetime:
        """The one moment that decides what is due in this run, from the database's clock, time-zone aware.

        Raises:
            RuntimeError: The run has none yet.
        """
        if self._cutoff is None:
            raise RuntimeError("this run has no cut-off yet")
        return self._cutoff

    def set_cutoff(self, now: datetime) -> None:
        """Take ``--as-of`` or the database's now.

        Raises:
            Misconfigured: A real run would go beyond the database's clock.
        """
        if self.options.as_of and self.options.as_of > now and not self.options.dry_run:
            raise Misconfigured("--as-of lies in the future: a real run never goes beyond the database's clock")
        self._cutoff = self.options.as_of or now

    def judge_by(self, moment: datetime) -> None:
        """Take an earlier cut-off than the run's own: that of a plan.

        Raises:
            Misconfigured: It lies beyond the run's own.
        """
        if moment > self.cutoff:
            raise Misconfigured("the plan is about the future: a real run never goes beyond the database's clock")
        self._cutoff = moment

    @property
    def operator(self) -> str:
        """Who is at the shell: ``--operator``, else OPERATOR, else the login name.

        Raises:
            Misconfigured: It is no handle; the audit must not hold an e-mail address.
        """
        named: str | None = self.options.flags.operator
        return checked_operator(named or self.settings.operator or getpass.getuser())

    @property
    def lock(self) -> JobLock:
        """The job's lock; only a real run of a job that changes data has one.

        Raises:
            RuntimeError: This run has none.
        """
        if self._lock is None:
            raise RuntimeError("this run holds no lock")
        return self._lock

    def take_lock(self, lock: JobLock) -> None:
        """Acquire the job's lock for the length of the run."""
        lock.acquire()
        self._lock = lock

    @contextmanager
    def work_of(self, job: str, lock: JobLock | None, seconds: float) -> Iterator[None]:
        """Run temporarily as another job: its name, its lock and a budget.

        The run's own lock is checked meanwhile as well: losing either lock ends the work.

        Args:
            job: The job's name, as the policy file has it.
            lock: Its lock, acquired by the caller; None: the lock that this run holds covers it.
            seconds: The budget, in seconds.
        """
        former = self.job, self._lock, self._until
        self.job, self._until = job, self.duration() + seconds
        if lock is not None:
            if former[1] is not None:
                self._outer.append(former[1])
            self._lock = lock
        try:
            yield
        finally:
            self.job, self._lock, self._until = former
            if lock is not None and former[1] is not None:
                self._outer.pop()

    def duration(self) -> float:
        """Return the seconds since the run began."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float:
        """Seconds until the time budget, or this policy's share of it, is used up; 0: it is."""
        until = self.budget_seconds if self._until is None else min(self.budget_seconds, self._until)
        return max(0.0, until - self.duration())

    def heed(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal: what only looks ends at once, a batch in hand is finished."""
        self._signal = signal.Signals(number)
        self.database.interrupt(_stopped_by(self._signal))

    def checkpoint(self) -> None:
        """Stop here if the run must stop; called between batches only.

        Raises:
            StoppedEarly: A signal came, a lock was taken away, or the time budget, or this policy's share of it, is
                used up.
        """
        self.stop_on_signal()
        for lock in (*self._outer, *([self._lock] if self._lock else [])):
            if lock.lost.is_set():
                raise StoppedEarly("lock_lost", f"{lock.name} was released or taken over while running")
        if self.duration() >= self.budget_seconds:
            raise StoppedEarly("time_budget", f"the time budget of {self.budget_seconds:.0f} s is used up")
        if self._until is not None and self.duration() >= self._until:
            raise StoppedEarly("time_share", "this policy's share of the time budget is used up")

    def stop_on_signal(self) -> None:
        """Stop here if a signal came; called between two pieces of work only.

        Raises:
            StoppedEarly: One came.
        """
        if self._signal is not None:
            raise _stopped_by(self._signal)

    @contextmanager
    def waiting_for_a_person(self) -> Iterator[None]:
        """Let a signal end the wait for somebody's input at once; a person has no time budget.

        Raises:
            StoppedEarly: A signal came, before or meanwhile.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            self.heed(number, frame)
            self.stop_on_signal()

        with ExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT):
                stack.callback(signal.signal, number, signal.signal(number, stop))
            self.stop_on_signal()
            yield

    def pause(self, seconds: float) -> None:
        """Wait, but stop at once if the run must stop.

        Raises:
            StoppedEarly: As :meth:`checkpoint` raises it.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.checkpoint()
            time.sleep(min(left, _PAUSE_SLICE_SECONDS))

    def expect(self, policy: str, rows: int) -> None:
        """Tell the terminal how much there is to do."""
        self.display.expect(policy, rows)

    def advance(self, policy: str, rows: int) -> None:
        """Tell the terminal how much is done."""
        self.display.advance(policy, rows)

    def fail(self, policy: str, error: OpsError) -> None:
        """Record a policy that could not be looked at."""
        get_logger().error("policy_failed", policy=policy, stop_reason=error.stop_reason, error=str(error))
        self.results.append(PolicyResult(policy, "failed", error.stop_reason, error.exit_code, error=str(error)))


def _stopped_by(number: signal.Signals) -> StoppedEarly:
    code = ExitCode.SIGINT if number is signal.SIGINT else ExitCode.SIGTERM
    return StoppedEarly(number.name.lower(), f"{number.name} received", code)


def checked_operator(name: str) -> str:
    """Return the name if it may stand in the audit.

    Raises:
        Misconfigured: It is an e-mail address, or has spaces.
    """
    try:
        return handle(name)
    except ValueError as error:
        raise Misconfigured(f"--operator, OPERATOR or the login name {error}") from None


def sla_status(run: Run, overdue: float | None, warning: timedelta, critical: timedelta) -> SlaStatus:
    """Judge a policy by the run's share of its time budget and by the age of the oldest row past its date.

    Args:
        run: The run.
        overdue: Seconds by which the oldest row is past its date; None: it could not be counted.
        warning: How far past its date the oldest row may be before the verdict is ``warning``.
        critical: The same for ``breached``.
    """
    percent = 100 * run.duration() / run.budget_seconds
    by_time = (percent >= run.settings.sla_warning_threshold_percent) + (
        percent >= run.settings.sla_critical_threshold_percent
    )
    # None means that nothing was counted, which is not 0: report `warning`, never `within_sla`.
    by_age = 1 if overdue is None else (overdue > warning.total_seconds()) + (overdue > critical.total_seconds())
    return SLA_ORDER[max(by_time, by_age)]
