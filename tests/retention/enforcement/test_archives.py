"""archive_then_delete under the orchestrator: like any other policy, under its own job's lock, planned and applied."""

import json

import pytest

from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from tests.lifecycle.archives.payments import MASTER_KEY
from tests.retention.enforcement.conftest import done


@pytest.fixture
def ten_payments(payments, settings, folder, monkeypatch):
    """Ten that are due, and some that are not; a folder for archives."""
    monkeypatch.setenv("ARCHIVE_URL", folder.as_uri())
    monkeypatch.setenv("ARCHIVE_MASTER_KEY", MASTER_KEY)
    return payments.fill(10)


ONLY = ("--only", "payment_transactions", "--only", "meal_plans")


def test_payments_are_archived_under_their_own_job_s_lock_and_before_meal_plans(ten_payments, enforce, admin):
    run = enforce(DEFAULT_POLICY_FILE, *ONLY, as_of=None)

    assert run.code == 0, run.closing
    assert done(run) == [("payment_transactions", "done"), ("meal_plans", "done")]
    assert len(ten_payments.audited()) == 10
    assert ten_payments.rows() == ten_payments.survivors
    assert ten_payments.statuses() == ["sealed"]
    leases = {name for (name,) in admin.execute("SELECT name FROM ops.leases")}
    assert "lock:retention:archive_before_delete" in leases


def test_a_plan_of_archives_is_what_the_run_then_does(ten_payments, enforce, tmp_path):
    out = tmp_path / "plan.json"
    assert enforce(DEFAULT_POLICY_FILE, *ONLY, "--plan", out, as_of=None).code == 0
    planned = {entry["policy"]: entry["records"] for entry in json.loads(out.read_text())["policies"]}

    run = enforce(DEFAULT_POLICY_FILE, "--apply", out, "--tolerance", "0", as_of=None)

    assert run.code == 0, run.closing
    assert planned == {"payment_transactions": 10, "meal_plans": 0}
    assert {line["policy"]: line["records_deleted"] for line in run.events("policy_done")} == planned


def test_without_a_place_for_archives_the_others_are_done(ten_payments, enforce, monkeypatch):
    monkeypatch.delenv("ARCHIVE_URL")

    run = enforce(DEFAULT_POLICY_FILE, *ONLY, as_of=None)

    assert run.code == 2
    assert dict(done(run)) == {"payment_transactions": "misconfigured", "meal_plans": "done"}
    assert len(ten_payments.rows()) == 15


def test_archives_past_their_own_period_expire_here_too(ten_payments, enforce, folder, admin):
    assert enforce(DEFAULT_POLICY_FILE, *ONLY, as_of=None).code == 0
    admin.execute("UPDATE ops.archives SET sealed_at = sealed_at - interval '3 years 1 day'")
    (archived,) = folder.rglob("*.archive")
    assert enforce(DEFAULT_POLICY_FILE, *ONLY, "--dry-run", as_of=None).event("archives_would_expire")["archives"] == 1

    # A store that does not do it is an error of this policy, although its rows are done; the other goes on.
    archived.rename(folder / "aside")
    archived.mkdir()
    (archived / "in the way").touch()
    failed = enforce(DEFAULT_POLICY_FILE, *ONLY, as_of=None)
    assert failed.code == 1, failed.closing
    assert [name for name, _ in done(failed)] == ["payment_transactions", "meal_plans"]
    assert dict(done(failed))["payment_transactions"] != "done"
    assert ten_payments.statuses() == ["expiring"]

    (archived / "in the way").unlink()
    archived.rmdir()
    (folder / "aside").rename(archived)
    run = enforce(DEFAULT_POLICY_FILE, *ONLY, as_of=None)
    assert (run.code, run.event("archives_expired")["archives"]) == (0, 1), run.closing
    assert (ten_payments.statuses(), list(folder.rglob("*.archive"))) == (["expired"], [])
    actors = admin.execute("SELECT actor FROM ops.audit_log WHERE action = 'archive_expired'").fetchall()
    assert actors == [("system:enforce_retention_policies",)]


def test_what_a_killed_run_left_half_written_is_removed_here_too(ten_payments, enforce, folder, admin):
    half = folder / "payment_transactions" / "half.archive"
    half.parent.mkdir()
    half.touch()
    admin.execute(
        "INSERT INTO ops.archives (id, policy, table_name, object, run_id) VALUES (gen_random_uuid(),"
        " 'payment_transactions', 'public.payment_transactions', 'payment_transactions/half.archive', gen_random_uuid())"
    )

    run = enforce(DEFAULT_POLICY_FILE, *ONLY, as_of=None)

    assert (run.code, len(run.events("unfinished_archive_removed"))) == (0, 1)
    assert not half.exists()
    assert ten_payments.statuses() == ["sealed"]
