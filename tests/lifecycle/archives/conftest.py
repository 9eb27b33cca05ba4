"""The stage of the archives: payments of all ages, a folder or a bucket, and the job as an operator runs it."""

from pathlib import Path

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from scripts.utils.settings import load_settings
from tests.faults.stage import Running
from tests.forked import start_script
from tests.lifecycle.archives.payments import SCRIPT


@pytest.fixture
def environment(archive_environment):
    """The settings of the job."""
    return archive_environment


@pytest.fixture
def run(run_archives):
    """Run the script here: its code, and its lines."""
    return run_archives


@pytest.fixture
def settings(environment, monkeypatch):
    """The same, loaded."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_settings()


@pytest.fixture
def start(environment):
    """Start the script as a process of its own."""
    started = []

    def start(*arguments, **changes):
        running = Running(start_script(SCRIPT, *arguments, env=environment | changes))
        started.append(running)
        return running

    yield start
    for running in started:
        running.bury()


@pytest.fixture
def policy_file(tmp_path):
    """A function that writes the default policies with changes to the payments', and returns the flags to use it."""

    def write(**changes):
        document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
        document["policies"]["payment_transactions"] |= changes
        path = tmp_path / f"policies{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return ("--policy-file", str(path))

    return write


@pytest.fixture
def grant(database):
    """A function that gives the jobs' role the rights that a policy file asks for."""
    return lambda flags: migrate.grant(database.superuser_url, Path(flags[1]))
