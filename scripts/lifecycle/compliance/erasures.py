"""The part on erasure requests and their deadlines (GDPR Art. 12(3) and 17), without personal data."""

from __future__ import annotations

from scripts.lifecycle.compliance.document import Column, Section, Statement, Table
from scripts.lifecycle.compliance.scope import Scope

CLOSED = ("fulfilled", "cancelled", "rejected", "merged")
_FIGURES = """
WITH requests AS (
    SELECT channel, status, requested_at, deadline_at, NOT status = ANY(%(closed)s) AS open,
           CASE WHEN status = 'fulfilled' THEN closed_at END AS done_at FROM ops.erasure_requests
), counted AS (
    SELECT *, done_at >= %(since)s AND done_at < %(until)s AS done FROM requests
)
SELECT channel, count(*) FILTER (WHERE requested_at >= %(since)s AND requested_at < %(until)s) AS requested,
       count(*) FILTER (WHERE done) AS fulfilled,
       count(*) FILTER (WHERE done AND done_at <= deadline_at) AS in_time,
       count(*) FILTER (WHERE open) AS open,
       count(*) FILTER (WHERE status = 'blocked') AS blocked,
       count(*) FILTER (WHERE open AND deadline_at < %(now)s) AS overdue,
       extract(epoch FROM percentile_disc(0.5) WITHIN GROUP (ORDER BY done_at - requested_at)
           FILTER (WHERE done))::float8 AS median_seconds,
       extract(epoch FROM max(done_at - requested_at) FILTER (WHERE done))::float8 AS longest_seconds,
       min(deadline_at) FILTER (WHERE open) AS next_deadline
  FROM counted GROUP BY channel ORDER BY channel
"""


def fill(scope: Scope, section: Section) -> None:
    """Count the requests by the channel through which they came."""
    rows = scope.rows(_FIGURES, closed=list(CLOSED))
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
