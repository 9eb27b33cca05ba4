"""The queue by command line: each verb prints one JSON object, or a table at a terminal."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

from scripts.lifecycle.jobs.handover import item_types
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.jobs.terminal import emit_json
from scripts.lifecycle.queue import live_state
from scripts.lifecycle.queue.decisions import Decision, Effect, offered, require_offered
from scripts.lifecycle.queue.desk import Desk
from scripts.lifecycle.queue.matter import DecisionFailed
from scripts.lifecycle.queue.session import described, until_of
from scripts.lifecycle.queue.work import Filter, QueueItem, SomebodyWasFirst, backlog, get, items
from scripts.utils.errors import Misconfigured
from scripts.utils.logging_utils import get_logger

# After this number of failures in a row, the store or the database is considered to refuse everything.
_FAILURES_IN_A_ROW = 20
_PREVIEWED = 20


def carry_out(run: Run, desk: Desk, verb: str) -> None:
    """Carry out one verb.

    Raises:
        Misconfigured: A flag is wrong, or missing.
        SomebodyWasFirst: The item is not in the state that the verb needs.
        DecisionFailed: The decision could not be carried out; the item is unchanged.
    """
    flags = run.options.flags
    if verb == "list":
        _list(run)
    elif verb == "show":
        _show(run, desk, _require(run, flags.item))
    elif verb == "resolve" and flags.item is None:
        _resolve_all(run, desk)
    elif run.options.dry_run:
        get_logger().warning(
            "queue_would_change", dry_run=True, verb=verb, effect="CLEANUP_DRY_RUN is set: nothing is done"
        )
    elif verb == "claim":
        _claim(run, desk)
    elif verb == "resolve":
        _resolve(run, desk, _require(run, flags.item))
    else:
        _require(run, flags.item)
        changes: dict[str, Callable[[UUID], QueueItem]] = {
            "defer": lambda item: desk.work.defer(item, until_of(flags.until, run.database.now())),
            "escalate": desk.work.escalate,
            "release": desk.work.release,
            "undo": desk.work.undo,
            "reopen": desk.work.reopen,
        }
        _print(run, {"item": changes[verb](flags.item)})


def filter_of(run: Run) -> Filter:
    """Return the filter that the flags describe.

    Raises:
        Misconfigured: A type is not known, or a time cannot be read.
    """
    flags = run.options.flags
    types = item_types(run.policies)
    if flags.item_type and flags.item_type not in types:
        raise Misconfigured(f"--item-type is none of {', '.join(types)}")
    older_than = None
    if flags.older_than:
        now = run.database.now()
        moment = until_of(flags.older_than, now)
        # 2d is a length of time: older than two days.
        older_than = now - (moment - now) if flags.older_than[-1:] in ("d", "h") else moment
    return Filter(flags.item, flags.item_type, flags.priority, flags.status, older_than)


def _require(run: Run, item_id: UUID) -> QueueItem:
    item = get(run.database, item_id)
    if item is None:
        raise Misconfigured(f"there is no item {item_id}")
    return item


def _list(run: Run) -> None:
    only = filter_of(run)
    found = items(run.database, only, open_only=only.status != "resolved", limit=run.options.flags.limit)
    left = backlog(run.database, only)
    if not _wants_json(run):
        _tabulate(run, found)
        run.display.say(f"{left.open} open, {left.past_deadline} past deadline; {len(found)} shown")
        return
    _print(run, {"open": left.open, "past_deadline": left.past_deadline, "items": found})


def _show(run: Run, desk: Desk, item: QueueItem) -> None:
    state = live_state.look(run, item, lambda: desk.client)
    decisions = offered(run.policies, item)
    if _wants_json(run):
        _print(run, {"item": item, "now": state, "decisions": {d.name: d.label for d in decisions}})
        return
    for line in described(item, state):
        run.display.say(line)
    for decision in decisions:
        run.display.say(f"--decision {decision.name}: {decision.label}")


def _claim(run: Run, desk: Desk) -> None:
    claimed = desk.work.claim(filter_of(run))
    if claimed is None and run.options.flags.item:
        raise SomebodyWasFirst(f"item {run.options.flags.item} cannot be claimed: show it")
    _print(run, {"item": claimed})


def _resolve(run: Run, desk: Desk, item: QueueItem) -> None:
    flags = run.options.flags
    decision = require_offered(run.policies, item, flags.decision)
    until = until_of(flags.until, run.database.now()) if flags.until else None
    happened = _decide(desk, item, decision, _reason(run), until)
    _print(run, {"item": get(run.database, item.id), "happened": happened})


def _decide(desk: Desk, item: QueueItem, decision: Decision, reason: str, until: datetime | None) -> str:
    """Claim an item, decide it, and give it back if that fails, so that nobody else decides it meanwhile."""
    claimed = desk.work.claim(Filter(item_id=item.id))
    try:
        return desk.decide(claimed or item, decision, reason, until)
    except BaseException:
        if claimed:
            _give_back(desk, claimed)
        raise


def _resolve_all(run: Run, desk: Desk) -> None:
    """Decide every item that the filter finds, the worst first. Without --yes it only says which they would be.

    Raises:
        Misconfigured: There is no filter, or the decision resolves no item.
        DecisionFailed: A decision could not be carried out.
    """
    flags, only = run.options.flags, filter_of(run)
    if only == Filter():
        raise Misconfigured("resolve needs an item's ID, or a filter such as --item-type")
    first = items(run.database, only, claimable=True, limit=_PREVIEWED)
    for item in first:
        decision = require_offered(run.policies, item, flags.decision)
        if decision.effect in (Effect.ESCALATE, Effect.DEFER):
            raise Misconfigured(
                f"--decision {decision.name} does not resolve: name one item, and the verb {decision.name}"
            )
    if not flags.yes or run.options.dry_run:
        left = backlog(run.database, only)
        if not _wants_json(run):
            _tabulate(run, first)
            run.display.say(
                f"{left.claimable} items would be decided: {flags.decision}. Nothing was done: add --yes to do it"
            )
            return
        _print(run, {"would_decide": left.claimable, "decision": flags.decision, "first": first})
        return
    until = until_of(flags.until, run.database.now()) if flags.until else None
    happened: Counter[str] = Counter()
    failed: dict[str, str] = {}
    try:
        _drain(run, desk, only, until, happened, failed)
    finally:
        _print(run, {"decided": happened.total(), "happened": dict(happened), "failed": failed})
    if failed:
        raise DecisionFailed(f"{len(failed)} items could not be decided; they are as they were")


def _drain(
    run: Run, desk: Desk, only: Filter, until: datetime | None, happened: Counter[str], failed: dict[str, str]
) -> None:
    """Decide item after item, and collect what happened and what failed."""
    reason = _reason(run)
    in_a_row = 0
    while item := desk.work.claim(only, skipping=[UUID(key) for key in failed]):
        try:
            run.checkpoint()
            decision = require_offered(run.policies, item, run.options.flags.decision)
            happened[desk.decide(item, decision, reason, until)] += 1
            in_a_row = 0
        except (DecisionFailed, SomebodyWasFirst, Misconfigured) as problem:
            failed[str(item.id)] = str(problem)
            in_a_row += 1
            get_logger().warning("queue_item_not_decided", item=str(item.id), error=str(problem))
            _give_back(desk, item)
        except BaseException:
            _give_back(desk, item)
            raise
        if in_a_row >= _FAILURES_IN_A_ROW:
            get_logger().error("queue_batch_given_up", failures_in_a_row=in_a_row)
            return


def _reason(run: Run) -> str:
    """Return the justification of --reason; ``-`` reads it from standard input."""
    reason: str = run.options.flags.reason
    return sys.stdin.read().strip() if reason == "-" else reason


def _give_back(desk: Desk, item: QueueItem) -> None:
    with suppress(SomebodyWasFirst):
        desk.work.release(item.id)


def _wants_json(run: Run) -> bool:
    form = run.options.flags.format
    return form == "json" if form else not run.display.enabled


def _print(run: Run, answer: dict[str, Any]) -> None:
    """Print an answer as one line of JSON, or as an item's facts."""
    if _wants_json(run):
        emit_json(answer, _plain)
        return
    for name, value in answer.items():
        if isinstance(value, QueueItem):
            for line in described(value, {}):
                run.display.say(line)
        else:
            run.display.say(f"{name}: {'nothing' if value is None else value}")


def _plain(value: object) -> object:
    if isinstance(value, QueueItem):
        return asdict(value)
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _tabulate(run: Run, found: list[QueueItem]) -> None:
    headings = ("id", "type", "priority", "status", "deadline (UTC)", "seen", "assigned to")
    rows = [
        (
            str(item.id),
            item.item_type,
            item.priority,
            item.status,
            f"{item.deadline_at:%Y-%m-%d %H:%M}",
            str(item.occurrences),
            item.assigned_to or "-",
        )
        for item in found
    ]
    run.display.listing("manual-resolution queue, worst first", headings, rows, whole=("id",))
