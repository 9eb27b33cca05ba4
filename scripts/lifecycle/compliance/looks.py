"""Counts of each policy's rows now: all, past their date, held, excepted. A count that fails says why."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import psycopg

from scripts.lifecycle.engine.fragments import fragment, joined
from scripts.lifecycle.engine.preflight import preflight
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.monitoring.residue import LOCK_SECONDS, Residue, measure
from scripts.lifecycle.policy.policies import Policy
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection, connection_lost
from scripts.utils.errors import PolicyFailed, describe_database_error


@dataclass(frozen=True)
class Look:
    """The counts of one policy; None where a count failed."""

    policy: Policy
    rows: int | None = None
    residue: Residue | None = None
    excepted: dict[str, int] = field(default_factory=dict)
    """How many rows each exception keeps, by its name."""
    because: str | None = None
    """Why a count failed."""


def look(run: Run, policy: Policy, now: datetime) -> Look:
    """Count a policy's rows in READ ONLY transactions, each within SLA_COUNT_SECONDS.

    Raises:
        psycopg.Error: The connection is lost.
    """
    seconds = float(run.settings.sla_count_seconds)
    rows, excepted, because = None, dict[str, int](), None
    try:
        with run.database.snapshot(lock_timeout=LOCK_SECONDS, statement_timeout=seconds) as connection:
            rows, excepted = _counted(connection, policy, now)
    except PolicyFailed as error:
        because = str(error)
    except psycopg.errors.QueryCanceled:
        because = (
            f"policy {policy.name}: {policy.table} was not counted within {seconds:.0f} s: raise SLA_COUNT_SECONDS"
        )
    except psycopg.Error as error:
        if connection_lost(error):
            raise
        because = f"policy {policy.name} on {policy.table}: {describe_database_error(error)}"
    if policy.action == "retain":
        return Look(policy, rows, None, excepted, because)
    try:
        residue = measure(run.database, run.settings, policy, now=now, completed=None, seconds=seconds)
    except PolicyFailed as error:
        return Look(policy, rows, None, excepted, str(error))
    except psycopg.Error as error:
        if connection_lost(error):
            raise
        return Look(policy, rows, None, excepted, f"policy {policy.name}: {describe_database_error(error)}")
    return Look(policy, rows, residue, excepted, because)


def _counted(connection: Connection, policy: Policy, now: datetime) -> tuple[int, dict[str, int]]:
    selection = preflight(connection, policy, now).selection.joined()
    kept = [fragment("count(*) FILTER (WHERE {})", selection.excepted(name)) for name in policy.exceptions]
    query = fragment("SELECT {} FROM {}", joined(", ", [sql.SQL("count(*)"), *kept]), selection.source)
    row = connection.execute(query, query.parameters).fetchone()
    if row is None:
        raise AssertionError("a count returns a row")
    return int(row[0]), dict(zip(policy.exceptions, row[1:], strict=True))
