"""The residue: the rows of a policy that are past their date, counted from the data by the purge's own selection.

The count runs in a READ ONLY transaction with short time-outs, so that the monitor does not hold up a job. A count that
failed raises; it is never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import psycopg

from scripts.lifecycle.engine.poison import statement_refused
from scripts.lifecycle.engine.policy_run import naming_what_is_locked
from scripts.lifecycle.engine.preflight import preflight
from scripts.lifecycle.engine.selection import store_for
from scripts.lifecycle.engine.survey import Survey, survey
from scripts.lifecycle.policy.policies import Policy
from scripts.utils.db_utils import Connection, ReadOnlyDatabase, connection_lost
from scripts.utils.errors import PolicyFailed
from scripts.utils.settings import Settings

LOCK_SECONDS = 2.0


@dataclass(frozen=True)
class Residue:
    """The rows of a policy that are past their date at one moment."""

    remaining: int
    """Rows past their date that no hold keeps."""
    held: int
    oldest_overdue_seconds: float
    late: int
    """The backlog: rows of these that are further past their date than the policy's warning threshold."""
    left_behind: int | None
    """Rows that the last completed run had to delete, that are still there, and that are on no queue; None: there was
    no such run."""


def measure(
    database: ReadOnlyDatabase,
    settings: Settings,
    policy: Policy,
    *,
    now: datetime,
    completed: datetime | None,
    seconds: float,
) -> Residue:
    """Count a policy's rows that are past their date.

    One query counts what is due. A second and a third follow only where a row is late, or older than the last run.

    Args:
        database: Connected as the jobs' role.
        settings: Name the Blob store, where there is one.
        policy: The policy.
        now: The database's clock.
        completed: Cut-off of the last run that says that it completed; None: there was none.
        seconds: Longest run time of one statement.

    Raises:
        PolicyFailed: The rows could not be counted; the message says why and what to do.
        psycopg.Error: The connection broke.
    """

    def at(connection: Connection, moment: datetime) -> Survey:
        # A monitor may have no token: then a URL and a pathname of one blob are taken for two.
        store = store_for(policy, settings) if settings.blob_read_write_token else ""
        return survey(connection, preflight(connection, policy, moment, blob_store=store).selection)

    try:
        with (
            naming_what_is_locked(policy),
            database.snapshot(lock_timeout=LOCK_SECONDS, statement_timeout=seconds) as connection,
        ):
            found = at(connection, now)
            overdue = found.oldest_overdue_seconds
            threshold = policy.overdue.warning
            late = at(connection, now - threshold).remaining if overdue > threshold.total_seconds() else 0
            left = None
            if completed:
                left = 0
                if overdue > (now - completed).total_seconds():
                    left = max(0, at(connection, completed).removable - _explained(connection, policy))
            return Residue(found.remaining, found.held, overdue, late, left)
    except psycopg.errors.QueryCanceled:
        raise PolicyFailed(
            "count_timeout",
            f"policy {policy.name}: what is past its date in {policy.table} was not counted within {seconds:.0f} s; see"
            " that the rules' columns are indexed and the table is analysed, or raise SLA_COUNT_SECONDS",
        ) from None
    except psycopg.Error as error:
        if connection_lost(error):
            raise
        raise statement_refused(policy, error) from None


def _explained(connection: Connection, policy: Policy) -> int:
    """Return how many rows of the table are on the queue because a run could not delete them."""
    other = [exception.queue.item_type for exception in policy.exceptions.values() if exception.queue]
    row = connection.execute(
        "SELECT count(DISTINCT resource_id) FROM ops.manual_resolution_queue"
        " WHERE status <> 'resolved' AND resource_type = %s AND NOT item_type = ANY(%s)",
        (policy.table, other),
    ).fetchone()
    return int(row[0]) if row else 0
