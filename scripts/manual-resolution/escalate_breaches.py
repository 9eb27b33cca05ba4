#!/usr/bin/env python3
"""Escalate what is past its deadline on the manual-resolution queue, once, with one alert an item.

Before that, expired claims return to pending, and deferrals end whose time has come.
Schedule and budget: retention_policies.yaml, jobs · Runbook: scripts/manual-resolution/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

from dataclasses import asdict

from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main
from scripts.lifecycle.monitoring.alerts import Alerts
from scripts.lifecycle.queue import escalation


def work(run: Run) -> None:
    """Move what has to move, then tell of what is late."""
    if run.options.dry_run:
        run.facts |= asdict(escalation.predict(run.database))
        return
    moved = escalation.move(run.writer, script=run.script, between=run.checkpoint)
    run.facts |= asdict(moved)
    run.facts |= escalation.tell(run.database, Alerts(run.database, run.settings, run.script), between=run.checkpoint)


JOB = Job(
    "escalate_breaches",
    work,
    "Escalate what is past its deadline on the manual-resolution queue.",
    kind=Kind.CHANGES_DATA,
    events="escalation",
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
