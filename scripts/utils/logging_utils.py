"""One JSON object a line for machines, colours for a terminal, and no personal data in either.

Events have stable names and facts as keywords. The correlation id and the script's name are bound once.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import sys
import traceback
from collections.abc import MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

import psycopg
import structlog

from scripts.utils.free_text import visible
from scripts.utils.redaction import redact, text_of

LogFormat = Literal["json", "console"]
Logger = structlog.stdlib.BoundLogger

_FIRST_KEYS = ("timestamp", "level", "correlation_id", "script", "event")
_FORMATTER_KEYS = ("_record", "_from_structlog")


def _redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    kept = {key: event.pop(key) for key in _FORMATTER_KEYS if key in event}
    redacted: MutableMapping[str, Any] = redact(event)
    return {**redacted, **kept}


def _stamp(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["timestamp"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    event["level"] = str(event.get("level", "info")).upper()
    return {key: event.get(key) for key in _FIRST_KEYS} | dict(event)


def _name_exception(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put an exception's type, text and place in the line; a traceback would quote what other errors said."""
    error = event.pop("exc_info", None)
    if error and not isinstance(error, BaseException):
        error = error[1] if isinstance(error, tuple) else sys.exc_info()[1]
    if error:
        event["raised"] = text_of(error)
        if frames := traceback.extract_tb(error.__traceback__):
            event["raised_at"] = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}"
    return event


def _write_out_controls(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For a terminal; JSON does it anyway, and so does the repr of whatever is no text."""
    return {key: visible(value) if isinstance(value, str) else value for key, value in event.items()}


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines; where one cannot be written, standard error names its logger and the error's type, no value."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple) and any(isinstance(value, psycopg.Error) for value in record.args):
            record = copy.copy(record)
            record.args = tuple(
                text_of(value) if isinstance(value, psycopg.Error) else value for value in record.args or ()
            )
        return super().format(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        kind = sys.exc_info()[0]
        if kind is BrokenPipeError:
            _let_go(self.stream)
            return
        try:
            sys.stderr.write(f"a log line of {record.name} was lost: {kind.__name__ if kind else 'unknown'}\n")
        except OSError:
            return  # nobody is listening any more


def _let_go(stream: TextIO) -> None:
    """Send what is still written to a stream nobody reads (``| head -1``) nowhere: the work goes on, in silence."""
    # Otherwise the interpreter tries once more at its exit, prints a traceback and turns the exit code into 120.
    with contextlib.suppress(OSError, ValueError):  # a stream without a file descriptor, or a closed one
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def configure_logging(
    *, script: str, correlation_id: str, level: str, log_format: LogFormat | None, trace_id: str | None = None
) -> LogFormat:
    """Set up structlog and the standard library's logging for this process.

    Args:
        script: The script's name, bound to every line.
        correlation_id: The run's id, bound to every line.
        level: DEBUG, INFO, WARN or ERROR.
        trace_id: The trace that the run belongs to, in every line that is not for a terminal; None: in none.
        log_format: ``json`` goes to standard output, ``console`` to standard error; None: console on a terminal.

    Returns:
        The format in use.
    """
    log_format = log_format or ("console" if sys.stderr.isatty() and sys.stdout.isatty() else "json")

    trace = {"trace_id": trace_id} if trace_id and log_format == "json" else {}

    def name_run(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        # Not by context variables: the threads that watch the lock would not have them.
        return {"correlation_id": correlation_id, "script": script, **trace, **event}

    shared: list[structlog.typing.Processor] = [
        name_run,
        structlog.stdlib.add_log_level,
        _name_exception,
        _redact_event,
        _stamp,
    ]
    structlog.configure(  # noqa: TID251 - this is its one home
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    renderers: list[structlog.typing.Processor]
    stream: TextIO
    if log_format == "json":
        renderers, stream = [structlog.processors.JSONRenderer()], sys.stdout
    else:
        colourful = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), sort_keys=False)
        renderers, stream = [_write_out_controls, colourful], sys.stderr
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel("WARNING" if level == "WARN" else level)
    # At INFO these say what the suite's own events say better.
    for name in ("httpx", "httpcore", "redis"):
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    # psycopg's warnings name host and user ("error ignored terminating <Pipeline …>"), a pool's repeat the server's
    # message for every failed attempt; both are told by the error that follows them.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    logging.getLogger("resilient_circuit").setLevel(logging.ERROR)
    # Only Sentry uses it, from a thread of its own: its complaints would come after the closing line.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    return log_format


def get_logger() -> Logger:
    """Return the logger that every module uses."""
    logger: Logger = structlog.get_logger()
    return logger
