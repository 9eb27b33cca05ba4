"""Decide how large the next batch is and how long to pause before it, so that other sessions are not held up.

Once a second a batch carries a query about the server, just before its COMMIT: only then do sessions wait for it.
Three things are looked for: other transactions in the database, sessions that wait for this batch, and replicas that
lag. What the role may not see is not visible, which is never taken for fine: unseen activity keeps batches short.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, LiteralString

from scripts.utils.db_utils import Connection

LOOK_SECONDS = 1.0
# A server process reports its transactions once a second at most: one look that saw none proves nothing.
REMEMBERED_SECONDS = 3.0
OTHERS_A_SECOND = 2.0
# Transactions of this run's own other connections that the server may count late.
UNREPORTED_AT_START = 32

IDLE_BATCH_SECONDS = 0.5
UNSEEN_BATCH_SECONDS = 0.05
SHORT_BATCH_SECONDS = 0.01
SHORTEST_BATCH_SECONDS = 0.005
START_ROWS = 1_000
SMALLEST_ROWS = 100

LONGEST_PAUSE_SECONDS = 2.0
LAG_PAUSE_SECONDS = 1.0
WAITING_PAUSE_SECONDS = 0.1
OTHERS_PAUSE_FACTOR = 2.0
WAITING_PAUSE_FACTOR = 4.0
# Of the run's time budget: what is left afterwards must do for the rest.
PAUSE_SHARE = 0.5

LAG_SECONDS = 10.0
LAG_BYTES = 128 * 1024 * 1024

OTHERS_ACTIVE, SOMEONE_WAITS, REPLICA_LAG = "others_active", "someone_waits", "replica_lag"
REASONS = (SOMEONE_WAITS, REPLICA_LAG, OTHERS_ACTIVE)

# In the order of a look's columns: what may be seen, and by which question.
_RIGHTS: LiteralString = """
SELECT has_function_privilege('pg_catalog.pg_stat_get_db_xact_commit(oid)', 'EXECUTE')
       AND has_table_privilege('pg_catalog.pg_stat_database', 'SELECT'),
       has_function_privilege('pg_catalog.pg_lock_status()', 'EXECUTE')
       AND has_function_privilege('pg_catalog.pg_blocking_pids(integer)', 'EXECUTE')
       AND has_table_privilege('pg_catalog.pg_locks', 'SELECT'),
       pg_has_role('pg_read_all_stats', 'USAGE') AND has_table_privilege('pg_catalog.pg_stat_replication', 'SELECT')
"""
_SIGHTS: dict[str, LiteralString] = {
    OTHERS_ACTIVE: """
(SELECT xact_commit + xact_rollback FROM pg_catalog.pg_stat_database WHERE datname = current_database())
""",
    SOMEONE_WAITS: """
(SELECT count(DISTINCT pid) FROM pg_catalog.pg_locks
  WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid)))
""",
    REPLICA_LAG: """
(SELECT coalesce(bool_or(replay_lag > make_interval(secs => %(lag_seconds)s)
                         OR pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) > %(lag_bytes)s), false)
   FROM pg_catalog.pg_stat_replication)
""",
}

Look = tuple[LiteralString, dict[str, Any]]


@dataclass(frozen=True)
class Situation:
    """What the last looks showed; None: not visible to this role, or not known yet."""

    others_active: bool | None = None
    sessions_waiting: int | None = None
    replica_lags: bool | None = None

    @property
    def reason(self) -> str | None:
        """The weightiest reason to pause; None: no reason is known."""
        reasons = (self.sessions_waiting, self.replica_lags, self.others_active)
        return next((name for name, holds in zip(REASONS, reasons, strict=True) if holds), None)


@dataclass(frozen=True)
class Step:
    """The next step: a pause in seconds, its reason if there is one, and the rows of the next batch."""

    rows: int
    pause: float = 0.0
    reason: str | None = None


def next_step(now: Situation, *, rows: int, seconds: float, pause_left: float) -> Step:
    """Decide on the size of the next batch and the pause before it.

    Args:
        now: What is known of the server.
        rows: Rows of the batch before.
        seconds: How long that batch took, in seconds.
        pause_left: Seconds that the run may still spend on pauses.
    """
    reason = now.reason
    if reason and pause_left <= 0:
        return Step(SMALLEST_ROWS)
    aim, pause = (UNSEEN_BATCH_SECONDS if now.others_active is None else IDLE_BATCH_SECONDS), 0.0
    if reason == SOMEONE_WAITS:
        aim, pause = SHORTEST_BATCH_SECONDS, max(WAITING_PAUSE_FACTOR * seconds, WAITING_PAUSE_SECONDS)
    elif reason == REPLICA_LAG:
        aim, pause = SHORT_BATCH_SECONDS, LAG_PAUSE_SECONDS
    elif reason == OTHERS_ACTIVE:
        aim, pause = SHORT_BATCH_SECONDS, OTHERS_PAUSE_FACTOR * seconds
    wanted = min(int(rows * aim / max(seconds, 1e-6)), 2 * rows)
    return Step(max(wanted, SMALLEST_ROWS), min(pause, LONGEST_PAUSE_SECONDS, pause_left), reason)


class Politeness:
    """The state of one policy's politeness in one run: what is known of other sessions, and the pauses made for them.

    Args:
        allowance: Seconds that all pauses together may take.
    """

    def __init__(self, *, allowance: float) -> None:
        self._allowance = allowance
        self._look: Look | None = None
        self._looked_at = 0.0
        self._network = 0.0
        self._seen: int | None = None
        self._ours_then = 0
        self._unreported = UNREPORTED_AT_START
        self._others_at: float | None = None
        self.situation = Situation()
        self.not_visible: list[str] = []
        self.ours = 0
        """Transactions of this run, as far as they are known; the rest of the server's count is other sessions'."""
        self.pauses: dict[str, dict[str, float]] = {}
        """What was paused for: reason, how often, how many seconds."""

    def begin(self, connection: Connection) -> None:
        """Find out what can be seen, and take the first look."""
        rights, network = _timed(connection, _RIGHTS)
        visible = dict(zip(_SIGHTS, rights, strict=True))
        self.not_visible = [name for name, seen in visible.items() if not seen]
        columns: LiteralString = ", ".join([sight if visible[name] else "NULL" for name, sight in _SIGHTS.items()])
        self._look = ("SELECT " + columns, {"lag_seconds": LAG_SECONDS, "lag_bytes": LAG_BYTES})
        answer, again = _timed(connection, *self._look)
        self._network = min(network, again)
        self.learn(answer)

    def look(self) -> Look | None:
        """Return the question that the next batch takes along; None while the last answer is fresh."""
        return self._look if time.monotonic() - self._looked_at >= LOOK_SECONDS else None

    def learn(self, answer: tuple[Any, ...] | None) -> None:
        """Take in what a look saw."""
        if answer is None:
            return
        transactions, waiting, lags = answer
        now = time.monotonic()
        others_active = None if transactions is None else self._others_active(transactions, now)
        self._looked_at = now
        self.situation = Situation(others_active, waiting, lags)

    def _others_active(self, transactions: int, now: float) -> bool | None:
        if self._seen is None:
            self._seen, self._ours_then = transactions, self.ours
            return None
        # The server counts this run's own transactions up to a second late: what is owed is carried over.
        others = transactions - self._seen - (self.ours - self._ours_then) - self._unreported
        self._unreported = max(0, -others)
        self._seen, self._ours_then = transactions, self.ours
        if others > 0 and others >= OTHERS_A_SECOND * (now - self._looked_at):
            self._others_at = now
        return self._others_at is not None and now - self._others_at <= REMEMBERED_SECONDS

    def after(self, rows: int, seconds: float) -> Step:
        """Return the next step after a batch of ``rows`` rows that took ``seconds``."""
        # Network time is subtracted, because it holds no lock; it was measured once, so it counts for half at most.
        work = max(seconds - self._network, seconds / 2)
        spent = sum(pause["seconds"] for pause in self.pauses.values())
        return next_step(self.situation, rows=rows, seconds=work, pause_left=self._allowance - spent)

    def paused(self, reason: str, seconds: float) -> None:
        """Record a pause."""
        pause = self.pauses.setdefault(reason, {"count": 0, "seconds": 0.0})
        pause["count"] += 1
        pause["seconds"] = round(pause["seconds"] + seconds, 4)


def _timed(
    connection: Connection, statement: LiteralString, parameters: dict[str, Any] | None = None
) -> tuple[tuple[Any, ...], float]:
    started = time.monotonic()
    row = connection.execute(statement, parameters).fetchone()
    return row or (), time.monotonic() - started
