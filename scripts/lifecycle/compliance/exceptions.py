"""The parts on what is kept past its period: exceptions, legal holds, items of the manual-resolution queue."""

from __future__ import annotations

from scripts.lifecycle.compliance.document import Column, Section, Statement, Table
from scripts.lifecycle.compliance.inventory import conditions
from scripts.lifecycle.compliance.scope import Scope
from scripts.lifecycle.queue import metrics as queue_metrics

_HOLDS = """
SELECT count(*) FILTER (WHERE id IN (SELECT id FROM ops.holds_in_force)) AS in_force,
       count(*) FILTER (WHERE placed_at >= %(since)s AND placed_at < %(until)s) AS placed,
       count(*) FILTER (WHERE released_at >= %(since)s AND released_at < %(until)s) AS released,
       count(*) FILTER (WHERE released_at IS NULL AND expires_at >= %(since)s
                          AND expires_at < least(%(until)s, %(now)s)) AS ran_out, scope
  FROM ops.legal_holds GROUP BY scope
"""
# Without reason, row and person: a reason is free text and may be about somebody.
_IN_FORCE = """
SELECT id::text AS id, scope, table_name, placed_at, expires_at, placed_by FROM ops.holds_in_force
 ORDER BY placed_at, id LIMIT 200
"""
SCOPES = {"person": "a person", "row": "a row", "table": "a whole table"}


def exceptions_and_holds(scope: Scope, section: Section) -> None:
    """Count the rows that exceptions keep, and the legal holds."""
    rows = [
        (name, exception, conditions(rule.when), look.excepted.get(exception), bool(rule.queue))
        for name, look in scope.looks.items()
        for exception, rule in look.policy.exceptions.items()
    ]
    section.tables.append(
        Table(
            "exceptions",
            "Exceptions: kept whatever their age",
            (
                Column("policy", "policy", weight=1.4),
                Column("exception", "exception", weight=1.2),
                Column("when", "when", weight=3),
                Column("queued", "a person decides", weight=1),
                Column("rows", "rows now", "number", weight=0.8),
            ),
            [(policy, name, when, "yes" if queued else "no", count) for policy, name, when, count, queued in rows],
        )
    )
    holds = {row["scope"]: row for row in scope.rows(_HOLDS)}
    keys = ("in_force", "placed", "released", "ran_out")
    section.tables.append(
        Table(
            "holds",
            "Legal holds",
            (
                Column("scope", "on", weight=1.5),
                Column("in_force", "in force now", "number"),
                Column("placed", "placed in the period", "number"),
                Column("released", "released in the period", "number"),
                Column("ran_out", "ran out in the period", "number"),
            ),
            [(told, *(holds.get(name, {}).get(key, 0) for key in keys)) for name, told in SCOPES.items()],
        )
    )
    section.tables.append(
        Table(
            "held",
            "Rows past their date that a hold keeps",
            (Column("policy", "policy"), Column("held", "held now", "number")),
            [
                (name, look.residue.held if look.residue else None)
                for name, look in scope.looks.items()
                if look.residue is None or look.residue.held
            ],
        )
    )
    section.tables.append(
        Table(
            "holds_in_force",
            "Holds in force",
            (
                Column("id", "hold", weight=2.9),
                Column("scope", "on"),
                Column("table", "table", weight=1.6),
                Column("placed_at", "placed (UTC)", "moment", weight=1.3),
                Column("until", "until (UTC)", "moment", weight=1.3),
                Column("placed_by", "by", weight=1.3),
            ),
            [
                (
                    row["id"],
                    SCOPES[row["scope"]],
                    row["table_name"],
                    row["placed_at"],
                    row["expires_at"],
                    row["placed_by"],
                )
                for row in scope.rows(_IN_FORCE)
            ],
            "Why: legal_holds.py list. At most 200 are shown; the reason, the row and the person are not.",
        )
    )


def queue(scope: Scope, section: Section) -> None:
    """Add the figures of the manual-resolution queue."""
    figures = queue_metrics.measure(scope.connection, scope.since, scope.until).as_dict()
    section.lead = [
        "What is open is open now, whatever the period; the rest is of the period. More: report_metrics.py."
    ]
    section.tables += [
        Table(
            "figures",
            "Manual-resolution queue",
            (Column("figure", "figure", weight=3), Column("value", "value", "number")),
            [
                ("open now", figures["open_count"]),
                ("deferred now", figures["deferred_count"]),
                ("open past their deadline", figures["deadlines_missed_open_count"]),
                ("raised in the period", figures["raised_count"]),
                ("of these escalated", figures["escalated_count"]),
                ("resolved in the period", figures["resolved_count"]),
                ("of these by their deadline", figures["deadlines_kept_count"]),
            ],
        ),
        Table(
            "by_type",
            "By type",
            (
                Column("item_type", "type", weight=2),
                Column("open", "open now", "number"),
                Column("resolved", "resolved in the period", "number"),
                Column("median_seconds", "median time to it", "duration"),
                Column("p90_seconds", "90 % within", "duration"),
            ),
            _by_type(figures),
        ),
    ]
    late = figures["deadlines_missed_open_count"]
    if late:
        section.statements.append(
            Statement("finding", f"items of the manual-resolution queue open past their deadline: {late:,}")
        )


def _by_type(figures: dict[str, list[dict[str, int | float | None]]]) -> list[tuple[str | int | float | None, ...]]:
    waiting = {str(row["item_type"]): row["open_count"] for row in figures["depth_by_type"]}
    resolved = {str(row["item_type"]): row for row in figures["resolution_by_type"]}
    return [
        (
            name,
            waiting.get(name, 0),
            resolved[name]["resolved_count"] if name in resolved else 0,
            resolved[name]["resolution_median_seconds"] if name in resolved else None,
            resolved[name]["resolution_p90_seconds"] if name in resolved else None,
        )
        for name in sorted(waiting.keys() | resolved.keys())
    ]
