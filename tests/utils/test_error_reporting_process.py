"""Sentry seen from outside: not even loaded without a DSN, and out of reach it costs next to nothing."""

import json
import socket
from pathlib import Path

import pytest

from tests.forked import run_script

ROOT = Path(__file__).resolve().parents[2]
JOB = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from scripts.lifecycle.jobs.entry_point import Job, main

def work(run):
    print("sentry_sdk" in sys.modules, file=sys.stderr)
    raise KeyError("anna@example.com")

sys.exit(main(Job("cleanup_quiz_responses", work, "A job with a bug.")))
"""


@pytest.fixture
def run_bug(tmp_path, database, redis_url):
    """A function that runs a job with a bug in a process of its own."""
    script = tmp_path / "job.py"
    script.write_text(JOB)

    def run(**settings):
        return run_script(script, env={"DATABASE_URL": database.url, "REDIS_URL": redis_url} | settings)

    return run


def closing_line(done):
    return json.loads(done.stdout.splitlines()[-1])


def test_without_a_dsn_the_library_is_not_even_loaded(run_bug):
    done = run_bug()
    assert (done.returncode, done.stderr) == (1, "False\n")
    assert closing_line(done)["stop_reason"] == "bug"


@pytest.fixture(params=["refuses", "hangs"])
def dead_host(request):
    """A port on this machine where nobody listens, or somebody who never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if request.param == "refuses":
            server.close()
        yield port


def test_a_dead_sentry_neither_fails_nor_holds_up_a_job(run_bug, dead_host):
    done = run_bug(SENTRY_DSN=f"http://0123abcd@127.0.0.1:{dead_host}/42")
    assert (done.returncode, done.stderr) == (1, "True\n")
    assert closing_line(done)["event"] == "cleanup_failed"
    assert "0123abcd" not in done.stdout
