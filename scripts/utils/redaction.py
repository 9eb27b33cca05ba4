"""No personal data and no secrets in anything that leaves the process: logs, error reports, traces."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import psycopg

from scripts.utils.errors import describe_database_error

_DEEPEST = 12  # of a Sentry event, a source line lies deepest, at 8
_SECRET_NAME = re.compile(r"passw|pwd|secret|token(_hash)?$|authorization|api_?key|cookie|dsn|_url$", re.IGNORECASE)
# A number that fences off a former lock holder, not a credential.
_HARMLESS_NAMES = frozenset({"fencing_token"})

_RUN = re.compile(r"\S+")
_QUOTED_OR_NOT = r"(?:'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|[^\s&]+)"
_LOCAL = r"[^\s@<>()\[\]\"\\,;:]"
_DOMAIN = r"[\w-]+(?:\.[\w-]+)+"
_PATTERNS = tuple(
    (needle, re.compile(pattern, re.IGNORECASE), replacement)
    for needle, pattern, replacement in (
        ("vercel_blob_rw_", r"vercel_blob_rw_\w+", "[token]"),
        (
            "",
            rf"((?:passwor[dt]|passwd|pwd|secret|(?<!fencing_)token|api_?key)[\"']?\s*[=:]\s*){_QUOTED_OR_NOT}",
            r"\1[secret]",
        ),
        ("", r"(\bbearer )\S+", r"\1[token]"),
        ("@", rf"(?:(?<!{_LOCAL}){_LOCAL}++|\"[^\"\n]{{1,64}}\")@{_DOMAIN}", "[e-mail]"),
        # Not possessive: before Python 3.11.5 a possessive group misses what it should find.
        ("%40", rf"(?<![\w.+%-])(?:[\w.+-]|%(?!40)[0-9A-F]{{2}})+%40{_DOMAIN}", "[e-mail]"),
    )
)


def redact(value: Any, depth: int = 0) -> Any:
    """Replace what looks like an e-mail address or a credential, at any depth; what JSON does not know becomes text."""
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, str):
        return _redact_text(value)
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        if depth == _DEEPEST:
            return "[too deep]"
        if isinstance(value, Mapping):
            return {
                _redact_text(text_of(key)): _redact_named(text_of(key), item, depth + 1) for key, item in value.items()
            }
        return [redact(item, depth + 1) for item in value]
    return _redact_text(text_of(value))


def _redact_named(name: str, value: Any, depth: int) -> Any:
    if name not in _HARMLESS_NAMES and _SECRET_NAME.search(name):
        return "[secret]"
    return redact(value, depth)


def _redact_text(value: str) -> str:
    # A password may hold an '@' and then reads like half an address: so URLs go first.
    if "://" in value and "@" in value:
        value = _RUN.sub(_without_login, value)
    for needle, pattern, replacement in _PATTERNS:
        if needle in value:
            value = pattern.sub(replacement, value)
    return value


def _without_login(run: re.Match[str]) -> str:
    scheme, mark, rest = run[0].partition("://")
    _, at, host = rest.rpartition("@")
    return f"{scheme}://[credentials]@{host}" if mark and at else run[0]


def text_of(value: object) -> str:
    """Return a value's text; a driver error's quotes row values, so it is named instead."""
    if isinstance(value, psycopg.Error):
        return describe_database_error(value)
    try:
        return f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else str(value)
    except Exception:  # noqa: BLE001 - a value that cannot be shown must not fail a job
        return f"[{type(value).__name__}]"
