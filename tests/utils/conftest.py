"""What a job sets for its whole process is set back after each test."""

import logging

import pytest
import structlog

from scripts.utils import error_reporting


@pytest.fixture(autouse=True)
def _process_as_it_was(monkeypatch):
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(error_reporting, "_active", False)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def job_environment(database, redis_url, monkeypatch):
    """Let a job that runs in this process find its servers."""
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("REDIS_URL", redis_url)
