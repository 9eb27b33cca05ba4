"""check_cleanup_health --pre-deploy: a box is ticked by evidence and by nothing else."""

import pytest

from scripts.lifecycle.health import database as database_checks
from scripts.lifecycle.health import locks
from scripts.lifecycle.policy.policy_file import load_policies
from tests.inside import run_inside
from tests.lifecycle.receivers import slack_settings
from tests.project.conftest import ROOT

RENDER = ROOT / "render.yaml"
ALERTS = ROOT / "scripts" / "sla-monitoring" / "alerts.py"
CLEANUP = ROOT / "scripts" / "cleanup" / "cleanup_quiz_responses.py"
EVERY_BOX = [
    "Test with LIMIT",
    "Enable Dry-Run",
    "Check Dependencies",
    "Review Audit Logs",
    "Monitor Performance",
    "Environment variables configured in Render",
    "Cron schedules defined in render.yaml",
    "Distributed locks tested",
    "Audit logging verified",
    "SLA monitoring alerts configured",
    "Dry-run tested with production-like data",
    "Runbooks documented for operators",
    "Rollback plan prepared",
]
# What Render would set; none of it is asked by the checklist but for the Blob store and Sentry.
IN_RENDER = {
    "RENDER_GIT_COMMIT": "0123456789abcdef",
    "ARCHIVE_URL": "s3://archives.example.invalid/payments",
    "ARCHIVE_MASTER_KEY": "m1:" + "cd" * 32,
    "AWS_ACCESS_KEY_ID": "login",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "PAGERDUTY_ROUTING_KEY": "",
}


class Ticked:
    def __init__(self, health):
        self.code, self.text = health.code, health.text
        report = next(line for line in health.lines if "boxes" in line)
        self.complete = report["complete"]
        self.boxes = {box["box"]: box for box in report["boxes"]}
        self.marks = {name: box["mark"] for name, box in self.boxes.items()}

    def evidence(self, box):
        return " ".join(f"{each['subject']}: {each['message']}" for each in self.boxes[box]["evidence"])


@pytest.fixture
def tick(check, monkeypatch):
    """A function that goes through the checklists, by the render.yaml of the checkout; a busy machine is no finding."""
    for module in (database_checks, locks):
        monkeypatch.setattr(module, "SLOW_SECONDS", 60.0)
    return lambda *arguments, **settings: Ticked(
        check("--render-yaml", str(RENDER), "--pre-deploy", *arguments, **settings)
    )


@pytest.fixture
def tried(database, policy_file, sample_rows, slack, settings, capsys, monkeypatch):
    """A system in which everything was tried that can be: the runs, the alert, a restore."""
    sample_rows(1000)
    admin = database.superuser()
    policies = load_policies(policy_file)
    admin.execute("INSERT INTO ops.policy_versions VALUES (%s, '', now(), 'tests')", (policies.hash,))
    for name in policies.policies:
        admin.execute(
            "INSERT INTO ops.job_runs (id, script, policy, correlation_id, cutoff_at, policy_hash, fencing_token, status,"
            " stop_reason, exit_code, host, pid, version) VALUES (gen_random_uuid(), %s, %s, 'x', now(), %s, 1,"
            " 'completed', 'done', 0, 'tests', 1, 'tests')",
            (policies.job_of(name) or "tests", name, policies.hash),
        )
    # The sample's blobs lie in a store of its own.
    admin.execute("UPDATE meal_plans SET pdf_blob_path = regexp_replace(pdf_blob_path, '^https?://[^/]+/', '')")
    admin.execute(
        "INSERT INTO ops.sla_observations (script, subject, slot, status) VALUES"
        " ('monitor_cleanup_sla', 'quiz_responses', now(), 'within_sla')"
    )
    admin.execute(
        "SELECT ops.append_audit(gen_random_uuid(), 'operator:olga', 'restore', 'public.payment_transactions', 'restore',"
        " NULL, ARRAY['1'], '{}')"
    )
    given = settings | slack_settings(slack)
    done = run_inside(ALERTS, ("test", "--severity", "critical"), env=given, capsys=capsys, monkeypatch=monkeypatch)
    assert done.returncode == 0, done.stdout
    return IN_RENDER | slack_settings(slack)


def test_on_a_new_system_a_box_is_open_until_it_was_tried(tick):
    ticked = tick()
    assert list(ticked.marks) == EVERY_BOX
    assert ticked.complete
    assert {name for name, mark in ticked.marks.items() if mark == "ok"} == {
        *("Check Dependencies", "Review Audit Logs", "Cron schedules defined in render.yaml"),
        *("Distributed locks tested", "Audit logging verified", "Runbooks documented for operators"),
    }
    assert ticked.marks["Environment variables configured in Render"] == "not visible"
    assert "this is not Render" in ticked.evidence("Environment variables configured in Render")
    assert "no run under policy file" in ticked.evidence("Test with LIMIT")
    assert "public.quiz_responses is empty" in ticked.evidence("Dry-run tested with production-like data")
    assert "sentry: took no test alert" in ticked.evidence("SLA monitoring alerts configured")
    assert "has never looked" in ticked.evidence("Monitor Performance")
    assert "not visible: this server does not say" in ticked.evidence("Rollback plan prepared")
    assert ticked.code == 1
    for box in ticked.boxes.values():
        assert all(each["cure"] for each in box["evidence"] if each["mark"] != "ok"), box


def test_where_everything_was_tried_only_what_cannot_be_seen_is_left(tick, tried, database, redis_client):
    before = database.superuser().execute("SELECT count(*) FROM ops.alerts").fetchone()
    ticked = tick(**tried | {"PAGERDUTY_ROUTING_KEY": "R" * 32})
    assert ticked.marks["SLA monitoring alerts configured"] == "not", "PagerDuty took no test alert"
    ticked = tick(**tried)
    open_boxes = {name: mark for name, mark in ticked.marks.items() if mark != "ok"}
    assert open_boxes.pop("Rollback plan prepared") == "not visible"
    # The test's Slack is all that is set: PagerDuty's variable stands in render.yaml.
    assert open_boxes == {"Environment variables configured in Render": "not"}
    assert "not set: PAGERDUTY_ROUTING_KEY" in ticked.evidence("Environment variables configured in Render")
    assert database.superuser().execute("SELECT count(*) FROM ops.alerts").fetchone() == before, "nobody is alerted"
    assert redis_client.keys("*") == []
    assert "example.com" not in ticked.text


def test_evidence_to_the_contrary_takes_a_tick_away(tick, tried, database, tmp_path):
    admin = database.superuser()
    admin.execute("UPDATE ops.job_runs SET records_processed = 7 WHERE policy = 'quiz_responses'")
    admin.execute("UPDATE ops.sla_observations SET observed_at = now() - interval '3 hours'")
    broken = tmp_path / "broken.yaml"
    broken.write_text(RENDER.read_text().replace("    autoDeployTrigger", "    timeout: 60\n    autoDeployTrigger", 1))
    ticked = tick("--render-yaml", str(broken), **tried, CLEANUP_DRY_RUN="true")
    assert ticked.marks["Audit logging verified"] == "not"
    assert "deleted and are not in the audit: x" in ticked.evidence("Audit logging verified")
    assert "looked 180 minutes ago" in ticked.evidence("Monitor Performance")
    assert "timeout: is no field" in ticked.evidence("Cron schedules defined in render.yaml")
    assert "CLEANUP_DRY_RUN: is true" in ticked.evidence("Environment variables configured in Render")
    assert ticked.marks["Distributed locks tested"] == "not visible", "a dry run takes no lock"
    assert ticked.code == 1


def test_without_a_database_nothing_of_it_is_ticked(tick, closed_port):
    ticked = tick(DATABASE_URL=f"postgresql://nobody:hunter2@127.0.0.1:{closed_port}/app")
    assert {name for name, mark in ticked.marks.items() if mark == "ok"} == {
        *("Cron schedules defined in render.yaml", "Runbooks documented for operators")
    }
    assert (ticked.code, "hunter2" in ticked.text) == (1, False)


def test_a_person_sees_boxes(check, tried, capsys):
    health = check(
        "--render-yaml", str(RENDER), "--pre-deploy", "--format", "console", "--log-format", "console", **tried
    )
    assert health.code == 1
    for mark in ("[x]", "[?]", "[ ]", *EVERY_BOX[:2]):
        assert mark in health.text
