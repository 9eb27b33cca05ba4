"""A rate limit that several processes share.

It counts in Redis, by Redis's clock, in a moving window: the last 60 seconds never hold more than the limit. Without
Redis each process counts alone, which keeps the limit only while one process runs; a warning says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from limits import RateLimitItemPerSecond
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import MovingWindowRateLimiter

from scripts.utils import tls
from scripts.utils.logging_utils import get_logger

# A call arrives later than it was counted: two calls 60 seconds apart here may be less than that apart there.
_WINDOW_SECONDS = 62
_LONGEST_PAUSE_SECONDS = 1.0

# The library appends times, so they must be in order. The times of several processes are not: their clocks differ, and
# a process may send its time late. Then a window holds more than the limit.
_CALLERS_CLOCK = b"local timestamp = tonumber(ARGV[1])"
_REDIS_CLOCK = b"local now = redis.call('TIME')\nlocal timestamp = now[1] + now[2] / 1000000"


class _OneClock(RedisStorage):
    """The library's moving window, but Redis itself says what time it is."""

    SCRIPT_ACQUIRE_MOVING_WINDOW = RedisStorage.SCRIPT_ACQUIRE_MOVING_WINDOW.replace(_CALLERS_CLOCK, _REDIS_CLOCK)


class SharedRateLimit:
    """A limit of units a minute that all processes share.

    Args:
        redis_url: Where the processes count.
        name: What is limited; the processes that share it say the same.
        per_minute: Units in any 60 seconds.
    """

    def __init__(self, redis_url: str, *, name: str, per_minute: int) -> None:
        self._name = name
        self._per_minute = per_minute
        self._item = RateLimitItemPerSecond(per_minute, _WINDOW_SECONDS)
        # Its key runs out with its window; the client must fail within seconds rather than hang.
        shared = _OneClock(
            redis_url,
            wrap_exceptions=True,
            socket_timeout=3.0,
            socket_connect_timeout=2.0,
            **tls.redis_options(redis_url),  # type: ignore[arg-type]  # its stub wants the numbers that redis-py takes too
        )
        self._limiter = MovingWindowRateLimiter(shared)
        self._alone = False
        self._lock = threading.Lock()

    def acquire(self, units: int, pause: Callable[[float], None]) -> float:
        """Wait until the limit has room for the units, and count them.

        Args:
            units: Number of units, at most the limit of a minute.
            pause: Waits for the given seconds; may raise to give up.

        Returns:
            Seconds waited.

        Raises:
            ValueError: There are more units than the limit of a minute.
        """
        if units > self._per_minute:
            raise ValueError(f"{units} units never fit a limit of {self._per_minute} a minute")
        started = time.monotonic()
        while not self._hit(units):
            pause(self._until_room())
        return time.monotonic() - started

    def _hit(self, units: int) -> bool:
        try:
            return self._limiter.hit(self._item, self._name, cost=units)
        except StorageError as error:
            self._go_on_alone(error)
            return self._limiter.hit(self._item, self._name, cost=units)

    def _until_room(self) -> float:
        try:
            ends = self._limiter.get_window_stats(self._item, self._name).reset_time
        except StorageError:
            return _LONGEST_PAUSE_SECONDS
        return min(max(ends - time.time(), 0.05), _LONGEST_PAUSE_SECONDS)

    def _go_on_alone(self, error: StorageError) -> None:
        with self._lock:  # the threads of a process must count together
            if self._alone:
                return
            self._alone = True
            self._limiter = MovingWindowRateLimiter(MemoryStorage())
        get_logger().warning(
            "rate_limit_not_shared",
            limit=self._name,
            error=type(error).__name__,
            effect="this process counts alone",
        )
