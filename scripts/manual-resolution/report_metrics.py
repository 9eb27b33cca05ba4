#!/usr/bin/env python3
"""Report how the manual-resolution queue is doing: depth, ages, deadlines, decisions, trend.

Reads only. Schedule and budget: retention_policies.yaml, jobs. Runbook: scripts/manual-resolution/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse
import json

from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main
from scripts.lifecycle.jobs.period import day_or_moment
from scripts.lifecycle.jobs.terminal import as_text, emit_json
from scripts.lifecycle.queue import report as queue_report
from scripts.lifecycle.queue.metrics import measure
from scripts.utils import mail, pages
from scripts.utils.errors import Misconfigured
from scripts.utils.logging_utils import get_logger


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the period, the form and where it goes."""
    parser.add_argument("--since", type=day_or_moment, metavar="T", help="first day or moment; default: 30 days before")
    parser.add_argument("--until", type=day_or_moment, metavar="T", help="day or moment after the last; default: now")
    parser.add_argument("--format", choices=["console", "json", "html"], help="default: console on a terminal, or json")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it there, whole or not at all")
    parser.add_argument("--email", action="store_true", help="send the page to REPORT_EMAIL_TO")


def work(run: Run) -> None:
    """Measure, write, send."""
    flags = run.options.flags
    form = flags.format or ("console" if run.display.enabled else "json")
    if form == "html" and not flags.output:
        raise Misconfigured("--format html needs --output FILE")
    if flags.output:
        pages.check_path(flags.output)
    if flags.email:
        mail.require_mail_settings(run.settings)
    report = run.database.read(
        lambda connection: measure(connection, flags.since, flags.until), statement_timeout=run.budget_seconds
    ).as_dict()
    if flags.output:
        pages.write(flags.output, _rendered(report, form))
        get_logger().info("report_written", format=form, output=str(flags.output))
    elif form == "json":
        emit_json(report)
    else:
        for table in queue_report.tables(report):
            run.display.show(table)
    if flags.email:
        _send(run, report)


def _rendered(report: queue_report.Report, form: str) -> str:
    if form == "json":
        return json.dumps(report, indent=2) + "\n"
    if form == "html":
        return queue_report.page(report)
    return as_text(queue_report.tables(report))


def _send(run: Run, report: queue_report.Report) -> None:
    if run.options.dry_run:
        get_logger().warning("report_would_be_sent", effect="CLEANUP_DRY_RUN is set: no mail is sent")
        return
    day = report["until"][:10]
    recipients = mail.send(
        run.settings,
        subject=f"Manual-resolution queue, {day}",
        text=queue_report.summary(report),
        attachment=(f"manual-resolution-queue-{day}.html", queue_report.page(report)),
    )
    get_logger().info("report_sent", recipients=recipients)


JOB = Job(
    "report_metrics",
    work,
    "Report how the manual-resolution queue is doing.",
    kind=Kind.TAKES_NO_LOCK,
    events="report",
    arguments=arguments,
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
