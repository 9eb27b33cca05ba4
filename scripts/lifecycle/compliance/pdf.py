"""The report as a PDF to print, sign and file. The fonts are embedded, so it looks the same everywhere."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, Literal

import reportlab
from reportlab.graphics.shapes import Drawing, Line, Rect, String
from reportlab.lib.colors import Color, HexColor
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    CondPageBreak,
    Flowable,
    Frame,
    KeepTogether,
    LongTable,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
    TableStyle,
    XPreformatted,
)
from reportlab.platypus.tableofcontents import TableOfContents

from scripts.lifecycle.compliance.document import Bars, Report, Section, Shares, shown
from scripts.lifecycle.compliance.document import Table as Figures
from scripts.lifecycle.compliance.page import VERDICTS

REGULAR, BOLD = "Vera", "VeraBd"
TITLE = "Data retention compliance report"
MARGIN = 16 * mm
WIDTH = A4[0] - 2 * MARGIN
FOOT = 12 * mm
WHOLE_PAGE = A4[1] - 2 * MARGIN - FOOT
INK, GREY, RULE, BLUE = HexColor("#1a1a1a"), HexColor("#444444"), HexColor("#bbbbbb"), HexColor("#1f5fa8")
LEVELS = {
    "in_order": HexColor("#1b6b30"),
    "incomplete": HexColor("#8a5a00"),
    "findings": HexColor("#8a5a00"),
    "finding": HexColor("#8a5a00"),
    "broken": HexColor("#a8071a"),
}
PARTS = [HexColor(each) for each in ("#1b6b30", "#7fb88f", "#c8dccd", "#e0a030", "#a8071a", "#8c8c8c")]
BARS_HEIGHT, SHARE_HEIGHT, LABEL_WIDTH = 34 * mm, 6 * mm, 46 * mm
# Characters in a line of a file's difference; longer lines are broken. The font has a fixed width.
LINE_CHARACTERS = 108
# The last rows of a table and the last lines of a passage stay together, so that no page holds one line only.
LAST_ROWS, LAST_LINES = 3, 6
SHORT_CHARACTERS = 120
CELL_PADDING = 10
# No row may be higher than a page, so long texts are cut. The other forms have the whole text.
CELL_CHARACTERS = 900
HOW_TO_CHECK = (
    "The audit: verify_audit.py --head with the head of section 8, today or in years, tells whether it still is what"
    " was written. A single record: explain_deletion.py, with the policy as it was written then. The archives:"
    " archive_before_delete.py verify. The report itself: generate_compliance_report.py for the same period; what is so"
    " now is so at the moment named above. It holds no personal data. All times are UTC."
)


@cache
def _fonts() -> frozenset[int]:
    """Register the fonts, and return the code points that they can show."""
    folder = Path(reportlab.__file__).parent / "fonts"
    fonts = {name: TTFont(name, str(folder / f"{name}.ttf")) for name in (REGULAR, BOLD)}
    for font in fonts.values():
        pdfmetrics.registerFont(font)
    pdfmetrics.registerFontFamily(REGULAR, normal=REGULAR, bold=BOLD, italic=REGULAR, boldItalic=BOLD)
    return frozenset(fonts[REGULAR].face.charToGlyph)


def _plain(text: str) -> str:
    """Escape a text for a paragraph; characters that the font lacks become a question mark."""
    return escape(_known(text))


def _known(text: str) -> str:
    known = _fonts()
    return "".join(letter if letter == "\n" or ord(letter) in known else "?" for letter in text)


def _broken(text: str, width: float) -> str:
    """Break a name that is too long for its column after a dot, an underscore, a slash or a hyphen."""
    room = width - CELL_PADDING
    words = []
    told = text if len(text) <= CELL_CHARACTERS else f"{text[:CELL_CHARACTERS]}…"
    for word in _known(told).split(" "):
        line, lines = "", []
        for piece in re.split(r"(?<=[._/-])", word):
            if line and pdfmetrics.stringWidth(line + piece, REGULAR, CELL.fontSize) > room:
                lines.append(line)
                line = ""
            line += piece
        words.append("<br/>".join(escape(each) for each in [*lines, line]))
    return " ".join(words)


def _style(
    name: str, size: float, *, bold: bool = False, color: Color = INK, after: float = 2, **more: Any
) -> ParagraphStyle:
    return ParagraphStyle(
        name,
        fontName=BOLD if bold else REGULAR,
        fontSize=size,
        leading=size * 1.32,
        textColor=color,
        spaceAfter=after,
        splitLongWords=1,
        **more,
    )


HEAD = _style("head", 17, bold=True, after=6)
SECTION = _style("section", 12.5, bold=True, after=4, spaceBefore=10, keepWithNext=1)
SUBTITLE = _style("subtitle", 9.5, bold=True, after=3, spaceBefore=8, keepWithNext=1)
TABLE_TITLE = _style("table title", 9.5, bold=True, after=3, spaceBefore=8)
BODY = _style("body", 8.5, after=3)
NOTE = _style("note", 7.5, color=GREY, after=3)
CELL = _style("cell", 7, after=0)
NUMBER = _style("number", 7, after=0, alignment=TA_RIGHT)
CELL_HEAD = _style("cell head", 6.6, bold=True, color=GREY, after=0)
NUMBER_HEAD = _style("number head", 6.6, bold=True, color=GREY, after=0, alignment=TA_RIGHT)
DIFFERENCE = ParagraphStyle("difference", fontName="Courier", fontSize=6.8, leading=8.4, textColor=INK)


def pdf(report: Report) -> bytes:
    """Return the file. It is laid out several times, until the table of contents and the page count are right."""
    _fonts()
    made = io.BytesIO()
    sections = [_section(number, section) for number, section in enumerate(report.sections, start=1)]
    _Document(made, report).multiBuild([*_cover(report), *(flowable for section in sections for flowable in section)])
    return made.getvalue()


class _Document(BaseDocTemplate):
    """Pages with a footer, an outline of the sections, and entries for the table of contents."""

    def __init__(self, file: io.BytesIO, report: Report) -> None:
        period = f"{report.since:%Y-%m-%d %H:%M} to {report.until:%Y-%m-%d %H:%M} UTC"
        super().__init__(
            file,
            pagesize=A4,
            title=f"{TITLE}, {report.source}, {period}",
            author=report.source,
            subject=f"{VERDICTS[report.verdict]}. {report.headline}",
            lang="en",
        )
        self._pages = 0
        self._foot = _plain(f"{TITLE} · {report.source} · {period}")
        frame = Frame(MARGIN, MARGIN + FOOT, WIDTH, WHOLE_PAGE, 0, 0, 0, 0)
        self.addPageTemplates(PageTemplate(frames=[frame], onPage=self._feet))

    def _feet(self, canvas: Canvas, _document: BaseDocTemplate) -> None:
        canvas.saveState()
        canvas.setStrokeColor(RULE)
        canvas.line(MARGIN, MARGIN + 6 * mm, A4[0] - MARGIN, MARGIN + 6 * mm)
        canvas.setFont(REGULAR, 6.8)
        canvas.setFillColor(GREY)
        canvas.drawString(MARGIN, MARGIN + 2 * mm, self._foot)
        canvas.drawRightString(A4[0] - MARGIN, MARGIN + 2 * mm, f"{self.page} / {self._pages}")
        canvas.restoreState()

    def afterFlowable(self, flowable: Flowable) -> None:  # noqa: N802 - the library's name
        """Add a section to the outline and to the table of contents."""
        if isinstance(flowable, Paragraph) and flowable.style is SECTION:
            heading = flowable.getPlainText()
            key = f"section-{heading.partition('.')[0]}"
            self.canv.bookmarkPage(key)
            self.canv.addOutlineEntry(heading, key, 0)
            self.notify("TOCEntry", (0, escape(heading), self.page, key))

    def afterPage(self) -> None:  # noqa: N802 - the library's name
        """Count the pages, for the footers of the next layout."""
        self._pages = max(self._pages, self.page)


def _cover(report: Report) -> list[Flowable]:
    color = LEVELS[report.verdict]
    facts = [
        ("System", report.source),
        ("Period", f"{report.since:%Y-%m-%d %H:%M} to {report.until:%Y-%m-%d %H:%M} UTC"),
        ("Made", f"{report.measured_at:%Y-%m-%d %H:%M} UTC, software version {report.version}"),
        ("Policy file", f"sha-256 {report.policy_hash}"),
    ]
    verdict = Table(
        [
            [
                [
                    Paragraph(VERDICTS[report.verdict], _style("verdict", 14, bold=True, color=color)),
                    Paragraph(_plain(report.headline), BODY),
                ]
            ]
        ],
        colWidths=[WIDTH],
        style=TableStyle(
            [
                ("BOX", (0, 0), (-1, -1), 0.8, color),
                ("LINEBEFORE", (0, 0), (0, -1), 5, color),
                ("LEFTPADDING", (0, 0), (-1, -1), 10),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 6),
            ]
        ),
    )
    made: list[Flowable] = [
        Paragraph(TITLE, HEAD),
        Table(
            [[Paragraph(_plain(name), CELL_HEAD), Paragraph(_plain(value), BODY)] for name, value in facts],
            colWidths=[24 * mm, WIDTH - 24 * mm],
            style=TableStyle([("VALIGN", (0, 0), (-1, -1), "MIDDLE"), ("LEFTPADDING", (0, 0), (0, -1), 0), *_tight()]),
        ),
        Spacer(1, 4 * mm),
        verdict,
    ]
    if report.statements:
        made.append(Paragraph("What was found", SUBTITLE))
        made += [_point(each.text, LEVELS[each.level], bold=each.level == "broken") for each in report.statements]
    made.append(Paragraph("What could not be counted", SUBTITLE))
    made += [_point(each, LEVELS["incomplete"]) for each in report.uncounted]
    if not report.uncounted:
        made.append(Paragraph("Everything was counted.", BODY))
    contents = TableOfContents(levelStyles=[BODY], rightColumnWidth=15 * mm, dotsMinLevel=-1)
    made += [Spacer(1, 3 * mm), _tiles(report.figures), Paragraph("Contents", SUBTITLE), contents]
    made += [Paragraph("How to check it", SUBTITLE), Paragraph(HOW_TO_CHECK, NOTE)]
    # If the cover needs more than a page, the first section follows on its last page: no page for one line.
    made += [_signatures(), CondPageBreak(WHOLE_PAGE * 0.7)]
    return made


def _signatures() -> KeepTogether:
    lines = Table(
        [["Reviewed by", "", "Date", ""]],
        colWidths=[22 * mm, WIDTH - 82 * mm, 14 * mm, 46 * mm],
        style=TableStyle(
            [
                ("FONT", (0, 0), (-1, -1), REGULAR, 8),
                ("LINEBELOW", (1, 0), (1, 0), 0.6, INK),
                ("LINEBELOW", (3, 0), (3, 0), 0.6, INK),
                ("LEFTPADDING", (0, 0), (0, 0), 0),
            ]
        ),
    )
    return KeepTogether([Spacer(1, 10 * mm), lines])


def _heading(number: int, section: Section) -> str:
    return f"{number}. {section.title}"


def _point(text: str, color: Color, *, bold: bool = False) -> Paragraph:
    style = _style("point", 8.5, bold=bold, color=color, leftIndent=10, bulletIndent=1, bulletFontName=REGULAR)
    return Paragraph(_plain(text), style, bulletText="•")


def _tiles(figures: Sequence[tuple[str, str]]) -> Table:
    tiles = [
        [Paragraph(_plain(name), NOTE), Paragraph(_plain(value), _style("tile", 12, bold=True))]
        for name, value in figures
    ]
    rows = [tiles[number : number + 4] for number in range(0, len(tiles), 4)]
    rows[-1] += [[]] * (4 - len(rows[-1]))
    return Table(
        rows,
        colWidths=[WIDTH / 4] * 4,
        style=TableStyle([("GRID", (0, 0), (-1, -1), 0.5, RULE), ("VALIGN", (0, 0), (-1, -1), "TOP")]),
    )


def _section(number: int, section: Section) -> list[Flowable]:
    made: list[Flowable] = [CondPageBreak(60 * mm), Paragraph(_plain(_heading(number, section)), SECTION)]
    made += [Paragraph(_plain(text), NOTE) for text in section.lead]
    made += [_point(f"Not counted: {what}", LEVELS["incomplete"]) for what in section.uncounted]
    made += [_point(each.text, LEVELS[each.level], bold=each.level == "broken") for each in section.statements]
    for chart in section.charts:
        drawing = _bars(chart) if isinstance(chart, Bars) else _shares(chart)
        made.append(KeepTogether([Paragraph(_plain(chart.title), SUBTITLE), drawing]))
    for table in section.tables:
        made += _table(table)
    for passage in section.passages:
        made.append(Paragraph(_plain(passage.title), SUBTITLE))
        lines: list[Flowable] = [XPreformatted(_code(line), DIFFERENCE) for line in passage.text.splitlines()]
        made += [*lines[:-LAST_LINES], KeepTogether(lines[-LAST_LINES:])]
    return made


def _table(table: Figures) -> list[Flowable]:
    title = Paragraph(_plain(table.title), TABLE_TITLE)
    notes = [Paragraph(_plain(table.note), NOTE)] if table.note else []
    if not table.rows:
        return [KeepTogether([title, Paragraph("None.", BODY), *notes])]
    lines = table.lines
    heads = [
        Paragraph(_plain(column.heading), NUMBER_HEAD if column.is_number else CELL_HEAD) for column in table.columns
    ]
    whole = sum(column.weight for column in table.columns)
    widths = [WIDTH * column.weight / whole for column in table.columns]
    rows = [
        [
            Paragraph(_broken(shown(column, value), width), NUMBER if column.is_number else CELL)
            for column, value, width in zip(table.columns, row, widths, strict=True)
        ]
        for row in lines
    ]
    laid_out = LongTable(
        [heads, *rows],
        colWidths=widths,
        repeatRows=1,
        splitInRow=1,
        style=TableStyle(
            [
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("VALIGN", (0, 0), (-1, 0), "BOTTOM"),
                ("LINEBELOW", (0, 0), (-1, 0), 0.7, GREY),
                ("LINEBELOW", (0, 1), (-1, -1), 0.3, RULE),
                ("LEFTPADDING", (0, 0), (0, -1), 0),
                *_last_rows_together(lines),
                *_tight(),
            ]
        ),
    )
    # Not kept together as a whole: a long table begins on this page if its first rows have room.
    return [CondPageBreak(30 * mm), title, *notes, laid_out]


def _last_rows_together(lines: Sequence[tuple[object, ...]]) -> list[tuple[str, tuple[int, int], tuple[int, int]]]:
    """Return the style that keeps the last rows together; rows with long texts are more than a line and may split."""
    last = lines[-LAST_ROWS:]
    if any(len(str(value)) > SHORT_CHARACTERS for row in last for value in row):
        return []
    return [("NOSPLIT", (0, -len(last)), (-1, -1))]


def _tight() -> list[tuple[str, tuple[int, int], tuple[int, int], int]]:
    return [
        ("TOPPADDING", (0, 0), (-1, -1), 2),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
        ("RIGHTPADDING", (0, 0), (-1, -1), 4),
    ]


def _code(line: str) -> str:
    """Break a line for the built-in font with a fixed width, which has Latin-1 only."""
    known = line.replace("…", "...").encode("latin-1", "replace").decode("latin-1") or " "
    pieces = [known[at : at + LINE_CHARACTERS] for at in range(0, len(known), LINE_CHARACTERS)]
    return "\n".join(escape(piece) for piece in pieces)


def _bars(chart: Bars) -> Drawing:
    drawing = Drawing(WIDTH, BARS_HEIGHT + 16)
    for share in (0.0, 0.5, 1.0):
        height = 10 + BARS_HEIGHT * share
        drawing.add(Line(0, height, WIDTH, height, strokeColor=RULE, strokeWidth=0.4))
    step = WIDTH / max(len(chart.bars), 1)
    for number, (_, value) in enumerate(chart.bars):
        height = BARS_HEIGHT * value / chart.top
        drawing.add(_rect(number * step, 10, step * 0.8, height, BLUE))
    drawing.add(_label(0, BARS_HEIGHT + 11.5, f"{chart.top:,}"))
    if chart.bars:
        drawing.add(_label(0, 2, chart.bars[0][0]))
        drawing.add(_label(WIDTH, 2, chart.bars[-1][0], anchor="end"))
    return drawing


def _shares(chart: Shares) -> Drawing:
    rows = len(chart.rows)
    drawing = Drawing(WIDTH, rows * SHARE_HEIGHT + 14)
    for number, (label, parts) in enumerate(chart.rows):
        bottom = 14 + (rows - 1 - number) * SHARE_HEIGHT
        drawing.add(_label(0, bottom + 3, label))
        left, whole = LABEL_WIDTH, sum(parts) or 1
        for part, value in enumerate(parts):
            width = (WIDTH - LABEL_WIDTH) * value / whole
            if value:
                drawing.add(_rect(left, bottom + 1, width, SHARE_HEIGHT - 4, PARTS[part]))
            left += width
    step = WIDTH / len(chart.parts)
    for number, name in enumerate(chart.parts):
        drawing.add(_rect(number * step, 1, 6, 6, PARTS[number]))
        drawing.add(_label(number * step + 9, 1.5, name))
    return drawing


def _label(left: float, bottom: float, text: str, *, anchor: Literal["start", "end"] = "start") -> String:
    return String(left, bottom, _known(text), fontName=REGULAR, fontSize=6.5, fillColor=GREY, textAnchor=anchor)


def _rect(left: float, bottom: float, width: float, height: float, color: Color) -> Rect:
    rect = Rect(left, bottom, width, height)
    rect.fillColor, rect.strokeColor = color, None
    return rect
