"""A process that has imported what every script imports, and forks where a test asks for a script.

Half a second of imports a process is most of what a short run costs. What comes after is the same: a process of its own
with its own number, environment, signals, standard streams and exit code.
"""

import atexit
import gc
import inspect
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import threading
import time
import traceback
from importlib import import_module
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).resolve().parents[1]
LARGEST_REQUEST = 200_000


def prepare():
    """Import the suite's modules, but none of its scripts."""
    sys.path[0] = str(ROOT)
    for package in ("scripts.lifecycle", "scripts.utils"):
        for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
            if not module.name.endswith(".test_helpers"):
                import_module(module.name)
    inspect.stack()  # coverage calls it as it starts: the names of a thousand modules' files are kept for each process
    gc.freeze()  # what is never collected is never copied


def serve(requests):
    """Fork for each request; tell the number of the process, and later its exit code."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    told = {}
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            for number, code in ended():
                report = told.pop(number)
                os.write(report, f"{code}\n".encode())
                os.close(report)
        if requests in ready:
            message, streams, _, _ = socket.recv_fds(requests, LARGEST_REQUEST, 4)
            if not message:
                return
            *streams, report = streams
            number = os.fork()
            if not number:
                become(json.loads(message), streams)
            for stream in streams:
                os.close(stream)
            os.write(report, f"{number}\n".encode())
            told[number] = report


def ended():
    """Return the children that ended, with their exit codes as subprocess counts them."""
    while True:
        try:
            number, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not number:
            return
        yield number, os.waitstatus_to_exitcode(status)


def become(request, streams):
    """Be the script from here on."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, 256)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the life of the process
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    os.chdir(request["folder"])
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        count_lines()
    os._exit(outcome(sys.argv[0]))


def count_lines():
    """Count the lines that are reached, as coverage's process_startup does, but for the search for files never imported.

    The process that the tests run in searches for them.
    """
    counting = Coverage(data_suffix=True, config_file=f":data:{os.environ['COVERAGE_PROCESS_CONFIG']}", auto_data=True)
    counting.set_option("run:source", None)
    counting.set_option("run:include", [f"{ROOT}/scripts/*"])
    counting.set_option("run:patch", [])
    counting.set_option("run:disable_warnings", ["no-data-collected"])
    counting.start()


def outcome(script):
    """Run the script to its end, and return its exit code."""
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    if not isinstance(code, int | None):
        sys.stderr.write(f"{code}\n")
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0


if __name__ == "__main__":
    prepare()
    serve(socket.socket(fileno=int(sys.argv[1])))
