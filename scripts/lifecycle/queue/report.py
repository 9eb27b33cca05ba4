"""The queue's figures as an HTML page, as tables for a terminal, and as lines for a mail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from scripts.lifecycle.jobs.terminal import table_of
from scripts.utils.pages import NOT_KNOWN, duration, environment

SHOWN_ROWS = 25

Report = dict[str, Any]


def percent(share: float | None) -> str:
    """Return a share in percent as a text."""
    return NOT_KNOWN if share is None else f"{share:.1f} %"


def points(values: list[int], top: int) -> str:
    """Return the points of an SVG polyline in a box of 300 by 100; a single value becomes a level line."""
    if len(values) == 1:
        values = values * 2
    step = 300 / max(len(values) - 1, 1)
    return " ".join(f"{number * step:.1f},{100 - 100 * value / max(top, 1):.1f}" for number, value in enumerate(values))


def headline(report: Report) -> list[tuple[str, str]]:
    """Return name and value of the most important figures."""
    return [
        ("open", f"{report['open_count']:,}"),
        ("deferred", f"{report['deferred_count']:,}"),
        ("median age of open items", duration(report["open_age_median_seconds"])),
        ("oldest open item", duration(report["open_age_max_seconds"])),
        ("resolved", f"{report['resolved_count']:,}"),
        ("median time to resolution", duration(report["resolution_median_seconds"])),
        ("90 % resolved within", duration(report["resolution_p90_seconds"])),
        ("deadlines kept", percent(report["deadlines_kept_percent"])),
        ("open past their deadline", f"{report['deadlines_missed_open_count']:,}"),
        ("raised", f"{report['raised_count']:,}"),
        ("of these escalated", percent(report["escalated_percent"])),
    ]


def page(report: Report) -> str:
    """Return one self-contained HTML page, without scripts and without anything to fetch."""
    made = environment(Path(__file__).parent)
    made.filters["percent"] = percent
    template = made.get_template("report.html.jinja")
    return template.render(report=report, headline=headline(report), points=points, shown=SHOWN_ROWS)


def tables(report: Report) -> list[Table]:
    """Return the figures as tables for a terminal."""
    made = [
        _table(
            f"manual-resolution queue, {report['since']} to {report['until']}",
            ("figure", "value"),
            headline(report),
        )
    ]
    for title, key, name in (
        ("by priority", "depth_by_priority", "priority"),
        ("by type", "depth_by_type", "item_type"),
    ):
        rows = [(row[name], row["open_count"], row["deferred_count"]) for row in report[key]]
        made.append(_table(title, (name, "open", "deferred"), rows))
    resolved = [
        (
            row["item_type"],
            row["resolved_count"],
            duration(row["resolution_median_seconds"]),
            duration(row["resolution_p90_seconds"]),
        )
        for row in report["resolution_by_type"]
    ]
    made.append(_table("time to resolution", ("item_type", "resolved", "median", "90 % within"), resolved))
    decided = [
        (row["operator"] or NOT_KNOWN, row["decision"] or NOT_KNOWN, row["resolved_count"])
        for row in report["decisions"]
    ]
    made.append(_table("decisions", ("operator", "decision", "items"), decided))
    days = [tuple(row.values()) for row in report["trend"]]
    made.append(_table("by day (UTC)", ("day", "raised", "resolved", "unresolved at its end"), days))
    return made


def summary(report: Report) -> str:
    """Return the figures as lines of plain text."""
    lines = [f"{name}: {value}" for name, value in headline(report)]
    return "\n".join([f"Manual-resolution queue, {report['since']} to {report['until']}", "", *lines, ""])


def _table(title: str, headings: tuple[str, ...], rows: list[Any]) -> Table:
    shown = rows[:SHOWN_ROWS] if title != "by day (UTC)" else rows
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in shown]
    table = table_of(title if rows else f"{title}: none", headings, cells, right=headings[1:])
    if len(rows) > SHOWN_ROWS and title != "by day (UTC)":
        table.caption = f"and {len(rows) - SHOWN_ROWS:,} more: see --format json"
    return table
