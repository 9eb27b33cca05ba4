"""The whole report: the parts in their order, and the figures of the first page."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from scripts.lifecycle.compliance import (
    archives,
    chain,
    enforcement,
    erasures,
    exceptions,
    inventory,
    policy_changes,
    punctuality,
)
from scripts.lifecycle.compliance.document import NOT_COUNTED, Report, Section
from scripts.lifecycle.compliance.looks import look
from scripts.lifecycle.compliance.scope import Scope, part
from scripts.lifecycle.jobs.period import month_or
from scripts.lifecycle.jobs.run import Run
from scripts.utils.db_utils import Connection
from scripts.utils.pages import duration

PARTS: tuple[tuple[str, str, Callable[[Scope, Section], None]], ...] = (
    ("inventory", "Data inventory: record of processing (GDPR Art. 30)", inventory.fill),
    ("enforcement", "Enforcement: what went, by which policy, and when", enforcement.fill),
    ("punctuality", "Punctuality: how late deletions were", punctuality.fill),
    ("exceptions", "Exceptions and legal holds", exceptions.exceptions_and_holds),
    ("queue", "Decisions that people owe", exceptions.queue),
    ("erasures", "Erasure requests (GDPR Art. 17)", erasures.fill),
    ("archives", "Archives", archives.fill),
    ("audit", "Audit chain", chain.fill),
    ("policy_changes", "Policy changes", policy_changes.fill),
)


def gather(run: Run, connection: Connection, since: datetime | None, until: datetime | None, *, quick: bool) -> Report:
    """Measure everything in the snapshot of the caller's read-only transaction. A part that fails is named.

    Args:
        run: The run.
        connection: In a READ ONLY transaction of one snapshot.
        since: The period's first moment; None: the last whole calendar month.
        until: The moment after its last.
        quick: Do not verify the whole chain, nor archives from before the period.

    Raises:
        Misconfigured: The period is empty or ends before it begins.
        StoppedEarly: A signal came.
    """
    row = connection.execute("SELECT now()").fetchone()
    if row is None:
        raise AssertionError("a clock answers")
    since, until = month_or(since, until, row[0])
    looks = {}
    for name, policy in run.policies.policies.items():
        run.stop_on_signal()
        looks[name] = look(run, policy, row[0])
    scope = Scope(run, connection, since, until, row[0], quick, looks)
    sections = []
    for key, title, fill in PARTS:
        run.stop_on_signal()
        sections.append(part(scope, key, title, fill))
    if until > row[0]:
        sections[0].uncounted.insert(0, f"the period ends {until:%Y-%m-%d %H:%M} UTC, after this report was made")
    return Report(
        source=run.settings.alert_source,
        since=since,
        until=until,
        measured_at=row[0],
        version=run.settings.render_git_commit,
        policy_hash=run.policies.hash,
        figures=_figures({section.key: section for section in sections}, scope),
        sections=sections,
    )


def _figures(sections: dict[str, Section], scope: Scope) -> list[tuple[str, str]]:
    def total(section: str, table: str, column: str, only: tuple[str, ...] | None = None) -> str:
        try:
            found = sections[section].table(table)
        except StopIteration:
            return NOT_COUNTED
        values = [row[column] for row in found.as_dicts() if only is None or row["action"] in only]
        return NOT_COUNTED if None in values else f"{sum(values):,}"

    def chain_result() -> str:
        try:
            results = {row["result"] for row in sections["audit"].table("verified").as_dicts()}
        except StopIteration:
            return NOT_COUNTED
        return "BROKEN" if "BROKEN" in results else "intact"

    residues = [each.residue for each in scope.looks.values() if each.policy.action != "retain"]
    ages = [residue.oldest_overdue_seconds for residue in residues if residue]
    oldest = duration(max(ages, default=None)) if len(ages) == len(residues) else NOT_COUNTED
    return [
        (
            "records and files that the policies deleted, archived, marked as deleted or anonymised",
            total("enforcement", "by_policy", "records", enforcement.WENT),
        ),
        ("past their date now", total("punctuality", "now", "remaining")),
        ("the oldest of these by", oldest),
        ("legal holds in force", total("exceptions", "holds", "in_force")),
        ("erasure requests fulfilled", total("erasures", "requests", "fulfilled")),
        ("archives", total("archives", "inventory", "objects")),
        ("audit chain", chain_result()),
        (
            "policy versions that came into use",
            str(len(sections["policy_changes"].table("versions").rows))
            if sections["policy_changes"].tables
            else NOT_COUNTED,
        ),
    ]
