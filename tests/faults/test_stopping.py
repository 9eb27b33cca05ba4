"""The stop switch and the time budget: seen before the start and between batches, and the next run carries on."""

import os
import signal

import pytest

from scripts.lifecycle.engine import policy_run
from scripts.lifecycle.engine.survey import survey
from tests.faults.stage import LOCK, NAME, STOP_SWITCH, in_background, wait_until

SWITCH = "INSERT INTO ops.stop_switches (job, stopped_by, reason) VALUES (%s, 'ann', 'restore under way')"


@pytest.mark.parametrize(("job", "named"), [(NAME, NAME), ("*", "all jobs")])
def test_a_switch_that_is_on_keeps_the_job_from_starting(start, quiz, redis_client, job, named):
    quiz.fill(40)
    quiz.link.execute(SWITCH, (job,))
    closing = start().finish(75)
    assert closing["event"] == "cleanup_not_run"
    assert closing["stop_reason"] == "stop_switch"
    assert closing["error"].startswith(f"the stop switch for {named} is on since 2")
    assert closing["error"].endswith("Z (by ann: restore under way)")
    assert quiz.runs() == []
    assert redis_client.get(LOCK) is None
    quiz.balance(remaining=40)


def test_another_jobs_switch_is_not_ours(start, quiz):
    quiz.fill(40)
    quiz.link.execute(SWITCH, ("cleanup_pdfs",))
    start().finish(0)
    quiz.balance(remaining=0)


@pytest.mark.parametrize("job", [NAME, "*"])
def test_a_switch_set_in_mid_run_stops_it_after_its_batch(start, quiz, redis_client, job):
    quiz.fill(40)
    quiz.freeze_at(12)
    running = start()
    quiz.wait_frozen()
    switched = in_background(quiz_switch, quiz, job)
    wait_until(lambda: quiz.waiting("gate"), what="the switch at the gate")
    quiz.thaw()
    switched()
    closing = running.finish(3)
    assert closing["event"] == "cleanup_stopped"
    assert (closing["stop_reason"], closing["records_deleted"]) == ("stop_switch", 15)
    assert closing["error"] == "the stop switch was turned on"
    (run,) = quiz.runs()
    assert (run["status"], run["stop_reason"], run["exit_code"]) == ("partial", "stop_switch", 3)
    assert redis_client.get(LOCK) is None
    quiz.balance(remaining=25)

    quiz.link.execute("DELETE FROM ops.stop_switches")
    start().finish(0)
    quiz.balance(remaining=0)


@pytest.mark.parametrize("which", [("--job", NAME), ("--all",)], ids=["one", "all"])
def test_the_command_returns_when_no_batch_commits_any_more(start, quiz, which):
    quiz.fill(40)
    quiz.freeze_at(12)
    running = start()
    quiz.wait_frozen()
    told = ("--operator", "ann", "--reason", "restore under way")
    stop = start("stop", *which, *told, script=STOP_SWITCH)
    wait_until(lambda: quiz.waiting("gate"), what="the switch at the gate")
    assert stop.process.poll() is None, "it returned while a batch was under way"
    quiz.thaw()
    assert stop.finish(0)["event"] == "stop_switch_completed"
    standing = quiz.present()
    assert len(standing & quiz.due) == 25

    closing = running.finish(3)
    assert (closing["stop_reason"], closing["records_deleted"]) == ("stop_switch", 15)
    assert quiz.present() == standing
    assert start().finish(75)["stop_reason"] == "stop_switch"

    start("go", *which, "--operator", "ann", script=STOP_SWITCH).finish(0)
    start().finish(0)
    quiz.balance(remaining=0)


def quiz_switch(quiz, job):
    with quiz.another_session() as session:
        session.execute(SWITCH, (job,))


@pytest.fixture
def used_up(run_here, quiz, run_time):
    """A function that runs the job here; two seconds have passed when its third batch is frozen."""

    def used_up(*args, **settings):
        def pass_time():
            quiz.wait_frozen()
            run_time.seconds = 2.0
            quiz.thaw()

        passed = in_background(pass_time)
        code, events = run_here(*args, **settings)
        passed()
        return code, events[-1]

    quiz.fill(40)
    quiz.freeze_at(12)
    return used_up


@pytest.mark.parametrize(
    ("args", "settings"),
    [
        (["--max-duration", "1"], {}),
        ([], {"CLEANUP_MAX_DURATION_SECONDS": "1"}),
        (["--max-duration", "1"], {"CLEANUP_MAX_DURATION_SECONDS": "100"}),
    ],
    ids=["flag", "environment", "the flag beats the environment"],
)
def test_a_used_up_budget_stops_the_run_and_the_next_carries_on(start, quiz, used_up, args, settings):
    code, closing = used_up(*args, **settings)
    assert (code, closing["stop_reason"], closing["records_deleted"]) == (3, "time_budget", 15)
    assert closing["error"] == "the time budget of 1 s is used up"
    assert closing["sla_status"] == "breached"
    (run,) = quiz.runs()
    assert (run["status"], run["stop_reason"], run["sla_budget_seconds"]) == ("partial", "time_budget", 1)
    quiz.balance(remaining=25)
    start().finish(0)
    quiz.balance(remaining=0)


def test_a_longer_budget_by_flag_beats_a_short_one_from_the_environment(quiz, used_up):
    code, _ = used_up("--max-duration", "100", CLEANUP_MAX_DURATION_SECONDS="1")
    assert code == 0
    assert quiz.runs()[0]["sla_budget_seconds"] == 100
    quiz.balance(remaining=0)


def test_what_the_scheduler_sees_and_what_is_recorded_may_differ(quiz, used_up):
    code, closing = used_up("--max-duration", "1", EXIT_ZERO_FOR="3")
    assert (code, closing["event"], closing["exit_code"]) == (0, "cleanup_stopped", 3)
    assert quiz.runs()[0]["exit_code"] == 3
    quiz.balance(remaining=25)


@pytest.mark.parametrize(
    ("args", "code", "bound"),
    [([], 143, "SIGNALLED_SURVEY_SECONDS"), (["--max-duration", "1"], 3, "STOPPED_SURVEY_SECONDS")],
    ids=["signal", "time budget"],
)
def test_a_run_that_was_stopped_does_not_wait_long_to_count_what_is_left(
    run_here, quiz, monkeypatch, run_time, args, code, bound
):
    looked = []

    def slow_but_for_the_first(connection, selection):
        looked.append(selection)
        if len(looked) > 1:
            connection.execute("SELECT pg_sleep(3600)")
        return survey(connection, selection)

    def stop():
        quiz.wait_frozen()
        if not args:
            os.kill(os.getpid(), signal.SIGTERM)
        run_time.seconds = 2.0
        quiz.thaw()

    monkeypatch.setattr(policy_run, "survey", slow_but_for_the_first)
    monkeypatch.setattr(policy_run, bound, 0.3)
    quiz.fill(40)
    quiz.freeze_at(12)
    stopped = in_background(stop)
    ended, events = run_here(*args)
    stopped()

    assert (ended, events[-1]["records_deleted"], events[-1]["records_remaining"]) == (code, 15, None)
    assert events[-1]["sla_status"] != "within_sla"  # not counted is not zero
    (run,) = quiz.runs()
    assert (run["exit_code"], run["records_processed"], run["records_remaining"]) == (code, 15, None)
    quiz.balance(remaining=25)
