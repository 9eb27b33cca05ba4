"""The end of archives: after their own period the object and its key are deleted, with an audit entry.

A legal hold keeps an archive too, if it is on the table, on a row that is in the archive, or on a person whose archive
key exists. Nobody can tell which archives hold rows of a person without opening them, so a person's hold keeps all
archives of the policy.
"""

from __future__ import annotations

from psycopg import sql

from scripts.lifecycle.archives.catalogue import Entry, entries
from scripts.lifecycle.archives.export import archive_of
from scripts.lifecycle.archives.keys import ArchiveKeys
from scripts.lifecycle.audit import audit
from scripts.lifecycle.engine.gated import MAY_RUN, require_may_run
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policies import Policy
from scripts.utils.archive_store import ArchiveStore, ArchiveStoreFailed
from scripts.utils.db_utils import Connection
from scripts.utils.logging_utils import get_logger

_HELD = """
SELECT EXISTS (SELECT FROM ops.holds_in_force h WHERE h.scope = 'table' AND h.table_name = %(table)s)
    OR EXISTS (SELECT FROM ops.holds_in_force h JOIN ops.audit_batches b ON b.resource_ids @> ARRAY[h.resource_id]
                WHERE h.scope = 'row' AND h.table_name = %(table)s AND b.resource_type = %(table)s
                  AND b.metadata ->> 'archive' = %(archive)s)
"""
_PEOPLE = "SELECT DISTINCT h.person FROM ops.holds_in_force h WHERE h.scope = 'person'"
_CLAIM = sql.SQL("""
WITH {may_run}, claimed AS (
    UPDATE ops.archives SET status = 'expiring'
     WHERE id = %(archive)s AND status IN ('sealed', 'expiring') AND (SELECT owned AND NOT stopped FROM may_run)
    RETURNING id
)
SELECT owned, stopped, (SELECT count(*) FROM claimed) FROM may_run
""").format(may_run=MAY_RUN)


def expire(run: Run, policy: Policy, store: ArchiveStore, keys: ArchiveKeys) -> None:
    """Delete those archives of a policy whose own period has ended; a dry run logs how many there are.

    Args:
        run: The run; it holds the job's lock.
        policy: A policy with the action ``archive_then_delete``.
        store: The store with the objects.
        keys: Tells a held person's pseudonym.

    Raises:
        ArchiveStoreFailed: The store did not delete an object. The others are deleted; the next run tries it again.
        StoppedEarly: The run must stop.
    """
    log = get_logger().bind(policy=policy.name)
    before = archive_of(policy).keep.before(run.cutoff)
    if before is None:
        return
    found = run.database.read(
        lambda connection: entries(connection, policy=policy.name, statuses=["sealed", "expiring"])
    )
    due = [entry for entry in found if entry.sealed_at is not None and entry.sealed_at < before]
    if not due:
        return
    if run.options.dry_run:
        log.info("archives_would_expire", archives=len(due), rows=sum(entry.row_count or 0 for entry in due))
        return
    gone = kept = 0
    failures = []
    for entry in due:
        run.checkpoint()
        if not _claim(run, policy, keys, entry):
            kept += 1
            continue
        try:
            store.delete(entry.object)
        except ArchiveStoreFailed as error:
            failures.append((entry, error))
            continue
        _close(run, entry)
        gone += 1
    _forget_people(run)
    log.info("archives_expired", archives=gone, held=kept)
    for entry, failure in failures:
        log.error("archive_not_deleted", archive=str(entry.id), object=entry.object, error=str(failure))
    if failures:
        raise failures[0][1]


def _claim(run: Run, policy: Policy, keys: ArchiveKeys, entry: Entry) -> bool:
    """Set an archive to ``expiring``, behind the gate, unless a hold keeps it.

    An archive that is ``expiring`` already goes on: the store may have deleted its object before a crash.
    """
    with run.writer.transaction() as connection:
        connection.execute("SELECT ops.gate_shared()")
        if entry.status == "sealed" and _is_held(connection, policy, keys, entry):
            return False
        parameters = {
            "lease": run.lock.name,
            "fencing_token": run.lock.fencing_token,
            "script": run.script,
            "job": run.job,
            "archive": entry.id,
        }
        owned, stopped, claimed = connection.execute(_CLAIM, parameters).fetchone() or (False, False, 0)
    require_may_run(owned=owned, stopped=stopped)
    return bool(claimed)


def _is_held(connection: Connection, policy: Policy, keys: ArchiveKeys, entry: Entry) -> bool:
    row = connection.execute(_HELD, {"table": policy.table, "archive": str(entry.id)}).fetchone()
    if row and row[0]:
        return True
    people = [person.encode() for (person,) in connection.execute(_PEOPLE)]
    if not people:
        return False
    known = connection.execute(
        "SELECT FROM ops.archive_keys WHERE pseudonym = ANY(%b::bytea[]) LIMIT 1", (keys.pseudonyms(people),)
    ).fetchone()
    return known is not None


def _close(run: Run, entry: Entry) -> None:
    def work(connection: Connection) -> None:
        closed = connection.execute(
            "UPDATE ops.archives SET status = 'expired', closed_at = clock_timestamp()"
            " WHERE id = %s AND status = 'expiring'",
            (entry.id,),
        )
        if not closed.rowcount:
            return
        connection.execute(
            "UPDATE ops.archive_keys SET wrapped = NULL, destroyed_at = now() WHERE archive_id = %s AND kind = 'object'"
            " AND wrapped IS NOT NULL",
            (entry.id,),
        )
        audit.append(
            connection,
            actor=f"system:{run.script}",
            action="archive_expired",
            resource_type="ops.archives",
            resource_ids=[str(entry.id)],
            reason=f"archive_period:{entry.policy}",
            metadata={"rows": entry.row_count, "table": entry.table_name},
        )

    run.writer.write(work)


def _forget_people(run: Run) -> None:
    """Destroy the keys of people who are in no archive any more: every remaining archive began after their last use."""
    run.writer.write(
        lambda connection: connection.execute(
            "UPDATE ops.archive_keys SET wrapped = NULL, pseudonym = NULL, destroyed_at = now()"
            " WHERE kind = 'person' AND wrapped IS NOT NULL AND last_used_on <"
            " (SELECT coalesce(min(created_at), now())::date - 1 FROM ops.archives WHERE status <> 'expired')"
        )
    )
