"""A reader that goes away, as with `| head -1`: no traceback, the work is done, the exit code is the true one."""

import os
import subprocess
import sys

import pytest

from backend import sample_data
from scripts.utils.test_helpers import script_environment
from tests.project.conftest import SCRIPTS

ARGUMENTS = {
    "cleanup_quiz_responses": ["--verbose", "--batch-size", "5"],
    "legal_holds": ["list"],
    "stop_switch": ["status"],
    "verify_audit": [],
}


def read_nothing(script, *arguments, environment, both=False):
    """Run a script whose output nobody reads; return its exit code and what it said on standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, script, *arguments],
        env=script_environment(environment),
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.STDOUT if both else subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    _, complaint = process.communicate(timeout=300)
    return process.returncode, complaint


@pytest.fixture
def environment(database, redis_url):
    return {"DATABASE_URL": database.url, "REDIS_URL": redis_url}


@pytest.mark.parametrize("both", [False, True], ids=["output", "errors too"])
@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.stem in ARGUMENTS], ids=lambda path: path.stem)
def test_nobody_reads(script, database, environment, log_format, both):
    link = database.superuser()
    sample = sample_data.load(link, rows=60)
    arguments = ["--log-format", log_format]
    if script.stem == "cleanup_quiz_responses":
        arguments += ["--as-of", sample.as_of.isoformat()]
    arguments = [*ARGUMENTS[script.stem], *arguments]  # a command's verb comes first

    code, complaint = read_nothing(script, *arguments, environment=environment, both=both)

    expected = 4 if script.stem == "cleanup_quiz_responses" else 0
    assert code == expected
    if log_format == "json" and not both:
        assert complaint == ""
    if expected:
        (gone,) = link.execute("SELECT count(*) FROM ops.audit_log WHERE action = 'delete'").fetchone()
        assert gone == sample.delivered_due + sample.abandoned_due
