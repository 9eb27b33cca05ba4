"""The policy file is read once, as it is written, and cannot be changed afterwards."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from pydantic import ValidationError

from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE, load_policies, parse_policies
from scripts.utils.errors import Misconfigured
from tests.lifecycle.support import AS_OF
from tests.lifecycle.support import POLICY_TEXT as TEXT


def parse(text):
    return parse_policies(text, "file")


def test_a_file_that_is_missing_binary_or_a_folder_is_named(tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00policies")
    for path, why in (
        (binary, ", line 1: cannot be read (UnicodeDecodeError): save the file as UTF-8"),
        (tmp_path, ": cannot be read (IsADirectoryError)"),
        (tmp_path / "none", ": cannot be read (FileNotFoundError)"),
    ):
        with pytest.raises(Misconfigured) as refused:
            load_policies(path)
        assert str(refused.value) == f"policy file {path}{why}"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_hash_is_that_of_the_files_bytes(tmp_path, newline):
    path = tmp_path / "policies.yaml"
    path.write_bytes(TEXT.replace("\n", newline).encode())

    loaded = load_policies(path)

    assert loaded.hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.document.encode() == path.read_bytes()


def test_a_right_file_is_read_as_it_is_written():
    loaded = parse(TEXT)

    things = loaded.policies["things"]
    assert (things.name, things.table, things.reason("old")) == (
        "things",
        "public.things",
        "retention_policy:things/old",
    )
    assert things.rules["old"].keep.before(AS_OF) == AS_OF - timedelta(days=30)
    assert things.rules["old"].when["kind"].values == ("red",)
    assert (things.dependants[0].key, things.batch.statement_timeout) == (("id",), timedelta(minutes=1))
    assert loaded.jobs["cleanup_things"].lock == "lock:cleanup:things"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("true", "true"),
        ("False", "false"),
        ("'no'", "no"),
        ("'010'", "010"),
        ("-7", "-7"),
        ("{in: ['on', 1]}", ("on", "1")),
    ],
)
def test_values_are_compared_as_they_are_written(written, meant):
    condition = parse(TEXT.replace("{kind: red}", f"{{kind: {written}}}")).policies["things"].rules["old"].when["kind"]

    assert condition.values == (meant if isinstance(meant, tuple) else (meant,))


def test_nothing_can_be_changed_after_reading():
    loaded = parse(TEXT)

    with pytest.raises(ValidationError):
        loaded.policies["things"].max_rows = 1
    with pytest.raises(ValidationError):
        loaded.policies["things"].rules["old"].anchor = "x"
    with pytest.raises(AttributeError):
        loaded.hash = "x"


def test_the_default_file_keeps_the_promise():
    quiz = load_policies(DEFAULT_POLICY_FILE).policies["quiz_responses"]

    assert {name: (str(rule.anchor), rule.keep.text) for name, rule in quiz.rules.items()} == {
        "delivered": ("pdf_delivered_at", "24 hours"),
        "sent": ("public.meal_plans.email_sent_at of the same payment_id", "24 hours"),
        "abandoned": ("created_at", "24 hours"),
    }
    assert quiz.exceptions["undelivered"].queue.item_type == "quiz_undelivered"


def test_a_wrong_file_ends_a_run_with_two_and_touches_nothing(run_job, admin, redis_client, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(TEXT.replace("30 days", "soon"))

    run = run_job("--policy-file", str(path))

    assert run.code == 2
    assert "policies.things.rules.old.keep (line 10, column 55): is not a period" in run.closing["error"]
    assert admin.execute("SELECT count(*) FROM ops.job_runs").fetchone() == (0,)
    assert redis_client.keys() == []
