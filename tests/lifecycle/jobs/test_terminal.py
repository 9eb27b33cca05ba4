"""What a person sees at a terminal, and that a machine never gets to see it."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from backend import sample_data
from scripts.lifecycle.jobs.results import PolicyResult
from scripts.lifecycle.jobs.terminal import Display
from scripts.utils.errors import ExitCode
from scripts.utils.test_helpers import script_environment
from tests.forked import run_script

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "cleanup" / "cleanup_quiz_responses.py"
HEADINGS = ["policy", "status", "deleted", "held", "queued", "remaining", "SLA", "because"]


@pytest.fixture
def environment(database, redis_url):
    """A script's environment, with 20 rows in the database, of which some are due."""
    sample_data.load(database.superuser(), rows=20)
    return {"DATABASE_URL": database.url, "REDIS_URL": redis_url, "COLUMNS": "140"}


def at_a_terminal(*arguments, environment):
    """Run the script with a terminal on its three streams and return its code and what the terminal showed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *arguments],
        env=script_environment(environment) | {"TERM": "xterm-256color"},
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65_536)
        except OSError:  # Linux says so when the last one has left the terminal
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    return process.wait(300), shown.decode()


def test_a_terminal_shows_colours_and_the_closing_table(environment):
    code, shown = at_a_terminal(environment=environment)
    assert code == 4
    assert "\x1b[" in shown
    assert '{"timestamp"' not in shown
    assert "cleanup_completed" in shown
    table = shown[shown.rindex("cleanup_quiz_responses: ") :]
    for heading in [*HEADINGS, "quiz_responses", "completed", "within_sla"]:
        assert heading in table


def test_the_console_format_leaves_standard_output_alone(environment):
    done = run_script(SCRIPT, "--log-format", "console", "--dry-run", env=environment)
    assert (done.returncode, done.stdout) == (0, "")
    assert "cleanup_quiz_responses: dry run, nothing was written" in done.stderr
    assert "would delete" in done.stderr
    assert "\x1b[" not in done.stderr, "a file gets no colours"


def test_machines_get_json_lines_and_nothing_else(environment):
    done = run_script(SCRIPT, "--verbose", env=environment)
    assert (done.returncode, done.stderr) == (4, "")
    lines = [list(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(lines) > 3
    assert all(line[:5] == ["timestamp", "level", "correlation_id", "script", "event"] for line in lines)


def results():
    yield PolicyResult("counted", "completed", "done", ExitCode.DONE, 1_234, 0, 1, 2, 3, 4.0)
    yield PolicyResult("lost", "failed", "database_error", ExitCode.FAILED)


def test_what_was_not_counted_is_not_shown_as_zero(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "140")
    with Display(enabled=True) as display:
        display.summary("a_job", results(), dry_run=False, duration=61.26)
    out, err = capsys.readouterr()
    assert out == ""
    assert "a_job: 61.3 s" in err
    counted, lost = ([cell.strip() for cell in line.split("│")[1:-1]] for line in err.splitlines() if "│" in line)
    assert counted == ["counted", "completed", "1,234", "1", "2", "3", "within_sla", "done"]
    assert lost == ["lost", "failed", "0", "not counted", "0", "not counted", "within_sla", "database_error"]


def test_a_narrow_terminal_cuts_no_figure_and_no_name(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with Display(enabled=True) as display:
        display.summary(
            "a_job",
            [PolicyResult("quiz_responses", "completed", "done", ExitCode.DONE, 1_234_567, 0, 0, 0, 0)],
            dry_run=False,
            duration=1,
        )
    err = capsys.readouterr().err
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in err.splitlines() if "│" in line]
    joined = ["".join(column) for column in zip(*cells, strict=True)]
    assert joined == ["quiz_responses", "completed", "1,234,567", "0", "0", "0", "within_sla", "done"]
    assert cells[0][2] == "1,234,567"


def test_without_anything_to_show_there_is_no_table(capsys):
    with Display(enabled=True) as display:
        display.summary("a_job", [], dry_run=False, duration=1)
    with Display(enabled=False) as display:
        display.expect("quiz", 10)
        display.advance("quiz", 5)
        display.summary("a_job", results(), dry_run=False, duration=1)
    assert capsys.readouterr() == ("", "")
