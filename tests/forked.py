"""Scripts as processes of their own, forked from one that has imported everything: see zygote.py.

The same two functions as in scripts/utils/test_helpers.py, which start an interpreter each time;
tests/project/test_entry_points.py does that with every script.
"""

import atexit
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from scripts.utils.test_helpers import script_environment


@cache
def _zygote():
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = Path(__file__).with_name("zygote.py")
    process = subprocess.Popen(
        [sys.executable, program, str(its.fileno())], pass_fds=[its.fileno()], env={"PATH": os.environ["PATH"]}
    )
    its.close()

    @atexit.register
    def stop():
        ours.close()
        process.wait()

    return ours


class Forked:
    """As much of subprocess.Popen as the tests use."""

    def __init__(self, script, args, env, streams, folder=None):
        self.args = [str(script), *map(str, args)]
        self.returncode = None
        self.stdout = self.stderr = None
        self._status, report = os.pipe()
        request = {"argv": self.args, "env": script_environment(env), "folder": str(folder or Path.cwd())}
        socket.send_fds(_zygote(), [json.dumps(request).encode()], [*streams, report])
        os.close(report)
        self._said = b""
        self.pid = self._line(300)

    def poll(self):
        """Return the exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        """Wait for the end, and return the exit code."""
        if self.returncode is None:
            self.returncode = self._line(timeout)
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout=None):
        """Wait for the end, and return what it wrote; killed when it takes longer."""
        with ThreadPoolExecutor(2) as readers, self.stdout, self.stderr:
            out, err = readers.submit(self.stdout.read), readers.submit(self.stderr.read)
            try:
                self.wait(timeout)
            except BaseException:
                self.kill()
                raise
            return out.result(), err.result()

    def send_signal(self, number):
        """Send a signal, unless it ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """Send SIGKILL."""
        self.send_signal(9)

    def terminate(self):
        """Send SIGTERM."""
        self.send_signal(15)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()
        self.wait()

    def _line(self, timeout):
        until = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._said:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._status], [], [], left)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            chunk = os.read(self._status, 100)
            if not chunk:
                raise AssertionError("the process that forks is gone")
            self._said += chunk
        line, _, self._said = self._said.partition(b"\n")
        return int(line)


def start_script(path, *args, env):
    """Start a script and return at once; its output is piped."""
    out, err = os.pipe(), os.pipe()
    with open(os.devnull) as nothing:  # noqa: PTH123 - a device
        process = Forked(path, args, env, [nothing.fileno(), out[1], err[1]])
    for end in (out[1], err[1]):
        os.close(end)
    process.stdout, process.stderr = open(out[0]), open(err[0])  # noqa: PTH123, SIM115 - closed by who started it
    return process


def run_script(path, *args, env, timeout=300.0, stdin=None, folder=None):
    """Run a script and wait for it."""
    with (
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        given.write(stdin or "")
        given.seek(0)
        process = Forked(path, args, env, [given.fileno(), out.fileno(), err.fileno()], folder)
        try:
            process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(process.args, process.returncode, out.read(), err.read())
