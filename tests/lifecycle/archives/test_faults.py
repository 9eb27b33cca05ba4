"""Whatever happens between the export and the commit: nothing is lost, nothing is there twice."""

import os
import resource
import signal

import pytest

from scripts.utils.test_helpers import Proxy, start_script
from tests.faults.stage import CLOSED_PORT, COMMIT, COMMIT_AND_SYNC, Running, wait_until
from tests.lifecycle.archives.payments import OTHER_KEY, SCRIPT, kill

UPLOADED = ("ops.archives", "UPDATE", "OLD.sha256 IS NULL AND NEW.sha256 IS NOT NULL")
STEPS = {
    "writing": ("ops.archive_keys", "INSERT", "NEW.kind = 'person'"),
    "uploaded": UPLOADED,
    "verified": ("public.payment_transactions", "DELETE", "OLD.id = '00000003-0000-4000-8000-000000000000'"),
    "committed": ("public.payment_transactions", "DELETE", "OLD.id = '0000000f-0000-4000-8000-000000000000'"),
}


def objects(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("zombie_first", [False, pytest.param(True, marks=pytest.mark.soak)])
@pytest.mark.parametrize("step", STEPS)
def test_sigkill_at_each_step_loses_and_doubles_nothing(start, payments, folder, step, zombie_first):
    payments.fill(30)
    payments.valve(*STEPS[step])
    killed = start("--batch-size", "10")
    wait_until(payments.stopped, what="the run at the valve")
    kill(killed)
    if zombie_first:  # what the server still has of the killed run goes on, up to a COMMIT that it was sent already
        payments.open_valve()
    rerun = start("--batch-size", "10")
    if not zombie_first:
        rerun.wait_for("lock_owner_dead")
        payments.open_valve()
    closing = rerun.finish(0, 60)

    assert closing["records_remaining"] == 0
    payments.balance()
    assert set(payments.statuses()) == {"sealed"}
    assert len(objects(folder)) == len(payments.statuses())


def test_a_row_that_was_changed_meanwhile_survives_or_is_archived_as_it_is_now(start, run, payments):
    payments.fill(10)
    payments.valve(*UPLOADED)
    running = start()
    wait_until(payments.stopped, what="the run at the valve")
    payments.link.execute("UPDATE payment_transactions SET paddle_created_at = now() WHERE id = %s", (payments.id(4),))
    payments.link.execute("UPDATE payment_transactions SET amount = 4711.42 WHERE id = %s", (payments.id(7),))
    payments.open_valve()
    closing = running.finish(0)

    assert running.find("archive_redone")["left_out"] == 2
    assert closing["records_deleted"] == 9
    assert payments.rows().keys() == payments.survivors.keys() | {payments.id(4)}
    payments.balance(left=1)
    run("restore", "--policy", "payment_transactions")
    assert payments.link.execute(
        "SELECT amount FROM payment_transactions WHERE id = %s", (payments.id(7),)
    ).fetchone() == (payments.link.execute("SELECT 4711.42::numeric(10,2)").fetchone()[0],)
    assert run("verify").code == 0


def test_a_row_that_is_being_changed_while_the_delete_waits_survives(start, payments, policy_file):
    """The DELETE waited for the row's lock: it must see the version that it then finds."""
    payments.fill(10)
    flags = policy_file(batch={"rows": 100, "lock_timeout": "50 seconds", "statement_timeout": "60 seconds"})
    payments.valve(*UPLOADED)
    running = start(*flags)
    wait_until(payments.stopped, what="the run at the valve")
    other = payments.another_session()
    other.execute("BEGIN")
    other.execute("UPDATE payment_transactions SET paddle_created_at = now() WHERE id = %s", (payments.id(5),))
    payments.open_valve()
    wait_until(
        lambda: payments.link.execute(
            "SELECT 1 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
        ).fetchone(),
        what="the DELETE behind the row",
    )
    other.execute("COMMIT")
    closing = running.finish(0)
    assert closing["records_deleted"] == 9
    payments.balance(left=1)


def test_a_locked_row_is_left_for_the_next_run(start, run, payments):
    payments.fill(10)
    other = payments.another_session()
    other.execute("BEGIN")
    other.execute("SELECT FROM payment_transactions WHERE id = %s FOR UPDATE", (payments.id(5),))
    closing = start().finish(3)
    assert (closing["stop_reason"], closing["records_deleted"]) == ("rows_locked", 9)
    payments.balance(left=1)
    other.execute("ROLLBACK")
    assert run().code == 0
    payments.balance()


def test_a_hold_that_is_placed_meanwhile_is_heeded(start, payments):
    payments.fill(10)
    payments.valve(*UPLOADED)
    running = start()
    wait_until(payments.stopped, what="the run at the valve")
    payments.hold(6)
    payments.open_valve()
    closing = running.finish(0)
    assert (closing["records_deleted"], closing["records_held"]) == (9, 1)
    payments.balance(left=1)
    assert len(payments.statuses()) == 1


def test_the_stop_switch_stops_before_anything_is_deleted(start, payments, folder):
    payments.fill(10)
    payments.valve(*UPLOADED)
    running = start()
    wait_until(payments.stopped, what="the run at the valve")
    payments.link.execute(
        "INSERT INTO ops.stop_switches (job, stopped_by, reason) VALUES ('*', 'operator:test', 'test')"
    )
    payments.open_valve()
    assert running.finish(3)["stop_reason"] == "stop_switch"
    assert objects(folder) == []
    assert payments.statuses() == []
    payments.balance(left=10)


def test_a_signal_ends_the_run_and_leaves_nothing_behind(start, payments, folder):
    payments.fill(30)
    payments.valve(*UPLOADED)
    running = start("--batch-size", "10")
    wait_until(payments.stopped, what="the run at the valve")
    running.send(signal.SIGTERM)
    payments.open_valve()
    assert running.finish(143)["stop_reason"] == "sigterm"
    assert len(objects(folder)) == payments.statuses().count("sealed") == len(payments.statuses())
    payments.balance(left=30 - 10 * len(payments.statuses()))


@pytest.mark.parametrize(("pattern", "before"), [(COMMIT, True), (COMMIT_AND_SYNC, False)], ids=["never", "lost"])
def test_a_commit_whose_answer_is_lost_is_settled(start, payments, database, folder, pattern, before):
    payments.fill(20)
    with Proxy.before(database.url) as proxy:
        proxy.cut_when(pattern, before_forward=before)
        closing = start("--batch-size", "10", DATABASE_URL=proxy.through(database.url)).finish(0, 60)
        assert proxy.cuts == 1
    assert closing["records_deleted"] == 20
    payments.balance()
    assert len(objects(folder)) == 2


def test_a_row_that_the_database_refuses_goes_to_a_person(run, payments):
    payments.fill(20)
    payments.link.execute(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'no'; END$$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON payment_transactions FOR EACH ROW"
        f" WHEN (OLD.id = '{payments.id(9)}') EXECUTE FUNCTION public.refuse()"
    )
    done = run()
    assert (done.code, done.closing["records_deleted"], done.closing["records_queued"]) == (4, 19, 1)
    assert payments.link.execute("SELECT item_type, resource_id FROM ops.manual_resolution_queue").fetchall() == [
        ("row_deletion_failed", payments.id(9))
    ]
    payments.balance(left=1)
    assert run("verify").code == 0


def test_a_full_disk_deletes_nothing(environment, payments, folder, monkeypatch):
    payments.fill(400)
    for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
        monkeypatch.delenv(name)  # its own file would be the first that does not fit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        # Not forked from another process: a limit is inherited.
        running = Running(start_script(SCRIPT, env=environment))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    closing = running.finish(1)
    assert closing["stop_reason"] == "archive_store_failed"
    assert "a file grew too large" in closing["error"]
    assert objects(folder) == []
    assert payments.statuses() == []
    payments.balance(left=400)
    assert payments.link.execute("SELECT item_type FROM ops.manual_resolution_queue").fetchall() == [
        ("archive_failed",)
    ]


def test_a_folder_that_is_not_there_is_not_made(run, payments, folder):
    payments.fill(4)
    folder.rmdir()
    done = run()
    assert (done.code, done.closing["stop_reason"]) == (1, "archive_store_failed")
    assert "is its disk mounted?" in done.closing["error"]
    assert not folder.exists()
    payments.balance(left=4)
    folder.mkdir()
    assert run().code == 0
    payments.balance()


def test_a_store_that_is_away_deletes_nothing(run, payments, bucket):
    payments.fill(4)
    away = bucket.settings() | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{CLOSED_PORT}"}
    done = run(**away)
    assert (done.code, done.closing["stop_reason"]) == (1, "archive_store_failed")
    assert "check that it is up" in done.closing["error"]
    assert "a-secret" not in str(done.lines)
    payments.balance(left=4)
    assert run(**bucket.settings()).code == 0
    payments.balance()


def test_an_object_that_is_not_what_was_written_deletes_nothing(start, payments, folder):
    payments.fill(10)
    payments.valve(*UPLOADED)
    running = start()
    wait_until(payments.stopped, what="the run at the valve")
    (path,) = folder.rglob("*.archive")
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    payments.open_valve()
    closing = running.finish(1)
    assert closing["stop_reason"] == "archive_broken"
    payments.balance(left=10)
    assert payments.statuses() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ARCHIVE_MASTER_KEY": "m1:" + "66" * 32}, "is not the one that wrapped"),
        ({"ARCHIVE_MASTER_KEY": OTHER_KEY}, "neither ARCHIVE_MASTER_KEY nor among"),
        ({"ARCHIVE_MASTER_KEY": None}, "ARCHIVE_MASTER_KEY is not set"),
        ({"ARCHIVE_URL": None}, "ARCHIVE_URL is not set"),
        ({"ARCHIVE_URL": "s3://bucket"}, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY not set"),
    ],
)
def test_the_wrong_key_or_none_stops_everything_before_it_begins(run, payments, folder, changes, said):
    payments.fill(10)
    run("--limit", "2")
    for verb in ([], ["--dry-run"], ["verify"], ["restore", "--policy", "payment_transactions"]):
        done = run(*verb, **changes)
        assert done.code == 2
        assert said in done.closing["error"]
    payments.balance(left=8)
    assert len(objects(folder)) == 1


def test_a_row_that_is_rescued_in_another_table_before_the_commit_is_not_archived(start, payments, policy_file, grant):
    """Every row is deleted and its archive uploaded; the transaction waits for the audit's head."""
    payments.fill(10)
    payments.link.execute("CREATE TABLE kept (payment text PRIMARY KEY, years int)")
    keep = {
        "take": "years",
        "unit": "years",
        "from": "public.kept",
        "same": {"payment_id": "payment"},
        "else": "7 years",
    }
    flags = policy_file(rules={"expired": {"anchor": "paddle_created_at", "keep": keep}})
    grant(flags)
    other = payments.another_session()
    other.execute("BEGIN")
    other.execute("SELECT FROM ops.audit_head FOR UPDATE")
    running = start(*flags)
    wait_until(
        lambda: payments.link.execute(
            "SELECT 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'transactionid'"
            " AND NOT l.granted AND a.datname = current_database()"
        ).fetchone(),
        what="the DELETE behind the audit's head",
    )
    payments.link.execute("INSERT INTO kept VALUES ('pay_5', 99)")
    other.execute("ROLLBACK")
    closing = running.finish(0)
    assert (closing["records_deleted"], closing["records_remaining"]) == (9, 0)
    payments.balance(left=1)
