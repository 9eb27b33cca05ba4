"""A store on its bad days, and a job killed at the worst instants: nothing is lost, nothing audited twice."""

import signal

import pytest
import yaml

from backend import migrate
from backend.blob_faults import ALWAYS
from backend.blob_server import BlobServer
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from scripts.utils.test_helpers import script_environment
from tests.cleanup.conftest import PDF_SCRIPT, ROOT
from tests.faults.stage import wait_until
from tests.forked import start_script

DUE = range(500)
HOLDS = ROOT / "scripts" / "retention" / "legal_holds.py"


@pytest.fixture
def start(pdf_environment):
    """A function that starts cleanup_pdfs and returns the process; whatever still runs is killed at the end."""
    started = []

    def begin(*arguments, **settings):
        started.append(start_script(PDF_SCRIPT, *arguments, env=script_environment(pdf_environment | settings)))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_blobs_that_the_store_will_not_delete_go_to_a_person_once_and_are_resolved_when_they_go(run_pdfs, plans, blobs):
    plans.add(DUE)
    bad = set(range(3, 503, 10))
    blobs.faults.unavailable = {plans.path(n) for n in bad}

    first = run_pdfs()
    assert (first.code, first.closing["records_deleted"], first.closing["records_queued"]) == (4, 450, 50)
    assert plans.there(DUE) == bad
    assert plans.items() == [(plans.id(n), "pending", 1) for n in sorted(bad)]
    assert plans.intents() == {"confirmed": 450, "failed": 50}
    plans.balance()

    second = run_pdfs()
    assert (second.code, second.closing["records_queued"]) == (0, 0), "nothing new for a person"
    assert plans.items() == [(plans.id(n), "pending", 2) for n in sorted(bad)]

    blobs.faults.reset()
    third = run_pdfs()
    assert (third.code, third.closing["records_deleted"]) == (0, 50)
    assert plans.there(DUE) == set()
    assert plans.items() == [(plans.id(n), "resolved", 2) for n in sorted(bad)]
    notes = plans.link.execute("SELECT DISTINCT resolved_by, decision, context FROM ops.manual_resolution_queue")
    assert notes.fetchall() == [("system:cleanup_pdfs", "gone_meanwhile", {})]
    resolved = plans.link.execute("SELECT count(*) FROM ops.audit_log WHERE action = 'queue_item_resolved'").fetchone()
    assert resolved == (50,)
    plans.balance()


@pytest.mark.soak
def test_fifty_bad_blobs_in_one_call_do_not_look_like_a_store_that_is_down(run_pdfs, plans, blobs):
    plans.add(DUE)
    blobs.faults.unavailable = {plans.path(n) for n in range(50)}
    done = run_pdfs()
    assert (done.code, done.closing["records_deleted"], done.closing["records_queued"]) == (4, 450, 50)
    plans.balance()


def test_too_many_bad_blobs_stop_the_policy(run_pdfs, plans, blobs, tmp_path):
    plans.add(range(40))
    blobs.faults.unavailable = {plans.path(n) for n in range(30)}
    text = (PDF_SCRIPT.parents[1] / "retention" / "retention_policies.yaml").read_text()
    path = tmp_path / "policies.yaml"
    path.write_text(text.replace("max_poison: 200\n", "max_poison: 10\n"))
    done = run_pdfs("--policy-file", str(path))
    assert (done.code, done.closing["stop_reason"]) == (1, "too_many_poison_rows")
    plans.balance()


@pytest.mark.parametrize("operations", [pytest.param([], marks=pytest.mark.soak), ["delete"]])
def test_a_store_that_is_down_ends_the_run_and_the_next_one_finishes(run_pdfs, plans, blobs, operations):
    plans.add(range(3000))
    blobs.faults.change({"failing_calls": ALWAYS, "operations": operations})
    done = run_pdfs()
    assert (done.code, done.closing["stop_reason"]) == (3, "breaker_open")
    assert blobs.counters.requests <= 60
    assert plans.items() == []
    assert plans.there(range(3000)) == set(range(3000))
    blobs.faults.reset()
    assert (again := run_pdfs()).code == 0
    assert again.closing["records_deleted"] == 3000
    plans.balance()


def test_a_small_run_against_a_store_that_is_down_has_work_left(run_pdfs, plans, blobs):
    plans.add([1])
    blobs.faults.failing_calls = ALWAYS
    done = run_pdfs()
    assert (done.code, done.closing["stop_reason"]) == (3, "blobs_unknown")
    assert (plans.intents(), plans.items()) == ({"sending": 1}, [])
    blobs.faults.reset()
    assert run_pdfs().closing["records_deleted"] == 1
    plans.balance()


@pytest.mark.parametrize(
    "fault",
    [
        {"rate_limited_calls": 2},
        {"failing_calls": 2, "failing_status": 500},
        {"garbled_calls": 2},
        {"cut_before_calls": 2},
        {"cut_after_calls": 2},
        {"half_body_calls": 2},
        {"trickle_calls": 1, "trickle_seconds": 0.5},
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_what_passes_is_retried(run_pdfs, plans, blobs, fault):
    plans.add(DUE)
    blobs.faults.change(fault)
    done = run_pdfs()
    assert (done.code, done.closing["records_deleted"]) == (0, len(DUE))
    assert plans.there(DUE) == set()
    plans.balance()


def test_retry_after_is_obeyed(run_pdfs, plans, blobs):
    plans.add([1])
    blobs.faults.change({"rate_limited_calls": 1, "retry_after": 2})
    assert run_pdfs().code == 0
    first, second = (call.at for call in blobs.log)
    assert second - first >= 2


@pytest.mark.parametrize("secret", ["wrong", None])
def test_a_token_that_the_store_refuses(run_pdfs, plans, blobs, secret):
    plans.add([1])
    token = f"vercel_blob_rw_{blobs.store_id}_{secret}" if secret else "vercel_blob_rw_nosuchstore_x"
    done = run_pdfs(BLOB_READ_WRITE_TOKEN=token)
    assert (done.code, done.closing["stop_reason"]) == (1, "blob_store_refused")
    assert "check BLOB_READ_WRITE_TOKEN" in done.closing["error"]
    assert token not in done.out + done.err
    assert blobs.counters.requests == 1
    assert plans.there([1]) == {1}
    assert run_pdfs().code == 0, "what was under way is taken up again"
    plans.balance()


def test_nothing_listens_at_the_address(run_pdfs, plans):
    plans.add([1])
    done = run_pdfs(VERCEL_BLOB_API_URL="http://127.0.0.1:1/api/blob")
    assert done.code == 3
    assert plans.there([1]) == {1}


@pytest.mark.parametrize("status", ["sending", "confirmed"])
def test_killed_before_or_after_the_call_the_rerun_finishes(start, run_pdfs, plans, blobs, status):
    """'sending' cannot be reached: killed between intent and call. 'confirmed' cannot: between call and finalising."""
    plans.add(DUE)
    plans.freeze_at(status)
    process = start()
    wait_until(plans.frozen, what="the run that stands at the valve")
    process.send_signal(signal.SIGKILL)
    assert process.wait(300) == -signal.SIGKILL
    assert blobs.counters.blobs_deleted == (0 if status == "sending" else 400)
    assert plans.audited() == []
    # Otherwise the server would still commit what it has: the client had sent its COMMIT already.
    plans.link.execute("SELECT pg_terminate_backend(%s, 5000)", plans.frozen())
    plans.thaw()

    done = run_pdfs()
    assert (done.code, done.closing["records_deleted"]) == (0, len(DUE))
    assert plans.there(DUE) == set()
    plans.balance()


def test_killed_in_the_middle_of_the_calls(start, run_pdfs, plans, blobs):
    plans.add(DUE)
    blobs.faults.latency_ms = 300
    process = start()
    wait_until(lambda: blobs.counters.in_flight, what="a call under way")
    process.kill()
    process.wait(300)
    blobs.faults.reset()
    assert run_pdfs().code == 0
    assert plans.there(DUE) == set()
    plans.balance()


def test_sigterm_finishes_the_calls_in_hand(start, run_pdfs, plans, blobs):
    plans.add(DUE)
    blobs.faults.latency_ms = 500
    process = start()
    wait_until(lambda: blobs.counters.in_flight, what="a call under way")
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 143
    assert plans.intents() == {"confirmed": 400, "pending": 100}
    plans.balance()
    blobs.faults.reset()
    assert run_pdfs().closing["records_deleted"] == 100
    plans.balance()


def test_a_hold_that_comes_between_intent_and_call_keeps_the_blob(start, plans):
    plans.add([1, 2])
    plans.link.execute(
        "CREATE FUNCTION public.hold_two() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        " INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
        f" VALUES ('row', 'public.meal_plans', '{plans.id(2)}', 'r', 'me'); RETURN NULL; END $$;"
        " CREATE TRIGGER hold_two AFTER INSERT ON ops.blob_deletions FOR EACH STATEMENT EXECUTE FUNCTION hold_two()"
    )
    process = start()
    assert process.wait(300) == 0
    assert plans.there([1, 2]) == {2}
    assert plans.reasons() == {plans.id(1): None, plans.id(2): "held"}
    plans.balance()


@pytest.mark.parametrize("scope", ["row", "person", "table"])
def test_placing_a_hold_cancels_what_is_pending_and_names_what_is_in_flight(call, environment, plans, scope):
    plans.add([1, 2, 3])
    plans.link.execute(
        "INSERT INTO ops.blob_deletions (policy, rule, table_name, resource_id, blob, person, status, run_id)"
        " SELECT 'meal_plan_pdfs', 'expired', 'public.meal_plans', id, pdf_blob_path, normalized_email,"
        " CASE id WHEN %s THEN 'sending' ELSE 'pending' END, gen_random_uuid() FROM meal_plans",
        (plans.id(2),),
    )
    what = {
        "row": ["--table", "public.meal_plans", "--id", plans.id(2)],
        "person": ["--person", "-"],
        "table": ["--table", "public.meal_plans"],
    }[scope]
    done = call("place", "--reason", "r", *what, env=environment, script=HOLDS, stdin="anna@example.com\n")
    assert done.code == 0
    assert done.event("blobs_in_flight")["rows"] == [plans.id(2)]
    assert plans.intents() == ({"pending": 2, "sending": 1} if scope == "row" else {"cancelled": 2, "sending": 1})


def test_a_row_that_is_being_written_to_is_left_for_the_next_run(run_pdfs, plans, database):
    plans.add([1, 2])
    other = database.superuser()
    other.execute("BEGIN")
    other.execute("SELECT FROM meal_plans WHERE id = %s FOR UPDATE", (plans.id(2),))
    done = run_pdfs()
    assert (done.code, done.closing["stop_reason"]) == (3, "rows_locked")
    assert plans.there([1, 2]) == {2}
    other.execute("ROLLBACK")
    assert run_pdfs().closing["records_deleted"] == 1
    plans.balance()


def test_a_row_that_got_a_new_pdf_meanwhile_keeps_it(start, plans, blobs):
    plans.add([1])
    plans.freeze_at("confirmed")
    process = start()
    wait_until(plans.frozen, what="the run that stands at the valve")
    # The application's own statement waits for nobody: the row is not locked while the store is asked.
    blobs.put("keto-meal-plan-new.pdf", b"%PDF")
    writer = plans.link
    writer.execute("SET lock_timeout = '5s'")
    writer.execute("UPDATE meal_plans SET pdf_blob_path = 'keto-meal-plan-new.pdf' WHERE id = %s", (plans.id(1),))
    writer.execute("SELECT pg_advisory_unlock(4712)")
    assert process.wait(300) == 3  # the new PDF is past its date too, and the run has gone by it
    assert plans.named() == {plans.id(1)}
    assert plans.audited() == [plans.id(1)]


def test_two_runs_at_once_one_works(start, run_pdfs, plans, blobs):
    plans.add(DUE)
    blobs.faults.latency_ms = 1000
    first = start()
    wait_until(lambda: blobs.counters.in_flight, what="a call under way")
    assert run_pdfs().code == 75
    assert first.wait(300) == 0
    plans.balance()


def test_redis_away_limits_this_process_alone_and_says_so(run_pdfs, plans):
    plans.add(DUE)
    done = run_pdfs(REDIS_URL="redis://127.0.0.1:1/0")
    assert (done.code, done.closing["records_deleted"]) == (0, len(DUE))
    assert done.event("rate_limit_not_shared")["level"] == "WARNING"


def test_a_server_of_another_store_is_never_taken_for_gone(run_pdfs, plans, tmp_path):
    plans.add([1])
    with BlobServer(tmp_path / "other", token="vercel_blob_rw_other_secret") as other:
        done = run_pdfs(VERCEL_BLOB_API_URL=other.url)
    assert (done.code, done.closing["stop_reason"]) == (1, "blob_store_refused")
    assert plans.finalised() == set()


def test_the_time_budget_ends_a_wait_for_the_rate_limit(run_pdfs, plans, run_time, monkeypatch):
    plans.add(DUE)
    pause = Run.pause

    def wait(run, seconds):
        run_time.seconds = 4.0
        pause(run, seconds)

    monkeypatch.setattr(Run, "pause", wait)
    done = run_pdfs("--max-duration", "4", BLOB_RATE_LIMIT_PER_MINUTE="100")
    assert (done.code, done.closing["stop_reason"]) == (3, "time_budget")
    assert len(plans.finalised()) == 100
    plans.balance()


def test_a_blob_whose_row_is_rescued_in_another_table_while_it_is_claimed_stays(
    start, plans, blobs, database, tmp_path
):
    plans.add([1, 2])
    document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    keep = {"take": "days", "unit": "days", "from": "public.kept", "same": {"id": "plan"}, "else": "90 days"}
    document["policies"]["meal_plan_pdfs"]["rules"]["expired"] = {"anchor": "created_at", "keep": keep}
    path = tmp_path / "policies.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    plans.link.execute("CREATE TABLE kept (plan varchar PRIMARY KEY, days int)")
    migrate.grant(database.superuser_url, path)
    plans.freeze_at("sending")
    process = start("--policy-file", str(path))
    wait_until(plans.frozen, what="the claim at the valve")

    plans.link.execute("INSERT INTO kept VALUES (%s, 400)", (plans.id(2),))
    plans.link.execute("SELECT pg_advisory_unlock(4712)")

    assert process.wait(300) == 0
    assert plans.there([1, 2]) == {2}
    assert plans.audited() == [plans.id(1)]
    plans.balance()
