"""A key that may be personal: its row goes like any other, and the audit knows it by a keyed pseudonym alone."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from tests.lifecycle.support import ago, audited, policy

KEY = "a" * 64
ROWS = ["anna@example.com", "ben@example.com", "clh3x2v0k0000qzrmn831i7rn", "0b1e6c7a-0000-4000-8000-000000000001"]
PERSONAL, UUID = ROWS[:3], ROWS[3]
POLICIES = {"counts": policy(table="public.counts", key="mail")}


def named(text):
    return f"k1:{hmac.new(bytes.fromhex(KEY), text.encode(), hashlib.sha256).hexdigest()}"


@pytest.fixture
def counts(admin, monkeypatch):
    """Four rows that are due, one of today; the keys are texts."""
    monkeypatch.setenv("AUDIT_PSEUDONYM_KEY", f"k1:{KEY}")
    admin.execute(
        "CREATE TABLE counts (mail varchar PRIMARY KEY, made_at timestamptz NOT NULL, gone_at timestamptz, note text);"
        " CREATE INDEX ON counts (made_at)"
    )
    admin.cursor().executemany(
        "INSERT INTO counts VALUES (%s, %s, NULL, 'a note')",
        [*((key, ago(days=90)) for key in ROWS), ("today@example.com", ago(hours=1))],
    )
    return admin


def keys_left(admin, where="true"):
    return {key for (key,) in admin.execute(f"SELECT mail FROM counts WHERE {where}")}


def everything_in_ops(admin):
    """Return all that stands in the suite's own tables, as one text."""
    tables = admin.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'ops'").fetchall()
    return " ".join(str(admin.execute(f"SELECT t::text FROM ops.{name} t").fetchall()) for (name,) in tables)


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({}, "false"),
        ({"action": "soft_delete", "soft_delete": {"deleted_at": "gone_at"}}, "gone_at IS NOT NULL"),
        ({"action": "anonymize", "anonymize": {"marker": "gone_at", "columns": {"note": None}}}, "note IS NULL"),
        ({"action": "anonymize", "anonymize": {"marker": None, "columns": {"note": "pseudonym"}}}, "note LIKE 'k1:%'"),
    ],
)
def test_the_audit_has_pseudonyms_and_a_uuid_stays_as_it_is(apply, counts, changes, gone):
    policies = {"counts": POLICIES["counts"] | changes}
    action = policies["counts"]["action"]

    run = apply(policies)

    assert (run.code, run.closing["records_deleted"], run.closing["records_remaining"]) == (0, 4, 0)
    assert audited(counts, "public.counts", action) == sorted([*map(named, PERSONAL), UUID])
    assert keys_left(counts, gone) == (set() if gone == "false" else set(ROWS))
    assert "today@example.com" in keys_left(counts)
    said = everything_in_ops(counts) + str(run.lines)
    assert not any(key in said for key in PERSONAL)


def test_a_dry_run_predicts_it_and_writes_no_key(apply, counts):
    run = apply(POLICIES, "--dry-run")

    assert (run.code, run.closing["records_to_delete"]) == (0, 4)
    assert not any(key in str(run.lines) for key in PERSONAL)
    assert keys_left(counts) == {*ROWS, "today@example.com"}


def test_many_batches_and_a_hold_on_one_key(apply, counts):
    counts.execute(
        "INSERT INTO ops.legal_holds (id, scope, table_name, resource_id, placed_by, reason)"
        " VALUES (gen_random_uuid(), 'row', 'public.counts', 'ben@example.com', 'operator:olga', 'a court asks')"
    )

    run = apply(POLICIES, "--batch-size", "1")

    assert (run.code, run.closing["records_deleted"]) == (0, 3)
    assert keys_left(counts) == {"ben@example.com", "today@example.com"}
    assert named("ben@example.com") not in audited(counts, "public.counts")


def test_without_the_pseudonyms_key_nothing_goes_and_the_setting_is_named(apply, counts, monkeypatch):
    monkeypatch.delenv("AUDIT_PSEUDONYM_KEY")

    for arguments in (["--dry-run"], []):
        run = apply(POLICIES, *arguments)

        assert (run.code, run.closing["stop_reason"]) == (1, "preflight_failed")
        assert "set AUDIT_PSEUDONYM_KEY" in run.closing["error"]
    assert keys_left(counts) == {*ROWS, "today@example.com"}


def test_keys_of_dependants_are_pseudonyms_too(apply, things, monkeypatch):
    monkeypatch.setenv("AUDIT_PSEUDONYM_KEY", f"k1:{KEY}")
    things.execute(
        "CREATE TABLE readers (mail text PRIMARY KEY, thing_id bigint REFERENCES things ON DELETE CASCADE);"
        " CREATE INDEX ON readers (thing_id)"
    )
    things.execute("INSERT INTO things (id, made_at) VALUES (1, %s), (2, %s)", (ago(days=90), ago(hours=1)))
    things.execute(
        "INSERT INTO readers VALUES ('anna@example.com', 1), ('ben@example.com', 1), ('cleo@example.com', 2)"
    )
    dependant = {"table": "public.readers", "column": "thing_id", "action": "delete", "key": "mail"}

    run = apply({"things": policy(dependants=[dependant])})

    assert run.code == 0
    assert audited(things, "public.readers") == sorted(map(named, ["anna@example.com", "ben@example.com"]))
    assert things.execute("SELECT mail FROM readers").fetchall() == [("cleo@example.com",)]


def test_a_row_that_the_database_refuses_is_no_key_in_the_log(apply, counts):
    counts.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF OLD.mail = 'ben@example.com' THEN RAISE EXCEPTION 'no'; END IF; RETURN OLD; END $$;"
        " CREATE TRIGGER refuse BEFORE DELETE ON counts FOR EACH ROW EXECUTE FUNCTION refuse()"
    )

    run = apply(POLICIES)

    assert (run.code, run.closing["records_deleted"]) == (4, 3)
    assert keys_left(counts) == {"ben@example.com", "today@example.com"}
    assert not any(key in str(run.lines) for key in PERSONAL)
