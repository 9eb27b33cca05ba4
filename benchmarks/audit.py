#!/usr/bin/env python3
"""Measure how fast the audit is verified, and what of it costs: one core for everything, the server's part included.

    python benchmarks/audit.py            five million entries, three trials, about two minutes
    python benchmarks/audit.py --quick    500 000, one trial; what needs the full size is shown, not judged

Servers of its own in a temporary directory, removed at the end. An entry is the id of one record; a batch has 1,000 to
5,000 of them, as the purge writes them. Verifying process and its server process are bound to one and the same core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psycopg
from rich.console import Console

from backend import local_stack
from benchmarks.purge import Line, one, peak_mb, range_of, require, table_of
from scripts.lifecycle.audit import audit_chain
from scripts.utils.test_helpers import start_script  # noqa: TID251 - a benchmark runs scripts as tests do

Connection = psycopg.Connection[Any]

SCRIPT = ROOT / "scripts" / "retention" / "verify_audit.py"
FULL, QUICK = 5_000_000, 500_000
SINGLE = 20_000
MEAN_BATCH = 3_000
TRIALS = 3
RATE, MEMORY_MB = 500_000, 120.0
CORE = 0
FILL = """
SELECT count(ops.append_audit(gen_random_uuid(), 'system:cleanup_quiz_responses', 'delete', 'public.quiz_responses',
       'retention_policy:quiz_responses/delivered', gen_random_uuid(),
       (SELECT array_agg(gen_random_uuid()::text) FROM generate_series(1, %(least)s + mod(n, 5) * %(step)s)),
       '{"due_before": "2026-01-30T02:00:00+00:00"}'))
  FROM generate_series(1, %(batches)s) n
"""
COPY = "COPY (SELECT {} FROM ops.audit_batches ORDER BY seq) TO STDOUT (FORMAT binary)"


class Bench:
    """The server with the chains, and what was measured on it."""

    def __init__(self, stack: local_stack.Stack, entries: int) -> None:
        self._stack = stack
        self.entries = entries
        self.rates: dict[str, list[float]] = {"one core": [], "process": [], "reading": [], "single": [], "search": []}
        self.peaks: list[float] = []

    def load(self) -> None:
        """Write a chain of large batches, and one whose batches have one id each, as people's decisions do."""
        for name, least, step, batches in (
            ("large", 1_000, 1_000, self.entries // MEAN_BATCH),
            ("single", 1, 0, SINGLE),
        ):
            local_stack.prepare(self._stack, database=name)
            with self._superuser(name) as connection:
                connection.execute(FILL, {"least": least, "step": step, "batches": batches})
                connection.execute("VACUUM (ANALYZE)")
        with self._superuser("large") as connection:
            self.entries = one(connection, "SELECT sum(cardinality(resource_ids)) FROM ops.audit_batches")

    @contextmanager
    def _superuser(self, name: str) -> Iterator[Connection]:
        with psycopg.connect(self._stack.superuser_url(name), autocommit=True) as connection:  # noqa: TID251 - as the superuser
            yield connection

    @contextmanager
    def _on_one_core(self, name: str) -> Iterator[Connection]:
        before = os.sched_getaffinity(0)
        with self._superuser(name) as connection:
            os.sched_setaffinity(connection.info.backend_pid, {CORE})
            os.sched_setaffinity(0, {CORE})
            try:
                yield connection
            finally:
                os.sched_setaffinity(0, before)

    def trial(self) -> None:
        """Measure each kind once."""
        for name, kind in (("large", "one core"), ("single", "single")):
            with self._on_one_core(name) as connection, connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                begun = time.monotonic()
                result = audit_chain.verify_within(connection)
                seconds = time.monotonic() - begun
            require(result.intact, "the chain is broken")
            require(name == "single" or result.entries == self.entries, f"{result.entries} entries")
            self.rates[kind].append(result.entries / seconds)
        with self._on_one_core("large") as connection:
            begun = time.monotonic()
            with connection.cursor().copy(COPY.format("resource_ids").encode()) as copy:
                for _ in copy:
                    pass
            self.rates["reading"].append(self.entries / (time.monotonic() - begun))
        with self._superuser("large") as connection:
            begun = time.monotonic()
            connection.execute("SELECT seq FROM ops.audit_batches WHERE resource_ids @> ARRAY['none']").fetchall()
            self.rates["search"].append(self.entries / (time.monotonic() - begun))
        self._process()

    def _process(self) -> None:
        environment = {"DATABASE_URL": self._stack.jobs_url("large"), "REDIS_URL": self._stack.redis_url}
        begun, peak = time.monotonic(), 0.0
        closing: dict[str, Any] = {}
        with start_script(SCRIPT, "--log-format", "json", env=environment) as process:
            for line in process.stdout or ():
                closing = json.loads(line)
                peak = max(peak, peak_mb(process.pid))
        seconds = time.monotonic() - begun
        require(process.returncode == 0, f"verify_audit ended with {process.returncode}: {closing}")
        self.rates["process"].append(self.entries / seconds)
        self.peaks.append(peak)


def judge(bench: Bench, *, full: bool) -> list[Line]:
    """Set what was measured against what was promised."""

    def rate(kind: str) -> str:
        values = bench.rates[kind]
        return f"{median(values):,.0f} entries/s ({range_of(values, ',.0f')})"

    peak = max(bench.peaks)
    return [
        Line(
            "verified, server and client on one core",
            f">= {RATE:,}",
            rate("one core"),
            min(bench.rates["one core"]) >= RATE if full else None,
        ),
        Line("of which reading and sending the ids alone", "", rate("reading")),
        Line("verify_audit, whole process, any core", "", rate("process")),
        Line("verified, batches of one id each, one core", "", rate("single")),
        Line("one record searched by its id", "", rate("search")),
        Line("peak memory of verify_audit", f"< {MEMORY_MB:.0f} MB", f"{peak:.1f} MB", peak < MEMORY_MB),
    ]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(prog="audit.py", description=lines[0])
    parser.add_argument("--entries", type=int, default=None, help=f"default {FULL:,}")
    parser.add_argument("--trials", type=int, default=None, help=f"default {TRIALS}")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} entries, one trial")
    options = parser.parse_args(argv)
    options.entries = options.entries or (QUICK if options.quick else FULL)
    options.trials = options.trials or (1 if options.quick else TRIALS)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a target was missed."""
    options = _arguments(argv)
    with tempfile.TemporaryDirectory(prefix="audit-benchmark-") as directory:
        os.chmod(directory, 0o711)  # noqa: PTH101, S103 - started by root, the servers run as another user
        stack = local_stack.start(Path(directory) / "stack", shared_buffers_mb=1024)
        try:
            bench = Bench(stack, options.entries)
            bench.load()
            for _ in range(options.trials):
                bench.trial()
        finally:
            local_stack.stop(stack)
            local_stack.delete(stack)
    lines = judge(bench, full=options.entries >= FULL)
    title = f"{bench.entries:,} entries; medians and ranges of {options.trials} trial{'s' * (options.trials > 1)}"
    Console(width=None if sys.stdout.isatty() else 110).print(table_of(lines, title))
    return int(any(line.passed is False for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
