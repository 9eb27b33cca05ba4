"""Rows and tables that other sessions are busy with: waited for briefly, skipped, taken later, or left with a word."""

import os
import signal

import pytest

from scripts.lifecycle.engine import gated
from scripts.utils.db_utils import Database
from tests.faults.stage import in_background, wait_until

NOW = "timezone('UTC', now())"


@pytest.fixture
def other(database):
    """Another session, in a transaction."""
    session = database.superuser()
    session.execute("BEGIN")
    return session


def change(session, key, assignment="calorie_target = 2"):
    session.execute(f"UPDATE public.quiz_responses SET {assignment} WHERE id = %s", (key,))


@pytest.mark.parametrize("batch_rows", [pytest.param("5", marks=pytest.mark.soak), "100"], ids=["index", "sweep"])
def test_a_row_that_stays_locked_is_left_with_a_word(start, quiz, other, batch_rows):
    quiz.fill(40)
    change(other, quiz.id(7))
    closing = start("--batch-size", batch_rows).finish(3)
    assert closing["event"] == "cleanup_stopped"
    assert (closing["stop_reason"], closing["error"]) == ("rows_locked", "1 due rows stayed locked by other sessions")
    assert (closing["records_deleted"], closing["records_remaining"]) == (39, 1)
    (run,) = quiz.runs()
    assert (run["status"], run["stop_reason"], run["exit_code"]) == ("partial", "rows_locked", 3)
    quiz.balance(remaining=1)
    other.execute("COMMIT")
    start().finish(0)
    quiz.balance(remaining=0)


def test_a_row_released_before_the_closing_pass_goes(start, quiz, other):
    quiz.fill(40)
    quiz.freeze_at(37)
    change(other, quiz.id(7))
    running = start()
    quiz.wait_frozen()
    assert running.find("rows_locked")
    assert quiz.id(7) in quiz.present()
    other.execute("COMMIT")
    quiz.thaw()
    assert running.finish(0)["records_deleted"] == 40
    quiz.balance(remaining=0)


@pytest.mark.parametrize("batch_rows", ["5", "100"], ids=["index", "sweep"])
@pytest.mark.parametrize(
    "assignment",
    [f"created_at = {NOW}", f"payment_id = 'p', pdf_delivered_at = {NOW}", "payment_id = 'p'"],
    ids=["its date is refreshed", "it was delivered just now", "it was paid just now"],
)
def test_a_row_that_stops_being_due_while_it_is_waited_for_survives(
    start, quiz, patient, other, assignment, batch_rows
):
    quiz.fill(40)
    change(other, quiz.id(7), assignment)
    running = start(*patient, "--batch-size", batch_rows)
    wait_until(lambda: quiz.waiting("transactionid"), what="the batch at the locked row")
    other.execute("COMMIT")
    code = 4 if assignment == "payment_id = 'p'" else 0  # an order that is owed for ten days goes to a person
    assert running.finish(code)["records_deleted"] == 39
    quiz.due.discard(quiz.id(7))
    quiz.survivors.add(quiz.id(7))
    quiz.balance(remaining=0)


def test_a_row_that_another_session_deletes_meanwhile_is_not_claimed(start, quiz, patient, other):
    quiz.fill(40)
    other.execute("DELETE FROM public.quiz_responses WHERE id = %s", (quiz.id(7),))
    running = start(*patient)
    wait_until(lambda: quiz.waiting("transactionid"), what="the batch at the locked row")
    other.execute("COMMIT")
    assert running.finish(0)["records_deleted"] == 39
    quiz.due.discard(quiz.id(7))
    quiz.balance(remaining=0)


def test_a_deadlock_is_resolved_by_doing_the_batch_again(start, quiz, patient, other):
    quiz.fill(40)
    quiz.link.execute(f"ALTER DATABASE {quiz.link.info.dbname} SET deadlock_timeout = '3s'")
    other.execute("SET LOCAL deadlock_timeout = '60s'")  # so that the job is the one to be undone
    change(other, quiz.id(7))
    running = start(*patient)
    wait_until(lambda: quiz.waiting("transactionid"), what="the batch at the locked row")
    wanted = in_background(change, other, quiz.id(5))  # the batch has it
    assert running.wait_for("batch_retry")["error"] == "DeadlockDetected"
    wanted()
    other.execute("COMMIT")
    assert running.finish(0)["records_deleted"] == 40
    quiz.balance(remaining=0)


@pytest.mark.parametrize("batch_rows", [pytest.param("5", marks=pytest.mark.soak), "10"], ids=["index", "sweep"])
def test_a_table_locked_against_writing_opens_the_breaker(start, quiz, other, batch_rows):
    quiz.fill(1000)
    quiz.freeze_at(0)
    running = start("--batch-size", batch_rows)
    quiz.wait_frozen()
    locked = in_background(other.execute, "LOCK TABLE public.quiz_responses IN SHARE MODE")  # as CREATE INDEX does
    wait_until(lambda: quiz.waiting("relation"), what="the lock on the table")
    quiz.thaw()
    locked()
    closing = running.finish(3)
    other.execute("ROLLBACK")
    assert sum(line["event"] == "window_locked" for line in running.events) == 4
    assert closing["stop_reason"] == "breaker_open"
    assert "public.quiz_responses stays locked by another session" in closing["error"]
    assert closing["records_remaining"] == 1000 - closing["records_deleted"] > 0
    (run,) = quiz.runs()
    assert (run["status"], run["stop_reason"], run["exit_code"]) == ("partial", "breaker_open", 3)
    quiz.balance(remaining=1000 - closing["records_deleted"])


def test_a_table_locked_against_reading_too_opens_the_breaker(run_here, quiz, other, monkeypatch):
    monkeypatch.setitem(Database.transaction.__wrapped__.__kwdefaults__, "lock_timeout", 0.2)
    quiz.fill(40)
    quiz.freeze_at(12)

    def lock_the_table():
        quiz.wait_frozen()
        locked = in_background(other.execute, "LOCK TABLE public.quiz_responses IN ACCESS EXCLUSIVE MODE")
        wait_until(lambda: quiz.waiting("relation"), what="the lock on the table")
        quiz.thaw()
        locked()

    locked = in_background(lock_the_table)
    code, events = run_here()
    locked()
    other.execute("ROLLBACK")
    assert (code, events[-1]["stop_reason"]) == (3, "breaker_open")
    assert events[-1]["records_remaining"] is None  # the table could not be read
    (run,) = quiz.runs()
    assert (run["status"], run["records_processed"], run["records_remaining"]) == ("partial", 15, None)
    quiz.balance(remaining=25)


def test_a_gate_that_is_closed_for_a_while_is_waited_for(start, quiz, other):
    quiz.fill(40)
    quiz.freeze_at(12)
    running = start()
    quiz.wait_frozen()
    closed = in_background(other.execute, "INSERT INTO ops.stop_switches VALUES ('another_job', 'me', 'not yet sure')")
    wait_until(lambda: quiz.waiting("gate"), what="the switch at the gate")
    began = quiz.link.execute("SELECT clock_timestamp()").fetchone()
    quiz.thaw()
    closed()
    wait_until(lambda: quiz.link.execute("SELECT clock_timestamp() > %s + interval '3s'", began).fetchone()[0])
    other.execute("ROLLBACK")
    assert running.finish(0)["records_deleted"] == 40
    assert not running.find("rows_locked")
    quiz.balance(remaining=0)


@pytest.mark.parametrize("signalled", [False, True])
def test_a_gate_that_stays_closed_ends_the_run(run_here, quiz, other, monkeypatch, signalled):
    monkeypatch.setattr(gated, "_GATE_SECONDS", 0.3)
    quiz.fill(40)
    quiz.freeze_at(12)

    def close_the_gate():
        quiz.wait_frozen()
        closed = in_background(other.execute, "INSERT INTO ops.stop_switches VALUES ('another_job', 'me', 'not sure')")
        wait_until(lambda: quiz.waiting("gate"), what="the switch at the gate")
        quiz.thaw()
        closed()
        wait_until(lambda: quiz.waiting("gate"), what="the batch at the gate")
        if signalled:
            os.kill(os.getpid(), signal.SIGTERM)

    closed = in_background(close_the_gate)
    code, events = run_here()
    closed()
    other.execute("ROLLBACK")
    assert (code, events[-1]["stop_reason"]) == ((143, "sigterm") if signalled else (3, "gate_closed"))
    assert {line["error"] for line in events if line["event"] == "batch_retry"} == {"GateClosed"}
    assert quiz.runs()[0]["status"] == ("interrupted" if signalled else "partial")
    quiz.balance(remaining=25)
