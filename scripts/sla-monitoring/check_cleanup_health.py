#!/usr/bin/env python3
"""Check everything that the jobs need, and report what is wrong and how to cure it.

Changes nothing except with --fix-zombies; raises alerts for findings. Exit 0: no finding, 4: warnings, 1: failures.
With --pre-deploy: the checklists before a first run and before a deployment, each box ticked by evidence; no alerts.
Schedule and budget: retention_policies.yaml, jobs. Runbook: scripts/sla-monitoring/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse

from rich.table import Table
from rich.text import Text

from scripts.lifecycle.health.checklist import Judged, judge
from scripts.lifecycle.health.checks import CHECKS
from scripts.lifecycle.health.findings import Context, Finding, examine, require_well, verdict
from scripts.lifecycle.health.telling import tell
from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main
from scripts.lifecycle.jobs.terminal import emit_json, table_of
from scripts.lifecycle.monitoring.alerts import Alerts
from scripts.utils.errors import StoppedEarly
from scripts.utils.logging_utils import get_logger

RENDER_YAML = Path(__file__).resolve().parents[2] / "render.yaml"
STYLES = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}
MARKS = {"ok": "[x]", "warning": "[!]", "not visible": "[?]", "not": "[ ]"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the output format, the checklists and --fix-zombies."""
    parser.add_argument("--format", choices=["console", "json"], help="default: console on a terminal, or json")
    parser.add_argument("--fix-zombies", action="store_true", help="release locks that no live run claims")
    parser.add_argument(
        "--pre-deploy", action="store_true", help="tick the checklists before a deployment, by evidence"
    )
    parser.add_argument("--render-yaml", type=Path, default=RENDER_YAML, metavar="PATH", help="schedules to compare")


def work(run: Run) -> None:
    """Carry out the checks, show and alert the findings, and set the exit code.

    Raises:
        StoppedEarly: A signal came or the time budget is used up; what was found so far is shown and told.
    """
    flags = run.options.flags
    context = Context(run, flags.render_yaml, flags.policy_file, flags.fix_zombies)
    form = flags.format or ("console" if run.display.enabled else "json")
    if flags.pre_deploy:
        _tick(run, context, form)
        return
    findings: list[Finding] = []
    try:
        findings.extend(examine(context, CHECKS))
    except StoppedEarly:
        _show(run, findings, form, complete=False)
        _tell(run, context, findings)
        if verdict(findings) == "FAIL":
            require_well(findings)
        raise
    _show(run, findings, form, complete=True)
    _tell(run, context, findings)
    require_well(findings)


def _tick(run: Run, context: Context, form: str) -> None:
    judged: list[Judged] = []
    complete = False
    try:
        judged.extend(judge(context))
        complete = True
    finally:
        _show_boxes(run, judged, form, complete=complete)
    require_well([finding for box in judged for finding in box.findings])


def _show_boxes(run: Run, judged: list[Judged], form: str, *, complete: bool) -> None:
    if form == "json":
        emit_json({"complete": complete, "boxes": [box.as_dict() for box in judged]})
        return
    for checklist in dict.fromkeys(each.box.checklist for each in judged):
        table = table_of(checklist, ("", "box", "evidence", "cure"), whole=("",))
        for each in judged:
            if each.box.checklist == checklist:
                _add_box(table, each)
        run.display.show(table)


def _add_box(table: Table, judged: Judged) -> None:
    mark, text = MARKS[judged.mark], judged.box.text
    for finding in judged.findings:
        line = Text(f"{finding.subject}: {finding.message}", STYLES[finding.status])
        table.add_row(Text(mark), Text(text), line, Text(finding.cure or ""))
        mark = text = ""
    table.add_section()


def _tell(run: Run, context: Context, findings: list[Finding]) -> None:
    if context.database_is_away:
        # The alerts cannot be written. Exit code, log and check-in still report what was found.
        get_logger().error("health_not_told", effect="no alert is sent while PostgreSQL is away")
        return
    settled = tell(Alerts(run.database, run.settings, run.script), CHECKS, findings)
    get_logger().info("health_told", raised=settled.raised, recovered=settled.recovered)


def _show(run: Run, findings: list[Finding], form: str, *, complete: bool) -> None:
    if form == "json":
        report = {
            "status": verdict(findings),
            "complete": complete,
            "findings": [finding.as_dict() for finding in findings],
        }
        emit_json(report)
        return
    rows = [
        (
            Text(finding.status, STYLES[finding.status]),
            Text(finding.check),
            *(Text(cell or "") for cell in (finding.subject, finding.message, finding.cure)),
        )
        for finding in findings
    ]
    run.display.listing("health", ("", "check", "what", "finding", "cure"), rows, whole=("", "check"))


JOB = Job(
    "check_cleanup_health",
    work,
    "Check everything that the jobs stand on, and say what is wrong and how to cure it.",
    kind=Kind.HEALTH_CHECK,
    events="health",
    arguments=arguments,
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
