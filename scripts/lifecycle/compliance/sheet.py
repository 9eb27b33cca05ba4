"""The report as CSV: one table of equally long lines, to be filtered by section and table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from scripts.lifecycle.compliance.document import Report, Value, raw
from scripts.utils.free_text import visible

# A spreadsheet takes a text that begins so for a formula and carries it out; some do at full-width signs too.
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def sheet(report: Report) -> str:
    """Return CSV (RFC 4180). A line has the section, the table, ``heading`` or a number, then the table's cells."""
    lines = list(_lines(report))
    width = max(len(line) for line in lines)
    text = io.StringIO()
    csv.writer(text).writerows([*line, *[""] * (width - len(line))] for line in lines)
    return text.getvalue()


def _lines(report: Report) -> Iterator[list[str | int | float]]:
    yield ["section", "table", "line", "cells"]
    cover: list[tuple[str, Value]] = [
        ("system", report.source),
        ("since", report.since),
        ("until", report.until),
        ("measured_at", report.measured_at),
        ("policy_hash", report.policy_hash),
        ("verdict", report.verdict),
        ("headline", report.headline),
        *(("statement", statement.text) for statement in report.statements),
        *(("not counted", what) for what in report.uncounted),
        *report.figures,
    ]
    for number, (name, value) in enumerate(cover, start=1):
        yield ["cover", "cover", number, _cell(name), _cell(value)]
    for section in report.sections:
        for table in section.tables:
            yield [section.key, table.key, "heading", *(_cell(column.key) for column in table.columns)]
            for number, row in enumerate(table.rows, start=1):
                yield [section.key, table.key, number, *map(_cell, row)]


def _cell(value: Value) -> str | int | float:
    cell = raw(value)
    if cell is None:
        return ""
    if not isinstance(cell, str):
        return cell
    cell = visible(cell)
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
