"""Fixtures that tests of several folders share: where alerts go, meal plans with their PDFs, the jobs' own pool."""

import pytest

from scripts.utils.db_utils import Database
from tests.cleanup.plans import Plans
from tests.lifecycle.receivers import Receiver


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
