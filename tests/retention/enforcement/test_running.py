"""The orchestrator: order, shares of the time, failures, and other jobs' locks."""

import os
import signal

import pytest
import yaml

from scripts.lifecycle.policy.policy_file import parse_policies
from scripts.lifecycle.policy.policy_order import in_order
from scripts.utils.db_utils import Database
from scripts.utils.redis_lock import JobLock, connect_redis
from tests.faults.stage import in_background, wait_until
from tests.lifecycle.support import AS_OF
from tests.retention.enforcement.conftest import LOCK, SCRIPT, count, done, policy


def test_children_go_before_parents(tables, write, enforce, admin):
    tables(parents=3, children=3, grandchildren=3)
    admin.execute(
        "ALTER TABLE children ADD parent bigint REFERENCES parents; CREATE INDEX ON children (parent);"
        " ALTER TABLE grandchildren ADD child bigint REFERENCES children; CREATE INDEX ON grandchildren (child);"
        " UPDATE children SET parent = id; UPDATE grandchildren SET child = id"
    )
    names = ("parents", "children", "grandchildren")
    run = enforce(write({name: policy(f"public.{name}") for name in names}))

    assert run.code == 0
    assert [name for name, _ in done(run)] == ["grandchildren", "children", "parents"]
    assert [count(admin, name) for name in names] == [0, 0, 0]
    assert run.closing["records_deleted"] == 9
    assert run.closing["event"] == "retention_completed"


def test_a_cycle_is_named_and_does_not_stop_anything(tables, write, enforce, admin):
    tables(chickens=2, eggs=2, others=2)
    admin.execute(
        "ALTER TABLE eggs ADD layer bigint REFERENCES chickens; CREATE INDEX ON eggs (layer);"
        " ALTER TABLE chickens ADD hatched bigint REFERENCES eggs; CREATE INDEX ON chickens (hatched)"
    )
    run = enforce(write({name: policy(f"public.{name}") for name in ("chickens", "eggs", "others")}))

    (cycle,) = run.events("foreign_key_cycle")
    assert set(cycle["tables"]) == {"public.chickens", "public.eggs"}
    assert run.code == 0
    assert [name for name, _ in done(run)] == ["chickens", "eggs", "others"]
    assert [count(admin, name) for name in ("chickens", "eggs", "others")] == [0, 0, 0]


def test_on_one_table_what_changes_rows_goes_before_what_deletes_them():
    blob = {"column": "person", "deleted_at": None, "prefix": "x/", "orphans": "7 days"}
    blob |= {"item_type": "pdf_deletion_failed", "priority": "low"}
    rows, blobs = policy(), policy(action="delete_blob", blob=blob)
    parsed = _parsed(rows=rows, blobs=blobs)
    assert in_order(parsed, set()).names == ["blobs", "rows"]


def test_who_was_cut_short_goes_first_with_what_must_go_before_it():
    parsed = _parsed(**{name: policy(f"public.{name}") for name in ("one", "child", "parent", "late")})
    keys = {("public.child", "public.parent"), ("public.child", "public.elsewhere")}

    assert in_order(parsed, keys).names == ["one", "child", "parent", "late"]
    assert in_order(parsed, keys, {"parent": 1}).names == ["child", "parent", "one", "late"]
    assert in_order(parsed, keys, {"parent": 1, "late": 0}).names == ["late", "child", "parent", "one"]


def _parsed(**policies):
    document = yaml.safe_dump({"policies": policies, "jobs": {}}, sort_keys=False)
    return parse_policies(document, "file").policies.values()


@pytest.fixture
def slow(admin):
    """A function that makes every statement that deletes from a table slow."""

    def make(table, seconds):
        admin.execute(
            f"CREATE FUNCTION slow_{table}() RETURNS trigger LANGUAGE plpgsql AS"
            f" 'BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END';"
            f" CREATE TRIGGER slow BEFORE DELETE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION slow_{table}()"
        )

    return make


def test_nobody_starves_and_who_was_cut_short_goes_first(tables, write, enforce, admin, run_time):
    """The first policy could take all the time: it gets its share, the others theirs."""
    tables(large=400, small=5, last=5)
    run_time.step = 0.05
    path = write({name: policy(f"public.{name}", batch=_batch(20)) for name in ("large", "small", "last")})

    first = enforce(path, "--max-duration", "3")
    run_time.step = 0

    assert first.code == 3
    assert done(first)[:3] == [("large", "time_share"), ("small", "done"), ("last", "done")]
    assert (count(admin, "small"), count(admin, "last")) == (0, 0)
    assert 0 < count(admin, "large") < 400
    assert first.closing["stop_reason"] == "time_share"
    assert first.closing["records_remaining"] == count(admin, "large")

    admin.execute("INSERT INTO small (id, made_at) VALUES (9, %s::timestamptz - interval '90 days')", (AS_OF,))
    swapped = write({name: policy(f"public.{name}", batch=_batch(20)) for name in ("small", "last", "large")})
    second = enforce(swapped)
    assert second.code == 0
    assert [name for name, _ in done(second)] == ["large", "small", "last"]
    third = enforce(swapped)
    assert [name for name, _ in done(third)] == ["small", "last", "large"]


def _batch(rows):
    return {"rows": rows, "lock_timeout": "200 milliseconds", "statement_timeout": "60 seconds"}


def test_what_there_was_no_time_for_is_said_and_goes_first(tables, write, enforce, admin, run_time):
    tables(large=100, small=5)
    run_time.step = 0.3
    policies = {name: policy(f"public.{name}", batch=_batch(50)) for name in ("large", "small")}

    run = enforce(write(policies), "--max-duration", "1")

    assert run.code == 3
    assert count(admin, "small") == 5
    assert run.event("policy_not_begun")["policy"] == "small"
    assert admin.execute(
        "SELECT status, stop_reason, exit_code FROM ops.job_runs WHERE policy = 'small'"
    ).fetchall() == [("partial", "time_budget", 3)]
    assert run.closing.get("records_remaining") is None, "nobody counted what is left of small"
    run_time.step = 0
    again = enforce(write(policies))
    assert [name for name, _ in done(again)] == ["small", "large"]


def test_a_failing_policy_does_not_stop_the_others(tables, write, enforce, admin):
    tables(first=3, last=3)
    policies = {
        "first": policy("public.first"),
        "renamed": policy("public.renamed"),
        "capped": policy("public.first", action="soft_delete", soft_delete={"deleted_at": "made_at"}, max_rows=1),
        "blobs": policy("public.last", action="delete_blob", blob=_blob()),
        "last": policy("public.last"),
    }
    run = enforce(write(policies, grant=False), "--dry-run")
    assert run.code == 2

    admin.execute("GRANT ALL ON first, last TO lifecycle_jobs")
    run = enforce(write(policies, grant=False))

    assert run.code == 2, "there is no token for the blobs: the worst of all"
    assert dict(done(run)) == {
        "first": "done",
        "renamed": "preflight_failed",
        "capped": "done",
        "blobs": "misconfigured",
        "last": "done",
    }
    assert (count(admin, "first"), count(admin, "last")) == (0, 0)


def _blob():
    return {
        "column": "kind",
        "deleted_at": None,
        "prefix": "x/",
        "orphans": "7 days",
        "item_type": "pdf_deletion_failed",
        "priority": "low",
    }


def test_without_all_other_scripts_policies_are_left_alone(tables, write, enforce, admin):
    tables(mine=2, theirs=2)
    path = write({name: policy(f"public.{name}") for name in ("mine", "theirs")}, jobs={"cleanup_theirs": ["theirs"]})

    assert enforce(path).code == 0
    assert (count(admin, "mine"), count(admin, "theirs")) == (0, 2)
    only = enforce(path, "--only", "theirs")
    assert (only.code, count(admin, "theirs")) == (0, 0)
    assert enforce(path, "--only", "nobody").code == 2


@pytest.mark.pooled
def test_all_takes_each_job_s_lock_and_gives_it_back(tables, write, enforce, admin, redis_client):
    tables(mine=2, theirs=2)
    path = write({name: policy(f"public.{name}") for name in ("mine", "theirs")}, jobs={"cleanup_theirs": ["theirs"]})

    run = enforce(path, "--all")

    assert (run.code, count(admin, "mine"), count(admin, "theirs")) == (0, 0, 0)
    leases = dict(admin.execute("SELECT name, fencing_token FROM ops.leases WHERE heartbeat_at IS NULL"))
    assert leases == {LOCK: 1, "lock:cleanup:cleanup_theirs": 1}
    assert redis_client.keys() == []
    tokens = dict(admin.execute("SELECT policy, fencing_token FROM ops.job_runs WHERE script = %s", (SCRIPT,)))
    assert tokens == {"mine": 1, "theirs": 1}


def test_all_leaves_a_policy_whose_job_is_running_and_says_who(
    tables, write, enforce, admin, database, redis_url, redis_client
):
    tables(mine=2, theirs=2)
    path = write({name: policy(f"public.{name}") for name in ("theirs", "mine")}, jobs={"cleanup_theirs": ["theirs"]})
    pool = Database(database.url, application_name="cleanup_theirs", max_size=2)
    pool.open()
    lock = JobLock(pool, connect_redis(redis_url, "x"), name="lock:cleanup:cleanup_theirs", timeout=60, run="their-run")
    lock.acquire()
    redis_client.set("lock:cleanup:cleanup_theirs", "their-run another-host 77 2026-01-01T00:00:00Z", ex=60)
    try:
        run = enforce(path, "--all")
    finally:
        lock.release()
        pool.close()

    assert run.code == 3
    assert (count(admin, "mine"), count(admin, "theirs")) == (0, 2)
    said = run.event("policy_not_begun")
    assert (said["policy"], said["stop_reason"]) == ("theirs", "lock_held")
    assert "their-run" in said["error"]
    assert "another-host" in said["error"]
    assert "77" in said["error"]
    assert dict(done(run)) == {"theirs": "lock_held", "mine": "done"}


def test_a_job_that_is_stopped_stays_stopped_under_all(tables, write, enforce, admin):
    tables(mine=2, theirs=2)
    path = write({name: policy(f"public.{name}") for name in ("mine", "theirs")}, jobs={"cleanup_theirs": ["theirs"]})
    admin.execute("INSERT INTO ops.stop_switches (job, stopped_by, reason) VALUES ('cleanup_theirs', 'olga', 'a case')")

    run = enforce(path, "--all")

    assert (run.code, count(admin, "mine"), count(admin, "theirs")) == (3, 0, 2)
    assert "olga: a case" in run.event("policy_not_begun")["error"]


def test_a_job_that_is_stopped_while_its_policy_runs_stops_that_one_only(tables, write, enforce, admin):
    """The switch is turned on behind the first batch's back: the next batch sees it inside its own transaction."""
    tables(mine=2, theirs=60)
    path = write(
        {name: policy(f"public.{name}", batch=_batch(20)) for name in ("theirs", "mine")},
        jobs={"cleanup_theirs": ["theirs"]},
    )
    admin.execute("ALTER TABLE ops.stop_switches DISABLE TRIGGER ALL")
    admin.execute(
        "CREATE FUNCTION stop_them() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        " INSERT INTO ops.stop_switches (job, stopped_by, reason) VALUES ('cleanup_theirs', 'olga', 'a case')"
        " ON CONFLICT DO NOTHING; RETURN NULL; END $$;"
        " CREATE TRIGGER stop AFTER DELETE ON theirs FOR EACH STATEMENT EXECUTE FUNCTION stop_them()"
    )

    run = enforce(path, "--all")

    assert (run.code, count(admin, "theirs"), count(admin, "mine")) == (3, 40, 0)
    assert dict(done(run)) == {"theirs": "stop_switch", "mine": "done"}


def test_the_switch_for_all_jobs_keeps_it_from_starting(tables, write, enforce, admin):
    tables(mine=2)
    admin.execute("INSERT INTO ops.stop_switches (job, stopped_by, reason) VALUES ('*', 'olga', 'all of it')")
    assert (enforce(write({"mine": policy("public.mine")}), "--all").code, count(admin, "mine")) == (75, 2)


def test_a_dry_run_of_all_writes_nothing_and_takes_no_lock(tables, write, enforce, admin, redis_client):
    tables(mine=2, theirs=3)
    path = write({name: policy(f"public.{name}") for name in ("mine", "theirs")}, jobs={"cleanup_theirs": ["theirs"]})

    run = enforce(path, "--all", "--dry-run")

    assert (run.code, run.closing["records_to_delete"]) == (0, 5)
    assert (count(admin, "mine"), count(admin, "theirs"), count(admin, "ops.job_runs")) == (2, 3, 0)
    assert (count(admin, "ops.leases"), redis_client.keys()) == (0, [])


def test_a_rollout_grows_step_by_step(tables, write, enforce, admin):
    tables(mine=150)

    run = enforce(write({"mine": policy("public.mine")}), "--rollout")

    assert (run.code, count(admin, "mine")) == (0, 0)
    assert [step.get("limit") for step in run.events("rollout_step")] == [10, 100, 1000]
    assert run.closing["records_deleted"] == 150


def test_a_signal_ends_it_after_the_batch_in_hand(tables, write, enforce, admin, slow, redis_client):
    tables(large=400, small=5)
    slow("large", 0.3)
    path = write({name: policy(f"public.{name}", batch=_batch(20)) for name in ("large", "small")})

    def stop():
        wait_until(lambda: count(admin, "large") < 400)
        os.kill(os.getpid(), signal.SIGTERM)

    stopped = in_background(stop)
    run = enforce(path)
    stopped()

    assert run.code == 143
    assert run.closing["event"] == "retention_stopped"
    assert 0 < count(admin, "large") < 400
    assert count(admin, "small") == 5
    records = admin.execute("SELECT policy, status, stop_reason FROM ops.job_runs ORDER BY policy").fetchall()
    assert records == [("large", "interrupted", "sigterm"), ("small", "partial", "sigterm")]
    assert redis_client.keys() == []


def test_a_lock_that_is_taken_away_ends_that_policy_only(tables, write, enforce, admin, slow, redis_client):
    """``redis-cli DEL`` on the lock of the policy's job: the others go on under theirs."""
    tables(theirs=400, mine=5)
    slow("theirs", 0.3)
    path = write(
        {name: policy(f"public.{name}", batch=_batch(20)) for name in ("theirs", "mine")},
        jobs={"cleanup_theirs": ["theirs"]},
    )

    def take_away():
        wait_until(lambda: count(admin, "theirs") < 400)
        redis_client.delete("lock:cleanup:cleanup_theirs")

    taken = in_background(take_away)
    run = enforce(path, "--all")
    taken()

    assert (run.code, count(admin, "mine")) == (3, 0)
    assert 0 < count(admin, "theirs") < 400
    assert dict(done(run)) == {"theirs": "lock_lost", "mine": "done"}
