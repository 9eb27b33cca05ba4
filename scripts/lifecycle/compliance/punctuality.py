"""The part on punctuality: how late deletions were, by what the monitor saw in the period and by what is left now.

The audit does not keep the due date of a deleted record, because it holds no personal data. So lateness is measured
indirectly: how far the oldest record was past its date at each look of monitor_cleanup_sla. No record was deleted later
than the worst look plus the longest time between two looks.
"""

from __future__ import annotations

from typing import Any

from scripts.lifecycle.compliance.document import Column, Section, Shares, Statement, Table
from scripts.lifecycle.compliance.scope import Scope
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.utils.pages import duration

MONITOR = "monitor_cleanup_sla"
PARTS = ("nothing past its date", "by an hour at most", "up to the warning", "up to critical", "beyond", "not counted")
# The last look before the period counts too: it bounds what was deleted before the first look in the period.
_LOOKS = """
WITH limits AS (SELECT * FROM unnest(%(names)s::text[], %(warning)s::float8[], %(critical)s::float8[])
                    AS l (subject, warning, critical)),
     seen AS (SELECT o.*, true AS inside FROM ops.sla_observations o
               WHERE o.script = %(monitor)s AND o.slot >= %(since)s AND o.slot < %(until)s
              UNION ALL
              SELECT * FROM (SELECT DISTINCT ON (o.subject) o.*, false FROM ops.sla_observations o
                              WHERE o.script = %(monitor)s AND o.items IS NOT NULL
                                AND o.slot < %(since)s AND o.slot >= %(since)s - interval '7 days'
                              ORDER BY o.subject, o.slot DESC) prior),
     looks AS (SELECT subject, slot, items, inside, oldest_seconds AS oldest, warning, critical,
                      lag(slot) OVER (PARTITION BY subject, items IS NULL ORDER BY slot) AS before
                 FROM seen JOIN limits USING (subject))
SELECT subject, count(*) FILTER (WHERE inside) AS looks,
       count(*) FILTER (WHERE inside AND oldest <= 0) AS part_0,
       count(*) FILTER (WHERE inside AND oldest > 0 AND oldest <= least(3600, warning)) AS part_1,
       count(*) FILTER (WHERE inside AND oldest > least(3600, warning) AND oldest <= warning) AS part_2,
       count(*) FILTER (WHERE inside AND oldest > warning AND oldest <= critical) AS part_3,
       count(*) FILTER (WHERE inside AND oldest > critical) AS part_4,
       count(*) FILTER (WHERE items IS NULL OR oldest IS NULL) AS part_5,
       max(oldest) FILTER (WHERE inside) AS worst,
       (array_agg(slot ORDER BY oldest DESC NULLS LAST) FILTER (WHERE inside))[1] AS worst_at,
       percentile_disc(0.5) WITHIN GROUP (ORDER BY oldest) FILTER (WHERE inside) AS median,
       min(slot) FILTER (WHERE items IS NOT NULL) AS first_look,
       CASE WHEN min(slot) FILTER (WHERE items IS NOT NULL) <= %(since)s THEN max(oldest) END AS worst_known,
       extract(epoch FROM greatest(
           max(slot - before) FILTER (WHERE items IS NOT NULL),
           min(slot) FILTER (WHERE items IS NOT NULL) - %(since)s,
           least(%(until)s, %(now)s) - max(slot) FILTER (WHERE items IS NOT NULL)))::float8 AS gap
  FROM looks GROUP BY subject HAVING bool_or(inside)
"""
_RUNS = """
SELECT policy, count(*) FILTER (WHERE status <> 'skipped') AS runs,
       count(*) FILTER (WHERE status = 'completed') AS completed,
       count(*) FILTER (WHERE status IN ('partial', 'interrupted')) AS early,
       count(*) FILTER (WHERE status IN ('failed', 'abandoned')) AS failed,
       (array_agg(records_remaining ORDER BY started_at DESC) FILTER (WHERE status <> 'running'))[1] AS remaining,
       (array_agg(oldest_overdue_seconds ORDER BY started_at DESC) FILTER (WHERE status <> 'running'))[1] AS overdue
  FROM ops.job_runs WHERE started_at >= %(since)s AND started_at < %(until)s AND policy = ANY(%(names)s)
 GROUP BY policy
"""


def fill(scope: Scope, section: Section) -> None:
    """Add how late deletions were in the period, and what is past its date now."""
    policies = {name: each for name, each in scope.run.policies.policies.items() if each.action != "retain"}
    names = list(policies)
    limits = {
        "names": names,
        "warning": [each.overdue.warning.total_seconds() for each in policies.values()],
        "critical": [each.overdue.critical.total_seconds() for each in policies.values()],
    }
    looks = {row["subject"]: row for row in scope.rows(_LOOKS, monitor=MONITOR, **limits)}
    runs = {row["policy"]: row for row in scope.rows(_RUNS, names=names)}
    section.lead.append(
        "Of a deleted record no due date is kept, so its own delay is not known. Measured is how far the oldest record"
        f" was past its date each time that {MONITOR} looked. No record was deleted later than the last column says:"
        " the worst look and the longest time between two looks together; but for one that was written with an old"
        " date, or whose hold was released, and that went before the next look. What a legal hold keeps is not late."
    )
    section.tables += [_worst(names, looks), _distribution(names, looks), _runs(names, runs), _now(scope, names)]
    section.charts.append(
        Shares(
            "How far the oldest record was past its date, share of the looks",
            PARTS,
            [(name, _parts(looks[name])) for name in names if name in looks],
        )
    )
    _judge(scope, section, looks)
    section.uncounted += _gone(scope.run.policies, scope)


def _parts(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(row[f"part_{number}"] for number in range(len(PARTS)))


def _worst(names: list[str], looks: dict[str, dict[str, Any]]) -> Table:
    rows: list[Any] = []
    for name in names:
        row = looks.get(name)
        rows.append(
            (
                name,
                row["looks"] if row else 0,
                row["median"] if row else None,
                row["worst"] if row else None,
                row["worst_at"] if row and row["worst"] else None,
                row["gap"] if row else None,
                row["worst_known"] + row["gap"] if row and row["worst_known"] is not None else None,
            )
        )
    return Table(
        "lateness",
        "How far past its date the oldest record was",
        (
            Column("policy", "policy", weight=1.7),
            Column("looks", "looks", "number", weight=0.7),
            Column("median_seconds", "median", "duration"),
            Column("worst_seconds", "worst", "duration"),
            Column("worst_at", "worst seen (UTC)", "moment", weight=1.3),
            Column("gap_seconds", "longest time between looks", "duration", weight=1.2),
            Column("bound_seconds", "no record was later than", "duration", weight=1.2),
        ),
        rows,
    )


def _distribution(names: list[str], looks: dict[str, dict[str, Any]]) -> Table:
    return Table(
        "distribution",
        "Looks by how far the oldest record was past its date",
        (
            Column("policy", "policy", weight=1.6),
            *(Column(part.replace(" ", "_"), part, "number") for part in PARTS),
        ),
        [(name, *(_parts(looks[name]) if name in looks else (0,) * len(PARTS))) for name in names],
    )


def _runs(names: list[str], runs: dict[str, dict[str, Any]]) -> Table:
    keys = ("runs", "completed", "early", "failed", "remaining", "overdue")
    return Table(
        "runs",
        "Runs in the period, and what the last one left",
        (
            Column("policy", "policy", weight=1.7),
            Column("runs", "runs", "number", weight=0.7),
            Column("completed", "completed", "number", weight=0.9),
            Column("early", "ended early", "number", weight=0.9),
            Column("failed", "failed or abandoned", "number"),
            Column("remaining", "left past its date", "number"),
            Column("overdue_seconds", "the oldest by", "duration"),
        ),
        [
            (name, *(runs[name][key] for key in keys)) if name in runs else (name, 0, 0, 0, 0, None, None)
            for name in names
        ],
    )


def _now(scope: Scope, names: list[str]) -> Table:
    rows: list[Any] = []
    for name in names:
        overdue, residue = scope.looks[name].policy.overdue, scope.looks[name].residue
        rows.append(
            (
                name,
                residue.remaining if residue else None,
                residue.late if residue else None,
                residue.held if residue else None,
                residue.oldest_overdue_seconds if residue else None,
                overdue.warning.total_seconds(),
                overdue.critical.total_seconds(),
            )
        )
    return Table(
        "now",
        "Past its date when the report was made",
        (
            Column("policy", "policy", weight=1.7),
            Column("remaining", "past its date", "number"),
            Column("late", "later than the warning", "number"),
            Column("held", "held", "number", weight=0.7),
            Column("oldest_seconds", "the oldest by", "duration"),
            Column("warning_seconds", "warns at", "duration"),
            Column("critical_seconds", "critical at", "duration"),
        ),
        rows,
    )


def _judge(scope: Scope, section: Section, looks: dict[str, dict[str, Any]]) -> None:
    unseen: dict[str, list[str]] = {}
    watched = [name for name, each in scope.looks.items() if each.policy.action != "retain"]
    for name in watched:
        each = scope.looks[name]
        critical, row = each.policy.overdue.critical.total_seconds(), looks.get(name)
        if row is None:
            unseen.setdefault(f": {MONITOR} did not look at it in the period", []).append(name)
        elif row["part_5"]:
            section.uncounted.append(
                f"punctuality of {name}: not counted in {row['part_5']:,} of {row['looks']:,} looks"
            )
        if row and row["first_look"] and row["first_look"] > scope.since:
            unseen.setdefault(f" before {row['first_look']:%Y-%m-%d %H:%M}: nobody looked", []).append(name)
        if row and row["part_4"]:
            section.statements.append(
                Statement(
                    "finding",
                    f"{name}: records were up to {duration(row['worst'])} past their date in the period, beyond the"
                    f" {duration(critical)} that are critical",
                )
            )
        if each.residue is None:
            section.uncounted.append(f"what is past its date now: {each.because}")
        elif each.residue.oldest_overdue_seconds > critical:
            section.statements.append(
                Statement(
                    "finding",
                    f"{name}: {each.residue.remaining:,} records are past their date now, the oldest by"
                    f" {duration(each.residue.oldest_overdue_seconds)}",
                )
            )

    for told, names in unseen.items():
        whose = "every policy" if len(names) == len(watched) > 1 else ", ".join(names)
        section.uncounted.append(f"punctuality of {whose}{told}")


def _gone(policies: PolicySet, scope: Scope) -> list[str]:
    """Name the part of the period whose run records or looks were deleted by their own policy."""
    told = []
    for table, what in (("ops.job_runs", "run records"), ("ops.sla_observations", "the monitor's looks")):
        for policy in policies.policies.values():
            moments = [rule.due_before(scope.now) for rule in policy.rules.values()] if policy.table == table else []
            ends = [moment for moment in moments if moment]
            if ends and scope.since < max(ends):
                told.append(
                    f"punctuality before {max(ends):%Y-%m-%d}: {what} from then are gone by their own policy,"
                    f" {policy.name}"
                )
    return told
