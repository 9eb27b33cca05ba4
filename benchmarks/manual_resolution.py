#!/usr/bin/env python3
"""Measure the manual-resolution queue: fifty operators at once, and a claim while a million items wait.

    python benchmarks/manual_resolution.py            5 000 items, 50 processes; a million items; five minutes
    python benchmarks/manual_resolution.py --quick    500 items, 10 processes; 100 000 items; a minute

Every operator is a process of its own that decides what it can claim, deleting a row through the engine for each item.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psycopg
from rich.console import Console
from rich.table import Table

from backend import local_stack
from scripts.lifecycle.queue.work import Work
from scripts.utils.db_utils import Database
from scripts.utils.settings import Settings
from scripts.utils.test_helpers import Proxy, start_script  # noqa: TID251 - a benchmark runs scripts as tests do

PROCESS = ROOT / "scripts" / "manual-resolution" / "process_queue.py"
KEY = "k1:" + "ab" * 32
CLAIMS = 200
SLOWER = 2.0
"""How many times as long a claim may take among a million items as among a thousand."""

QUIZ = """
INSERT INTO public.quiz_responses (id, email, normalized_email, quiz_data, calorie_target, created_at, payment_id)
SELECT md5('quiz' || n)::uuid::text, 'person' || n || '@example.com', 'person' || n || '@example.com', '{}', 1800,
       timezone('UTC', now()) - interval '2 days', 'pay' || n FROM generate_series(1, %s) n
"""
ITEMS = """
INSERT INTO ops.manual_resolution_queue
       (item_type, resource_type, resource_id, priority, reason, raised_by, deadline_at)
SELECT 'quiz_undelivered', 'public.quiz_responses', md5('quiz' || n)::uuid::text, 'high', 'r', 'system:benchmark',
       now() + n * interval '1 second' FROM generate_series(1, %s) n ORDER BY md5('order' || n)
"""


def main() -> int:
    """Measure, and print a table.

    Returns:
        0 if every target was met, else 1.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    quick = parser.parse_args().quick
    directory = Path(tempfile.mkdtemp(prefix="lifecycle-queue-"))
    stack = local_stack.start(directory)
    try:
        local_stack.prepare(stack, database="queue")
        with psycopg.connect(stack.superuser_url("queue"), autocommit=True) as link:  # noqa: TID251 - as the superuser
            lines = _drained(stack, link, *((500, 10) if quick else (5_000, 50)))
            lines += _claimed(stack, link, 100_000 if quick else 1_000_000)
    finally:
        local_stack.stop(stack)
        shutil.rmtree(directory, ignore_errors=True)
    table = Table("measure", "target", "measured", "")
    for name, target, measured, met in lines:
        table.add_row(name, target, measured, "pass" if met else "FAIL")
    Console().print(table)
    return 0 if all(met for *_, met in lines) else 1


Line = tuple[str, str, str, bool]


def _drained(stack: local_stack.Stack, link: psycopg.Connection[Any], items: int, operators: int) -> list[Line]:
    link.execute(QUIZ, (items,))
    link.execute(ITEMS, (items,))
    started = time.monotonic()
    at_work = [
        start_script(
            PROCESS,
            *("resolve", "--item-type", "quiz_undelivered", "--decision", "delete", "--reason", "r", "--yes"),
            env={
                "DATABASE_URL": stack.jobs_url("queue"),
                "REDIS_URL": stack.redis_url,
                "AUDIT_PSEUDONYM_KEY": KEY,
                "OPERATOR": f"operator-{number}",
                "DB_POOL_SIZE": "2",
                "DB_MAX_OVERFLOW": "0",
            },
        )
        for number in range(operators)
    ]
    said = [list(map(json.loads, process.communicate()[0].splitlines())) for process in at_work]
    answers = [next(line for line in lines if "event" not in line) for lines in said]
    for problem in Counter(error for answer in answers for error in answer["failed"].values()).most_common(5):
        Console().print(problem)
    seconds = time.monotonic() - started
    decided = [answer["decided"] for answer in answers]
    resolved = Counter(
        key for (key,) in link.execute("SELECT resource_id FROM ops.audit_log WHERE action = 'queue_item_resolved'")
    )
    deleted = Counter(key for (key,) in link.execute("SELECT resource_id FROM ops.audit_log WHERE action = 'delete'"))
    left = link.execute(
        "SELECT (SELECT count(*) FROM quiz_responses),"
        " (SELECT count(*) FROM ops.manual_resolution_queue WHERE status <> 'resolved')"
    ).fetchone()
    once = len(resolved) == len(deleted) == items == sum(decided) and {*resolved.values(), *deleted.values()} == {1}
    failed = sum(len(answer["failed"]) for answer in answers)
    return [
        (
            f"{items} items, {operators} operators: handled twice",
            "0",
            str(sum(resolved.values()) - len(resolved)),
            once,
        ),
        ("lost, or left open", "0", str(sum(left or (1,))), left == (0, 0)),
        ("failed", "0", str(failed), failed == 0),
        ("operators that got some", f"{operators}", str(sum(map(bool, decided))), True),
        ("time, and items a second", "", f"{seconds:.0f} s, {items / seconds:.0f}", True),
    ]


def _claimed(stack: local_stack.Stack, link: psycopg.Connection[Any], items: int) -> list[Line]:
    few = _claims(stack, link, 1_000)
    many = _claims(stack, link, items)
    return [
        ("round trips a claim", "1", f"{many[1]:.2f}", many[1] == 1),
        ("claim among 1 000 items, median", "", f"{few[0] * 1000:.2f} ms", True),
        (f"claim among {items:,} items, median", "", f"{many[0] * 1000:.2f} ms", True),
        ("ratio", f"at most {SLOWER:.0f}", f"{many[0] / few[0]:.2f}", many[0] <= SLOWER * few[0]),
        ("uses its index", "yes", "yes" if many[2] else "no", many[2]),
    ]


def _claims(stack: local_stack.Stack, link: psycopg.Connection[Any], items: int) -> tuple[float, float, bool]:
    """Return the median seconds of a claim, its round trips, and whether only its index was read."""
    link.execute("TRUNCATE ops.manual_resolution_queue")
    link.execute(ITEMS, (items,))
    link.execute("VACUUM ANALYZE ops.manual_resolution_queue")
    url = stack.jobs_url("queue")
    before = _scans(link)
    with Proxy.before(url) as proxy:
        database = Database(proxy.through(url), application_name="benchmark", max_size=1)
        database.open()
        settings = Settings(DATABASE_URL=url, REDIS_URL=stack.redis_url)
        work = Work(database, settings, "olga")
        work.claim()
        # A connection that is lent is checked, which is a round trip of the pool's.
        with database.connection():
            pass
        proxy.turns = 0
        with database.connection():
            pass
        of_the_pool = proxy.turns
        proxy.turns = 0
        seconds = []
        for _ in range(CLAIMS):
            started = time.monotonic()
            claimed = work.claim()
            seconds.append(time.monotonic() - started)
            if claimed is None:
                raise SystemExit("benchmark void: nothing could be claimed")
        trips = proxy.turns / CLAIMS - of_the_pool
        database.close()
    time.sleep(1.5)  # until the server has counted
    after = _scans(link)
    return median(seconds), trips, after[0] > before[0] and after[1] == before[1]


def _scans(link: psycopg.Connection[Any]) -> tuple[int, int]:
    """Return how often the claim's index was used, and how often the whole table was read."""
    row = link.execute(
        "SELECT (SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'manual_resolution_queue_worst_idx'),"
        " (SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'manual_resolution_queue')"
    ).fetchone()
    return (row[0], row[1]) if row else (0, 0)


if __name__ == "__main__":
    sys.exit(main())
