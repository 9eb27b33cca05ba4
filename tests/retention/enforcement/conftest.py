"""Policies of a test's own tables, and the orchestrator in this process, as the role that it has in production."""

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.jobs.entry_point import main
from scripts.retention.enforce_retention_policies import JOB
from tests.lifecycle.support import AS_OF, JobRun, read_lines

SCRIPT = "enforce_retention_policies"
NOW = AS_OF.isoformat()
LOCK = "lock:retention:enforce_retention_policies"
KEY = "k1:" + "ab" * 32


@pytest.fixture
def admin(database):
    """The superuser's connection: makes tables, puts rows in, looks at what is left."""
    return database.superuser()


@pytest.fixture
def settings(database, redis_url, monkeypatch):
    """What the script must be told."""
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("AUDIT_PSEUDONYM_KEY", KEY)


@pytest.fixture
def tables(admin):
    """A function that makes tables of things by name, each with so many rows that are 90 days old."""

    def make(**rows):
        for name, number in rows.items():
            admin.execute(
                f"CREATE TABLE {name} (id bigint PRIMARY KEY, made_at timestamptz, person text, kind text);"
                f" CREATE INDEX ON {name} (made_at)"
            )
            admin.execute(
                f"INSERT INTO {name} (id, made_at, person) SELECT n, %s::timestamptz - make_interval(days => 90, secs => n),"
                f" 'anna@example.com' FROM generate_series(1, {number}) n",
                (AS_OF,),
            )
            admin.execute(f"ANALYZE {name}")

    return make


def policy(table="public.things", **changes):
    """A policy that keeps 30 days of what is in a table."""
    return {
        "description": "Things",
        "table": table,
        "key": "id",
        "person": None,
        "action": "delete",
        "rules": {"old": {"anchor": "made_at", "keep": "30 days"}},
        "dependants": [],
        "legal_basis": "none",
        "owner": "tests",
        "decision": "none",
        "max_rows": 100_000,
        "max_poison": 5,
        "batch": {"rows": 100, "lock_timeout": "200 milliseconds", "statement_timeout": "60 seconds"},
        "overdue": {"warning": "25 hours", "critical": "48 hours"},
    } | changes


@pytest.fixture
def write(tmp_path, database):
    """A function that writes a policy file, with its rights; jobs are given as job: [policies]."""

    def make(policies, *, jobs=None, name="policies.yaml", budget="3600 seconds", grant=True):
        path = tmp_path / name
        named = {SCRIPT: [*policies]} | (jobs or {})
        claimed = [policy for job, own in named.items() if job != SCRIPT for policy in own]
        named[SCRIPT] = [policy for policy in named[SCRIPT] if policy not in claimed]
        locks = {job: LOCK if job == SCRIPT else f"lock:cleanup:{job}" for job in named}
        document = {
            "policies": policies,
            "jobs": {
                job: {"schedule": "30 0 * * *", "budget": budget, "lock": locks[job], "policies": own}
                for job, own in named.items()
            },
        }
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        if grant:
            migrate.grant(database.superuser_url, path)
        return path

    return make


@pytest.fixture
def enforce(settings, capsys):
    """A function that runs the orchestrator with a policy file, as of AS_OF unless told otherwise."""

    def run(path, *arguments, as_of=NOW):
        capsys.readouterr()
        try:
            code = main(JOB, ["--policy-file", str(path), *(["--as-of", as_of] if as_of else []), *map(str, arguments)])
        except SystemExit as misuse:
            code = misuse.code
        out = capsys.readouterr().out
        assert "anna@example.com" not in out
        return JobRun(code, read_lines(out))

    return run


def count(admin, table):
    """How many rows a table has."""
    return admin.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def done(run):
    """The policies in the order in which they were carried out, with what became of them."""
    return [(line["policy"], line["stop_reason"]) for line in run.events("policy_done")]
