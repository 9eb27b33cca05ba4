"""The report as tables for a terminal, and its first page as the text of a mail."""

from __future__ import annotations

from rich.table import Table

from scripts.lifecycle.compliance.document import Report, shown
from scripts.lifecycle.compliance.page import VERDICTS

SHOWN_ROWS = 40


def tables(report: Report) -> list[Table]:
    """Return the first page as a table, then every table of the report."""
    cover = Table(title=f"compliance report, {report.source}", show_header=False)
    for _ in range(2):
        cover.add_column(overflow="fold")
    for name, value in _cover(report):
        cover.add_row(name, value)
    made = [cover]
    for section in report.sections:
        for each in section.tables:
            table = Table(title=f"{section.key}: {each.title}" if each.rows else f"{section.key}: {each.title}: none")
            for column in each.columns:
                table.add_column(column.heading, overflow="fold", justify="right" if column.is_number else "left")
            for row in each.lines[:SHOWN_ROWS]:
                table.add_row(*(shown(c, value) for c, value in zip(each.columns, row, strict=True)))
            if len(each.lines) > SHOWN_ROWS:
                table.caption = f"and {len(each.lines) - SHOWN_ROWS:,} more: see --format json"
            made.append(table)
    return made


def summary(report: Report) -> str:
    """Return the first page as plain text."""
    return "\n".join([*(f"{name}: {value}" for name, value in _cover(report)), ""])


def _cover(report: Report) -> list[tuple[str, str]]:
    return [
        ("verdict", f"{VERDICTS[report.verdict]}. {report.headline}"),
        ("period", f"{report.since:%Y-%m-%d %H:%M} to {report.until:%Y-%m-%d %H:%M} UTC"),
        *(("found", statement.text) for statement in report.statements),
        *(("not counted", what) for what in report.uncounted),
        *report.figures,
    ]
