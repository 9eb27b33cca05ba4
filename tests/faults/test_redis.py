"""Redis away, cut off, back again, misconfigured: the lease in PostgreSQL decides, and no run fails for it."""

import pytest

from scripts.utils.test_helpers import Proxy
from tests.faults.stage import CLOSED_PORT, LOCK, wait_until

FOREIGN = (
    "INSERT INTO ops.leases VALUES (%s, 7, 'elsewhere', 4242, 'abc', now() - interval '1 hour', now() - %s::interval)"
)
AWAY = f"redis://127.0.0.1:{CLOSED_PORT}/0"


@pytest.fixture
def redis_proxy(redis_url):
    with Proxy.before(redis_url) as proxy:
        yield proxy


def test_a_run_without_redis_completes_and_says_so(start, quiz):
    quiz.fill(40)
    running = start(REDIS_URL=AWAY)
    assert running.finish(0)["records_deleted"] == 40
    warning = running.find("redis_unavailable")
    assert warning["level"] == "WARNING"
    assert warning["effect"] == "the lease in PostgreSQL decides"
    assert running.find("cleanup_started")["degraded"] is True
    assert [run["status"] for run in quiz.runs()] == ["completed"]
    assert quiz.lease()["heartbeat_at"] is None
    quiz.balance(remaining=0)


def test_a_wrong_password_is_a_misconfiguration(start, quiz, redis_url):
    quiz.fill(10)
    login, _, address = redis_url.rpartition("@")
    closing = start(REDIS_URL=f"{login}wrong@{address}").finish(2)
    assert closing["error"] == "Redis refuses the credentials in REDIS_URL"
    quiz.balance(remaining=10)


def test_redis_lost_for_good_in_mid_run(start, quiz, redis_proxy, redis_url):
    quiz.fill(40)
    quiz.freeze_at(12)
    running = start(REDIS_URL=redis_proxy.through(redis_url))
    quiz.wait_frozen()
    redis_proxy.refuse(10**9)
    redis_proxy.cut()
    lost = running.wait_for("redis_lost")
    quiz.thaw()
    assert running.finish(0)["records_deleted"] == 40
    assert lost["correlation_id"] == running.find("cleanup_started")["correlation_id"]
    assert lost["script"] == "cleanup_quiz_responses"
    quiz.balance(remaining=0)


def test_redis_away_for_longer_than_the_lock_and_back(start, quiz, redis_proxy, redis_url, holder, redis_client):
    quiz.fill(40)
    quiz.freeze_at(12)
    running = start(REDIS_URL=redis_proxy.through(redis_url), REDIS_LOCK_TIMEOUT="5")
    quiz.wait_frozen()
    redis_proxy.refuse(10**9)
    redis_proxy.cut()
    wait_until(lambda: holder() is None, what="the lock's own end")
    redis_proxy.refuse(0)
    running.wait_for("redis_back")
    assert holder().pid == running.process.pid
    quiz.thaw()
    running.finish(0)
    assert redis_client.get(LOCK) is None
    quiz.balance(remaining=0)


def test_the_answer_to_set_nx_is_lost(start, quiz, redis_proxy, redis_url, redis_client):
    quiz.fill(40)
    redis_proxy.cut_when(b"NX", before_forward=False)
    running = start(REDIS_URL=redis_proxy.through(redis_url))
    assert running.finish(0)["records_deleted"] == 40
    assert redis_proxy.cuts == 1
    assert running.find("cleanup_started")["degraded"] is False
    assert redis_client.get(LOCK) is None
    quiz.balance(remaining=0)


def test_a_lease_of_a_live_run_elsewhere_is_respected_without_redis(start, quiz):
    quiz.fill(10)
    quiz.link.execute(FOREIGN, (LOCK, "2 seconds"))
    closing = start(REDIS_URL=AWAY).finish(75)
    assert f"{LOCK} is held by run abc (host elsewhere, pid 4242, since " in closing["error"]
    assert "until 2" in closing["error"]
    assert "Redis is out of reach, so its lease must run out first" in closing["error"]
    assert quiz.lease()["fencing_token"] == 7
    quiz.balance(remaining=10)


def test_a_lease_that_fell_silent_elsewhere_is_taken_over_without_redis(start, quiz):
    quiz.fill(10)
    quiz.link.execute(FOREIGN, (LOCK, "301 seconds"))
    start(REDIS_URL=AWAY).finish(0)
    assert quiz.runs()[0]["fencing_token"] == 8
    quiz.balance(remaining=0)


def test_a_lease_of_a_live_run_elsewhere_falls_to_who_has_the_lock(start, quiz):
    quiz.fill(10)
    quiz.link.execute(FOREIGN, (LOCK, "0 seconds"))
    start().finish(0)
    assert quiz.runs()[0]["fencing_token"] == 8
    quiz.balance(remaining=0)


def test_without_redis_a_killed_run_is_followed_at_once(start, quiz):
    quiz.fill(40)
    quiz.freeze_at(12)
    killed = start(REDIS_URL=AWAY)
    quiz.wait_frozen()
    killed.kill()
    quiz.thaw()
    start(REDIS_URL=AWAY).finish(0)
    assert [run["status"] for run in quiz.runs()] == ["abandoned", "completed"]
    quiz.balance(remaining=0)
