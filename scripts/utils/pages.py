"""What all reports share: how their templates are rendered, how durations are written, how their files are saved."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scripts.utils import private_files
from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.free_text import visible

NOT_KNOWN = "not known"
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


class ReportNotWritten(OpsError):
    """The report's file could not be written; an older file is unchanged."""

    stop_reason = "report_not_written"


def environment(folder: Path) -> Environment:
    """Return a renderer of the templates in a folder: it escapes by default and refuses unknown names."""
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
    """Return seconds as a person would write them, in two units at most; None: ``not known``."""
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
    """Write a file as a whole or not at all; only its owner may read it.

    Args:
        path: The file.
        content: A text, written as UTF-8, or bytes.
        flag: The flag that named the path, for messages.

    Raises:
        Misconfigured: The path is a directory, a device or a symbolic link, or its folder is not there.
        ReportNotWritten: The file system refused.
    """
    check_path(path, flag)
    try:
        private_files.write(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ReportNotWritten(f"{flag} {path}: {error.strerror}; it was not written") from None


def check_path(path: Path, flag: str = "--output") -> None:
    """Refuse a path at which no file can be written.

    Raises:
        Misconfigured: Says why.
    """
    try:
        if path.is_symlink():
            raise Misconfigured(f"{flag} {path} is a symbolic link: name the file itself")
        if path.is_dir():
            raise Misconfigured(f"{flag} {path} is a directory: name a file in it")
        # A rename would replace a device, such as /dev/null, by the file.
        if path.exists() and not path.is_file():
            raise Misconfigured(f"{flag} {path} is not a regular file")
        if not path.parent.is_dir():
            raise Misconfigured(f"{flag} {path}: its directory does not exist")
    except OSError as error:
        raise Misconfigured(f"{flag} {path}: {error.strerror}") from None
