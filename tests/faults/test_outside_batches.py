"""The statements before and after the batches: repeated where that is harmless, else a message that says what to do."""

import pytest

from scripts.utils.db_utils import Database

pytestmark = pytest.mark.soak

BEFORE = {
    "looking for the schema": b"to_regclass",
    "looking at the stop switch": b"FROM ops.stop_switches ORDER",
    "keeping the policy version": b"INSERT INTO ops.policy_versions",
    "opening the run record": b"INSERT INTO ops.job_runs",
    "preflight": b"pg_table_size",
    "first survey": b"GROUP BY rule",
}


@pytest.mark.parametrize("before_forward", [True, False], ids=["before the server got it", "before its answer"])
@pytest.mark.parametrize("statement", BEFORE)
def test_a_connection_cut_before_the_first_batch_is_made_anew(start, quiz, proxy, behind, statement, before_forward):
    quiz.fill(40)
    proxy.cut_when(BEFORE[statement], before_forward=before_forward)
    running = start(**behind)
    assert running.finish(0)["records_deleted"] == 40
    assert proxy.cuts == 1
    assert running.find("database_read_retry") or running.find("database_write_retry")
    assert [run["status"] for run in quiz.runs()] == ["completed"]
    quiz.balance(remaining=0)


@pytest.mark.parametrize(
    ("statement", "gone"),
    [(b"INSERT INTO ops.leases", 0), (b"INSERT INTO ops.manual_resolution_queue", 40)],
    ids=["taking the lease", "raising a queue item"],
)
def test_what_is_not_repeated_is_said_and_the_rerun_does_it(start, quiz, proxy, behind, statement, gone):
    quiz.fill(40)
    quiz._insert("10 days", 0x50000, 1, payment="p")  # paid, not delivered, beyond its time
    proxy.cut_when(statement, before_forward=True)
    closing = start(**behind).finish(1)
    assert (closing["event"], closing["stop_reason"]) == ("cleanup_failed", "database_unavailable")
    assert closing["error"].startswith("the connection to PostgreSQL broke (")
    assert closing["error"].endswith("run again, a rerun is safe")
    assert closing["records_deleted"] == gone
    quiz.balance(remaining=40 - gone)

    assert start(**behind).finish(4)["records_queued"] == 1
    quiz.balance(remaining=0)


@pytest.fixture
def impatient(monkeypatch):
    """A lock is waited for 0.2 seconds."""
    monkeypatch.setitem(Database.transaction.__wrapped__.__kwdefaults__, "lock_timeout", 0.2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("args", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_a_table_that_is_locked_from_the_start_is_named(run_here, quiz, args):
    quiz.fill(40)
    other = quiz.another_session()
    other.execute("BEGIN; LOCK TABLE public.quiz_responses IN ACCESS EXCLUSIVE MODE")
    code, events = run_here(*args)
    other.execute("ROLLBACK")
    assert (code, events[-1]["stop_reason"]) == (1, "table_locked")
    assert events[-1]["error"] == (
        "policy quiz_responses: public.quiz_responses stays locked by another session, even against reading; look for"
        " the session in pg_stat_activity, have it end, and run again"
    )
    assert events[-1]["records_remaining"] is None
    assert [(run["status"], run["stop_reason"]) for run in quiz.runs()] == [("failed", "table_locked")] * (not args)
    quiz.balance(remaining=40)


@pytest.mark.usefixtures("impatient")
def test_a_locked_table_of_our_own_is_said(run_here, quiz):
    quiz.fill(40)
    other = quiz.another_session()
    other.execute("BEGIN; LOCK TABLE ops.job_runs IN ACCESS EXCLUSIVE MODE")
    code, events = run_here()
    other.execute("ROLLBACK")
    assert (code, events[-1]["stop_reason"]) == (1, "database_error")
    assert events[-1]["error"].startswith("a table of the schema ops stays locked by another session")
    quiz.balance(remaining=40)
