"""What reaches Sentry of a bug, with the real library and a transport that keeps what it is given."""

import functools
import json

import psycopg
import pytest
import sentry_sdk
from sentry_sdk.transport import Transport

from scripts.lifecycle.jobs.entry_point import Job, main
from scripts.utils import error_reporting
from scripts.utils.settings import load_settings

DSN = "https://0123abcd@o1.ingest.example.com/42"


class Kept(Transport):
    """Keeps events instead of sending them."""

    def __init__(self):
        super().__init__()
        self.events = []

    def capture_envelope(self, envelope):
        if event := envelope.get_event():
            self.events.append(event)


@pytest.fixture
def sentry(monkeypatch):
    """Sentry's client with a transport that keeps what it is given."""
    kept = Kept()
    monkeypatch.setattr(sentry_sdk, "init", functools.partial(sentry_sdk.init, transport=kept))
    monkeypatch.setenv("SENTRY_DSN", DSN)
    monkeypatch.setenv("RENDER_GIT_COMMIT", "abc123")
    with sentry_sdk.isolation_scope():
        yield kept
    sentry_sdk.get_global_scope().set_client(None)


@pytest.fixture
def started(sentry, monkeypatch):
    """Error reporting as a job starts it."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://jobs:pw@db.example.com/app")
    monkeypatch.setenv("REDIS_URL", "rediss://cache.example.com")
    error_reporting.start(load_settings(), script="a_script", correlation_id="c0ffee")
    return sentry


def raised(call):
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
        return error
    raise AssertionError("nothing was raised")


def lookup(secret="bens-row"):
    """Raise an exception out of a frame that has a row in its local variables."""
    row = {"email": "anna@example.com", "name": secret}
    raise KeyError(f"no column for {row['email']}")


def test_a_bug_arrives_with_its_tags_and_its_place(started):
    error_reporting.report(raised(lookup))
    error_reporting.flush()
    (event,) = started.events
    assert event["tags"] == {"script": "a_script", "correlation_id": "c0ffee"}
    assert event["release"] == "abc123"
    (exception,) = event["exception"]["values"]
    assert exception["type"] == "KeyError"
    assert exception["value"] == "[text withheld]"
    assert exception["stacktrace"]["frames"][-1]["function"] == "lookup"


def test_no_local_variable_and_no_address_arrives(started):
    error_reporting.report(raised(lookup))
    text = json.dumps(started.events)
    assert "vars" not in text
    assert "bens-row" not in text.replace('lookup(secret=\\"bens-row\\")', "")
    assert "@example.com" not in text
    assert "user" not in started.events[0]
    assert "sys.argv" not in text


def test_what_the_database_said_is_left_out_even_as_a_cause(started, database):
    link = database.superuser()

    def insert_twice():
        for _ in range(2):
            link.execute("INSERT INTO users VALUES ('u-1', 'Anna Schmidt', 'anna', NULL, now(), now())")

    def wrap():
        try:
            insert_twice()
        except psycopg.Error as error:
            raise RuntimeError("while inserting") from error

    error = raised(wrap)
    assert "u-1" in str(error.__cause__), "else this test shows nothing"
    error_reporting.report(error)
    values = {value["type"]: value["value"] for value in started.events[0]["exception"]["values"]}
    assert values == {"UniqueViolation": "[text withheld]", "RuntimeError": "[text withheld]"}
    assert "already exists" not in json.dumps(started.events)


def test_without_a_dsn_nothing_is_sent(sentry, monkeypatch):
    monkeypatch.delenv("SENTRY_DSN")
    monkeypatch.setenv("DATABASE_URL", "postgresql://jobs:pw@db.example.com/app")
    monkeypatch.setenv("REDIS_URL", "rediss://cache.example.com")
    error_reporting.start(load_settings(), script="a_script", correlation_id="c0ffee")
    error_reporting.report(raised(lookup))
    error_reporting.flush()
    assert sentry.events == []


def test_a_sentry_that_cannot_be_set_up_fails_nothing(started, monkeypatch, capsys):
    def refuse(**_):
        raise RuntimeError("for anna@example.com")

    monkeypatch.setattr(sentry_sdk, "init", refuse)
    monkeypatch.setattr(error_reporting, "_active", False)
    error_reporting.start(load_settings(), script="a_script", correlation_id="c0ffee")
    error_reporting.report(raised(lookup))
    assert started.events == []


def test_a_description_names_the_place_and_quotes_nothing():
    description = error_reporting.describe(raised(lookup))
    assert description.startswith("unexpected KeyError at test_error_reporting.py:")
    assert description.endswith(" in lookup: this is a bug, please report it")
    assert "column" not in description
    assert error_reporting.describe(KeyError("anna")) == "unexpected KeyError: this is a bug, please report it"


def test_a_bug_in_a_job_is_exit_1_one_line_and_one_event(sentry, job_environment, database, capsys):
    code = main(Job("cleanup_quiz_responses", lambda _: lookup(), "A job with a bug."), ["--log-format", "json"])
    assert code == 1
    out, err = capsys.readouterr()
    assert err == ""
    closing = json.loads(out.splitlines()[-1])
    assert (closing["event"], closing["level"], closing["exit_code"]) == ("cleanup_failed", "ERROR", 1)
    assert closing["stop_reason"] == "bug"
    assert closing["error"].startswith("unexpected KeyError at test_error_reporting.py:")
    for quoted in ("Traceback", "anna", "no column", "bens-row", 'File "'):
        assert quoted not in out
    (event,) = sentry.events
    assert event["tags"] == {"script": "cleanup_quiz_responses", "correlation_id": closing["correlation_id"]}


def test_what_an_operator_can_cause_is_no_bug(sentry, job_environment, monkeypatch, capsys):
    def refuse(run):
        with run.database.transaction() as connection:
            connection.execute("SELECT 1 FROM no_such_table")

    code = main(Job("cleanup_quiz_responses", refuse, "A job that fails."), ["--log-format", "json"])
    closing = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, closing["stop_reason"]) == (1, "database_error")
    assert closing["error"] == 'UndefinedTable (SQLSTATE 42P01): relation "no_such_table" does not exist'
    assert sentry.events == []


def test_a_trace_and_its_spans_are_scrubbed_too():
    span = {"op": "batch", "description": "for anna@example.com", "data": {"token": "t-1", "records_deleted": 5}}
    event = {"type": "transaction", "transaction": "a_job", "spans": [span], "contexts": {"trace": {"trace_id": "ab"}}}
    scrubbed = error_reporting.scrub(event, {})
    assert scrubbed["contexts"] == event["contexts"]
    (found,) = scrubbed["spans"]
    assert found == {
        "op": "batch",
        "description": "for [e-mail]",
        "data": {"token": "[secret]", "records_deleted": 5},
    }
