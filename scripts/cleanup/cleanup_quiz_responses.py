#!/usr/bin/env python3
"""Delete quiz answers whose retention has ended.

Answers delivered or abandoned more than 24 hours ago are deleted. Answers paid for but not delivered are kept, and a
queue item asks a person to decide.

Policy: quiz_responses · Schedule and budget: retention_policies.yaml, jobs · Runbook: scripts/cleanup/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

from scripts.lifecycle.jobs.entry_point import Job, Run, main
from scripts.lifecycle.purge.purge import purge


def work(run: Run) -> None:
    """Delete the answers whose period has ended."""
    purge(run, policy="quiz_responses")


JOB = Job("cleanup_quiz_responses", work, "Delete quiz answers whose retention has ended.")

if __name__ == "__main__":
    raise SystemExit(main(JOB))
