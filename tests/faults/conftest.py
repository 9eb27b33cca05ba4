"""The stage of every fault test: its database, its job, and ways to run it."""

import json

import pytest

from scripts.cleanup.cleanup_quiz_responses import JOB
from scripts.lifecycle.jobs.entry_point import main
from scripts.utils.db_utils import Database
from scripts.utils.redis_lock import Holder
from scripts.utils.test_helpers import Proxy
from tests.faults.stage import LOCK, SCRIPT, STOP_SWITCH, Quiz, Running
from tests.forked import start_script


@pytest.fixture
def jobs_database(database):
    with_jobs_rights = Database(database.url, application_name="test", max_size=4)
    with_jobs_rights.open()
    yield with_jobs_rights
    with_jobs_rights.close()


@pytest.fixture
def quiz(database, jobs_database):
    return Quiz(database, jobs_database)


@pytest.fixture
def environment(database, redis_url):
    return {"DATABASE_URL": database.url, "REDIS_URL": redis_url}


@pytest.fixture
def start(environment, plain_file):
    """Start a script as a process of its own; the job with batches of five rows along the index unless told otherwise."""
    started = []

    def start(*args, script=SCRIPT, **settings):
        if script != STOP_SWITCH and "--batch-size" not in args:
            args = ("--batch-size", "5", *args)
        if script == SCRIPT and "--policy-file" not in args:
            args = ("--policy-file", str(plain_file), *args)
        running = Running(start_script(script, *args, env=environment | settings))
        started.append(running)
        return running

    yield start
    for running in started:
        running.bury()


@pytest.fixture
def run_here(environment, plain_file, monkeypatch, capsys):
    """Run the job inside the test's own process: for bounds that have to be made shorter."""

    def run_here(*args, **settings):
        for name, value in (environment | settings).items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        named = () if "--policy-file" in args else ("--policy-file", str(plain_file))
        code = main(JOB, ["--batch-size", "5", *named, *args])
        printed = capsys.readouterr()
        assert printed.err == ""
        return code, [json.loads(line) for line in printed.out.splitlines()]

    return run_here


@pytest.fixture
def patient(tmp_path, plain_file):
    """Flags for a policy whose batches wait longer for a row than any test does."""
    text = plain_file.read_text()
    assert "lock_timeout: 500 milliseconds" in text
    (tmp_path / "patient.yaml").write_text(text.replace("500 milliseconds", "50 seconds"))
    return ("--policy-file", str(tmp_path / "patient.yaml"))


@pytest.fixture
def holder(redis_client):
    """Who holds the lock in Redis, or None."""
    return lambda: Holder.parse(redis_client.get(LOCK) or "")


@pytest.fixture
def proxy(database):
    """A proxy in front of PostgreSQL."""
    with Proxy.before(database.url) as proxy:
        yield proxy


@pytest.fixture
def behind(proxy, database):
    """The setting that sends a job through the proxy."""
    return {"DATABASE_URL": proxy.through(database.url)}
