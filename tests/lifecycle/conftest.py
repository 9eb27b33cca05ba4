"""Jobs run in this process, on a database of the test's own, as the role that they have in production."""

from __future__ import annotations

import pytest
import yaml

from backend import migrate
from scripts.cleanup.cleanup_quiz_responses import JOB
from scripts.lifecycle.jobs.entry_point import Job, main
from scripts.lifecycle.purge.purge import purge
from scripts.utils.settings import load_settings
from tests.lifecycle.support import AS_OF, THING_COLUMNS, JobRun, read_lines

NOW = AS_OF.isoformat()


@pytest.fixture
def admin(database):
    """The superuser's connection: puts rows in and looks at what is left."""
    return database.superuser()


@pytest.fixture
def _settings(database, redis_url, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("REDIS_URL", redis_url)


@pytest.fixture
def settings(_settings):
    """Settings as a script reads them."""
    return load_settings()


@pytest.fixture
def run_job(_settings, capsys):
    """A function that runs a job as of AS_OF (unless told otherwise) and returns what it said."""

    def run(*arguments, job=JOB, as_of=NOW):
        capsys.readouterr()
        code = main(job, [*(["--as-of", as_of] if as_of else []), *arguments])
        return JobRun(code, read_lines(capsys.readouterr().out))

    return run


@pytest.fixture
def apply(run_job, database, tmp_path):
    """A function that runs policies of a test's own tables, by name, with the rights that their file grants."""

    def work(run):
        for name in run.policies.policies:
            purge(run, policy=name)

    def run(policies, *arguments, grant=True, **options):
        path = tmp_path / "policies.yaml"
        lock = {"schedule": "0 2 * * *", "budget": "3600 seconds", "lock": "lock:cleanup:things"}
        path.write_text(
            yaml.safe_dump(
                {"policies": policies, "jobs": {"cleanup_things": lock}}, sort_keys=False, allow_unicode=True
            )
        )
        if grant:
            migrate.grant(database.superuser_url, path)
        job = Job("cleanup_things", work, "Delete things.")
        return run_job("--policy-file", str(path), *arguments, job=job, **options)

    return run


@pytest.fixture
def things(admin):
    """The table public.things, empty, with the indexes that a policy wants."""
    admin.execute(f"CREATE TABLE things ({THING_COLUMNS}); CREATE INDEX ON things (made_at)")
    return admin
