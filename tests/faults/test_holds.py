"""A hold placed while a batch waits for a row (DESIGN.md, 7.4): once it is placed, nothing under it goes."""

import pytest

from scripts.lifecycle.engine import holds
from tests.faults.stage import in_background, wait_until

pytestmark = pytest.mark.pooled


@pytest.fixture
def place(jobs_database):
    """Place a hold from a thread; the returned function waits for it."""
    return lambda **what: in_background(holds.place, jobs_database, operator="counsel", reason="case 7", **what)


@pytest.fixture
def other_session(database):
    return database.superuser()


def lock_row(session, key):
    session.execute("BEGIN")
    session.execute("SELECT FROM public.quiz_responses WHERE id = %s FOR UPDATE", (key,))


@pytest.mark.parametrize("batch_rows", ["5", "100"], ids=["index", "sweep"])
def test_a_hold_waits_for_the_batch_that_waits_for_a_row(start, quiz, patient, place, other_session, batch_rows):
    quiz.fill(300)
    lock_row(other_session, quiz.id(7))
    running = start(*patient, "--batch-size", batch_rows)
    wait_until(lambda: quiz.waiting("transactionid"), what="the batch at the locked row")
    placed = place(person="a")
    wait_until(lambda: quiz.waiting("gate"), what="the hold at the gate")
    assert not placed.done()
    other_session.execute("ROLLBACK")
    placed()
    standing = quiz.present()
    closing = running.finish(0)
    assert quiz.present() == standing
    assert quiz.id(7) not in standing  # its batch was under way before the hold was placed
    assert closing["records_held"] == len(standing & quiz.due) + 1
    assert closing["records_remaining"] == 0
    quiz.balance()


def test_a_hold_on_a_locked_row_that_was_skipped(start, quiz, place, other_session):
    quiz.fill(40)
    quiz.freeze_at(37)
    lock_row(other_session, quiz.id(7))
    running = start()
    quiz.wait_frozen()
    placed = place(table="public.quiz_responses", resource_id=quiz.id(7))
    wait_until(lambda: quiz.waiting("gate"), what="the hold at the gate")
    quiz.thaw()
    placed()
    other_session.execute("ROLLBACK")  # from here on nothing but the hold protects the row
    running.finish(0)
    assert quiz.present() & quiz.due == {quiz.id(7)}
    quiz.balance(remaining=1)


def test_a_hold_by_whoever_has_the_row_locked(start, quiz, other_session):
    quiz.fill(40)
    other_session.execute("BEGIN")
    other_session.execute("SET LOCAL deadlock_timeout = '60s'")  # the job gives way long before
    other_session.execute("UPDATE public.quiz_responses SET calorie_target = 2 WHERE id = %s", (quiz.id(7),))
    running = start()
    wait_until(lambda: quiz.waiting("transactionid"), what="the batch at the locked row")
    other_session.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
        " VALUES ('row', 'public.quiz_responses', %s, 'case 7', 'counsel')",
        (quiz.id(7),),
    )
    other_session.execute("COMMIT")
    running.finish(0)
    assert quiz.present() & quiz.due == {quiz.id(7)}
    quiz.balance(remaining=1)


@pytest.mark.parametrize(
    "what",
    [{"person": "a"}, {"table": "public.quiz_responses"}],
    ids=["on the person", "on the table"],
)
def test_a_batch_that_begins_after_the_hold_sees_it(start, quiz, place, what):
    quiz.fill(40)
    quiz.freeze_at(12)
    running = start()
    quiz.wait_frozen()
    placed = place(**what)
    wait_until(lambda: quiz.waiting("gate"), what="the hold at the gate")
    quiz.thaw()
    placed()
    closing = running.finish(0)
    assert closing["records_deleted"] == 15
    assert closing["records_held"] == 26
    quiz.balance(remaining=25)
    assert [hold.scope for hold in holds.active(quiz._jobs_database)] == ["row", next(iter(what))]
