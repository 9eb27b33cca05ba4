#!/usr/bin/env python3
"""Measure erasures: 10 000 requests among 1 000 000 rows, linear in their number and flat in memory.

    python benchmarks/erasure.py            10 000 requests, 1 000 000 rows; ten minutes
    python benchmarks/erasure.py --quick    a tenth of everything

The same job runs twice on the same tables, the second time with ten times as many requests as the first. What is
compared is the time a request in both; each run is a process of its own, whose greatest memory is read afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psycopg
from rich.console import Console
from rich.table import Table

from backend import local_stack
from scripts.utils.test_helpers import script_environment  # noqa: TID251 - a benchmark runs scripts as tests do

SCRIPT = ROOT / "scripts" / "retention" / "enforce_gdpr_deletion.py"
DATABASE = "erasure"
LINEAR = 1.5
"""How many times as long a request may take if there are ten times as many requests."""
FLAT = 1.2

_FILL = """
INSERT INTO users SELECT md5('u' || n)::uuid::text, 'p' || n || '@example.com', 'p' || n || '@example.com', NULL,
       timezone('UTC', now()), timezone('UTC', now()) FROM generate_series(0, %(people)s - 1) n;
INSERT INTO quiz_responses (id, email, normalized_email, quiz_data, calorie_target, created_at)
SELECT md5('q' || n)::uuid::text, 'p' || n %% %(people)s || '@example.com', 'p' || n %% %(people)s || '@example.com',
       jsonb_build_object('answers', repeat('x', 400)), 1800, timezone('UTC', now())
  FROM generate_series(0, %(rows)s * 6 / 10 - 1) n;
INSERT INTO magic_link_tokens (id, token_hash, email, normalized_email, created_at, expires_at, generation_ip)
SELECT md5('m' || n)::uuid::text, md5('h' || n), 'p' || n %% %(people)s || '@example.com',
       'p' || n %% %(people)s || '@example.com', timezone('UTC', now()), timezone('UTC', now()), '192.0.2.1'
  FROM generate_series(0, %(rows)s * 2 / 10 - 1) n;
INSERT INTO payment_transactions
SELECT md5('t' || n)::uuid::text, 'pay' || n, NULL, 29.9, 'EUR', 'card', 'succeeded', now(), now(),
       'p' || n %% %(people)s || '@example.com', 'p' || n %% %(people)s || '@example.com', now(), now()
  FROM generate_series(0, %(rows)s * 2 / 10 - 1) n;
ANALYZE;
"""
_ASK = """
INSERT INTO ops.erasure_requests (email, channel, identity_method, identity_verified_at)
SELECT 'p' || n || '@example.com', 'web', 'link', now() FROM generate_series(%s::int, %s::int) n
"""


def main() -> int:
    """Measure, and print a table.

    Returns:
        0 if every target was met, else 1.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    people, rows = (1_000, 100_000) if parser.parse_args().quick else (10_000, 1_000_000)
    few = people // 11
    directory = Path(tempfile.mkdtemp(prefix="lifecycle-erasure-"))
    stack = local_stack.start(directory)
    try:
        local_stack.prepare(stack, database=DATABASE)
        folder = directory / "cold storage"
        folder.mkdir()
        with psycopg.connect(  # noqa: TID251 - as the superuser
            stack.superuser_url(DATABASE), autocommit=True, cursor_factory=psycopg.ClientCursor
        ) as link:
            link.execute(_FILL, {"people": people, "rows": rows})
            figures = []
            for first, last in ((0, few - 1), (few, people - 1)):
                link.execute(_ASK, (first, last))
                figures.append((last - first + 1, *_measured(stack, folder, last - first + 1)))
            named = link.execute(
                "SELECT (SELECT count(*) FROM users) + (SELECT count(*) FROM quiz_responses)"
                " + (SELECT count(*) FROM payment_transactions WHERE customer_email LIKE '%@%')"
            ).fetchone()
    finally:
        local_stack.stop(stack)
        shutil.rmtree(directory, ignore_errors=True)
    a_request = [seconds / requests for requests, seconds, _ in figures]
    slower, larger = a_request[1] / a_request[0], figures[1][2] / figures[0][2]
    table = Table("measure", "target", "measured", "")
    for (requests, seconds, memory), each in zip(figures, a_request, strict=True):
        speed = rows / people * requests / seconds
        table.add_row(
            f"{requests:,} requests of {rows // people} rows",
            "",
            f"{seconds:.0f} s: {1000 * each:.1f} ms a request, {speed:,.0f} rows/s, {memory:.0f} MB",
            "",
        )
    table.add_row("time a request, many against few", f"at most {LINEAR}", f"{slower:.2f}", _verdict(slower <= LINEAR))
    table.add_row("memory, many against few", f"at most {FLAT}", f"{larger:.2f}", _verdict(larger <= FLAT))
    table.add_row("rows that still name somebody", "0", str(named[0] if named else "?"), _verdict(named == (0,)))
    Console().print(table)
    return 0 if slower <= LINEAR and larger <= FLAT and named == (0,) else 1


def _verdict(met: bool) -> str:
    return "pass" if met else "FAIL"


def _measured(stack: local_stack.Stack, folder: Path, requests: int) -> tuple[float, float]:
    """Run the job once; return its seconds and its greatest memory in megabytes."""
    environment = script_environment(
        {
            "DATABASE_URL": stack.jobs_url(DATABASE),
            "REDIS_URL": stack.redis_url,
            "ARCHIVE_URL": folder.as_uri(),
            "AUDIT_PSEUDONYM_KEY": "k1:" + "ab" * 32,
            "SUPPRESSION_KEY": "s1:" + "cd" * 32,
        }
    )
    began = time.perf_counter()
    output = folder.with_name("output")
    with output.open("w") as file:
        process = subprocess.Popen([sys.executable, str(SCRIPT)], env=environment, stdout=file)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    closing = json.loads(output.read_text().splitlines()[-1])
    if status or closing["fulfilled"] != requests:
        raise SystemExit(f"the run did not do what is measured: {closing}")
    return seconds, usage.ru_maxrss / 1024


if __name__ == "__main__":
    raise SystemExit(main())
