#!/usr/bin/env python3
"""Put something on the manual-resolution queue: one item by flags, or many as JSON on standard input.

The same resource and type seen again while its item is open is one more occurrence, never a second item.
Runbook: scripts/manual-resolution/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse
import json
from typing import Any

from scripts.lifecycle.engine import resources
from scripts.lifecycle.jobs import handover
from scripts.lifecycle.jobs.arguments import add_operator_flag
from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main
from scripts.lifecycle.policy.fields import PRIORITIES
from scripts.utils.errors import Misconfigured
from scripts.utils.logging_utils import get_logger

KEYS = ("item_type", "resource_type", "resource_id", "priority", "reason")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what an item consists of."""
    parser.add_argument("--item-type", metavar="TYPE", help=f"one of {', '.join(handover.ITEM_TYPES)}")
    parser.add_argument("--resource-type", metavar="SCHEMA.TABLE", help="what it is about")
    parser.add_argument("--resource-id", metavar="KEY", help="which one: a row's key")
    parser.add_argument("--priority", metavar="PRIORITY", help=f"one of {', '.join(PRIORITIES)}")
    parser.add_argument("--reason", metavar="TEXT", help="why a person must decide; name no person in it")
    parser.add_argument("--context", nargs="*", default=[], metavar="KEY=VALUE", help="facts that the decision needs")
    parser.add_argument("--json", choices=["-"], help="read one object, or a list of them, from standard input")
    add_operator_flag(parser)


def work(run: Run) -> None:
    """Check every item, then put all of them on the queue, or none."""
    told = _told(run)
    if not told:
        raise Misconfigured("there is no item on standard input")
    items, problems = [], []
    for number, facts in enumerate(told, 1):
        try:
            item, resource_id = handover.described(run.policies, facts, raised_by=f"operator:{run.operator}")
            _check_resource(run, item.resource_type, resource_id)
            items.append((item, resource_id))
        except Misconfigured as error:
            problems.append(f"item {number}: {error}" if len(told) > 1 else str(error))
    if problems:
        raise Misconfigured("nothing was added: " + " | ".join(problems))
    if run.options.dry_run:
        get_logger().warning("queue_items_would_be_added", dry_run=True, items=len(items), effect="nothing is added")
        return
    for (item, resource_id), is_new in zip(items, handover.raise_items(run.writer, run.settings, items), strict=True):
        event = "queue_item_added" if is_new else "queue_item_seen_again"
        get_logger().info(event, item_type=item.item_type, resource_type=item.resource_type, resource_id=resource_id)


def _check_resource(run: Run, table: str, resource_id: str) -> None:
    run.database.read(lambda connection: resources.require_resource(connection, run.policies, table, resource_id))


def _told(run: Run) -> list[Any]:
    flags = run.options.flags
    given = {name: getattr(flags, name) for name in KEYS}
    if not flags.json:
        return [{name: value for name, value in given.items() if value} | {"context": dict(map(_pair, flags.context))}]
    if any(given.values()) or flags.context:
        raise Misconfigured("--json - reads whole items: give it no other part of one")
    try:
        content = json.load(sys.stdin)
    except ValueError:
        raise Misconfigured("standard input is not JSON") from None
    return content if isinstance(content, list) else [content]


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise Misconfigured("--context is not of the form KEY=VALUE")
    return key, value


JOB = Job(
    "add_to_queue",
    work,
    "Put something on the manual-resolution queue.",
    kind=Kind.TAKES_NO_LOCK,
    events="add_to_queue",
    arguments=arguments,
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
