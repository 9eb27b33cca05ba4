"""One run of a job at a time: a lock in Redis that people can see, on a lease in PostgreSQL that decides.

The lease's fencing token is checked inside every batch, so a holder that was paused, cut off or released by hand
cannot delete anything more. The run that wins the Redis lock takes the lease over at once: ``redis-cli DEL`` on the
lock therefore releases a stuck job, and stops a running one after its batch in hand. Without Redis the lease alone
decides, and only an owner that is dead or silent for REDIS_LOCK_TIMEOUT is replaced (Kleppmann, "How to do distributed
locking": a lock that expires needs a token that the resource itself checks).
"""

from __future__ import annotations

import contextvars
import os
import re
import socket
import threading
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import AuthenticationError, LockError, RedisError
from redis.lock import Lock
from redis.retry import Retry

from scripts.utils import leases, tls
from scripts.utils.db_utils import LAST_WORD_SECONDS, Connection, Database
from scripts.utils.errors import DatabaseUnavailable, GateBusy, LockHeld, Misconfigured
from scripts.utils.logging_utils import get_logger

_LOOK_EVERY_SECONDS = 2.0
_READING = frozenset({"PING", "INFO", "GET", "EXISTS", "PTTL", "TTL"})


@dataclass(frozen=True)
class Holder:
    """The holder of a lock: enough for an operator to find the process."""

    run: str
    host: str
    pid: int
    since: str
    database: str = ""
    """:meth:`Database.identity` of the holder's database; empty: a version before this field wrote the lock."""

    @classmethod
    def this_process(cls, run: str) -> Holder:
        """Describe the running process."""
        since = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return cls(run, _hostname(), os.getpid(), since)

    @classmethod
    def parse(cls, token: str) -> Holder | None:
        """Read a holder back from the lock's value; None if someone else wrote it."""
        parts = token.split(" ")
        if len(parts) not in (4, 5) or not parts[2].isdigit():  # the fields of this class, with or without the last
            return None
        if parts[4:] and not re.fullmatch(r"(\d+|unknown)-.+", parts[4]):
            return None
        return cls(parts[0], parts[1], int(parts[2]), *parts[3:])

    def __str__(self) -> str:
        """Return the lock's value."""
        return f"{self.run} {self.host} {self.pid} {self.since} {self.database}".rstrip()

    def is_dead(self) -> bool:
        """Tell whether the process is known to be gone: only this host can say so."""
        if self.host != _hostname():
            return False
        if self.pid == os.getpid():
            return True  # this process has its number now: a restarted container counts from 1 again
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _is_zombie(self.pid)


def _is_zombie(pid: int) -> bool:
    """Tell whether a process ended and nobody has asked how: in a container without an init it stays so for ever."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False  # gone meanwhile, or not Linux
    return status.rpartition(")")[2].split()[0] == "Z"


def _hostname() -> str:
    return socket.gethostname().replace(" ", "-")


class ReadOnlyRedis(redis.Redis):
    """A client that sends no command but those that read: the one a dry run is given."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command that reads.

        Raises:
            RuntimeError: It may write: the caller forgot that this is a dry run.
        """
        if str(args[0]).upper() not in _READING:
            raise RuntimeError(f"a dry run sends no {args[0]} to Redis")
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, *_args: Any, **_options: Any) -> Any:
        """Refuse: a pipeline's commands do not pass :meth:`execute_command`.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("a dry run sends no pipeline to Redis")


def connect_redis(url: str, client_name: str, *, read_only: bool = False) -> redis.Redis:
    """Return a client that fails within seconds rather than hangs.

    Args:
        url: REDIS_URL.
        client_name: Shown in ``CLIENT LIST``.
        read_only: Whether it is for a dry run.
    """
    return (ReadOnlyRedis if read_only else redis.Redis).from_url(
        url,
        socket_timeout=3.0,
        socket_connect_timeout=2.0,
        health_check_interval=30,
        client_name=client_name,
        retry=Retry(ExponentialWithJitterBackoff(cap=0.5, base=0.05), retries=2),
        **tls.redis_options(url),
    )


class JobLock:
    """The right to run, from :meth:`acquire` to :meth:`release`.

    Args:
        database: Where the lease is.
        client: Redis.
        name: The lock's key, such as ``lock:cleanup:quiz_responses``.
        timeout: Seconds after which an unrenewed lock ends (REDIS_LOCK_TIMEOUT).
        run: The run's correlation id.
    """

    def __init__(self, database: Database, client: redis.Redis, *, name: str, timeout: float, run: str) -> None:
        self._database = database
        self._client = client
        self._timeout = timeout
        self._holder = Holder.this_process(run)
        self._lock = Lock(client, name, timeout=timeout, blocking=False, thread_local=False)
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None
        self._last_answer = time.monotonic()
        self.name = name
        self.lost = threading.Event()
        self.degraded = False
        self.fencing_token = 0

    def acquire(self) -> None:
        """Take lock and lease.

        Raises:
            LockHeld: Another run has them; the message names it, and until when it has them at most.
            Misconfigured: Redis refuses the credentials, has no trusted certificate, or holds the lock of a job of
                another database.
        """
        self._holder = replace(self._holder, database=self._database.identity())
        # The token is set before the lock is won: if every answer to SET NX is lost, this run can still renew and
        # delete the key.
        self._lock.local.token = str(self._holder).encode()
        self.degraded = not self._acquire_redis()
        try:
            self.fencing_token = self._take_lease()
        except BaseException:
            self._release_redis()
            raise
        # A copy of the context: the watcher's lines carry the correlation id too.
        watch = contextvars.copy_context().run
        self._watcher = threading.Thread(target=watch, args=(self._watch,), name="lock-watcher", daemon=True)
        self._watcher.start()

    def release(self) -> None:
        """Give both back; a lock that is no longer ours stays as it is.

        A server process may outlive its connection, with a COMMIT still to do. Then the lease becomes free behind the
        gate, once there is no such process any more; else it stays, and the next run takes it over there.
        """
        self._closing.set()
        if self._watcher:
            self._watcher.join()
        self._release_redis()
        try:
            database = self._database
            with (
                database.closing_gate(LAST_WORD_SECONDS) if database.in_doubt else database.transaction() as connection
            ):
                leases.release(connection, self.name, self.fencing_token)
        except (psycopg.Error, DatabaseUnavailable, GateBusy) as error:
            get_logger().warning("lease_not_released", lock=self.name, error=type(error).__name__)

    def _release_redis(self) -> None:
        try:
            self._lock.release()
        except (LockError, RedisError):
            get_logger().info("lock_not_released", lock=self.name, reason="no longer ours, or Redis is out of reach")

    def _acquire_redis(self) -> bool:
        """Return False if Redis cannot be asked."""
        try:
            if self._won_redis():
                return True
            value = self._client.get(self.name)
            holder = Holder.parse(value.decode()) if isinstance(value, bytes) else None
            if holder and holder.database not in ("", self._holder.database):
                raise Misconfigured(
                    f"{self.name} is held by a job of another database, {holder.database} ({holder.run} on"
                    f" {holder.host}): two databases share this Redis. Give each a Redis database number of its own in"
                    " REDIS_URL (redis://…/1)"
                )
            if holder and holder.is_dead():
                get_logger().warning("lock_owner_dead", lock=self.name, holder=str(holder))
                self._release_as(str(holder))
            if (value is None or (holder and holder.is_dead())) and self._won_redis():
                return True
            raise LockHeld(self._held_message(holder, self._client.pttl(self.name)))
        except AuthenticationError:
            raise Misconfigured("Redis refuses the credentials in REDIS_URL") from None
        except RedisError as error:
            if tls.is_certificate_refused(error):
                raise Misconfigured(
                    "the server in REDIS_URL is not to be trusted: its certificate is expired, for another host name or"
                    " from no authority that is trusted here; for one of your own add ssl_ca_certs=FILE to the URL"
                ) from None
            get_logger().warning(
                "redis_unavailable",
                lock=self.name,
                error=type(error).__name__,
                effect="the lease in PostgreSQL decides",
            )
            return False

    def _won_redis(self) -> bool:
        if self._lock.acquire(token=str(self._holder)):
            return True
        # The reply to SET NX may have been lost and the command repeated by the client: then the key is our own.
        return bool(self._client.get(self.name) == str(self._holder).encode())

    def _release_as(self, token: str) -> None:
        dead = Lock(self._client, self.name, timeout=self._timeout, thread_local=False)
        dead.local.token = token.encode()
        try:
            dead.release()
        except LockError:
            return  # somebody else was faster

    def _held_message(self, holder: Holder | None, ttl_ms: object) -> str:
        who = (
            f"run {holder.run} (host {holder.host}, pid {holder.pid}, since {holder.since})"
            if holder
            else "another run"
        )
        until = ""
        if isinstance(ttl_ms, int) and ttl_ms > 0:
            ends = datetime.now(UTC) + timedelta(milliseconds=ttl_ms)
            until = f", until {ends:%Y-%m-%dT%H:%M:%SZ} unless it renews"
        return f"{self.name} is held by {who}{until}"

    def _take_lease(self) -> int:
        me = self._holder
        # A free lease is taken without the gate: to close the gate waits for, and holds up, the batches of every job.
        with self._database.transaction() as link:
            taken = leases.take_free(link, self.name, run=me.run, host=me.host, pid=me.pid)
        return self._take_over() if taken is None else taken

    def _take_over(self) -> int:
        if self.degraded:
            # Before the gate is closed: a run that is going to be refused must not stop the batches of other jobs.
            with self._database.snapshot() as link:
                former, left_ms = self._lease_holder(link)
            if former and left_ms > 0 and not former.is_dead():
                raise self._lease_held(former, left_ms)
        with self._database.closing_gate() as link:
            # No batch of the former holder is under way when its token becomes old.
            former, left_ms = self._lease_holder(link)
            taken = leases.take(
                link,
                self.name,
                run=self._holder.run,
                host=self._holder.host,
                pid=self._holder.pid,
                at_once=not self.degraded or former is None or former.is_dead(),
                timeout=self._timeout,
            )
        if taken is None:
            raise self._lease_held(former, left_ms)
        return taken

    def _lease_holder(self, link: Connection) -> tuple[Holder | None, int]:
        """Return the lease's holder, and the milliseconds until the lease ends without a further heartbeat."""
        held = leases.held(link, self.name, self._timeout)
        return (Holder(held.run, held.host, held.pid, held.since), held.left_ms) if held else (None, 0)

    def _lease_held(self, former: Holder | None, left_ms: int) -> LockHeld:
        return LockHeld(
            self._held_message(former, left_ms) + "; Redis is out of reach, so its lease must run out first"
        )

    def _watch(self) -> None:
        renew_every = self._timeout / 3
        renewed = time.monotonic()
        while not self._closing.wait(min(_LOOK_EVERY_SECONDS, renew_every)):
            try:
                if not self._still_ours():
                    self._lose()
                    return
                if time.monotonic() - renewed >= renew_every:
                    self._lock.reacquire()
                    renewed = time.monotonic()
                self._last_answer = time.monotonic()
            except LockError:
                self._lose()
                return
            except RedisError as error:
                if not self.degraded:
                    get_logger().warning("redis_lost", lock=self.name, error=type(error).__name__)
                self.degraded = True

    def _lose(self) -> None:
        self.lost.set()  # before the line: a reader of the line may rely on it
        get_logger().warning("lock_lost", lock=self.name, effect="the run stops after its batch in hand")

    def _still_ours(self) -> bool:
        if self._client.get(self.name) == str(self._holder).encode():
            self.degraded = False
            return True
        # While Redis was away the key may have expired by itself. Within its time it can only have been taken from us.
        away_too_long = self.degraded or time.monotonic() - self._last_answer > self._timeout
        if away_too_long and self._won_redis():
            get_logger().info("redis_back", lock=self.name)
            self.degraded = False
            return True
        return False
