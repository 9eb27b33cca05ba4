"""What a report consists of. HTML, PDF, CSV and JSON are rendered from the same Report, so they say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from itertools import groupby
from typing import Any, Literal

from scripts.utils.free_text import visible
from scripts.utils.odd_moments import FIRST, LAST
from scripts.utils.pages import NOT_KNOWN, duration

Kind = Literal["text", "number", "bytes", "duration", "moment", "percent"]
Value = str | int | float | datetime | date | None
Level = Literal["broken", "finding"]
NOT_COUNTED = "not counted"
_KIBI = 1024


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        key: The name in JSON and CSV.
        heading: The name for a person.
        kind: What the values are. Durations are in seconds, sizes in bytes.
        weight: The column's width relative to the other columns.
    """

    key: str
    heading: str
    kind: Kind = "text"
    weight: float = 1.0

    @property
    def is_number(self) -> bool:
        """Whether the column is aligned to the right."""
        return self.kind not in ("text", "moment")


@dataclass(frozen=True)
class Table:
    """A table of raw values; each form of the report renders them itself."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[tuple[Value, ...]]
    note: str | None = None
    steps: bool = False
    """Whether the rows are consecutive days or months. Several without any value are shown to a person as one line."""

    @property
    def lines(self) -> list[tuple[Value, ...]]:
        """The rows as a person sees them. JSON and CSV have every row."""
        if not self.steps:
            return list(self.rows)
        made: list[tuple[Value, ...]] = []
        for empty, group in groupby(self.rows, key=lambda row: not any(row[1:])):
            rows = list(group)
            if empty and len(rows) > 1:
                made.append((f"{rows[0][0]} to {rows[-1][0]}", *rows[0][1:]))
            else:
                made += rows
        return made

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the rows for JSON."""
        return [{column.key: raw(value) for column, value in zip(self.columns, row, strict=True)} for row in self.rows]


@dataclass(frozen=True)
class Bars:
    """A chart with one bar for each label; a table beside it has the figures."""

    title: str
    bars: Sequence[tuple[str, int]]

    @property
    def top(self) -> int:
        """The longest bar's value, at least 1."""
        return max((value for _, value in self.bars), default=0) or 1


@dataclass(frozen=True)
class Shares:
    """A chart with one bar for each label, divided into the same parts; a table beside it has the figures."""

    title: str
    parts: tuple[str, ...]
    rows: Sequence[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Passage:
    """Preformatted text, such as the difference of two files."""

    title: str
    text: str


@dataclass(frozen=True)
class Statement:
    """A finding for the first page."""

    level: Level
    text: str
    count: int = 1
    """How many findings the statement stands for."""


@dataclass
class Section:
    """One part of the report."""

    key: str
    title: str
    lead: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[Bars | Shares] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)
    """What could not be counted, and why; it stands on the first page too."""

    def table(self, key: str) -> Table:
        """Return a table by its key.

        Raises:
            StopIteration: The section has no such table.
        """
        return next(table for table in self.tables if table.key == key)


@dataclass(frozen=True)
class Report:
    """A whole report."""

    source: str
    since: datetime
    until: datetime
    measured_at: datetime
    version: str
    policy_hash: str
    figures: list[tuple[str, str]]
    """Name and value of the figures on the first page."""
    sections: list[Section]

    @property
    def statements(self) -> list[Statement]:
        """The findings of all parts, broken proof first."""
        found = [replace(each, text=visible(each.text)) for section in self.sections for each in section.statements]
        return sorted(found, key=lambda statement: statement.level != "broken")

    @property
    def uncounted(self) -> list[str]:
        """What could not be counted in all parts, without repetition."""
        return list(dict.fromkeys(visible(what) for section in self.sections for what in section.uncounted))

    @property
    def verdict(self) -> Literal["broken", "findings", "incomplete", "in_order"]:
        """The result in one word."""
        if any(statement.level == "broken" for statement in self.statements):
            return "broken"
        if self.statements:
            return "findings"
        return "incomplete" if self.uncounted else "in_order"

    @property
    def headline(self) -> str:
        """The result in a sentence, with the numbers of findings and of what was not counted."""
        missing = len(self.uncounted)
        incomplete = f" {missing} {'thing' if missing == 1 else 'things'} could not be counted." if missing else ""
        broken, others = (
            sum(each.count for each in self.statements if (each.level == "broken") == of_proof)
            for of_proof in (True, False)
        )
        also = f", {others:,} other {'finding' if others == 1 else 'findings'}" if others else ""
        told = {
            "broken": f"The proof is broken ({broken:,} {'finding' if broken == 1 else 'findings'}{also}): what follows"
            " cannot be relied on before that is cleared up.",
            "findings": f"{others:,} {'finding' if others == 1 else 'findings'}.",
            "incomplete": "No findings in what could be counted.",
            "in_order": "In order: no findings, the proof is whole, and everything was counted.",
        }
        return told[self.verdict] + incomplete

    def section(self, key: str) -> Section:
        """Return a section by its key.

        Raises:
            StopIteration: The report has no such section.
        """
        return next(section for section in self.sections if section.key == key)

    def as_dict(self) -> dict[str, Any]:
        """Return one object with stable keys, ready for JSON."""
        return {
            "source": self.source,
            "since": raw(self.since),
            "until": raw(self.until),
            "measured_at": raw(self.measured_at),
            "version": self.version,
            "policy_hash": self.policy_hash,
            "verdict": self.verdict,
            "headline": self.headline,
            "statements": [{"level": each.level, "text": each.text} for each in self.statements],
            "uncounted": self.uncounted,
            "sections": {
                section.key: {
                    "title": section.title,
                    "tables": {table.key: table.as_dicts() for table in section.tables},
                    "passages": {passage.title: passage.text for passage in section.passages},
                }
                for section in self.sections
            },
        }


def raw(value: Value) -> str | int | float | None:
    """Return a value for JSON: moments in UTC, ISO 8601."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else value


def shown(column: Column, value: Value) -> str:
    """Return a value as a person reads it; control characters are written out."""
    if value is None:
        return {"number": NOT_COUNTED, "bytes": NOT_COUNTED, "duration": NOT_KNOWN}.get(column.kind, "-")
    if isinstance(value, datetime):
        beyond = {FIRST: "before the year 1", LAST: "after the year 9999"}
        return beyond.get(value) or f"{value.astimezone(UTC):%Y-%m-%d %H:%M}"
    if isinstance(value, str | date):
        return visible(str(value))
    if column.kind == "duration":
        return duration(value)
    if column.kind == "percent":
        return f"{value:.1f} %"
    return size(value) if column.kind == "bytes" else f"{value:,}"


def size(number: float) -> str:
    """Return a number of bytes with a fitting unit."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < _KIBI:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"
        number /= _KIBI
    return f"{number:,.1f} TiB"
