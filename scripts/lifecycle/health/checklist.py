"""The two checklists that people used to tick by hand: each box is ticked by evidence.

A box is ticked when all of its evidence is PASS. Evidence that is not visible from here leaves the box open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from scripts.lifecycle.health import configuration, database, evidence, locks, schedule, services, vacuum
from scripts.lifecycle.health.findings import CONNECTION, Check, Context, Finding, examine

Mark = Literal["ok", "not visible", "warning", "not"]
_ORDER: tuple[Mark, ...] = ("ok", "warning", "not visible", "not")


@dataclass(frozen=True)
class Box:
    """One box: the list it is on, its text, and the checks that tick it."""

    checklist: Literal["before running any script", "before deploying"]
    text: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Judged:
    """A box with what was found."""

    box: Box
    findings: tuple[Finding, ...]

    @property
    def mark(self) -> Mark:
        """The worst mark of its evidence."""
        return max((mark_of(finding) for finding in self.findings), key=_ORDER.index, default="not visible")

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "checklist": self.box.checklist,
            "box": self.box.text,
            "mark": self.mark,
            "evidence": [finding.as_dict() | {"mark": mark_of(finding)} for finding in self.findings],
        }


def mark_of(finding: Finding) -> Mark:
    """Return the mark of one piece of evidence."""
    if finding.status == "WARN":
        return "not visible" if evidence.NOT_VISIBLE.strip(": ") in finding.message else "warning"
    return "ok" if finding.status == "PASS" else "not"


_CONNECTION = Check(CONNECTION, database.connection, needs_database=False)
_REDIS = Check("redis", locks.redis_answers, needs_database=False)
_AUDIT = Check("audit", evidence.audit_chain)
_PREDICTION = Check("prediction", evidence.prediction)

BOXES = (
    Box("before running any script", "Test with LIMIT", (Check("limit", evidence.limit),)),
    Box("before running any script", "Enable Dry-Run", (_PREDICTION,)),
    Box(
        "before running any script",
        "Check Dependencies",
        (
            _CONNECTION,
            Check("role", database.role),
            Check("schema", database.schema),
            Check("suite", database.suite),
            Check("policies", database.policies),
            Check("indexes", database.indexes),
        ),
    ),
    Box("before running any script", "Review Audit Logs", (_AUDIT,)),
    Box(
        "before running any script",
        "Monitor Performance",
        (
            Check("autovacuum", vacuum.autovacuum),
            Check("snapshots", vacuum.snapshots),
            Check("watched", evidence.watched),
        ),
    ),
    Box(
        "before deploying",
        "Environment variables configured in Render",
        (
            Check("settings", configuration.settings, needs_database=False),
            Check("variables", evidence.variables, needs_database=False),
            Check("blob", services.blob, needs_database=False),
            Check("sentry", services.sentry, needs_database=False),
        ),
    ),
    Box(
        "before deploying",
        "Cron schedules defined in render.yaml",
        (
            Check("blueprint", evidence.blueprint, needs_database=False),
            Check("schedule", schedule.schedule, needs_database=False),
        ),
    ),
    Box("before deploying", "Distributed locks tested", (_REDIS, Check("exclusion", evidence.exclusion))),
    Box("before deploying", "Audit logging verified", (_AUDIT,)),
    Box("before deploying", "SLA monitoring alerts configured", (Check("alerts", evidence.alerts),)),
    Box("before deploying", "Dry-run tested with production-like data", (_PREDICTION,)),
    Box("before deploying", "Runbooks documented for operators", (Check("runbooks", evidence.runbooks, False),)),
    Box(
        "before deploying",
        "Rollback plan prepared",
        (Check("archives", services.archives), Check("rollback", evidence.rollback)),
    ),
)


def judge(context: Context) -> Iterator[Judged]:
    """Judge each box; a check that several boxes share is carried out once.

    Raises:
        StoppedEarly: A signal came, or the time budget is used up.
    """
    # The connection first: without one, the other checks say so instead of failing one by one.
    found: dict[str, tuple[Finding, ...]] = {CONNECTION: tuple(examine(context, [_CONNECTION]))}
    for box in BOXES:
        for check in box.checks:
            if check.name not in found:
                found[check.name] = tuple(examine(context, [check]))
        yield Judged(box, tuple(finding for check in box.checks for finding in found[check.name]))
