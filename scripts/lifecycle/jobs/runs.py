"""The run record: one row a run and policy in ops.job_runs.

Its states, in words: ``running`` becomes ``completed`` (nothing left that may go), ``partial`` (stopped early, or rows
left), ``failed`` or ``interrupted`` (a signal) when the run closes it, and ``abandoned`` when a later run or the
monitor finds that its process is gone. ``skipped`` is a run that did not begin: another one held the lock.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import sql
from psycopg.types.json import Jsonb

from scripts.lifecycle.jobs.results import PolicyResult
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.utils import leases
from scripts.utils.db_utils import Connection, Database
from scripts.utils.redis_lock import JobLock


def keep_policy_version(connection: Connection, policies: PolicySet, script: str) -> None:
    """Keep the policy file by its hash, so that "under which rule" has an answer years later."""
    connection.execute(
        "INSERT INTO ops.policy_versions (hash, document, first_used_by) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        (policies.hash, policies.document, script),
    )


NO_POLICY = "-"
"""In the record of a job that carries out none."""

_COUNTED = (
    " records_processed = (SELECT coalesce(sum(cardinality(b.resource_ids)), 0) FROM ops.audit_batches b"
    " WHERE b.run_id = r.id AND b.action IN"
    " ('delete', 'soft_delete', 'delete_blob', 'archive_then_delete', 'anonymize')"
    " AND b.reason NOT LIKE '%%/dependant'),"
    " dependants_processed = (SELECT coalesce(sum(cardinality(b.resource_ids)), 0) FROM ops.audit_batches b"
    " WHERE b.run_id = r.id AND b.reason LIKE '%%/dependant')"
)
_ABANDON = sql.SQL(
    "UPDATE ops.job_runs r SET status = 'abandoned', finished_at = now(), stop_reason = 'process_gone',"  # noqa: S608 - constants
    + _COUNTED
    + " WHERE status = 'running' AND {}"
)
# A run whose connection broke in a batch ends without knowing whether that batch was committed.
_RECOUNT = sql.SQL(
    "UPDATE ops.job_runs r SET"
    + _COUNTED
    + " WHERE script = %s AND policy <> '-' AND stop_reason IN ('gate_closed', 'database_unavailable')"
    " AND NOT EXISTS (SELECT FROM ops.job_runs l WHERE l.script = r.script AND l.policy = r.policy"
    " AND l.started_at > r.started_at AND l.status NOT IN ('running', 'skipped'))"
)


def abandon_dead_runs(connection: Connection, script: str) -> int:
    """Close what earlier runs of this script left open; only the holder of the script's lock may call it.

    What the last run of each policy did is counted anew, where it ended without knowing that.

    Returns:
        How many runs were found abandoned.
    """
    connection.execute(_RECOUNT, (script,))
    return connection.execute(_ABANDON.format(sql.SQL("script = %s")), (script,)).rowcount


def abandon_silent_run(connection: Connection, correlation_id: str, silent_seconds: float) -> int:
    """Close the records of a run that a monitor found dead, unless the run has sent a heartbeat since.

    A run that is alive after all overwrites this with its true end.

    Returns:
        Number of records that were closed, one for each policy.
    """
    silent = sql.SQL("correlation_id = %s AND heartbeat_at < clock_timestamp() - make_interval(secs => %s)")
    return connection.execute(_ABANDON.format(silent), (correlation_id, silent_seconds)).rowcount


def note_lock_conflict(
    connection: Connection, policies: PolicySet, script: str, correlation_id: str, now: datetime, version: str
) -> None:
    """Record that a run did not begin because another run held the lock, for each policy of the job.

    Args:
        connection: A connection in a transaction.
        policies: The policy file.
        script: The job's name.
        correlation_id: The id of the run that did not begin.
        now: The run's cut-off.
        version: The application's version, as a git commit.
    """
    keep_policy_version(connection, policies, script)
    spec = policies.jobs.get(script)
    for policy in (spec.policies if spec else ()) or (NO_POLICY,):
        connection.execute(
            "INSERT INTO ops.job_runs (id, script, policy, correlation_id, finished_at, cutoff_at, policy_hash,"
            " fencing_token, status, stop_reason, exit_code, host, pid, version)"
            " VALUES (gen_random_uuid(), %s, %s, %s, now(), %s, %s, 0, 'skipped', 'lock_held', 75, %s, %s, %s)",
            (script, policy, correlation_id, now, policies.hash, socket.gethostname(), os.getpid(), version),
        )


def note_not_begun(
    connection: Connection,
    policies: PolicySet,
    *,
    script: str,
    policy: str,
    correlation_id: str,
    cutoff: datetime,
    result: PolicyResult,
    version: str,
) -> None:
    """Record a policy that a run did not begin, so that the next run takes it first.

    Args:
        connection: A connection in a transaction.
        policies: The policy file.
        script: The job's name.
        policy: The policy's name.
        correlation_id: The run's id.
        cutoff: The run's cut-off.
        result: Why the policy was not begun.
        version: The application's version, as a git commit.
    """
    connection.execute(
        "INSERT INTO ops.job_runs (id, script, policy, correlation_id, finished_at, cutoff_at, policy_hash,"
        " fencing_token, status, stop_reason, exit_code, host, pid, version, error)"
        " VALUES (gen_random_uuid(), %s, %s, %s, now(), %s, %s, 0, %s, %s, %s, %s, %s, %s, %s)",
        (
            *(script, policy, correlation_id, cutoff, policies.hash),
            *(result.status, result.stop_reason, int(result.exit_code)),
            *(socket.gethostname(), os.getpid(), version, result.error),
        ),
    )


def cut_short(connection: Connection, script: str, policies: Sequence[str]) -> dict[str, int]:
    """Return the policies that the last run had no time for: 0 for one not begun, 1 for one that was cut short."""
    rows = connection.execute(
        "SELECT DISTINCT ON (policy) policy, stop_reason, fencing_token FROM ops.job_runs"
        " WHERE script = %s AND policy = ANY(%s) AND status <> 'running' ORDER BY policy, started_at DESC",
        (script, list(policies)),
    ).fetchall()
    return {policy: int(token > 0) for policy, reason, token in rows if reason in ("time_share", "time_budget")}


def open_run(
    connection: Connection,
    run_id: UUID,
    *,
    script: str,
    policy: str,
    correlation_id: str,
    cutoff: datetime,
    policy_hash: str,
    fencing_token: int,
    budget_seconds: float,
    version: str,
    trace_id: str | None = None,
) -> None:
    """Insert the record of a run that begins; a second call with the same id inserts nothing.

    Args:
        connection: A connection in a transaction.
        run_id: The id of the record.
        script: The job's name.
        policy: The policy's name.
        correlation_id: The run's id, the same for all its policies.
        cutoff: The run's cut-off.
        policy_hash: The hash of the policy file.
        fencing_token: The fencing token of the run's lease.
        budget_seconds: The time budget, in seconds.
        version: The application's version, as a git commit.
        trace_id: The id of the trace that the run belongs to.
    """
    connection.execute(
        "INSERT INTO ops.job_runs (id, script, policy, correlation_id, cutoff_at, policy_hash, fencing_token,"
        " sla_budget_seconds, host, pid, version, trace_id)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (id) DO NOTHING",
        (
            run_id,
            script,
            policy,
            correlation_id,
            cutoff,
            policy_hash,
            fencing_token,
            budget_seconds,
            socket.gethostname(),
            os.getpid(),
            version,
            trace_id,
        ),
    )


def heartbeat(
    run_id: UUID, lock: JobLock, *, records: int, batches: int, pauses: dict[str, dict[str, float]]
) -> tuple[sql.Composed, dict[str, Any]]:
    """Return the statement that shows a run to be alive, on its record and on its lease.

    Args:
        run_id: The record.
        lock: The run's lock, with the name and the fencing token of the lease.
        records: Records processed so far.
        batches: Batches so far.
        pauses: Pauses so far, by reason.
    """
    statement = sql.SQL(
        "WITH beat AS ({beat})"
        " UPDATE ops.job_runs SET heartbeat_at = clock_timestamp(), records_processed = %(records)s,"
        " batches = %(batches)s, pauses = %(pauses)s WHERE id = %(run_id)s"
    ).format(beat=leases.BEAT)
    return statement, {
        "lease": lock.name,
        "token": lock.fencing_token,
        "records": records,
        "batches": batches,
        "pauses": Jsonb(pauses),
        "run_id": run_id,
    }


def close_run(database: Database, run_id: UUID, result: PolicyResult) -> None:
    """Write what became of the run."""
    columns: dict[str, object] = {
        "status": result.status,
        "stop_reason": result.stop_reason,
        "exit_code": int(result.exit_code),
        "records_processed": result.records_deleted,
        "dependants_processed": result.dependants_deleted,
        "records_held": result.records_held,
        "records_queued": result.records_queued,
        "records_remaining": result.records_remaining,
        "oldest_overdue_seconds": result.oldest_overdue_seconds,
        "batches": result.batches,
        "pauses": Jsonb(result.pauses),
        "sla_status": result.sla_status,
        "error": result.error,
    }
    assignments = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in columns
    )
    with database.transaction() as connection:
        connection.execute(
            sql.SQL("UPDATE ops.job_runs SET finished_at = now(), heartbeat_at = now(), {} WHERE id = %(id)s").format(
                assignments
            ),
            columns | {"id": run_id},
        )


def audited_rows(connection: Connection, run_id: UUID, table: str) -> int:
    """Return how many rows of a table the audit says that a run deleted: the truth, whatever the client remembers.

    A row that refers to another one of its own table and was cut off from it is a dependant, and is not counted here.
    """
    row = connection.execute(
        "SELECT coalesce(sum(cardinality(resource_ids)), 0) FROM ops.audit_batches"
        " WHERE run_id = %s AND resource_type = %s AND reason NOT LIKE '%%/dependant'",
        (run_id, table),
    ).fetchone()
    return int(row[0]) if row else 0


def audited_dependants(connection: Connection, run_id: UUID) -> int:
    """Return how many rows the audit says that a run deleted or cut off because they referred to its policy's own."""
    row = connection.execute(
        "SELECT coalesce(sum(cardinality(resource_ids)), 0) FROM ops.audit_batches"
        " WHERE run_id = %s AND reason LIKE '%%/dependant'",
        (run_id,),
    ).fetchone()
    return int(row[0]) if row else 0


def usual_rows(connection: Connection, scripts: Sequence[str], policy: str) -> float | None:
    """Return how many rows the runs since the last completed one could be expected to delete, None without a history.

    Dependants are counted too.

    The median a day of the completed runs of the last 30 days, times the days since the last of them (at least one).
    """
    row = connection.execute(
        "WITH days AS (SELECT started_at::date AS day, sum(records_processed + dependants_processed) AS rows,"
        " max(started_at) AS last FROM ops.job_runs WHERE script = ANY(%s) AND policy = %s AND status = 'completed'"
        " AND started_at > now() - interval '30 days' GROUP BY 1)"
        " SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY rows)"
        " * greatest(1, extract(epoch FROM now() - max(last)) / 86400) FROM days",
        (list(scripts), policy),
    ).fetchone()
    return None if row is None or row[0] is None else float(row[0])


def last_policy_document(connection: Connection, scripts: Sequence[str], policy: str, current_hash: str) -> str | None:
    """Return the policy file of the last completed run if it was another version, else None.

    Args:
        connection: A connection.
        scripts: The jobs whose runs are considered.
        policy: The policy's name.
        current_hash: The hash of the policy file of this run.
    """
    row = connection.execute(
        "SELECT v.hash, v.document FROM ops.job_runs r JOIN ops.policy_versions v ON v.hash = r.policy_hash"
        " WHERE r.script = ANY(%s) AND r.policy = %s AND r.status = 'completed' ORDER BY r.started_at DESC LIMIT 1",
        (list(scripts), policy),
    ).fetchone()
    return None if row is None or row[0] == current_hash else str(row[1])
