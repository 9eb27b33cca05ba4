"""No personal data and no secrets leave the process, however they are wrapped."""

import json
import time
from collections import OrderedDict
from pathlib import PurePosixPath
from types import MappingProxyType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scripts.utils.redaction import redact

SURROUNDINGS = [
    "{}",
    "<{}>",
    "Key (email)=({}) already exists.",
    "to: {}, cc",
    '"{}"',
    "user={};",
    "mailto:{}?x",
    "({})",
    "{}.",
]


@settings(deadline=None)
@given(email=st.emails(), around=st.sampled_from(SURROUNDINGS))
@example(email="o'neil!@example.com", around="{}")
@example(email="jörg@exämple.de", around="{}")
@example(email='"quoted local"@example.com', around="to {}")
@example(email="Anna.Schmidt+keto@GoogleMail.com", around="{}")
@example(email="password=anna@example.com", around="<{}>")
@example(email="anna@sub.xn--80ak6aa92e.com", around="{}")
def test_no_address_survives(email, around):
    redacted = redact({"event": around.format(email), "nested": [email, (email,)], "keys": {email: 1}})
    assert email not in json.dumps(redacted, ensure_ascii=False)
    # An address may itself look like a credential: PASSWORD=x@example.com.
    whole = redact(email)
    assert whole == "[e-mail]" or "[secret]" in whole or "[token]" in whole
    assert redacted["nested"] == [whole, [whole]]
    assert list(redacted["keys"]) == [whole]


@settings(deadline=None, max_examples=50)
@given(
    st.recursive(
        st.text() | st.none() | st.floats() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_it_is_given_json_can_write_the_result(value):
    json.dumps(redact(value), allow_nan=False)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("postgresql://jobs:pw@db.example.com/app", "postgresql://[credentials]@db.example.com/app"),
        ("postgresql://jobs:p@ss/w:rd@db.example.com/app", "postgresql://[credentials]@db.example.com/app"),
        ("REDISS://:pw@cache:6379/0 is down", "REDISS://[credentials]@cache:6379/0 is down"),
        ("https://key@o1.ingest.example.com/42", "https://[credentials]@o1.ingest.example.com/42"),
        ("https://anna%40example.com:pw@host/", "https://[credentials]@host/"),
        ("host=db password=pw dbname=app", "host=db password=[secret] dbname=app"),
        (r"password='p w\'x' dbname=app", "password=[secret] dbname=app"),
        ('{"password": "p w", "a": 1}', '{"password": [secret], "a": 1}'),
        ("/unsubscribe?token=abc&id=7", "/unsubscribe?token=[secret]&id=7"),
        ("client_secret=abc", "client_secret=[secret]"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [token]"),
        ("vercel_blob_rw_AbC_123 refused", "[token] refused"),
        ("/unsubscribe/anna%40example.com", "/unsubscribe/[e-mail]"),
        ("write to anna@example.com, please", "write to [e-mail], please"),
    ],
)
def test_credentials_in_texts(text, redacted):
    assert redact(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://db.example.com/app",
        "retention_policy:quiz_responses/abandoned",
        "fencing_token=7",
        "check user, password and database in DATABASE_URL",
        "lock:cleanup:quiz_responses is held by run 0af1 (host web-1, pid 7, since 2026-01-31T02:00:00Z)",
        "12:e3b0c44298fc1c149afbf4c8996fb924",
        "pip install x @ y",
    ],
)
def test_what_an_operator_needs_stays(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "name",
    [
        *("password", "PGPASSWORD", "password_hash", "secret", "client_secret", "token", "blob_read_write_token"),
        *("token_hash", "api_key", "Authorization", "sentry_dsn", "DATABASE_URL", "cookie"),
    ],
)
@pytest.mark.parametrize(
    "wrap", [lambda item: item, lambda item: {"a": [({"b": item},)]}, MappingProxyType, OrderedDict]
)
def test_what_is_named_a_secret_goes_at_any_depth(name, wrap):
    for value in ("value", 42, ["value"], {"x": "value"}):
        text = json.dumps(redact(wrap({name: value, "kept": "fact"})))
        assert "value" not in text
        assert "42" not in text
        assert "[secret]" in text
        assert "fact" in text


def test_figures_keep_their_kind():
    facts = {"fencing_token": 7, "records": 12, "share": 0.5, "dry_run": False, "remaining": None}
    assert redact(facts) == facts
    assert type(redact(facts)["dry_run"]) is bool


def test_objects_are_looked_into_by_their_text():
    class Person:
        def __repr__(self):
            return "Person(anna@example.com)"

    assert redact(
        [Person(), b"anna@example.com ", PurePosixPath("/u/anna@example.com"), ValueError("anna@example.com")]
    ) == [
        "Person([e-mail])",
        "[e-mail] '",
        "[e-mail]",
        "ValueError: [e-mail]",
    ]


@pytest.mark.parametrize("piece", ["a", "a.", "a://", "%41", "a@", "@", '"', "password", "a=", "(", "\\"])
def test_a_long_value_costs_no_time(piece):
    began = time.process_time()
    redact(piece * (100_000 // len(piece)) + " @ %40")
    assert time.process_time() - began < 2  # of the processor's; quadratic would be minutes
