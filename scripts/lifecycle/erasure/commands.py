"""What a person does with erasure requests: add, preview, export, list, show, identify, cancel, certify, verify."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from scripts.lifecycle.archives.catalogue import entries
from scripts.lifecycle.archives.keys import ArchiveKeys
from scripts.lifecycle.archives.verify import rows_out_of_reach
from scripts.lifecycle.erasure import certificate
from scripts.lifecycle.erasure import ledger as erasure_ledger
from scripts.lifecycle.erasure import requests as erasure_requests
from scripts.lifecycle.erasure.erasure import Eraser
from scripts.lifecycle.erasure.job import foreseen, kept_for_now
from scripts.lifecycle.erasure.plan import Found
from scripts.lifecycle.erasure.portability import ExportIncomplete, export
from scripts.lifecycle.erasure.requests import Request
from scripts.lifecycle.jobs.run import Run
from scripts.utils import pages
from scripts.utils.addresses import Address, NoAddress
from scripts.utils.archive_store import store_of
from scripts.utils.errors import Misconfigured
from scripts.utils.logging_utils import get_logger


def _address() -> Address:
    try:
        return Address.parse(sys.stdin.readline())
    except UnicodeDecodeError:
        raise NoAddress("it is no text") from None


def _free_words(run: Run, *names: str) -> None:
    for name in names:
        if "@" in str(getattr(run.options.flags, name) or ""):
            raise Misconfigured(f"--{name} must not hold an address: it stays on the request")


def _add(run: Run) -> None:
    _free_words(run, "channel", "identity")
    flags, address = run.options.flags, _address()
    if run.options.dry_run:
        get_logger().warning(
            "erasure_would_be_entered", dry_run=True, effect="CLEANUP_DRY_RUN is set: nothing is entered"
        )
        return
    operator = run.operator
    request = erasure_requests.again_if_entered_twice(
        lambda: run.writer.write(
            lambda connection: erasure_requests.add(
                connection,
                run.settings,
                address=address,
                channel=flags.channel or "operator",
                requested_at=flags.requested_at,
                identity=flags.identity,
                actor=f"operator:{operator}",
            )
        )
    )
    entered = run.database.read(lambda connection: erasure_requests.find(connection, request))
    get_logger().info("erasure_entered", **entered.facts())


def _preview(run: Run) -> None:
    address = _address()
    eraser = Eraser(run)
    found = eraser.search(address)
    if not run.display.enabled:
        get_logger().info("erasure_preview", **foreseen(found))
    else:
        headings = ("table", "rows", "action", "ground", "kept for now")
        run.display.listing("what an erasure would do", headings, _preview_rows(run, found))


def _preview_rows(run: Run, found: list[Found]) -> Iterator[tuple[str, ...]]:
    kept = kept_for_now(found)
    for each in found:
        steps = [step for step in run.policies.erasure.values() if step.table == each.table]
        yield (
            each.table,
            str(each.rows),
            " or ".join(dict.fromkeys(step.action for step in steps)) or "forget",
            "; ".join(dict.fromkeys(step.ground for step in steps)),
            ", ".join(f"{reason}: {rows}" for reason, rows in kept.get(each.table, {}).items()) or "-",
        )


def _export(run: Run) -> None:
    output: Path = run.options.flags.output
    made = export(run, _address(), output)
    get_logger().info(
        "export_written",
        output=str(output),
        records=made.records,
        missing=len(made.missing),
        left_out={table: len(columns) for table, columns in made.left_out.items()},
    )
    if made.missing:
        raise ExportIncomplete(
            f"{output} was written, but {len(made.missing)} things are missing, which its about.json lists:"
            f" {made.reasons}"
        )


def _list(run: Run) -> None:
    requests = erasure_requests.listed(run.database, everything=run.options.flags.all)
    if not run.display.enabled:
        for request in requests:
            get_logger().info("erasure_request", **request.facts())
        return
    rows = []
    for request in requests:
        moments = (f"{at:%Y-%m-%d %H:%M}" if at else "-" for at in (request.requested_at, request.deadline_at))
        rows.append((str(request.id), request.status, request.channel, *moments, request.identity_method or "not yet"))
    headings = ("request", "status", "channel", "asked (UTC)", "deadline (UTC)", "identity")
    run.display.listing("erasure requests", headings, rows, whole=("request",))


def _found(run: Run) -> Request:
    return run.database.read(lambda connection: erasure_requests.find(connection, run.options.flags.request))


def _show(run: Run) -> None:
    request = _found(run)
    facts: dict[str, object] = {}
    if request.address:
        facts = foreseen(Eraser(run).search(request.address))
    elif request.certificate:
        facts = {"done": request.certificate["done"], "kept": request.certificate["kept"]}
    get_logger().info("erasure_request", **request.facts(), **facts)


def _identify(run: Run) -> None:
    _free_words(run, "method")
    flags = run.options.flags
    if run.options.dry_run:
        _found(run)
        get_logger().warning("erasure_would_be_identified", dry_run=True, request=str(flags.request))
        return
    erasure_requests.identify(run.writer, flags.request, method=flags.method, operator=run.operator)
    get_logger().info("erasure_identified", request=str(flags.request))


def _cancel(run: Run) -> None:
    request = run.options.flags.request
    if run.options.dry_run:
        _found(run)
        get_logger().warning("erasure_would_be_cancelled", dry_run=True, request=str(request))
        return
    if erasure_requests.cancel(run.writer, request, operator=run.operator):
        erasure_ledger.withdraw(store_of(run.settings), run.settings, request)
    get_logger().info("erasure_cancelled", request=str(request))


def _certificate(run: Run) -> None:
    flags = run.options.flags
    request = _found(run)
    text = certificate.as_html(request) if flags.format == "html" else certificate.as_json(request)
    if flags.output:
        pages.write(flags.output, text)
        get_logger().info("certificate_written", request=str(request.id), output=str(flags.output))
    else:
        sys.stdout.write(text)


def _verify(run: Run) -> None:
    path: Path = run.options.flags.certificate
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path}: cannot be read ({type(error).__name__})") from None
    facts = certificate.verify(run.database, text)
    if run.options.flags.archives:
        _prove_unreadable(run, facts["request"])
    get_logger().info("certificate_verified", request=facts["request"], fulfilled_at=facts["fulfilled_at"])


def _prove_unreadable(run: Run, request: str) -> None:
    keys = ArchiveKeys(run.database, run.settings)
    keys.check()
    rows = run.database.read(
        lambda connection: connection.execute(
            "SELECT resource_id::bigint FROM ops.audit_log WHERE run_id = %s AND action = 'destroy_key'", (request,)
        ).fetchall()
    )
    destroyed = {key for (key,) in rows}
    chosen = run.database.read(lambda connection: entries(connection, statuses=["sealed", "expiring"]))
    out_of_reach = rows_out_of_reach(
        run.database, store_of(run.settings), keys, chosen, destroyed, between=run.checkpoint
    )
    get_logger().info(
        "archives_unreadable", request=request, keys=len(destroyed), archives=len(chosen), rows=out_of_reach
    )


def _sign_ledger(run: Run) -> None:
    """Accept lines without a valid code, or a ledger from which lines are missing, on an operator's word.

    Raises:
        Misconfigured: The operator has not accepted all that is unsigned or missing.
    """
    flags, operator, store = run.options.flags, run.operator, store_of(run.settings)
    found = erasure_ledger.examine(store, run.settings)
    ids = [line.request for line in found.lines]
    known = {str(request) for request in run.database.read(lambda c: erasure_requests.begun(c, ids))}
    named = {str(request) for request in flags.request}
    for line in found.lines:
        get_logger().warning(
            "ledger_line_unsigned", request=line.request, begun_at=line.started_at, known=line.request in known
        )
    problems = [f"{name} is no line: delete it" for name in found.refused]
    problems += [
        f"the database knows of no erasure {request} that was begun: name it if you accept it, else delete its object"
        for request in ids
        if request not in known | named
    ]
    if found.missing is not None and not flags.accept_missing:
        problems.append(
            f"{found.missing or 'some'} lines are missing: bring them back from a backup of ARCHIVE_URL, or accept that"
            " these people are not erased again: --accept-missing"
        )
    if problems:
        raise Misconfigured("; ".join(problems))
    facts = {"signed": len(ids), "lines": len(found.whole), "missing": found.missing or 0}
    if run.options.dry_run:
        get_logger().warning("ledger_would_be_signed", dry_run=True, **facts)
        return
    run.writer.write(lambda connection: erasure_ledger.sign(connection, store, run.settings, found, operator=operator))
    get_logger().info("ledger_signed", **facts)


VERBS: Mapping[str, Callable[[Run], None]] = MappingProxyType(
    {
        "add": _add,
        "preview": _preview,
        "export": _export,
        "list": _list,
        "show": _show,
        "identify": _identify,
        "cancel": _cancel,
        "certificate": _certificate,
        "verify": _verify,
        "sign-ledger": _sign_ledger,
    }
)
