"""Processes that share a limit never exceed it together, in any window, wherever it begins."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from scripts.utils import rate_limit
from scripts.utils.rate_limit import SharedRateLimit
from scripts.utils.test_helpers import Proxy, script_environment

ROOT = Path(__file__).resolve().parents[2]
NOBODY = "redis://127.0.0.1:1/0"
WINDOW, LIMIT = 2, 40

# Prints [earliest, latest, units] of each permission: it was counted somewhere between the two.
WORKER = """
import json, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from scripts.utils import rate_limit

rate_limit._WINDOW_SECONDS = {window}
limit = rate_limit.SharedRateLimit(sys.argv[1], name="test", per_minute={limit})

def take(units):
    earliest = time.time()
    def pause(seconds):
        nonlocal earliest
        time.sleep(seconds)
        earliest = time.time()
    limit.acquire(units, pause)
    return earliest, time.time(), units

print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(4) as pool:
    print(json.dumps(list(pool.map(take, [7, 1, 12, 3, 20, 7, 5, 11]))))
"""


@pytest.fixture
def short_window(monkeypatch):
    monkeypatch.setattr(rate_limit, "_WINDOW_SECONDS", WINDOW)


def most_in_a_window(permissions):
    """The most units that were certainly counted within one window, however slow the machine was."""
    return max(
        sum(units for earliest, latest, units in permissions if earliest >= start and latest < start + WINDOW)
        for start, _, _ in permissions
    )


def never(seconds):
    raise AssertionError(f"asked to wait {seconds} s")


def test_threads_of_several_processes_together_never_exceed_the_limit(redis_url):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER.format(window=WINDOW, limit=LIMIT), redis_url],
            cwd=ROOT,
            env=script_environment({}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    permissions = [one for worker in workers for one in json.loads(worker.communicate(timeout=300)[0])]

    total = sum(units for _, _, units in permissions)
    assert (len(permissions), total) == (16, 132)
    assert most_in_a_window(permissions) <= LIMIT
    # 132 units at 40 a window cannot be had without three of them passing.
    assert max(latest for _, latest, _ in permissions) - min(first for first, _, _ in permissions) >= 3 * WINDOW


def test_what_one_process_took_another_cannot_take(redis_url):
    first, second = (SharedRateLimit(redis_url, name="test", per_minute=LIMIT) for _ in range(2))
    assert first.acquire(LIMIT, never) >= 0

    waits = []
    with pytest.raises(InterruptedError):
        second.acquire(1, lambda seconds: (waits.append(seconds), (_ for _ in ()).throw(InterruptedError))[1])

    assert 0 < waits[0] <= 60


@pytest.mark.parametrize("ahead", [3600, -3600])
def test_a_process_whose_clock_is_wrong_takes_no_more(redis_url, monkeypatch, ahead):
    """Times that are not in order would let this process, or a later one, exceed the limit."""
    honest, wrong = (SharedRateLimit(redis_url, name="test", per_minute=LIMIT) for _ in range(2))
    honest.acquire(LIMIT // 2, never)
    real = time.time
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: real() + ahead)
        wrong.acquire(LIMIT // 2, never)
        with pytest.raises(AssertionError, match="asked to wait"):
            wrong.acquire(1, never)

    with pytest.raises(AssertionError, match="asked to wait"):
        honest.acquire(1, never)


def test_other_names_have_their_own_limit(redis_url):
    for name in ("one", "two"):
        SharedRateLimit(redis_url, name=name, per_minute=LIMIT).acquire(LIMIT, never)


def test_giving_up_takes_nothing(redis_url):
    limit = SharedRateLimit(redis_url, name="test", per_minute=LIMIT)
    limit.acquire(LIMIT - 1, never)

    def give_up(_):
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            limit.acquire(2, give_up)

    limit.acquire(1, never)


def test_more_units_than_the_limit_are_an_error_at_once(redis_url):
    limit = SharedRateLimit(redis_url, name="test", per_minute=LIMIT)

    with pytest.raises(ValueError, match="41 units never fit a limit of 40 a minute"):
        limit.acquire(LIMIT + 1, never)

    limit.acquire(LIMIT, never)


def test_without_redis_the_threads_of_a_process_count_together_and_one_warning_says_so(short_window):
    limit = SharedRateLimit(NOBODY, name="test", per_minute=LIMIT)
    together = threading.Barrier(8)

    def take(_):
        together.wait(300)
        earliest = time.time()

        def pause(seconds):
            nonlocal earliest
            time.sleep(seconds)
            earliest = time.time()

        limit.acquire(10, pause)
        return earliest, time.time(), 10

    with capture_logs() as lines, ThreadPoolExecutor(8) as pool:
        permissions = list(pool.map(take, range(8)))

    assert most_in_a_window(permissions) <= LIMIT
    assert [(line["event"], line["log_level"], line["limit"]) for line in lines] == [
        ("rate_limit_not_shared", "warning", "test")
    ]


def test_the_url_of_redis_is_in_no_warning():
    limit = SharedRateLimit("redis://user:secret-word@127.0.0.1:1/0", name="test", per_minute=LIMIT)
    with capture_logs() as lines:
        limit.acquire(1, never)
    assert len(lines) == 1
    assert "secret-word" not in str(lines)


def test_redis_that_goes_away_in_the_middle_does_not_stop_the_work(redis_url):
    with Proxy.before(redis_url) as proxy:
        limit = SharedRateLimit(proxy.through(redis_url), name="test", per_minute=LIMIT)
        with capture_logs() as lines:
            limit.acquire(1, never)
            proxy.refuse(1000)
            proxy.cut()
            limit.acquire(LIMIT, never)  # alone, it knows nothing of what was taken before
    assert [line["event"] for line in lines] == ["rate_limit_not_shared"]
