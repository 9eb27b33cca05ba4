"""Retries have bounds, and a breaker that opened stays open."""

import time
from fractions import Fraction

import pytest

from scripts.utils.retry_utils import CircuitBreaker, CircuitOpen, retry


class Flaky:
    """Fails so many times with an exception, then returns how often it was called."""

    def __init__(self, failures, error=None):
        self.failures = failures
        self.error = error or ConnectionError("gone")
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return self.calls


def quickly(call, *, attempts=4, seconds=5.0, on=ConnectionError, **options):
    return retry(
        call, on=lambda error: isinstance(error, on), attempts=attempts, seconds=seconds, longest_wait=0.001, **options
    )


def test_repeats_until_it_succeeds():
    assert quickly(Flaky(3)) == 4


def test_the_first_success_is_not_repeated():
    assert quickly(Flaky(0)) == 1


def test_attempts_are_bounded_and_the_last_exception_comes_as_it_was():
    call = Flaky(99)
    with pytest.raises(ConnectionError, match="gone") as caught:
        quickly(call)
    assert caught.value is call.error
    assert call.calls == 4


def test_seconds_are_bounded():
    call = Flaky(10_000)
    with pytest.raises(ConnectionError):
        quickly(call, attempts=100_000, seconds=0.2)
    assert 1 < call.calls < 10_000


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt(), SystemExit(3)])
def test_only_named_exceptions_are_worth_another_attempt(error):
    call = Flaky(99, error)
    with pytest.raises(type(error)) as caught:
        quickly(call)
    assert caught.value is error
    assert call.calls == 1


def test_waits_grow_and_have_jitter(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for _ in range(50):
        with pytest.raises(ConnectionError):
            retry(Flaky(99), on=lambda _: True, attempts=8, seconds=1e6, longest_wait=3.0)
    runs = [waits[start : start + 7] for start in range(0, len(waits), 7)]
    assert len(waits) == 50 * 7
    assert max(waits) <= 3.0
    assert max(run[0] for run in runs) <= 0.2
    assert max(run[6] for run in runs) > 1.0
    assert len({run[6] for run in runs}) > 40, "clients that failed together must not come back together"


def test_each_failure_is_told_before_the_wait():
    told = []
    call = Flaky(2)
    quickly(call, before_wait=lambda attempt, error: told.append((attempt, error)))
    assert told == [(1, call.error), (2, call.error)]


def outcomes(pattern, failure_limit=Fraction(4, 5)):
    """Feed a breaker with calls that fail (f), fail in another way (o) or succeed (s), and return what came of them."""
    breaker = CircuitBreaker(
        "a table", failure_limit=failure_limit, counts=lambda error: isinstance(error, ConnectionError)
    )
    errors = {"f": ConnectionError("gone"), "o": ValueError("other")}
    found = ""
    for kind in pattern:
        call = Flaky(1 if kind in errors else 0, errors.get(kind))
        try:
            assert breaker.call(call) == 1
            found += "s"
        except CircuitOpen:
            assert call.calls == 0, "an open breaker must not call"
            found += "-"
        except (ConnectionError, ValueError) as error:
            found += kind if error is errors[kind] else "?"
    return found


@pytest.mark.parametrize(
    ("pattern", "outcome"),
    [
        ("sffffs", "sffff-"),  # four of five
        ("fffsfs", "fffsf-"),
        ("fffffs", "fffff-"),
        ("ffffss", "ffffss"),  # four alone are not yet four of five
        ("ffsfsfsffsfs" * 5, "ffsfsfsffsfs" * 5),  # three of five, for ever
        ("ssssssffff", "ssssssffff"),
        ("oooooooooo", "oooooooooo"),  # what is not counted never opens it
        ("sffffssssssssssss", "sffff------------"),  # open, it stays open
    ],
)
def test_the_breaker_opens_at_four_of_five(pattern, outcome):
    assert outcomes(pattern) == outcome


def test_breakers_know_nothing_of_each_other():
    assert outcomes("sffff") == outcomes("sffff")
