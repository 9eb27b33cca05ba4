"""What every report stands on: its page's template, its figures as a person says them, its file."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.free_text import visible

NOT_KNOWN = "not known"
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


class ReportNotWritten(OpsError):
    """The file could not be written; what was there before is untouched."""

    stop_reason = "report_not_written"


def environment(folder: Path) -> Environment:
    """Return what renders the templates in a folder: escaped by default, and strict about names."""
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        # A page may be printed to a terminal, and a text that runs backwards misleads in a browser too.
        finalize=lambda value: visible(value, lines=True) if type(value) is str else value,  # not of Markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["duration"] = duration
    return made


def duration(seconds: float | None) -> str:
    """Return seconds as a person says them: two units at most."""
    if seconds is None:
        return NOT_KNOWN
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def write(path: Path, content: str | bytes, flag: str = "--output") -> None:
    """Write a file as a whole or not at all.

    Args:
        path: Where.
        content: What; a text in UTF-8.
        flag: What named the path on the command line, for messages.

    Raises:
        Misconfigured: The path is a directory or a device, or its folder is not there.
        ReportNotWritten: The file system refused.
    """
    check_path(path, flag)
    target = Path(os.path.realpath(path))
    fresh = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.new")
    try:
        try:
            with fresh.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise ReportNotWritten(f"{flag} {path}: {error.strerror}; it was not written") from None


def check_path(path: Path, flag: str = "--output") -> None:
    """Refuse a place where no file can be put.

    Raises:
        Misconfigured: Says why.
    """
    try:
        if path.is_dir():
            raise Misconfigured(f"{flag} {path} is a directory: name a file in it")
        # Renaming a file over a device would take the device away from everybody.
        if path.exists() and not path.is_file():
            raise Misconfigured(f"{flag} {path} is not a regular file")
        if not Path(os.path.realpath(path)).parent.is_dir():
            raise Misconfigured(f"{flag} {path}: its directory does not exist")
    except OSError as error:
        raise Misconfigured(f"{flag} {path}: {error.strerror}") from None
