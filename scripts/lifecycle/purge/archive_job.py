"""The month's work on archives: what a crash left goes, what is due is archived and deleted, old archives expire."""

from __future__ import annotations

from scripts.lifecycle.archives.catalogue import Catalogue
from scripts.lifecycle.archives.expiry import expire
from scripts.lifecycle.archives.keys import ArchiveKeys
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.purge.purge import purge
from scripts.utils.archive_store import store_of
from scripts.utils.errors import ExitCode
from scripts.utils.logging_utils import get_logger

ACTION = "archive_then_delete"


def archive_what_is_due(run: Run) -> None:
    """Carry out every policy that archives before it deletes.

    Raises:
        Misconfigured: Place or master key of the archives is missing or wrong.
        ArchiveStoreFailed: The store fails before the first policy.
        StoppedEarly: The run must stop.
    """
    for name in [name for name, policy in run.policies.policies.items() if policy.action == ACTION]:
        archive_policy(run, name)


def archive_policy(run: Run, name: str) -> None:
    """Carry out one policy that archives before it deletes: under its job's lock, by whatever job.

    Raises:
        As :func:`archive_what_is_due` does.
    """
    store, keys = store_of(run.settings), ArchiveKeys(run.database, run.settings)
    keys.check()
    if not run.options.dry_run:
        remove_leftovers(run, Catalogue(run.writer, store, keys))
    purge(run, policy=name)
    # A period that became shorter fails the policy until an operator confirms it; the archive's own period too.
    if run.results[-1].exit_code is not ExitCode.FAILED:
        expire(run, run.policies.policies[name], store, keys)


def remove_leftovers(run: Run, catalogue: Catalogue) -> None:
    """Remove what runs that were killed left half written; nothing was deleted for it."""
    for entry in catalogue.unfinished():
        run.checkpoint()
        if catalogue.discard(entry.id, entry.object):
            get_logger().warning("unfinished_archive_removed", policy=entry.policy, archive=str(entry.id))
