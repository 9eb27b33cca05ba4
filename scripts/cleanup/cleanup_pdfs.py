#!/usr/bin/env python3
"""Delete PDFs of meal plans from Vercel Blob once their period has ended.

The meal plan's row stays and forgets its PDF. A blob that another row still needs is kept.

Policy: meal_plan_pdfs · Schedule and budget: retention_policies.yaml, jobs · Runbook: scripts/cleanup/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.lifecycle.purge import purge
from scripts.utils.script_template import Job, Run, main


def work(run: Run) -> None:
    """Delete what has expired."""
    purge(run, policy="meal_plan_pdfs")


JOB = Job("cleanup_pdfs", work, "Delete PDFs of meal plans from Vercel Blob once their period has ended.")

if __name__ == "__main__":
    raise SystemExit(main(JOB))
