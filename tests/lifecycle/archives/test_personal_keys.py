"""Rows whose key may be personal: archived, found again and restored; erased, nobody reads the key any more."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from backend import migrate
from scripts.lifecycle.archives.export import _array, _quoted
from scripts.lifecycle.engine.record_keys import RecordKey
from tests.lifecycle.archives.test_restore import destroy_person_key
from tests.lifecycle.support import audited, policy

KEY = "k1:" + "ab" * 32
UUID = "0b1e6c7a-0000-4000-8000-000000000001"
PERSONAL = ["anna@example.com", "clh3x2v0k0000qzrmn831i7rn", 'odd "\\\t,\n key']
SINGLE = {"key": "mail", "section": ["mail"], "columns": "mail text PRIMARY KEY"}
DOUBLE = {"key": ["mail", "day"], "section": ["mail"], "columns": "mail text, day int, PRIMARY KEY (mail, day)"}
ARCHIVE = {"keep": "3 years", "rows": 2}


@pytest.fixture(params=[SINGLE, DOUBLE], ids=["one column", "two columns"])
def counts(request, admin, database, tmp_path, archive_environment, monkeypatch):
    """Rows that are due and one of today; the flags of a policy that archives them."""
    shape = request.param
    monkeypatch.setenv("AUDIT_PSEUDONYM_KEY", KEY)
    admin.execute(
        f"CREATE TABLE counts ({shape['columns']}, made_at timestamptz NOT NULL, note text);"
        " CREATE INDEX ON counts (made_at)"
    )
    day = ", 7" if shape is DOUBLE else ""
    for key, age in [*((key, "90 days") for key in [*PERSONAL, UUID]), ("today@example.com", "1 hour")]:
        admin.execute(
            f"INSERT INTO counts VALUES (%s{day}, now() - %s::interval, 'a note of ' || md5(%s))", (key, age, key)
        )
    rules = policy(
        table="public.counts",
        key=shape["key"],
        person="mail",
        action="archive_then_delete",
        archive=ARCHIVE | {"personal": shape["section"]},
    )
    path = tmp_path / "counts.yaml"
    lock = {"schedule": "0 2 1 * *", "budget": "3600 seconds", "lock": "lock:retention:archive_before_delete"}
    path.write_text(
        yaml.safe_dump(
            {"policies": {"counts": rules}, "jobs": {"archive_before_delete": lock | {"policies": ["counts"]}}}
        )
    )
    migrate.grant(database.superuser_url, path)
    return ("--policy-file", str(path)), shape


@pytest.fixture
def admin(database):
    """The superuser's connection."""
    return database.superuser()


def named(text):
    return f"k1:{hmac.new(bytes.fromhex('ab' * 32), text.encode(), hashlib.sha256).hexdigest()}"


def everything_in_ops(admin):
    tables = admin.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'ops'").fetchall()
    return " ".join(str(admin.execute(f"SELECT t::text FROM ops.{name} t").fetchall()) for (name,) in tables)


def left(admin):
    return {key for (key,) in admin.execute("SELECT mail FROM counts")}


def test_the_rows_are_archived_and_their_keys_stand_nowhere_in_the_clear(run_archives, counts, admin, folder):
    flags, shape = counts

    ended = run_archives(*flags)

    assert (ended.code, ended.closing["records_deleted"]) == (0, 4), ended.closing
    assert left(admin) == {"today@example.com"}
    said = everything_in_ops(admin) + str(ended.lines)
    said += "".join(path.read_bytes().decode("latin-1") for path in folder.rglob("*.archive"))
    assert not any(key in said for key in PERSONAL)
    names = [key if shape is SINGLE else json.dumps([key, 7], ensure_ascii=False) for key in PERSONAL]
    uuid = UUID if shape is SINGLE else f'["{UUID}", 7]'
    assert audited(admin, "public.counts", "archive_then_delete") == sorted([*map(named, names), uuid])
    assert run_archives("verify", *flags).code == 0


@pytest.mark.parametrize("key", PERSONAL[:2])
def test_one_row_is_found_by_its_key_and_put_back(run_archives, counts, admin, monkeypatch, key):
    flags, shape = counts
    assert run_archives(*flags).code == 0
    typed = key if shape is SINGLE else f'["{key}", 7]'
    monkeypatch.setattr("sys.stdin", io.StringIO(typed + "\n"))

    ended = run_archives("restore", "--policy", "counts", "--id", "-", *flags)

    assert (ended.code, ended.event("records_restored")["records_restored"]) == (0, 1), ended.lines
    assert left(admin) == {key, "today@example.com"}
    assert not any(each in everything_in_ops(admin) + str(ended.lines) for each in PERSONAL)


def test_an_address_as_a_key_is_refused_on_the_command_line(run_archives, counts):
    flags, _ = counts

    ended = run_archives("restore", "--policy", "counts", "--id", "anna@example.com", *flags)

    assert ended.code == 2
    assert "anna" not in str(ended.lines)


def test_all_come_back_as_they_were(run_archives, counts, admin):
    flags, _ = counts
    before = set(admin.execute("SELECT t::text FROM counts t").fetchall())
    assert run_archives(*flags).code == 0

    ended = run_archives("restore", "--policy", "counts", *flags)

    assert ended.code == 0, ended.closing
    assert set(admin.execute("SELECT t::text FROM counts t").fetchall()) == before


@pytest.mark.parametrize("include", [(), ("--include-erased",)])
def test_who_was_erased_comes_back_by_no_flag(run_archives, counts, admin, db, settings, include):
    flags, _ = counts
    assert run_archives(*flags).code == 0
    destroy_person_key(db, settings, b"anna@example.com")

    ended = run_archives("restore", "--policy", "counts", *flags, *include)

    assert (ended.code, ended.event("records_restored")["records_erased"]) == (0, 1), ended.closing
    assert left(admin) == {*PERSONAL[1:], UUID, "today@example.com"}


def test_a_policy_that_leaves_such_a_key_in_the_clear_is_refused(run_archives, counts, admin, tmp_path):
    (_, file), _ = counts
    document = yaml.safe_load(Path(file).read_text())
    admin.execute("ALTER TABLE counts ADD owner text")
    document["policies"]["counts"] |= {"person": "owner", "archive": ARCHIVE | {"personal": ["owner"]}}
    path = tmp_path / "clear.yaml"
    path.write_text(yaml.safe_dump(document))

    ended = run_archives("--policy-file", str(path))

    assert ended.code == 1
    assert "name the key under archive.personal" in str(ended.lines)
    assert len(left(admin)) == 5


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1, max_size=5))
def test_any_text_is_an_element_of_the_array(administrator, keys):
    copied = [key.encode() for key in keys]
    escaped = [
        key.replace(b"\\", b"\\\\").replace(b"\t", b"\\t").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
        for key in copied
    ]
    with administrator.cursor() as cursor:
        assert cursor.execute("SELECT %s::text[]", (_array(_quoted(escaped)),)).fetchone()[0] == keys


@given(st.from_regex(r"[0-9a-fA-F-]{7,9}-[0-9a-f-]{4}-?[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-g]{12}\n?", fullmatch=True))
def test_python_and_sql_agree_on_what_may_be_personal(administrator, text):
    key = RecordKey(["id"], {"id": "text"})
    query = sql.SQL("SELECT {} FROM (SELECT %(text)s::text AS id) t").format(key.nameable("t"))
    assert administrator.execute(query, {"text": text}).fetchone() == (key.is_nameable(text),)
