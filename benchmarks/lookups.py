#!/usr/bin/env python3
"""Measure rules that look into another table against a plain rule: an anchor by lookup, and a period by row.

    python benchmarks/lookups.py            a million rows, three trials, on two cores about fifteen minutes
    python benchmarks/lookups.py --quick    60 000 rows, one trial; what needs the full size is shown, not judged

Servers of its own in a temporary directory, removed at the end. Each trial works on a fresh copy of one template
database; the kinds alternate, and the figures are ratios of neighbours. In each kind nearly the same rows are due.
Time is what the closing line says: preflight, counting, deleting, audit, counting again, without the interpreter's
start.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
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
from benchmarks.purge import Line, one, range_of, require, table_of
from scripts.utils.test_helpers import Proxy, start_script  # noqa: TID251 - a benchmark runs scripts as tests do

Connection = psycopg.Connection[Any]

SCRIPT = ROOT / "scripts" / "retention" / "enforce_retention_policies.py"
FULL_ROWS, QUICK_ROWS = 1_000_000, 60_000
SHARED_BUFFERS_MB = 1024
TRIALS = 3
TENANTS = 1_000
FOREVER = 1  # the tenant that keeps everything
DAYS = 300  # rows are spread over so many days; the period is 30
TIMES = 2.0

ORDER = {"take": "sent_at", "from": "public.orders", "same": {"order_id": "id"}}
TENANT = {"take": "days", "unit": "days", "from": "public.tenants", "same": {"tenant_id": "id"}, "else": "30 days"}
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({"anchor": "created_at", "keep": "30 days"}, "a plain rule"),
    "lookup": ({"anchor": ORDER, "keep": "30 days"}, "an anchor from another table of as many rows"),
    "row": (
        {"anchor": "created_at", "keep": TENANT | {"forever": [None]}},
        f"a period from the rows of {TENANTS:,} tenants",
    ),
}
# A row is about 900 bytes, as a quiz response is.
TABLES = """
CREATE TABLE public.tenants (id integer PRIMARY KEY, days integer);
CREATE TABLE public.orders (id uuid PRIMARY KEY, sent_at timestamptz);
CREATE TABLE public.events (id uuid PRIMARY KEY, tenant_id integer NOT NULL REFERENCES public.tenants,
    order_id uuid NOT NULL, created_at timestamptz NOT NULL, email text, answers text);
"""
FILL_TENANTS = f"""
INSERT INTO public.tenants SELECT n, CASE WHEN n <> {FOREVER} THEN 30 END FROM generate_series(1, {TENANTS}) n
"""
FILL_EVENTS = f"""
INSERT INTO public.events
SELECT gen_random_uuid(), 1 + n %% {TENANTS}, gen_random_uuid(),
       %(now)s::timestamptz - (n + 1) * interval '{DAYS} days' / %(rows)s, 'person.' || n || '@example.com',
       repeat(md5(n::text), 25)
  FROM generate_series(0, %(rows)s::bigint - 1) n
"""
# In another order than the rows that look them up.
FINISH = """
INSERT INTO public.orders SELECT order_id, created_at FROM public.events ORDER BY order_id;
CREATE INDEX ON public.events (created_at);
ALTER TABLE public.events SET (autovacuum_enabled = off);
"""

console = Console(stderr=True)


@dataclass(frozen=True)
class Trial:
    """What one dry run and one run of the script showed from outside, in seconds."""

    dry: float
    seconds: float
    wal_mb: float


@dataclass
class Figures:
    """Every trial's figures, in order, by kind."""

    trials: dict[str, list[Trial]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    turns_a_batch: dict[str, float] = field(default_factory=dict)


class Bench:
    """The servers and the template."""

    def __init__(self, stack: local_stack.Stack, directory: Path, rows: int) -> None:
        self._stack = stack
        self._directory = directory
        self._rows = rows
        self._now = datetime.now(UTC).replace(microsecond=0)
        self.figures = Figures()

    @contextmanager
    def _superuser(self, database: str) -> Iterator[Connection]:
        url = self._stack.superuser_url(database)
        with psycopg.connect(url, autocommit=True) as connection:  # noqa: TID251 - none of the jobs' connections
            yield connection

    def load(self) -> None:
        """Make the template."""
        local_stack.prepare(self._stack, database="template_events")
        with self._superuser("template_events") as connection:
            connection.execute(TABLES)
            connection.execute(FILL_TENANTS.encode())
            connection.execute(FILL_EVENTS.encode(), {"now": self._now, "rows": self._rows})
            connection.execute(FINISH)
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
        """Time a dry run and a run of the script, and check what it did."""
        with self._copy() as name:
            policy_file = self._policy_file(kind)
            migrate.grant(self._stack.superuser_url(name), policy_file)
            dry = self._run(name, policy_file, "--dry-run")
            with self._superuser(name) as connection:
                before = one(connection, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')")
                closing = self._run(name, policy_file)
                wal = one(connection, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')") - before
                self._check(connection, kind, dry["records_to_delete"], closing["records_deleted"])
        return Trial(dry["duration_seconds"], closing["duration_seconds"], wal / 1024 / 1024)

    def _check(self, connection: Connection, kind: str, foretold: int, deleted: int) -> None:
        of_forever = self._rows // TENANTS if kind == "row" else 0
        left = one(connection, "SELECT count(*) FROM public.events")
        audited = one(connection, "SELECT count(DISTINCT resource_id) FROM ops.audit_log")
        kept = one(connection, f"SELECT count(*) FROM public.events WHERE tenant_id = {FOREVER}")
        late = one(
            connection,
            f"SELECT count(*) FROM public.events WHERE tenant_id <> {FOREVER}"
            " AND created_at < %(now)s::timestamptz - interval '30 days'",
            {"now": self._now},
        )
        require(late == 0, f"{late} rows of tenants with 30 days are older than that")
        require(kept == of_forever or kind != "row", f"{kept} rows of the tenant that keeps everything are left")
        require(foretold == deleted == audited == self._rows - left, f"{foretold}, {deleted}, {audited}, {left} left")

    def turns_a_batch(self, kind: str) -> float:
        """Count round trips: what two runs differ in, over the batches that they differ in."""
        counted = []
        policy_file = self._policy_file(kind)
        for rows in (500, 1000):
            with self._copy() as name, Proxy.before(self._stack.jobs_url(name)) as proxy:
                migrate.grant(self._stack.superuser_url(name), policy_file)
                url = proxy.through(self._stack.jobs_url(name))
                closing = self._run(name, policy_file, "--batch-size", str(rows), url=url)
                counted.append((proxy.turns, -(-closing["records_deleted"] // rows)))
        (more_turns, more_batches), (turns, batches) = counted
        return float((more_turns - turns) / (more_batches - batches))

    def _policy_file(self, kind: str) -> Path:
        policy: dict[str, Any] = {
            "description": "Events",
            "table": "public.events",
            "key": "id",
            "person": None,
            "action": "delete",
            "rules": {"old": KINDS[kind][0]},
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
        path = self._directory / f"{kind}.yaml"
        jobs = {"enforce_retention_policies": job | {"policies": ["events"]}}
        path.write_text(yaml.safe_dump({"policies": {"events": policy}, "jobs": jobs}, sort_keys=False))
        return path

    def _run(self, name: str, policy_file: Path, *arguments: str, url: str | None = None) -> dict[str, Any]:
        environment = {"DATABASE_URL": url or self._stack.jobs_url(name), "REDIS_URL": self._stack.redis_url}
        closing: dict[str, Any] = {}
        arguments = ("--policy-file", str(policy_file), "--as-of", self._now.isoformat(), *arguments)
        with start_script(SCRIPT, *arguments, "--log-format", "json", env=environment) as process:
            for line in process.stdout or ():
                closing = json.loads(line)
            errors = process.stderr.read() if process.stderr else ""
        require(process.returncode == 0, f"the script ended with {process.returncode}: {closing} {errors}")
        return closing


def judge(figures: Figures, *, full: bool) -> list[Line]:
    """Set what was measured against what was promised."""
    plain = figures.trials["plain"]
    lines = []
    for kind, (_, what) in KINDS.items():
        trials = figures.trials[kind]
        for name, times, base in (
            ("run", [trial.seconds for trial in trials], [trial.seconds for trial in plain]),
            ("dry run", [trial.dry for trial in trials], [trial.dry for trial in plain]),
        ):
            lines.append(Line(f"{what}: {name}", "", f"{median(times):.2f} s ({range_of(times, '.2f')})"))
            if kind == "plain":
                continue
            ratios = [mine / other for mine, other in zip(times, base, strict=True)]
            lines.append(
                Line(
                    f"{what}: {name}, times a plain rule's",
                    f"<= {TIMES:.0f}",
                    f"{median(ratios):.2f} ({range_of(ratios, '.2f')})",
                    median(ratios) <= TIMES if full else None,
                )
            )
        wal = [trial.wal_mb for trial in trials]
        lines.append(Line(f"{what}: WAL", "", f"{median(wal):,.0f} MB ({range_of(wal, ',.0f')})"))
        turns = figures.turns_a_batch[kind]
        lines.append(Line(f"{what}: round trips a batch", "<= 1.1", f"{turns:.2f}", turns <= 1.1 if full else None))
    return lines


def measure(bench: Bench, *, trials: int) -> None:
    """Run every trial; the kinds alternate."""
    bench.load()
    for number in range(1, trials + 1):
        for kind in KINDS:
            trial = bench.trial(kind)
            bench.figures.trials[kind].append(trial)
            console.print(f"trial {number}: {kind} {trial.seconds:.2f} s, dry {trial.dry:.2f} s", highlight=False)
    for kind in KINDS:
        bench.figures.turns_a_batch[kind] = bench.turns_a_batch(kind)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(prog="lookups.py", description=lines[0])
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
    with tempfile.TemporaryDirectory(prefix="lookups-benchmark-") as directory:
        os.chmod(directory, 0o711)  # noqa: PTH101, S103 - started by root, the servers run as another user
        stack = local_stack.start(Path(directory) / "stack", shared_buffers_mb=SHARED_BUFFERS_MB)
        try:
            bench = Bench(stack, Path(directory), options.rows)
            measure(bench, trials=options.trials)
        finally:
            local_stack.stop(stack)
            local_stack.delete(stack)
    lines = judge(bench.figures, full=options.rows >= FULL_ROWS)
    title = f"{options.rows:,} rows; medians and ranges of {options.trials} trial{'s' * (options.trials > 1)}"
    Console(width=None if sys.stdout.isatty() else 110).print(table_of(lines, title))
    return int(any(line.passed is False for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
