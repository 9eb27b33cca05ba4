#!/usr/bin/env python3
"""Measure the cleanup of PDFs, and of what is not quiz answers, against what the product asks for.

    python benchmarks/blobs.py            10 000 PDFs, three trials, then three processes under one limit; four minutes
    python benchmarks/blobs.py --quick    1 000 PDFs, one trial, no limit; what needs the full size is shown, not judged

The store is the local server of Vercel Blob's protocol, in a process of its own, which takes 20 ms for every call. The
usual way is one row at a time: delete its blob, update it, write its audit entry, commit. It is measured on a part.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import httpx
from psycopg import sql
from rich.console import Console

from backend import local_stack
from benchmarks.purge import MEMORY_GROWTH_MB, TRIALS, Bench, Line, Template, one, peak_mb, range_of, require, table_of
from scripts.lifecycle.audit import audit
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from scripts.utils.db_utils import Database
from scripts.utils.settings import Settings
from scripts.utils.test_helpers import start_script  # noqa: TID251 - a benchmark runs scripts as tests do

CLEANUP = ROOT / "scripts" / "cleanup"
FULL, QUICK_SHARE = 10_000, 10
SMALL_PDFS = 1_000
LATENCY_MS = 20
ONE_BY_ONE = 500
FASTER = 20
SHARED_BUFFERS_MB = 256
UNLIMITED = "1000000"
# Wide enough that no run ends early: what three processes may name in the time is less than one of them has.
LIMIT, LIMITED_SECONDS, LIMITED_PDFS = 600, 150, 2_500
WINDOW_SECONDS = 62  # what scripts/utils/rate_limit.py takes for a minute
LOCKS = ("pdfs_one", "pdfs_two", "pdfs_three")

PLANS = """
INSERT INTO public.meal_plans (id, payment_id, email, normalized_email, pdf_blob_path, calorie_target,
                               preferences_summary, ai_model, status, created_at)
SELECT md5('plan' || n)::uuid::text, 'pay-' || n, 'person' || n || '@example.com', 'person' || n || '@example.com',
       CASE WHEN mod(n, 2) = 0 THEN %(url)s ELSE '' END || %(prefix)s || lpad(n::text, 7, '0') || '.pdf', 1800,
       '{"meals": 30}', 'model', 'completed',
       timezone('UTC', now()) - CASE WHEN n < %(due)s THEN interval '91 days' ELSE interval '10 days' END
  FROM generate_series(0, %(all)s - 1) AS n ORDER BY md5('order' || n)
"""
TOKENS = """
INSERT INTO public.magic_link_tokens (id, token_hash, email, normalized_email, created_at, expires_at, used_at,
                                      generation_ip)
SELECT md5('token' || n)::uuid::text, md5('hash' || n) || md5('more' || n), 'person' || n || '@example.com',
       'person' || n || '@example.com', expires - interval '1 day', expires, CASE WHEN mod(n, 2) = 0 THEN expires END,
       '192.0.2.1'
  FROM generate_series(0, %(all)s - 1) AS n, LATERAL (
       SELECT timezone('UTC', now()) - CASE WHEN n < %(due)s THEN interval '1 hour' ELSE interval '-20 hours' END
           AS expires) AS age ORDER BY md5('order' || n)
"""
ENTRIES = """
INSERT INTO public.email_blacklist (id, normalized_email, reason, created_at, expires_at)
SELECT md5('entry' || n)::uuid::text, 'person' || n || '@example.com', 'chargeback',
       timezone('UTC', now()) - interval '91 days',
       CASE WHEN n < %(due)s THEN timezone('UTC', now()) - interval '1 day' ELSE 'infinity' END
  FROM generate_series(0, %(all)s - 1) AS n ORDER BY md5('order' || n)
"""
# The facts that ops.audit_log shows of a blob, as a table with nothing but its key.
SCRATCH = (
    "CREATE TABLE public.usual_audit (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
    " occurred_at timestamptz NOT NULL DEFAULT now(), actor text NOT NULL, action text NOT NULL,"
    " resource_type text NOT NULL, resource_id text NOT NULL, reason text NOT NULL, run_id uuid NOT NULL)"
)
FINALISE = "UPDATE public.meal_plans SET pdf_blob_path = '' WHERE id = %s"
NOTE = (
    "INSERT INTO public.usual_audit (actor, action, resource_type, resource_id, reason, run_id)"
    " VALUES ('system:usual', 'delete_blob', 'public.meal_plans', %s, 'retention_policy', %s)"
)
DUE_PDFS = "pdf_blob_path <> '' AND created_at < timezone('UTC', now()) - interval '90 days'"

console = Console(stderr=True)


@dataclass(frozen=True)
class Job:
    """A cleanup job, rows for it, and how many an hour the product asks for."""

    script: str
    table: str
    insert: str
    action: str
    what: str
    floor: int


PDFS = Job("cleanup_pdfs", "meal_plans", PLANS, "delete_blob", "PDFs", 10_000)
LINKS = Job("cleanup_magic_links", "magic_link_tokens", TOKENS, "delete", "tokens", 50_000)
BLACKLIST = Job("cleanup_blacklist", "email_blacklist", ENTRIES, "delete", "blacklist entries", 10_000)


@dataclass(frozen=True)
class ScriptRun:
    """What one run of a script showed from outside; times in seconds."""

    wall: float
    deleted: int
    peak_mb: float

    @property
    def an_hour(self) -> float:
        """Rows an hour at this rate, everything included."""
        return 3600 * self.deleted / self.wall


@dataclass
class Figures:
    """Every trial's figures, in order."""

    usual: list[float] = field(default_factory=list)
    pdfs: list[ScriptRun] = field(default_factory=list)
    small: list[ScriptRun] = field(default_factory=list)
    jobs: dict[str, list[ScriptRun]] = field(default_factory=dict)
    calls: int = 0
    named: int = 0
    peak_named: int | None = None
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])
    """What else the machine is busy with: the more, the less a single figure means."""


class Store:
    """The local Blob server, in a process of its own."""

    def __init__(self, settings: dict[str, str]) -> None:
        self.settings = settings
        self.url = settings["VERCEL_BLOB_API_URL"]
        self.token = settings["BLOB_READ_WRITE_TOKEN"]

    @property
    def delivery_url(self) -> str:
        """What the URLs of its blobs begin with."""
        return f"https://{self.token.split('_')[3].lower()}.public.blob.vercel-storage.com/"

    def control(self, **wanted: Any) -> dict[str, Any]:
        """Change what it does, and return its state."""
        address = self.url.removesuffix("/api/blob") + "/_control"
        answer = httpx.post(address, json=wanted, headers={"authorization": f"Bearer {self.token}"}, timeout=120)
        state: dict[str, Any] = answer.raise_for_status().json()
        return state

    def refill(self, *prefixes: str, count: int) -> None:
        """Forget what was counted, and hold the first so many blobs of each prefix."""
        self.control(reset=True, faults={"latency_ms": LATENCY_MS})
        for prefix in prefixes:
            self.control(populate={"count": count, "prefix": prefix})


@contextmanager
def blob_store(directory: Path) -> Iterator[Store]:
    """Serve a store while the ``with`` block lasts."""
    program = [sys.executable, str(ROOT / "backend" / "blob_server.py"), "--directory", str(directory)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stdout.readline() for _ in range(2)] if process.stdout else []
            words = [shlex.split(line) for line in lines]
            require(all(len(word) == 2 for word in words), "the Blob server did not start")
            yield Store(dict(word.split("=", 1) for _, word in words))
        finally:
            process.terminate()


class Blobs(Bench):
    """The servers, the store and the templates."""

    def __init__(self, stack: local_stack.Stack, store: Store) -> None:
        super().__init__(stack)
        self._store = store

    def template_of(self, job: Job, due: int, *, prefix: str = "keto-meal-plan-") -> Template:
        """Make a database in which so many rows are due to a job, and a tenth as many are not."""
        name = f"{job.table}_{due}_{prefix.strip('/').replace('-', '_').replace('/', '_')}"
        local_stack.prepare(self._stack, database=name)
        rows = due + due // 10
        with self._superuser(name) as connection:
            facts = {"due": due, "all": rows, "prefix": prefix, "url": self._store.delivery_url}
            connection.execute(job.insert, facts)
            table = sql.Identifier("public", job.table)
            # A worker that starts in one trial and not in its neighbour would decide the ratio.
            connection.execute(sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = off)").format(table))
            connection.execute("VACUUM (ANALYZE)")
        return Template(name, datetime.now(UTC), due, {})

    def job(self, job: Job, template: Template) -> ScriptRun:
        """Time a script from process start to exit, and check what it did."""
        if job is PDFS:
            self._store.refill("keto-meal-plan-", count=template.due + template.due // 10)
        with self._copy(template) as name:
            with self._started(job, name, BLOB_RATE_LIMIT_PER_MINUTE=UNLIMITED) as (process, begun):
                peak, closing_line = 0.0, {}
                for line in process.stdout or ():
                    closing_line = json.loads(line)
                    peak = max(peak, peak_mb(process.pid))
            wall = time.monotonic() - begun
            require(process.returncode == 0, f"{job.script} ended with {process.returncode}: {closing_line}")
            run = ScriptRun(wall, closing_line["records_deleted"], peak)
            self._audited(job, template, name, run)
        if job is PDFS:
            self._all_gone(template)
        return run

    @contextmanager
    def _started(
        self, job: Job, name: str, *arguments: str, **settings: str
    ) -> Iterator[tuple[subprocess.Popen[str], float]]:
        """Start a script on a database; the time is that before its start."""
        environment = {"DATABASE_URL": self._stack.jobs_url(name), "REDIS_URL": self._stack.redis_url}
        begun = time.monotonic()
        arguments = ("--log-format", "json", *arguments)
        environment |= self._store.settings | settings
        with start_script(CLEANUP / f"{job.script}.py", *arguments, env=environment) as process:
            yield process, begun

    def _audited(self, job: Job, template: Template, name: str, run: ScriptRun) -> None:
        with self._superuser(name) as connection:
            audited = one(
                connection,
                "SELECT sum(cardinality(resource_ids)) FROM ops.audit_batches WHERE action = %(action)s",
                {"action": job.action},
            )
            count = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("public", job.table))
            kept = (connection.execute(count).fetchone() or (0,))[0]
        require(run.deleted == audited == template.due, f"{template.due} due, {run.deleted} gone, {audited} audited")
        rows = template.due // 10 + (template.due if job is PDFS else 0)
        require(kept == rows, f"{kept} rows of {job.table} are left, not {rows}")
        with closing(Database(self._stack.jobs_url(name), application_name="benchmark", max_size=1)) as database:
            database.open()
            require(audit.verify(database).intact, "the audit's chain is broken")

    def _all_gone(self, template: Template) -> None:
        counters = self._store.control()["counters"]
        named, deleted = counters["blobs_named"], counters["blobs_deleted"]
        require(named == deleted == template.due, f"{template.due} due, {named} named, {deleted} deleted")
        self.calls = counters["requests"]

    def usual(self, template: Template, part: int) -> float:
        """Time the usual way on a part, and extrapolate: it does not slow down, so nothing is lost by it."""
        self._store.refill("keto-meal-plan-", count=template.due)
        headers = {"authorization": f"Bearer {self._store.token}", "x-api-version": "12"}
        query = f"SELECT id, pdf_blob_path FROM public.meal_plans WHERE {DUE_PDFS} LIMIT {part}"
        run_id = uuid4()
        with (
            self._copy(template) as name,
            self._superuser(name) as connection,
            httpx.Client(base_url=self._store.url, headers=headers, timeout=20) as http,
        ):
            connection.execute(SCRATCH)
            rows = connection.execute(query).fetchall()
            started = time.monotonic()
            for key, blob in rows:
                http.post("/delete", json={"urls": [blob]}).raise_for_status()
                with connection.transaction():
                    connection.execute(FINALISE, (key,))
                    connection.execute(NOTE, (key, run_id))
            seconds = time.monotonic() - started
        require(self._store.control()["counters"]["blobs_deleted"] == part, "the usual way did not do its work")
        return seconds * template.due / part

    def under_one_limit(self, directory: Path) -> tuple[int, int]:
        """Let three processes with databases of their own delete from one store; return the fullest minute and all."""
        prefixes = [f"keto-meal-plan-{lock}/" for lock in LOCKS]
        names = [self.template_of(PDFS, LIMITED_PDFS, prefix=prefix).name for prefix in prefixes]
        self._store.refill(*prefixes, count=LIMITED_PDFS)
        text = DEFAULT_POLICY_FILE.read_text()
        processes = []
        for name, lock in zip(names, LOCKS, strict=True):
            path = directory / f"{lock}.yaml"
            path.write_text(text.replace("lock:cleanup:pdfs\n", f"lock:cleanup:{lock}\n"))
            environment = {"DATABASE_URL": self._stack.jobs_url(name), "REDIS_URL": self._stack.redis_url}
            environment |= self._store.settings | {"BLOB_RATE_LIMIT_PER_MINUTE": str(LIMIT)}
            arguments = ("--policy-file", str(path), "--max-duration", str(LIMITED_SECONDS), "--log-format", "json")
            processes.append(start_script(CLEANUP / "cleanup_pdfs.py", *arguments, env=environment))
        deleted = 0
        for process in processes:
            out, errors = process.communicate()
            last = json.loads(out.splitlines()[-1])
            by_time = process.returncode == 3 and last["stop_reason"] == "time_budget"
            require(by_time, f"a process under the limit ended with {process.returncode}: {last} {errors}")
            require("rate_limit_not_shared" not in out, "a process counted alone")
            deleted += last["records_deleted"]
        counters = self._store.control()["counters"]
        require(counters["statuses"] == {"200": counters["requests"]}, f"not every call was answered: {counters}")
        require(counters["blobs_deleted"] == deleted, f"{deleted} said, {counters['blobs_deleted']} gone")
        return counters["peak_named_per_minute"], counters["blobs_named"]


def measure(bench: Blobs, figures: Figures, directory: Path, *, full: bool, trials: int) -> None:
    """Run every trial; the kinds alternate."""
    share = 1 if full else QUICK_SHARE
    pdfs, small = bench.template_of(PDFS, FULL // share), bench.template_of(PDFS, SMALL_PDFS // share)
    others = {job: bench.template_of(job, max(job.floor, FULL) // share) for job in (LINKS, BLACKLIST)}
    bench.job(PDFS, small)  # the first start on a machine reads the libraries from disk
    for trial in range(1, trials + 1):
        figures.pdfs.append(bench.job(PDFS, pdfs))
        figures.calls = bench.calls
        figures.usual.append(bench.usual(pdfs, ONE_BY_ONE // share))
        _say(f"trial {trial}: script {figures.pdfs[-1].wall:.2f} s, one at a time {figures.usual[-1]:.0f} s")
        figures.small.append(bench.job(PDFS, small))
        for job, template in others.items():
            figures.jobs.setdefault(job.script, []).append(bench.job(job, template))
    if full:
        _say(f"three processes under one limit: {LIMITED_SECONDS} s")
        figures.peak_named, figures.named = bench.under_one_limit(directory)


def judge(figures: Figures, *, full: bool) -> list[Line]:
    """Set what was measured against what was promised."""
    faster = [usual / run.wall for usual, run in zip(figures.usual, figures.pdfs, strict=True)]
    large, small = (median(run.peak_mb for run in runs) for runs in (figures.pdfs, figures.small))
    growth = large - small
    allowed = 3600 * Settings.model_fields["blob_rate_limit_per_minute"].default // WINDOW_SECONDS
    runs = {PDFS: figures.pdfs, **{job: figures.jobs[job.script] for job in (LINKS, BLACKLIST)}}
    due, small_due = figures.pdfs[0].deleted, figures.small[0].deleted
    peak = figures.peak_named or 0
    limit = [
        Line(
            f"three processes, {LIMIT} a minute set: most blobs named in any 60 s",
            f"at most {LIMIT}",
            f"{peak}",
            peak <= LIMIT,
        ),
        Line(f"  named in {LIMITED_SECONDS} s", "", f"{figures.named:,}"),
    ]
    return [
        Line(
            f"one PDF at a time, wall time, extrapolated to {due:,}",
            "",
            f"{median(figures.usual):.0f} s ({range_of(figures.usual, '.0f')})",
        ),
        Line("script, wall time from process start to end", "", _walls(figures.pdfs)),
        Line("  calls to the store", "", f"{figures.calls:,}"),
        Line(
            "one at a time / script",
            f"at least {FASTER}",
            f"{median(faster):.0f} ({range_of(faster, '.0f')})",
            median(faster) >= FASTER if full else None,
        ),
        Line("peak memory of the script", "", f"{large:.1f} MB"),
        Line(
            f"  more than at {small_due:,} PDFs",
            f"at most {MEMORY_GROWTH_MB:.0f} MB",
            f"{growth:+.1f} MB",
            growth <= MEMORY_GROWTH_MB,
        ),
        *(line for job, of_job in runs.items() for line in _throughput(job, of_job)),
        Line(
            "PDFs an hour that the default limit lets through (computed)",
            f"at least {PDFS.floor:,}",
            f"{allowed:,} ({allowed / PDFS.floor:,.1f} times)",
            allowed >= PDFS.floor,
        ),
        *(limit if figures.peak_named is not None else []),
        Line("load of the machine before the benchmark", "", f"{figures.load_before:.1f} on {os.cpu_count()} cores"),
    ]


def _throughput(job: Job, runs: Sequence[ScriptRun]) -> list[Line]:
    an_hour = median(run.an_hour for run in runs)
    passed = an_hour >= job.floor
    times = f"{an_hour:,.0f} ({an_hour / job.floor:,.0f} times)"
    walls = [] if job is PDFS else [Line(f"  {runs[0].deleted:,} of them, wall time", "", _walls(runs))]
    return [Line(f"{job.what} an hour", f"at least {job.floor:,}", times, passed), *walls]


def _walls(runs: Sequence[ScriptRun]) -> str:
    walls = [run.wall for run in runs]
    return f"{median(walls):.2f} s ({range_of(walls, '.2f')})"


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a target was missed."""
    parser = argparse.ArgumentParser(prog="blobs.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, one trial, no limit")
    full = not parser.parse_args(argv).quick
    figures, trials = Figures(), TRIALS if full else 1
    with tempfile.TemporaryDirectory(prefix="blobs-benchmark-") as directory:
        os.chmod(directory, 0o711)  # noqa: PTH101, S103 - started by root, the servers run as another user
        folder = Path(directory)
        stack = local_stack.start(folder / "stack", shared_buffers_mb=SHARED_BUFFERS_MB)
        try:
            with blob_store(folder / "store") as store:
                measure(Blobs(stack, store), figures, folder, full=full, trials=trials)
        finally:
            local_stack.stop(stack)
            local_stack.delete(stack)
    lines = judge(figures, full=full)
    title = f"{figures.pdfs[0].deleted:,} PDFs; medians and ranges of {trials} trial{'s' * (trials > 1)}"
    Console(width=None if sys.stdout.isatty() else 120).print(table_of(lines, title))
    return int(any(line.passed is False for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
