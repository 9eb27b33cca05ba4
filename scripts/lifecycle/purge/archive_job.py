"""The monthly work on archives: remove what a crash left, archive and delete what is due, and expire old archives."""

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
    """Carry out one policy that archives before it deletes. Any job may do it, under the lock of the policy's job.

    Raises:
        As :func:`archive_what_is_due` does.
    """
    store, keys = store_of(run.settings), ArchiveKeys(run.database, run.settings)
    keys.check()
    if not run.options.dry_run:
        remove_leftovers(run, Catalogue(run.writer, store, keys))
    purge(run, policy=name)
    # If a period became shorter, also the archive's own, the policy fails until an operator confirms it, and no archive
    # expires.
    if run.results[-1].exit_code is not ExitCode.FAILED:
        expire(run, run.policies.policies[name], store, keys)


def remove_leftovers(run: Run, catalogue: Catalogue) -> None:
    """Remove archives that killed runs left half written; no row was deleted for them."""
    for entry in catalogue.unfinished():
        run.checkpoint()
        if catalogue.discard(entry.id, entry.object):
            get_logger().warning("unfinished_archive_removed", policy=entry.policy, archive=str(entry.id))
