"""The lifecycle of a run: everything that happens around a script's work, in this one module.

Parse → settings and policies → logging and trace → connect → stop switch, lock and lease → check-in → work → metrics →
closing line → check-in → exit code. A script supplies its name and its work; script_template.py is one to copy. No
other module parses flags or decides on an exit code.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import psycopg

from scripts.lifecycle.audit import audit, audit_anchor
from scripts.lifecycle.jobs import runs, stop_switch
from scripts.lifecycle.jobs.arguments import options_of, parser_of
from scripts.lifecycle.jobs.check_ins import CheckIn
from scripts.lifecycle.jobs.figures import figures_of
from scripts.lifecycle.jobs.job_record import recorded
from scripts.lifecycle.jobs.results import SLA_ORDER, total_pauses
from scripts.lifecycle.jobs.run import Job, Kind, Run
from scripts.lifecycle.jobs.terminal import Display
from scripts.lifecycle.policy.job_specs import JobSpec
from scripts.lifecycle.policy.policy_file import load_policies
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.utils import early_signals, error_reporting, tracing
from scripts.utils.db_utils import Connection, ReadOnlyDatabase, explained
from scripts.utils.errors import (
    DatabaseRefused,
    ExitCode,
    LockHeld,
    Misconfigured,
    OpsError,
    worst,
)
from scripts.utils.logging_utils import LogFormat, configure_logging, get_logger
from scripts.utils.redis_lock import JobLock
from scripts.utils.session_settings import unpinned
from scripts.utils.settings import Settings, load_settings

__all__ = ["Job", "Kind", "Run", "main"]

_EVENT_OF = {
    ExitCode.DONE: "completed",
    ExitCode.NEEDS_A_PERSON: "completed",
    ExitCode.STOPPED_EARLY: "stopped",
    ExitCode.SIGINT: "stopped",
    ExitCode.SIGTERM: "stopped",
    ExitCode.NOT_RUN: "not_run",
}


def main(job: Job, arguments: Sequence[str] | None = None) -> int:
    """Run a job and return the process's exit code."""
    flags = parser_of(job).parse_args(job.spelled(list(sys.argv[1:] if arguments is None else arguments)))
    command = getattr(flags, "verb", None) in job.commands
    if command:
        job = replace(job, kind=Kind.TAKES_NO_LOCK)
    log_format: LogFormat = configure_logging(
        script=job.name, correlation_id="-", level="INFO", log_format=flags.log_format
    )
    settings: Settings | None = None
    try:
        settings, policies = _load(flags)
        spec = policies.jobs.get(job.name)
        if job.changes_data and (spec is None or spec.lock is None):
            raise Misconfigured(f"policy file: jobs.{job.name} with its schedule, budget and lock is missing")
        options = options_of(job, flags, settings, spec)
    except OpsError as error:
        early_signals.ignore()
        get_logger().error(f"{job.events}_failed", error=str(error), exit_code=int(error.exit_code))
        code = error.exit_code
    else:
        with Display(enabled=log_format == "console") as display:
            run = Run(job, settings, policies, options, display)
            level = "DEBUG" if flags.verbose else settings.log_level
            configure_logging(
                script=job.name,
                correlation_id=run.correlation_id,
                level=level,
                log_format=log_format,
                trace_id=run.trace.trace_id,
            )
            # A command of an operator is no run of the job: it sends no check-in and no figure of a last success.
            code = _run(job, run, None if command else spec)
    return 0 if settings and code in settings.exit_zero_for else int(code)


def _run(job: Job, run: Run, spec: JobSpec | None) -> ExitCode:
    """Carry the run out, and turn whatever happens into one exit code and one closing line."""
    error_reporting.start(run.settings, script=job.name, correlation_id=run.correlation_id)
    message: str | None = None
    stop_reason: str | None = None
    watched = None if run.options.dry_run else spec
    check_in = CheckIn(job.name, watched, run.budget_seconds, run.settings.sla_start_grace_minutes)
    with ExitStack() as stack:
        facts = stack.enter_context(tracing.run_traced(run.trace, job.name, recorded=not run.options.dry_run))
        for number in early_signals.SIGNALS:
            former = signal.signal(number, run.heed)
            if not early_signals.installed():  # a program that calls main() gets its own handlers back
                stack.callback(signal.signal, number, former)
        try:
            code = _within(job, run, spec, check_in)
        except OpsError as error:
            code, message, stop_reason = error.exit_code, str(error), error.stop_reason
        except psycopg.Error as error:
            known = explained(error)
            code, message, stop_reason = known.exit_code, str(known), known.stop_reason
        except Exception as error:  # noqa: BLE001 - a bug: the one place where it becomes an exit code
            error_reporting.report(error)
            code, message, stop_reason = ExitCode.FAILED, error_reporting.describe(error), "bug"
        code = worst([code, *(result.exit_code for result in run.results)])
        _close(job, run, spec, code, stop_reason, message)
        facts["exit_code"] = int(code)
        check_in.end(code, run.duration())
        run.database.close()
    error_reporting.flush()
    return code


def _within(job: Job, run: Run, spec: JobSpec | None, check_in: CheckIn) -> ExitCode:
    if job.kind is not Kind.HEALTH_CHECK:
        with tracing.span("connect", "PostgreSQL"):
            run.database.open(run.pause)
            _require_schema(run.database)
    if not job.changes_data:
        check_in.begin()
        job.work(run)
        return ExitCode.DONE
    run.set_cutoff(run.database.now())
    with ExitStack() as stack:
        if not run.options.dry_run:
            stop_switch.refuse_if_on(run.database, run.script)
            with tracing.span("lock", spec.lock if spec and spec.lock else "none"):
                _lock_or_note(run, spec)
            stack.callback(run.lock.release)
            _begin(run)
            check_in.begin()
        get_logger().info(
            f"{job.events}_started",
            dry_run=run.options.dry_run,
            cutoff_at=run.cutoff.isoformat(),
            policy_hash=run.policies.hash,
            budget_seconds=run.budget_seconds,
            limit=run.options.limit,
            degraded=None if run.options.dry_run else run.lock.degraded,
        )
        if not job.purges and not run.options.dry_run:
            stack.enter_context(recorded(run))
        run.checkpoint()
        job.work(run)
    return run.ending


def _begin(run: Run) -> None:
    """Keep the policy file, and close what a killed run left open."""

    def work(connection: Connection) -> int:
        runs.keep_policy_version(connection, run.policies, run.script)
        return runs.abandon_dead_runs(connection, run.script)

    abandoned = run.writer.write(work)
    if abandoned:
        get_logger().warning("abandoned_runs_closed", runs=abandoned)


def _close(
    job: Job, run: Run, spec: JobSpec | None, code: ExitCode, stop_reason: str | None, message: str | None
) -> None:
    """End the run: figures, audit head, closing line, table; each is a function of its own."""
    if spec and code is not ExitCode.NOT_RUN:
        _emit(run, spec, code)
    head = _kept_head(run, code) if job.changes_data else {}
    early_signals.ignore()
    if job.purges:
        facts = _facts_of_policies(run, code, stop_reason, message, head)
    else:
        dry_run = {"dry_run": run.options.dry_run} if job.changes_data else {}
        facts = {**dry_run, **run.facts, **head, "exit_code": int(code), **({"error": message} if message else {})}
    failed = code in (ExitCode.FAILED, ExitCode.MISCONFIGURED)
    log = get_logger().error if failed else get_logger().info
    # The last line that a person or a log store reads of the run.
    log(f"{job.events}_{_EVENT_OF.get(code, 'failed')}", **facts)
    if job.purges:
        run.display.summary(job.name, run.results, dry_run=run.options.dry_run, duration=run.duration())


def _emit(run: Run, spec: JobSpec, code: ExitCode) -> None:
    """Send the run's figures to the metrics' sinks."""
    figures = figures_of(
        run.script,
        run.results,
        duration_seconds=run.duration(),
        exit_code=int(code),
        budget_seconds=run.budget_seconds,
        spec=spec,
        policies=run.policies.policies,
    )
    run.emit(figures)


def _kept_head(run: Run, code: ExitCode) -> dict[str, str | None]:
    """Return the audit's head and its database for the closing line; a real run also keeps them at the anchor."""
    try:
        with run.database.snapshot() as connection:
            head = audit.head(connection)
        database = run.database.identity()
    except (psycopg.Error, OpsError):
        return {"audit_head": None, "audit_database": None}
    if not run.options.dry_run and code is not ExitCode.NOT_RUN:
        audit_anchor.keep(run.settings, database, head, script=run.script, correlation_id=run.correlation_id)
    return {"audit_head": head, "audit_database": database}


def _facts_of_policies(
    run: Run, code: ExitCode, stop_reason: str | None, message: str | None, head: dict[str, str | None]
) -> dict[str, object]:
    """Return what the closing line says of a run that carries out policies.

    Args:
        run: The run.
        code: Its exit code, before EXIT_ZERO_FOR.
        stop_reason: Why the whole run ended; None: as the policy with this exit code says.
        message: What went wrong with the whole run; None: as the first failed policy says.
        head: The audit's head and its database; each None: it could not be read.
    """
    results, dry_run = run.results, run.options.dry_run
    facts: dict[str, object] = {
        "dry_run": dry_run,
        "records_to_delete" if dry_run else "records_deleted": sum(r.records_deleted for r in results),
        "dependants_to_delete" if dry_run else "dependants_deleted": sum(r.dependants_deleted for r in results),
        "partitions_to_drop" if dry_run else "partitions_dropped": sum(len(r.partitions) for r in results),
        "records_held": _total([result.records_held for result in results]),
        "records_queued": sum(result.records_queued for result in results),
        "duration_seconds": round(run.duration(), 3),
        # No result was counted, so report `warning`, never `within_sla`.
        "sla_status": max((result.sla_status for result in results), key=SLA_ORDER.index, default="warning"),
        "stop_reason": stop_reason or next((r.stop_reason for r in results if r.exit_code == code), "done"),
        "records_remaining": _total([result.records_remaining for result in results]),
        "oldest_overdue_seconds": _worst([result.oldest_overdue_seconds for result in results]),
        **head,
        "exit_code": int(code),
    }
    if not dry_run:
        facts["pauses"] = total_pauses(results)
    if error := message or next((result.error for result in results if result.error), None):
        facts["error"] = error
    return facts


def _total(counts: Sequence[int | None]) -> int | None:
    """Add up; unknown is contagious."""
    known = [count for count in counts if count is not None]
    return sum(known) if counts and len(known) == len(counts) else None


def _worst(ages: Sequence[float | None]) -> float | None:
    """Return the greatest age; unknown is contagious."""
    known = [age for age in ages if age is not None]
    return max(known) if ages and len(known) == len(ages) else None


def _require_schema(database: ReadOnlyDatabase) -> None:
    row = database.read(
        lambda connection: connection.execute(
            # In this order: without the right, to_regclass is refused rather than null.
            "SELECT CASE WHEN has_schema_privilege('ops', 'USAGE') THEN to_regclass('ops.job_runs') IS NOT NULL END"
            if _schema_visible(connection)
            else "SELECT false"
        ).fetchone()
    )
    replication_role = database.read(lambda connection: unpinned(connection).get("session_replication_role"))
    if replication_role:
        raise DatabaseRefused(
            f"session_replication_role is {replication_role[0]} for this role: no trigger of the schema ops would fire;"
            " ALTER ROLE … RESET session_replication_role"
        )
    if not (row and row[0]):
        raise DatabaseRefused(
            "the schema ops is missing or hidden from this role: run backend/migrate.py, and connect as lifecycle_jobs"
        )


def _schema_visible(connection: Connection) -> bool:
    row = connection.execute("SELECT to_regnamespace('ops') IS NOT NULL").fetchone()
    return bool(row and row[0])


def _lock_or_note(run: Run, spec: JobSpec | None) -> None:
    try:
        _lock(run, spec)
    except LockHeld:
        noted = (run.policies, run.script, run.correlation_id, run.cutoff, run.settings.render_git_commit)
        try:
            with run.writer.transaction() as connection:
                runs.note_lock_conflict(connection, *noted)
        except (psycopg.Error, OpsError) as error:
            get_logger().warning("lock_conflict_not_noted", error=type(error).__name__)
        raise


def _lock(run: Run, spec: JobSpec | None) -> None:
    if spec is None or spec.lock is None:
        raise AssertionError("main() refuses a job that changes data and has no lock")
    client = run.redis()
    timeout = run.settings.redis_lock_timeout
    run.take_lock(JobLock(run.writer, client, name=spec.lock, timeout=timeout, run=run.correlation_id))


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
