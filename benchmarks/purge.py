#!/usr/bin/env python3
"""Measure the purge against one bare DELETE and against the loop that everybody writes first.

    python benchmarks/purge.py            a million rows, three trials, about ten minutes on two cores
    python benchmarks/purge.py --quick    100 000 rows, one trial; what needs the full size is shown, not judged

Servers of its own in a temporary directory, removed at the end. Each trial works on a fresh copy of one template
database, the kinds alternate, and the figures are ratios of neighbours, because a machine's speed changes by the hour.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import mean, median
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psycopg
from psycopg import sql
from rich.console import Console
from rich.table import Table

from backend import local_stack, sample_data
from scripts.lifecycle.audit import audit
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE, load_policies
from scripts.utils.db_utils import Database
from scripts.utils.test_helpers import Proxy, start_script  # noqa: TID251 - a benchmark runs scripts as tests do

Connection = psycopg.Connection[Any]

SCRIPT = ROOT / "scripts" / "cleanup" / "cleanup_quiz_responses.py"
FULL_ROWS, QUICK_ROWS, SMALL_ROWS, IDLE_ROWS = 1_000_000, 100_000, 10_000, 1_000
MAX_ROWS = 2_000_000  # the policy's cap
SHARED_BUFFERS_MB = 1024
TRIALS, STARTS = 3, 5
NAIVE_SECONDS = 60.0
NAIVE_BATCH = 1_000
COUNTED_BATCHES = (100, 200)  # batch sizes of the two runs whose round trips are compared
FLOOR_ROWS_AN_HOUR = 100_000
MEMORY_MB, MEMORY_GROWTH_MB = 90.0, 5.0
DONE = (0, 4)  # 4: done, and unpaid-for orders went to the queue, as they must

# The SQL that an informed developer writes: the lower bound of a deletion's cost, and the body of the naive loop.
DUE = (
    "(pdf_delivered_at < %(delivered)s"
    " OR payment_id IS NULL AND pdf_delivered_at IS NULL AND created_at < %(abandoned)s)"
)
# The facts that ops.audit_log shows of a deleted record, as a table with nothing but its key.
SCRATCH = (
    "CREATE TABLE public.naive_audit (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
    " occurred_at timestamptz NOT NULL DEFAULT now(), actor text NOT NULL, action text NOT NULL,"
    " resource_type text NOT NULL, resource_id text NOT NULL, reason text NOT NULL, run_id uuid NOT NULL)"
)
NOTE = (
    "INSERT INTO public.naive_audit (actor, action, resource_type, resource_id, reason, run_id)"
    " VALUES (%s, %s, %s, %s, %s, %s)"
)

console = Console(stderr=True)


@dataclass(frozen=True)
class Template:
    """A database that trials are copied from."""

    name: str
    as_of: datetime
    due: int
    parameters: dict[str, datetime]


@dataclass(frozen=True)
class ScriptRun:
    """What one run of the script showed from outside; times in seconds."""

    wall: float
    started: float
    """From process start to the line ``policy_started``: the first batch comes next."""
    batches: list[float]
    rows: list[int]
    """Rows that each batch deleted."""
    deleted: int
    peak_mb: float
    begun: float
    """On the monotonic clock."""
    pauses: dict[str, dict[str, float]]

    @property
    def growth(self) -> float:
        """Time of a row in the last tenth of the batches over that in the first tenth, whose batches still grow."""
        tenth = max(1, len(self.batches) // 10)
        first, last = slice(None, tenth), slice(-tenth, None)
        paces = [sum(self.batches[part]) / max(1, sum(self.rows[part])) for part in (first, last)]
        return paces[1] / paces[0]


@dataclass
class Figures:
    """Every trial's figures, in order."""

    bare: list[float] = field(default_factory=list)
    naive: list[float] = field(default_factory=list)
    naive_capped: bool = False
    script: list[ScriptRun] = field(default_factory=list)
    snapshot: list[ScriptRun] = field(default_factory=list)
    small: list[ScriptRun] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    turns_a_batch: float = 0.0
    verify_seconds: list[float] = field(default_factory=list)
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])
    """What else the machine is busy with: the more, the less a single figure means."""


class Bench:
    """The servers and the templates."""

    def __init__(self, stack: local_stack.Stack) -> None:
        self._stack = stack
        self.figures = Figures()

    @contextmanager
    def _superuser(self, database: str) -> Iterator[Connection]:
        url = self._stack.superuser_url(database)
        with psycopg.connect(url, autocommit=True) as connection:  # noqa: TID251 - none of the jobs' connections
            yield connection

    def template(self, rows: int) -> Template:
        """Make a database with both sets of tables, the jobs' rights and so many rows."""
        name = f"template_{rows}"
        local_stack.prepare(self._stack, database=name)
        with self._superuser(name) as connection:
            counts = sample_data.load(connection, rows=rows)
            # A worker that starts in one trial and not in its neighbour would decide the ratio.
            connection.execute("ALTER TABLE public.quiz_responses SET (autovacuum_enabled = off)")
            connection.execute("VACUUM (ANALYZE)")
        rules = load_policies(DEFAULT_POLICY_FILE).policies["quiz_responses"].rules
        parameters = {}
        for rule in ("delivered", "abandoned"):
            before = rules[rule].due_before(counts.as_of)
            if before is None:
                raise SystemExit("the policy keeps quiz responses forever: there is nothing to measure")
            parameters[rule] = before.replace(tzinfo=None)
        return Template(name, counts.as_of, counts.delivered_due + counts.abandoned_due, parameters)

    @contextmanager
    def _copy(self, template: Template) -> Iterator[str]:
        name = "trial"
        drop = f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"
        with self._superuser("postgres") as connection:
            connection.execute(drop)
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
                    sql.Identifier(name), sql.Identifier(template.name)
                )
            )
            connection.execute("CHECKPOINT")
        try:
            yield name
        finally:
            with self._superuser("postgres") as connection:
                connection.execute(drop)

    def bare(self, template: Template) -> float:
        """Time one DELETE, without audit, holds or anything."""
        with self._copy(template) as name, self._superuser(name) as connection:
            started = time.monotonic()
            deleted = connection.execute(f"DELETE FROM public.quiz_responses WHERE {DUE}", template.parameters).rowcount
            seconds = time.monotonic() - started
        require(deleted == template.due, f"the bare DELETE took {deleted} rows, {template.due} are due")
        return seconds

    def naive(self, template: Template, cap: float) -> tuple[float, bool]:
        """Time the naive loop, up to a cap; what is left is extrapolated at the rate reached, in its favour."""
        find = f"SELECT id FROM public.quiz_responses WHERE {DUE} ORDER BY created_at LIMIT {NAIVE_BATCH}"
        deleted, run_id = 0, uuid4()
        with self._copy(template) as name, self._superuser(name) as connection:
            connection.execute(SCRATCH)
            started = time.monotonic()
            while time.monotonic() - started < cap:
                with connection.transaction(), connection.cursor() as cursor:
                    ids = [key for (key,) in cursor.execute(find, template.parameters)]
                    cursor.execute("DELETE FROM public.quiz_responses WHERE id = ANY(%s)", (ids,))
                    cursor.executemany(
                        NOTE,
                        [
                            ("system:naive", "delete", "public.quiz_responses", key, "retention_policy", run_id)
                            for key in ids
                        ],
                    )
                if not ids:
                    break
                deleted += len(ids)
            seconds = time.monotonic() - started
        return seconds * template.due / deleted, deleted < template.due

    def script(self, template: Template, *, snapshot: bool = False) -> ScriptRun:
        """Time the real script, and check what it did."""
        with self._copy(template) as name, ExitStack() as stack:
            if snapshot:
                other = stack.enter_context(self._superuser(name))
                other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                other.execute("SELECT count(*) FROM public.quiz_responses")
            run = self._run(template, self._stack.jobs_url(name))
            self._check(template, name, run)
        return run

    def turns_a_batch(self, template: Template) -> float:
        """Count round trips: what two runs differ in, over the batches that they differ in."""
        counted = []
        for rows in COUNTED_BATCHES:
            with self._copy(template) as name, Proxy.before(self._stack.jobs_url(name)) as proxy:
                run = self._run(template, proxy.through(self._stack.jobs_url(name)), "--batch-size", str(rows))
                counted.append((proxy.turns, len(run.batches)))
        (more_turns, more_batches), (turns, batches) = counted
        return (more_turns - turns) / (more_batches - batches)

    def _run(self, template: Template, url: str, *arguments: str) -> ScriptRun:
        """Run the script as an operator does, and read its log as it comes."""
        environment = {"DATABASE_URL": url, "REDIS_URL": self._stack.redis_url}
        arguments = ("--as-of", template.as_of.isoformat(), "--log-format", "json", "--verbose", *arguments)
        begun, started, peak = time.monotonic(), 0.0, 0.0
        batches: list[float] = []
        rows: list[int] = []
        closing: dict[str, Any] = {}
        with start_script(SCRIPT, *arguments, env=environment) as process:
            for line in process.stdout or ():
                event = json.loads(line)
                if event["event"] == "policy_started":
                    started = time.monotonic() - begun
                elif event["event"] == "batch_completed":
                    batches.append(event["duration_seconds"])
                    rows.append(event["records_deleted"])
                elif event["event"].startswith("cleanup_") and event["event"] != "cleanup_started":
                    closing = event
                if event["event"] != "batch_completed":
                    peak = max(peak, peak_mb(process.pid))
            errors = process.stderr.read() if process.stderr else ""
        wall = time.monotonic() - begun
        require(process.returncode in DONE, f"the script ended with {process.returncode}: {closing} {errors}")
        return ScriptRun(wall, started, batches, rows, closing["records_deleted"], peak, begun, closing["pauses"])

    def _check(self, template: Template, name: str, run: ScriptRun) -> None:
        with self._superuser(name) as connection:
            left = one(connection, f"SELECT count(*) FROM public.quiz_responses WHERE {DUE}", template.parameters)
            audited = one(
                connection, "SELECT sum(cardinality(resource_ids)) FROM ops.audit_batches WHERE action = 'delete'"
            )
        require(left == 0, f"{left} due rows were left")
        require(run.deleted == audited == template.due, f"{template.due} due, {run.deleted} deleted, {audited} audited")
        database = Database(self._stack.jobs_url(name), application_name="benchmark", max_size=1)
        database.open()
        begun = time.monotonic()
        try:
            verified = audit.verify(database)
        finally:
            database.close()
        self.figures.verify_seconds.append(time.monotonic() - begun)
        require(verified.intact and verified.entries == audited, f"the audit's chain is broken: {verified.findings}")


def measure(bench: Bench, *, rows: int, trials: int, naive_seconds: float) -> None:
    """Run every trial; the kinds alternate."""
    figures = bench.figures
    _say(f"loading {rows:,} rows")
    large, small, idle = (bench.template(size) for size in (rows, SMALL_ROWS, IDLE_ROWS))
    bench.script(idle)  # the first start on a machine reads the libraries from disk
    for trial in range(1, trials + 1):
        figures.bare.append(bench.bare(large))
        _say(f"trial {trial}: bare DELETE {figures.bare[-1]:.2f} s")
        figures.script.append(bench.script(large))
        _say(f"trial {trial}: script {_brief(figures.script[-1])}")
        seconds, capped = bench.naive(large, naive_seconds)
        figures.naive.append(seconds)
        figures.naive_capped |= capped
        _say(f"trial {trial}: naive loop {seconds:.0f} s{' (extrapolated)' if capped else ''}")
        figures.snapshot.append(bench.script(large, snapshot=True))
        _say(f"trial {trial}: script beside an old snapshot {_brief(figures.snapshot[-1])}")
        figures.small.append(bench.script(small))
    figures.idle = [bench.script(idle).started for _ in range(STARTS)]
    figures.turns_a_batch = bench.turns_a_batch(small)


@dataclass(frozen=True)
class Line:
    """One line of the result; no verdict where there is no target, or not at this size."""

    measure: str
    target: str
    measured: str
    passed: bool | None = None


def judge(figures: Figures, *, full: bool) -> list[Line]:
    """Set what was measured against what was promised."""
    to_bare = [run.wall / bare for run, bare in zip(figures.script, figures.bare, strict=True)]
    to_naive = [naive / run.wall for run, naive in zip(figures.script, figures.naive, strict=True)]
    growth = median(run.growth for run in figures.script)
    growth_beside = median(run.growth for run in figures.snapshot)
    peak, small = median(r.peak_mb for r in figures.script), median(r.peak_mb for r in figures.small)
    idle = median(figures.idle)
    an_hour = median(3600 * run.deleted / run.wall for run in figures.script)
    extrapolated = ", capped and extrapolated" if figures.naive_capped else ""
    bare_ratio, naive_ratio = median(to_bare), median(to_naive)
    parts = {
        "start and first count": median(r.started for r in figures.script),
        "batches": median(sum(r.batches) for r in figures.script),
        "last counts, queue, closing": median(r.wall - r.started - sum(r.batches) for r in figures.script),
    }

    def at_full_size(passed: bool) -> bool | None:
        return passed if full else None

    return [
        Line("bare DELETE, wall time", "", f"{median(figures.bare):.2f} s ({range_of(figures.bare, '.2f')})"),
        Line(
            f"naive loop, wall time{extrapolated}",
            "",
            f"{median(figures.naive):.0f} s ({range_of(figures.naive, '.0f')})",
        ),
        Line("script, wall time from process start to end", "", _walls(figures.script)),
        *(Line(f"  of which {name}", "", f"{seconds:.2f} s") for name, seconds in parts.items()),
        Line(
            "script / bare DELETE",
            "at most 4",
            f"{bare_ratio:.2f} ({range_of(to_bare, '.2f')})",
            at_full_size(bare_ratio <= 4),
        ),
        Line(
            f"naive loop{extrapolated} / script",
            "at least 8",
            f"{naive_ratio:.1f} ({range_of(to_naive, '.1f')})",
            at_full_size(naive_ratio >= 8),
        ),
        Line("peak memory of the script", f"under {MEMORY_MB:.0f} MB", f"{peak:.1f} MB", peak < MEMORY_MB),
        Line(
            f"  more than at {SMALL_ROWS:,} rows",
            f"at most {MEMORY_GROWTH_MB:.0f} MB",
            f"{peak - small:+.1f} MB",
            peak - small <= MEMORY_GROWTH_MB,
        ),
        Line(
            "a row in the last tenth of the batches / the first",
            "at most 1.3",
            f"{growth:.2f}",
            at_full_size(growth <= 1.3),
        ),
        Line(
            "  while another session holds an old snapshot",
            "at most 1.3",
            f"{growth_beside:.2f}",
            at_full_size(growth_beside <= 1.3),
        ),
        Line("  script, wall time then", "", _walls(figures.snapshot)),
        Line("round trips a batch", "1", f"{figures.turns_a_batch:.2f}", round(figures.turns_a_batch, 2) <= 1),
        Line(
            "rows an hour",
            f"at least {FLOOR_ROWS_AN_HOUR:,}",
            f"{an_hour:,.0f} ({an_hour / FLOOR_ROWS_AN_HOUR:,.0f} times)",
            an_hour >= FLOOR_ROWS_AN_HOUR,
        ),
        Line("process start to first batch, idle table", "under 1.5 s", f"{idle:.2f} s", idle < 1.5),
        Line("verifying the audit's chain", "", f"{max(figures.verify_seconds):.2f} s"),
        Line("load of the machine before the benchmark", "", f"{figures.load_before:.1f} on {os.cpu_count()} cores"),
    ]


def table_of(lines: Sequence[Line], title: str) -> Table:
    """Lay the result out for a person."""
    table = Table(title=title, title_justify="left")
    for name in ("measure", "target", "measured", ""):
        table.add_column(name)
    for line in lines:
        verdict = {True: "[green]pass[/]", False: "[bold red]FAIL[/]", None: "not judged" if line.target else ""}
        table.add_row(line.measure, line.target, line.measured, verdict[line.passed])
    return table


def peak_mb(pid: int) -> float:
    """Return the most memory that a running process has had, in megabytes; 0 if it is gone."""
    # Not ru_maxrss: Linux lets a child inherit the peak of the process that started it.
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def one(connection: Connection, query: str, parameters: dict[str, Any] | None = None) -> int:
    """Return the one number that a query answers; null and no row are 0."""
    row = connection.execute(query, parameters).fetchone()
    return int(row[0] or 0) if row else 0


def require(condition: bool, otherwise: str) -> None:
    """End the benchmark, for its figures would mean nothing."""
    if not condition:
        raise SystemExit(f"benchmark void: {otherwise}")


def _brief(run: ScriptRun) -> str:
    return (
        f"{run.wall:.2f} s: {run.started:.2f} before {len(run.batches)} batches of {1000 * mean(run.batches):.1f} ms,"
        f" growth {run.growth:.2f}, {run.peak_mb:.1f} MB"
    )


def _walls(runs: Sequence[ScriptRun]) -> str:
    walls = [run.wall for run in runs]
    return f"{median(walls):.2f} s ({range_of(walls, '.2f')})"


def range_of(values: Sequence[float], form: str) -> str:
    """Return the least and the greatest, for a person."""
    return f"{min(values):{form}} to {max(values):{form}}"


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(prog="purge.py", description=lines[0])
    parser.add_argument("--rows", type=int, default=None, help=f"default {FULL_ROWS:,}")
    parser.add_argument("--trials", type=int, default=None, help=f"of each kind; default {TRIALS}")
    parser.add_argument(
        "--naive-seconds", type=float, default=None, help=f"cap of the naive loop; default {NAIVE_SECONDS:.0f}"
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows, one trial")
    options = parser.parse_args(argv)
    options.rows = options.rows or (QUICK_ROWS if options.quick else FULL_ROWS)
    options.trials = options.trials or (1 if options.quick else TRIALS)
    options.naive_seconds = options.naive_seconds or (NAIVE_SECONDS / 6 if options.quick else NAIVE_SECONDS)
    if not SMALL_ROWS <= options.rows <= MAX_ROWS:
        parser.error(f"--rows: {SMALL_ROWS:,} to {MAX_ROWS:,}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a target was missed."""
    options = _arguments(argv)
    with tempfile.TemporaryDirectory(prefix="purge-benchmark-") as directory:
        os.chmod(directory, 0o711)  # noqa: PTH101, S103 - started by root, the servers run as another user
        stack = local_stack.start(Path(directory) / "stack", shared_buffers_mb=SHARED_BUFFERS_MB)
        try:
            bench = Bench(stack)
            measure(bench, rows=options.rows, trials=options.trials, naive_seconds=options.naive_seconds)
        finally:
            local_stack.stop(stack)
            local_stack.delete(stack)
    lines = judge(bench.figures, full=options.rows >= FULL_ROWS)
    title = f"{options.rows:,} rows; medians and ranges of {options.trials} trial{'s' * (options.trials > 1)}"
    Console(width=None if sys.stdout.isatty() else 110).print(table_of(lines, title))
    return int(any(line.passed is False for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
