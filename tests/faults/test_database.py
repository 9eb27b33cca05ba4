"""PostgreSQL away, refusing, waking up, cut off at any point, gone for good: exact counts, or a clear end."""

import psycopg
import pytest

from scripts.utils import db_utils
from tests.faults.stage import CLOSED_PORT, COMMIT, COMMIT_AND_SYNC, LOCK, in_background, wait_until


def test_unreachable_is_said_with_what_to_check(start):
    closing = start(DATABASE_URL=f"postgresql://jobs:secret@127.0.0.1:{CLOSED_PORT}/app").finish(1)
    assert (closing["event"], closing["level"]) == ("cleanup_failed", "ERROR")
    assert closing["stop_reason"] == "database_unavailable"
    assert "check host, port and network" in closing["error"]
    assert closing["audit_head"] is None


@pytest.mark.parametrize(
    ("break_url", "told"),
    [
        (lambda url: url.replace("@", "hunter2@"), "check user and password"),
        # A pooler that looks its users up there only says that it cannot connect.
        pytest.param(
            lambda url: url.rpartition("/")[0] + "/nowhere", "does not exist (3D000)", marks=pytest.mark.straight
        ),
        (lambda url: url + "?sslmode=require", "it offers no encryption"),
        (lambda url: url.rpartition("/")[0] + "/postgres", "the schema ops is missing or hidden"),
    ],
    ids=["wrong password", "missing database", "no TLS there", "missing schema"],
)
def test_a_refusal_is_a_misconfiguration(start, database, break_url, told):
    closing = start(DATABASE_URL=break_url(database.url)).finish(2)
    assert told in closing["error"]
    assert closing["stop_reason"] == "database_refused"
    assert "hunter2" not in str(closing)


def test_a_database_that_is_waking_up_is_waited_for(start, quiz, proxy, behind):
    quiz.fill(40)
    proxy.refuse(3)
    proxy.slow(2, 1.0)
    running = start(**behind)
    assert running.finish(0)["records_deleted"] == 40
    assert running.find("database_connect_retry")
    quiz.balance(remaining=0)


@pytest.mark.parametrize("before_forward", [True, False], ids=["before the server got it", "before its answer"])
@pytest.mark.parametrize("batch_rows", ["5", "100"], ids=["index", "sweep"])
@pytest.mark.pooled
def test_a_connection_cut_at_commit(start, quiz, proxy, behind, before_forward, batch_rows):
    quiz.fill(40)
    proxy.cut_when(COMMIT if before_forward else COMMIT_AND_SYNC, before_forward=before_forward)
    running = start("--batch-size", batch_rows, **behind)
    assert running.finish(0)["records_deleted"] == 40
    assert proxy.cuts == 1
    settled = running.find("commit_settled")
    assert (settled is None) is before_forward
    (run,) = quiz.runs()
    assert (run["status"], run["records_processed"]) == ("completed", 40)
    quiz.balance(remaining=0)


def test_a_connection_cut_at_every_other_batch(start, quiz, proxy, behind):
    quiz.fill(40)
    proxy.cut_when(COMMIT_AND_SYNC, before_forward=False)
    running = start(**behind)
    for cut in range(1, 6):
        wait_until(lambda: proxy.cuts == cut)  # noqa: B023 - awaited here
        before_forward = cut % 2 == 1
        proxy.cut_when(COMMIT if before_forward else COMMIT_AND_SYNC, before_forward=before_forward)
    assert running.finish(0)["records_deleted"] == 40
    assert proxy.cuts >= 5
    quiz.balance(remaining=0)


def test_a_server_process_that_outlives_its_connection_is_waited_for(start, quiz, proxy, behind):
    quiz.fill(40)
    quiz.freeze_at(12)
    running = start(**behind)
    quiz.wait_frozen()
    proxy.cut()
    wait_until(lambda: quiz.waiting("gate"), what="the settling at the gate")
    quiz.thaw()
    assert running.finish(0)["records_deleted"] == 40
    # Whether the server had read the COMMIT when the connection broke is not ours to say; the batch counts once either way.
    settled = running.find("commit_settled")
    assert settled is None or settled["records_deleted"] == 5
    quiz.balance(remaining=0)


def test_a_server_process_terminated_in_a_batch(start, quiz):
    quiz.fill(40)
    quiz.freeze_at(12)
    running = start()
    quiz.link.execute("SELECT pg_terminate_backend(%s, 5000)", (quiz.wait_frozen(),))
    running.wait_for("batch_retry")
    quiz.thaw()
    assert running.finish(0)["records_deleted"] == 40
    assert not running.find("commit_settled")
    quiz.balance(remaining=0)


@pytest.mark.pooled
def test_every_connection_terminated_at_once(start, quiz):
    quiz.fill(40)
    quiz.freeze_at(12)
    running = start()
    quiz.wait_frozen()
    quiz.link.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cleanup_quiz_responses %'"
        " AND datname = current_database()"
    )
    quiz.thaw()
    assert running.finish(0)["records_deleted"] == 40
    quiz.balance(remaining=0)


def test_a_server_gone_for_good_ends_the_run(run_here, quiz, proxy, behind, monkeypatch, holder):
    monkeypatch.setattr(db_utils, "CONNECT_SECONDS", 1.0)
    quiz.fill(40)
    quiz.freeze_at(12)

    def pull_the_plug():
        server_process = quiz.wait_frozen()
        proxy.refuse(10**9)
        proxy.cut()
        quiz.link.execute("SELECT pg_terminate_backend(%s, 5000)", (server_process,))
        quiz.thaw()

    pulled = in_background(pull_the_plug)
    code, events = run_here(**behind)
    pulled()
    closing = events[-1]
    assert (code, closing["exit_code"], closing["stop_reason"]) == (1, 1, "database_unavailable")
    assert "PostgreSQL" in closing["error"]
    assert closing["records_remaining"] is None
    assert closing["records_deleted"] == 10  # what the run itself counted
    assert holder() is None
    assert [run["status"] for run in quiz.runs()] == ["running"]  # nobody could write it
    quiz.balance(remaining=30)

    proxy.refuse(0)
    code, events = run_here(**behind)
    assert (code, events[-1]["records_deleted"]) == (0, 30)
    assert [run["status"] for run in quiz.runs()] == ["abandoned", "completed"]
    quiz.balance(remaining=0)


def test_a_full_disk_undoes_the_batch_and_ends_the_run(start, quiz):
    quiz.fill(40)
    # As the server reports it, without filling one.
    quiz.link.execute(
        "CREATE FUNCTION public.full_disk() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RAISE EXCEPTION USING ERRCODE = ''disk_full''; END'"
    )
    quiz.link.execute(
        "CREATE TRIGGER full_disk BEFORE DELETE ON public.quiz_responses FOR EACH ROW"
        f" WHEN (OLD.id = '{quiz.id(12)}') EXECUTE FUNCTION public.full_disk()"
    )
    closing = start().finish(1)
    assert f"{psycopg.errors.DiskFull.__name__} (SQLSTATE 53100" in closing["error"]
    (run,) = quiz.runs()
    assert (run["status"], run["stop_reason"], run["records_processed"]) == ("failed", "database_error", 10)
    quiz.balance(remaining=30)


def test_a_lease_is_kept_while_a_batch_of_a_broken_connection_may_still_commit(
    run_here, start, quiz, proxy, behind, monkeypatch
):
    """A next run that took a free lease would begin beside that batch; one that takes a held lease over waits for it."""
    quiz.fill(40)
    quiz.freeze_at(12)

    def cut():
        quiz.wait_frozen()
        proxy.cut()

    cutting = in_background(cut)
    with monkeypatch.context() as hasty:
        hasty.setattr(db_utils, "GATE_SECONDS", 0.3)
        code, events = run_here(**behind)
    cutting()
    assert (code, events[-1]["stop_reason"]) == (3, "gate_closed")
    assert "what became of it is not known yet" in events[-1]["error"]
    assert [event["lock"] for event in events if event["event"] == "lease_not_released"] == [LOCK]
    assert quiz.lease()["owner_run"] == events[-1]["correlation_id"]

    following = start()
    wait_until(lambda: quiz.waiting("gate"), what="the next run at the gate")
    quiz.thaw()
    closing = following.finish(0)
    first, second = quiz.runs()
    assert second["fencing_token"] == first["fencing_token"] + 1
    assert second["records_processed"] == closing["records_deleted"]
    (kept,) = quiz.link.execute("SELECT count(*) FROM ops.audit_log WHERE run_id = %s", (first["id"],)).fetchone()
    assert kept + closing["records_deleted"] == 40
    assert quiz.lease()["owner_run"] is None
    quiz.balance(remaining=0)
