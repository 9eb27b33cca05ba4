"""A batch by itself: one round trip, fenced by its token, and settled when its answer is lost."""

from uuid import uuid4

import pytest

from scripts.lifecycle.engine.batches import Ambiguous, BatchWriter, Context
from scripts.lifecycle.engine.preflight import preflight
from scripts.lifecycle.engine.windows import chosen_keys
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE, load_policies
from scripts.utils.db_utils import Database
from tests.faults.stage import CLOSED_PORT, COMMIT_AND_SYNC, LOCK, NAME

TOKEN = 5


@pytest.fixture
def selection(jobs_database, quiz):
    quiz.fill(40)
    quiz.link.execute(
        "INSERT INTO ops.leases VALUES (%s, %s, 'here', 1, 'test', clock_timestamp(), clock_timestamp())", (LOCK, TOKEN)
    )
    policy = load_policies(DEFAULT_POLICY_FILE).policies["quiz_responses"]
    with jobs_database.snapshot() as connection:
        return preflight(connection, policy, jobs_database.now()).selection


@pytest.fixture
def writer(database, selection, proxy):
    """A function that makes a writer behind the proxy, with a fencing token."""
    opened = []

    def make(token=TOKEN):
        behind = Database(proxy.through(database.url), application_name="test", max_size=2)
        behind.open()
        opened.append((BatchWriter(behind, selection, Context(LOCK, token, NAME, uuid4())), behind))
        return opened[-1][0]

    yield make
    for writer, behind in opened:
        writer.close()
        behind.close()


@pytest.fixture
def window(selection, quiz):
    return lambda *numbers: chosen_keys(selection, [quiz.id(number) for number in numbers])


def test_a_batch_takes_one_round_trip(writer, window, proxy, quiz):
    one = writer()
    one.run(window(0), excluded=[])
    proxy.turns = 0
    for number in range(1, 11):
        assert one.run(window(number), excluded=[]).deleted == 1
    assert proxy.turns == 10
    quiz.balance(remaining=29)


def test_a_run_takes_one_round_trip_more_for_each_batch_more(start, quiz, proxy, behind):
    def turns(batch_rows):
        proxy.turns = 0
        start("--batch-size", str(batch_rows), **behind).finish(0)
        return proxy.turns, quiz.runs()[-1]["batches"]

    turns(8)  # the first run of all makes the lease's row
    quiz.fill(40)
    few_turns, few = turns(8)
    quiz.fill(40, first=100)
    many_turns, many = turns(2)
    assert many - few >= 10
    assert many_turns - few_turns == many - few


def test_a_former_holder_deletes_nothing(writer, window, quiz):
    outcome = writer(TOKEN - 1).run(window(*range(40)), excluded=[])
    assert (outcome.owned, outcome.deleted) == (False, 0)
    quiz.balance(remaining=40)


def test_a_stopped_job_deletes_nothing(writer, window, quiz):
    quiz.link.execute("INSERT INTO ops.stop_switches VALUES ('*', 'me', 'test')")
    outcome = writer().run(window(*range(40)), excluded=[])
    assert (outcome.owned, outcome.stopped, outcome.deleted) == (True, True, 0)
    quiz.balance(remaining=40)


def test_what_must_stay_stays_even_when_asked_for_by_key(writer, window, quiz):
    writer().run(window(0x10000, 0x20000, 0x30000, 0x40000, 3), excluded=[])
    quiz.balance(remaining=39)


@pytest.mark.straight
def test_a_server_process_terminated_between_two_batches(writer, window, quiz):
    one = writer()
    one.run(window(0, 1), excluded=[])
    quiz.link.execute("SELECT pg_terminate_backend(%s, 5000)", (one._connection.info.backend_pid,))
    with pytest.raises(Ambiguous) as broken:
        one.run(window(2, 3), excluded=[])
    assert broken.value.settle() is None
    assert one.run(window(2, 3), excluded=[]).deleted == 2
    quiz.balance(remaining=36)


def test_a_lost_answer_is_settled_from_the_audit(writer, window, proxy, quiz):
    one = writer()
    proxy.cut_when(COMMIT_AND_SYNC, before_forward=False)
    with pytest.raises(Ambiguous) as broken:
        one.run(window(2, 3), excluded=[])
    assert broken.value.settle() == 2
    quiz.balance(remaining=38)


def test_the_lease_is_kept_alive_within_a_short_lock_timeout(start, quiz):
    quiz.fill(40)
    quiz.link.execute(
        "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.17); RETURN OLD; END'"
    )
    quiz.link.execute(
        "CREATE TRIGGER slow BEFORE DELETE ON public.quiz_responses FOR EACH ROW EXECUTE FUNCTION public.slow()"
    )
    running = start(REDIS_LOCK_TIMEOUT="5", REDIS_URL=f"redis://127.0.0.1:{CLOSED_PORT}/0")
    running.wait_for("policy_started")
    heartbeats = set()
    while running.process.poll() is None:
        heartbeats |= set(quiz.link.execute("SELECT heartbeat_at FROM ops.leases WHERE name = %s", (LOCK,)))
    running.finish(0)
    # One stands from the beginning. Without the others a run that has no Redis either would take the lease away.
    assert len(heartbeats) > 2
    quiz.balance(remaining=0)
