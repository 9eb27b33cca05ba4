"""Under which rule was this deleted: the answer must be right years later, when the run's record is long gone."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.audit.provenance import PolicyFile
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from tests.inside import run_inside
from tests.lifecycle.support import policy, seal_anew

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "retention" / "explain_deletion.py"
QUIZ = ROOT / "scripts" / "cleanup" / "cleanup_quiz_responses.py"
ENFORCE = ROOT / "scripts" / "retention" / "enforce_retention_policies.py"
KEY = "00000000-0000-4000-8000-00000000000"
PERSON = "anna@example.com"


@pytest.fixture
def call(database, redis_url, capsys, monkeypatch):
    def run(script, *arguments, stdin="", **settings):
        env = {"DATABASE_URL": database.url, "REDIS_URL": redis_url, **settings}
        done = run_inside(script, arguments, env=env, capsys=capsys, monkeypatch=monkeypatch, stdin=stdin)
        assert PERSON not in done.stdout + done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return done.returncode, [line for line in lines if line["event"] == "deletion_explained"], lines

    return run


@pytest.fixture
def deleted(call, database, tmp_path):
    """Two quiz answers, deleted by the real job under two versions of the policy file; returns the closing lines."""
    older = tmp_path / "older.yaml"
    text = DEFAULT_POLICY_FILE.read_text()
    older.write_text(text.replace("data minimisation and storage limitation, GDPR", "as it was THEN, GDPR", 1))
    closings = []
    for number, policy_file in ((1, older), (2, DEFAULT_POLICY_FILE)):
        database.superuser().execute(
            "INSERT INTO quiz_responses (id, email, normalized_email, quiz_data, calorie_target, created_at)"
            " VALUES (%s, %s, %s, '{}', 1, timezone('UTC', now()) - interval '3 days')",
            (f"{KEY}{number}", PERSON, PERSON),
        )
        code, _, lines = call(QUIZ, "--policy-file", str(policy_file))
        assert (code, lines[-1]["records_deleted"]) == (0, 1)
        closings.append(lines[-1])
    return closings


def test_a_record_is_explained_by_the_policy_as_it_was_written_then(call, deleted):
    code, (then,), _ = call(SCRIPT, "--record", f"{KEY}1", "--resource-type", "public.quiz_responses")
    _, (now,), _ = call(SCRIPT, "--record", f"{KEY}2")

    assert code == 0
    assert (then["action"], then["actor"]) == ("delete", "system:cleanup_quiz_responses")
    assert then["reason"] == "retention_policy:quiz_responses/abandoned"
    assert (then["policy"], then["rule"], then["records"]) == ("quiz_responses", "abandoned", 1)
    assert "as it was THEN" in then["legal_basis"]
    assert "as it was THEN" not in now["legal_basis"]
    assert then["policy_text"].startswith("  quiz_responses:\n    description: Quiz answers")
    assert "# The order is still owed" in then["policy_text"], "its comments too"
    assert "meal_plan_pdfs" not in then["policy_text"], "and nothing of its neighbour"
    assert then["policy_text"].endswith("overdue: {warning: 25 hours, critical: 48 hours}"), "what the defaults said"
    assert deleted[0]["correlation_id"] in then["run"]


def test_the_answer_stays_the_same_when_the_runs_record_is_gone(call, deleted, database):
    before = call(SCRIPT, "--record", f"{KEY}1")[1][0]
    database.superuser().execute("DELETE FROM ops.job_runs")
    after = call(SCRIPT, "--record", f"{KEY}1")[1][0]

    for name in ("policy_hash", "policy_text", "legal_basis", "policy_known_by"):
        assert after[name] == before[name]
    assert after["policy_known_by"] == "the sealed audit entry names it"
    assert after["run"] is None


def test_an_entry_from_before_the_hash_stood_in_it_says_how_it_is_known(call, deleted, database):
    admin = database.superuser()
    admin.execute("SET session_replication_role = replica")
    admin.execute("UPDATE ops.audit_batches SET metadata = metadata - 'policy_hash'")
    seal_anew(admin)

    assert call(SCRIPT, "--record", f"{KEY}1")[1][0]["policy_known_by"] == "the run's record names it"
    admin.execute("DELETE FROM ops.job_runs")
    guessed = call(SCRIPT, "--record", f"{KEY}1")[1][0]
    assert guessed["policy_known_by"].startswith("by its time only")
    assert "as it was THEN" in guessed["legal_basis"]


def test_a_run_is_explained_by_its_id_and_by_its_correlation_id(call, deleted):
    (by_log,) = call(SCRIPT, "--run", deleted[0]["correlation_id"])[1]
    (by_id,) = call(SCRIPT, "--run", by_log["run_id"])[1]

    assert by_log["reason"] == by_id["reason"] == "retention_policy:quiz_responses/abandoned"
    assert "as it was THEN" in by_id["policy_text"]


def test_the_whole_file_is_the_one_that_was_hashed(call, deleted, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    code, (answer,), _ = call(SCRIPT, "--record", f"{KEY}1", "--whole-file", str(folder))

    (written,) = folder.iterdir()
    assert code == 0
    assert written.stem == answer["policy_hash"] == hashlib.sha256(written.read_bytes()).hexdigest()


def test_a_policy_file_that_was_altered_is_no_answer(call, deleted, database):
    admin = database.superuser()
    admin.execute("SET session_replication_role = replica; UPDATE ops.policy_versions SET document = document || ' '")

    code, answers, lines = call(SCRIPT, "--record", f"{KEY}1")
    assert (code, answers) == (1, [])
    assert "it was altered" in lines[-1]["error"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (("--record", "anna"), "", "maybe personal"),
        (("--record", "-"), "\n", "standard input is empty"),
        (("--record", "-"), PERSON + "\n", "AUDIT_PSEUDONYM_KEY is not set"),
        (("--run", "yesterday"), "", "neither a run_id nor a correlation_id"),
        (("--run", KEY + "1", "--whole-file", "/nowhere"), "", "not a folder"),
    ],
)
def test_what_cannot_be_asked_is_exit_2(call, arguments, stdin, said):
    code, answers, lines = call(SCRIPT, *arguments, stdin=stdin)
    assert (code, answers) == (2, [])
    assert said in lines[-1]["error"]


def test_a_personal_key_is_found_by_its_pseudonym_and_never_shown(call, database):
    key = {"AUDIT_PSEUDONYM_KEY": "k1:" + "ab" * 32}
    code, _, lines = call(SCRIPT, "--record", "-", stdin="Anna@Example.com\n", **key)
    assert (code, lines[0]["event"]) == (0, "nothing_found")

    from scripts.utils.pseudonyms import pseudonym
    from scripts.utils.settings import Settings

    settings = Settings(DATABASE_URL=database.url, REDIS_URL="redis://127.0.0.1:1", **key)
    database.superuser().execute(
        "SELECT ops.append_audit(gen_random_uuid(), 'operator:olga', 'decide', 'public.email_blacklist',"
        " 'decision:blacklist_disputed/reject', NULL, ARRAY[%s], '{}')",
        (pseudonym(settings, PERSON),),
    )
    (answer,) = call(SCRIPT, "--record", "-", stdin="Anna@Example.com\n", **key)[1]
    assert (answer["actor"], answer["policy"]) == ("operator:olga", None)


def test_what_was_altered_is_not_shown_as_an_answer(call, deleted, database):
    admin = database.superuser()
    admin.execute("SET session_replication_role = replica")
    admin.execute("UPDATE ops.audit_batches SET actor = 'operator:eve' WHERE seq = 1")

    code, answers, lines = call(SCRIPT, "--record", f"{KEY}1")
    assert (code, answers) == (1, [])
    assert "does not verify: batch 1" in lines[-1]["error"]


@pytest.mark.parametrize("metadata", ["null", "[]", "1", "[" * 1000 + "]" * 1000, '{"due_before": {"a": [1]}}'])
def test_metadata_that_is_no_object_of_facts_does_not_break_the_answer(call, deleted, database, metadata):
    """Entries of before the audit checked what it is told."""
    admin = database.superuser()
    admin.execute("SET session_replication_role = replica")
    admin.execute("UPDATE ops.audit_batches SET metadata = %s", (metadata,))
    seal_anew(admin)

    code, (answer,), _ = call(SCRIPT, "--record", f"{KEY}1")
    assert (code, answer["actor"]) == (0, "system:cleanup_quiz_responses")
    assert (answer["recorded_by"], answer["policy_known_by"]) == (None, "the run's record names it")


@pytest.fixture
def counts(call, database, tmp_path):
    """A function that makes a table by SQL, lets a policy of it delete one row, and returns that policy's settings."""
    key = {"AUDIT_PSEUDONYM_KEY": f"k1:{'a' * 64}"}

    def delete(statements, **changes):
        database.superuser().execute(statements)
        job = {"schedule": "0 2 * * *", "budget": "60 seconds", "lock": "lock:retention:all", "policies": ["counts"]}
        document = {
            "policies": {"counts": policy(table="public.counts", **changes)},
            "jobs": {"enforce_retention_policies": job},
        }
        policy_file = tmp_path / "policies.yaml"
        policy_file.write_text(yaml.safe_dump(document))
        migrate.grant(database.superuser_url, policy_file)
        code, _, lines = call(ENFORCE, "--policy-file", str(policy_file), **key)
        assert (code, lines[-1]["records_deleted"]) == (0, 1), lines
        return key

    return delete


def test_a_deletion_by_retention_is_found_again_by_its_personal_key(call, counts):
    key = counts(
        "CREATE TABLE counts (normalized_email varchar PRIMARY KEY, made_at timestamptz);"
        f" CREATE INDEX ON counts (made_at); INSERT INTO counts VALUES ('{PERSON}', now() - interval '2 years')",
        key="normalized_email",
    )

    _, (found,), _ = call(SCRIPT, "--record", "-", stdin=f"{PERSON}\n", **key)

    assert (found["action"], found["policy"], found["period"]) == ("delete", "counts", None)


def test_a_row_that_said_its_own_period_is_explained_by_where_it_said_it(call, counts):
    counts(
        "CREATE TABLE counts (id bigint PRIMARY KEY, made_at timestamptz, keeps integer);"
        " CREATE INDEX ON counts (made_at); INSERT INTO counts VALUES (7, now() - interval '8 days', 7)",
        rules={"old": {"anchor": "made_at", "keep": {"take": "keeps", "unit": "days", "else": "90 days"}}},
    )

    _, (found,), _ = call(SCRIPT, "--record", "7")

    assert found["period"] == "keeps (days), else 90 days"


@pytest.mark.parametrize("document", ["[" * 200_000, "a: 2026-99-99", "policies: {a: *nothing}", "\t- a"])
def test_a_planted_document_that_is_no_policy_file_ends_nothing(document):
    planted = PolicyFile("0" * 64, document, datetime(2026, 1, 1, tzinfo=UTC))
    assert (planted.section("policies", "a"), planted.said_of("policies", "a")) == (None, {})
