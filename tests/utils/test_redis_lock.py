"""The lock in Redis and the lease in PostgreSQL, in one process: who gets them, who loses them, what is left behind."""

import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import redis

from scripts.utils.db_utils import Database
from scripts.utils.errors import LockHeld, Misconfigured
from scripts.utils.redis_lock import Holder, JobLock, connect_redis
from scripts.utils.test_helpers import Proxy

NAME = "lock:test:job"
AWAY = "redis://127.0.0.1:1/0"
HERE = socket.gethostname().replace(" ", "-")


@pytest.fixture
def leases(database):
    with_jobs_rights = Database(database.url, application_name="test", max_size=4)
    with_jobs_rights.open()
    yield with_jobs_rights
    with_jobs_rights.close()


@pytest.fixture
def other_process():
    """The number of another process that lives as long as the test."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid


@pytest.fixture
def make(leases, redis_url, other_process, monkeypatch):
    """A function that makes locks as if in another process; what is still held at the end is released."""
    made, clients = [], []
    here = Holder.this_process
    monkeypatch.setattr(Holder, "this_process", lambda run: replace(here(run), pid=other_process))

    def make(run, *, url=redis_url, timeout=60.0):
        clients.append(connect_redis(url, "test"))
        made.append(JobLock(leases, clients[-1], name=NAME, timeout=timeout, run=run))
        return made[-1]

    yield make
    for lock in made:
        lock.release()
    for client in clients:
        client.close()


@pytest.fixture
def proxy(redis_url):
    with Proxy.before(redis_url) as proxy:
        yield proxy


def wait_until(condition, seconds=300.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def lease(database):
    return (
        database.superuser()
        .execute("SELECT fencing_token, owner_run, heartbeat_at IS NOT NULL FROM ops.leases WHERE name = %s", (NAME,))
        .fetchone()
    )


def at_the_gate(admin):
    return admin.execute(
        "SELECT 1 FROM pg_locks JOIN pg_database d ON d.oid = database AND d.datname = current_database()"
        " WHERE relation = 'ops.gate'::regclass AND NOT granted"
    ).fetchone()


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.pooled
def test_taken_seen_and_given_back(make, redis_client, database, leases, other_process):
    lock = make("one")
    lock.acquire()
    since = redis_client.get(NAME).split(" ")[3]
    assert Holder.parse(redis_client.get(NAME)) == Holder("one", HERE, other_process, since, leases.identity())
    assert 55_000 < redis_client.pttl(NAME) <= 60_000
    assert (lock.fencing_token, lock.degraded, lock.lost.is_set()) == (1, False, False)
    assert lease(database) == (1, "one", True)
    lock.release()
    assert redis_client.get(NAME) is None
    assert lease(database) == (1, None, False)
    again = make("two")
    again.acquire()
    assert again.fencing_token == 2


@pytest.mark.pooled
def test_the_second_is_told_who_and_until_when(make, other_process):
    make("one").acquire()
    with pytest.raises(
        LockHeld, match=rf"^{NAME} is held by run one \(host .+, pid {other_process}, since 2.+Z\), until 2"
    ):
        make("two").acquire()


def test_a_foreign_value_or_a_lock_without_end_is_respected(make, redis_client):
    redis_client.set(NAME, "maintenance until noon")
    with pytest.raises(LockHeld, match=f"^{NAME} is held by another run$"):
        make("one").acquire()
    assert redis_client.get(NAME) == "maintenance until noon"


@pytest.mark.parametrize(("host", "taken"), [(HERE, True), ("elsewhere", False)], ids=["on this host", "elsewhere"])
def test_only_this_host_can_tell_that_an_owner_is_dead(make, redis_client, host, taken):
    redis_client.set(NAME, str(Holder("dead", host, ended_process(), "2026-01-01T00:00:00Z")), ex=60)
    lock = make("one")
    if taken:
        lock.acquire()
        assert redis_client.get(NAME).startswith("one ")
    else:
        with pytest.raises(LockHeld, match="run dead"):
            lock.acquire()


def test_an_owner_that_nobody_has_buried_is_dead(make, redis_client):
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout.read() == b""  # it has closed its output, and is not waited for
    wait_until(Holder("zombie", HERE, process.pid, "").is_dead)
    process.stdout.close()
    process.wait()


def test_nothing_is_left_of_a_lock_whose_lease_could_not_be_had(make, redis_client, leases, monkeypatch):
    lock = make("one")
    monkeypatch.setattr(lock, "_take_lease", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lock.acquire()
    assert redis_client.get(NAME) is None


@pytest.mark.parametrize("replies_lost", [1, 9], ids=["the reply to SET NX", "every reply for a while"])
def test_a_lost_reply_leaves_a_lock_that_is_renewed_and_given_back(make, redis_url, redis_client, proxy, replies_lost):
    lock = make("one", url=proxy.through(redis_url), timeout=1.0)
    lock._client.ping()
    proxy.cut_when(b"NX", before_forward=False)
    proxy.refuse(replies_lost - 1)
    lock.acquire()
    assert lock.degraded is (replies_lost > 1)
    proxy.refuse(0)
    wait_until(lambda: not lock.degraded)
    until = time.monotonic() + 1.2
    wait_until(lambda: (redis_client.get(NAME) or "").startswith("one ") and time.monotonic() > until)
    assert not lock.lost.is_set()
    lock.release()
    assert redis_client.get(NAME) is None


def test_del_is_noticed_and_the_successors_lock_stays(make, redis_client, database):
    old = make("old", timeout=1.0)
    old.acquire()
    redis_client.delete(NAME)
    new = make("new", timeout=60.0)
    new.acquire()
    assert new.fencing_token == old.fencing_token + 1
    wait_until(old.lost.is_set)
    old.release()
    assert redis_client.get(NAME).startswith("new ")
    assert lease(database) == (2, "new", True)


def test_a_lock_that_ended_while_redis_was_away_is_taken_again(make, redis_url, redis_client, proxy):
    lock = make("one", url=proxy.through(redis_url), timeout=1.0)
    lock.acquire()
    proxy.refuse(10**9)
    proxy.cut()
    wait_until(lambda: lock.degraded and redis_client.get(NAME) is None)
    proxy.refuse(0)
    wait_until(lambda: not lock.degraded)
    assert redis_client.get(NAME).startswith("one ")
    assert not lock.lost.is_set()


def test_a_lock_that_another_took_while_redis_was_away_is_lost(make, redis_url, redis_client, proxy):
    old = make("old", url=proxy.through(redis_url), timeout=1.0)
    old.acquire()
    proxy.refuse(10**9)
    proxy.cut()
    wait_until(lambda: old.degraded and redis_client.get(NAME) is None)
    make("new").acquire()
    proxy.refuse(0)
    wait_until(old.lost.is_set)
    assert redis_client.get(NAME).startswith("new ")


def test_without_redis_a_live_owner_keeps_the_lease(make):
    make("one", url=AWAY).acquire()
    with pytest.raises(LockHeld, match=r"run one .+until 2.+Redis is out of reach, so its lease must run out first"):
        make("two", url=AWAY).acquire()


def test_without_redis_one_of_many_at_once_gets_the_lease(make):
    locks, starting_shot, won = [make(f"run{n}", url=AWAY) for n in range(4)], threading.Barrier(4), []

    def race(lock):
        starting_shot.wait()
        try:
            lock.acquire()
        except LockHeld:
            return
        won.append(lock)

    racers = [threading.Thread(target=race, args=(lock,)) for lock in locks]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert len(won) == 1


@pytest.mark.pooled
def test_a_free_lease_is_taken_without_the_gate_and_only_a_take_over_waits_for_it(make, redis_client, database):
    """Another job's slow batch must not hold up a start, nor the start every other job's next batch."""
    batch, later, admin = database.connect(), database.connect(), database.superuser()
    batch.execute("BEGIN; SELECT ops.gate_shared()")
    make("missing").acquire()
    redis_client.delete(NAME)
    lease_left = lease(database)
    new = make("new")
    thread = threading.Thread(target=new.acquire)
    thread.start()
    wait_until(lambda: at_the_gate(admin))
    assert lease(database) == lease_left == (1, "missing", True)

    batch.execute("COMMIT")
    thread.join()
    assert lease(database) == (2, "new", True)
    new.release()
    batch.execute("BEGIN; SELECT ops.gate_shared()")
    make("released").acquire()
    assert lease(database) == (3, "released", True)
    later.execute("BEGIN; SET LOCAL lock_timeout = '200ms'; SELECT ops.gate_shared()")  # nobody is queued before it
    later.execute("COMMIT")
    batch.execute("COMMIT")


def test_giving_back_survives_a_database_that_is_gone(make, leases, redis_client, monkeypatch):
    lock = make("one")
    lock.acquire()
    leases.close()
    lock.release()
    assert redis_client.get(NAME) is None


def test_a_holder_reads_back_what_it_wrote():
    holder = Holder.this_process("run")
    assert Holder.parse(str(holder)) == holder
    assert holder.pid == os.getpid()
    assert holder.is_dead()  # another run with this process's number: a container that was started again
    for foreign in ("", "a b c d", "a b 1", "a b 1 c d"):
        assert Holder.parse(foreign) is None


def test_a_client_fails_within_seconds():
    with connect_redis(AWAY, "test") as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_a_lock_of_another_database_is_refused_by_name(make, redis_client):
    """Two databases on one Redis: waiting for each other would look like a job that still runs."""
    theirs = Holder("abc", "elsewhere", 7, "2026-01-01T00:00:00Z", "42-staging")
    redis_client.set(NAME, str(theirs))

    with pytest.raises(Misconfigured, match=r"another database, 42-staging \(abc on elsewhere\)"):
        make("mine").acquire()
    assert redis_client.get(NAME) is not None


def test_a_lock_names_its_database_and_one_of_an_older_version_is_read_all_the_same(make, redis_client, leases):
    make("mine").acquire()

    value = redis_client.get(NAME)
    text = value if isinstance(value, str) else value.decode()
    assert Holder.parse(text).database == leases.identity()
    assert Holder.parse("abc elsewhere 7 2026-01-01T00:00:00Z").database == ""
