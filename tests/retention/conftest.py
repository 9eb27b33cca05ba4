"""The stage of the archives: payments of all ages, a folder or a bucket, and the job as an operator runs it."""

import json
from pathlib import Path

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.policies import DEFAULT_POLICY_FILE
from scripts.retention.archive_before_delete import JOB
from scripts.utils.script_template import main
from scripts.utils.settings import load_settings
from tests.faults.stage import Running
from tests.forked import start_script
from tests.retention.bucket import Bucket
from tests.retention.payments import MASTER_KEY, SCRIPT, Archived, Payments


@pytest.fixture
def payments(database, db):
    """The table, and the sum that must hold."""
    return Payments(database, db)


@pytest.fixture
def folder(tmp_path):
    """Where archives go."""
    place = tmp_path / "cold storage"
    place.mkdir()
    return place


@pytest.fixture
def environment(database, redis_url, folder):
    """The settings of the job."""
    return {
        "DATABASE_URL": database.url,
        "REDIS_URL": redis_url,
        "ARCHIVE_URL": folder.as_uri(),
        "ARCHIVE_MASTER_KEY": MASTER_KEY,
        "OPERATOR": "olga",
    }


@pytest.fixture
def settings(environment, monkeypatch):
    """The same, loaded."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_settings()


@pytest.fixture
def run(environment, monkeypatch, capsys):
    """Run the script here: its code, and its lines."""

    def run(*arguments, **changes):
        for name, value in (environment | changes).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        capsys.readouterr()
        code = main(JOB, list(arguments))
        printed = capsys.readouterr()
        assert printed.err == ""
        return Archived(code, [json.loads(line) for line in printed.out.splitlines()])

    return run


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


@pytest.fixture(scope="session")
def bucket_server():
    """A server that speaks S3, in a process of its own."""
    with Bucket() as server:
        yield server


@pytest.fixture
def bucket(bucket_server):
    """An empty bucket on it."""
    bucket_server.empty()
    return bucket_server
