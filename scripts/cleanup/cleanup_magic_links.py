#!/usr/bin/env python3
"""Delete magic-link tokens that have expired.

A token is deleted whether it was used or not. If the policy file has magic_link_tokens_soft, a token is first marked as
deleted, and deleted later.

Policies: magic_link_tokens_soft (optional), magic_link_tokens · Schedule and budget: retention_policies.yaml, jobs
Runbook: scripts/cleanup/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

from scripts.lifecycle.jobs.entry_point import Job, Run, main
from scripts.lifecycle.purge.purge import purge

SOFT = "magic_link_tokens_soft"


def work(run: Run) -> None:
    """Mark expired tokens if the policy file says so, then delete the expired ones."""
    if SOFT in run.policies.policies:
        purge(run, policy=SOFT)
    purge(run, policy="magic_link_tokens")


JOB = Job("cleanup_magic_links", work, "Delete magic-link tokens that have expired.")

if __name__ == "__main__":
    raise SystemExit(main(JOB))
