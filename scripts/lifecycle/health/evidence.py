"""Evidence for the checklists: was a job tried, was an alert received, can what was deleted come back?

What cannot be seen from here is reported as not visible, and ticks nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError
from redis.lock import Lock

from scripts.lifecycle.audit import audit
from scripts.lifecycle.health.blueprint import Cron, load_blueprint
from scripts.lifecycle.health.findings import Context, Finding, failed, passed, warned
from scripts.lifecycle.policy.tables import table_identifier
from scripts.lifecycle.purge.purge import predict
from scripts.utils.alert_sinks import sinks_of
from scripts.utils.db_utils import Connection
from scripts.utils.errors import LockHeld, Misconfigured, OpsError
from scripts.utils.redis_lock import Holder, JobLock

NOT_VISIBLE = "not visible: "
ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("cleanup", "retention", "manual-resolution", "sla-monitoring")
TRIAL_DAYS, RESTORE_DAYS = 90, 180
WATCHED_MINUTES = 60
_TRIAL_SECONDS = 30.0

_TRIED = """
SELECT DISTINCT policy FROM ops.job_runs
 WHERE policy_hash = %s AND status IN ('completed', 'partial') AND stop_reason IN ('limit_reached', 'done')
"""
# Only as far back as run records are kept. A run that deleted rows and has no entry was not audited.
_UNAUDITED = """
SELECT r.correlation_id FROM ops.job_runs r
 WHERE r.records_processed > 0 AND NOT EXISTS (SELECT FROM ops.audit_batches b WHERE b.run_id = r.id)
 ORDER BY r.started_at DESC LIMIT 5
"""
_TOLD = """
SELECT DISTINCT sink FROM ops.alerts, jsonb_object_keys(told) AS sink
 WHERE key LIKE 'test:%%' AND raised_at > now() - make_interval(days => %s) AND told -> sink ->> 'error' IS NULL
   AND sink <> ALL (waiting)
"""
_RESTORED = """
SELECT max(occurred_at) FROM ops.audit_batches
 WHERE action = 'restore' AND occurred_at > now() - make_interval(days => %s)
"""


def unseen(subject: str, message: str, cure: str) -> Finding:
    """Return a finding that says that something cannot be judged from here."""
    return warned(subject, f"{NOT_VISIBLE}{message}", cure)


def limit(context: Context) -> Iterator[Finding]:
    """Check that every policy has had a run under this very policy file."""
    policies = context.run.policies
    tried = {name for (name,) in _rows(context, _TRIED, (policies.hash,))}
    for job, spec in policies.jobs.items():
        lacking = [name for name in spec.policies if name not in tried and policies.policies[name].action != "retain"]
        if lacking:
            yield failed(
                job,
                f"no run under policy file {policies.hash[:12]} yet of {', '.join(lacking)}",
                f"{job}.py --limit 10, then 100, then 1000, or --rollout; look at what went",
            )
        elif spec.policies:
            yield passed(job, f"ran under policy file {policies.hash[:12]}: {', '.join(spec.policies)}")


def prediction(context: Context) -> Iterator[Finding]:
    """Dry-run every policy now, in a transaction that cannot write; an empty table proves nothing, so it fails."""
    run = context.run
    run.set_cutoff(run.database.now())
    for name, policy in run.policies.policies.items():
        run.checkpoint()
        if policy.action == "retain":
            continue
        try:
            result = predict(run, policy)
        except OpsError as error:
            yield failed(name, f"the dry run fails: {error}", "cure it, then dry-run the job")
            continue
        if result.error:
            yield failed(name, result.error, "see the runbook of its job")
        elif not policy.table.startswith("ops.") and not _has_rows(context, policy.table):
            yield failed(name, f"{policy.table} is empty: a dry run says nothing", "load data as production has it")
        else:
            yield passed(name, f"{result.records_deleted} records would go now")


def audit_chain(context: Context) -> Iterator[Finding]:
    """Verify the audit's chain, and look for runs that deleted rows and left no entry."""
    found = audit.verify(context.run.database)
    if found.intact:
        yield passed("audit", f"{found.entries} entries intact, head {found.head.partition(':')[0]}")
    else:
        yield failed("audit", "; ".join(map(str, found.findings[:5])), "scripts/retention/README.md, if it is broken")
    silent = [run for (run,) in _rows(context, _UNAUDITED, ())]
    if silent:
        yield failed("runs", f"deleted and are not in the audit: {', '.join(silent)}", "report it; stop the jobs")
    else:
        yield passed("runs", "each run that changed records is in the audit")


def exclusion(context: Context) -> Iterator[Finding]:
    """Take a lock of the checklist's own as somebody else would, and ask for it: that must be refused."""
    run = context.run
    if run.options.dry_run:
        yield unseen("exclusion", "CLEANUP_DRY_RUN is set, so no lock was taken", "unset it and look again")
        return
    # A holder on another host: of its own process JobLock knows that nothing else runs in it.
    other = Holder(f"{run.correlation_id[:15]}x", "trial-of-the-checklist", 1, "1970-01-01T00:00:00Z")
    name = f"lock:health:{run.correlation_id}"
    with run.redis() as client:
        first = Lock(client, name, timeout=_TRIAL_SECONDS, blocking=False, thread_local=False)
        second = JobLock(run.writer, client, name=name, timeout=_TRIAL_SECONDS, run=run.correlation_id)
        try:
            if not first.acquire(token=str(other)):
                yield failed("exclusion", "a lock that nobody has could not be taken", "see the line redis")
                return
            yield _refused(second)
            first.release()
        except RedisError as error:
            said = f"Redis does not answer ({type(error).__name__}), or lost the lock"
            yield failed("exclusion", said, "see the line redis")


def _refused(second: JobLock) -> Finding:
    try:
        second.acquire()
    except LockHeld:
        return passed("exclusion", "a second run was refused while another held the lock")
    degraded = second.degraded
    second.release()
    if degraded:
        return failed("exclusion", "Redis does not answer: the lease decides alone", "see the line redis")
    return failed("exclusion", "two runs had one lock", "stop the jobs; look at REDIS_URL and ops.leases")


def variables(context: Context) -> Iterator[Finding]:
    """Check that the variables that render.yaml names are set on this machine; other machines cannot be seen."""
    settings = context.run.settings
    if settings.log_level == "DEBUG":
        yield warned("LOG_LEVEL", "is DEBUG: a line a batch, for good", "INFO")
    if settings.cleanup_dry_run:
        yield failed("CLEANUP_DRY_RUN", "is true: no job deletes anything", "unset it")
    crons = _crons(context)
    if isinstance(crons, Finding):
        yield crons
        return
    by_alias = {field.alias: name for name, field in type(settings).model_fields.items()}
    wanted = {each.key for cron in crons for each in cron.env_vars if hasattr(each, "key") and each.key in by_alias}
    unset = sorted(name for name in wanted if getattr(settings, by_alias[name]) is None)
    if settings.render_git_commit == "unknown":
        said = f"here {', '.join(unset)} are not set" if unset else "here all are set that render.yaml names"
        cure = "start the service check-cleanup-health there with --pre-deploy"
        yield unseen("variables", f"this is not Render; {said}", cure)
    elif unset:
        yield failed("variables", f"render.yaml names them, and they are not set: {', '.join(unset)}", "set them")
    else:
        yield passed("variables", f"{len(wanted)} that render.yaml names are set in Render")


def blueprint(context: Context) -> Iterator[Finding]:
    """Check that render.yaml has the form that Render accepts."""
    crons = _crons(context)
    yield crons if isinstance(crons, Finding) else passed(context.blueprint.name, f"{len(crons)} cron services")


def alerts(context: Context) -> Iterator[Finding]:
    """Check that an alert sink is configured, and that it took a test alert."""
    sinks = {sink.name for sink in sinks_of(context.run.settings)}
    if not sinks:
        yield failed("alerts", "no sink is set: what is wrong stands in the log alone", "set MRQ_ALERT_SLACK_WEBHOOK …")
        return
    told = {name for (name,) in _rows(context, _TOLD, (TRIAL_DAYS,))}
    for sink in sorted(sinks - told):
        cure = "alerts.py test --severity critical, and see that it arrives"
        yield failed(sink, f"took no test alert in {TRIAL_DAYS} days", cure)
    for sink in sorted(sinks & told):
        yield passed(sink, "took a test alert")


def watched(context: Context) -> Iterator[Finding]:
    """Check that the SLA monitor has run lately."""
    query = (
        "SELECT round(extract(epoch FROM now() - max(observed_at)) / 60) FROM ops.sla_observations WHERE script = %s"
    )
    ((minutes,),) = _rows(context, query, ("monitor_cleanup_sla",))
    if minutes is None:
        yield failed("monitor_cleanup_sla", "has never looked", "schedule it, or run it once")
    elif minutes > WATCHED_MINUTES:
        yield failed("monitor_cleanup_sla", f"looked {minutes} minutes ago", "is its service there, and not suspended?")
    else:
        yield passed("monitor_cleanup_sla", f"looked {minutes} minutes ago")


def runbooks(context: Context) -> Iterator[Finding]:
    """Check that every job has a section in its folder's runbook, and that the runbook says how to undo."""
    lacking = []
    for name in context.run.policies.jobs:
        folder = next((each for each in FOLDERS if (ROOT / "scripts" / each / f"{name}.py").exists()), None)
        page = ROOT / "scripts" / str(folder) / "README.md"
        text = page.read_text() if folder and page.exists() else ""
        if not re.search(rf"^#+ .*\b{name}\b", text, re.MULTILINE) or "undo" not in text.lower():
            lacking.append(name)
    if lacking:
        yield failed("runbooks", f"have no section: {', '.join(lacking)}", "write it: symptom, look, do, undo")
    else:
        yield passed("runbooks", f"{len(context.run.policies.jobs)} jobs have a section")


def rollback(context: Context) -> Iterator[Finding]:
    """Check that deleted rows can come back, from archives and from backups."""
    if any(policy.archive for policy in context.run.policies.policies.values()):
        ((restored,),) = _rows(context, _RESTORED, (RESTORE_DAYS,))
        cure = "archive_before_delete.py restore into a table beside: scripts/retention/README.md, rollback plan"
        if restored is None:
            yield failed("archives", f"nothing was restored from one in {RESTORE_DAYS} days: nobody knows", cure)
        else:
            yield passed("archives", f"rows were restored on {restored:%Y-%m-%d}")
    ((mode, minutes),) = _rows(
        context,
        "SELECT current_setting('archive_mode'), round(extract(epoch FROM now() - last_archived_time) / 60)"
        "  FROM pg_stat_archiver",
        (),
    )
    if mode != "off" and minutes is not None and minutes < 24 * 60:
        yield passed("backups", f"PostgreSQL archived its log {minutes} minutes ago")
    else:
        yield unseen(
            "backups",
            "this server does not say whether and how far back its provider keeps a history",
            "look there (Neon: history window); try a branch from an hour ago, and note it",
        )


def _crons(context: Context) -> list[Cron] | Finding:
    try:
        return load_blueprint(context.blueprint).crons
    except Misconfigured as error:
        return failed(context.blueprint.name, str(error), "correct it; then render blueprints validate")


def _has_rows(context: Context, table: str) -> bool:
    from psycopg import sql

    query = sql.SQL("SELECT FROM {} LIMIT 1").format(table_identifier(table))
    return context.run.database.read(lambda link: link.execute(query, {}).fetchone()) is not None


def _rows(context: Context, query: Any, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    def read(link: Connection) -> list[tuple[Any, ...]]:
        return link.execute(query, parameters).fetchall()

    return context.run.database.read(read)
