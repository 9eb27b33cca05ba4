"""The nightly work on erasure requests, and its dry run; replaying what a restore of the database has undone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from scripts.lifecycle.erasure import ledger as erasure_ledger
from scripts.lifecycle.erasure import requests as erasure_requests
from scripts.lifecycle.erasure.confirmation import Aftercare
from scripts.lifecycle.erasure.erasure import Eraser, Outcome
from scripts.lifecycle.erasure.ledger import Line
from scripts.lifecycle.erasure.plan import BLOB, REFERENCED, Found
from scripts.lifecycle.erasure.requests import Request
from scripts.lifecycle.jobs.run import Run
from scripts.utils.addresses import Address, NoAddress
from scripts.utils.db_utils import Database, ReadOnlyDatabase
from scripts.utils.errors import ExitCode
from scripts.utils.logging_utils import get_logger
from scripts.utils.pseudonyms import ledger_digest


@dataclass
class Tally:
    """What a run came to, in requests."""

    taken_in: int = 0
    fulfilled: int = 0
    blocked: int = 0
    newly_queued: int = 0
    unfinished: int = 0
    confirmed: int = 0
    waiting_for_identity: int = 0


def enforce(run: Run) -> None:
    """Carry out every request that may be, the oldest deadline first.

    Raises:
        ArchiveStoreFailed: Ledger or certificate could not be written; nobody else is erased.
        PolicyFailed: The blob store refuses every call, after everything else was done.
        StoppedEarly: The run must stop; the next one goes on.
    """
    eraser = Eraser(run)
    if run.options.dry_run:
        _predict(run, eraser)
        return
    # Before anything is written: a ledger that is not to be believed stops the run.
    undone = _undone(run, eraser) if run.options.flags.replay else []
    eraser.ledger()
    taken_in, unreadable = erasure_requests.take_in(run.writer, run.settings, actor=f"system:{run.script}")
    tally = Tally(taken_in, blocked=unreadable, newly_queued=unreadable)
    tally.waiting_for_identity = erasure_requests.waiting(run.database)
    try:
        if run.options.flags.replay:
            _replay(run, eraser, undone)
        _carry_out(run, eraser, tally)
        eraser.ledger().forget(run.writer, days=run.settings.backup_retention_days, between=run.checkpoint)
    finally:
        eraser.close()
        run.facts |= asdict(tally) | {"ledger_lines": eraser.ledger().lines}
    if eraser.blobs.refused:
        raise eraser.blobs.refused
    if tally.unfinished:
        run.ending = ExitCode.STOPPED_EARLY
    elif tally.newly_queued:
        run.ending = ExitCode.NEEDS_A_PERSON


def _carry_out(run: Run, eraser: Eraser, tally: Tally) -> None:
    aftercare = Aftercare(run, eraser.store)
    for request in erasure_requests.to_finish(run.database):  # what an earlier run left untold
        run.checkpoint()
        tally.confirmed += aftercare.finish(request)
    for number, request in enumerate(erasure_requests.to_carry_out(run.database)):
        if run.options.limit is not None and number >= run.options.limit:
            return
        run.checkpoint()
        outcome = eraser.carry_out(request)
        tally.fulfilled += outcome is Outcome.FULFILLED
        tally.unfinished += outcome is Outcome.UNFINISHED
        tally.blocked += outcome in (Outcome.BLOCKED, Outcome.BLOCKED_ANEW)
        tally.newly_queued += outcome is Outcome.BLOCKED_ANEW
        if outcome is Outcome.FULFILLED:
            tally.confirmed += aftercare.finish(_fresh(run.database, request))


def _fresh(database: ReadOnlyDatabase, request: Request) -> Request:
    return database.read(lambda connection: erasure_requests.find(connection, request.id))


def _predict(run: Run, eraser: Eraser) -> None:
    """Say of each request what a run would find; write nothing."""
    if run.options.flags.replay:
        for line in _undone(run, eraser):
            get_logger().info("erasure_would_be_replayed", request=line.request, begun_at=line.started_at)
    total = 0
    for request in erasure_requests.listed(run.database, everything=False):
        run.checkpoint()
        total += 1
        try:
            address = request.address or Address.parse(request.email or "")
        except NoAddress as error:
            get_logger().warning("erasure_would_be_refused", request=str(request.id), error=str(error))
            continue
        get_logger().info(
            "erasure_predicted",
            **request.facts(),
            waits_for_identity=request.identity_verified_at is None,
            **foreseen(eraser.search(address)),
        )
    run.facts |= {"requests": total}


def foreseen(found: Iterable[Found]) -> dict[str, object]:
    """Return what there is of a person, and what would keep it."""
    found = list(found)
    return {
        "found": {each.table: each.rows for each in found},
        "blobs": sum(each.kept.get(BLOB, 0) for each in found),
        "kept": kept_for_now(found),
    }


def kept_for_now(found: Iterable[Found]) -> dict[str, dict[str, int]]:
    """Return why rows would stay, by table; not for their blobs, nor for what refers to them: both go before."""
    kept = {
        each.table: {reason: rows for reason, rows in each.kept.items() if reason not in (BLOB, REFERENCED)}
        for each in found
    }
    return {table: reasons for table, reasons in kept.items() if reasons}


def _undone(run: Run, eraser: Eraser) -> list[Line]:
    return erasure_ledger.undone(run.database, eraser.store, run.settings)


def _replay(run: Run, eraser: Eraser, lines: list[Line]) -> None:
    """Enter again what a restore of the database to a point in time has undone."""
    found = erasure_ledger.people(
        run.database,
        run.policies.erasure,
        lambda person: ledger_digest(run.settings, person),
        {line.digest for line in lines},
    )
    for line in lines:
        run.checkpoint()
        if line.digest in found:
            _reopen(run.writer, line, found[line.digest])
        elif eraser.destroy_key(line):
            _settle(run.writer, line)
        else:
            get_logger().warning(
                "erasure_not_replayed", request=line.request, error="a hold keeps the person's archive key"
            )
            continue
        get_logger().warning("erasure_replayed", request=line.request, begun_at=line.started_at)
    run.facts |= {"replayed": len(lines)}


def _reopen(database: Database, line: Line, person: str) -> None:
    database.write(lambda connection: erasure_ledger.reopen(connection, line, person))


def _settle(database: Database, line: Line) -> None:
    database.write(lambda connection: erasure_ledger.settle(connection, line, "cancelled", "nobody_left"))
