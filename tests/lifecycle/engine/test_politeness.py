"""What the purge leaves to others: the decision, what it sees of a real server, and what it records."""

import os
import signal
import time
from types import SimpleNamespace

import pytest

from scripts.lifecycle.engine import policy_run, politeness
from scripts.lifecycle.engine.politeness import (
    LONGEST_PAUSE_SECONDS,
    OTHERS_ACTIVE,
    REPLICA_LAG,
    SMALLEST_ROWS,
    SOMEONE_WAITS,
    Politeness,
    Situation,
    Step,
    next_step,
)
from scripts.lifecycle.jobs import run as run_module
from scripts.lifecycle.jobs.results import PolicyResult, seconds_paused, total_pauses
from tests.faults.stage import Quiz, in_background, wait_until
from tests.lifecycle.support import add_things, policy, record

IDLE = Situation(others_active=False, sessions_waiting=0, replica_lags=False)
BUSY = Situation(others_active=True, sessions_waiting=0, replica_lags=None)
MUCH = 1000.0
OTHERS = next(each for each in politeness.CONDITIONS if each.reason == OTHERS_ACTIVE)
SHORT, FACTOR = OTHERS.batch_seconds, OTHERS.pause_factor


def test_an_idle_server_gets_large_batches_and_no_pause():
    assert next_step(IDLE, rows=1000, seconds=0.1, pause_left=MUCH) == Step(2000)
    assert next_step(IDLE, rows=5000, seconds=0.5, pause_left=MUCH) == Step(5000)
    assert next_step(IDLE, rows=5000, seconds=2.5, pause_left=MUCH) == Step(1000)


def test_activity_that_cannot_be_seen_is_not_taken_for_none():
    assert next_step(Situation(), rows=1000, seconds=0.1, pause_left=MUCH) == Step(500)


def test_others_get_short_batches_and_as_much_time_as_the_batch_took():
    assert FACTOR >= 1
    long, short = (next_step(BUSY, rows=2000, seconds=seconds, pause_left=MUCH) for seconds in (0.1, 0.001))
    assert long == Step(20_000 * SHORT, 0.1 * FACTOR, OTHERS_ACTIVE)
    assert short == Step(4000, 0.001 * FACTOR, OTHERS_ACTIVE)


@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.3])
def test_who_waits_gets_more_than_who_is_only_there(seconds):
    waits = Situation(others_active=True, sessions_waiting=1, replica_lags=True)
    longer = next_step(waits, rows=2000, seconds=seconds, pause_left=MUCH)
    shorter = next_step(BUSY, rows=2000, seconds=seconds, pause_left=MUCH)
    assert longer.reason == SOMEONE_WAITS
    assert longer.pause > shorter.pause
    assert longer.rows <= shorter.rows


def test_a_replica_that_lags_is_waited_for_also_when_nobody_else_is_there():
    lags = Situation(others_active=False, sessions_waiting=0, replica_lags=True)
    step = next_step(lags, rows=1000, seconds=0.1, pause_left=MUCH)
    assert (step.reason, step.rows) == (REPLICA_LAG, 10_000 * SHORT)
    assert step.pause > 0.1


@pytest.mark.parametrize("situation", [BUSY, Situation(sessions_waiting=3), Situation(replica_lags=True)])
def test_pauses_are_bounded_one_by_one_and_all_together(situation):
    assert next_step(situation, rows=1000, seconds=60.0, pause_left=MUCH).pause <= LONGEST_PAUSE_SECONDS
    assert next_step(situation, rows=1000, seconds=60.0, pause_left=0.01).pause == 0.01
    assert next_step(situation, rows=1000, seconds=0.01, pause_left=0.0) == Step(SMALLEST_ROWS)


def test_a_batch_never_shrinks_to_nothing():
    assert next_step(BUSY, rows=100, seconds=60.0, pause_left=MUCH).rows == SMALLEST_ROWS


@pytest.fixture
def clock(monkeypatch):
    """The module's clock, moved by hand."""
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(politeness, "time", clock)
    return clock


def looks(clock, counts):
    """Learn from one look a second; a count is what the server says, and this run's own transactions so far."""
    said, own = [], [0]
    polite = Politeness(allowance=MUCH, ours=lambda: own[0])
    for transactions, own[0] in counts:
        clock.now += 1.0
        polite.learn((transactions, 0, None))
        said.append(polite.situation.others_active)
    return said


def test_own_transactions_that_are_counted_late_are_not_somebody_else_s(clock):
    counts = [(500, 0), (500, 40), (580, 80), (580, 130), (600, 180), (700, 200), (732, 200)]
    assert looks(clock, counts) == [None, *[False] * 6]


def test_somebody_else_s_transactions_are_remembered_for_a_while(clock):
    counts = [(500, 0), (540, 5), (540, 10), (545, 15), (550, 20), (555, 25), (570, 30)]
    assert looks(clock, counts) == [None, True, True, True, True, False, True]


def test_the_way_to_the_server_is_not_held_against_the_batch():
    polite = Politeness(allowance=MUCH, ours=lambda: 0)
    polite.situation, polite._network = BUSY, 0.03
    assert polite.after(1000, 0.08).pause == pytest.approx(0.05 * FACTOR)
    assert polite.after(1000, 0.04).pause == pytest.approx(0.02 * FACTOR)


def test_the_pauses_of_all_policies_add_up():
    results = [
        PolicyResult("a", "completed", "done", 0, pauses={OTHERS_ACTIVE: {"count": 2, "seconds": 0.5}}),
        PolicyResult("b", "completed", "done", 0),
        PolicyResult(
            "c",
            "failed",
            "bug",
            1,
            pauses={name: {"count": 1, "seconds": 1.0} for name in (OTHERS_ACTIVE, SOMEONE_WAITS, REPLICA_LAG)},
        ),
    ]
    assert total_pauses(results)[OTHERS_ACTIVE] == {"count": 3, "seconds": 1.5}
    assert seconds_paused(results) == 3.5


@pytest.fixture
def always_looking(monkeypatch):
    """Every batch takes a look along, and what was seen is not forgotten while a busy machine takes its time."""
    monkeypatch.setattr(politeness, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(politeness, "REMEMBERED_SECONDS", 3600.0)


@pytest.fixture
def quiz(database, db):
    return Quiz(database, db)


@pytest.fixture
def somebody_works(database, quiz):
    """While the third batch of five is under way, a session does 200 transactions."""

    def work():
        other = database.superuser()
        quiz.wait_frozen()
        for _ in range(200):
            other.execute("SELECT pg_stat_force_next_flush(), count(*) FROM ops.leases")
        quiz.thaw()

    quiz.fill(40)
    quiz.freeze_at(12)
    # A session may report what it did seconds later.
    quiz.link.execute("SELECT pg_stat_force_next_flush()")
    return in_background(work)


def test_a_server_that_nobody_else_uses_gets_no_pause(apply, things, always_looking):
    add_things(things, 1, 300)
    run = apply({"things": policy()}, "--batch-size", "1")
    assert run.closing["records_deleted"] == record(things)["batches"] == 300
    assert run.events("paused") == []
    assert (run.closing["pauses"], record(things)["pauses"]) == ({}, {})


def test_a_server_that_nobody_else_uses_gets_full_batches(apply, things, always_looking):
    add_things(things, 1, 90)
    apply({"things": policy(batch=policy()["batch"] | {"rows": 9})})
    assert record(things)["batches"] == 10


def test_others_at_work_get_pauses_with_their_reason(run_job, quiz, somebody_works, plain_file, always_looking):
    run = run_job("--policy-file", str(plain_file), "--batch-size", "5", "--verbose", as_of=None)
    somebody_works()
    (recorded,) = [record["pauses"] for record in quiz.runs()]
    assert run.closing["pauses"] == recorded
    assert list(recorded) == [OTHERS_ACTIVE]
    assert recorded[OTHERS_ACTIVE]["count"] == len(run.events("paused")) >= 5
    assert recorded[OTHERS_ACTIVE]["seconds"] > 0
    assert run.events("paused")[0]["level"] == "INFO"
    assert run.events("paused")[-1]["pauses_so_far"] == recorded
    assert quiz.runs()[0]["batches"] == 9  # of five entries each, a held row among them: the fixed size is kept
    quiz.balance(remaining=0)


def test_who_waits_for_a_batch_is_seen_and_waited_for(run_job, quiz, database, plain_file, always_looking):
    quiz.fill(40)
    quiz.freeze_at(12)

    def wait():
        quiz.wait_frozen()
        update = "UPDATE public.quiz_responses SET calorie_target = 2 WHERE id = %s"
        waits = in_background(database.superuser().execute, update, (quiz.id(10),))
        wait_until(lambda: quiz.waiting("transactionid"), what="the session behind the batch")
        quiz.thaw()
        return waits

    waiting = in_background(wait)
    run = run_job("--policy-file", str(plain_file), "--batch-size", "5", "--verbose", as_of=None)
    waiting()()
    # The session that waited may be slow to wake, and is seen once more.
    assert run.closing["pauses"][SOMEONE_WAITS]["count"] >= 1
    assert run.events("paused")[0]["reason"] == SOMEONE_WAITS
    quiz.balance(remaining=0)


def test_when_the_pauses_are_used_up_small_batches_remain(
    run_job, quiz, somebody_works, always_looking, monkeypatch, plain_file
):
    monkeypatch.setattr(policy_run, "PAUSE_SHARE", 0.0)
    monkeypatch.setattr(politeness, "SMALLEST_ROWS", 2)
    plain_file.write_text(plain_file.read_text().replace("rows: 5000", "rows: 9"))
    run = run_job("--policy-file", str(plain_file), as_of=None)
    somebody_works()
    assert run.closing["records_deleted"] == 40
    assert run.closing["pauses"] == {}
    # By nine rows it would be 5. The batch after the frozen one was asked for before; at least 13 rows go by two.
    assert quiz.runs()[0]["batches"] >= 3 + 7
    quiz.balance(remaining=0)


def test_a_signal_in_a_pause_ends_it_at_once(run_job, quiz, somebody_works, plain_file, always_looking, monkeypatch):
    slices = []

    def sleep(seconds):
        slices.append(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    run = run_job("--policy-file", str(plain_file), "--batch-size", "5", as_of=None)
    somebody_works()
    assert (run.code, run.closing["stop_reason"]) == (143, "sigterm")
    assert len(slices) == 1
    assert max(slices) <= run_module._PAUSE_SLICE_SECONDS
    assert quiz.runs()[0]["pauses"][OTHERS_ACTIVE]["count"] == 1
    quiz.balance(remaining=25)
