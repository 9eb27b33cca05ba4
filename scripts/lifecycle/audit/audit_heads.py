"""Heads of the audit from a log store: its closing lines as they are, or the bare heads."""

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
        place: A file's name, or ``-``; None: there are none.

    Raises:
        Misconfigured: It cannot be read, holds no head at all, or one that is none.
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
