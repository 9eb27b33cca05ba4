#!/usr/bin/env python3
"""Measure what a user feels while a purge runs: alone, beside one bare DELETE, beside the script.

    python benchmarks/foreground.py            a million rows, three trials, about ten minutes on two cores
    python benchmarks/foreground.py --quick    100 000 rows, one trial; what needs the full size is shown, not judged

A client in a process of its own does 200 small transactions a second on the table that is purged, at fixed moments
whatever the one before took. Judged is the time that a transaction takes; shown too is how long after its moment it was
done, which counts those that had to queue behind a slow one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psycopg
from rich.console import Console

from backend import local_stack
from benchmarks.purge import (
    DUE,
    FULL_ROWS,
    IDLE_ROWS,
    MAX_ROWS,
    QUICK_ROWS,
    SHARED_BUFFERS_MB,
    SMALL_ROWS,
    TRIALS,
    Bench,
    Connection,
    Line,
    ScriptRun,
    Template,
    table_of,
)

A_SECOND = 200
IDLE_SECONDS = 8.0
SURVIVORS = 5_000
TO_IDLE, TO_BARE = 2.5, 1 / 6
FLOOR_ROWS_AN_HOUR = 100_000
SPAWN = multiprocessing.get_context("spawn")
CHANGE = "UPDATE public.quiz_responses SET calorie_target = 1000 + (random() * 1000)::int WHERE id = %s"
LOOK = "SELECT quiz_data FROM public.quiz_responses WHERE id = %s"

console = Console(stderr=True)


@dataclass(frozen=True)
class Sample:
    """One transaction of the client: when it was due, when it began (monotonic clock), how many seconds it took."""

    due: float
    begun: float
    seconds: float


class Client:
    """The client while it works; afterwards, what it felt."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def felt(self, *stretches: tuple[float, float]) -> Feeling:
        """Sum up what was due in stretches of time, each between two moments of the monotonic clock."""
        samples = [s for s in self.samples if any(begun <= s.due <= ended for begun, ended in stretches)]
        if len(samples) < A_SECOND // 10:
            raise SystemExit(f"benchmark void: the client did {len(samples)} transactions, too few for a p95")
        took = [sample.seconds for sample in samples]
        late = [sample.begun + sample.seconds - sample.due for sample in samples]
        return Feeling(median(took), quantiles(took, n=20)[-1], max(took), quantiles(late, n=20)[-1])


@dataclass(frozen=True)
class Feeling:
    """What the client felt in one stretch of time, in seconds."""

    p50: float
    p95: float
    worst: float
    queued_p95: float
    """After the moment when a transaction was due."""

    def __str__(self) -> str:
        """Return it in milliseconds."""
        return (
            f"{1000 * self.p95:.2f} ms (median {1000 * self.p50:.2f}, worst {1000 * self.worst:.0f};"
            f" with queueing {1000 * self.queued_p95:.2f})"
        )


@dataclass
class Figures:
    """Every trial's figures, in order."""

    idle: list[Feeling] = field(default_factory=list)
    bare: list[Feeling] = field(default_factory=list)
    polite: list[Feeling] = field(default_factory=list)
    batches: list[Feeling] = field(default_factory=list)
    script: list[ScriptRun] = field(default_factory=list)
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])


def work(url: str, keys: list[str], stop: Event, pipe: Pipe) -> None:
    """Be the client: transactions at a fixed rate, whatever the one before took, until told to stop."""
    samples: list[tuple[float, float, float]] = []
    draw = random.Random(1)  # noqa: S311 - the same rows in every trial
    with psycopg.connect(url, autocommit=True) as connection:  # noqa: TID251 - none of the jobs' connections
        pipe.send(None)
        begun = time.monotonic()
        while not stop.is_set():
            due = begun + len(samples) / A_SECOND
            time.sleep(max(0.0, due - time.monotonic()))
            started = time.monotonic()
            with connection.transaction():
                connection.execute(CHANGE, (draw.choice(keys),))
                connection.execute(LOOK, (draw.choice(keys),))
            samples.append((due, started, time.monotonic() - started))
    pipe.send(samples)


class Foreground(Bench):
    """The bench, with somebody at work on it."""

    @contextmanager
    def _client(self, template: Template, name: str) -> Iterator[Client]:
        with self._superuser(name) as connection:
            keys = _survivors(connection, template)
        ours, theirs = SPAWN.Pipe()
        stop = SPAWN.Event()
        process = SPAWN.Process(target=work, args=(self._stack.superuser_url(name), keys, stop, theirs), daemon=True)
        process.start()
        client = Client()
        ours.recv()
        try:
            time.sleep(1.0)  # its first transactions find cold caches
            yield client
        finally:
            stop.set()
            client.samples = [Sample(*sample) for sample in ours.recv()]
            process.join()

    def beside_bare(self, template: Template) -> tuple[Feeling, Feeling]:
        """Let the client work alone, then beside one DELETE."""
        with self._copy(template) as name:
            with self._client(template, name) as client, self._superuser(name) as connection:
                begun = time.monotonic()
                time.sleep(IDLE_SECONDS / 2)
                deleting = time.monotonic()
                connection.execute(f"DELETE FROM public.quiz_responses WHERE {DUE}", template.parameters)
                ended = time.monotonic()
                time.sleep(IDLE_SECONDS / 2)
                over = time.monotonic()
            return client.felt((begun, deleting), (ended, over)), client.felt((deleting, ended))

    def beside_script(self, template: Template) -> tuple[Feeling, Feeling, Feeling, ScriptRun]:
        """Let the client work alone, then beside the script: felt during its whole run, and from its first batch on."""
        with self._copy(template) as name:
            with self._client(template, name) as client:
                begun = time.monotonic()
                time.sleep(IDLE_SECONDS / 2)
                run = self._run(template, self._stack.jobs_url(name))
                ended = run.begun + run.wall
                time.sleep(IDLE_SECONDS / 2)
                over = time.monotonic()
            self._check(template, name, run)
        first = run.begun + run.started
        last = first + sum(run.batches) + sum(pause["seconds"] for pause in run.pauses.values())
        alone = client.felt((begun, run.begun), (ended, over))
        return alone, client.felt((run.begun, ended)), client.felt((first, last)), run


def measure(bench: Foreground, figures: Figures, *, rows: int, trials: int) -> None:
    """Run every trial; the kinds alternate."""
    _say(f"loading {rows:,} rows")
    large, idle = bench.template(rows), bench.template(IDLE_ROWS)
    bench.script(idle)  # the first start on a machine reads the libraries from disk
    for trial in range(1, trials + 1):
        alone, bare = bench.beside_bare(large)
        _say(f"trial {trial}: alone {alone}; beside a bare DELETE {bare}")
        again, polite, batches, run = bench.beside_script(large)
        _say(f"trial {trial}: alone {again}; beside the script {polite}, {run.wall:.1f} s, {len(run.batches)} batches")
        # A machine that others use changes by the minute: what is compared with the script stood right beside it.
        figures.idle.append(again)
        figures.bare.append(bare)
        figures.polite.append(polite)
        figures.batches.append(batches)
        figures.script.append(run)


def judge(figures: Figures, *, full: bool) -> list[Line]:
    """Set what was measured against what was promised."""
    trials = list(zip(figures.polite, figures.batches, strict=True))
    worse = [max(whole.p95, batches.p95) for whole, batches in trials]
    to_idle = [p95 / idle.p95 for p95, idle in zip(worse, figures.idle, strict=True)]
    to_bare = [p95 / bare.p95 for p95, bare in zip(worse, figures.bare, strict=True)]
    idle_ratio, bare_ratio = median(to_idle), median(to_bare)
    an_hour = median(3600 * run.deleted / run.wall for run in figures.script)
    reasons = sorted({reason for run in figures.script for reason in run.pauses})
    pauses = [
        Line(
            f"  paused because of {reason}",
            "",
            f"{median(r.pauses.get(reason, {}).get('seconds', 0.0) for r in figures.script):.2f} s",
        )
        for reason in reasons
    ]
    return [
        Line("client's p95, alone", "", _middle(figures.idle)),
        Line("client's p95, beside one bare DELETE", "", _middle(figures.bare)),
        Line("client's p95, beside the script, whole run", "", _middle(figures.polite)),
        Line("client's p95, beside the script, from its first batch to its last", "", _middle(figures.batches)),
        Line(
            "the worse of these two / alone",
            f"at most {TO_IDLE}",
            f"{idle_ratio:.2f} ({min(to_idle):.2f} to {max(to_idle):.2f})",
            idle_ratio <= TO_IDLE if full else None,
        ),
        Line(
            "the worse of these two / beside one bare DELETE",
            "at most 1/6",
            f"1/{1 / bare_ratio:.1f} (1/{1 / max(to_bare):.1f} to 1/{1 / min(to_bare):.1f})",
            bare_ratio <= TO_BARE if full else None,
        ),
        Line("script, wall time", "", f"{median(run.wall for run in figures.script):.1f} s"),
        Line("  of which batches", "", f"{median(sum(run.batches) for run in figures.script):.1f} s"),
        *pauses,
        Line("batches", "", f"{median(len(run.batches) for run in figures.script):,.0f}"),
        Line("rows an hour", f"at least {FLOOR_ROWS_AN_HOUR:,}", f"{an_hour:,.0f}", an_hour >= FLOOR_ROWS_AN_HOUR),
        Line("load of the machine before the benchmark", "", f"{figures.load_before:.1f} on {os.cpu_count()} cores"),
    ]


def _survivors(connection: Connection, template: Template) -> list[str]:
    found = connection.execute(
        f"SELECT id FROM public.quiz_responses WHERE ({DUE}) IS NOT TRUE ORDER BY md5(id) LIMIT {SURVIVORS}",
        template.parameters,
    )
    return [key for (key,) in found]


def _middle(feelings: Sequence[Feeling]) -> str:
    return str(sorted(feelings, key=lambda feeling: feeling.p95)[len(feelings) // 2])


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="foreground.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=None, help=f"default {FULL_ROWS:,}")
    parser.add_argument("--trials", type=int, default=None, help=f"of each kind; default {TRIALS}")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows, one trial")
    options = parser.parse_args(argv)
    options.rows = options.rows or (QUICK_ROWS if options.quick else FULL_ROWS)
    options.trials = options.trials or (1 if options.quick else TRIALS)
    if not SMALL_ROWS <= options.rows <= MAX_ROWS:
        parser.error(f"--rows: {SMALL_ROWS:,} to {MAX_ROWS:,}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a target was missed."""
    options = _arguments(argv)
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="foreground-benchmark-") as directory:
        os.chmod(directory, 0o711)  # noqa: PTH101, S103 - started by root, the servers run as another user
        stack = local_stack.start(Path(directory) / "stack", shared_buffers_mb=SHARED_BUFFERS_MB)
        try:
            measure(Foreground(stack), figures, rows=options.rows, trials=options.trials)
        finally:
            local_stack.stop(stack)
            local_stack.delete(stack)
    lines = judge(figures, full=options.rows >= FULL_ROWS)
    title = f"{options.rows:,} rows; medians and ranges of {options.trials} trial{'s' * (options.trials > 1)}"
    Console(width=None if sys.stdout.isatty() else 120).print(table_of(lines, title))
    return int(any(line.passed is False for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
