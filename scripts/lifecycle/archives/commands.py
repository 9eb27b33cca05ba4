"""The verbs of archive_before_delete.py for a person: list, verify, restore, rotate-keys."""

from __future__ import annotations

import sys
from uuid import UUID

from scripts.lifecycle.archives.catalogue import Entry, entries
from scripts.lifecycle.archives.format import ArchiveBroken
from scripts.lifecycle.archives.keys import ArchiveKeys, KeyLost, keys_by_master
from scripts.lifecycle.archives.restore import RestoreRefused, Wish, archives_with, restore
from scripts.lifecycle.archives.verify import strangers, verify
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.tables import table_name
from scripts.utils.archive_store import ObjectMissing, store_of
from scripts.utils.db_utils import Connection
from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.free_text import names_somebody
from scripts.utils.logging_utils import get_logger
from scripts.utils.pseudonyms import pseudonym


class ArchivesBroken(OpsError):
    """``verify`` found at least one archive that is not what was written."""

    stop_reason = "archive_broken"


class NotAllRestored(OpsError):
    """``restore`` failed for several archives; the others were restored."""

    stop_reason = "restore_refused"


def list_archives(run: Run) -> None:
    """Show the catalogue, the newest archive first."""
    found = run.database.read(lambda connection: entries(connection, policy=run.options.flags.policy))
    if not run.display.enabled:
        for entry in found:
            get_logger().info("archive", **_facts(entry), manifest=_manifest(entry))
        return
    headings = ("id", "policy", "status", "rows", "bytes", "oldest", "newest", "sealed (UTC)")
    shown = ("archive", "policy", "status", "rows", "bytes", "oldest", "newest", "sealed_at")
    rows = [["-" if facts[name] is None else str(facts[name]) for name in shown] for facts in map(_facts, found)]
    run.display.listing("archives", headings, rows, whole=("id",))


def _manifest(entry: Entry) -> object:
    if entry.manifest_text is None:
        return None
    try:
        return entry.manifest
    except ArchiveBroken as error:
        return {"error": str(error)}


def _facts(entry: Entry) -> dict[str, object]:
    return {
        "archive": str(entry.id),
        "policy": entry.policy,
        "table": entry.table_name,
        "object": entry.object,
        "status": entry.status,
        "rows": entry.row_count,
        "bytes": entry.bytes,
        "sha256": entry.sha256,
        "oldest": entry.oldest,
        "newest": entry.newest,
        "sealed_at": entry.sealed_at.isoformat() if entry.sealed_at else None,
    }


def verify_archives(run: Run) -> None:
    """Read archives again, and name each object that is not what was written.

    Raises:
        ArchivesBroken: At least one object is not.
        Misconfigured: ARCHIVE_URL or the master key is missing or wrong, or --archive names no sealed archive.
    """
    store, keys = store_of(run.settings), ArchiveKeys(run.database, run.settings)
    keys.check()
    chosen = _chosen(run, run.options.flags.archive)
    findings = verify(
        run.database,
        store,
        keys,
        chosen,
        between=run.checkpoint,
        tell=lambda entry, erased: get_logger().info(
            "archive_intact", archive=str(entry.id), object=entry.object, rows=entry.row_count, rows_of_erased=erased
        ),
    )
    for finding in findings:
        get_logger().error("archive_broken", kind=finding.kind, object=finding.object, error=finding.error)
    for finding in [] if run.options.flags.archive else strangers(run.database, store):
        get_logger().warning("archive_unknown", object=finding.object, error=finding.error)
    if findings:
        raise ArchivesBroken(
            f"{len(findings)} of {len(chosen)} archives are not what was written: "
            + ", ".join(finding.object for finding in findings)
        )
    get_logger().info("archives_intact", archives=len(chosen), rows=sum(entry.row_count or 0 for entry in chosen))


def _chosen(run: Run, ids: list[UUID] | None) -> list[Entry]:
    """Return sealed archives, the newest first; ``ids`` None: all that --policy allows.

    Raises:
        Misconfigured: A named archive does not exist or is not sealed.
    """
    flags = run.options.flags
    found = run.database.read(
        lambda connection: entries(connection, policy=flags.policy, ids=ids, statuses=["sealed", "expiring"])
    )
    if missing := set(ids or []) - {entry.id for entry in found}:
        raise Misconfigured(f"no sealed archive {', '.join(sorted(map(str, missing)))}: see the verb list")
    return found


def restore_archives(run: Run) -> None:
    """Put archived rows back, one transaction for each archive, the newest first. A failed archive stops no other.

    Raises:
        Misconfigured: A flag names what does not exist.
        NotAllRestored: Several archives failed.
        OpsError: One archive failed: its own error (RestoreRefused, ArchiveBroken, ObjectMissing, KeyLost).
    """
    flags = run.options.flags
    policy = run.policies.policies.get(flags.policy)
    if policy is None or policy.archive is None:
        raise Misconfigured(f"--policy {flags.policy}: no policy of that name archives anything")
    operator = run.operator
    wish = _wish(run, policy)
    dry_run = run.options.dry_run or flags.dry_run
    store, keys = store_of(run.settings), ArchiveKeys(run.database, run.settings)
    keys.check()
    total = {"records_restored": 0, "records_present": 0, "records_erased": 0}
    failures: list[OpsError] = []
    for entry in _chosen(run, _archives(run, policy, wish)):
        run.checkpoint()
        try:
            with run.rehearsal() as database:
                done = restore(
                    database,
                    store,
                    keys,
                    entry,
                    wish,
                    operator=operator,
                    pseudonym_of=lambda key: pseudonym(run.settings, key),
                    between=run.checkpoint,
                    dry_run=dry_run,
                )
        except (RestoreRefused, ArchiveBroken, ObjectMissing, KeyLost) as error:
            get_logger().error("archive_not_restored", archive=str(entry.id), into=wish.into, error=str(error))
            failures.append(error)
            continue
        facts = dict(zip(total, (done.rows, done.present, done.erased), strict=True))
        total = {name: total[name] + facts[name] for name in total}
        get_logger().info("archive_restored", archive=str(entry.id), into=wish.into, dry_run=dry_run, **facts)
    get_logger().info("records_restored", into=wish.into, dry_run=dry_run, **total)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise NotAllRestored(f"{len(failures)} archives were not restored; the first: {failures[0]}")


def _archives(run: Run, policy: Policy, wish: Wish) -> list[UUID] | None:
    named: list[UUID] | None = run.options.flags.archive
    if named or not wish.ids:
        return named
    called = set(wish.ids)
    if run.settings.audit_pseudonym_key:
        called |= {pseudonym(run.settings, key) for key in wish.ids}
    found = run.database.read(lambda connection: archives_with(connection, policy.table, frozenset(called)))
    if not found:
        raise Misconfigured("--id: the audit knows of no archive with such a row")
    return found


def _wish(run: Run, policy: Policy) -> Wish:
    flags = run.options.flags
    try:
        into = table_name(flags.into) if flags.into else policy.table
    except ValueError as error:
        raise Misconfigured(f"--into {flags.into}: {error}") from None
    renamed = dict(each.partition("=")[::2] for each in flags.map or [])
    if not all(renamed.values()):
        raise Misconfigured("--map: write OLD=NEW")
    return Wish(into, _ids(flags.id or []), flags.include_erased, renamed, frozenset(flags.drop or []))


def _ids(named: list[str]) -> frozenset[str]:
    """Return the keys of the rows to restore; ``-`` stands for those on standard input, one a line.

    Raises:
        Misconfigured: A key on the command line is or holds an address, or standard input is empty.
    """
    if any(map(names_somebody, named)):
        raise Misconfigured("--id: an address never stands on a command line: use --id - and type it in")
    if "-" not in named:
        return frozenset(named)
    typed = {line.strip() for line in sys.stdin} - {""}
    if not typed:
        raise Misconfigured("--id -: standard input is empty")
    return frozenset({*named} - {"-"} | typed)


def rotate_keys(run: Run) -> None:
    """Wrap every key with the current master key; a dry run counts the keys that it would wrap.

    Raises:
        Misconfigured: A key is wrapped by a master key that is not set.
    """
    keys = ArchiveKeys(run.database, run.settings)
    keys.check()
    operator, dry_run = run.operator, run.options.dry_run or run.options.flags.dry_run

    def counted(connection: Connection) -> dict[str, int]:
        return keys_by_master(connection)

    if dry_run:
        by_master = run.database.read(counted)
        left = sum(count for key_id, count in by_master.items() if key_id != keys.master.current)
        get_logger().info("keys_would_be_rotated", dry_run=True, keys=left, by_master_key=by_master)
        return
    rotated = keys.rotate(run.checkpoint, operator=operator)
    get_logger().info("keys_rotated", keys=rotated, by_master_key=run.database.read(counted))
