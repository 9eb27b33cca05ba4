#!/usr/bin/env python3
"""Watch whether people keep up with the manual-resolution queue.

Schedule and budget: retention_policies.yaml, jobs · Runbook: scripts/sla-monitoring/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main
from scripts.lifecycle.monitoring import observations
from scripts.lifecycle.monitoring.alerts import Alerts
from scripts.lifecycle.monitoring.queue_levels import SCOPE, look, observation, queue_alerts
from scripts.lifecycle.policy.schedules import last_due
from scripts.lifecycle.queue.figures import queue_figures
from scripts.utils.logging_utils import get_logger

_HOURLY = "5 * * * *"


def work(run: Run) -> None:
    """Look once, write the observation, raise and end alerts, and emit the queue's figures."""
    view = run.database.read(look, statement_timeout=run.budget_seconds)
    alerts = queue_alerts(view, run.settings)
    spec = run.policies.jobs.get(run.script)
    seen = observation(view, alerts, last_due(spec.schedule if spec else _HOURLY, view.now))
    run.note(lambda connection: observations.note(connection, run.script, seen))
    run.emit(run.database.read(queue_figures))
    settled = Alerts(run.database, run.settings, run.script).settle(SCOPE, alerts, measured_at=view.now)
    get_logger().info(
        "queue_monitored",
        sla_status=seen.status,
        depth=view.depth,
        oldest_seconds=round(view.oldest_seconds, 1),
        **seen.figures,
        raised=settled.raised,
        recovered=settled.recovered,
    )


JOB = Job(
    "monitor_manual_resolution_queue",
    work,
    "Watch whether people keep up with the manual-resolution queue.",
    kind=Kind.TAKES_NO_LOCK,
    events="monitor",
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
