"""Read heads of the audit from a log store: from closing lines of runs, or from bare heads, one a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from scripts.lifecycle.audit.audit_chain import Head
from scripts.utils.errors import Misconfigured

_STANDARD_INPUT = "-"


def read(place: str | None, database: str) -> list[Head]:
    """Read the heads of one database from a file, or from standard input.

    A log store may have the lines of several databases. A line that names another database is left out; a bare head,
    or a line of a version that named none, is taken for one of this database.

    Args:
        place: A file's name, or ``-`` for standard input; None: no heads were given.
        database: :meth:`Database.identity` of the database whose chain is compared.

    Raises:
        Misconfigured: The file cannot be read, holds no head of this database, or holds an ``audit_head`` that is
            malformed.
    """
    if place is None:
        return []
    try:
        if place == _STANDARD_INPUT:
            found, others = _parsed(sys.stdin, database)
        else:
            with Path(place).open(encoding="utf-8") as file:
                found, others = _parsed(file, database)
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"--heads {place}: cannot be read ({type(error).__name__})") from None
    if not found:
        there = f" of this database, {database}; there are heads of {', '.join(sorted(others))}" if others else ""
        raise Misconfigured(f"--heads {place}: not one line has an audit_head{there}: nothing was compared")
    return found


def _parsed(lines: Iterable[str], database: str) -> tuple[list[Head], set[str]]:
    """Return the heads of a database, and the names of the other databases that have heads here."""
    found, others = {}, set()
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        head, of = _of_log_line(text) if text.startswith("{") else (text, None)
        if head and of not in (None, database):
            others.add(str(of))
        elif head:
            found[head] = Head.parsed(head, f"the log (line {number})")
    return list(found.values()), others


def _of_log_line(text: str) -> tuple[str | None, str | None]:
    """Return a closing line's head and the name of its database; other lines of the log have neither."""
    try:
        line = json.loads(text)
    except ValueError:
        return None, None
    facts = line if isinstance(line, dict) else {}
    head, database = (facts.get(name) for name in ("audit_head", "audit_database"))
    return (head if isinstance(head, str) else None, database if isinstance(database, str) else None)
