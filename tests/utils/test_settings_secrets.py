"""The settings that hold secrets: which are refused, and that no message or repr shows one."""

import pytest

from scripts.utils.errors import Misconfigured
from scripts.utils.settings import load_settings

DATABASE, CACHE = "postgresql://jobs:pw@db.example.com/app", "rediss://cache.example.com:6379"
DSN, TOKEN = "https://0123abcd@o1.ingest.example.com/42", "vercel_blob_rw_AbC_123"

# Each has broken some parser of URLs, and several parsers quote in their message what they stumble over.
ODD = [
    "s3cret%zz",
    "s3cret[",
    "s3cret]x[",
    "s3cret\N{ACCOUNT OF}",
    "s3cret\udcff",
    "s3cret:99999999",
    "s3cret p",
    "%00s3cret",
]


@pytest.fixture
def refusal(monkeypatch):
    """A function that returns what is wrong with the settings."""

    def read(**changes):
        for name, value in ({"DATABASE_URL": DATABASE, "REDIS_URL": CACHE} | changes).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(Misconfigured) as caught:
            load_settings()
        assert caught.value.__context__ is None, "a traceback of the cause would show the value"
        return str(caught.value)

    return read


@pytest.mark.parametrize(
    "url",
    [
        "mysql://jobs:pw@db.example.com/app",
        "postgresql+asyncpg://jobs:pw@db.example.com/app",
        "host=db.example.com dbname=app",
        "postgresql://jobs:pw@db.example.com/app?nonsense=1",
        "postgresql://jobs:pw@db.example.com:port/app",
        "postgresql://",
        "postgresql://jobs:pw@db.example.com",
        "postgresql:///app",
    ],
)
def test_a_database_url_that_is_none(refusal, url):
    message = refusal(DATABASE_URL=url)
    assert message.startswith("environment: DATABASE_URL ")
    assert ";" not in message


@pytest.mark.parametrize("options", ["options=-csearch_path%3Dx", "sslmode=require&options="])
def test_options_in_the_database_url_are_refused_with_the_reason(refusal, options):
    assert refusal(DATABASE_URL=f"{DATABASE}?{options}") == (
        "environment: DATABASE_URL must not carry 'options': a transaction pooler refuses it"
    )


@pytest.mark.parametrize(
    "url",
    [
        "cache.example.com:6379",
        "http://cache.example.com",
        "unix:///run/redis.sock",
        "redis://",
        "redis://cache.example.com:port",
        "redis://cache.example.com:0",
        "redis://cache.example.com:70000",
        "redis://cache.example.com?socket_timeout=soon",
        "redis://cache.example.com?nonsense=1",
    ],
)
def test_a_redis_url_that_is_none(refusal, url):
    assert refusal(REDIS_URL=url) == (
        "environment: REDIS_URL must be a Redis URL: redis://host:port or rediss://host:port"
    )


@pytest.mark.parametrize(
    "dsn",
    [
        "o1.ingest.example.com/42",
        "https://o1.ingest.example.com/42",
        "https://0123abcd@o1.ingest.example.com/",
        "https://0123abcd@o1.ingest.example.com/project",
        "https://0123abcd@o1.ingest.example.com:port/42",
        "https://0123abcd@/42",
        "https://[0123abcd@o1.ingest.example.com/42",
    ],
)
def test_a_dsn_that_sentry_would_choke_on(refusal, dsn):
    assert refusal(SENTRY_DSN=dsn) == ("environment: SENTRY_DSN must be a Sentry DSN: https://key@host/project-number")


@pytest.mark.parametrize("odd", ODD)
def test_no_message_quotes_a_secret(refusal, odd):
    message = refusal(
        DATABASE_URL=f"postgresql://jobs:{odd}@db.example.com:port/app",
        REDIS_URL=f"redis://:{odd}@cache.example.com:port/0",
        SENTRY_DSN=f"https://{odd}@o1.ingest.example.com/project",
        CLEANUP_BATCH_SIZE=odd,
        OPERATOR=f"{odd}@",
    )
    for name in ("DATABASE_URL", "REDIS_URL", "SENTRY_DSN", "CLEANUP_BATCH_SIZE", "OPERATOR"):
        assert f"{name} " in message
    assert "s3cret" not in message
    assert not set(message) & set("\N{ACCOUNT OF}\udcff")
    assert "udcff" not in message


def test_a_secret_in_the_wrong_variable_is_not_shown_either(refusal):
    message = refusal(LOG_LEVEL=TOKEN, CLEANUP_DRY_RUN=TOKEN, DB_POOL_SIZE=TOKEN, EXIT_ZERO_FOR=TOKEN)
    assert message.count("; ") == 3
    assert TOKEN.lower() not in message.lower()


def test_settings_show_no_secret(monkeypatch):
    secrets = {"DATABASE_URL": DATABASE, "REDIS_URL": CACHE, "SENTRY_DSN": DSN, "BLOB_READ_WRITE_TOKEN": TOKEN}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        for value in ("pw@", "db.example", "cache.example", "0123abcd", TOKEN):
            assert value not in shown
    assert settings.sentry_dsn.get_secret_value() == DSN
    assert settings.blob_read_write_token.get_secret_value() == TOKEN


@pytest.mark.parametrize("handle", ["anna@example.com", "anna schmidt", "anna\n"])
def test_the_operator_in_the_audit_is_a_handle_not_a_person_s_address(refusal, handle):
    assert refusal(OPERATOR=handle) == "environment: OPERATOR must be a handle: no e-mail address, no spaces"


@pytest.mark.parametrize("name", ["ARCHIVE_URL", "AUDIT_ANCHOR_URL", "ALERT_RUNBOOK_URL", "AWS_ENDPOINT_URL"])
def test_no_message_quotes_a_url_that_cannot_be_split(refusal, name):
    message = refusal(**{name: "https://s3cret\N{ACCOUNT OF}.example.com"})
    assert message.startswith(f"environment: {name} must be ")
    assert "s3cret" not in message
