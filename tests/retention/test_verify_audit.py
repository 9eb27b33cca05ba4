"""verify_audit as an operator runs it: against the log store's lines, and against the anchor that real runs kept."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from scripts.lifecycle.audit import audit
from scripts.utils.test_fixtures import TEMPLATE
from tests.inside import run_inside

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "retention" / "verify_audit.py"
TOKENS = ROOT / "scripts" / "cleanup" / "cleanup_magic_links.py"


@pytest.fixture
def call(database, redis_url, capsys, monkeypatch):
    """A function that runs a script here: exit code, last line, all lines."""

    def run(script, *arguments, stdin="", **settings):
        env = {"DATABASE_URL": database.url, "REDIS_URL": redis_url} | settings
        done = run_inside(script, arguments, env=env, capsys=capsys, monkeypatch=monkeypatch, stdin=stdin)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return done.returncode, lines[-1] if lines else {}, lines

    return run


@pytest.fixture
def clean(call, database):
    """A function that lets a token expire and the real job delete it; returns the closing line."""

    def run(**settings):
        database.superuser().execute(
            "INSERT INTO magic_link_tokens (id, token_hash, email, normalized_email, created_at, expires_at, generation_ip)"
            " SELECT g::text, encode(sha256(g::text::bytea), 'hex'), 'a@example.com', 'a@example.com',"
            " timezone('UTC', now()) - interval '2 days', timezone('UTC', now()) - interval '1 day', '192.0.2.1'"
            " FROM (SELECT gen_random_uuid() AS g) one"
        )
        code, closing, lines = call(TOKENS, **settings)
        assert (code, closing["records_deleted"]) == (0, 1)
        return closing, lines

    return run


def findings(lines):
    return [line["finding"].split(" (")[0] for line in lines if line["event"] == "audit_finding"]


def test_the_log_stores_lines_are_compared_as_they_are(call, clean):
    closings = [clean()[0] for _ in range(3)]
    log = "\n".join([*map(json.dumps, closings), '{"event": "batch_completed"}', "not a line of ours {", ""])
    log = log.replace("not a line of ours {", "{half a line")

    code, line, _ = call(SCRIPT, "--heads", "-", stdin=log)
    assert (code, line["event"]) == (0, "verify_completed")

    code, _, lines = call(SCRIPT, "--head", closings[0]["audit_head"], "--head", closings[2]["audit_head"])
    assert (code, lines[-2]["heads_compared"], lines[-2]["anchor_compared"]) == (0, 2, False)

    forged = json.dumps(closings[1] | {"audit_head": "2:" + "0" * 64})
    code, line, lines = call(SCRIPT, "--heads", "-", stdin=f"{log}\n{forged}")
    assert (code, findings(lines)) == (1, ["batch 2"])
    assert "was replaced: the log (line 7) has another seal for it" in line["error"]


def test_heads_of_another_database_in_the_same_log_are_told_from_an_attack(call, clean, db):
    closings = [clean()[0] for _ in range(2)]
    assert {closing["audit_database"] for closing in closings} == {db.identity()}
    elsewhere = [each | {"audit_head": f"{9 + number}:" + "0" * 64} for number, each in enumerate(closings)]
    strangers = [json.dumps(each | {"audit_database": "1-staging"}) for each in elsewhere]
    unnamed = {name: value for name, value in closings[0].items() if name != "audit_database"}  # an earlier version's

    log = "\n".join([*strangers, json.dumps(unnamed), json.dumps(closings[1]), closings[1]["audit_head"]])
    code, _, lines = call(SCRIPT, "--heads", "-", stdin=log)
    assert (code, lines[-2]["heads_compared"], lines[-2]["audit_database"]) == (0, 2, db.identity())

    code, line, _ = call(SCRIPT, "--heads", "-", stdin="\n".join(strangers))
    assert (code, "there are heads of 1-staging: nothing was compared" in line["error"]) == (2, True)
    code, line, _ = call(SCRIPT, "--heads", "-", stdin=json.dumps(elsewhere[0]))
    assert (code, "9 are missing" in line["error"]) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (("--head", "3:abc"), "", "not an audit_head"),
        (("--heads", "-"), "{}\n", "not one line has an audit_head"),
        (("--heads", "/nowhere/log"), "", "cannot be read (FileNotFoundError)"),
        (("--heads", "-"), "7:short\n", "the log (line 1): that is not an audit_head"),
        (("--from", "5"), "", "there is no batch 5"),
        (("--from", "1", "--since", "2026-01-01"), "", "give one or the other"),
    ],
)
def test_what_cannot_be_compared_is_exit_2_and_not_intact(call, arguments, stdin, said):
    code, line, lines = call(SCRIPT, *arguments, stdin=stdin)

    assert code == 2
    assert said in line["error"]
    assert not [each for each in lines if each["event"] == "audit_intact"]


def test_every_run_keeps_its_head_in_the_anchor_once_and_it_is_compared(call, clean, tmp_path):
    place = tmp_path / "anchor"
    place.mkdir()
    anchor = {"AUDIT_ANCHOR_URL": place.as_uri()}
    heads = [clean(**anchor)[0]["audit_head"] for _ in range(2)]
    written = sorted(place.rglob("*.json"))
    before = [path.read_bytes() for path in written]

    assert call(TOKENS, **anchor)[0] == 0  # nothing to do: the same head
    assert call(TOKENS, "--dry-run", **anchor)[0] == 0

    assert [path.read_bytes() for path in sorted(place.rglob("*.json"))] == before
    documents = [json.loads(text) for text in before]
    assert [each["audit_head"] for each in documents] == heads
    assert {each["script"] for each in documents} == {"cleanup_magic_links"}
    code, _, lines = call(SCRIPT, **anchor)
    assert (code, lines[-2]["heads_compared"], lines[-2]["anchor_compared"]) == (0, 2, True)


def test_a_database_set_back_is_intact_in_itself_and_found_by_the_anchor(call, clean, database, tmp_path):
    anchor = {"AUDIT_ANCHOR_URL": tmp_path.as_uri()}
    for _ in range(3):
        clean(**anchor)
    admin = database.superuser()
    admin.execute("SET session_replication_role = replica; DELETE FROM ops.audit_batches WHERE seq > 1")
    admin.execute("UPDATE ops.audit_head SET (seq, seal) = (SELECT seq, seal FROM ops.audit_batches)")

    assert call(SCRIPT)[0] == 0, "the chain by itself cannot know"
    code, line, lines = call(SCRIPT, **anchor)
    assert (code, findings(lines)) == (1, ["batches 2 to 3 are missing: the anchor has a head of them"])
    assert line["event"] == "verify_failed"

    # And it stays found once the chain has grown beyond that point again.
    for _ in range(2):
        clean()
    assert findings(call(SCRIPT, **anchor)[2]) == ["batch 2", "batch 3"]


def test_an_anchor_that_is_lost_fails_no_job_but_the_verification_that_was_to_compare_with_it(call, clean, tmp_path):
    lost = {"AUDIT_ANCHOR_URL": (tmp_path / "not mounted").as_uri()}

    closing, lines = clean(**lost)
    assert closing["exit_code"] == 0
    (warning,) = [line for line in lines if line["event"] == "audit_head_not_kept"]
    assert (warning["level"], warning["audit_head"]) == ("WARNING", closing["audit_head"])
    assert "AUDIT_ANCHOR_URL" in warning["error"]
    assert lines[-1] == closing

    code, line, lines = call(SCRIPT, **lost)
    assert code == 1
    assert "AUDIT_ANCHOR_URL" in line["error"]
    assert not [each for each in lines if each["event"] == "audit_intact"]


def test_an_empty_anchor_is_no_comparison(call, clean, tmp_path):
    clean()

    code, line, lines = call(SCRIPT, AUDIT_ANCHOR_URL=tmp_path.as_uri())
    assert (code, line["event"]) == (2, "verify_failed")
    assert "nothing was compared" in line["error"]
    assert not [each for each in lines if each["event"] == "audit_intact"]


def test_another_database_in_the_same_place_is_no_attack_and_no_comparison(call, clean, new_database, tmp_path):
    anchor = {"AUDIT_ANCHOR_URL": tmp_path.as_uri()}
    for _ in range(2):
        clean(**anchor)
    other = new_database(TEMPLATE)

    code, line, _ = call(SCRIPT, **anchor, DATABASE_URL=other.url)
    assert code == 2
    assert "there are heads of" in line["error"]
    assert call(SCRIPT, **anchor)[0] == 0, "the first database's own heads are compared as before"


def test_a_bucket_is_an_anchor_too(call, clean, bucket):
    anchor = bucket.settings() | {"AUDIT_ANCHOR_URL": bucket.settings()["ARCHIVE_URL"]}
    clean(**anchor)

    code, _, lines = call(SCRIPT, **anchor)
    assert (code, lines[-2]["heads_compared"]) == (0, 1)


def test_the_audit_itself_names_the_policy_file(clean, database):
    clean()

    (known,) = database.superuser().execute("SELECT metadata ->> 'policy_hash' FROM ops.audit_batches").fetchone()
    assert database.superuser().execute(
        "SELECT count(*) FROM ops.policy_versions WHERE hash = %s", (known,)
    ).fetchone() == (1,)


def test_one_that_was_altered_is_named_by_the_command(call, clean, database):
    clean()
    database.superuser().execute("SET session_replication_role = replica; UPDATE ops.audit_batches SET reason = 'x'")

    code, line, lines = call(SCRIPT)
    assert (code, findings(lines)) == (1, ["batch 1"])
    assert audit.Finding("altered", 1, "x").kind in line["error"]


HOLD = "id, scope, table_name, resource_id, person, reason, placed_by, placed_at, expires_at"
REPLACED = {
    "a function": (
        "CREATE OR REPLACE FUNCTION ops.gate_shared() RETURNS void LANGUAGE sql AS ''",
        "function ops.gate_shared() was replaced",
    ),
    "its settings": ("ALTER FUNCTION ops.append_audit RESET search_path", "function ops.append_audit("),
    "a view": (
        f"CREATE OR REPLACE VIEW ops.holds_in_force AS SELECT {HOLD} FROM ops.legal_holds WHERE false",
        "view ops.holds_in_force was replaced",
    ),
    "a trigger turned off": (
        "ALTER TABLE ops.audit_batches DISABLE TRIGGER audit_batches_append_only",
        "trigger audit_batches_append_only on ops.audit_batches was replaced",
    ),
    "a trigger dropped": (
        "DROP TRIGGER legal_holds_audited ON ops.legal_holds",
        "trigger legal_holds_audited on ops.legal_holds was removed",
    ),
    "a rule": (
        "CREATE RULE nothing AS ON INSERT TO ops.legal_holds DO INSTEAD NOTHING",
        "rule nothing on ops.legal_holds was added",
    ),
    "an overload": (
        "CREATE FUNCTION ops.gate_shared(int) RETURNS void LANGUAGE sql AS ''",
        "function ops.gate_shared(integer) was added",
    ),
}


@pytest.mark.parametrize("what", REPLACED)
def test_what_was_replaced_in_the_schema_is_named(call, clean, database, what):
    clean()
    statement, told = REPLACED[what]
    database.superuser().execute(statement)

    code, line, lines = call(SCRIPT)

    assert code == 1
    assert any(each["finding"].startswith(told) for each in lines if each["event"] == "definition_finding")
    assert "1 definitions are not those of the migrations" in line["error"]


def test_the_digest_of_the_definitions_is_the_same_in_each_intact_run(call, clean, database):
    clean()
    digests = [call(SCRIPT)[2][-2]["definitions"] for _ in range(2)]
    other = database.superuser()
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        other.execute("UPDATE ops.definitions SET objects = '{}'")

    assert digests[0] == digests[1]
    assert len(digests[0]) == 64
