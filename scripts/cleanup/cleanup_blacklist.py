#!/usr/bin/env python3
"""Delete e-mail blacklist entries that have expired.

Permanent entries are never touched.

Policy: email_blacklist · Schedule and budget: retention_policies.yaml, jobs · Runbook: scripts/cleanup/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

from scripts.lifecycle.jobs.entry_point import Job, Run, main
from scripts.lifecycle.purge.purge import purge


def work(run: Run) -> None:
    """Delete the entries that have expired."""
    purge(run, policy="email_blacklist")


JOB = Job("cleanup_blacklist", work, "Delete e-mail blacklist entries that have expired.")

if __name__ == "__main__":
    raise SystemExit(main(JOB))
