"""What somebody typed is shown and not obeyed, at a terminal, in its log, in files; and a reason names nobody."""

import io
import sys
import unicodedata

import pytest
from rich.table import Table
from rich.text import Text

from scripts.lifecycle.compliance.sheet import _cell
from scripts.lifecycle.jobs import terminal
from scripts.utils.free_text import names_somebody, visible
from scripts.utils.logging_utils import configure_logging, get_logger
from scripts.utils.pages import environment

HOSTILE = {
    "colour": "\x1b[31mred",
    "clear": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;https://evil.example/\x1b\\click\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "C1 CSI": "\x9b31mred",
    "C1 OSC": "\x9d8;;https://evil.example/\x9cclick",
    "C1 NEL": "one\x85two",
    "backspace": "hold\x08\x08\x08\x08gone",
    "return": "kept\rgone",
    "delete": "a\x7fb",
    "nul": "a\x00b",
    "bidi override": "user\u202etxt.exe",
    "bidi isolate": "\u2067abc\u2069",
    "mark": "a\u200fb\u200eb\u061c",
    "invisible": "ad\u200bmin\u2060\ufeff",
    "soft hyphen": "ad\xadmin",
    "separator": "one\u2028two\u2029three",
    "tag": "a\U000e0061\U000e007f",
    "lone surrogate": "a\ud800b\udfff",
}


def obeyed(text):
    """The characters that a terminal or an eye would follow instead of showing them."""
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return [each for each in text if unicodedata.category(each) in kinds and each not in "\n\u200c\u200d"]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_nothing_is_left_that_would_be_obeyed_and_nothing_else_is_changed(text):
    assert obeyed(visible(text)) == []
    backslashes_too = visible(text.replace("\\", "\\\\"))
    assert backslashes_too.encode("ascii").decode("unicode_escape") == text


def test_ordinary_text_of_any_script_stays_as_it_is():
    text = "Grüße, 漢字, עברית, عربى, é, می‌خواهم, 👩‍👩‍👧, a\\b, [x], %s"
    assert visible(text) == text


def test_one_line_stays_one_line_unless_lines_are_wanted():
    assert visible("a\nb\r\n") == "a\\nb\\r\\n"
    assert visible("a\nb\r\n", lines=True) == "a\nb\\r\n"


def shown_in_a_file(text, *more):
    table = Table(title=text)
    table.add_column(text)
    for cell in (text, *more):
        table.add_row(cell)
    return terminal.as_text([table], width=200)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_table_shows_it_as_text_and_as_a_text_of_rich(text):
    shown = shown_in_a_file(text, Text(text))
    assert obeyed(shown) == []
    assert shown_in_a_file(text).count(visible(text, lines=True)) == 3


def test_brackets_in_a_cell_are_text():
    for text in ("[link=https://evil.example]click[/link]", "[/nothing]", "[bold red]x", ":smiley:"):
        assert text in shown_in_a_file(text)


def test_what_is_said_at_a_terminal_is_shown_too(monkeypatch):
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    display = terminal.Display(enabled=True)
    for text in HOSTILE.values():
        display.say(text)
    table = Table("reason")
    for text in HOSTILE.values():
        table.add_row(text)
    display.show(table)
    assert obeyed(errors.getvalue()) == []


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_console_s_log_shows_it_wherever_it_stands(text, monkeypatch):
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    configure_logging(script="s", correlation_id="c", level="INFO", log_format="console")
    get_logger().info("event", error=text, several=[text, {"key": text}])
    get_logger().info(text)
    get_logger().error("raised", exc_info=ValueError(text))
    assert obeyed(errors.getvalue()) == []
    assert errors.getvalue().count("\n") == 3


def test_a_page_shows_it(tmp_path):
    (tmp_path / "page.jinja").write_text("<p>{{ text }}</p>")
    page = environment(tmp_path).get_template("page.jinja").render(text="\x1b]0;x\x07\u202e<b>\n")
    assert page == "<p>\\x1b]0;x\\x07\\u202e&lt;b&gt;\n</p>"


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "\uff20x", "\u200b=1", "\x00=1"]
)
def test_a_cell_of_a_spreadsheet_is_no_formula(text):
    cell = _cell(text)
    assert cell[0] not in "=+-@\t\r\n\u200b\x00\uff1d\uff20"


def test_a_number_stays_a_number_in_a_spreadsheet():
    assert [_cell(value) for value in (-1, 1.5, None, "text")] == [-1, 1.5, "", "text"]


@pytest.mark.parametrize(
    "text",
    ["for olga@example.com", "olga\uff20example.com", "olga﹫example.com", "olga%40example.com", "@"],
)
def test_a_reason_with_an_address_in_any_spelling_names_somebody(text):
    assert names_somebody(text)


def test_a_reason_without_one_does_not():
    assert not names_somebody("audit of 2026, matter 7/12, 40 % done, see https://wiki.example/x?a=1")
