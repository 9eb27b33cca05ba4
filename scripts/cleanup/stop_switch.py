#!/usr/bin/env python3
"""Stop a job on any machine, keep it from starting, and let it start again.

Once `stop` has returned, no batch of the job commits any more. Runbook: scripts/cleanup/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse
from dataclasses import asdict

from scripts.lifecycle.jobs import stop_switch
from scripts.lifecycle.jobs.arguments import add_common_flags, add_operator_flag
from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main
from scripts.utils.errors import Misconfigured
from scripts.utils.free_text import impersonal
from scripts.utils.logging_utils import get_logger


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three verbs."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    stop = verbs.add_parser("stop", help="stop a job after its batch in hand, and keep it from starting")
    stop.add_argument(
        "--reason", required=True, type=impersonal, help="kept while the switch is on; name no person in it"
    )
    go = verbs.add_parser("go", help="let it start again")
    for verb in (stop, go):
        which = verb.add_mutually_exclusive_group(required=True)
        which.add_argument("--job", metavar="NAME", help="a job of the policy file, such as cleanup_quiz_responses")
        which.add_argument("--all", action="store_const", const=stop_switch.ALL, dest="job", help="every job")
    for verb in (stop, go, verbs.add_parser("status", help="show what is stopped, and what still runs")):
        add_common_flags(verb)
        add_operator_flag(verb)


def work(run: Run) -> None:
    """Carry out one verb."""
    {"stop": _stop, "go": _go, "status": _status}[run.options.flags.verb](run)


def _stop(run: Run) -> None:
    flags = run.options.flags
    _require_known(run, flags.job)
    if run.options.dry_run:
        get_logger().warning(
            "stop_switch_would_be_turned_on",
            job=flags.job,
            dry_run=True,
            effect="CLEANUP_DRY_RUN is set: nothing is stopped",
        )
        return
    switch, is_new = stop_switch.turn_on(run.writer, flags.job, operator=run.operator, reason=flags.reason)
    running = stop_switch.status(run.database).running_under(switch)
    # A run whose record is still open only counts the rows left: it deletes nothing more.
    event = "stop_switch_turned_on" if is_new else "stop_switch_already_on"
    get_logger().info(event, **asdict(switch), running=[asdict(each) for each in running])


def _go(run: Run) -> None:
    job = run.options.flags.job
    before = stop_switch.status(run.database)
    # A job that the policy file no longer names may still have a switch that is on. It must be possible to turn it off.
    if not any(switch.job == job for switch in before.switches):
        _require_known(run, job)
    if run.options.dry_run:
        get_logger().warning(
            "stop_switch_would_be_turned_off", job=job, dry_run=True, effect="CLEANUP_DRY_RUN is set: it stays as it is"
        )
        return
    switch = stop_switch.turn_off(run.writer, job, operator=run.operator)
    if switch:
        get_logger().info("stop_switch_turned_off", **asdict(switch))
    else:
        get_logger().info("stop_switch_was_off", job=job)
    for other in stop_switch.status(run.database).switches:
        if other.stops(job):
            get_logger().warning("stop_switch_still_on", **asdict(other))


def _status(run: Run) -> None:
    status = stop_switch.status(run.database)
    if not status.switches:
        get_logger().info("no_stop_switch_is_on", running=[asdict(each) for each in status.running])
        return
    if not run.display.enabled:
        for switch in status.switches:
            running = [asdict(each) for each in status.running_under(switch)]
            get_logger().info("stop_switch_is_on", **asdict(switch), running=running)
        return
    rows = []
    for switch in status.switches:
        runs = [
            f"{each.script}\n  run {each.correlation_id}\n  {each.host}, pid {each.pid}, silent {each.silent_seconds} s"
            for each in status.running_under(switch)
        ]
        which = "all jobs" if switch.job == stop_switch.ALL else switch.job
        since = f"{switch.stopped_at:%Y-%m-%d %H:%M}"
        rows.append((which, since, switch.stopped_by, switch.reason, "\n".join(runs) or "nothing"))
    headings = ("job", "since (UTC)", "by", "reason", "still running")
    run.display.listing("stopped", headings, rows, whole=("still running",))


def _require_known(run: Run, job: str) -> None:
    if job != stop_switch.ALL and job not in run.policies.jobs:
        known = ", ".join(sorted(run.policies.jobs))
        raise Misconfigured(f"--job {job}: the policy file has no such job; it has {known}. For all of them: --all")


JOB = Job(
    "stop_switch",
    work,
    "Stop a job wherever it runs, and let it go again.",
    kind=Kind.TAKES_NO_LOCK,
    events="stop_switch",
    arguments=arguments,
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
