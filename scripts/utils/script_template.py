"""The one lifecycle: what happens around every script's work, in one place.

Parse → settings and policies → logging → connect → stop switch, lock and lease → work → metrics → closing line → exit
code. A script supplies its name and its work; to begin a new one, copy the shortest script in scripts/cleanup/ and
change those two. Nothing else in the suite parses flags, handles signals or decides on an exit code.
"""

from __future__ import annotations

import argparse
import getpass
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from uuid import uuid4

import psycopg

from scripts.lifecycle import audit, runs
from scripts.lifecycle.policies import DEFAULT_POLICY_FILE, JobSpec, PolicySet, load_policies
from scripts.lifecycle.results import PolicyResult, SlaStatus
from scripts.utils import error_reporting, metrics_utils
from scripts.utils.db_utils import Database
from scripts.utils.errors import (
    DatabaseRefused,
    ExitCode,
    Misconfigured,
    OpsError,
    StoppedEarly,
    SwitchedOff,
    describe_database_error,
    worst,
)
from scripts.utils.logging_utils import LogFormat, configure_logging, get_logger
from scripts.utils.redis_lock import JobLock, connect_redis
from scripts.utils.settings import Settings, load_settings
from scripts.utils.terminal import Display

_SLA_ORDER: tuple[SlaStatus, ...] = ("within_sla", "warning", "breached")
_EVENT_OF = {
    ExitCode.DONE: "completed",
    ExitCode.NEEDS_A_PERSON: "completed",
    ExitCode.STOPPED_EARLY: "stopped",
    ExitCode.SIGINT: "stopped",
    ExitCode.SIGTERM: "stopped",
    ExitCode.NOT_RUN: "not_run",
}


@dataclass(frozen=True)
class Job:
    """What a script is.

    Args:
        name: The script's name without ``.py``; also its key under ``jobs:`` in the policy file.
        work: What it does, given the run.
        description: First line of ``--help``.
        changes_data: Whether it deletes by policy: takes the job's lock, and knows ``--dry-run`` and the caps. An
            operator's command does neither.
        events: Prefix of its start and closing events.
        arguments: Adds flags of its own.
    """

    name: str
    work: Callable[[Run], None]
    description: str
    changes_data: bool = True
    events: str = "cleanup"
    arguments: Callable[[argparse.ArgumentParser], None] | None = None


@dataclass(frozen=True)
class Options:
    """The run's switches after flags, environment and policy file were weighed; durations in seconds."""

    dry_run: bool
    limit: int | None
    batch_size: int | None
    max_duration: float
    confirm_cap: int | None
    as_of: datetime | None
    flags: argparse.Namespace


class Run:
    """One run of a script: what its work needs, and where its results go."""

    def __init__(self, job: Job, settings: Settings, policies: PolicySet, options: Options, display: Display) -> None:
        self.script = job.name
        self.settings = settings
        self.policies = policies
        self.options = options
        self.display = display
        self.correlation_id = uuid4().hex
        self.budget_seconds = options.max_duration
        self.results: list[PolicyResult] = []
        self.database = Database(
            settings.database_url.get_secret_value(),
            application_name=f"{job.name} {self.correlation_id}",
            max_size=settings.db_pool_size + settings.db_max_overflow,
        )
        self.cutoff = datetime.max.replace(tzinfo=UTC)
        self.started = time.monotonic()
        self._signal: signal.Signals | None = None
        self._lock: JobLock | None = None

    @property
    def operator(self) -> str:
        """Who is at the shell: ``--operator``, else OPERATOR, else the login name."""
        named: str | None = self.options.flags.operator
        return named or self.settings.operator or getpass.getuser()

    @property
    def lock(self) -> JobLock:
        """The job's lock; only a real run of a job that changes data has one."""
        if self._lock is None:
            raise RuntimeError("this run holds no lock")
        return self._lock

    def take_lock(self, lock: JobLock) -> None:
        """Acquire the job's lock for the length of the run."""
        lock.acquire()
        self._lock = lock

    def duration(self) -> float:
        """Return the seconds since the run began."""
        return time.monotonic() - self.started

    def heed(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal; the batch in hand is finished first."""
        self._signal = signal.Signals(number)

    def checkpoint(self) -> None:
        """Stop here if the run must stop; called between batches only.

        Raises:
            StoppedEarly: A signal came, the lock was taken away, or the time budget is used up.
        """
        if self._signal is not None:
            code = ExitCode.SIGINT if self._signal is signal.SIGINT else ExitCode.SIGTERM
            raise StoppedEarly(self._signal.name.lower(), f"{self._signal.name} received", code)
        if self._lock is not None and self._lock.lost.is_set():
            raise StoppedEarly("lock_lost", f"{self._lock.name} was released or taken over while running")
        if self.duration() >= self.budget_seconds:
            raise StoppedEarly("time_budget", f"the time budget of {self.budget_seconds:.0f} s is used up")

    def expect(self, policy: str, rows: int) -> None:
        """Tell the terminal how much there is to do."""
        self.display.expect(policy, rows)

    def advance(self, policy: str, rows: int) -> None:
        """Tell the terminal how much is done."""
        self.display.advance(policy, rows)

    def fail(self, policy: str, error: OpsError) -> None:
        """Record a policy that could not be looked at."""
        reason = getattr(error, "stop_reason", "failed")
        get_logger().error("policy_failed", policy=policy, stop_reason=reason, error=str(error))
        self.results.append(PolicyResult(policy, "failed", reason, error.exit_code, error=str(error)))


def sla_status(run: Run, overdue: float | None, warning: timedelta, critical: timedelta) -> SlaStatus:
    """Judge a policy by the run's share of its time budget and by how far the oldest row is past its date."""
    percent = 100 * run.duration() / run.budget_seconds
    by_time = (percent >= run.settings.sla_warning_threshold_percent) + (
        percent >= run.settings.sla_critical_threshold_percent
    )
    # Not counted is not zero: whoever cannot look cannot say that the promise was kept.
    by_age = 1 if overdue is None else (overdue > warning.total_seconds()) + (overdue > critical.total_seconds())
    return _SLA_ORDER[max(by_time, by_age)]


def main(job: Job, arguments: Sequence[str] | None = None) -> int:
    """Run a job and return the process's exit code."""
    flags = _parser(job).parse_args(arguments)
    log_format: LogFormat = configure_logging(
        script=job.name, correlation_id="-", level="INFO", log_format=flags.log_format
    )
    settings: Settings | None = None
    try:
        settings, policies = _load(flags)
        spec = policies.jobs.get(job.name, JobSpec(schedule="0 0 1 1 *", budget="3600 seconds"))
        options = _options(job, flags, settings, spec)
    except OpsError as error:
        get_logger().error(f"{job.events}_failed", error=str(error), exit_code=int(error.exit_code))
        code = error.exit_code
    else:
        with Display(enabled=log_format == "console") as display:
            run = Run(job, settings, policies, options, display)
            level = "DEBUG" if flags.verbose else settings.log_level
            configure_logging(script=job.name, correlation_id=run.correlation_id, level=level, log_format=log_format)
            code = _run(job, run, spec)
    return 0 if settings and code in settings.exit_zero_for else int(code)


def _run(job: Job, run: Run, spec: JobSpec) -> ExitCode:
    """Carry the run out, and turn whatever happens into one exit code and one closing line."""
    error_reporting.start(run.settings, script=job.name, correlation_id=run.correlation_id)
    message: str | None = None
    stop_reason: str | None = None
    with ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, run.heed))
        try:
            code = _within(job, run, spec)
        except StoppedEarly as stop:
            code, message, stop_reason = stop.exit_code, str(stop), stop.stop_reason
        except OpsError as error:
            code, message, stop_reason = error.exit_code, str(error), type(error).__name__
        except psycopg.Error as error:
            code, message, stop_reason = ExitCode.FAILED, describe_database_error(error), "database_error"
        except Exception as error:  # noqa: BLE001 - a bug: the one place where it becomes an exit code
            error_reporting.report(error)
            code, message, stop_reason = ExitCode.FAILED, error_reporting.describe(error), "bug"
        code = worst([code, *(result.exit_code for result in run.results)])
        _close(job, run, code, stop_reason, message)
        run.database.close()
    error_reporting.flush()
    return code


def _within(job: Job, run: Run, spec: JobSpec) -> ExitCode:
    run.database.open()
    _require_schema(run.database)
    now = run.database.now()
    if run.options.as_of and run.options.as_of > now and job.changes_data and not run.options.dry_run:
        raise Misconfigured("--as-of lies in the future: a real run never goes beyond the database's clock")
    run.cutoff = run.options.as_of or now
    with ExitStack() as stack:
        if job.changes_data and not run.options.dry_run:
            _refuse_if_stopped(run)
            _lock(run, spec)
            stack.callback(run.lock.release)
            with run.database.transaction() as connection:
                runs.keep_policy_version(connection, run.policies, job.name)
                abandoned = runs.abandon_dead_runs(connection, job.name)
            if abandoned:
                get_logger().warning("abandoned_runs_closed", runs=abandoned)
        if not job.changes_data:
            job.work(run)
            return ExitCode.DONE
        get_logger().info(
            f"{job.events}_started",
            dry_run=run.options.dry_run,
            cutoff_at=run.cutoff.isoformat(),
            policy_hash=run.policies.hash,
            budget_seconds=run.budget_seconds,
            limit=run.options.limit,
            degraded=None if run.options.dry_run else run.lock.degraded,
        )
        job.work(run)
    return ExitCode.DONE


def _close(job: Job, run: Run, code: ExitCode, stop_reason: str | None, message: str | None) -> None:
    """Say what happened in one line: the last thing that a person or a log store reads."""
    failed = code in (ExitCode.FAILED, ExitCode.MISCONFIGURED)
    log = get_logger().error if failed else get_logger().info
    event = f"{job.events}_{_EVENT_OF.get(code, 'failed')}"
    if not job.changes_data:
        log(event, exit_code=int(code), **({"error": message} if message else {}))
        return
    if not run.options.dry_run:
        metrics_utils.emit(job.name, run.results, duration_seconds=run.duration(), exit_code=int(code))
    results = run.results
    stop_reason = stop_reason or next((r.stop_reason for r in results if r.exit_code == code), "done")
    remaining = [result.records_remaining for result in results]
    overdue = [result.oldest_overdue_seconds for result in results]
    facts: dict[str, object] = {
        "dry_run": run.options.dry_run,
        "records_to_delete" if run.options.dry_run else "records_deleted": sum(r.records_deleted for r in results),
        "records_held": _total([result.records_held for result in results]),
        "records_queued": sum(result.records_queued for result in results),
        "duration_seconds": round(run.duration(), 3),
        "sla_status": max((result.sla_status for result in results), key=_SLA_ORDER.index, default="within_sla"),
        "stop_reason": stop_reason,
        "records_remaining": _total(remaining),
        "oldest_overdue_seconds": None if None in overdue else max((o for o in overdue if o), default=0.0),
        "audit_head": _audit_head(run),
        "exit_code": int(code),
    }
    message = message or next((result.error for result in results if result.error), None)
    if message:
        facts["error"] = message
    log(event, **facts)
    run.display.summary(job.name, results, dry_run=run.options.dry_run, duration=run.duration())


def _total(counts: Sequence[int | None]) -> int | None:
    """Add up; unknown is contagious."""
    known = [count for count in counts if count is not None]
    return sum(known) if counts and len(known) == len(counts) else None


def _audit_head(run: Run) -> str | None:
    try:
        with run.database.transaction(read_only=True) as connection:
            return audit.head(connection)
    except (psycopg.Error, OpsError):
        return None


def _require_schema(database: Database) -> None:
    with database.transaction(read_only=True) as connection:
        row = connection.execute(
            "SELECT to_regclass('ops.job_runs') IS NOT NULL AND has_schema_privilege('ops', 'USAGE')"
            if _schema_visible(connection)
            else "SELECT false"
        ).fetchone()
    if not (row and row[0]):
        raise DatabaseRefused(
            "the schema ops is missing or hidden from this role: run backend/migrate.py, and connect as lifecycle_jobs"
        )


def _schema_visible(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    row = connection.execute("SELECT to_regnamespace('ops') IS NOT NULL").fetchone()
    return bool(row and row[0])


def _refuse_if_stopped(run: Run) -> None:
    with run.database.transaction(read_only=True) as connection:
        row = connection.execute(
            "SELECT job, stopped_by, reason, stopped_at FROM ops.stop_switches WHERE job IN ('*', %s) LIMIT 1",
            (run.script,),
        ).fetchone()
    if row:
        which = "all jobs" if row[0] == "*" else row[0]
        raise SwitchedOff(
            f"the stop switch for {which} is on since {row[3]:%Y-%m-%dT%H:%M:%SZ} (by {row[1]}: {row[2]})"
        )


def _lock(run: Run, spec: JobSpec) -> None:
    if spec.lock is None:
        raise Misconfigured(f"policy file: jobs.{run.script}.lock is missing")
    client = connect_redis(run.settings.redis_url.get_secret_value(), run.script)
    timeout = run.settings.redis_lock_timeout
    run.take_lock(JobLock(run.database, client, name=spec.lock, timeout=timeout, run=run.correlation_id))


def _load(flags: argparse.Namespace) -> tuple[Settings, PolicySet]:
    """Read environment and policy file, and report what is wrong with either at once."""
    problems = []
    settings, policies = None, None
    try:
        settings = load_settings()
    except Misconfigured as error:
        problems.append(str(error))
    try:
        policies = load_policies(flags.policy_file)
    except Misconfigured as error:
        problems.append(str(error))
    if settings is None or policies is None:
        raise Misconfigured("; ".join(problems))
    return settings, policies


def _options(job: Job, flags: argparse.Namespace, settings: Settings, spec: JobSpec) -> Options:
    """Flags beat environment, environment beats policy file."""
    budget = settings.cleanup_max_duration_seconds or spec.budget.total_seconds()
    if not job.changes_data:
        return Options(settings.cleanup_dry_run, None, None, budget, None, None, flags)
    return Options(
        dry_run=flags.dry_run or settings.cleanup_dry_run,
        limit=flags.limit,
        batch_size=flags.batch_size or settings.cleanup_batch_size,
        max_duration=flags.max_duration or budget,
        confirm_cap=flags.confirm_cap,
        as_of=flags.as_of,
        flags=flags,
    )


def _parser(job: Job) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{job.name}.py",
        description=job.description,
        epilog="This help needs no environment. Settings, exit codes and runbooks: README.md.",
    )
    if job.changes_data:
        parser.add_argument("--dry-run", action="store_true", help="say what would happen, write nothing")
        parser.add_argument("--limit", type=_positive, metavar="N", help="delete at most N rows a policy, then stop")
        parser.add_argument("--batch-size", type=_positive, metavar="N", help="rows a batch")
        parser.add_argument("--max-duration", type=_positive, metavar="SECONDS", help="stop after this time")
        parser.add_argument("--confirm-cap", type=_positive, metavar="N", help="allow N rows once, beyond the caps")
        parser.add_argument("--as-of", type=moment, metavar="T", help="cut-off, such as 2026-01-31T02:00:00Z")
    parser.set_defaults(policy_file=DEFAULT_POLICY_FILE, log_format=None, verbose=False)
    add_common_flags(parser)
    if job.arguments:
        job.arguments(parser)
    return parser


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Add what every script knows; a command with verbs adds it to each verb too."""
    absent = argparse.SUPPRESS
    parser.add_argument("--policy-file", type=Path, default=absent, metavar="PATH", help="the policies")
    parser.add_argument(
        "--log-format", choices=["json", "console"], default=absent, help="default: console on a terminal"
    )
    parser.add_argument("--verbose", action="store_true", default=absent, help="every batch and detail")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def moment(text: str) -> datetime:
    """Read a time with its zone from the command line."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-01-31T02:00:00Z") from None
    if parsed.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone: add Z or an offset")
    return parsed.astimezone(UTC)
