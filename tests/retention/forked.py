"""A script in a child of this process: killed, or cut off from PostgreSQL, at a chosen point of its own code.

The point is so many calls of the suite's functions after its beginning: the same one for the same run. SIGKILL is the
real thing: nothing is cleaned up, no answer is waited for.
"""

import os
import signal
import sys
import threading
from pathlib import Path

import psycopg

from scripts.lifecycle.jobs.entry_point import main

_DOMAIN = str(Path(__file__).resolve().parents[2] / "scripts" / "lifecycle")


class Child:
    """A run in a process of its own.

    Args:
        job: The script's job.
        arguments: Its command line.
        output: Where its lines go.
        url: The superuser's, to cut connections.
        fault: ``kill``, ``cut``, or None.
        at: After how many calls.
    """

    def __init__(self, job, arguments, *, output, url, fault=None, at=0):
        self._reader, writer = os.pipe()
        self.output = output
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            return
        code = 70
        try:
            lines = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(lines, 1)
            os.dup2(lines, 2)
            sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            _arm(fault, at, url, lambda: os.write(writer, b"!"))
            code = main(job, arguments)
            sys.stdout.flush()
        finally:
            os._exit(code)

    def struck(self):
        """Wait until its point is reached, or it is over."""
        os.read(self._reader, 1)

    def wait(self):
        """Return its exit code; negative: the signal that ended it."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self._reader)
        return os.waitstatus_to_exitcode(status)


def _arm(fault, at, url, tell):
    left = [at]

    def count(frame, event, _):
        if event != "call" or not frame.f_code.co_filename.startswith(_DOMAIN):
            return
        left[0] -= 1
        if left[0] != 0:
            return
        tell()
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "cut":
            with psycopg.connect(url, autocommit=True) as link:
                link.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE usename = 'lifecycle_jobs' AND datname = current_database() AND application_name <> 'the test'"
                )

    sys.setprofile(count)
    threading.setprofile(count)
