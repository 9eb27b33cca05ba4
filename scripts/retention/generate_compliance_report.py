#!/usr/bin/env python3
"""Report for a period what is kept, what went and how late, and prove that the audit and the archives are whole.

Reads only, in a READ ONLY transaction. Exit 1: the report is made, and the audit or an archive is broken.
Schedule and budget: retention_policies.yaml, jobs. Runbook: scripts/retention/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse
import json

from scripts.lifecycle.compliance.console import summary, tables
from scripts.lifecycle.compliance.document import Report
from scripts.lifecycle.compliance.page import page
from scripts.lifecycle.compliance.pdf import pdf
from scripts.lifecycle.compliance.report import gather
from scripts.lifecycle.compliance.sheet import sheet
from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main
from scripts.lifecycle.jobs.period import day_or_moment
from scripts.lifecycle.jobs.terminal import emit
from scripts.utils import mail, pages
from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.logging_utils import get_logger

FORMATS = ("html", "pdf", "csv", "json")


class ProofBroken(OpsError):
    """The report is made; what it reports is that the audit or an archive is not what was written."""

    stop_reason = "proof_broken"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the period, the form and where it goes."""
    parser.add_argument("--since", type=day_or_moment, metavar="T", help="first day or moment; default: last month's")
    parser.add_argument("--until", type=day_or_moment, metavar="T", help="day or moment after the last, UTC")
    parser.add_argument(
        "--format", choices=["console", *FORMATS], help="default: by the ending of FILE; else console, or json"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it there, whole or not at all")
    parser.add_argument("--quick", action="store_true", help="verify what is of the period only, not all of the past")
    parser.add_argument("--email", action="store_true", help="send it as PDF to REPORT_EMAIL_TO")


def work(run: Run) -> None:
    """Measure, write, send.

    Raises:
        ProofBroken: The report says so.
    """
    flags = run.options.flags
    form = _form(run)
    if flags.email:
        mail.require_mail_settings(run.settings)
    report = run.database.read(
        lambda connection: gather(run, connection, flags.since, flags.until, quick=flags.quick),
        statement_timeout=run.budget_seconds,
    )
    _hand_out(run, report, form)
    if flags.email:
        _send(run, report)
    run.facts |= {
        "since": report.since.isoformat(),
        "until": report.until.isoformat(),
        "verdict": report.verdict,
        "statements": len(report.statements),
        "not_counted": len(report.uncounted),
    }
    for statement in report.statements:
        get_logger().warning("report_statement", level_of_it=statement.level, statement=statement.text)
    for what in report.uncounted:
        get_logger().warning("report_not_counted", what=what)
    if report.verdict == "broken":
        worst = report.statements[0].text
        raise ProofBroken(f"the report is made; it says that the proof is broken: {worst}")


def _form(run: Run) -> str:
    flags = run.options.flags
    ending = flags.output.suffix.removeprefix(".").lower() if flags.output else ""
    form: str = flags.format or (ending if ending in FORMATS else "console" if run.display.enabled else "json")
    if form in ("html", "pdf") and not flags.output:
        raise Misconfigured(f"--format {form} needs --output FILE")
    if flags.output:
        pages.check_path(flags.output)
        if form == "console":
            raise Misconfigured("--output: say what it shall be, by --format or by the file's ending")
    return form


def _hand_out(run: Run, report: Report, form: str) -> None:
    output = run.options.flags.output
    if form == "console":
        for table in tables(report):
            run.display.show(table)
        return
    content = _rendered(report, form)
    if output:
        pages.write(output, content)
        get_logger().info("report_written", format=form, output=str(output))
        return
    emit(content if isinstance(content, str) else content.decode())


def _rendered(report: Report, form: str) -> str | bytes:
    if form == "json":
        indent = None if not sys.stdout.isatty() else 2
        return json.dumps(report.as_dict(), indent=indent) + "\n"
    if form == "pdf":
        return pdf(report)
    return page(report) if form == "html" else sheet(report)


def _send(run: Run, report: Report) -> None:
    if run.options.dry_run:
        get_logger().warning("report_would_be_sent", effect="CLEANUP_DRY_RUN is set: no mail is sent")
        return
    recipients = mail.send(
        run.settings,
        subject=f"Compliance report, {report.source}, {report.since:%Y-%m-%d}: {report.verdict}",
        text=summary(report),
        attachment=(f"compliance-{report.since:%Y-%m-%d}.pdf", pdf(report)),
    )
    get_logger().info("report_sent", recipients=recipients)


JOB = Job(
    "generate_compliance_report",
    work,
    "Report what is kept, what went, and that the proof is whole.",
    kind=Kind.TAKES_NO_LOCK,
    events="report",
    arguments=arguments,
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
