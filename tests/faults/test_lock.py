"""One run of a job at a time: races, locks released by hand or taken over; a run without its lock deletes no more."""

import socket

import pytest

from tests.faults.stage import CLOSED_PORT, LOCK, SCRIPT, wait_until

# Imports first, then waits for the starting shot: the runs meet at the lock, not in the interpreter.
RACER = f"""
import os, pathlib, sys
sys.path.insert(0, {str(SCRIPT.parents[2])!r})
from scripts.cleanup.cleanup_quiz_responses import JOB
from scripts.lifecycle.jobs.entry_point import main
pathlib.Path(os.environ["READY"]).touch()
while not os.path.exists(os.environ["GO"]):
    pass
raise SystemExit(main(JOB, sys.argv[1:]))
"""


@pytest.mark.parametrize("redis_reachable", [True, False])
@pytest.mark.pooled
def test_of_two_runs_in_the_same_millisecond_one_works(start, quiz, tmp_path, plain_file, redis_reachable):
    quiz.fill(40)
    quiz.freeze_at(12)  # the winner is still at work when the loser asks
    (tmp_path / "racer.py").write_text(RACER)
    settings = {} if redis_reachable else {"REDIS_URL": f"redis://127.0.0.1:{CLOSED_PORT}/0"}
    ready = [tmp_path / name for name in ("one", "two")]
    command = ("--policy-file", str(plain_file))
    racers = [
        start(*command, script=tmp_path / "racer.py", READY=str(path), GO=str(tmp_path / "go"), **settings)
        for path in ready
    ]
    wait_until(lambda: all(path.exists() for path in ready), what="both racers at the start")
    (tmp_path / "go").touch()
    wait_until(lambda: any(racer.process.poll() is not None for racer in racers), what="one racer's end")
    loser, winner = sorted(racers, key=lambda racer: racer.process.poll() is None)
    refused = loser.finish(75)
    quiz.wait_frozen()
    quiz.thaw()
    closing = winner.finish(0)

    assert refused["event"] == "cleanup_not_run"
    assert f"run {closing['correlation_id']} " in refused["error"]
    assert f"pid {winner.process.pid}" in refused["error"]
    runs = {run["pid"]: (run["status"], run["stop_reason"]) for run in quiz.runs()}
    assert runs == {winner.process.pid: ("completed", "done"), loser.process.pid: ("skipped", "lock_held")}
    quiz.balance(remaining=0)


def test_a_held_lock_is_refused_with_its_holder_and_its_end(start, quiz, holder, redis_client):
    quiz.fill(40)
    quiz.freeze_at(12)
    first = start()
    quiz.wait_frozen()
    correlation_id = first.find("cleanup_started")["correlation_id"]
    assert (holder().run, holder().pid) == (correlation_id, first.process.pid)
    second = start().finish(75)

    assert second["error"].startswith(
        f"{LOCK} is held by run {correlation_id} (host {socket.gethostname()}, pid {first.process.pid}, since 2"
    )
    assert second["error"].endswith("Z unless it renews")
    assert "), until 2" in second["error"]
    assert second["records_deleted"] == 0
    assert holder().run == correlation_id
    quiz.thaw()
    first.finish(0)
    assert redis_client.get(LOCK) is None
    assert [run["status"] for run in quiz.runs()] == ["completed", "skipped"]
    quiz.balance(remaining=0)


def test_a_refusal_may_look_like_success_to_the_scheduler(start, quiz, redis_client):
    redis_client.set(LOCK, "not written by this suite")
    closing = start(EXIT_ZERO_FOR="4,75").finish(0)
    assert closing["exit_code"] == 75
    assert closing["error"] == f"{LOCK} is held by another run"
    assert redis_client.get(LOCK) == "not written by this suite"


def test_del_stops_the_running_job_after_its_batch_in_hand(start, quiz, redis_client):
    quiz.fill(40)
    quiz.freeze_at(12)
    running = start()
    quiz.wait_frozen()
    redis_client.delete(LOCK)
    running.wait_for("lock_lost")
    quiz.thaw()
    closing = running.finish(3)

    assert (closing["stop_reason"], closing["records_deleted"]) == ("lock_lost", 15)
    assert closing["error"] == f"{LOCK} was released or taken over while running"
    (run,) = quiz.runs()
    assert (run["status"], run["stop_reason"], run["exit_code"]) == ("partial", "lock_lost", 3)
    quiz.balance(remaining=25)
    start().finish(0)
    quiz.balance(remaining=0)


@pytest.mark.pooled
def test_a_run_started_right_after_del_takes_over(start, quiz, holder, redis_client):
    quiz.fill(40)
    quiz.freeze_at(12)
    old = start()
    quiz.wait_frozen()
    redis_client.delete(LOCK)
    new = start()
    wait_until(lambda: quiz.waiting("gate"), what="the new run at the gate")
    quiz.thaw()
    stopped, closing = old.finish(3), new.finish(0)

    assert (stopped["stop_reason"], stopped["records_deleted"]) == ("lock_lost", 15)
    assert closing["records_deleted"] == 25
    first, second = quiz.runs()
    assert (first["status"], first["stop_reason"]) == ("partial", "lock_lost")
    assert (second["status"], second["fencing_token"]) == ("completed", first["fencing_token"] + 1)
    assert redis_client.get(LOCK) is None
    assert quiz.lease()["heartbeat_at"] is None
    quiz.balance(remaining=0)


def test_a_job_starts_and_works_beside_another_jobs_slow_batch(start, quiz):
    quiz.fill(40)
    slow = quiz.another_session()
    slow.execute("BEGIN; SELECT ops.gate_shared()")

    assert [start().finish(0)["records_deleted"], start().finish(0)["records_deleted"]] == [40, 0]

    assert quiz.lease()["fencing_token"] == 2
    slow.execute("COMMIT")
    quiz.balance(remaining=0)


def test_the_lock_is_renewed_while_a_run_outlasts_it(start, quiz, holder, redis_client):
    quiz.fill(10)
    quiz.freeze_at(2)
    running = start(REDIS_LOCK_TIMEOUT="5")
    quiz.wait_frozen()
    taken = quiz.link.execute("SELECT clock_timestamp()").fetchone()

    def outlasted():
        assert holder().pid == running.process.pid
        assert 0 < redis_client.pttl(LOCK) <= 5000
        return quiz.link.execute("SELECT clock_timestamp() > %s + interval '6 seconds'", taken).fetchone()[0]

    wait_until(outlasted)
    quiz.thaw()
    running.finish(0)
    assert redis_client.get(LOCK) is None
    quiz.balance(remaining=0)


def test_pg_stat_activity_shows_script_and_correlation_id(start, quiz):
    quiz.fill(10)
    quiz.freeze_at(2)
    running = start()
    server_process = quiz.wait_frozen()
    shown = quiz.link.execute(
        "SELECT application_name FROM pg_stat_activity WHERE pid = %s", (server_process,)
    ).fetchone()
    assert shown == (f"cleanup_quiz_responses {running.find('cleanup_started')['correlation_id']}",)
    quiz.thaw()
    running.finish(0)
