"""A column that a policy names and the role may not read is told before the first row goes: all of them, with lines."""

from __future__ import annotations

import pytest

from backend import migrate
from scripts.lifecycle.health.policy_check import check
from scripts.lifecycle.jobs.entry_point import Job, Kind
from tests.lifecycle.support import add_things, left, policy

NOTES = "CREATE TABLE notes (id bigint PRIMARY KEY, thing bigint REFERENCES things, secret text)"
OF_NOTES = {"table": "public.notes", "column": "thing", "action": "set_null"}


@pytest.fixture
def five(things):
    add_things(things, 1, 5)
    return things


@pytest.fixture
def checking(run_job, tmp_path):
    """A function that checks the policy file, as --check does, and returns what is not well with policy things."""

    def run():
        job = Job("policy_check", check, "Check.", kind=Kind.TAKES_NO_LOCK, events="policy_check")
        done = run_job("--policy-file", str(tmp_path / "policies.yaml"), job=job, as_of=None)
        found = [line for line in done.events("policy_check") if line["check"] == "policies"]
        return [(line["status"], line["message"]) for line in found if line["status"] != "PASS"]

    return run


def line_of(path, text):
    """The line of a file that holds a text, the last one."""
    return max(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def test_a_policy_that_starts_to_name_columns_is_told_by_the_check_until_the_grants_ran(
    apply, five, checking, database, tmp_path
):
    apply({"things": policy()}, "--dry-run")
    assert checking() == []

    new = policy(
        person="person",
        rules={"old": {"anchor": "made_at", "keep": "30 days", "when": {"kind": {"not_in": ["x"]}}}},
    )
    run = apply({"things": new}, grant=False)

    path = tmp_path / "policies.yaml"
    said = (
        "no right to SELECT"
        f" public.things.person for policies.things.person (line {line_of(path, 'person:')}),"
        f" public.things.kind for policies.things.rules.old.when.kind (line {line_of(path, 'kind:')}):"
        " run backend/migrate.py --grants with this policy file"
    )
    assert (run.code, len(left(five))) == (1, 5)
    assert said in run.closing["error"]
    assert ("FAIL", said) in checking()

    migrate.grant(database.superuser_url, path)
    assert checking() == []
    assert apply({"things": new}, grant=False).code == 0


def test_all_that_is_missing_on_all_tables_is_named_at_once(apply, five, checking):
    five.execute(NOTES)
    rules = policy(dependants=[OF_NOTES], person="person")
    apply({"things": rules}, "--dry-run")
    five.execute(
        "REVOKE DELETE, UPDATE, SELECT (person, ctid) ON things FROM lifecycle_jobs;"
        "REVOKE UPDATE (thing), SELECT (id) ON notes FROM lifecycle_jobs"
    )

    said = apply({"things": rules}, grant=False).closing["error"]

    for part in (
        "no right to SELECT public.things.person for policies.things.person",
        "no right to DELETE on public.things, for policies.things.action",
        "no right to UPDATE any column of public.things, without which no row can be locked",
        "no right to SELECT public.notes.id for policies.things.dependants.0",
        "public.notes, for foreign key notes_thing_fkey on public.notes",
    ):
        assert part in said


@pytest.mark.parametrize("column", ["ctid", "tableoid", "xmin"])
def test_a_system_column_without_a_right_is_named(apply, five, column):
    apply({"things": policy()}, "--dry-run")
    five.execute(f"REVOKE SELECT ({column}) ON things FROM lifecycle_jobs")

    run = apply({"things": policy()}, grant=False)

    assert f"no right to SELECT public.things.{column} for policies.things.table" in run.closing["error"]
    assert len(left(five)) == 5


@pytest.mark.parametrize("role", [migrate.ROLE, migrate.READER])
def test_a_dry_run_of_the_reader_tells_what_either_role_lacks(apply, five, database, monkeypatch, role):
    apply({"things": policy()}, "--dry-run")
    monkeypatch.setenv("DATABASE_URL", database.url.replace(migrate.ROLE, migrate.READER))
    assert apply({"things": policy()}, "--dry-run", grant=False).code == 0
    five.execute(f"REVOKE SELECT (made_at) ON things FROM {role}")

    run = apply({"things": policy()}, "--dry-run", grant=False)

    assert "no right to SELECT public.things.made_at for policies.things.rules.old.anchor" in run.closing["error"]


def test_a_right_of_public_is_a_warning_that_names_the_cure(apply, five, checking):
    apply({"things": policy()}, "--dry-run")
    five.execute("REVOKE SELECT ON things FROM lifecycle_jobs; GRANT SELECT ON things TO PUBLIC")

    warned = [message for status, message in checking() if status == "WARN"]

    assert warned == [
        (
            "SELECT on public.things is a right of PUBLIC and not of the role: run backend/migrate.py --grants with this"
            " policy file, then REVOKE it FROM PUBLIC"
        )
    ]
    assert apply({"things": policy()}, grant=False).code == 0


def test_no_statement_of_a_run_with_dependants_reads_another_column(apply, five):
    five.execute(NOTES + "; CREATE INDEX ON notes (thing); INSERT INTO notes VALUES (1, 2, 'x')")
    rules = policy(dependants=[OF_NOTES], person="person")
    for arguments in (("--dry-run",), ("--limit", "2"), ()):
        run = apply({"things": rules}, *arguments)
        assert "42501" not in str(run.lines)
        assert run.code == 0
    assert (left(five), left(five, "notes")) == ([], [1])
    assert five.execute("SELECT thing, secret FROM notes").fetchall() == [(None, "x")]
