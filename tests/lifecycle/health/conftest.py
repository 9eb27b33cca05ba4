"""A healthy system, which each test of the health check breaks on purpose."""

import json
import secrets
import socket
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import yaml

from backend import migrate
from backend.blob_server import BlobServer
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from tests.inside import run_inside
from tests.utils.envelopes import Receiver

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "sla-monitoring" / "check_cleanup_health.py"


class Health:
    """One run of the health check."""

    def __init__(self, done):
        self.code = done.returncode
        self.lines = [json.loads(line) for line in done.stdout.splitlines()]
        self.report = next((line for line in self.lines if "findings" in line), None)
        self.text = done.stdout + done.stderr

    @property
    def unwell(self):
        """What is no PASS, by status."""
        return [finding for finding in self.report["findings"] if finding["status"] != "PASS"]

    def only(self):
        """The one thing that is no PASS."""
        assert len(self.unwell) == 1, self.unwell
        (finding,) = self.unwell
        assert finding["cure"], finding
        return finding

    def of(self, check):
        return [finding for finding in self.report["findings"] if finding["check"] == check]


@pytest.fixture
def store(tmp_path):
    with BlobServer(tmp_path / "store") as server:
        yield server


@pytest.fixture
def sentry():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def policy_file(tmp_path):
    """The default file, and why the tables that have no policy yet are kept."""
    document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    document["kept"] |= {"public.meal_plans": "for the test"}
    path = tmp_path / "policies.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.fixture
def blueprint(tmp_path, policy_file):
    """A render.yaml that agrees with the policy file."""
    jobs = yaml.safe_load(policy_file.read_text())["jobs"]
    usual = {"type": "cron", "runtime": "python", "plan": "starter", "region": "frankfurt", "buildCommand": "true"}
    services = [
        {**usual, "name": name, "schedule": job["schedule"], "startCommand": f"python scripts/x/{name}.py"}
        for name, job in jobs.items()
    ]
    path = tmp_path / "render.yaml"
    path.write_text(yaml.safe_dump({"services": services}))
    return path


@pytest.fixture
def jobs_url(database):
    """The jobs' role, which also sees other sessions; a role of the test's own, as roles belong to the whole server."""
    role, password = f"health_{secrets.token_hex(6)}", secrets.token_hex(16)
    connection = database.superuser()
    connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}' IN ROLE lifecycle_jobs, pg_read_all_stats")
    parts = urlsplit(database.url)
    yield urlunsplit(parts._replace(netloc=f"{role}:{password}@{parts.netloc.rpartition('@')[2]}"))
    connection.execute(f"DROP ROLE {role}")


@pytest.fixture
def indexed(database):
    """The application's tables with the indexes that they lack in production."""
    url = database.superuser_url
    return list(migrate.make_indexes(url, migrate.missing_indexes(url, DEFAULT_POLICY_FILE)))


@pytest.fixture
def settings(jobs_url, indexed, redis_url, store, sentry):
    """The environment of a healthy system; a test may change it."""
    return {
        "DATABASE_URL": jobs_url,
        "REDIS_URL": redis_url,
        "BLOB_READ_WRITE_TOKEN": store.token,
        "VERCEL_BLOB_API_URL": store.url,
        "AUDIT_PSEUDONYM_KEY": "k1:" + "ab" * 32,
        "SENTRY_DSN": sentry.dsn,
    }


@pytest.fixture
def check(settings, policy_file, blueprint, capsys, monkeypatch):
    """A function that runs the health check."""

    def check(*arguments, **changes):
        given = ("--policy-file", str(policy_file), "--render-yaml", str(blueprint), *arguments)
        env = settings | changes
        return Health(run_inside(SCRIPT, given, env=env, capsys=capsys, monkeypatch=monkeypatch))

    return check
