"""One JSON object a line for machines, colours for a terminal, and no personal data in either.

Events have stable names and facts as keywords. The correlation id and the script's name are bound once.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import structlog

LogFormat = Literal["json", "console"]
Logger = structlog.stdlib.BoundLogger

_FIRST_KEYS = ("timestamp", "level", "correlation_id", "script", "event")
_SECRET_NAME = re.compile(r"passw|secret|token$|authorization|api_key|dsn|_url$", re.IGNORECASE)
_PATTERNS = (
    (re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"), "[e-mail]"),
    (re.compile(r"vercel_blob_rw_\w+"), "[token]"),
    (re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/@]*@"), r"\1[credentials]@"),
    (re.compile(r"(password=)\S+", re.IGNORECASE), r"\1[secret]"),
    (re.compile(r"(Bearer )\S+", re.IGNORECASE), r"\1[token]"),
)
# A number that fences off a former lock holder, not a credential.
_HARMLESS_NAMES = frozenset({"fencing_token"})


def redact(value: Any) -> Any:
    """Replace what looks like an e-mail address or a credential, at any depth."""
    if isinstance(value, str):
        for pattern, replacement in _PATTERNS:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, MutableMapping):
        return {key: _redact_named(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item) for item in value]
    return value


def _redact_named(name: str, value: Any) -> Any:
    if name not in _HARMLESS_NAMES and _SECRET_NAME.search(name):
        return "[secret]"
    return redact(value)


def _redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    redacted: MutableMapping[str, Any] = redact(event)
    return redacted


def _stamp(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["timestamp"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    event["level"] = str(event.get("level", "info")).upper()
    return {key: event.get(key) for key in _FIRST_KEYS} | dict(event)


def configure_logging(*, script: str, correlation_id: str, level: str, log_format: LogFormat | None) -> LogFormat:
    """Set up structlog and the standard library's logging for this process.

    Args:
        script: The script's name, bound to every line.
        correlation_id: The run's id, bound to every line.
        level: DEBUG, INFO, WARN or ERROR.
        log_format: ``json`` goes to standard output, ``console`` to standard error; None: console on a terminal.

    Returns:
        The format in use.
    """
    log_format = log_format or ("console" if sys.stderr.isatty() and sys.stdout.isatty() else "json")
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(correlation_id=correlation_id, script=script)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _redact_event,
        _stamp,
    ]
    structlog.configure(  # noqa: TID251 - this is its one home
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    renderer: structlog.typing.Processor
    stream: TextIO
    if log_format == "json":
        renderer, stream = structlog.processors.JSONRenderer(default=str), sys.stdout
    else:
        renderer, stream = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), sort_keys=False), sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel("WARNING" if level == "WARN" else level)
    # At INFO these say what the suite's own events say better.
    for name in ("httpx", "httpcore", "redis", "urllib3"):
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    # A pool's warning repeats the server's message for every failed attempt; connects are reported by db_utils.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    return log_format


def get_logger() -> Logger:
    """Return the logger that every module uses."""
    logger: Logger = structlog.get_logger()
    return logger
