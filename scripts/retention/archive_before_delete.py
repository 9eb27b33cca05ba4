#!/usr/bin/env python3
"""Archive rows that are past their date, verify the archive, and only then delete them; list, verify, restore archives.

Without a verb, or with `run`, it carries out every policy with the action archive_then_delete.

Policy: payment_transactions · Schedule and budget: retention_policies.yaml, jobs · Runbook: scripts/retention/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse
from uuid import UUID

from scripts.lifecycle.archives.commands import list_archives, restore_archives, rotate_keys, verify_archives
from scripts.lifecycle.jobs.arguments import add_common_flags, add_job_flags, add_operator_flag
from scripts.lifecycle.jobs.entry_point import Job, Run, main
from scripts.lifecycle.purge.archive_job import archive_what_is_due


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="{run,list,verify,restore,rotate-keys}")
    run = verbs.add_parser("run", help="archive and delete what is due; what happens without a verb")
    add_job_flags(run)
    listing = verbs.add_parser("list", help="show the archives")
    verify = verbs.add_parser("verify", help="read archives again and name what is broken")
    restore = verbs.add_parser("restore", help="put archived rows back")
    rotate = verbs.add_parser("rotate-keys", help="wrap every key with ARCHIVE_MASTER_KEY; no object changes")
    for verb in (run, listing, verify, restore, rotate):
        add_common_flags(verb)
    for verb in (listing, verify, restore):
        verb.add_argument("--policy", metavar="NAME", required=verb is restore, help="only this policy's")
    for verb in (verify, restore):
        verb.add_argument("--archive", type=UUID, action="append", metavar="ID", help="only this one; may be repeated")
    restore.add_argument(
        "--id", action="append", metavar="KEY", help="only this row; may be repeated; - reads keys from standard input"
    )
    restore.add_argument("--into", metavar="SCHEMA.TABLE", help="another table than the policy's own")
    restore.add_argument("--map", action="append", metavar="OLD=NEW", help="a column that was renamed since")
    restore.add_argument("--drop", action="append", metavar="COLUMN", help="a column to leave out")
    restore.add_argument(
        "--include-erased", action="store_true", help="rows of erased people too, without their personal columns"
    )
    for verb in (restore, rotate):
        add_operator_flag(verb)
        verb.add_argument("--dry-run", action="store_true", default=argparse.SUPPRESS, help="write nothing")


def work(run: Run) -> None:
    """Carry out the verb; without one, archive what is due."""
    verbs = {
        "list": list_archives,
        "verify": verify_archives,
        "restore": restore_archives,
        "rotate-keys": rotate_keys,
    }
    verbs.get(run.options.flags.verb, archive_what_is_due)(run)


JOB = Job(
    "archive_before_delete",
    work,
    "Archive what is past its date, prove the archive, and only then delete; list, verify and restore archives.",
    events="archive",
    arguments=arguments,
    commands=frozenset({"list", "verify", "restore", "rotate-keys"}),
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
