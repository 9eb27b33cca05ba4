"""Fixtures that tests of several folders share: where alerts go, meal plans with their PDFs, the jobs' own pool."""

import json

import pytest
import yaml

from scripts.lifecycle.jobs.entry_point import main
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from scripts.retention.archive_before_delete import JOB
from scripts.utils.db_utils import Database
from tests.cleanup.plans import Plans
from tests.lifecycle.archives.bucket import Bucket
from tests.lifecycle.archives.payments import MASTER_KEY, Archived, Payments
from tests.lifecycle.receivers import Receiver


class RunTime:
    """How long a run in this process has taken, as a test says: no test depends on how fast the machine is."""

    def __init__(self):
        self.seconds = 0.0
        self.step = 0.0
        """Seconds that each look at the time takes."""

    def passes(self):
        """Return the seconds since the run began, in place of ``Run.duration``."""
        self.seconds += self.step
        return self.seconds


@pytest.fixture
def run_time(monkeypatch):
    """The time that runs in this process take."""
    passing = RunTime()
    monkeypatch.setattr(Run, "duration", lambda _: passing.passes())
    return passing


@pytest.fixture
def plain_file(tmp_path):
    """The shipped policy file without what it looks up in other tables: such a rule walks along no index."""
    document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    answers = document["policies"]["quiz_responses"]
    del answers["rules"]["sent"], answers["exceptions"]["undelivered"]["when"]["email_sent_at"]
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.fixture
def slack():
    """Slack, as a server that keeps what it is told."""
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def pagerduty():
    """PagerDuty, the same."""
    receiver = Receiver(202)
    yield receiver
    receiver.close()


@pytest.fixture
def plans(database, blobs):
    """Meal plans, and what became of them."""
    return Plans(database, blobs)


@pytest.fixture
def db(database):
    """What the domain's functions take; the role is lifecycle_jobs."""
    pool = Database(database.url, application_name="tests", max_size=8)
    pool.open()
    yield pool
    pool.close()


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


@pytest.fixture
def archive_environment(database, redis_url, folder):
    """What archive_before_delete must be told."""
    return {
        "DATABASE_URL": database.url,
        "REDIS_URL": redis_url,
        "ARCHIVE_URL": folder.as_uri(),
        "ARCHIVE_MASTER_KEY": MASTER_KEY,
        "OPERATOR": "olga",
    }


@pytest.fixture
def run_archives(archive_environment, monkeypatch, capsys):
    """Run archive_before_delete here: its code, and its lines."""

    def run(*arguments, **changes):
        for name, value in (archive_environment | changes).items():
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
