"""The run records of a job, newest first; the records of all policies of one run are joined to one."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from psycopg.rows import class_row

from scripts.utils.db_utils import Connection

Outcome = Literal["running", "done", "failed", "early", "stopped", "abandoned", "skipped"]

HISTORY = timedelta(days=35)
SHOWN_RUNS = 30
# A run with fewer rows ends within a moment, so its rate says nothing about speed.
THROUGHPUT_ROWS = 1000
_BASELINE_RUNS = 5

_RUNS = """
SELECT script, correlation_id, min(started_at) AS started_at, max(heartbeat_at) AS heartbeat_at,
       CASE WHEN bool_and(finished_at IS NOT NULL) THEN max(finished_at) END AS finished_at,
       sum(records_processed)::bigint AS deleted, max(sla_budget_seconds) AS budget_seconds,
       max(host) AS host, max(pid) AS pid, max(fencing_token) AS fencing_token,
       coalesce(max(stop_reason) FILTER (WHERE exit_code NOT IN (0, 4)), max(stop_reason)) AS stop_reason,
       CASE WHEN bool_or(status = 'running') THEN 'running'
            WHEN bool_or(status = 'abandoned') THEN 'abandoned'
            WHEN bool_or(status = 'skipped') THEN 'skipped'
            WHEN bool_or(exit_code IN (1, 2)) THEN 'failed'
            WHEN bool_or(exit_code IN (130, 143)) THEN 'stopped'
            WHEN bool_and(exit_code IN (0, 4)) THEN 'done'
            ELSE 'early' END AS outcome
  FROM ops.job_runs WHERE script = %(script)s AND started_at > %(since)s
 GROUP BY script, correlation_id ORDER BY min(started_at) DESC
"""


@dataclass(frozen=True)
class RunFacts:
    """One run; its moments are by the database's clock."""

    script: str
    correlation_id: str
    started_at: datetime
    heartbeat_at: datetime
    finished_at: datetime | None
    deleted: int
    budget_seconds: float | None
    host: str
    pid: int
    fencing_token: int
    stop_reason: str | None
    outcome: Outcome

    def seconds(self, now: datetime) -> float:
        """Return the seconds that the run took, or has taken until now."""
        return ((self.finished_at or now) - self.started_at).total_seconds()

    @property
    def who(self) -> str:
        """Correlation id, host and pid: enough to find the process."""
        return f"run {self.correlation_id} (host {self.host}, pid {self.pid})"


def history(connection: Connection, script: str, now: datetime) -> list[RunFacts]:
    """Return the runs of a script within :data:`HISTORY`, newest first."""
    with connection.cursor(row_factory=class_row(RunFacts)) as cursor:
        return cursor.execute(_RUNS, {"script": script, "since": now - HISTORY}).fetchall()


def first_run(connection: Connection, script: str) -> datetime | None:
    """Return when the first run on record began; None: there is none."""
    row = connection.execute("SELECT min(started_at) FROM ops.job_runs WHERE script = %s", (script,)).fetchone()
    return row[0] if row else None


def last_completed(connection: Connection, script: str, policy: str) -> tuple[datetime, datetime, int] | None:
    """Return cut-off, start and deleted rows of a policy's last completed run; None: there is none."""
    return connection.execute(
        "SELECT cutoff_at, started_at, records_processed FROM ops.job_runs WHERE script = %s AND policy = %s"
        " AND status = 'completed' ORDER BY started_at DESC LIMIT 1",
        (script, policy),
    ).fetchone()


def throughput(runs: list[RunFacts], now: datetime) -> tuple[float, float] | None:
    """Return the rows a second of the newest large run, and the median of the runs before it; None: too few runs."""
    rates = [
        run.deleted / max(run.seconds(now), 0.001)
        for run in runs
        if run.deleted >= THROUGHPUT_ROWS and run.finished_at and run.outcome != "abandoned"
    ]
    if len(rates) <= _BASELINE_RUNS:
        return None
    return rates[0], statistics.median(rates[1 : SHOWN_RUNS + 1])
