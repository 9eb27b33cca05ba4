"""Retries with an opinion, and a circuit breaker.

The caller names the exceptions, both attempts and seconds are bounded, the waits always have jitter, and what is
retried is a connect or a call, never a whole job.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from typing import TypeVar

import tenacity  # noqa: TID251 - this is its one home

Result = TypeVar("Result")


def retry(
    call: Callable[[], Result],
    *,
    on: Callable[[BaseException], bool],
    attempts: int,
    seconds: float,
    longest_wait: float = 10.0,
    before_wait: Callable[[int, BaseException], None] | None = None,
    asked_wait: Callable[[BaseException], float | None] = lambda _: None,
    sleep: Callable[[float], None] | None = None,
) -> Result:
    """Call until it succeeds, fails for good, or a bound is met.

    Args:
        call: What to do; must be safe to repeat.
        on: Tells whether an exception is worth another attempt.
        attempts: Number of calls at most.
        seconds: No further attempt begins later than this after the first.
        longest_wait: Upper bound of one wait, in seconds; waits grow exponentially and have full jitter.
        before_wait: Told the number of the failed attempt and its exception.
        asked_wait: Returns the seconds that the other side asked for (``Retry-After``); None: it did not.
        sleep: Waits; may raise to give up.

    Returns:
        What the call returned.

    Raises:
        BaseException: The last exception of the call, unwrapped.
    """

    def tell(state: tenacity.RetryCallState) -> None:
        if before_wait and state.outcome and (error := state.outcome.exception()):
            before_wait(state.attempt_number, error)

    jittered = tenacity.wait_random_exponential(multiplier=0.2, max=longest_wait)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = asked_wait(error) if error else None
        return jittered(state) if asked is None else asked

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(on),
        stop=tenacity.stop_after_attempt(attempts) | tenacity.stop_before_delay(seconds),
        wait=wait,
        sleep=sleep or time.sleep,
        before_sleep=tell,
        reraise=True,
    )
    return retrying(call)


class CircuitOpen(Exception):
    """Too many of the last calls failed; no further call was made."""


class CircuitBreaker:
    """Stops calling what keeps failing.

    It stays open for the life of the process: a cron job ends cleanly and its next run tries again.

    Args:
        name: What it protects, for the library's logs.
        failure_limit: Opens when this share of the last calls failed. The denominator is the number of calls looked
            at, so the fraction must be in lowest terms: 4/5, 27/50.
        counts: Tells which exceptions are failures of what is protected.
    """

    def __init__(self, name: str, *, failure_limit: Fraction, counts: Callable[[Exception], bool]) -> None:
        # Here, as connecting needs retry() alone.
        from resilient_circuit import CircuitProtectorPolicy
        from resilient_circuit.storage import InMemoryStorage

        self._policy = CircuitProtectorPolicy(
            resource_key=name,
            storage=InMemoryStorage(),
            cooldown=timedelta(days=1),
            failure_limit=failure_limit,
            should_handle=counts,
        )

    def call(self, call: Callable[[], Result]) -> Result:
        """Make the call, or refuse.

        Raises:
            CircuitOpen: The breaker is open.
            Exception: Whatever the call raises.
        """
        from resilient_circuit.exceptions import ProtectedCallError

        try:
            return self._policy(call)()
        except ProtectedCallError as error:
            raise CircuitOpen from error
