#!/usr/bin/env python3
"""Measure archive-then-delete against the way that everybody writes first: fetch, JSON, gzip, delete by id.

    python benchmarks/archive.py            a million payments, three trials, on two cores about fifteen minutes
    python benchmarks/archive.py --quick    50 000 payments, one trial; what needs the full size is shown, not judged

Servers of its own in a temporary directory, removed at the end. Each trial works on a fresh copy of one template
database; the two kinds alternate, and the figure is the ratio of neighbours. The usual way does less: it neither
encrypts nor reads back nor audits nor looks for holds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from rich.console import Console

from backend import local_stack
from benchmarks.purge import Line, one, peak_mb, range_of, require, table_of
from scripts.utils.test_helpers import start_script  # noqa: TID251 - a benchmark runs scripts as tests do

Connection = psycopg.Connection[Any]

SCRIPT = ROOT / "scripts" / "retention" / "archive_before_delete.py"
FULL_ROWS, QUICK_ROWS = 1_000_000, 50_000
SHARED_BUFFERS_MB = 1024
TRIALS = 3
USUAL_SECONDS = 60.0
USUAL_BATCH = 1_000
PAYMENTS_A_PERSON = 3
RATIO, MEMORY_MB = 5.0, 150.0
MASTER_KEY = "bench:" + "5a" * 32

# How a batch is deleted in the usual way; the first is the one that everybody writes.
WAYS = {
    "each": "fetch, JSON, gzip, delete by id",
    "pipeline": "the same, the ids in one executemany",
    "array": "the same, the ids in one = ANY",
}
DELETE = "DELETE FROM public.payment_transactions WHERE id = %s"
DUE = "created_at < timezone('UTC', now()) - interval '7 years'"
FILL = """
INSERT INTO public.payment_transactions (id, payment_id, amount, currency, payment_method, payment_status,
    paddle_created_at, webhook_received_at, customer_email, normalized_email, created_at, updated_at)
SELECT gen_random_uuid(), 'txn_01' || md5(n::text), 9.99 + mod(n, 4000) / 100.0, 'EUR',
       (ARRAY['card', 'paypal', 'apple_pay', 'google_pay'])[1 + mod(n, 4)], 'succeeded', at, at + interval '2 seconds',
       initcap(name) || '@Example.com', name || '@example.com', at + interval '3 seconds', at + interval '3 seconds'
  FROM (SELECT n, 'person.' || mod(n * 7919, %(people)s) || '.of.' || left(md5(mod(n * 7919, %(people)s)::text), 6)
                  AS name,
               timezone('UTC', now()) - interval '8 years' + interval '300 days' * n / %(rows)s AS at
          FROM generate_series(1, %(rows)s::bigint) n) payment
"""

console = Console(stderr=True)


@dataclass(frozen=True)
class Trial:
    """What one run of the script showed from outside; times in seconds."""

    wall: float
    peak_mb: float
    bytes: int
    """Of all objects."""
    paused: float


@dataclass
class Figures:
    """Every trial's figures, in order; rates in rows a second."""

    usual: dict[str, list[float]] = field(default_factory=lambda: {how: [] for how in WAYS})
    script: list[Trial] = field(default_factory=list)
    verify: list[float] = field(default_factory=list)


class Bench:
    """The servers and the template."""

    def __init__(self, stack: local_stack.Stack, directory: Path, rows: int) -> None:
        self._stack = stack
        self._directory = directory
        self._rows = rows
        self.figures = Figures()

    @contextmanager
    def _superuser(self, database: str) -> Iterator[Connection]:
        url = self._stack.superuser_url(database)
        with psycopg.connect(url, autocommit=True) as connection:  # noqa: TID251 - none of the jobs' connections
            yield connection

    def load(self) -> None:
        """Make the template: payments that are due."""
        local_stack.prepare(self._stack, database="template_payments")
        with self._superuser("template_payments") as connection:
            people = max(1, self._rows // PAYMENTS_A_PERSON)
            connection.execute(FILL, {"rows": self._rows, "people": people})
            # A worker that starts in one trial and not in its neighbour would decide the ratio.
            connection.execute("ALTER TABLE public.payment_transactions SET (autovacuum_enabled = off)")
            connection.execute("VACUUM (ANALYZE)")

    @contextmanager
    def _copy(self) -> Iterator[str]:
        drop = "DROP DATABASE IF EXISTS trial WITH (FORCE)"
        create = "CREATE DATABASE trial TEMPLATE template_payments STRATEGY FILE_COPY"
        with self._superuser("postgres") as connection:
            for statement in (drop, create, "CHECKPOINT"):
                connection.execute(statement)
        try:
            yield "trial"
        finally:
            with self._superuser("postgres") as connection:
                connection.execute(drop)

    def usual(self, cap: float, how: str) -> float:
        """Time the usual way, up to a cap in seconds; returns its rate."""
        find = sql.SQL("SELECT * FROM public.payment_transactions WHERE {} ORDER BY created_at LIMIT {}").format(
            sql.SQL(DUE), sql.Literal(USUAL_BATCH)
        )
        rows = 0
        with self._copy() as name, self._superuser(name) as connection:
            place = self._directory / "usual.json.gz"
            started = time.monotonic()
            with gzip.open(place, "wt") as file, connection.cursor(row_factory=dict_row) as cursor:
                while time.monotonic() - started < cap:
                    with connection.transaction():
                        found = cursor.execute(find).fetchall()
                        file.writelines(json.dumps(row, default=str) + "\n" for row in found)
                        ids = [row["id"] for row in found]
                        if how == "array":
                            cursor.execute("DELETE FROM public.payment_transactions WHERE id = ANY(%s)", (ids,))
                        elif how == "pipeline":
                            cursor.executemany(DELETE, [(each,) for each in ids])
                        else:
                            for each in ids:
                                cursor.execute(DELETE, (each,))
                    if not found:
                        break
                    rows += len(found)
            seconds = time.monotonic() - started
            place.unlink()
        return rows / seconds

    def script(self) -> Trial:
        """Time the real script, and check what it did."""
        place = self._directory / "objects"
        place.mkdir()
        with self._copy() as name:
            wall, peak, closing = self._run(name, place, "run", "--confirm-cap", str(self._rows))
            require(closing.get("records_deleted") == self._rows, f"not all rows went: {closing}")
            with self._superuser(name) as connection:
                left = one(connection, f"SELECT count(*) FROM public.payment_transactions WHERE {DUE}")
                sealed = one(connection, "SELECT sum(row_count) FROM ops.archives WHERE status = 'sealed'")
                audited = one(connection, "SELECT sum(cardinality(resource_ids)) FROM ops.audit_batches")
                size = one(connection, "SELECT sum(bytes) FROM ops.archives")
            require((left, sealed, audited) == (0, self._rows, self._rows), f"{left} left, {sealed} sealed, {audited}")
            seconds, _, intact = self._run(name, place, "verify")
            require(intact.get("event") == "archive_completed", f"verify: {intact}")
            self.figures.verify.append(self._rows / seconds)
        for path in sorted(place.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        place.rmdir()
        paused = sum(pause["seconds"] for pause in closing["pauses"].values())
        return Trial(wall, peak, size, paused)

    def _run(self, name: str, place: Path, *arguments: str) -> tuple[float, float, dict[str, Any]]:
        environment = {
            "DATABASE_URL": self._stack.jobs_url(name),
            "REDIS_URL": self._stack.redis_url,
            "ARCHIVE_URL": place.as_uri(),
            "ARCHIVE_MASTER_KEY": MASTER_KEY,
        }
        begun, peak = time.monotonic(), 0.0
        closing: dict[str, Any] = {}
        with start_script(SCRIPT, *arguments, "--log-format", "json", env=environment) as process:
            for line in process.stdout or ():
                closing = json.loads(line)
                peak = max(peak, peak_mb(process.pid))
            errors = process.stderr.read() if process.stderr else ""
        wall = time.monotonic() - begun
        require(process.returncode == 0, f"the script ended with {process.returncode}: {closing} {errors}")
        return wall, peak, closing


def judge(figures: Figures, rows: int, *, full: bool) -> list[Line]:
    """Set what was measured against what was promised."""
    rates = [rows / trial.wall for trial in figures.script]
    ratios = {
        how: [rate / usual for rate, usual in zip(rates, values, strict=True)] for how, values in figures.usual.items()
    }
    peak = max(trial.peak_mb for trial in figures.script)
    a_row = median(trial.bytes for trial in figures.script) / rows

    def rate(values: Sequence[float]) -> str:
        return f"{median(values):,.0f} rows/s ({range_of(values, ',.0f')})"

    return [
        *(Line(WAYS[how], "", rate(values)) for how, values in figures.usual.items()),
        Line("archive_before_delete, whole process", "", rate(rates)),
        *(
            Line(
                f"times: {WAYS[how]}",
                f">= {RATIO:.0f}" if how == "each" else "",
                f"{median(values):.1f} ({range_of(values, '.1f')})",
                median(values) >= RATIO if full and how == "each" else None,
            )
            for how, values in ratios.items()
        ),
        Line("peak memory", f"< {MEMORY_MB:.0f} MB", f"{peak:.1f} MB", peak < MEMORY_MB if full else None),
        Line("pauses for others", "", f"{max(trial.paused for trial in figures.script):.2f} s at most"),
        Line("an archived row in the store", "", f"{a_row:.0f} bytes"),
        Line("verify, whole process", "", rate(figures.verify)),
    ]


def measure(bench: Bench, *, trials: int, cap: float) -> None:
    """Run every trial; the kinds alternate."""
    figures = bench.figures
    first = next(iter(WAYS))
    for trial in range(1, trials + 1):
        figures.script.append(bench.script())
        for how, values in figures.usual.items():
            values.append(bench.usual(cap, how))
        last = figures.script[-1]
        console.print(
            f"trial {trial}: {last.wall:.2f} s, {last.peak_mb:.1f} MB; usual {figures.usual[first][-1]:,.0f} rows/s",
            highlight=False,
        )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(prog="archive.py", description=lines[0])
    parser.add_argument("--rows", type=int, default=None, help=f"default {FULL_ROWS:,}")
    parser.add_argument("--trials", type=int, default=None, help=f"of each kind; default {TRIALS}")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows, one trial")
    options = parser.parse_args(argv)
    options.rows = options.rows or (QUICK_ROWS if options.quick else FULL_ROWS)
    options.trials = options.trials or (1 if options.quick else TRIALS)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a target was missed."""
    options = _arguments(argv)
    with tempfile.TemporaryDirectory(prefix="archive-benchmark-") as directory:
        os.chmod(directory, 0o711)  # noqa: PTH101, S103 - started by root, the servers run as another user
        stack = local_stack.start(Path(directory) / "stack", shared_buffers_mb=SHARED_BUFFERS_MB)
        try:
            bench = Bench(stack, Path(directory), options.rows)
            bench.load()
            measure(bench, trials=options.trials, cap=USUAL_SECONDS)
        finally:
            local_stack.stop(stack)
            local_stack.delete(stack)
    lines = judge(bench.figures, options.rows, full=options.rows >= FULL_ROWS)
    title = f"{options.rows:,} rows; medians and ranges of {options.trials} trial{'s' * (options.trials > 1)}"
    Console(width=None if sys.stdout.isatty() else 110).print(table_of(lines, title))
    return int(any(line.passed is False for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
