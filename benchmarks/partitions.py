#!/usr/bin/env python3
"""Measure dropping thirty expired partitions, ids audited, against deleting the same rows by batches.

    python benchmarks/partitions.py            a million rows, three trials, on two cores about ten minutes
    python benchmarks/partitions.py --quick    60 000 rows, one trial; what needs the full size is shown, not judged

Servers of its own in a temporary directory, removed at the end. Each trial works on a fresh copy of one template
database; the kinds alternate, and the figures are ratios of neighbours. Time is what the closing line says: preflight,
counting, dropping or deleting, audit, counting again, without the interpreter's start, which is the same for all and is
shown beside. WAL is that of the whole run.
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
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psycopg
import yaml
from rich.console import Console

from backend import local_stack, migrate
from benchmarks.purge import Line, one, peak_mb, range_of, require, table_of
from scripts.utils.test_helpers import start_script  # noqa: TID251 - a benchmark runs scripts as tests do

Connection = psycopg.Connection[Any]

SCRIPT = ROOT / "scripts" / "retention" / "enforce_retention_policies.py"
FULL_ROWS, QUICK_ROWS = 1_000_000, 60_000
SHARED_BUFFERS_MB = 1024
TRIALS = 3
EXPIRED, FRESH = 30, 5  # partitions of a day each
SPEED, WAL = 2.0, 1 / 5
MEGABYTE = 1024 * 1024

KINDS = {
    "dropped": ("events", True, "partitions dropped, ids audited"),
    "emptied": ("events", False, "the same rows by batches"),
    "plain": ("events_plain", True, "the same rows by batches, in a table without partitions"),
}
# A row is about 900 bytes, as a quiz response is.
TABLE = """
CREATE TABLE public.{table} (id uuid NOT NULL, created_at timestamptz NOT NULL, email text, answers text, {key})
    {partitioned}
"""
FILL = """
INSERT INTO public.{table}
SELECT gen_random_uuid(), %(start)s::date + n * interval '{days} days' / %(rows)s, 'person.' || n || '@example.com',
       repeat(md5(n::text), 25)
  FROM generate_series(0, %(rows)s::bigint - 1) n
"""

console = Console(stderr=True)


@dataclass(frozen=True)
class Trial:
    """What one run of the script showed from outside."""

    seconds: float
    """The run's own, from its closing line."""
    wall: float
    """From process start to exit."""
    wal_mb: float
    peak_mb: float
    audit_mb: float
    """Of the audit that the run wrote: what no way of deleting can do without."""


@dataclass
class Figures:
    """Every trial's figures, in order, by kind."""

    trials: dict[str, list[Trial]] = field(default_factory=lambda: {kind: [] for kind in KINDS})


class Bench:
    """The servers and the template."""

    def __init__(self, stack: local_stack.Stack, directory: Path, rows: int) -> None:
        self._stack = stack
        self._directory = directory
        self._rows = rows
        self._due = -(-rows * EXPIRED // (EXPIRED + FRESH))
        self._as_of = f"{datetime.now(UTC):%Y-%m-%d}T00:00:00Z"
        self.figures = Figures()

    @contextmanager
    def _superuser(self, database: str) -> Iterator[Connection]:
        url = self._stack.superuser_url(database)
        with psycopg.connect(url, autocommit=True) as connection:  # noqa: TID251 - none of the jobs' connections
            yield connection

    def load(self) -> None:
        """Make the template: the same rows with partitions and without."""
        local_stack.prepare(self._stack, database="template_events")
        with self._superuser("template_events") as connection:
            connection.execute("SET TimeZone = 'UTC'")
            # As of this morning, by a period of 30 days, the last of the expired ones has just ended.
            (start,) = connection.execute(f"SELECT current_date - 30 - {EXPIRED}").fetchone() or (None,)
            parted = {"key": "UNIQUE (id, created_at)", "partitioned": "PARTITION BY RANGE (created_at)"}
            plain = {"key": "PRIMARY KEY (id)", "partitioned": ""}
            connection.execute(TABLE.format(table="events", **parted).encode())
            for day in range(EXPIRED + FRESH):
                connection.execute(
                    f"CREATE TABLE public.events_{day:02} PARTITION OF public.events FOR VALUES"
                    f" FROM ('{start}'::date + {day}) TO ('{start}'::date + {day + 1})".encode()
                )
            connection.execute(TABLE.format(table="events_plain", **plain).encode())
            for table in ("events", "events_plain"):
                fill = FILL.format(table=table, days=EXPIRED + FRESH).encode()
                connection.execute(fill, {"start": start, "rows": self._rows})
                connection.execute(f"CREATE INDEX ON public.{table} (created_at)".encode())
            # A worker that starts in one trial and not in its neighbour would decide the ratio.
            for (table,) in connection.execute("SELECT relname FROM pg_class WHERE relname ~ '^events_[0-9p].*'"):
                if not table.endswith(("idx", "key", "pkey")):
                    connection.execute(f"ALTER TABLE public.{table} SET (autovacuum_enabled = off)".encode())
            connection.execute("VACUUM (ANALYZE)")

    @contextmanager
    def _copy(self) -> Iterator[str]:
        drop = "DROP DATABASE IF EXISTS trial WITH (FORCE)"
        create = "CREATE DATABASE trial TEMPLATE template_events STRATEGY FILE_COPY"
        with self._superuser("postgres") as connection:
            for statement in (drop, create, "CHECKPOINT"):
                connection.execute(statement)
        try:
            yield "trial"
        finally:
            with self._superuser("postgres") as connection:
                connection.execute(drop)

    def trial(self, kind: str) -> Trial:
        """Time one run of the script, and check what it did."""
        table, drop, _ = KINDS[kind]
        with self._copy() as name:
            policy_file = self._policy_file(table, drop=drop)
            migrate.grant(self._stack.superuser_url(name), policy_file)
            with self._superuser(name) as connection:
                before = one(connection, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')")
                wall, peak, closing = self._run(name, policy_file)
                wal = one(connection, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')") - before
                left = one(connection, f"SELECT count(*) FROM public.{table}")
                audited = one(connection, "SELECT count(DISTINCT resource_id) FROM ops.audit_log")
                size = one(connection, "SELECT pg_total_relation_size('ops.audit_batches')")
            dropped = EXPIRED if kind == "dropped" else 0
            require(closing["partitions_dropped"] == dropped, f"{closing['partitions_dropped']} partitions dropped")
            require(closing["records_deleted"] == audited == self._due, f"{audited} rows audited, {self._due} are due")
            require(left == self._rows - self._due, f"{left} rows are left")
        return Trial(closing["duration_seconds"], wall, wal / MEGABYTE, peak, size / MEGABYTE)

    def _policy_file(self, table: str, *, drop: bool) -> Path:
        policy: dict[str, Any] = {
            "description": "Events",
            "table": f"public.{table}",
            "key": "id",
            "person": None,
            "action": "delete",
            "drop_partitions": drop,
            "rules": {"old": {"anchor": "created_at", "keep": "30 days"}},
            "dependants": [],
            "legal_basis": "none",
            "owner": "benchmark",
            "decision": "none",
            "max_rows": 100_000_000,
            "max_poison": 0,
            "batch": {"rows": 5000, "lock_timeout": "500 milliseconds", "statement_timeout": "60 seconds"},
            "overdue": {"warning": "900 days", "critical": "900 days"},
        }
        job = {"schedule": "0 0 * * *", "budget": "3600 seconds", "lock": "lock:retention:enforce_retention_policies"}
        path = self._directory / "policies.yaml"
        jobs = {"enforce_retention_policies": job | {"policies": ["events"]}}
        path.write_text(yaml.safe_dump({"policies": {"events": policy}, "jobs": jobs}, sort_keys=False))
        return path

    def _run(self, name: str, policy_file: Path) -> tuple[float, float, dict[str, Any]]:
        environment = {"DATABASE_URL": self._stack.jobs_url(name), "REDIS_URL": self._stack.redis_url}
        begun, peak = time.monotonic(), 0.0
        closing: dict[str, Any] = {}
        arguments = ("--policy-file", str(policy_file), "--as-of", self._as_of, "--log-format", "json")
        with start_script(SCRIPT, *arguments, env=environment) as process:
            for line in process.stdout or ():
                closing = json.loads(line)
                peak = max(peak, peak_mb(process.pid))
            errors = process.stderr.read() if process.stderr else ""
        seconds = time.monotonic() - begun
        require(process.returncode == 0, f"the script ended with {process.returncode}: {closing} {errors}")
        return seconds, peak, closing


def judge(figures: Figures, *, full: bool) -> list[Line]:
    """Set what was measured against what was promised."""
    dropped = figures.trials["dropped"]
    lines = []
    for kind, (_, _, what) in KINDS.items():
        trials = figures.trials[kind]
        seconds, wal = [trial.seconds for trial in trials], [trial.wal_mb for trial in trials]
        whole = [trial.wall for trial in trials]
        lines += [
            Line(f"{what}: time", "", f"{median(seconds):.2f} s ({range_of(seconds, '.2f')})"),
            Line(f"{what}: whole process", "", f"{median(whole):.2f} s ({range_of(whole, '.2f')})"),
            Line(f"{what}: WAL", "", f"{median(wal):,.0f} MB ({range_of(wal, ',.0f')})"),
        ]
    for kind in ("emptied", "plain"):
        pairs = list(zip(figures.trials[kind], dropped, strict=True))
        speed = [other.seconds / mine.seconds for other, mine in pairs]
        wal = [mine.wal_mb / other.wal_mb for other, mine in pairs]
        target = kind == "emptied"
        lines += [
            Line(
                f"times as fast as {KINDS[kind][2]}",
                f">= {SPEED:.0f}" if target else "",
                f"{median(speed):.1f} ({range_of(speed, '.1f')})",
                median(speed) >= SPEED if full and target else None,
            ),
            Line(
                f"share of the WAL of {KINDS[kind][2]}",
                f"<= {WAL:.2f}" if target else "",
                f"{median(wal):.3f} ({range_of(wal, '.3f')})",
                median(wal) <= WAL if full and target else None,
            ),
        ]
    lines.append(Line("the audit itself, on disk", "", f"{median(trial.audit_mb for trial in dropped):,.0f} MB"))
    lines.append(Line("peak memory of the script", "", f"{max(trial.peak_mb for trial in dropped):.1f} MB"))
    return lines


def measure(bench: Bench, *, trials: int) -> None:
    """Run every trial; the kinds alternate."""
    for number in range(1, trials + 1):
        for kind in KINDS:
            trial = bench.trial(kind)
            bench.figures.trials[kind].append(trial)
            console.print(f"trial {number}: {kind} {trial.seconds:.2f} s, {trial.wal_mb:,.0f} MB WAL", highlight=False)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(prog="partitions.py", description=lines[0])
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
    with tempfile.TemporaryDirectory(prefix="partitions-benchmark-") as directory:
        os.chmod(directory, 0o711)  # noqa: PTH101, S103 - started by root, the servers run as another user
        stack = local_stack.start(Path(directory) / "stack", shared_buffers_mb=SHARED_BUFFERS_MB)
        try:
            bench = Bench(stack, Path(directory), options.rows)
            bench.load()
            measure(bench, trials=options.trials)
        finally:
            local_stack.stop(stack)
            local_stack.delete(stack)
    lines = judge(bench.figures, full=options.rows >= FULL_ROWS)
    title = f"{options.rows:,} rows, {EXPIRED} of {EXPIRED + FRESH} partitions expired; {options.trials} trials"
    Console(width=None if sys.stdout.isatty() else 120).print(table_of(lines, title))
    return int(any(line.passed is False for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
