#!/usr/bin/env python3
"""Delete PDFs of meal plans from Vercel Blob once their period has ended.

The meal plan's row stays; its path is cleared. A blob that another row still needs is kept.

Policy: meal_plan_pdfs · Schedule and budget: retention_policies.yaml, jobs · Runbook: scripts/cleanup/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse

from scripts.lifecycle.blobs.reconcile import reconcile
from scripts.lifecycle.jobs.entry_point import Job, Run, main
from scripts.lifecycle.purge.purge import purge


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--reconcile``."""
    parser.add_argument(
        "--reconcile", action="store_true", help="delete blobs that no row names, finalise rows whose blob is gone"
    )


def work(run: Run) -> None:
    """Delete the blobs whose period has ended, or compare the store with the rows."""
    if run.options.flags.reconcile:
        reconcile(run, policy="meal_plan_pdfs")
    else:
        purge(run, policy="meal_plan_pdfs")


JOB = Job(
    "cleanup_pdfs",
    work,
    "Delete PDFs of meal plans from Vercel Blob once their period has ended.",
    arguments=arguments,
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
