"""Rows whose blobs go: keys that may be personal, and rows of two inheritance children that have the same key."""

from __future__ import annotations

import hashlib
import hmac

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE

KEY = "ab" * 32
PERSONAL = ["anna@example.com", "clh3x2v0k0000qzrmn831i7rn"]


def named(text):
    return f"k1:{hmac.new(bytes.fromhex(KEY), text.encode(), hashlib.sha256).hexdigest()}"


@pytest.fixture
def admin(database):
    """The superuser's connection."""
    return database.superuser()


@pytest.fixture
def files(admin, database, blobs, run_pdfs, tmp_path):
    """A function that makes a table of files by statements, and returns the one that runs the job on it."""

    def make(*statements, person=None):
        for statement in statements:
            admin.execute(statement)
        document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
        (name,) = document["jobs"]["cleanup_pdfs"]["policies"]
        rules = document["policies"][name]
        rules |= {
            "table": "public.files",
            "key": "id",
            "person": person,
            "rules": {"old": {"anchor": "made_at", "keep": "30 days"}},
            "exceptions": {},
            "decisions": {},
        }
        rules["blob"] |= {"column": "blob", "deleted_at": "gone_at"}
        document["policies"] = {name: rules}
        document["jobs"] = {"cleanup_pdfs": document["jobs"]["cleanup_pdfs"]}
        document.pop("erasure", None)
        path = tmp_path / "files.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        migrate.grant(database.superuser_url, path)
        prefix = rules["blob"].get("prefix", "")
        return prefix, lambda *flags: run_pdfs("--policy-file", path, *flags, AUDIT_PSEUDONYM_KEY=f"k1:{KEY}")

    return make


COLUMNS = "id {kind}, made_at timestamptz NOT NULL, blob text, gone_at timestamptz"
TABLE = (
    "CREATE TABLE files (" + COLUMNS.format(kind="text PRIMARY KEY") + ")",
    "CREATE INDEX ON files (made_at); CREATE INDEX ON files (ops.blob_key(blob))",
)


def put(admin, blobs, prefix, table, key, age, name):
    admin.execute(f"INSERT INTO {table} VALUES (%s, now() - %s::interval, %s)", (key, age, prefix + name))
    blobs.put(prefix + name, b"%PDF-1.7", overwrite=True)


def audited(admin):
    return sorted(
        key for (key,) in admin.execute("SELECT resource_id FROM ops.audit_log WHERE action = 'delete_blob'").fetchall()
    )


def in_ops(admin):
    tables = admin.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'ops'").fetchall()
    return " ".join(str(admin.execute(f"SELECT t::text FROM ops.{name} t").fetchall()) for (name,) in tables)


def test_blobs_of_rows_with_personal_keys_go_and_only_pseudonyms_stay(files, admin, blobs):
    prefix, run = files(*TABLE)
    for number, key in enumerate([*PERSONAL, "today@example.com"]):
        put(admin, blobs, prefix, "files", key, "1 hour" if "today" in key else "90 days", f"{number}.pdf")

    ended = run()

    assert ended.code == 0, ended.closing
    assert [blobs.get(f"{prefix}{number}.pdf") is None for number in range(3)] == [True, True, False]
    assert audited(admin) == sorted(map(named, PERSONAL))
    said = in_ops(admin) + str(ended.lines)
    assert not any(key in said for key in PERSONAL)


def test_an_intent_that_is_held_or_cancelled_forgets_the_key_too(files, admin, blobs):
    prefix, run = files(*TABLE)
    put(admin, blobs, prefix, "files", PERSONAL[0], "90 days", "a.pdf")
    put(admin, blobs, prefix, "files", PERSONAL[1], "90 days", "b.pdf")
    admin.execute(
        "CREATE FUNCTION hurry() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " UPDATE public.files SET made_at = now() WHERE id = NEW.resource_id; RETURN NULL; END $$;"
        " ALTER FUNCTION hurry() SECURITY DEFINER;"
        " CREATE TRIGGER hurry AFTER INSERT ON ops.blob_deletions FOR EACH ROW EXECUTE FUNCTION hurry()"
    )

    run()

    closed = admin.execute("SELECT status, resource_id FROM ops.blob_deletions ORDER BY 2").fetchall()
    assert closed == sorted(("cancelled", named(key)) for key in PERSONAL)
    assert not any(key in in_ops(admin) for key in PERSONAL)
    assert blobs.get(prefix + "a.pdf") is not None


CHILDREN = (
    "CREATE TABLE files (" + COLUMNS.format(kind="bigint PRIMARY KEY") + ")",
    "CREATE TABLE sons (PRIMARY KEY (id)) INHERITS (files); CREATE TABLE daughters (PRIMARY KEY (id)) INHERITS (files)",
    "CREATE INDEX ON files (made_at); CREATE INDEX ON sons (made_at); CREATE INDEX ON daughters (made_at)",
)


def blobs_of(admin, table):
    return [name for (name,) in admin.execute(f"SELECT blob FROM {table} ORDER BY id").fetchall()]


def test_two_due_rows_of_one_key_both_go_in_one_run(files, admin, blobs):
    prefix, run = files(*CHILDREN)
    put(admin, blobs, prefix, "sons", 1, "90 days", "son.pdf")
    put(admin, blobs, prefix, "daughters", 1, "90 days", "daughter.pdf")

    ended = run()

    assert (ended.code, ended.closing["records_deleted"]) == (0, 2), ended.closing
    assert (blobs_of(admin, "sons"), blobs_of(admin, "daughters")) == ([""], [""])
    assert blobs.get(prefix + "son.pdf") is None
    assert blobs.get(prefix + "daughter.pdf") is None
    assert audited(admin) == ["1", "1"]


def test_the_row_of_today_keeps_its_blob_and_is_not_touched(files, admin, blobs):
    prefix, run = files(*CHILDREN)
    put(admin, blobs, prefix, "sons", 1, "90 days", "son.pdf")
    put(admin, blobs, prefix, "daughters", 1, "1 hour", "daughter.pdf")

    ended = run()

    assert (ended.code, ended.closing["records_deleted"]) == (0, 1), ended.closing
    assert (blobs_of(admin, "sons"), blobs_of(admin, "daughters")) == ([""], [prefix + "daughter.pdf"])
    assert blobs.get(prefix + "daughter.pdf") is not None


def test_a_blob_that_both_rows_name_stays_while_one_is_of_today(files, admin, blobs):
    prefix, run = files(*CHILDREN)
    put(admin, blobs, prefix, "sons", 1, "90 days", "both.pdf")
    put(admin, blobs, prefix, "daughters", 1, "1 hour", "both.pdf")
    put(admin, blobs, prefix, "sons", 2, "90 days", "son.pdf")
    put(admin, blobs, prefix, "daughters", 2, "90 days", "daughter.pdf")

    ended = run()

    assert ended.closing["records_deleted"] == 2, ended.closing
    assert blobs.get(prefix + "both.pdf") is not None
    assert (blobs_of(admin, "sons"), blobs_of(admin, "daughters")) == ([prefix + "both.pdf", ""],) * 2


def test_one_key_and_one_blob_in_both_children_go_when_both_are_due(files, admin, blobs):
    prefix, run = files(*CHILDREN)
    put(admin, blobs, prefix, "sons", 1, "90 days", "both.pdf")
    put(admin, blobs, prefix, "daughters", 1, "90 days", "both.pdf")

    ended = run()

    assert (ended.code, ended.closing["records_deleted"]) == (0, 2), ended.closing
    assert blobs.get(prefix + "both.pdf") is None
    assert (blobs_of(admin, "sons"), blobs_of(admin, "daughters")) == ([""], [""])


def test_a_row_that_stays_for_its_blob_does_not_keep_the_other_of_its_key(files, admin, blobs):
    prefix, run = files(*CHILDREN)
    put(admin, blobs, prefix, "sons", 1, "90 days", "shared.pdf")
    put(admin, blobs, prefix, "daughters", 1, "90 days", "own.pdf")
    put(admin, blobs, prefix, "daughters", 7, "1 hour", "shared.pdf")

    ended = run()

    assert ended.closing["records_deleted"] == 1, ended.closing
    assert blobs.get(prefix + "own.pdf") is None
    assert blobs.get(prefix + "shared.pdf") is not None
