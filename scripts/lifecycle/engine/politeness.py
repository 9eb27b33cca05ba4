"""Decide how large the next batch is and how long to pause before it, so that other sessions are not held up.

Once a second a batch carries a query about the server, just before its COMMIT: only then do sessions wait for it.
Three things are looked for: other transactions in the database, sessions that wait for this batch, and replicas that
lag. What the role may not see is not visible, which is never taken for fine: unseen activity keeps batches short.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, LiteralString

from scripts.utils.db_utils import Connection

LOOK_SECONDS = 1.0
# A server process reports its transactions once a second at most: one look that saw none proves nothing.
REMEMBERED_SECONDS = 3.0
OTHERS_A_SECOND = 2.0
# Transactions of this run's own other connections that the server may count late.
UNREPORTED_AT_START = 32

START_ROWS = 1_000
SMALLEST_ROWS = 100
LONGEST_PAUSE_SECONDS = 2.0
# Of the run's time budget: what is left afterwards must do for the rest.
PAUSE_SHARE = 0.5

LAG_SECONDS = 10.0
LAG_BYTES = 128 * 1024 * 1024

OTHERS_ACTIVE, SOMEONE_WAITS, REPLICA_LAG = "others_active", "someone_waits", "replica_lag"

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


@dataclass(frozen=True)
class Condition:
    """A state of the server, how long a batch may take while it lasts, and the back-off after each batch."""

    holds: Callable[[Situation], object]
    batch_seconds: float
    reason: str | None = None
    """The name of the pause in log, record and metrics; None: no pause."""
    pause_factor: float = 0.0
    """The pause in multiples of the batch's time."""
    pause_seconds: float = 0.0
    """The pause at least, in seconds."""

    def pause(self, seconds: float) -> float:
        """Return the pause after a batch of so many seconds."""
        return max(self.pause_factor * seconds, self.pause_seconds)


# The first one that holds decides: the weightiest is first, and the last one always holds.
CONDITIONS = (
    Condition(lambda now: now.sessions_waiting, 0.005, SOMEONE_WAITS, pause_factor=4.0, pause_seconds=0.1),
    Condition(lambda now: now.replica_lags, 0.01, REPLICA_LAG, pause_seconds=1.0),
    Condition(lambda now: now.others_active, 0.01, OTHERS_ACTIVE, pause_factor=2.0),
    Condition(lambda now: now.others_active is None, 0.05),
    Condition(lambda _: True, 0.5),
)


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
    condition = next(each for each in CONDITIONS if each.holds(now))
    if condition.reason and pause_left <= 0:
        return Step(SMALLEST_ROWS)
    wanted = min(int(rows * condition.batch_seconds / max(seconds, 1e-6)), 2 * rows)
    pause = min(condition.pause(seconds), LONGEST_PAUSE_SECONDS, pause_left) if condition.reason else 0.0
    return Step(max(wanted, SMALLEST_ROWS), pause, condition.reason)


class Politeness:
    """The state of one policy's politeness in one run: what is known of other sessions, and the pauses made for them.

    Args:
        allowance: Seconds that all pauses together may take.
        ours: Returns how many transactions this run has sent so far; the rest of the server's count is other sessions'.
    """

    def __init__(self, *, allowance: float, ours: Callable[[], int]) -> None:
        self._allowance = allowance
        self._ours = ours
        self._look: Look | None = None
        self._looked_at = 0.0
        self._network = 0.0
        self._seen: int | None = None
        self._ours_then = 0
        self._unreported = UNREPORTED_AT_START
        self._others_at: float | None = None
        self.situation = Situation()
        self.not_visible: list[str] = []
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
        ours = self._ours()
        if self._seen is None:
            self._seen, self._ours_then = transactions, ours
            return None
        # The server counts this run's own transactions up to a second late: what is owed is carried over.
        others = transactions - self._seen - (ours - self._ours_then) - self._unreported
        self._unreported = max(0, -others)
        self._seen, self._ours_then = transactions, ours
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
