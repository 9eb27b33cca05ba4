#!/usr/bin/env python3
"""Say under which rule something was deleted: when, by whom, in which run, and the policy as it was written then.

Reads only. A key that could be somebody's address comes on standard input: --record -.
Runbook: scripts/retention/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse
import re
from contextlib import suppress
from uuid import UUID

from rich.table import Table

from scripts.lifecycle.audit import provenance
from scripts.lifecycle.audit.provenance import Entry, PolicyFile, RunFacts
from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main
from scripts.utils import pages
from scripts.utils.addresses import Address
from scripts.utils.db_utils import Connection
from scripts.utils.errors import Misconfigured
from scripts.utils.logging_utils import get_logger
from scripts.utils.pseudonyms import pseudonym

IMPERSONAL = re.compile(r"[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|\d{1,20}")
CORRELATION_ID = re.compile(r"[0-9a-f]{16}")
KNOWN_BY = {
    "audit": "the sealed audit entry names it",
    "run": "the run's record names it",
    "time": "by its time only: the newest file in use then; run and entry do not name one",
}

Found = tuple[Entry, RunFacts | None, PolicyFile | None]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a record or a run."""
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--record", metavar="ID", help="the record's id; -: read it from standard input")
    asked.add_argument("--run", metavar="ID", help="a run: run_id of the audit, or correlation_id of a log line")
    parser.add_argument("--resource-type", metavar="SCHEMA.TABLE", help="the record's table; default: any")
    parser.add_argument("--whole-file", type=Path, metavar="FOLDER", help="write the policy files there, named by hash")


def work(run: Run) -> None:
    """Find the entries, verify their seals, and show each with its policy.

    Raises:
        Misconfigured: --whole-file names no folder.
    """
    folder: Path | None = run.options.flags.whole_file
    if folder and not folder.is_dir():
        raise Misconfigured(f"--whole-file {folder}: that is not a folder that is there")
    ids = _ids(run) if run.options.flags.record else None
    found = run.database.read(lambda connection: _found(run, connection, ids), statement_timeout=run.budget_seconds)
    if not found:
        asked = "it: these scripts did not delete it" if ids else "that run, or its record is gone: ask by its run_id"
        get_logger().warning("nothing_found", effect=f"the audit has no entry of {asked}")
    for entry, facts, policy_file in found:
        if policy_file:
            policy_file.require_unaltered()
        _say(run, entry, facts, policy_file)
    for policy_file in {each.hash: each for _, _, each in found if each}.values():
        if folder:
            pages.write(folder / f"{policy_file.hash}.yaml", policy_file.document, "--whole-file")
            get_logger().info("policy_file_written", file=str(folder / f"{policy_file.hash}.yaml"))


def _ids(run: Run) -> list[str]:
    """Return every name under which the audit may hold the record.

    Raises:
        Misconfigured: A key that may be personal is on the command line, or its pseudonym cannot be made.
    """
    record: str = run.options.flags.record
    if record != "-":
        if not IMPERSONAL.fullmatch(record):
            raise Misconfigured(
                "--record: neither a UUID nor a number, so maybe personal: use --record - and type it in"
            )
        return [record]
    record = sys.stdin.readline().strip()
    if not record:
        raise Misconfigured("--record -: standard input is empty")
    if IMPERSONAL.fullmatch(record):
        return [record]
    names = {record}
    with suppress(Misconfigured):  # no address: a key of another kind
        names.add(Address.parse(record).normalized)
    return [*names, *(pseudonym(run.settings, name) for name in names)]


def _found(run: Run, connection: Connection, ids: list[str] | None) -> list[Found]:
    if ids:
        entries = provenance.of_record(connection, ids, run.options.flags.resource_type)
    else:
        entries = provenance.of_runs(connection, _runs(connection, run.options.flags.run))
        wanted = run.options.flags.resource_type
        entries = [entry for entry in entries if wanted in (None, entry.resource_type)]
    provenance.require_sealed(connection, entries)
    return [
        (entry, provenance.run_of(connection, entry), provenance.policy_file_of(connection, entry)) for entry in entries
    ]


def _runs(connection: Connection, name: str) -> list[UUID]:
    if CORRELATION_ID.fullmatch(name):
        return provenance.runs_called(connection, name)
    try:
        return [UUID(name)]
    except ValueError:
        raise Misconfigured(f"--run {name}: neither a run_id nor a correlation_id") from None


def _say(run: Run, entry: Entry, facts: RunFacts | None, policy_file: PolicyFile | None) -> None:
    said = policy_file.said_of(*entry.place) if policy_file and entry.place else {}
    answer = {
        "action": entry.action,
        "resource_type": entry.resource_type,
        "records": entry.records,
        "first_at": entry.first_at.isoformat(),
        "last_at": entry.last_at.isoformat(),
        "actor": entry.actor,
        "reason": entry.reason,
        "recorded_by": entry.recorded_by,
        "due_before": entry.due_before,
        "period": entry.period,
        "batches": f"{entry.first_batch} to {entry.last_batch}",
        "run_id": str(entry.run_id) if entry.run_id else None,
        "run": f"{facts.script} {facts.correlation_id}, {facts.status}, version {facts.version}" if facts else None,
        "policy": entry.policy,
        "rule": entry.rule,
        "legal_basis": said.get("legal_basis") or said.get("ground"),
        "decision": said.get("decision"),
        "policy_hash": policy_file.hash if policy_file else None,
        "policy_known_by": KNOWN_BY[policy_file.known_by] if policy_file else None,
        "policy_text": policy_file.section(*entry.place) if policy_file and entry.place else None,
    }
    if not run.display.enabled:
        get_logger().info("deletion_explained", **answer)
        return
    table = Table(title=f"{entry.action} of {entry.resource_type}", show_header=False, show_lines=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in answer.items():
        table.add_row(name, str(value) if value is not None else "-")
    run.display.show(table)


JOB = Job(
    "explain_deletion",
    work,
    "Say under which rule something was deleted.",
    kind=Kind.TAKES_NO_LOCK,
    events="explanation",
    arguments=arguments,
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
