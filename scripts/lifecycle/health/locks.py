"""Checks Redis: whether it answers, whether a lock can be taken and released, and whether stale locks are left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import redis
from redis.exceptions import AuthenticationError, LockError, RedisError
from redis.lock import Lock

from scripts.lifecycle.health.findings import Context, Finding, failed, passed, warned
from scripts.utils.logging_utils import get_logger
from scripts.utils.redis_lock import Holder

SLOW_SECONDS = 0.1
TRIAL_SECONDS = 10.0
# A run takes its lock in Redis a moment before any table shows the run, so a suspect is looked at twice.
SECOND_LOOK_SECONDS = 1.0

# The session's application_name holds the run's id, also while a long survey keeps the run from its heartbeat.
_LIVE_RUNS = """
SELECT owner_run FROM ops.leases WHERE heartbeat_at > clock_timestamp() - make_interval(secs => %(timeout)s)
 UNION SELECT correlation_id FROM ops.job_runs
        WHERE status = 'running' AND heartbeat_at > clock_timestamp() - make_interval(secs => %(timeout)s)
 UNION SELECT split_part(application_name, ' ', 2) FROM pg_stat_activity WHERE application_name LIKE '%% %%'
"""


@dataclass(frozen=True)
class _HeldLock:
    name: str
    value: str
    seconds: float | None
    """Seconds until the lock expires; None: it never does."""

    @property
    def holder(self) -> Holder | None:
        return Holder.parse(self.value)


def redis_answers(context: Context) -> Iterator[Finding]:
    """Ask Redis for its latency and policy, and take and release a lock of the check's own."""
    run = context.run
    with run.redis() as client:
        try:
            began = time.perf_counter()
            client.ping()
            latency = time.perf_counter() - began
            yield _speed(latency)
            yield from _policy(client)
            yield _trial(context, client)
        except AuthenticationError:
            yield failed("Redis", "refuses the credentials", "correct user and password in REDIS_URL")
        except RedisError as error:
            yield failed(
                "Redis",
                f"does not answer ({type(error).__name__}): jobs run on the lease in PostgreSQL alone",
                "check host, port and network of REDIS_URL, and that Redis runs",
            )


def _speed(latency: float) -> Finding:
    said = f"answers in {1000 * latency:.0f} ms"
    if latency > SLOW_SECONDS:
        return warned("Redis", said, "run the jobs in its region; look at its load")
    return passed("Redis", said)


def _policy(client: redis.Redis) -> Iterator[Finding]:
    try:
        policy = str(client.info("memory").get("maxmemory_policy", ""))
    except RedisError:  # a managed Redis may not tell
        yield passed("Redis", "does not tell its maxmemory-policy; it should be noeviction")
        return
    if policy and policy != "noeviction":
        yield warned(
            "Redis", f"maxmemory-policy is {policy}: a lock may be evicted, which stops its run", "set it to noeviction"
        )


def _trial(context: Context, client: redis.Redis) -> Finding:
    if context.run.options.dry_run:
        return passed("trial lock", "not tried: CLEANUP_DRY_RUN is set")
    name = f"lock:health:{context.run.correlation_id}"
    trial = Lock(client, name, timeout=TRIAL_SECONDS, blocking=False, thread_local=False)
    cure = "look at what the Redis user may do (SET, GET, EVALSHA, DEL on lock:*)"
    if not trial.acquire():
        return failed("trial lock", "could not be taken", cure)
    try:
        trial.release()
    except LockError:
        return failed("trial lock", "was gone before it was given back", "look for evictions, or a failover")
    if client.exists(name):
        return failed("trial lock", "is still there after it was given back", cure)
    return passed("trial lock", "taken and given back")


def zombie_locks(context: Context) -> Iterator[Finding]:
    """Look for locks of the jobs that never expire, or that no live run claims."""
    run = context.run
    names = sorted({job.lock for job in run.policies.jobs.values() if job.lock})
    if not names:
        yield passed("locks", "no job has a lock")
        return
    with run.redis() as client:
        try:
            first = _held(client, names)
            suspects = _unclaimed(context, first)
            if suspects:
                run.pause(SECOND_LOOK_SECONDS)
                again = {(lock.name, lock.value) for lock in _held(client, names)}
                suspects = [lock for lock in _unclaimed(context, suspects) if (lock.name, lock.value) in again]
            found = [_judge(context, client, lock) for lock in suspects]
        except RedisError as error:
            yield failed(
                "locks", f"not looked at: Redis does not answer ({type(error).__name__})", "see the line redis"
            )
            return
    claimed = [lock for lock in first if lock not in suspects]
    found += [
        warned(
            lock.name,
            f"has no expiry, though its run {lock.holder.run if lock.holder else '?'} is alive",
            "nothing, if it is gone next time: the run sets an expiry when it renews the lock",
        )
        for lock in claimed
        if lock.seconds is None
    ]
    yield from found or [passed("locks", f"{len(names)} locks, {len(first)} of them held by live runs")]


def _held(client: redis.Redis, names: list[str]) -> list[_HeldLock]:
    locks = []
    for name in names:
        value, left = client.get(name), client.pttl(name)
        if isinstance(value, bytes) and isinstance(left, int):
            locks.append(_HeldLock(name, value.decode(errors="replace"), left / 1000 if left >= 0 else None))
    return locks


def _unclaimed(context: Context, locks: list[_HeldLock]) -> list[_HeldLock]:
    if not locks:
        return []
    timeout = context.run.settings.redis_lock_timeout
    rows = context.run.database.read(lambda link: link.execute(_LIVE_RUNS, {"timeout": timeout}).fetchall())
    live = {run for (run,) in rows}
    return [lock for lock in locks if not lock.holder or lock.holder.run not in live or lock.holder.is_dead()]


def _judge(context: Context, client: redis.Redis, lock: _HeldLock) -> Finding:
    who = f"run {lock.holder.run} on {lock.holder.host}" if lock.holder else "an owner that is no run of this suite"
    what = f"is held by {who}, and no live run claims it"
    what += ", without an expiry" if lock.seconds is None else f"; it ends by itself in {lock.seconds:.0f} s"
    if context.fix_zombies and not context.run.options.dry_run:
        return _release(client, lock, what)
    cure = f"check_cleanup_health.py --fix-zombies, or redis-cli DEL {lock.name}"
    if context.fix_zombies:
        cure = "unset CLEANUP_DRY_RUN: it was not released"
    return failed(lock.name, what, cure) if lock.seconds is None else warned(lock.name, what, cure)


def _release(client: redis.Redis, lock: _HeldLock, what: str) -> Finding:
    zombie = Lock(client, lock.name, timeout=TRIAL_SECONDS, thread_local=False)
    zombie.local.token = lock.value.encode()  # Redis compares it: a lock that another run won meanwhile stays
    try:
        zombie.release()
    except LockError:
        return warned(lock.name, f"{what}; it is another's now and was left alone", "nothing, if it is gone next time")
    get_logger().warning("zombie_lock_released", lock=lock.name, holder=str(lock.holder or "unknown"))
    return warned(lock.name, f"{what}: released", "nothing; look for what killed that run")
