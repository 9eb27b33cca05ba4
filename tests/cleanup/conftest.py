"""The scripts as an operator and a scheduler start them, from a folder that is not the repository."""

import json
from pathlib import Path

import pytest

from tests.forked import run_script
from tests.inside import run_inside

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "cleanup" / "cleanup_quiz_responses.py"
PDF_SCRIPT = ROOT / "scripts" / "cleanup" / "cleanup_pdfs.py"


class Done:
    """What a script left behind: its exit code, its output, and its lines."""

    def __init__(self, process):
        self.code = process.returncode
        self.out = process.stdout
        self.err = process.stderr

    @property
    def lines(self):
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def closing(self):
        """The last line of standard output."""
        return self.lines[-1]

    def event(self, name):
        (line,) = [line for line in self.lines if line["event"] == name]
        return line


@pytest.fixture
def environment(database, redis_url):
    """What the script must be told."""
    return {"DATABASE_URL": database.url, "REDIS_URL": redis_url}


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """A function that runs a script in this process."""

    def run(*arguments, env, script=SCRIPT, stdin=""):
        return Done(
            run_inside(script, arguments, env=env, capsys=capsys, monkeypatch=monkeypatch, stdin=stdin, folder=tmp_path)
        )

    return run


@pytest.fixture
def call_process(tmp_path):
    """A function that runs a script in a process of its own, in an environment with nothing else in it."""

    def run(*arguments, env, script=SCRIPT, stdin=""):
        return Done(run_script(script, *arguments, env=env, stdin=stdin, folder=tmp_path))

    return run


@pytest.fixture
def run(call, environment):
    """A function that runs the script with its servers; settings are given by name."""
    return lambda *arguments, **settings: call(*arguments, env=environment | settings)


@pytest.fixture
def pdf_environment(environment, blobs):
    """What cleanup_pdfs must be told."""
    return environment | blobs.settings() | {"BLOB_RATE_LIMIT_PER_MINUTE": "100000"}


@pytest.fixture
def run_pdfs(call, pdf_environment):
    """A function that runs cleanup_pdfs."""
    return lambda *arguments, **settings: call(*arguments, env=pdf_environment | settings, script=PDF_SCRIPT)
