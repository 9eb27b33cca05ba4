"""The environment, read once, strictly, in this one place.

What is wrong is reported all at once, by name and without the value: a mistyped variable may hold a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

import psycopg
import redis
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from scripts.utils import tls
from scripts.utils.errors import Misconfigured, pydantic_message

_BLOB_TOKEN = re.compile(r"vercel_blob_rw_[A-Za-z0-9-]+_\S+")
_PSEUDONYM_KEY = re.compile(r"[a-z0-9]{1,16}:(?:[0-9a-f]{2}){32,}")
_MASTER_KEY = re.compile(r"[a-z0-9]{1,16}:[0-9a-f]{64}")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def _url(usable: Callable[[SplitResult], object], message: str) -> AfterValidator:
    """Return a validator of URLs, secret ones too.

    Args:
        usable: Whether the parts of a URL are what the setting needs; it may raise ValueError.
        message: What a URL must be. It stands for every refusal, as urlsplit's own text may quote the value.
    """

    def check(value: Any) -> Any:
        try:
            accepted = usable(urlsplit(value.get_secret_value() if isinstance(value, SecretStr) else value))
        except ValueError:
            accepted = False
        if not accepted:
            raise ValueError(message)
        return value

    return AfterValidator(check)


def _names_host(parts: SplitResult) -> bool:
    return bool(parts.hostname) and parts.port != 0


def _encrypted_or_here(parts: SplitResult) -> bool:
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _THIS_MACHINE)


_https_url = _url(
    lambda parts: _encrypted_or_here(parts) and _names_host(parts) and not parts.username,
    "must be an https URL, or http on this machine: a secret travels with every call",
)
_sentry_dsn = _url(
    lambda parts: (
        parts.scheme in ("http", "https")
        and _names_host(parts)
        and parts.username
        and parts.path.rpartition("/")[2].isdecimal()
    ),
    "must be a Sentry DSN: https://key@host/project-number",
)
_web_address = _url(
    lambda parts: parts.scheme == "https" and parts.hostname and not parts.username,
    "must be an https address, such as https://git.example.com/project/blob/main",
)
_http_url = _url(
    lambda parts: parts.scheme in ("http", "https") and _names_host(parts) and not parts.query and not parts.fragment,
    "must be a URL: http://host:port",
)
_archive_url = _url(
    lambda parts: (
        (
            (parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"))
            or (parts.scheme == "s3" and _BUCKET.fullmatch(parts.netloc))
        )
        and not parts.query
        and not parts.fragment
    ),
    "must be a folder or a bucket: file:///absolute/path or s3://bucket/prefix",
)
_store_url = _url(
    lambda parts: parts.scheme in ("http", "https") and _names_host(parts) and not parts.username,
    "must be the URL of an S3-compatible store: https://host",
)
_not_in_the_open = _url(_encrypted_or_here, "may be http only where it is this machine")


def _postgres_url(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith(("postgresql://", "postgres://")):
        raise ValueError("must be a PostgreSQL URL: postgresql://user:password@host/database")
    try:
        parts = conninfo_to_dict(value.get_secret_value())
    except (psycopg.ProgrammingError, ValueError):  # a ValueError's text may quote the value
        raise ValueError("is not a valid PostgreSQL URL") from None
    # libpq would fill in what is missing from the shell's PG… variables, or take a local server.
    if not parts.get("host") or not parts.get("dbname"):
        raise ValueError("must name host and database: postgresql://user:password@host/database")
    if not all(port.isdecimal() for port in str(parts.get("port", "5432")).split(",")):
        raise ValueError("has a port that is not a number")
    if parts.get("sslmode", "prefer") not in _SSL_MODES:
        raise ValueError(f"has an sslmode that is none of {', '.join(_SSL_MODES)}")
    if "options" in parts:
        raise ValueError("must not carry 'options': a transaction pooler refuses it")
    return value


def _redis_url(value: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(value.get_secret_value())
        usable = parts.scheme in ("redis", "rediss") and _names_host(parts)
        redis.ConnectionPool.from_url(value.get_secret_value()).make_connection()  # only made, not opened
    except (ValueError, TypeError, redis.RedisError):  # a port that is not a number, an option that is unknown
        usable = False
    if not usable:
        raise ValueError("must be a Redis URL: redis://host:port or rediss://host:port")
    if unsafe := tls.redis_problem(value.get_secret_value()):
        raise ValueError(unsafe)
    return value


def _blob_token(value: SecretStr) -> SecretStr:
    if not _BLOB_TOKEN.fullmatch(value.get_secret_value()):
        raise ValueError("must be a read-write token of Vercel Blob: vercel_blob_rw_<store id>_<secret>")
    return value


def _routing_key(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[A-Za-z0-9]{32}", value.get_secret_value()):
        raise ValueError("must be the integration key of a PagerDuty service: 32 letters and digits")
    return value


def _label(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
        raise ValueError("must be at most 64 letters, digits, dots, hyphens and underscores")
    return value


def _folder(value: Path) -> Path:
    if not value.is_dir():
        raise ValueError("must be a folder that is there")
    return value


def _pseudonym_key(value: SecretStr) -> SecretStr:
    if not _PSEUDONYM_KEY.fullmatch(value.get_secret_value()):
        raise ValueError("must be a key's id, a colon and at least 64 hexadecimal digits: k1:$(openssl rand -hex 32)")
    return value


def _master_key(value: SecretStr) -> SecretStr:
    if not _MASTER_KEY.fullmatch(value.get_secret_value()):
        raise ValueError("must be a key's id, a colon and 64 hexadecimal digits: m1:$(openssl rand -hex 32)")
    return value


def _master_keys(value: SecretStr) -> SecretStr:
    keys = value.get_secret_value().split(",")
    if not all(_MASTER_KEY.fullmatch(key) for key in keys):
        raise ValueError("must be former master keys separated by commas, each an id, a colon and 64 digits")
    if len({key.partition(":")[0] for key in keys}) < len(keys):
        raise ValueError("must not name one key's id twice")
    return value


def _flag(value: object) -> object:
    # pydantic also takes t, f, on and off; a switch in front of a DELETE is spelled out.
    if isinstance(value, str) and value.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError("must be true or false")
    return value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _codes(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        codes = frozenset(int(code) for code in value.split(",") if code.strip())
    except ValueError:
        raise ValueError("must be exit codes separated by commas, such as 4,75") from None
    if not codes <= {3, 4, 75}:
        raise ValueError("may map only 3, 4 and 75 to zero: the others are failures")
    return codes


def handle(value: str) -> str:
    """Return an operator's handle.

    Raises:
        ValueError: It is an e-mail address, or has spaces.
    """
    # The audit keeps the handle. The audit is never changed, so it must not hold personal data.
    if "@" in value or any(character.isspace() for character in value):
        raise ValueError("must be a handle: no e-mail address, no spaces")
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:-]+", value):
        raise ValueError("must be a host's name or address, without scheme and port")
    return value


def _addresses(value: str) -> str:
    # Strict, as each stands in a header and in a command to the mail server.
    if not all(re.fullmatch(r"[!-~]+@[A-Za-z0-9.-]+", each.strip()) for each in value.split(",")):
        raise ValueError("must be e-mail addresses separated by commas")
    return value


def _address(value: str) -> str:
    if "," in value:
        raise ValueError("must be one e-mail address")
    return _addresses(value)


PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
Flag = Annotated[bool, BeforeValidator(_flag)]


class Settings(BaseSettings):
    """The settings of one run; times in seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(
        alias_generator=str.upper, frozen=True, case_sensitive=True, env_ignore_empty=True, extra="ignore"
    )

    database_url: PostgresUrl = Field(description="PostgreSQL, as the role lifecycle_jobs")
    export_database_url: PostgresUrl | None = Field(
        None,
        description="the same database as lifecycle_export, which alone reads what a person is given; for --export",
    )
    db_pool_size: int = Field(10, ge=1, le=200, description="connections kept at most")
    db_max_overflow: int = Field(20, ge=0, le=200, description="further connections at peak")

    redis_url: RedisUrl = Field(description="Redis or Valkey, for the locks")
    redis_lock_timeout: int = Field(300, ge=5, le=86_400, description="seconds after which an unrenewed lock ends")

    blob_read_write_token: Annotated[SecretStr, AfterValidator(_blob_token)] | None = Field(
        None, description="Vercel Blob; for cleanup_pdfs and enforce_gdpr_deletion"
    )
    vercel_blob_api_url: Annotated[str, _https_url] = Field(
        "https://vercel.com/api/blob", description="the API, as its own clients name it"
    )
    vercel_blob_delivery_url: Annotated[str, _https_url] | None = Field(
        None,
        description="where blobs are read from for an export; unset: where the store says",
    )
    blob_rate_limit_per_minute: int = Field(
        900,
        ge=1,
        le=1_000_000,
        description="blobs deleted in any 60 seconds, all processes together",
    )
    blob_batch_size: int = Field(100, ge=1, le=1000, description="blobs a call")
    blob_concurrency: int = Field(4, ge=1, le=32, description="calls at once")
    blob_timeout_seconds: int = Field(20, ge=1, le=300, description="seconds that a call may take")

    audit_pseudonym_key: Annotated[SecretStr, AfterValidator(_pseudonym_key)] | None = Field(
        None,
        description="key for what the audit must name without saying it: id, colon, 64 hexadecimal digits",
    )

    suppression_key: Annotated[SecretStr, AfterValidator(_pseudonym_key)] | None = Field(
        None,
        description="key for the pseudonyms of erased people; never changed: id, colon, 64 hexadecimal digits",
    )
    gdpr_deletion_deadline_days: int = Field(30, ge=1, le=90, description="days until an erasure must be done")
    backup_retention_days: int = Field(
        30,
        ge=0,
        le=365,
        description="days after which no backup of the database is left that holds a deleted row",
    )
    audit_anchor_url: Annotated[str, _archive_url] | None = Field(
        None,
        description="where each run keeps the audit's head: file:///folder or s3://bucket/prefix; unset: nowhere",
    )

    archive_url: Annotated[str, _archive_url] | None = Field(
        None, description="where archives go: file:///folder or s3://bucket/prefix"
    )
    archive_master_key: Annotated[SecretStr, AfterValidator(_master_key)] | None = Field(
        None,
        description="key that wraps the archives' keys; lost, the archives are lost: id, colon, 64 hexadecimal digits",
    )
    archive_previous_master_keys: Annotated[SecretStr, AfterValidator(_master_keys)] | None = Field(
        None,
        description="former ones, separated by commas, until rotate-keys is done",
    )
    aws_endpoint_url: Annotated[str, _store_url, _not_in_the_open] | None = Field(
        None, description="S3-compatible store other than AWS; only for s3:// archives"
    )
    aws_region: str = Field("us-east-1", description="its region; auto for Cloudflare R2")
    aws_access_key_id: SecretStr | None = Field(None, description="login of the S3-compatible store")
    aws_secret_access_key: SecretStr | None = Field(None, description="the login's secret")

    sentry_dsn: Annotated[SecretStr, _sentry_dsn] | None = Field(
        None, description="errors, traces and check-ins go there; unset: nowhere"
    )
    sentry_environment: str = Field("production", description="what Sentry files errors, traces and check-ins under")
    sentry_traces_sample_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="share of the runs that are traced in Sentry, 0 to 1",
    )
    traceparent: str | None = Field(
        None, description="trace that the run belongs to, as W3C writes it; unset: one of its own"
    )
    pushgateway_url: Annotated[SecretStr, _http_url] | None = Field(
        None, description="Prometheus Pushgateway that gets each run's figures; unset: none"
    )
    metrics_textfile_dir: Annotated[Path, AfterValidator(_folder)] | None = Field(
        None,
        description="folder of the node exporter's textfile collector for the same figures; unset: none",
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARN", "WARNING", "ERROR"], BeforeValidator(_upper)] = Field(
        "INFO", description="DEBUG, INFO, WARN or ERROR"
    )

    cleanup_batch_size: int | None = Field(
        None, ge=1, le=100_000, description="rows a batch; set, it overrides every policy"
    )
    cleanup_dry_run: Flag = Field(default=False, description="true: say what would happen, write nothing")
    cleanup_max_duration_seconds: int | None = Field(
        None,
        ge=1,
        le=43_200,
        description="seconds a run may take; set, it overrides every job's budget",
    )

    sla_warning_threshold_percent: int = Field(80, ge=1, le=1000, description="share of the time budget that warns")
    sla_critical_threshold_percent: int = Field(
        100,
        ge=1,
        le=1000,
        validate_default=True,
        description="share of the budget that is a breach",
    )

    sla_start_grace_minutes: int = Field(15, ge=1, le=1440, description="minutes that a scheduled run may start late")
    sla_stuck_minutes: int = Field(45, ge=1, le=1440, description="minutes without progress after which a run is stuck")
    sla_count_seconds: int = Field(20, ge=1, le=600, description="seconds that a monitor may take to count one policy")

    mrq_sla_critical: int = Field(4, ge=1, le=87_600, description="hours to resolve a critical item")
    mrq_sla_high: int = Field(24, ge=1, le=87_600, description="hours to resolve a high item")
    mrq_sla_medium: int = Field(168, ge=1, le=87_600, description="hours to resolve a medium item")
    mrq_sla_low: int = Field(720, ge=1, le=87_600, description="hours to resolve a low item")
    mrq_claim_minutes: int = Field(30, ge=1, le=1440, description="minutes after which an unworked claim is free again")

    mrq_depth_warning: int = Field(
        100,
        ge=1,
        le=1_000_000,
        description="open queue items above which it warns",
    )
    mrq_depth_critical: int = Field(
        500,
        ge=1,
        le=1_000_000,
        validate_default=True,
        description="open queue items above which it is critical",
    )
    mrq_age_warning_hours: int = Field(48, ge=1, le=87_600, description="mean age of open items, in hours, that warns")
    mrq_age_escalation_hours: int = Field(
        168,
        ge=1,
        le=87_600,
        description="age of any open item, in hours, that is critical",
    )

    mrq_alert_slack_webhook: Annotated[SecretStr, _https_url] | None = Field(
        None, description="Slack incoming webhook for warnings and worse; unset: none"
    )
    pagerduty_routing_key: Annotated[SecretStr, AfterValidator(_routing_key)] | None = Field(
        None, description="PagerDuty integration key for what is critical; unset: none"
    )
    pagerduty_events_url: Annotated[str, _https_url] = Field(
        "https://events.pagerduty.com/v2/enqueue", description="PagerDuty Events API v2"
    )
    alert_reminder_hours: int = Field(4, ge=1, le=720, description="hours between two reminders of an open alert")
    alert_runbook_url: Annotated[str, _web_address] | None = Field(
        None, description="where the repository is read, put before an alert's runbook page"
    )
    alert_source: Annotated[str, AfterValidator(_label)] = Field(
        "data-lifecycle", description="name of this installation in alerts, such as production"
    )

    smtp_host: Annotated[str, AfterValidator(_host)] | None = Field(
        None,
        description="mail server; for reports sent with --email, and confirmations of erasures",
    )
    smtp_port: int = Field(587, ge=1, le=65_535, description="its port")
    smtp_user: str | None = Field(None, description="its login; unset: none")
    smtp_password: SecretStr | None = Field(None, description="the login's password")
    smtp_starttls: Flag = Field(
        default=True,
        description="encrypt with STARTTLS; false only for a server on this machine",
    )
    smtp_from: Annotated[str, AfterValidator(_address)] | None = Field(
        None, description="sender of the mails", repr=False
    )
    report_email_to: Annotated[str, AfterValidator(_addresses)] | None = Field(
        None, description="recipients of the reports, separated by commas", repr=False
    )

    operator: Annotated[str, AfterValidator(handle)] | None = Field(
        None, description="handle of the person at the shell, for the audit"
    )
    exit_zero_for: Annotated[frozenset[int], NoDecode, BeforeValidator(_codes)] = Field(
        frozenset(), description="exit codes that the scheduler shall see as 0, such as 4,75"
    )
    render_git_commit: str = Field("unknown", description="set by Render: the version")

    @property
    def hours_by_priority(self) -> dict[str, int]:
        """Hours to resolve an item of the manual-resolution queue, by its priority."""
        return {
            "critical": self.mrq_sla_critical,
            "high": self.mrq_sla_high,
            "medium": self.mrq_sla_medium,
            "low": self.mrq_sla_low,
        }

    @field_validator("db_max_overflow")
    @classmethod
    def _two_at_least(cls, overflow: int, info: ValidationInfo) -> int:
        if info.data.get("db_pool_size", 2) + overflow < 2:  # noqa: PLR2004
            raise ValueError("with DB_POOL_SIZE must make 2 at least: a batch keeps one while the run asks another")
        return overflow

    @field_validator("sla_critical_threshold_percent")
    @classmethod
    def _in_order(cls, critical: int, info: ValidationInfo) -> int:
        # On the field, not on the whole: a check of the whole waits until every other setting is right.
        if info.data.get("sla_warning_threshold_percent", critical) > critical:
            raise ValueError("must not be below SLA_WARNING_THRESHOLD_PERCENT")
        return critical

    @field_validator("mrq_depth_critical")
    @classmethod
    def _deeper(cls, critical: int, info: ValidationInfo) -> int:
        if info.data.get("mrq_depth_warning", critical) > critical:
            raise ValueError("must not be below MRQ_DEPTH_WARNING")
        return critical

    @field_validator("archive_previous_master_keys")
    @classmethod
    def _former(cls, former: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        current = info.data.get("archive_master_key")
        if former and current:
            key_id = current.get_secret_value().partition(":")[0]
            if key_id in {key.partition(":")[0] for key in former.get_secret_value().split(",")}:
                raise ValueError("must not have the id of ARCHIVE_MASTER_KEY: a new key has a new id")
        return former

    @field_validator("smtp_starttls")
    @classmethod
    def _encrypted(cls, starttls: bool, info: ValidationInfo) -> bool:
        host = info.data.get("smtp_host")
        if not starttls and host and host not in _THIS_MACHINE:
            raise ValueError(
                "may be false only where SMTP_HOST is this machine: password and report travel in the open"
            )
        return starttls


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        Misconfigured: Names every variable that is missing or malformed, never its value.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = [_problem(detail) for detail in error.errors(include_input=False, include_url=False)]
    raise Misconfigured("environment: " + "; ".join(problems))


def _problem(detail: Any) -> str:
    name = str(detail["loc"][0]).upper()  # of a default that is wrong pydantic gives the field's name
    message = pydantic_message(detail, missing="is not set").replace("Input should be", "must be", 1)
    return f"{name} {message}"
