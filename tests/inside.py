"""A script run in the test's own process: the same main(), a tenth of the time that a process of its own takes."""

import io
import logging
import subprocess
import sys

from scripts.lifecycle.jobs.entry_point import main
from scripts.utils import error_reporting
from tests.project.conftest import load_script


def run_inside(script, arguments, *, env, capsys, monkeypatch, stdin="", folder=None):
    """Run a script's job with these settings, and return what a process would have left behind.

    The settings of the test's own shell are gone already (tests/conftest.py).
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with monkeypatch.context() as patched:
        for name, value in env.items():
            patched.setenv(name, value)
        patched.setattr(sys, "stdin", io.StringIO(stdin))
        patched.setattr(error_reporting, "_active", False)
        if folder:
            patched.chdir(folder)
        capsys.readouterr()
        try:
            code = main(load_script(script).JOB, [str(argument) for argument in arguments])
        except SystemExit as misuse:  # what argparse says of a flag
            code = misuse.code
        finally:
            # What this run's log was written to is closed after the test; other tests log too.
            root.handlers[:] = handlers
            root.setLevel(level)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())
