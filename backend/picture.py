"""The picture in the README: three real commands in a terminal, drawn as SVG. `make picture`.

Nothing in it is made up: servers of its own, sample rows, the scripts as an operator runs them, and what they print.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.text import Text

from backend import local_stack

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "run.svg"
ROWS = 20_000
WIDTH = 118
COMMANDS = (
    ("scripts/cleanup/cleanup_quiz_responses.py --dry-run", 0),
    ("scripts/cleanup/cleanup_quiz_responses.py", 4),
    ("scripts/retention/verify_audit.py", 0),
)
# This line is many screens long and is meant for a program.
_LEFT_OUT = "run_figures"
_ENTRY = re.compile(r"^\d{4}-\d{2}-\d{2}T")


def draw(path: Path) -> None:
    """Run the commands, and write what a terminal showed.

    Raises:
        RuntimeError: A command ended otherwise than it should.
    """
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="truecolor")
    with (
        tempfile.TemporaryDirectory(prefix="lifecycle-picture-") as directory,
        local_stack.running(Path(directory), blob=True) as stack,
    ):
        local_stack.prepare(stack, rows=ROWS)
        for command, expected in COMMANDS:
            console.print(Text(f"$ python {command}", "bold cyan"))
            console.print(Text.from_ansi(_output(stack, command, expected)))
    svg = console.export_svg(title=f"{ROWS:,} sample rows, real servers")
    # The picture must fetch no font from a server.
    path.write_text(re.sub(r"@font-face \{[^}]*\}", "", svg))


def _output(stack: local_stack.Stack, command: str, expected: int) -> str:
    script, *arguments = command.split()
    environment = {
        "PATH": os.environ["PATH"],  # noqa: TID251 - hands its shell's on
        **stack.exports(),
        "FORCE_COLOR": "1",
        "TTY_INTERACTIVE": "0",  # colours, and no bar that is drawn over
        "COLUMNS": str(WIDTH),
    }
    done = local_stack.run_script(script, "--log-format", "console", *arguments, env=environment)
    if done.returncode != expected:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return "\n".join([*_without_figures((done.stdout + done.stderr).splitlines()), ""])


def _without_figures(lines: list[str]) -> Iterator[str]:
    left_out = False
    for line in lines:
        plain = Text.from_ansi(line).plain
        if _ENTRY.match(plain) or not plain.strip():
            left_out = _LEFT_OUT in plain
        if not left_out:
            yield line


def main(arguments: list[str] | None = None) -> int:
    """Draw the picture."""
    parser = argparse.ArgumentParser(prog="picture.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=PICTURE, help="default: docs/run.svg")
    path = parser.parse_args(arguments).output
    draw(path)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
