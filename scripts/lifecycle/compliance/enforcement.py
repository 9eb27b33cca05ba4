"""The part on enforcement: what went, by which policy and action, and when. Source: ops.audit_batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from scripts.lifecycle.compliance.document import Bars, Column, Section, Table
from scripts.lifecycle.compliance.scope import Scope

BY_POLICY = "retention_policy:"
MOST_DAYS = 92
MOST_COLUMNS = 6
OTHERS = "others"
WENT = ("delete", "archive_then_delete", "delete_blob", "soft_delete", "anonymize")
"""Actions that are counted as gone. ``set_null`` is none of them: that row stays, without its reference."""
_SECOND = timedelta(microseconds=1)
_QUERY = """
SELECT (occurred_at AT TIME ZONE 'UTC')::date AS day, action, resource_type, reason,
       split_part(actor, ':', 1) AS actor, sum(cardinality(resource_ids))::bigint AS records, count(*) AS batches,
       min(occurred_at) AS first_at, max(occurred_at) AS last_at
  FROM ops.audit_batches WHERE occurred_at >= %(since)s AND occurred_at < %(until)s
 GROUP BY 1, 2, 3, 4, 5
"""


@dataclass
class _Sum:
    records: int = 0
    batches: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None

    def add(self, records: int, batches: int, first_at: datetime, last_at: datetime) -> None:
        self.records += records
        self.batches += batches
        self.first_at = min(filter(None, (self.first_at, first_at)))
        self.last_at = max(filter(None, (self.last_at, last_at)))


def fill(scope: Scope, section: Section) -> None:
    """Count the audit entries of the period. Each entry is in exactly one of the first two tables."""
    by_policy: dict[tuple[str, ...], _Sum] = {}
    others: dict[tuple[str, ...], _Sum] = {}
    days: dict[date, Counter[str]] = {}
    for row in scope.rows(_QUERY):
        rule = row["reason"].removeprefix(BY_POLICY)
        if rule != row["reason"]:
            key: tuple[str, ...] = (rule, row["action"], row["resource_type"])
            kept = by_policy
            if row["action"] in WENT:
                days.setdefault(row["day"], Counter())[rule.partition("/")[0]] += row["records"]
        else:
            key, kept = (row["action"], row["resource_type"], row["reason"], row["actor"]), others
        kept.setdefault(key, _Sum()).add(row["records"], row["batches"], row["first_at"], row["last_at"])
    went = sum(each.records for each in by_policy.values())
    total = went + sum(each.records for each in others.values())
    section.lead.append(
        f"{total:,} entries stand in ops.audit_log for the period, one for each record: {went:,} of what the retention"
        f" policies carried out, {total - went:,} of everything else."
    )
    figures = (
        Column("records", "records", "number", weight=0.9),
        Column("batches", "batches", "number", weight=1.0),
        Column("first_at", "first (UTC)", "moment", weight=1.6),
        Column("last_at", "last (UTC)", "moment", weight=1.6),
    )
    section.tables += [
        Table(
            "by_policy",
            "Carried out by the retention policies",
            (
                Column("rule", "policy and rule", weight=2.2),
                Column("action", "action", weight=1.2),
                Column("resource_type", "table", weight=1.9),
                *figures,
            ),
            _rows(by_policy),
            "A rule named 'dependant' stands for rows that went along with theirs, or, with set_null, were cut off from"
            " them and stay.",
        ),
        Table(
            "others",
            "Everything else in the audit",
            (
                Column("action", "action", weight=1.3),
                Column("resource_type", "about", weight=1.9),
                Column("reason", "reason", weight=2.2),
                Column("actor", "by", weight=1.0),
                *figures,
            ),
            _rows(others),
        ),
        _by_day(scope, days),
    ]
    if days:
        section.charts.append(Bars(*_bars(scope, days)))


def _rows(sums: dict[tuple[str, ...], _Sum]) -> list[tuple[str | int | datetime | None, ...]]:
    return [(*key, each.records, each.batches, each.first_at, each.last_at) for key, each in sorted(sums.items())]


def _steps(scope: Scope) -> tuple[list[date], str]:
    """Return the days of the period, or its months if there are more than MOST_DAYS days, and which they are."""
    first, last = scope.since.date(), (scope.until - _SECOND).date()
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    if len(days) <= MOST_DAYS:
        return days, "day"
    return sorted({day.replace(day=1) for day in days}), "month"


def _by_day(scope: Scope, days: dict[date, Counter[str]]) -> Table:
    whole = Counter[str]()
    for counted in days.values():
        whole.update(counted)
    names = [name for name, _ in whole.most_common()]
    if len(names) > MOST_COLUMNS:
        names = [*names[: MOST_COLUMNS - 1], OTHERS]
    steps, step = _steps(scope)
    rows: list[tuple[str | int, ...]] = []
    for begin in steps:
        counted = _of(days, begin, step)
        cells = [
            sum(count for name, count in counted.items() if name not in names) if name == OTHERS else counted[name]
            for name in names
        ]
        rows.append((str(begin) if step == "day" else f"{begin:%Y-%m}", *cells, sum(cells)))
    columns = [Column(name, name.replace("_", " "), "number") for name in names]
    return Table(
        "by_day",
        f"Records that went, by {step} (UTC) and policy",
        (Column(step, step, weight=1.3), *columns, Column("total", "total", "number")),
        rows,
        steps=True,
    )


def _bars(scope: Scope, days: dict[date, Counter[str]]) -> tuple[str, list[tuple[str, int]]]:
    steps, step = _steps(scope)
    bars = [
        (f"{begin:%Y-%m-%d}" if step == "day" else f"{begin:%Y-%m}", _of(days, begin, step).total()) for begin in steps
    ]
    return f"Records that went, by {step} (UTC)", bars


def _of(days: dict[date, Counter[str]], begin: date, step: str) -> Counter[str]:
    if step == "day":
        return days.get(begin, Counter())
    return sum((each for day, each in days.items() if day.replace(day=1) == begin), Counter[str]())
