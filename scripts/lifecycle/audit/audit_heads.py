"""Read heads of the audit from a log store: from closing lines of runs, or from bare heads, one a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from scripts.lifecycle.audit.audit_chain import Head
from scripts.utils.errors import Misconfigured

_STANDARD_INPUT = "-"


def read(place: str | None) -> list[Head]:
    """Read the heads from a file, or from standard input.

    Args:
        place: A file's name, or ``-`` for standard input; None: no heads were given.

    Raises:
        Misconfigured: The file cannot be read, holds no head, or holds an ``audit_head`` that is malformed.
    """
    if place is None:
        return []
    try:
        if place == _STANDARD_INPUT:
            found = _parsed(sys.stdin)
        else:
            with Path(place).open(encoding="utf-8") as file:
                found = _parsed(file)
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"--heads {place}: cannot be read ({type(error).__name__})") from None
    if not found:
        raise Misconfigured(f"--heads {place}: not one line has an audit_head: nothing was compared")
    return found


def _parsed(lines: Iterable[str]) -> list[Head]:
    found = {}
    for number, line in enumerate(lines, start=1):
        keeper = f"the log (line {number})"
        text = line.strip()
        head = _of_log_line(text) if text.startswith("{") else text
        if head:
            found[head] = Head.parsed(head, keeper)
    return list(found.values())


def _of_log_line(text: str) -> str | None:
    """Return a closing line's head; other lines of the log have none."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    head = line.get("audit_head") if isinstance(line, dict) else None
    return head if isinstance(head, str) else None
