"""render.yaml is what Render takes, and says the same as policy file, runbooks and settings."""

import re

import pytest
import yaml

from scripts.lifecycle.health.blueprint import KeyValue, Value, parse_blueprint
from scripts.lifecycle.jobs.check_ins import CheckIn
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE, load_policies, parse_policies
from scripts.utils import error_reporting
from scripts.utils.errors import ExitCode, Misconfigured
from scripts.utils.settings import load_settings
from tests.inside import run_inside
from tests.project import links
from tests.project.conftest import ROOT
from tests.utils.envelopes import Receiver

RENDER = ROOT / "render.yaml"
TEXT = RENDER.read_text()
BLUEPRINT = parse_blueprint(TEXT)
POLICIES = load_policies()


def test_every_job_is_the_same_in_every_place():
    assert links.broken(POLICIES, BLUEPRINT, links.documents()) == []


POLICY_FILE, RUNBOOK = "the policy file", "scripts/cleanup/README.md"
BREAKS = {
    "a schedule in render.yaml": (
        (RENDER.name, 'schedule: "0 2 * * *"', 'schedule: "1 2 * * *"'),
        "cleanup_quiz_responses: render.yaml starts it at 1 2 * * *, the policy file says 0 2 * * *",
    ),
    "a schedule in the policy file": (
        (POLICY_FILE, 'schedule: "5 * * * *"', 'schedule: "6 * * * *"'),
        "monitor_manual_resolution_queue: render.yaml starts it at 5 * * * *, the policy file says 6 * * * *",
    ),
    "a schedule in a runbook": (
        (RUNBOOK, "| schedule | `0 2 * * *` UTC |", "| schedule | `0 5 * * *` UTC |"),
        "cleanup_quiz_responses: scripts/cleanup/README.md says 0 5 * * * of its schedule, the policy file says 0 2 * * *",
    ),
    "a budget in a runbook": (
        (RUNBOOK, "| time budget | 7200 s |", "| time budget | 72 s |"),
        "cleanup_pdfs: scripts/cleanup/README.md says 72 of its time budget, the policy file says 7200 s",
    ),
    "a row of the handbook": (
        (links.HANDBOOK, "| `cleanup_pdfs` |", "| `cleanup_gifs` |"),
        (
            "cleanup_pdfs: scripts/README.md: its row in the table of jobs is None, "
            "the policy file says ['`0 3 * * *`', '7200 s', '`lock:cleanup:pdfs`']"
        ),
    ),
    "a runbook heading": (
        (RUNBOOK, "## cleanup_blacklist", "## The blacklist"),
        "cleanup_blacklist: scripts/cleanup/README.md has no heading for it",
    ),
    "a service": (
        (RENDER.name, "name: cleanup-magic-links", "name: cleanup-links"),
        "cleanup_magic_links: render.yaml has no cron service cleanup-magic-links",
    ),
    "a command": (
        (RENDER.name, "python scripts/cleanup/cleanup_pdfs.py", "python scripts/cleanup/cleanup_pdf.py"),
        (
            "cleanup_pdfs: render.yaml starts it by python scripts/cleanup/cleanup_pdf.py, "
            "and it is python scripts/cleanup/cleanup_pdfs.py"
        ),
    ),
    "a secret of a service": (
        (RENDER.name, "      - key: BLOB_READ_WRITE_TOKEN\n        sync: false\n", ""),
        "cleanup_pdfs: render.yaml does not give it BLOB_READ_WRITE_TOKEN",
    ),
    "a secret in the group": (
        (RENDER.name, "- key: LOG_LEVEL\n        value: INFO", '- key: SENTRY_DSN\n        value: "x"'),
        "group lifecycle: SENTRY_DSN is a secret, and a group holds none",
    ),
    "a variable's name": (
        (RENDER.name, "key: LOG_LEVEL", "key: LOG_LEVLE"),
        "cleanup-pdfs: LOG_LEVLE is no setting of the suite",
    ),
    "a variable that overrides policies": (
        (RENDER.name, "# - key: CLEANUP_BATCH_SIZE\n      #   value:", "- key: CLEANUP_BATCH_SIZE\n        value:"),
        "cleanup-pdfs: CLEANUP_BATCH_SIZE would override every policy: leave it commented out",
    ),
    "a minute that is taken": (
        (POLICY_FILE, 'schedule: "0 4 * * *"', 'schedule: "0 3 * * *"'),
        (
            "cleanup_blacklist: starts in the same minute as cleanup_pdfs (0 3 * * * and 0 3 * * *, first on 2027-01-01 "
            "at 03:00 UTC); both change data"
        ),
    ),
    "a minute that is taken once a month": (
        (POLICY_FILE, 'schedule: "30 4 1 * *"', 'schedule: "0 4 1 * *"'),
        (
            "archive_before_delete: starts in the same minute as cleanup_blacklist (0 4 1 * * and 0 4 * * *, first on "
            "2027-01-01 at 04:00 UTC); both change data"
        ),
    ),
    "a budget": (
        (POLICY_FILE, "budget: 7200 seconds", "budget: 12 hours"),
        "cleanup_pdfs: its budget of 12:00:00 is as long as Render lets a run be",
    ),
}


@pytest.mark.parametrize(("change", "said"), BREAKS.values(), ids=BREAKS)
def test_a_link_that_breaks_is_named(change, said):
    place, old, new = change
    texts = {RENDER.name: TEXT, POLICY_FILE: DEFAULT_POLICY_FILE.read_text(), **links.documents()}
    assert old in texts[place]
    texts[place] = texts[place].replace(old, new, 1)
    policies, blueprint = parse_policies(texts[POLICY_FILE], "x"), parse_blueprint(texts[RENDER.name])
    assert said in links.broken(policies, blueprint, texts)


MISTAKES = {
    "env: production": ("runtime: python", "env: production", "env: is the old name of runtime"),
    "command": ("startCommand:", "command:", "command: is no field: startCommand"),
    "timeout": ("    autoDeploy", "    timeout: 3600\n    autoDeploy", "timeout: is no field: the script keeps"),
    "crons": ("services:", "crons:", "crons: is not a known key"),
    "an eviction policy": ("noeviction", "allkeys-lru", "maxmemoryPolicy: Input should be 'noeviction'"),
    "no eviction policy": ("    maxmemoryPolicy: noeviction\n", "", "maxmemoryPolicy: Field required"),
    "no allow list": ("    ipAllowList: []\n", "", "ipAllowList: Field required"),
    "sync in a group": ("value: INFO", "sync: false", "LOG_LEVEL: a group holds values only"),
    "a group that is not there": ("fromGroup: lifecycle", "fromGroup: life", "there is no group life"),
    "a service that is not there": (
        "name: lifecycle-locks, ",
        "name: lock, ",
        "REDIS_URL comes from lock, which is not there",
    ),
    "six fields": ('"0 2 * * *"', '"0 0 2 * * *"', "schedule: a schedule has five fields, in UTC"),
    "no schedule": ('"0 2 * * *"', '"0 25 * * *"', "0 25 * * * is no schedule"),
    "a number for a value": ('value: "300"', "value: 300", "REDIS_LOCK_TIMEOUT.value: Input should be a valid string"),
    "a key twice": ("    plan: starter", "    plan: starter\n    plan: standard", "plan is written twice"),
    "a variable twice": (
        "      - key: SENTRY_DSN\n        sync: false\n",
        "      - key: SENTRY_DSN\n        sync: false\n" * 2,
        "SENTRY_DSN is set twice",
    ),
    "a service twice": ("name: cleanup-pdfs", "name: report-metrics", "report-metrics is there twice"),
    "a disk": ("    autoDeploy", "    disk: {}\n    autoDeploy", "disk: is not a known key"),
}


@pytest.mark.parametrize(("old", "new", "said"), MISTAKES.values(), ids=MISTAKES)
def test_what_render_would_refuse_or_ignore_is_named(old, new, said):
    assert old in TEXT
    with pytest.raises(Misconfigured, match=re.escape(said)):
        parse_blueprint(TEXT.replace(old, new, 1))


def test_a_plan_that_crons_do_not_have():
    with pytest.raises(Misconfigured, match=r"services\.report-metrics\.plan: Input should be 'starter'"):
        parse_blueprint(re.sub(r"(name: report-metrics\n.*\n    plan:) starter", r"\1 free", TEXT))


def test_the_values_in_the_group_are_ones_that_a_job_takes(monkeypatch):
    values = {each.key: each.value for group in BLUEPRINT.env_var_groups for each in group.env_vars}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DATABASE_URL", "postgresql://lifecycle_jobs:x@db.example.invalid/app")
    monkeypatch.setenv("REDIS_URL", "rediss://cache.example.invalid:6379")
    settings = load_settings()
    assert settings.exit_zero_for == {ExitCode.NEEDS_A_PERSON, ExitCode.NOT_RUN}
    assert settings.sla_critical_threshold_percent == int(values["SLA_CRITICAL_THRESHOLD_PERCENT"])
    assert not [name for name in values if name in links.FIELDS and links.is_secret(name)]


def test_every_part_is_in_one_region_and_nobody_else_reaches_the_locks():
    assert len({service.region for service in BLUEPRINT.services}) == 1
    (store,) = [service for service in BLUEPRINT.services if isinstance(service, KeyValue)]
    assert (store.maxmemory_policy, store.ip_allow_list) == ("noeviction", [])


def test_the_variables_that_override_policies_stand_there_as_comments():
    """If set, they override every policy; both files name them, so that an operator finds them."""
    names = sorted(name for name in links.FIELDS if name.startswith("CLEANUP_"))
    assert len(names) == 3
    example = (ROOT / ".env.example").read_text()
    for name in names:
        assert re.search(rf"^ *# - key: {name}\n *#   value: ", TEXT, re.MULTILINE), f"{name} in render.yaml"
        assert re.search(rf"^# {name}=", example, re.MULTILINE), f"{name} in .env.example"


def test_no_job_is_given_the_owner_s_login():
    assert "MIGRATION_DATABASE_URL" not in TEXT
    for cron in BLUEPRINT.crons:
        assert not isinstance(BLUEPRINT.variables(cron)["DATABASE_URL"], Value)


def test_every_job_makes_its_monitor_in_sentry(monkeypatch):
    monkeypatch.setattr(error_reporting, "_active", False)
    with Receiver() as sentry:
        monkeypatch.setenv("DATABASE_URL", "postgresql://x@db.example.invalid/app")
        monkeypatch.setenv("REDIS_URL", "rediss://cache.example.invalid:6379")
        monkeypatch.setenv("SENTRY_DSN", sentry.dsn)
        error_reporting.start(load_settings(), script="tests", correlation_id="0" * 16)
        for name, job in POLICIES.jobs.items():
            CheckIn(name, job, job.budget.total_seconds(), 15).begin()
        error_reporting.flush()
        made = {item["monitor_slug"]: item["monitor_config"]["schedule"] for item in sentry.items("check_in")}
    assert made == {
        name.replace("_", "-"): {"type": "crontab", "value": job.schedule} for name, job in POLICIES.jobs.items()
    }


@pytest.mark.parametrize("name", sorted(links.BOOKKEEPING))
def test_what_may_share_a_minute_needs_no_right_on_the_application_s_tables(
    name, database, redis_url, capsys, monkeypatch
):
    admin = database.superuser()
    admin.execute("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM lifecycle_jobs, PUBLIC")
    admin.execute(
        "INSERT INTO ops.manual_resolution_queue (item_type, resource_type, resource_id, priority, reason, raised_by,"
        " first_seen_at, deadline_at) VALUES ('quiz_undelivered', 'public.quiz_responses', '1', 'high', 'a reason',"
        " 'system:tests', now() - interval '2 days', now() - interval '1 day')"
    )
    env = {"DATABASE_URL": database.url, "REDIS_URL": redis_url}
    done = run_inside(links.script_of(name), (), env=env, capsys=capsys, monkeypatch=monkeypatch)
    assert done.returncode == 0, done.stdout
    assert admin.execute("SELECT status FROM ops.manual_resolution_queue").fetchone() == ("escalated",)


def test_the_file_is_plain_yaml_without_anchors():
    """Whether Render resolves them is written nowhere."""
    assert not [token for token in yaml.scan(TEXT) if isinstance(token, yaml.AnchorToken | yaml.AliasToken)]
