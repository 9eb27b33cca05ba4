"""The command legal_holds as an operator works it: what it checks before it holds, and what it says."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from scripts.lifecycle.engine import holds, resources
from scripts.lifecycle.jobs.entry_point import main
from scripts.lifecycle.policy.policy_file import parse_policies
from scripts.retention.legal_holds import JOB
from scripts.utils.errors import Misconfigured
from tests.faults.stage import in_background, wait_until
from tests.lifecycle.support import ANNA, BEN, POLICY_TEXT, add_quiz, ago, key_of

TABLE = "public.quiz_responses"
BY = {"operator": "olga", "reason": "lawsuit 12/26"}


@pytest.fixture
def answers(admin):
    """A due row of Anna, and one of Ben."""
    for name, person in {"anna 1": ANNA, "ben 1": BEN}.items():
        add_quiz(admin, name, created=ago(days=2), person=person)
    return admin


@pytest.mark.usefixtures("_settings")
def test_a_list_in_a_narrow_terminal_has_every_id_whole(db, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    person = holds.place(db, person=ANNA, **BY)
    row = holds.place(db, table=TABLE, resource_id=key_of("anna 1"), operator="olga", reason="a long story " * 20)

    assert main(JOB, ["list", "--log-format", "console"]) == 0

    shown = capsys.readouterr().err
    for key in (str(person), str(row), key_of("anna 1")):
        assert key in shown


@pytest.fixture
def command(run_job):
    """A function that runs legal_holds as Olga."""
    return lambda *arguments: run_job(*arguments, "--operator", "olga", job=JOB, as_of=None)


def test_a_list_at_a_terminal_obeys_no_reason(command, answers, capsys):
    reason = "case 7\x1b[2J\x1b]8;;https://evil.example\x1b\\\x9b31m\u202e [link=https://evil.example]x[/]"
    assert command("place", "--table", TABLE, "--reason", reason).code == 0
    main(JOB, ["list", "--log-format", "console", "--operator", "olga"])

    shown = capsys.readouterr().err
    assert not {"\x1b", "\x9b", "\u202e"} & set(shown)
    assert "\\x1b[2J" in shown.replace("\n", "")


@pytest.mark.parametrize("reason", ["asked by olga@example.com", "olga%40example.com", "olga\uff20example.com"])
def test_a_reason_with_an_address_is_refused_and_not_repeated(command, answers, db, reason, capsys):
    with pytest.raises(SystemExit, match="2"):
        command("place", "--table", TABLE, "--reason", reason)

    assert holds.active(db) == []
    assert "example.com" not in capsys.readouterr().err


def holding(*what):
    return ("place", "--table", TABLE, "--reason", "case 7", *what)


def test_a_row_that_is_there_is_held_by_the_command(command, answers, db):
    placed = command(*holding("--id", key_of("anna 1")))

    assert placed.code == 0
    assert [str(hold.id) for hold in holds.active(db)] == [placed.event("hold_placed")["hold"]]


@pytest.mark.parametrize("dry_run", ["false", "true"])
def test_a_row_that_is_not_there_is_refused(command, answers, db, monkeypatch, dry_run):
    monkeypatch.setenv("CLEANUP_DRY_RUN", dry_run)

    refused = command(*holding("--id", key_of("nobody")))

    assert refused.code == 2
    assert refused.closing["error"] == (f"there is no row in {TABLE} whose id is the given id")
    assert holds.active(db) == []


def test_a_key_of_another_type_or_spelling_is_refused(things, db):
    things.execute("CREATE TABLE cases (id uuid PRIMARY KEY)")
    things.execute("INSERT INTO cases VALUES (%s)", (key_of("a"),))
    things.execute("GRANT SELECT ON cases, things TO lifecycle_jobs")

    with pytest.raises(Misconfigured, match="there is no row"):
        holds.place(db, table="public.things", resource_id="not a number", key=("id",), **BY)
    with pytest.raises(Misconfigured, match=f"write it exactly so: {key_of('a')}"):
        holds.place(db, table="public.cases", resource_id=key_of("a").upper(), key=("id",), **BY)

    assert holds.active(db) == []


def test_a_row_that_may_not_be_looked_at_is_held_and_that_is_said(command, answers, db):
    answers.execute("REVOKE ALL ON quiz_responses FROM lifecycle_jobs")

    placed = command(*holding("--id", key_of("nobody")))

    assert placed.code == 0
    assert "SQLSTATE 42501" in placed.event("row_not_checked")["error"]
    assert len(holds.active(db)) == 1


def test_a_row_of_a_locked_table_is_held_and_that_is_said(command, answers, db, database, monkeypatch):
    monkeypatch.setattr(resources, "_LOOK_SECONDS", 0.2)
    other = database.superuser()
    other.execute("BEGIN; LOCK TABLE quiz_responses IN ACCESS EXCLUSIVE MODE")

    placed = command(*holding("--id", key_of("anna 1")))

    assert placed.code == 0
    assert placed.event("row_not_checked")
    assert len(holds.active(db)) == 1


def test_a_row_that_the_batch_in_hand_takes_is_refused(db, answers, database):
    """It is looked for once the gate is closed."""
    batch = database.superuser()
    batch.execute("BEGIN; SELECT ops.gate_shared()")
    placed = in_background(holds.place, db, table=TABLE, resource_id=key_of("ben 1"), key=("id",), **BY)
    wait_until(
        lambda: answers.execute(
            "SELECT pid FROM pg_locks WHERE relation = 'ops.gate'::regclass AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone(),
        what="the hold at the gate",
    )
    batch.execute("DELETE FROM quiz_responses WHERE id = %s", (key_of("ben 1"),))
    batch.execute("COMMIT")

    with pytest.raises(Misconfigured, match="there is no row"):
        placed()


def test_a_table_that_a_policy_reaches_is_known_by_the_dependant_s_key():
    policies = parse_policies(POLICY_TEXT, "here")

    assert resources.key_of(policies, "public.things") == ("id",)
    assert resources.key_of(policies, "public.notes") == ("id",)
    assert resources.key_of(policies, "public.other") is None


def test_a_table_that_no_policy_names_needs_no_hold(command, things):
    refused = command("place", "--table", "public.things", "--reason", "x")

    assert (refused.code, "no policy deletes from public.things" in refused.closing["error"]) == (2, True)


def test_a_dry_run_of_placing_says_what_it_would_hold_and_that_it_holds_nothing(command, answers, db, monkeypatch):
    monkeypatch.setenv("CLEANUP_DRY_RUN", "true")

    said = command(*holding("--id", key_of("anna 1"), "--until", "2099-01-31T00:00:00Z"))

    assert said.code == 0
    event = said.event("hold_would_be_placed")
    assert (event["level"], event["dry_run"]) == ("WARNING", True)
    assert (event["scope"], event["table"], event["row"]) == ("row", TABLE, key_of("anna 1"))
    assert event["until"].startswith("2099-01-31")
    assert event["effect"] == "CLEANUP_DRY_RUN is set: nothing is held"
    assert holds.active(db) == []


def test_a_dry_run_of_releasing_says_that_the_hold_stays(command, db, monkeypatch):
    hold = holds.place(db, person=ANNA, **BY)
    monkeypatch.setenv("CLEANUP_DRY_RUN", "true")

    said = command("release", str(hold))
    unknown = command("release", str(uuid4()))

    assert said.event("hold_would_be_released")["level"] == "WARNING"
    assert [each.id for each in holds.active(db)] == [hold]
    assert (unknown.code, "was released already" in unknown.closing["error"]) == (1, True)


def test_a_list_says_which_holds_end_soon(command, db):
    now = db.now()
    soon = holds.place(db, table=TABLE, expires_at=now + timedelta(days=13), **BY)
    for until in (now + timedelta(days=15), None):
        holds.place(db, table=TABLE, expires_at=until, **BY)

    listed = {line["id"]: line["ends_soon"] for line in command("list").events("hold_in_force")}

    assert (len(listed), [hold for hold, ends in listed.items() if ends]) == (3, [str(soon)])
    assert holds.ending(db) == [], "another one keeps the same for longer"


REFERS = "CREATE TABLE marks (id bigint PRIMARY KEY, answer text REFERENCES quiz_responses ON DELETE CASCADE)"


def mark(answers, statement):
    kind = answers.execute(
        "SELECT format_type(atttypid, -1) FROM pg_attribute"
        " WHERE attrelid = 'quiz_responses'::regclass AND attname = 'id'"
    ).fetchone()[0]
    answers.execute(statement.replace(" answer text", f" answer {kind}"))


def test_a_table_that_refers_to_a_policy_s_table_is_held_although_no_policy_names_it(command, answers, db):
    mark(answers, REFERS)
    answers.execute("INSERT INTO marks VALUES (7, %s)", (key_of("anna 1"),))
    answers.execute("GRANT SELECT ON marks TO lifecycle_jobs")

    whole = command("place", "--table", "public.marks", "--reason", "case 7")
    row = command("place", "--table", "public.marks", "--id", "7", "--reason", "case 7")
    nobody = command("place", "--table", "public.marks", "--id", "8", "--reason", "case 7")

    assert (whole.code, row.code, nobody.code) == (0, 0, 2)
    assert [hold.table_name for hold in holds.active(db)] == ["public.marks", "public.marks"]


def test_a_table_that_refers_to_a_part_of_a_policy_s_table_is_held(command, answers, db):
    answers.execute("CREATE TABLE answers_2020 (PRIMARY KEY (id)) INHERITS (quiz_responses)")
    mark(answers, REFERS.replace("quiz_responses", "answers_2020"))

    assert command("place", "--table", "public.marks", "--reason", "case 7").code == 0


def test_a_hold_on_a_part_of_a_policy_s_table_names_where_it_must_be(command, answers, db):
    answers.execute("CREATE TABLE answers_2020 () INHERITS (quiz_responses)")
    answers.execute("CREATE TABLE everything (n int); CREATE TABLE unrelated (n int)")
    answers.execute("ALTER TABLE quiz_responses ADD n int; ALTER TABLE quiz_responses INHERIT everything")

    part = command("place", "--table", "public.answers_2020", "--reason", "case 7")
    whole = command("place", "--table", "public.everything", "--reason", "case 7")
    unrelated = command("place", "--table", "public.unrelated", "--reason", "case 7")
    missing = command("place", "--table", "public.nowhere", "--reason", "case 7")

    assert {part.code, whole.code, unrelated.code, missing.code} == {2}
    named = "which the policy file names: place the hold on public.quiz_responses"
    assert part.closing["error"] == f"public.answers_2020 is a part of public.quiz_responses, {named}"
    assert whole.closing["error"] == f"public.everything has public.quiz_responses as a part, {named}"
    assert unrelated.closing["error"] == "no policy deletes from public.unrelated; it needs no hold"
    assert "there is no table public.nowhere" in missing.closing["error"]
    assert holds.active(db) == []
