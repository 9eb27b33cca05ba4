"""The part on the audit chain: the seals of the period, of the whole chain, and the heads that the anchor kept."""

from __future__ import annotations

from scripts.lifecycle.audit import audit_anchor
from scripts.lifecycle.audit.audit_chain import Head, Verification, span_of, verify_within
from scripts.lifecycle.compliance.document import Column, Section, Statement, Table
from scripts.lifecycle.compliance.scope import Scope
from scripts.utils.errors import OpsError

SHOWN = 20


def fill(scope: Scope, section: Section) -> None:
    """Recompute the seals outside the database, and add what differs."""
    heads: list[Head] = []
    anchored = "no anchor is set (AUDIT_ANCHOR_URL)"
    try:
        if anchor := audit_anchor.anchor_of(scope.run.settings):
            heads = audit_anchor.heads(anchor, scope.run.database.identity())
            anchored = f"{len(heads):,} heads that the anchor kept"
    except OpsError as error:
        anchored = "the anchor could not be compared"
        section.uncounted.append(f"the audit's anchor was not compared: {error}")
    section.lead.append(
        "Each batch of the audit is sealed with SHA-256 over its content and the seal before it. Every seal was"
        f" recomputed outside the database; compared with: {anchored}. The head below belongs into the file with this"
        " report: a later verification can be held against it (verify_audit.py --head)."
    )
    found = [
        ("the period", verify_within(scope.connection, heads, span_of(scope.connection, scope.since, scope.until)))
    ]
    if not scope.quick:
        found.append(("the whole chain", verify_within(scope.connection, heads)))
    section.tables.append(
        Table(
            "verified",
            "Verified",
            (
                Column("part", "part", weight=1.3),
                Column("first_batch", "from batch", "number"),
                Column("batches", "batches", "number"),
                Column("entries", "entries", "number"),
                Column("heads", "heads compared", "number"),
                Column("findings", "findings", "number"),
                Column("result", "result"),
            ),
            [(part, *_figures(result)) for part, result in found],
        )
    )
    head = found[-1][1].head
    section.tables.append(
        Table("head", "Head of the chain", (Column("audit_head", "audit_head, when the report was made"),), [(head,)])
    )
    told = dict.fromkeys(str(finding) for _, result in found for finding in result.findings)
    section.statements += [Statement("broken", f"audit: {each}") for each in list(told)[:SHOWN]]
    if len(told) > SHOWN:
        section.statements.append(
            Statement(
                "broken",
                f"audit: and {len(told) - SHOWN:,} findings more; verify_audit.py names them",
                len(told) - SHOWN,
            )
        )


def _figures(result: Verification) -> tuple[int | str, ...]:
    return (
        result.span.first,
        result.batches,
        result.entries,
        result.heads,
        len(result.findings),
        "intact" if result.intact else "BROKEN",
    )
