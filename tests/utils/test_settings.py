"""What the environment may say, and how it is told what is wrong with it: at once, by name, without a value."""

import annotated_types
import pytest
from pydantic import ValidationError

from scripts.utils.errors import ExitCode, Misconfigured
from scripts.utils.settings import Settings, load_settings

SECRET = "hunter2"
GOOD = {
    "DATABASE_URL": f"postgresql://jobs:{SECRET}@db.example.com:5432/app?sslmode=require",
    "REDIS_URL": f"rediss://:{SECRET}@cache.example.com:6379/0",
}
FIELDS = {field.alias: field for field in Settings.model_fields.values()}
ANY_TEXT = {
    "RENDER_GIT_COMMIT",
    "SENTRY_ENVIRONMENT",
    "TRACEPARENT",
    "SMTP_USER",
    "SMTP_PASSWORD",
    "AWS_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
}


@pytest.fixture
def load(monkeypatch):
    """A function that reads the settings from GOOD with changes; None takes a variable away."""

    def read(**changes):
        for name, value in (GOOD | changes).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        return load_settings()

    return read


def refusal(load, **changes):
    with pytest.raises(Misconfigured) as caught:
        load(**changes)
    assert caught.value.exit_code is ExitCode.MISCONFIGURED == 2
    return str(caught.value)


def test_two_variables_are_enough_and_the_rest_has_the_documented_defaults(load):
    settings = load()
    assert settings.database_url.get_secret_value() == GOOD["DATABASE_URL"]
    assert settings.redis_url.get_secret_value() == GOOD["REDIS_URL"]
    assert settings.model_dump(exclude={"database_url", "redis_url"}) == {
        "db_pool_size": 10,
        "db_max_overflow": 20,
        "redis_lock_timeout": 300,
        "blob_read_write_token": None,
        "vercel_blob_api_url": "https://vercel.com/api/blob",
        "blob_rate_limit_per_minute": 900,
        "blob_batch_size": 100,
        "blob_concurrency": 4,
        "blob_timeout_seconds": 20,
        "vercel_blob_delivery_url": None,
        "audit_pseudonym_key": None,
        "suppression_key": None,
        "gdpr_deletion_deadline_days": 30,
        "backup_retention_days": 30,
        "audit_anchor_url": None,
        "archive_url": None,
        "export_database_url": None,
        "archive_master_key": None,
        "archive_previous_master_keys": None,
        "aws_endpoint_url": None,
        "aws_region": "us-east-1",
        "aws_access_key_id": None,
        "aws_secret_access_key": None,
        "sentry_dsn": None,
        "sentry_environment": "production",
        "sentry_traces_sample_rate": 0.0,
        "traceparent": None,
        "pushgateway_url": None,
        "metrics_textfile_dir": None,
        "log_level": "INFO",
        "cleanup_batch_size": None,
        "cleanup_dry_run": False,
        "cleanup_max_duration_seconds": None,
        "sla_warning_threshold_percent": 80,
        "sla_critical_threshold_percent": 100,
        "sla_start_grace_minutes": 15,
        "sla_stuck_minutes": 45,
        "sla_count_seconds": 20,
        "mrq_sla_critical": 4,
        "mrq_sla_high": 24,
        "mrq_sla_medium": 168,
        "mrq_sla_low": 720,
        "mrq_claim_minutes": 30,
        "mrq_depth_warning": 100,
        "mrq_depth_critical": 500,
        "mrq_age_warning_hours": 48,
        "mrq_age_escalation_hours": 168,
        "mrq_alert_slack_webhook": None,
        "pagerduty_routing_key": None,
        "pagerduty_events_url": "https://events.pagerduty.com/v2/enqueue",
        "alert_reminder_hours": 4,
        "alert_runbook_url": None,
        "alert_source": "data-lifecycle",
        "smtp_host": None,
        "smtp_port": 587,
        "smtp_user": None,
        "smtp_password": None,
        "smtp_starttls": True,
        "smtp_from": None,
        "report_email_to": None,
        "operator": None,
        "exit_zero_for": frozenset(),
        "render_git_commit": "unknown",
    }


def test_what_is_missing_is_named_together(load):
    assert refusal(load, DATABASE_URL=None, REDIS_URL=None) == (
        "environment: DATABASE_URL is not set; REDIS_URL is not set"
    )


def test_empty_is_unset(load):
    assert load(CLEANUP_BATCH_SIZE="", LOG_LEVEL="", SENTRY_DSN="", EXIT_ZERO_FOR="", CLEANUP_DRY_RUN="") == load()
    assert refusal(load, REDIS_URL="") == "environment: REDIS_URL is not set"


def test_everything_that_is_malformed_is_named_at_once_without_its_value(load):
    changes = {name: f"malformed {SECRET}" for name in FIELDS if name not in ANY_TEXT}
    message = refusal(load, **changes)
    problems = message.removeprefix("environment: ").split("; ")
    assert [problem.split(" ")[0] for problem in problems] == list(changes)
    assert SECRET not in message


def test_one_connection_is_too_few_for_a_job(load):
    message = refusal(load, DB_POOL_SIZE="1", DB_MAX_OVERFLOW="0")
    assert message.startswith("environment: DB_MAX_OVERFLOW with DB_POOL_SIZE must make 2 at least")
    assert load(DB_POOL_SIZE="2", DB_MAX_OVERFLOW="0").db_pool_size == 2


def test_the_order_of_the_thresholds_is_named_beside_other_problems(load):
    message = refusal(load, SLA_WARNING_THRESHOLD_PERCENT="101", REDIS_URL=None)
    assert message == (
        "environment: REDIS_URL is not set;"
        " SLA_CRITICAL_THRESHOLD_PERCENT must not be below SLA_WARNING_THRESHOLD_PERCENT"
    )
    both = load(SLA_WARNING_THRESHOLD_PERCENT="100", REDIS_URL=GOOD["REDIS_URL"])
    assert (both.sla_warning_threshold_percent, both.sla_critical_threshold_percent) == (100, 100)


NUMBERS = [
    name for name, field in FIELDS.items() if int in (field.annotation, *getattr(field.annotation, "__args__", ()))
]


def bounds(name):
    """The least and the greatest value that a number may have."""
    rules = {type(rule): rule for rule in FIELDS[name].metadata}
    return rules[annotated_types.Ge].ge, rules[annotated_types.Le].le


@pytest.mark.parametrize("name", [name for name in NUMBERS if name != "EXIT_ZERO_FOR"])
def test_a_number_has_a_least_and_a_greatest_value(load, name):
    least, greatest = bounds(name)
    room = {"SLA_CRITICAL_THRESHOLD_PERCENT": "1000", "SLA_WARNING_THRESHOLD_PERCENT": "1"}
    room |= {"MRQ_DEPTH_CRITICAL": "1000000", "MRQ_DEPTH_WARNING": "1"}
    for value in (least, greatest):
        assert getattr(load(**room | {name: str(value)}), name.lower()) == value
    for value in (least - 1, greatest + 1, "1e3", "ten", "9" * 5000):
        assert refusal(load, **room | {name: str(value)}).startswith(f"environment: {name} ")


def test_bounds_that_an_operator_may_rely_on():
    assert bounds("REDIS_LOCK_TIMEOUT") == (5, 86_400)
    assert bounds("CLEANUP_BATCH_SIZE") == (1, 100_000)
    assert bounds("CLEANUP_MAX_DURATION_SECONDS") == (1, 43_200)


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARN", "WARNING", "ERROR", "warn"])
def test_levels(load, level):
    assert load(LOG_LEVEL=level).log_level == level.upper()


@pytest.mark.parametrize("level", ["TRACE", "CRITICAL", "10", " INFO"])
def test_other_levels_are_refused(load, level):
    assert "LOG_LEVEL must be 'DEBUG', 'INFO', 'WARN', 'WARNING' or 'ERROR'" in refusal(load, LOG_LEVEL=level)


@pytest.mark.parametrize(
    ("value", "meaning"),
    [("true", True), ("True", True), ("1", True), ("yes", True), ("false", False), ("0", False), ("NO", False)],
)
def test_a_switch_is_spelled_out(load, value, meaning):
    assert load(CLEANUP_DRY_RUN=value).cleanup_dry_run is meaning


@pytest.mark.parametrize("value", ["on", "off", "t", "y", "ture", "2", "true ", "dry-run"])
def test_a_mistyped_switch_is_no_real_run(load, value):
    assert refusal(load, CLEANUP_DRY_RUN=value) == "environment: CLEANUP_DRY_RUN must be true or false"


@pytest.mark.parametrize(("value", "codes"), [("4,75", {4, 75}), ("4", {4}), ("75", {75}), (" 3, 4 ,", {3, 4})])
def test_exit_codes_that_the_scheduler_sees_as_zero(load, value, codes):
    assert load(EXIT_ZERO_FOR=value).exit_zero_for == codes


@pytest.mark.parametrize("value", ["1", "2", "4,1", "143", "0"])
def test_a_failure_stays_a_failure(load, value):
    assert "EXIT_ZERO_FOR may map only 3, 4 and 75" in refusal(load, EXIT_ZERO_FOR=value)


@pytest.mark.parametrize("value", ["four", "4;75", "4 75", "[4"])
def test_exit_codes_that_are_none(load, value):
    assert "EXIT_ZERO_FOR must be exit codes separated by commas" in refusal(load, EXIT_ZERO_FOR=value)


def test_settings_do_not_change(load):
    settings = load(CLEANUP_BATCH_SIZE="7")
    assert settings.cleanup_batch_size == 7
    with pytest.raises(ValidationError, match="frozen"):
        settings.cleanup_batch_size = 8


def test_every_setting_is_described_and_named_like_its_field():
    for name, field in Settings.model_fields.items():
        assert field.alias == name.upper()
        assert field.description, name
