"""The stop switch as an operator works it: what it says, what it keeps, and what it leaves alone."""

from __future__ import annotations

import pytest

from scripts.cleanup.stop_switch import JOB
from scripts.lifecycle.jobs import stop_switch
from scripts.lifecycle.jobs.entry_point import main
from scripts.utils import db_utils
from tests.faults.stage import in_background
from tests.lifecycle.support import add_quiz, ago, quiz_left

QUIZ = "cleanup_quiz_responses"
WHICH = {"one": (["--job", QUIZ], QUIZ), "all": (["--all"], "*")}
each_which = pytest.mark.parametrize(("flags", "named"), WHICH.values(), ids=WHICH)


@pytest.fixture
def command(run_job):
    """A function that runs the command as Olga."""

    def run(*arguments):
        return run_job(*arguments, "--operator", "olga", job=JOB, as_of=None)

    return run


@pytest.fixture
def stop(command):
    return lambda *which: command("stop", *(which or ("--job", QUIZ)), "--reason", "restore under way")


@pytest.fixture
def due(admin):
    add_quiz(admin, "due", created=ago(days=2))
    return admin


def switches(admin):
    return admin.execute("SELECT job, stopped_by, reason FROM ops.stop_switches ORDER BY job").fetchall()


def entries(admin):
    return admin.execute(
        "SELECT actor, action, resource_type, resource_id, reason, metadata - 'session_user' FROM ops.audit_log ORDER BY seq"
    ).fetchall()


def test_a_reason_with_an_address_is_refused(command, admin):
    with pytest.raises(SystemExit, match="2"):
        command("stop", "--job", QUIZ, "--reason", "asked by olga@example.com")
    assert switches(admin) == []


@each_which
@pytest.mark.pooled
def test_a_stopped_job_is_refused_and_after_go_it_runs(command, stop, run_job, due, flags, named):
    stopped = stop(*flags)

    assert (stopped.code, stopped.closing["event"]) == (0, "stop_switch_completed")
    event = stopped.event("stop_switch_turned_on")
    assert (event["job"], event["stopped_by"], event["reason"]) == (named, "olga", "restore under way")
    assert switches(due) == [(named, "olga", "restore under way")]
    refused = run_job()
    assert (refused.code, refused.closing["stop_reason"]) == (75, "stop_switch")
    assert "(by olga: restore under way)" in refused.closing["error"]
    assert run_job("--dry-run").code == 0
    assert quiz_left(due) == {"due"}

    assert command("go", *flags).event("stop_switch_turned_off")["job"] == named
    assert switches(due) == []
    assert run_job().closing["records_deleted"] == 1


@each_which
def test_both_are_audited_under_the_operator_with_a_code_and_without_the_reason(command, stop, admin, flags, named):
    stop(*flags)
    command("go", *flags)

    assert entries(admin) == [
        ("operator:olga", "stop_switch_on", "ops.stop_switches", named, "stop_switch", {}),
        ("operator:olga", "stop_switch_off", "ops.stop_switches", named, "stop_switch", {}),
    ]


def test_stopping_twice_changes_nothing_and_says_since_when_and_by_whom(stop, run_job, admin):
    first = stop().event("stop_switch_turned_on")

    again = run_job("stop", "--job", QUIZ, "--reason", "another", "--operator", "otto", job=JOB, as_of=None)

    assert again.code == 0
    event = again.event("stop_switch_already_on")
    assert {key: event[key] for key in ("job", "stopped_by", "reason", "stopped_at")} == {
        key: first[key] for key in ("job", "stopped_by", "reason", "stopped_at")
    }
    assert switches(admin) == [(QUIZ, "olga", "restore under way")]
    assert len(entries(admin)) == 1


@each_which
def test_go_where_nothing_is_stopped_says_so(command, admin, flags, named):
    gone = command("go", *flags)

    assert gone.code == 0
    assert gone.event("stop_switch_was_off")["job"] == named
    assert entries(admin) == []


@pytest.mark.parametrize("verb", [("stop", "--reason", "x"), ("go",)], ids=["stop", "go"])
@pytest.mark.parametrize("name", ["cleanup_quiz_response", ""])
def test_a_job_that_the_policy_file_does_not_name_is_refused(command, admin, verb, name):
    run = command(*verb, "--job", name)

    assert (run.code, run.closing["event"]) == (2, "stop_switch_failed")
    assert f"--job {name}: the policy file has no such job; it has " in run.closing["error"]
    assert QUIZ in run.closing["error"]
    assert (switches(admin), entries(admin)) == ([], [])


def test_the_switch_of_a_job_that_is_no_longer_named_comes_off(command, admin):
    admin.execute("INSERT INTO ops.stop_switches VALUES ('cleanup_old', 'ann', 'test')")

    assert command("go", "--job", "cleanup_old").code == 0
    assert switches(admin) == []


def test_another_job_s_switch_leaves_this_one_alone(run_job, due):
    due.execute("INSERT INTO ops.stop_switches VALUES ('cleanup_other', 'ann', 'test')")

    assert run_job().code == 0
    assert quiz_left(due) == set()


def test_go_says_which_switch_still_stops_the_job(command, stop, admin):
    stop()
    stop("--all")

    one = command("go", "--job", QUIZ)
    assert one.event("stop_switch_still_on")["job"] == "*"
    assert switches(admin) == [("*", "olga", "restore under way")]

    stop("--job", QUIZ)
    every = command("go", "--all")
    assert every.event("stop_switch_still_on")["job"] == QUIZ


def test_an_empty_reason_is_refused(command, admin):
    run = command("stop", "--all", "--reason", " ")

    assert run.code == 2
    assert "--reason is empty" in run.closing["error"]
    assert switches(admin) == []


@pytest.mark.parametrize("verb", ["stop", "go"])
def test_a_dry_run_says_loudly_that_it_switches_nothing(command, stop, admin, monkeypatch, verb):
    if verb == "go":
        stop()
    before = (switches(admin), entries(admin))
    monkeypatch.setenv("CLEANUP_DRY_RUN", "true")

    run = command(verb, "--job", QUIZ, *(["--reason", "x"] if verb == "stop" else []))

    (event,) = [line for line in run.lines if line["level"] == "WARNING"]
    assert (event["event"], event["dry_run"]) == (
        f"stop_switch_would_be_turned_{'on' if verb == 'stop' else 'off'}",
        True,
    )
    assert (run.code, (switches(admin), entries(admin))) == (0, before)


def open_record(admin, script, host):
    admin.execute("INSERT INTO ops.policy_versions VALUES (repeat('0', 64), '', now(), 'tests') ON CONFLICT DO NOTHING")
    admin.execute(
        "INSERT INTO ops.job_runs (id, script, policy, correlation_id, cutoff_at, policy_hash, fencing_token, host, pid,"
        " version) VALUES (gen_random_uuid(), %s, 'p', 'abc', now(), repeat('0', 64), 1, %s, 7, 'v')",
        (script, host),
    )


def test_status_shows_each_switch_and_what_still_runs_under_it(command, stop, admin):
    assert command("status").event("no_stop_switch_is_on")["running"] == []
    open_record(admin, QUIZ, "here")
    open_record(admin, "cleanup_other", "there")
    assert len(command("status").event("no_stop_switch_is_on")["running"]) == 2

    stop()
    stop("--all")
    status = command("status")

    assert status.code == 0
    one, every = status.events("stop_switch_is_on")
    assert (one["job"], one["stopped_by"], one["reason"]) == (QUIZ, "olga", "restore under way")
    assert one["stopped_at"]
    assert [(run["script"], run["host"], run["pid"], run["correlation_id"]) for run in one["running"]] == [
        (QUIZ, "here", 7, "abc")
    ]
    assert [run["host"] for run in every["running"]] == ["here", "there"]


def test_status_at_a_terminal_is_a_table(stop, admin, capsys):
    open_record(admin, QUIZ, "a-host-with-a-long-name.oregon.example.com")
    stop("--all")

    assert main(JOB, ["status", "--log-format", "console"]) == 0

    shown = capsys.readouterr().err
    for words in ("all jobs", "olga", "restore", "a-host-with-a-long-name.oregon.example.com, pid 7"):
        assert words in shown


def test_a_gate_that_stays_closed_switches_nothing_and_says_so(command, admin, database, monkeypatch):
    monkeypatch.setattr(db_utils, "GATE_SECONDS", 0.3)
    other = database.superuser()
    other.execute("BEGIN; SELECT ops.gate_shared()")

    run = command("stop", "--all", "--reason", "x")

    assert run.code == 1
    assert "the gate could not be closed" in run.closing["error"]
    assert (switches(admin), entries(admin)) == ([], [])


def test_two_who_stop_at_once_leave_one_switch_and_one_entry(admin, db, database):
    other = database.superuser()
    other.execute("BEGIN; SELECT ops.gate_shared()")
    both = [in_background(stop_switch.turn_on, db, "*", operator=who, reason="x") for who in ("ann", "ben")]
    other.execute("COMMIT")

    assert sorted(is_new for _, is_new in (each() for each in both)) == [False, True]
    assert len(switches(admin)) == len(entries(admin)) == 1
