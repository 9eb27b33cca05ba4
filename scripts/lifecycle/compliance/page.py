"""The report as one self-contained HTML page, without scripts and without anything to fetch; it can be printed."""

from __future__ import annotations

import re
from pathlib import Path

from markupsafe import Markup, escape

from scripts.lifecycle.compliance.document import Bars, Report, Shares, shown
from scripts.utils.pages import environment

BOX_WIDTH = 600.0
VERDICTS = {"broken": "Proof broken", "findings": "Findings", "incomplete": "Incomplete", "in_order": "In order"}


def page(report: Report) -> str:
    """Return the page as HTML."""
    made = environment(Path(__file__).parent)
    made.filters["breakable"] = _breakable
    made.filters["utc"] = lambda moment: f"{moment:%Y-%m-%d %H:%M}"
    return made.get_template("compliance_report.html.jinja").render(
        report=report, verdict=VERDICTS[report.verdict], shown=shown, bars=_bars, shares=_shares, kind=_kind
    )


def _breakable(text: str) -> Markup:
    """Allow a line break in a long name after a dot or an underscore."""
    return Markup(re.sub(r"([._])(?=\w)", r"\1<wbr>", str(escape(text))))  # noqa: S704 - escaped right here


def _kind(chart: Bars | Shares) -> str:
    return type(chart).__name__.lower()


def _bars(chart: Bars) -> list[tuple[float, float, float, str, int]]:
    """Return left edge, width and height of each bar in a box of 600 by 100, with its label and its value."""
    step = BOX_WIDTH / max(len(chart.bars), 1)
    return [
        (number * step, step * 0.8, 100 * value / chart.top, label, value)
        for number, (label, value) in enumerate(chart.bars)
    ]


def _shares(parts: tuple[int, ...]) -> list[tuple[int, float, float, int]]:
    """Return number, left edge and width in percent of each part that is not 0, and its value."""
    whole = sum(parts) or 1
    return [
        (number, 100 * sum(parts[:number]) / whole, 100 * value / whole, value)
        for number, value in enumerate(parts)
        if value
    ]
