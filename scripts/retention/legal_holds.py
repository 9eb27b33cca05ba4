#!/usr/bin/env python3
"""Place, list and release legal holds: what must not be deleted although its period has ended.

A hold is on a table, on a row of it (--table and --id), or on a person (--person -, the address on standard input).
Once the command has returned, nothing under the hold is deleted. Runbook: scripts/retention/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse
from dataclasses import asdict
from uuid import UUID

from scripts.lifecycle.engine import holds, people, resources
from scripts.lifecycle.jobs.arguments import add_common_flags, add_operator_flag, moment
from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main
from scripts.lifecycle.monitoring import hold_levels
from scripts.utils.addresses import Address
from scripts.utils.errors import Misconfigured
from scripts.utils.free_text import impersonal
from scripts.utils.logging_utils import get_logger


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs place, list and release."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    place = verbs.add_parser("place", help="hold a table, a row or a person")
    place.add_argument("--table", metavar="SCHEMA.TABLE", help="as the policy file writes it")
    place.add_argument("--id", metavar="KEY", help="one row of the table")
    place.add_argument("--person", choices=["-"], help="read an e-mail address from standard input")
    place.add_argument("--reason", required=True, type=impersonal, help="kept on the hold; name no person in it")
    place.add_argument(
        "--until", type=moment, metavar="T", help="the hold ends by itself, such as 2027-01-31T00:00:00Z"
    )
    listing = verbs.add_parser("list", help="show the holds in force")
    release = verbs.add_parser("release", help="end a hold; the next run takes what is due")
    release.add_argument("hold", type=UUID, help="the hold's id")
    for verb in (place, listing, release):
        add_common_flags(verb)
        add_operator_flag(verb)


def work(run: Run) -> None:
    """Carry out one verb."""
    {"place": _place, "list": _list, "release": _release}[run.options.flags.verb](run)


def _place(run: Run) -> None:
    flags = run.options.flags
    person = Address.parse(sys.stdin.readline()).normalized if flags.person else None
    key = (
        run.database.read(lambda connection: resources.key_to_hold(connection, run.policies, flags.table))
        if flags.table
        else None
    )
    what: holds.What = {
        "table": flags.table,
        "resource_id": flags.id,
        "person": person,
        "expires_at": flags.until,
        "key": key,
    }
    if person and (problems := run.database.read(lambda connection: people.nameless(connection, run.policies))):
        raise Misconfigured(f"nothing is held: {'; '.join(problems)}: {people.CURE}")
    if run.options.dry_run:
        scope = run.database.read(lambda connection: holds.check(connection, **what))
        get_logger().warning(
            "hold_would_be_placed",
            dry_run=True,
            scope=scope,
            table=flags.table,
            row=flags.id,
            until=flags.until,
            effect="CLEANUP_DRY_RUN is set: nothing is held",
        )
        return
    hold = holds.place(run.writer, operator=run.operator, reason=flags.reason, **what)
    get_logger().info("hold_placed", hold=str(hold))


def _list(run: Run) -> None:
    found, now = holds.active(run.database), run.database.now()
    if not run.display.enabled:
        for hold in found:
            get_logger().info("hold_in_force", **asdict(hold), ends_soon=hold.ends_soon(now))
        return
    rows = []
    for hold in found:
        soon = f" (in {hold_levels.days(hold, now)})" if hold.ends_soon(now) else ""
        placed, until = (f"{at:%Y-%m-%d %H:%M}" if at else "released" for at in (hold.placed_at, hold.expires_at))
        ends = f"{until}{soon}" if hold.expires_at else "released by hand"
        what = (str(hold.id), hold.scope, hold.table_name or "-", hold.resource_id or "-")
        rows.append((*what, hold.reason, hold.placed_by, placed, ends))
    headings = ("id", "scope", "table", "row", "reason", "by", "placed (UTC)", "until (UTC)")
    run.display.listing("legal holds in force", headings, rows, whole=("id", "row"))


def _release(run: Run) -> None:
    hold: UUID = run.options.flags.hold
    if run.options.dry_run:
        run.database.read(lambda connection: holds.require_in_force(connection, hold))
        get_logger().warning(
            "hold_would_be_released",
            dry_run=True,
            hold=str(hold),
            effect="CLEANUP_DRY_RUN is set: the hold stays in force",
        )
        return
    holds.release(run.writer, hold, operator=run.operator)
    get_logger().info("hold_released", hold=str(hold))


JOB = Job(
    "legal_holds",
    work,
    "Place, list and release legal holds.",
    kind=Kind.TAKES_NO_LOCK,
    events="legal_holds",
    arguments=arguments,
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
