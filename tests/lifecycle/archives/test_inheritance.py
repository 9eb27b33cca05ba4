"""Rows of two inheritance children that have the same key: each is archived, deleted and restored as itself."""

from __future__ import annotations

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.archives.catalogue import entries
from scripts.lifecycle.archives.keys import ArchiveKeys
from scripts.lifecycle.archives.search import rows_of
from scripts.utils.archive_store import store_of
from tests.lifecycle.support import policy


@pytest.fixture
def admin(database):
    """The superuser's connection."""
    return database.superuser()


@pytest.fixture(params=["(PRIMARY KEY (id))", "()"], ids=["children with keys", "children without"])
def flags(request, admin, database, tmp_path, archive_environment):
    """A parent with two children, in a schema whose name needs quotation marks; the flags of its policy."""
    admin.execute(
        'CREATE SCHEMA "My Papers"; CREATE TABLE papers (id bigint PRIMARY KEY, made_at timestamptz NOT NULL,'
        " person text, note text); CREATE INDEX ON papers (made_at);"
        f'CREATE TABLE "My Papers"."the sons" {request.param} INHERITS (papers);'
        f"CREATE TABLE daughters {request.param} INHERITS (papers);"
        'CREATE INDEX ON "My Papers"."the sons" (made_at); CREATE INDEX ON daughters (made_at)'
    )
    rules = policy(
        table="public.papers",
        person="person",
        action="archive_then_delete",
        archive={"personal": ["person", "note"], "keep": "3 years", "rows": 10},
    )
    job = {"schedule": "0 2 1 * *", "budget": "3600 seconds", "lock": "lock:retention:archive_before_delete"}
    document = {"policies": {"papers": rules}, "jobs": {"archive_before_delete": job | {"policies": ["papers"]}}}
    path = tmp_path / "papers.yaml"
    path.write_text(yaml.safe_dump(document))
    migrate.grant(database.superuser_url, path)
    admin.execute(
        'GRANT USAGE ON SCHEMA "My Papers" TO lifecycle_jobs;'
        'GRANT SELECT, INSERT ON papers, "My Papers"."the sons", daughters TO lifecycle_jobs'
    )
    return ("--policy-file", str(path))


def add(admin, table, key, age, note):
    admin.execute(
        f"INSERT INTO {table} VALUES (%s, now() - %s::interval, %s, %s)", (key, age, "anna@example.com", note)
    )


SONS, DAUGHTERS = '"My Papers"."the sons"', "daughters"


def notes(admin):
    return sorted(admin.execute("SELECT tableoid::regclass::text, id, note FROM papers").fetchall())


def test_the_due_row_goes_into_the_archive_and_comes_back_beside_the_one_of_today(run_archives, flags, admin):
    with admin.transaction():  # of one transaction, with one key, at one place of each file
        add(admin, SONS, 1, "90 days", "the son's")
        add(admin, DAUGHTERS, 1, "1 hour", "the daughter's")
    before = notes(admin)

    ended = run_archives(*flags)

    assert (ended.code, ended.closing["records_deleted"]) == (0, 1), ended.closing
    assert notes(admin) == [("daughters", 1, "the daughter's")]
    assert run_archives("verify", *flags).code == 0
    back = run_archives("restore", "--policy", "papers", "--id", "1", *flags)
    assert (back.code, back.event("records_restored")["records_restored"]) == (0, 1), str(back.lines)
    assert notes(admin) == before
    again = run_archives("restore", "--policy", "papers", *flags)
    assert (again.code, again.event("records_restored")["records_present"]) == (0, 1)
    assert notes(admin) == before


def test_two_due_rows_of_one_key_go_together_and_each_comes_back_into_its_child(
    run_archives, flags, admin, db, settings
):
    with admin.transaction():
        add(admin, SONS, 1, "90 days", "the son's")
        add(admin, DAUGHTERS, 1, "90 days", "the daughter's")
        add(admin, "papers", 1, "90 days", "the parent's")
    before = notes(admin)

    ended = run_archives(*flags)

    assert (ended.code, ended.closing["records_deleted"]) == (0, 3), ended.closing
    assert notes(admin) == []
    with db.snapshot() as connection:
        chosen = entries(connection, statuses=["sealed"])
    found = list(rows_of(db, store_of(settings), ArchiveKeys(db, settings), "anna@example.com", chosen))
    assert sorted(row["note"] for row in found) == ["the daughter's", "the parent's", "the son's"]
    assert {name for row in found for name in row} == {"id", "made_at", "person", "note"}
    back = run_archives("restore", "--policy", "papers", *flags)
    assert (back.code, back.event("records_restored")["records_restored"]) == (0, 3), str(back.lines)
    assert notes(admin) == before


def test_a_row_whose_child_is_gone_comes_back_into_the_parent(run_archives, flags, admin):
    add(admin, DAUGHTERS, 1, "90 days", "the daughter's")
    assert run_archives(*flags).code == 0
    admin.execute("DROP TABLE daughters")

    back = run_archives("restore", "--policy", "papers", *flags)

    assert (back.code, notes(admin)) == (0, [("papers", 1, "the daughter's")]), str(back.lines)


def test_into_another_table_each_row_comes(run_archives, flags, admin):
    add(admin, SONS, 1, "90 days", "the son's")
    add(admin, DAUGHTERS, 1, "90 days", "the daughter's")
    assert run_archives(*flags).code == 0
    admin.execute(
        'CREATE TABLE "My Papers"."back again" (LIKE papers); ALTER TABLE "My Papers"."back again" OWNER TO lifecycle_jobs'
    )

    back = run_archives("restore", "--policy", "papers", "--into", '"My Papers"."back again"', *flags)

    assert back.code == 0, str(back.lines)
    rows = admin.execute('SELECT note FROM "My Papers"."back again" ORDER BY 1').fetchall()
    assert rows == [("the daughter's",), ("the son's",)]
