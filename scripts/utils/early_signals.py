"""Signals before a script's work begins, and after its closing line.

Python's own handlers end a process without a word. A script takes these first, before the half second of imports, so
that SIGTERM and SIGINT end it with a log line and with exit code 143 or 130; nothing was begun by then. The run's
handlers (``lifecycle/jobs/entry_point.py``) follow. From the closing line on, signals are ignored: the exit code is
what that line says. A second or two remain, for Sentry to be told.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_installed = False


def install(name: str) -> None:
    """Take the signals, where the module that calls is the script itself.

    Args:
        name: The caller's ``__name__``; a script that a test imports takes nothing.
    """
    global _installed  # noqa: PLW0603 - a process has one set of signal handlers
    if name == "__main__":
        _installed = True
        for number in SIGNALS:
            signal.signal(number, _end)


def installed() -> bool:
    """Tell whether this process is a script, and its signals the suite's to decide on."""
    return _installed


def ignore() -> None:
    """Ignore the signals until the process ends; a program that calls ``main()`` itself keeps its own handlers."""
    # Not a handler of our own: at its exit the interpreter replaces each of those by the default, which kills.
    for number in SIGNALS if _installed else ():
        signal.signal(number, signal.SIG_IGN)


def _end(number: int, _frame: FrameType | None) -> None:
    # By hand, as nothing is imported yet; in the log's format. os.write: the handler may have interrupted a print.
    moment = time.time()
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(moment))}.{int(moment % 1 * 1000):03d}Z"
    name, script = signal.Signals(number).name, os.path.basename(sys.argv[0]).removesuffix(".py")  # noqa: PTH119
    code = 128 + number
    line = (
        f'{{"timestamp": "{stamp}", "level": "INFO", "correlation_id": "-", "script": "{script}",'
        f' "event": "stopped_before_start", "stop_reason": "{name.lower()}", "exit_code": {code},'
        f' "error": "{name} received before the run began: nothing was done"}}\n'
    )
    try:
        os.write(1, line.encode())
    finally:
        os._exit(code)
