"""A progressive rollout: 10, 100, 1,000, the rest; it ends at the first surprise."""

import pytest

from backend import sample_data
from tests.cleanup.conftest import ROOT


@pytest.fixture
def sample(database):
    return sample_data.load(database.superuser(), rows=3000)


def test_steps_grow_and_add_up(run, database, sample):
    done = run("--rollout", "--as-of", sample.as_of.isoformat())
    due = sample.delivered_due + sample.abandoned_due
    assert done.code == 4, "the undelivered orders are new on the queue"
    assert done.closing["records_deleted"] == due
    assert done.closing["records_queued"] == sample.undelivered_due
    assert done.closing["records_remaining"] == 0
    steps = [line for line in done.lines if line["event"] == "rollout_step"]
    assert [step.get("limit") for step in steps] == [10, 100, 1000, None]
    assert [step["records_deleted"] for step in steps] == [10, 100, 1000, due - 1110]
    rows = database.superuser().execute("SELECT status, stop_reason FROM ops.job_runs ORDER BY started_at").fetchall()
    assert rows == [("partial", "limit_reached")] * 3 + [("completed", "done")]


def test_little_to_do_takes_one_step(run, database, sample):
    moment = sample.as_of.isoformat()
    run("--as-of", moment)
    again = run("--rollout", "--as-of", moment)
    assert (again.code, again.closing["records_deleted"]) == (0, 0)
    assert len([line for line in again.lines if line["event"] == "rollout_step"]) == 1


def test_a_surprise_ends_it(run, database, sample):
    link = database.superuser()
    link.execute(
        "CREATE FUNCTION keep_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        " CREATE TRIGGER keep_it BEFORE DELETE ON quiz_responses FOR EACH ROW WHEN (OLD.payment_id IS NULL)"
        " EXECUTE FUNCTION keep_it()"
    )
    done = run("--rollout", "--as-of", sample.as_of.isoformat())
    assert (done.code, done.closing["stop_reason"]) == (1, "rollout_surprise")
    assert done.closing["error"]
    deleted = link.execute("SELECT count(*) FROM ops.audit_log WHERE action = 'delete'").fetchone()[0]
    assert done.closing["records_deleted"] == deleted < sample.delivered_due + sample.abandoned_due


def test_what_would_be_refused_as_a_whole_does_not_begin(run, database, sample, tmp_path):
    text = (ROOT / "scripts" / "retention" / "retention_policies.yaml").read_text()
    path = tmp_path / "policies.yaml"
    path.write_text(text.replace("max_rows: 2000000", "max_rows: 500", 1))
    done = run("--rollout", "--policy-file", str(path), "--as-of", sample.as_of.isoformat())
    assert (done.code, done.closing["stop_reason"]) == (1, "would_be_refused")
    assert database.superuser().execute("SELECT count(*) FROM ops.audit_log").fetchone() == (0,)


def test_limit_and_rollout_exclude_each_other(run):
    assert run("--rollout", "--limit", "5").code == 2


def test_a_dry_run_of_a_rollout_is_a_dry_run(run, database, sample):
    done = run("--rollout", "--dry-run", "--as-of", sample.as_of.isoformat())
    assert done.closing["records_to_delete"] == sample.delivered_due + sample.abandoned_due
    assert database.superuser().execute("SELECT count(*) FROM ops.job_runs").fetchone() == (0,)


def test_pdfs_roll_out_too(run_pdfs, plans):
    plans.add(range(200))
    done = run_pdfs("--rollout")
    assert (done.code, done.closing["records_deleted"]) == (0, 200)
    plans.balance()


def test_a_blob_that_will_not_go_is_a_surprise(run_pdfs, plans, blobs):
    plans.add(range(200))
    blobs.faults.unavailable = {plans.path(n) for n in range(200)}
    done = run_pdfs("--rollout")
    assert (done.code, done.closing["stop_reason"]) == (1, "rollout_surprise")
    assert len(plans.items()) == 10
