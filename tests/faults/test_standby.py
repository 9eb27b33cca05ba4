"""DATABASE_URL names a hot standby: what would write is refused with its cure, what only reads works."""

import json
import tempfile
from pathlib import Path

import pytest

from backend import local_stack, migrate
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from tests.inside import run_inside

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SAID = "the server is a standby, which takes no writes: name the primary in DATABASE_URL"


@pytest.fixture(scope="module")
def standby():
    """A server that has been a primary, and recovers for as long as it runs."""
    directory = Path(tempfile.mkdtemp(prefix="lifecycle-standby-", dir=local_stack.in_memory()))
    stack = local_stack.start(directory, durable=False, shared_buffers_mb=32)
    try:
        local_stack.create_database(stack, "app")
        migrate.apply(stack.superuser_url("app"), sample_app=True)
        migrate.grant(stack.superuser_url("app"), DEFAULT_POLICY_FILE)
        local_stack.set_jobs_password(stack)
        local_stack.stop(stack)
        (stack.runtime / "postgres" / "data" / "standby.signal").touch()
        stack = local_stack.start(directory, durable=False, shared_buffers_mb=32)
        yield stack
    finally:
        local_stack.stop(stack)
        local_stack.delete(stack)


@pytest.fixture
def call(standby, capsys, monkeypatch, tmp_path):
    """A function that runs a script there, and returns its exit code and its lines."""
    env = {
        "DATABASE_URL": standby.jobs_url("app"),
        "REDIS_URL": standby.redis_url,
        "ARCHIVE_URL": tmp_path.as_uri(),
        "ARCHIVE_MASTER_KEY": f"m1:{'ab' * 32}",
        "AUDIT_PSEUDONYM_KEY": f"k1:{'ab' * 32}",
        "SUPPRESSION_KEY": f"s1:{'ab' * 32}",
        "BLOB_READ_WRITE_TOKEN": "vercel_blob_rw_abcdefgh_0123456789abcdef",
        "OPERATOR": "olga",
    }

    def run(script, *arguments):
        done = run_inside(SCRIPTS / script, arguments, env=env, capsys=capsys, monkeypatch=monkeypatch)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run


@pytest.mark.parametrize(
    "command",
    [
        ("cleanup/cleanup_quiz_responses.py",),
        ("cleanup/cleanup_pdfs.py",),
        ("cleanup/stop_switch.py", "stop", "--job", "cleanup_pdfs", "--reason", "x"),
        ("retention/archive_before_delete.py",),
        ("retention/enforce_gdpr_deletion.py",),
        ("retention/enforce_retention_policies.py", "--all"),
        ("retention/legal_holds.py", "place", "--table", "public.users", "--reason", "x"),
        ("manual-resolution/escalate_breaches.py",),
        ("sla-monitoring/monitor_cleanup_sla.py",),
        ("sla-monitoring/check_cleanup_health.py",),
    ],
    ids=lambda command: command[0].rpartition("/")[2],
)
def test_what_would_write_is_refused_and_says_what_to_do(call, command):
    code, lines = call(*command)

    assert code == 2
    assert lines[-1]["error"].startswith(SAID), lines[-1]
    assert "SQLSTATE" not in lines[-1]["error"]


@pytest.mark.parametrize(
    "command",
    [
        ("cleanup/cleanup_quiz_responses.py", "--dry-run"),
        ("retention/enforce_retention_policies.py", "--check"),
        ("retention/verify_audit.py",),
        ("retention/legal_holds.py", "list"),
        ("retention/archive_before_delete.py", "verify"),
        ("cleanup/stop_switch.py", "status"),
    ],
    ids=lambda command: command[0].rpartition("/")[2],
)
def test_what_only_reads_works(call, command):
    assert call(*command)[0] == 0


def test_the_health_check_names_it(call):
    _, lines = call("sla-monitoring/check_cleanup_health.py")

    (report,) = [line for line in lines if "findings" in line]
    (found,) = [each for each in report["findings"] if each["check"] == "database"]
    assert (found["status"], found["cure"]) == ("FAIL", "name the primary in DATABASE_URL")
    assert "is a standby" in found["message"]
