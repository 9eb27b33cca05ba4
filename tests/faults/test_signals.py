"""Killed politely, killed by hand, killed for good: the batch in hand is whole, and the next run starts at once."""

import json
import signal
import subprocess
import sys

import pytest

from tests.faults.stage import LOCK, SCRIPT, wait_until


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_the_batch_in_hand(start, quiz, redis_client, number, code):
    quiz.fill(40)
    quiz.freeze_at(12)
    running = start()
    quiz.wait_frozen()
    running.send(number)
    quiz.thaw()
    closing = running.finish(code)

    assert closing["event"] == "cleanup_stopped"
    assert closing["exit_code"] == code
    assert closing["stop_reason"] == number.name.lower()
    assert closing["error"] == f"{number.name} received"
    assert closing["records_deleted"] == 15
    assert closing["records_remaining"] == 25
    (run,) = quiz.runs()
    assert (run["status"], run["stop_reason"], run["exit_code"]) == ("interrupted", number.name.lower(), code)
    assert run["records_remaining"] == 25
    assert redis_client.get(LOCK) is None
    assert quiz.lease()["heartbeat_at"] is None
    quiz.balance(remaining=25)


def test_a_signal_in_a_sweep_ends_it_after_the_batch_in_hand(start, quiz):
    quiz.fill(400)
    quiz.freeze_at(0)
    running = start("--batch-size", "20")
    quiz.wait_frozen()
    running.send(signal.SIGTERM)
    quiz.thaw()
    closing = running.finish(143)
    (run,) = quiz.runs()
    assert run["batches"] == 1
    assert 0 < closing["records_deleted"] < 400
    quiz.balance(remaining=400 - closing["records_deleted"])


def test_a_signal_before_the_first_batch_deletes_nothing(start, quiz, database, redis_client):
    quiz.fill(40)
    other = database.superuser()
    other.execute("BEGIN; LOCK TABLE public.quiz_responses IN ACCESS EXCLUSIVE MODE")
    running = start()
    wait_until(lambda: quiz.waiting("relation"), what="the run that wants to look at the table")
    running.send(signal.SIGTERM)
    assert running.finish(143)["stop_reason"] == "sigterm"
    other.execute("COMMIT")
    assert redis_client.get(LOCK) is None
    quiz.balance(remaining=40)


@pytest.mark.pooled
def test_after_sigkill_the_next_run_starts_at_once(start, quiz, redis_client):
    quiz.fill(40)
    quiz.freeze_at(12)
    killed = start()
    quiz.wait_frozen()
    killed.kill()
    assert redis_client.ttl(LOCK) > 200  # nobody waits for this
    rerun = start()
    rerun.wait_for("lock_owner_dead")
    # The killed run's server process still has its batch in hand.
    wait_until(lambda: quiz.waiting("gate"), what="the rerun at the gate")
    quiz.thaw()
    closing = rerun.finish(0)

    assert closing["duration_seconds"] < 20
    assert rerun.find("abandoned_runs_closed")["runs"] == 1
    first, second = quiz.runs()
    assert (first["status"], first["stop_reason"]) == ("abandoned", "process_gone")
    assert (second["status"], second["stop_reason"]) == ("completed", "done")
    assert second["fencing_token"] == first["fencing_token"] + 1
    # Whether the killed process had sent the COMMIT of its third batch already is not to be known here.
    (kept,) = quiz.link.execute("SELECT count(*) FROM ops.audit_log WHERE run_id = %s", (first["id"],)).fetchone()
    assert second["records_processed"] == 40 - kept
    assert kept >= 10
    quiz.balance(remaining=0)


def test_sigkill_again_and_again_leaves_nothing_half_done(start, quiz):
    quiz.fill(40)
    for number in (7, 37):
        quiz.freeze_at(number)
        killed = start()
        server_process = quiz.wait_frozen()
        killed.kill()
        # With the process its connection dies; here at once, so that the batch in hand is undone.
        quiz.link.execute("SELECT pg_terminate_backend(%s, 5000)", (server_process,))
        quiz.thaw()
        quiz.link.execute("DROP FUNCTION public.close_valve() CASCADE")
        quiz.balance(remaining=40 - number // 5 * 5)
    start().finish(0)
    assert [run["status"] for run in quiz.runs()] == ["abandoned"] * 2 + ["completed"]
    quiz.balance(remaining=0)


SLOW_IMPORT = """
import sys, time
from importlib.abc import MetaPathFinder
class Slow(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "psycopg":
            print("importing", file=sys.stderr, flush=True)
            time.sleep(600)
sys.meta_path.insert(0, Slow())
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_python_is_still_importing_ends_with_its_line_and_code(number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_IMPORT, SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={}
    )
    assert process.stderr.readline() == "importing\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    line = json.loads(out)
    assert (process.returncode, err) == (code, "")
    assert list(line)[:5] == ["timestamp", "level", "correlation_id", "script", "event"]
    assert (line["event"], line["exit_code"]) == ("stopped_before_start", code)
    assert line["script"] == "cleanup_quiz_responses"


def test_after_the_closing_line_a_signal_changes_no_exit_code(start, quiz):
    quiz.fill(4)
    running = start()
    running.wait_for("cleanup_completed")
    for _ in range(20):
        running.send(signal.SIGTERM)
    assert running.finish(0)["exit_code"] == 0


def test_a_signal_ends_a_count_at_once(start, quiz, database):
    """The count waits for a locked table; without the cancel it would end by its lock time-out, with another code."""
    quiz.fill(40)
    locker = database.superuser()
    with locker.transaction():
        locker.execute("LOCK TABLE public.quiz_responses IN ACCESS EXCLUSIVE MODE")
        running = start("--dry-run")
        wait_until(lambda: quiz.waiting("relation"), what="the count at the locked table")
        running.send(signal.SIGTERM)
        assert running.finish(143)["stop_reason"] == "sigterm"
    quiz.balance(remaining=40)
