#!/usr/bin/env python3
"""Prove that the audit log is whole: recompute every seal along the chain, and name what was altered or removed.

The functions, views and triggers of the schema are compared with those that the migrations made.
Compared with the heads that the log store has (--head, --heads) and with the anchor (AUDIT_ANCHOR_URL).
Exit 0: intact. Exit 1: broken; every finding is a line. Runbook: scripts/retention/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse

from scripts.lifecycle.audit import audit, audit_anchor, audit_heads, definitions
from scripts.lifecycle.jobs.arguments import positive
from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main
from scripts.lifecycle.jobs.period import END, day_or_moment
from scripts.utils.errors import AuditBroken, Misconfigured
from scripts.utils.logging_utils import get_logger

SHOWN = 100


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the part of the chain to verify, and for the heads to compare it with."""
    parser.add_argument("--since", type=day_or_moment, metavar="T", help="first day or moment, UTC; default: all")
    parser.add_argument("--until", type=day_or_moment, metavar="T", help="day or moment after the last; default: all")
    parser.add_argument("--from", type=positive, dest="first", metavar="BATCH", help="from this batch on")
    parser.add_argument(
        "--head", action="append", default=[], metavar="SEQ:SEAL", help="an audit_head that must be in it; repeatable"
    )
    parser.add_argument(
        "--heads", metavar="FILE", help="closing lines from the log store, or heads, one a line; -: standard input"
    )


def work(run: Run) -> None:
    """Verify the chain against the heads that were given, and the schema against its migrations.

    Raises:
        AuditBroken: An entry is altered, missing or added, or a definition is not that of the migrations.
        Misconfigured: The flags exclude each other, or there is nothing to compare with.
    """
    flags = run.options.flags
    if flags.first and (flags.since or flags.until):
        raise Misconfigured("--from counts batches, --since and --until tell the time: give one or the other")
    database = run.database.identity()
    heads = [*(audit.Head.parsed(head) for head in flags.head), *audit_heads.read(flags.heads, database)]
    anchor = audit_anchor.anchor_of(run.settings)
    if anchor:
        heads += audit_anchor.heads(anchor, database)
    span = audit.Span(flags.first) if flags.first else None
    period = (flags.since or END[0], flags.until or END[1]) if flags.since or flags.until else None
    result = audit.verify(run.database, *heads, span=span, period=period)
    replaced, made = run.database.read(definitions.replaced)
    for each in replaced[:SHOWN]:
        get_logger().error("definition_finding", finding=each)
    for finding in result.findings[:SHOWN]:
        get_logger().error("audit_finding", kind=finding.kind, seq=finding.seq, finding=str(finding))
    if not result.intact:
        raise AuditBroken(f"the audit log is broken in {len(result.findings)} places, the first: {result.findings[0]}")
    if replaced:
        raise AuditBroken(f"{len(replaced)} definitions are not those of the migrations, the first: {replaced[0]}")
    get_logger().info(
        "audit_intact",
        batches=result.batches,
        entries=result.entries,
        first_batch=result.span.first,
        heads_compared=result.heads,
        anchor_compared=anchor is not None,
        definitions=made,
        audit_head=result.head,
        audit_database=database,
    )


JOB = Job("verify_audit", work, "Verify the audit log.", kind=Kind.TAKES_NO_LOCK, events="verify", arguments=arguments)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
