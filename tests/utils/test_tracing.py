"""One trace a run: ids in logs, run record and calls, spans in Sentry; and nothing of a person in any of it."""

import json
import re
import time
from pathlib import Path

import pytest

from backend.blob_server import BlobServer
from scripts.utils import tracing
from scripts.utils.tracing import Trace
from tests.forked import run_script
from tests.utils.envelopes import Receiver

ROOT = Path(__file__).resolve().parents[2]
CLEANUP = ROOT / "scripts" / "cleanup"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def environment(database, redis_url):
    return {"DATABASE_URL": database.url, "REDIS_URL": redis_url}


@pytest.fixture
def sentry():
    with Receiver() as receiver:
        yield receiver


def lines_of(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def put_answers(database, rows):
    database.superuser().execute(
        "INSERT INTO quiz_responses SELECT gen_random_uuid(), NULL, 'anna@example.com', 'anna@example.com', '{}', 2000,"
        " now() - interval '3 days', NULL, NULL, NULL FROM generate_series(1, %s)",
        (rows,),
    )


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("03", True)])
def test_a_caller_s_trace_is_taken_up(flags, sampled):
    trace = Trace.taken_up(f"00-{TRACE}-{PARENT}-{flags}")
    assert (trace.trace_id, trace.parent_span_id, trace.sampled) == (TRACE, PARENT, sampled)
    assert re.fullmatch("[0-9a-f]{16}", trace.span_id)
    assert trace.span_id != PARENT


def test_a_later_version_may_say_more():
    assert Trace.taken_up(f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like").trace_id == TRACE


@pytest.mark.parametrize(
    "text",
    [
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}",
        "anna@example.com",
    ],
)
def test_what_is_malformed_is_no_trace_and_is_said_without_its_text(text, capsys):
    trace = Trace.taken_up(text)
    assert re.fullmatch("[0-9a-f]{32}", trace.trace_id)
    assert trace.trace_id != TRACE
    assert (trace.parent_span_id, trace.sampled) == (None, None)
    out = capsys.readouterr().out
    assert "traceparent_ignored" in out
    assert text not in out


def test_without_a_caller_each_run_has_its_own():
    assert Trace.taken_up(None).trace_id != Trace.taken_up(None).trace_id


def test_outside_a_run_there_is_nothing_to_pass_on():
    assert tracing.traceparent() is None
    with tracing.run_traced(Trace(TRACE, PARENT), "a_job"):
        assert tracing.traceparent() == f"00-{TRACE}-{PARENT}-00"
    assert tracing.traceparent() is None


def test_a_span_without_sentry_costs_next_to_nothing():
    with tracing.run_traced(Trace(TRACE, PARENT), "a_job"):
        began = time.process_time()
        for _ in range(10_000):
            with tracing.span("batch", "p"):
                pass
        assert time.process_time() - began < 1


@pytest.mark.parametrize("given", [None, GIVEN])
def test_the_id_is_in_every_line_and_in_the_run_record_without_sentry(environment, database, given):
    done = run_script(
        CLEANUP / "cleanup_quiz_responses.py", env=environment | ({"TRACEPARENT": given} if given else {})
    )
    lines = lines_of(done)
    (trace_id,) = {line["trace_id"] for line in lines}
    assert trace_id == TRACE if given else re.fullmatch("[0-9a-f]{32}", trace_id)
    assert list(lines[-1])[:5] == ["timestamp", "level", "correlation_id", "script", "event"]
    recorded = database.superuser().execute("SELECT trace_id FROM ops.job_runs").fetchall()
    assert recorded == [(trace_id,)]


def test_spans_of_a_run_arrive(environment, database, sentry, plain_file):
    put_answers(database, 25)
    settings = {"SENTRY_DSN": sentry.dsn, "SENTRY_TRACES_SAMPLE_RATE": "1", "TRACEPARENT": GIVEN}
    done = run_script(
        CLEANUP / "cleanup_quiz_responses.py",
        "--policy-file",
        plain_file,
        "--batch-size",
        "5",
        env=environment | settings,
    )
    assert done.returncode == 0, done.stdout
    (transaction,) = sentry.items("transaction")
    assert transaction["transaction"] == "cleanup_quiz_responses"
    trace = transaction["contexts"]["trace"]
    assert (trace["trace_id"], trace["parent_span_id"], trace["op"]) == (TRACE, PARENT, "job")
    assert trace["data"]["exit_code"] == 0
    spans = transaction["spans"]
    assert {span["trace_id"] for span in spans} == {TRACE}
    by_op = {op: [span for span in spans if span["op"] == op] for op in {span["op"] for span in spans}}
    assert {op: len(found) for op, found in by_op.items()} == {
        "connect": 1,
        "lock": 1,
        "policy": 1,
        "preflight": 1,
        "survey": 1,
        "batch": 5,
    }
    (policy,) = by_op["policy"]
    assert {span["parent_span_id"] for span in by_op["batch"]} == {policy["span_id"]}
    assert policy["parent_span_id"] == trace["span_id"]
    assert sum(span["data"]["records_deleted"] for span in by_op["batch"]) == 25
    assert by_op["lock"][0]["description"] == "lock:cleanup:quiz_responses"
    assert transaction["tags"]["script"] == "cleanup_quiz_responses"
    assert transaction["tags"]["correlation_id"] == lines_of(done)[-1]["correlation_id"]
    assert b"anna" not in b"".join(sentry.bodies)


def test_of_many_batches_a_sample_arrives(environment, database, sentry, plain_file):
    put_answers(database, 1300)
    settings = {"SENTRY_DSN": sentry.dsn, "SENTRY_TRACES_SAMPLE_RATE": "1"}
    run_script(
        CLEANUP / "cleanup_quiz_responses.py",
        "--policy-file",
        plain_file,
        "--batch-size",
        "5",
        env=environment | settings,
    )
    (transaction,) = sentry.items("transaction")
    numbers = [span["data"]["number"] for span in transaction["spans"] if span["op"] == "batch"]
    assert numbers == [*range(1, 101), 200]


def test_at_rate_zero_nothing_is_traced_even_if_the_caller_does(environment, sentry):
    settings = {"SENTRY_DSN": sentry.dsn, "TRACEPARENT": GIVEN}
    assert run_script(CLEANUP / "cleanup_quiz_responses.py", env=environment | settings).returncode == 0
    assert sentry.items("transaction") == []


def test_a_caller_that_does_not_trace_is_followed(environment, sentry):
    settings = {"SENTRY_DSN": sentry.dsn, "SENTRY_TRACES_SAMPLE_RATE": "1", "TRACEPARENT": GIVEN[:-1] + "0"}
    assert run_script(CLEANUP / "cleanup_quiz_responses.py", env=environment | settings).returncode == 0
    assert sentry.items("transaction") == []


@pytest.fixture
def store(tmp_path):
    with BlobServer(tmp_path / "store") as server:
        yield server


def test_the_trace_is_passed_on_with_every_call(environment, database, store, sentry):
    store.populate(count=6, prefix="keto-meal-plan-anna-")
    database.superuser().execute(
        "INSERT INTO meal_plans SELECT gen_random_uuid(), 'pay-' || n, 'anna@example.com', 'anna@example.com', path,"
        " 2000, '{}', 'm', 'completed', 0, now() - interval '200 days', NULL"
        " FROM unnest(%s::text[]) WITH ORDINALITY AS p (path, n)",
        ([f"keto-meal-plan-anna-nothing-{n}.pdf" for n in range(6)],),
    )
    settings = {
        "BLOB_READ_WRITE_TOKEN": store.token,
        "VERCEL_BLOB_API_URL": store.url,
        "BLOB_BATCH_SIZE": "2",
        "SENTRY_DSN": sentry.dsn,
        "SENTRY_TRACES_SAMPLE_RATE": "1",
        "TRACEPARENT": GIVEN,
    }
    done = run_script(CLEANUP / "cleanup_pdfs.py", env=environment | settings)
    assert done.returncode == 0, done.stdout
    (transaction,) = sentry.items("transaction")
    calls = [span for span in transaction["spans"] if span["op"] == "http.client"]
    policy = next(span for span in transaction["spans"] if span["op"] == "policy")
    assert len(calls) == 3
    assert {span["parent_span_id"] for span in calls} == {policy["span_id"]}, "threads do not mix their spans up"
    assert {span["data"]["http.response.status_code"] for span in calls} == {200}
    passed_on = {call.traceparent for call in store.log}
    assert passed_on == {f"00-{TRACE}-{span['span_id']}-01" for span in calls}
    assert b"anna" not in b"".join(sentry.bodies)
