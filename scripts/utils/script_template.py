#!/usr/bin/env python3
"""Delete what is past its date.

Copied into a folder of jobs and named, this is a job: the policies that it carries out, its schedule, its time budget
and its lock are what the policy file has under its name. CONTRIBUTING.md walks through it.

Policies, schedule and budget: retention_policies.yaml, jobs · Runbook: scripts/cleanup/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

from scripts.lifecycle.jobs.entry_point import Job, Run, main
from scripts.lifecycle.purge.purge import purge


def work(run: Run) -> None:
    """Carry out the job's policies, in the file's order."""
    for policy in run.policies.job(run.script).policies:
        purge(run, policy=policy)


JOB = Job(Path(__file__).stem, work, "Delete what is past its date.")

if __name__ == "__main__":
    raise SystemExit(main(JOB))
