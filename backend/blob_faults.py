"""The faults that the local Blob server can be told to make, and its record of the calls."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from backend.blob_store import bad_request

ALWAYS = -1
MINUTE = 60.0
_FAULTS = ("cut_before", "rate_limited", "failing", "garbled", "cut_after", "half_body", "trickle")
_KINDS: dict[str, Any] = {
    "latency_ms": int | float,
    "trickle_seconds": int | float,
    "blobs_per_minute": int | None,
    "unavailable": list | set,
    "operations": list | set,
}
LOGGED_CALLS = 10_000


@dataclass
class Faults:
    """The faults. Set an attribute at any time. ``..._calls`` counts down to 0; ``ALWAYS`` does not count down.

    Attributes:
        latency_ms: Milliseconds that each call waits first.
        rate_limited_calls: Calls answered with 429 ``rate_limited`` and ``retry_after`` seconds.
        failing_calls: Calls answered with ``failing_status``.
        garbled_calls: The same, with a body that is not JSON.
        cut_before_calls: Calls whose connection is cut with nothing done and nothing answered.
        cut_after_calls: Calls that are done, and cut instead of answered.
        half_body_calls: Calls that are done, and cut in the middle of the answer's body.
        trickle_calls: Calls whose answer's body takes ``trickle_seconds``, piece by piece.
        unavailable: Pathnames: a call that names one of them is answered with 503, and nothing of it is done.
        blobs_per_minute: Blobs that deletes may name in any 60 seconds; the call beyond is answered with 429.
        operations: If not empty, only these calls take part in the counted faults: put, head, list, delete, copy.
    """

    latency_ms: float = 0
    rate_limited_calls: int = 0
    retry_after: int = 1
    failing_calls: int = 0
    failing_status: int = 503
    garbled_calls: int = 0
    cut_before_calls: int = 0
    cut_after_calls: int = 0
    half_body_calls: int = 0
    trickle_calls: int = 0
    trickle_seconds: float = 1
    unavailable: set[str] = field(default_factory=set)
    blobs_per_minute: int | None = None
    operations: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Make the lock, which is no field of the dataclass."""
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Switch every fault off, the latency too."""
        self.change(asdict(Faults()))

    def change(self, values: dict[str, Any]) -> None:
        """Set some of the faults by name, all or none.

        Raises:
            BlobRefused: There is no such fault, or the value is not of its type.
        """
        defaults = asdict(Faults())
        checked: dict[str, Any] = {}
        for name, value in values.items():
            kinds: Any = _KINDS.get(name, int)
            if name not in defaults or isinstance(value, bool) or not isinstance(value, kinds):
                raise bad_request(f"no such fault: {name} = {value!r}")
            checked[name] = set(value) if isinstance(value, list) else value
        with self._lock:
            for name, value in checked.items():
                setattr(self, name, value)

    def as_json(self) -> dict[str, Any]:
        """Return the faults as JSON values."""
        return {name: sorted(value) if isinstance(value, set) else value for name, value in asdict(self).items()}

    def take(self, operation: str) -> str | None:
        """Return the fault of a call, and count it down; None: the call has none."""
        with self._lock:
            if self.operations and operation not in self.operations:
                return None
            for fault in _FAULTS:
                left: int = getattr(self, f"{fault}_calls")
                if left:
                    setattr(self, f"{fault}_calls", left if left < 0 else left - 1)
                    return fault
        return None


class Window:
    """Counts blobs in the last 60 seconds, and the most in any 60 seconds."""

    def __init__(self) -> None:
        self._calls: deque[tuple[float, int]] = deque()
        self.total = self.peak = 0
        self.peak_at: float | None = None

    def add(self, now: float, blobs: int) -> None:
        """Count blobs; ``peak_at`` is the moment at which the fullest window ended."""
        self._expire(now)
        self._calls.append((now, blobs))
        self.total += blobs
        if self.total > self.peak:
            self.peak, self.peak_at = self.total, now

    def seconds_until_room(self, now: float, blobs: int, limit: int) -> float:
        """Return the seconds until ``blobs`` more stay within the limit; 0 if they do now."""
        self._expire(now)
        excess = self.total + blobs - limit
        for at, past in self._calls:
            if excess <= 0:
                return 0
            excess -= past
            if excess <= 0:
                return at + MINUTE - now
        return MINUTE if excess > 0 else 0

    def _expire(self, now: float) -> None:
        while self._calls and self._calls[0][0] <= now - MINUTE:
            self.total -= self._calls.popleft()[1]


@dataclass(frozen=True)
class LoggedCall:
    """One call as it came; ``status`` is None where no whole answer was sent, ``attempt`` is the JS client's header.

    ``traceparent`` is the header that names the caller's trace.
    """

    at: float
    operation: str
    targets: tuple[str, ...]
    status: int | None
    deleted: int
    attempt: str | None
    traceparent: str | None = None


class Counters:
    """The server's record of what it was asked and what it did.

    Attributes:
        named: Window of the blobs that deletes named, answered well or not.
        deleted: Window of the blobs that were there and are gone.
        deletions: Unix time and blobs of each of the last deletes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Set every count to 0."""
        with self._lock:
            self.requests = self.connections = self.blobs_named = self.blobs_deleted = 0
            self.peak_in_flight = self.in_flight
            self.operations: Counter[str] = Counter()
            self.statuses: Counter[str] = Counter()
            self.named, self.deleted, self._admitted = Window(), Window(), Window()
            self.deletions: deque[tuple[float, int]] = deque(maxlen=100_000)

    def connected(self) -> None:
        """Count a connection."""
        with self._lock:
            self.connections += 1

    @contextlib.contextmanager
    def call(self, operation: str, blobs: int) -> Iterator[None]:
        """Count a call, and that it is under way."""
        with self._lock:
            self.requests += 1
            self.operations[operation] += 1
            if operation == "delete":
                self.blobs_named += blobs
                self.named.add(time.time(), blobs)
            self.in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            yield
        finally:
            with self._lock:
                self.in_flight -= 1

    def admit(self, blobs: int, limit: int | None) -> int:
        """Let blobs through a limit a minute; return the seconds to wait where they do not fit, else 0."""
        with self._lock:
            now = time.time()
            wait = 0.0 if limit is None else self._admitted.seconds_until_room(now, blobs, limit)
            if wait:
                return math.ceil(wait)
            self._admitted.add(now, blobs)
        return 0

    def done(self, status: int | None, deleted: int) -> None:
        """Count how a call ended."""
        with self._lock:
            self.statuses[str(status or "cut")] += 1
            if deleted:
                now = time.time()
                self.blobs_deleted += deleted
                self.deleted.add(now, deleted)
                self.deletions.append((now, deleted))

    def snapshot(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        with self._lock:
            names = ("requests", "connections", "in_flight", "peak_in_flight", "blobs_named", "blobs_deleted")
            return {name: getattr(self, name) for name in names} | {
                "operations": dict(self.operations),
                "statuses": dict(self.statuses),
                "peak_named_per_minute": self.named.peak,
                "peak_deleted_per_minute": self.deleted.peak,
                "peak_deleted_at": self.deleted.peak_at,
            }
