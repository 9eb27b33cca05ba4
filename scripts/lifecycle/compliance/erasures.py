"""Erasure requests and their deadlines (GDPR Art. 17), without anything that leads to a person."""

from __future__ import annotations

from scripts.lifecycle.compliance.document import Column, Section, Statement, Table
from scripts.lifecycle.compliance.scope import Scope

TABLE = "ops.erasure_requests"
OPEN = ("received", "verified", "running", "blocked")
_FIGURES = """
SELECT channel, count(*) FILTER (WHERE requested_at >= %(since)s AND requested_at < %(until)s) AS requested,
       count(*) FILTER (WHERE fulfilled_at >= %(since)s AND fulfilled_at < %(until)s) AS fulfilled,
       count(*) FILTER (WHERE fulfilled_at >= %(since)s AND fulfilled_at < %(until)s AND fulfilled_at <= deadline_at)
           AS in_time,
       count(*) FILTER (WHERE status = ANY(%(open)s)) AS open,
       count(*) FILTER (WHERE status = 'blocked') AS blocked,
       count(*) FILTER (WHERE status = ANY(%(open)s) AND deadline_at < %(now)s) AS overdue,
       extract(epoch FROM percentile_disc(0.5) WITHIN GROUP (ORDER BY fulfilled_at - requested_at)
           FILTER (WHERE fulfilled_at >= %(since)s AND fulfilled_at < %(until)s))::float8 AS median_seconds,
       extract(epoch FROM max(fulfilled_at - requested_at)
           FILTER (WHERE fulfilled_at >= %(since)s AND fulfilled_at < %(until)s))::float8 AS longest_seconds,
       min(deadline_at) FILTER (WHERE status = ANY(%(open)s)) AS next_deadline
  FROM ops.erasure_requests GROUP BY channel ORDER BY channel
"""


def fill(scope: Scope, section: Section) -> None:
    """Count the requests by the channel that they came in by."""
    if not scope.rows("SELECT to_regclass(%(table)s) IS NOT NULL AS there", table=TABLE)[0]["there"]:
        section.uncounted.append(f"erasure requests: no such table ({TABLE})")
        return
    rows = scope.rows(_FIGURES, open=list(OPEN))
    keys = ("requested", "fulfilled", "in_time", "open", "blocked", "overdue", "median_seconds", "longest_seconds")
    section.lead = ["What is open, blocked or overdue is so now, whatever the period; the rest is of the period."]
    section.tables.append(
        Table(
            "requests",
            "Requests",
            (
                Column("channel", "by", weight=1.2),
                Column("requested", "came in", "number"),
                Column("fulfilled", "fulfilled", "number"),
                Column("in_time", "of these in time", "number"),
                Column("open", "open", "number", weight=0.7),
                Column("blocked", "of these blocked", "number"),
                Column("overdue", "of these overdue", "number"),
                Column("median_seconds", "median time", "duration"),
                Column("longest_seconds", "longest", "duration"),
                Column("next_deadline", "next deadline (UTC)", "moment", weight=1.4),
            ),
            [(row["channel"], *(row[key] for key in keys), row["next_deadline"]) for row in rows],
        )
    )
    overdue = sum(row["overdue"] for row in rows)
    late = sum(row["fulfilled"] - row["in_time"] for row in rows)
    if overdue:
        section.statements.append(Statement("finding", f"erasure requests open past their deadline: {overdue:,}"))
    if late:
        section.statements.append(
            Statement("finding", f"erasure requests fulfilled after their deadline in the period: {late:,}")
        )
