#!/usr/bin/env python3
"""Decide what is on the manual-resolution queue: in a terminal one item after the other, or by one command line.

Every decision is really carried out, with the operator as its actor in the audit. Without a verb, in a terminal: the
session. With one: list, show, claim, resolve, defer, escalate, release, undo, reopen.
Runbook: scripts/manual-resolution/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse
from contextlib import closing
from uuid import UUID

from scripts.lifecycle.jobs.arguments import add_common_flags, add_operator_flag, positive
from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main
from scripts.lifecycle.policy.fields import PRIORITIES
from scripts.lifecycle.queue import verbs as queue_verbs
from scripts.lifecycle.queue.desk import Desk
from scripts.lifecycle.queue.session import Session
from scripts.utils.errors import Misconfigured
from scripts.utils.logging_utils import get_logger

STATES = ("pending", "assigned", "escalated", "deferred", "resolved")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs; without one, a session."""
    parser.set_defaults(item=None, item_type=None, priority=None, status=None, older_than=None)
    verbs = parser.add_subparsers(dest="verb", title="verbs; without one, a session in the terminal")
    texts = {
        "list": "show what is open, worst first",
        "show": "show one item, and its resource as it is now",
        "claim": "take the worst item, or this one",
        "resolve": "carry a decision out: on one item, or on all that a filter finds",
        "defer": "put an item off until a day",
        "escalate": "ask for somebody else's decision",
        "release": "give a claimed item back",
        "undo": "take your last claim, deferral or escalation of an item back",
        "reopen": "take a resolution back; what it did to the data stays",
    }
    of = {name: verbs.add_parser(name, help=text) for name, text in texts.items()}
    for name, verb in of.items():
        if name != "list":
            many = name in ("claim", "resolve")
            verb.add_argument("item", type=UUID, nargs="?" if many else None, metavar="ID", help="the item")
        verb.add_argument("--format", choices=["console", "json"], help="default: console on a terminal, or json")
    for verb in (of["list"], of["claim"], of["resolve"], parser):
        _add_filter(verb)
    of["list"].add_argument("--status", choices=STATES, default=None, help="only what is in this state")
    of["list"].add_argument(
        "--limit", type=positive, default=100, metavar="N", help="items to show at most; default: 100"
    )
    of["resolve"].add_argument("--decision", required=True, metavar="NAME", help="show ID lists what is offered")
    of["resolve"].add_argument(
        "--reason", required=True, metavar="TEXT", help="why; kept on the item; -: from standard input"
    )
    of["resolve"].add_argument("--until", metavar="T", help="for a decision that needs a day: 7d, or 2027-01-31")
    of["resolve"].add_argument("--yes", action="store_true", help="with a filter: do it; without it, only a preview")
    of["defer"].add_argument("--until", required=True, metavar="T", help="7d, or 2027-01-31")
    for verb in (*of.values(), parser):
        add_operator_flag(verb)
    for verb in of.values():
        add_common_flags(verb)


def _add_filter(parser: argparse.ArgumentParser) -> None:
    absent = argparse.SUPPRESS
    parser.add_argument("--item-type", default=absent, metavar="TYPE", help="only items of this type")
    parser.add_argument("--priority", choices=PRIORITIES, default=absent, help="only items of this priority")
    parser.add_argument(
        "--older-than", default=absent, metavar="T", help="only what was first seen before: 2d, or a day"
    )


def work(run: Run) -> None:
    """Carry out one verb, or hold a session."""
    verb = run.options.flags.verb
    with closing(Desk(run)) as desk:
        if verb:
            queue_verbs.carry_out(run, desk, verb)
            return
        if not (run.display.enabled and sys.stdin.isatty()):
            raise Misconfigured("a session needs a terminal: name a verb, such as list (--help shows them)")
        if run.options.dry_run:
            raise Misconfigured("CLEANUP_DRY_RUN is set, and a session claims items: use list and show")
        session = Session(run, desk, queue_verbs.filter_of(run))
        try:
            session.run()
        finally:
            get_logger().info("queue_session_ended", decided=session.decided)


JOB = Job(
    "process_queue",
    work,
    "Decide what is on the manual-resolution queue.",
    kind=Kind.TAKES_NO_LOCK,
    events="process_queue",
    arguments=arguments,
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
