#!/usr/bin/env python3
"""Watch the service level: whether rows past their date are deleted in time, and whether the jobs run as scheduled.

Schedule and budget: retention_policies.yaml, jobs · Runbook: scripts/sla-monitoring/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse

from scripts.lifecycle.engine import holds
from scripts.lifecycle.jobs import runs
from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main
from scripts.lifecycle.monitoring import erasure_levels, hold_levels, observations, sla_page
from scripts.lifecycle.monitoring.alerts import Alerts
from scripts.lifecycle.monitoring.job_levels import SCOPE, budget_percent
from scripts.lifecycle.monitoring.sla_watch import Picture, look
from scripts.utils import pages
from scripts.utils.db_utils import Connection
from scripts.utils.logging_utils import get_logger


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add --output, the file of the status page."""
    parser.add_argument("--output", type=Path, metavar="FILE", help="write a status page there, whole or not at all")


def work(run: Run) -> None:
    """Look once, write the observations, raise and end alerts, and write the page."""
    output = run.options.flags.output
    if output:
        pages.check_path(output)
    picture = look(run)
    _say(run, picture)
    run.note(lambda connection: _keep(connection, run, picture))
    told = Alerts(run.database, run.settings, run.script)
    settled = told.settle(SCOPE, picture.alerts, unknown=picture.unknown, measured_at=picture.now)
    ending = hold_levels.hold_alerts(holds.ending(run.database), picture.now)
    of_holds = told.settle(hold_levels.SCOPE, ending, measured_at=picture.now)
    erasures = run.database.read(lambda connection: erasure_levels.look(connection, run.settings))
    late = [*erasure_levels.erasure_alerts(erasures)]
    of_erasures = told.settle(erasure_levels.SCOPE, late, measured_at=picture.now)
    if output:
        pages.write(output, sla_page.page(run, picture))
        get_logger().info("status_page_written", output=str(output))
    get_logger().info(
        "sla_monitored",
        jobs=len(picture.jobs),
        policies=len(picture.policies),
        not_counted=sum(view.residue is None for view in picture.policies),
        alerts=len(picture.alerts) + len(ending) + len(late),
        erasures_open=erasures.open,
        erasures_late=erasures.late,
        raised=[*settled.raised, *of_holds.raised, *of_erasures.raised],
        recovered=[*settled.recovered, *of_holds.recovered, *of_erasures.recovered],
    )


def _say(run: Run, picture: Picture) -> None:
    for view in picture.policies:
        get_logger().info(
            "policy_observed",
            policy=view.policy.name,
            job=view.job,
            sla_status=view.status,
            records_remaining=view.residue.remaining if view.residue else None,
            oldest_overdue_seconds=view.residue.oldest_overdue_seconds if view.residue else None,
            forecast=str(view.forecast) if view.forecast else None,
        )
    for job in picture.jobs:
        last = job.attempts[0] if job.attempts else None
        get_logger().info(
            "job_observed",
            job=job.name,
            last_run=last.outcome if last else None,
            budget_percent=round(budget_percent(job, last, run.settings), 1) if last else None,
        )


def _keep(connection: Connection, run: Run, picture: Picture) -> None:
    for observation in picture.observations():
        observations.note(connection, run.script, observation)
    for dead in picture.dead:
        closed = runs.abandon_silent_run(connection, dead.correlation_id, run.settings.redis_lock_timeout)
        if closed:
            get_logger().warning("abandoned_runs_closed", job=dead.script, run=dead.correlation_id, records=closed)


JOB = Job(
    "monitor_cleanup_sla",
    work,
    "Watch whether what should be gone is gone, and whether the jobs run as they should.",
    kind=Kind.TAKES_NO_LOCK,
    events="monitor",
    arguments=arguments,
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
