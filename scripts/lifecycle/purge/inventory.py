"""Count the rows of a policy whose action is ``retain``; such a policy deletes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg

from scripts.lifecycle.engine.poison import statement_refused
from scripts.lifecycle.engine.policy_run import Ending, PolicyRun, within_budget
from scripts.lifecycle.engine.preflight import preflight
from scripts.lifecycle.engine.survey import Survey
from scripts.lifecycle.jobs.results import PolicyResult
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection
from scripts.utils.errors import ExitCode
from scripts.utils.logging_utils import get_logger


@dataclass(frozen=True)
class Inventory:
    """The number of rows that a policy keeps, and the oldest."""

    rows: int
    oldest: datetime | None
    """The earliest of the rules' anchors; None: the policy has no rule, or the table no rows."""


def count(connection: Connection, run: Run, policy: Policy) -> Inventory:
    """Check the policy against the database, and count its rows.

    Raises:
        PolicyFailed: Table or column is missing, or hidden from this role.
    """
    selection = preflight(connection, policy, run.cutoff).selection
    anchors = [selection.instant(rule.anchor) for rule in policy.rules.values()]
    oldest = sql.SQL("least({})").format(sql.SQL(", ").join(sql.SQL("min({})").format(each) for each in anchors))
    row = connection.execute(
        sql.SQL("SELECT count(*), {} FROM {} t").format(
            oldest if anchors else sql.SQL("NULL::timestamptz"), table_identifier(policy.table)
        ),
        {},
    ).fetchone()
    return Inventory(row[0], row[1]) if row else Inventory(0, None)


def tell(policy: Policy, found: Inventory) -> None:
    """Log what is kept, and the legal basis for keeping it."""
    get_logger().info(
        "policy_retained",
        policy=policy.name,
        rows=found.rows,
        oldest=found.oldest.isoformat() if found.oldest else None,
        legal_basis=policy.legal_basis,
    )


def look(run: Run, policy: Policy) -> PolicyResult:
    """Take the inventory in a dry run, which writes no record.

    Raises:
        PolicyFailed: The policy does not fit the database, or the database refused the count.
    """
    try:
        found = within_budget(run, lambda link: count(link, run, policy))
    except psycopg.Error as error:
        raise statement_refused(policy, error) from error
    tell(policy, found)
    return PolicyResult(
        policy.name,
        "completed",
        "dry_run",
        ExitCode.DONE,
        records_held=0,
        records_remaining=0,
        oldest_overdue_seconds=0.0,
    )


class InventoryRun(PolicyRun):
    """Take the inventory in a real run, which leaves a record in ops.job_runs."""

    def work(self, run_id: UUID) -> Ending:  # noqa: ARG002 - counting writes nothing that names the run
        """Count the rows and log the result.

        Raises:
            PolicyFailed: Table or column is missing, or hidden from this role.
        """
        found = within_budget(self._run, lambda link: count(link, self._run, self._policy))
        tell(self._policy, found)
        self._residue = Survey()
        return Ending("completed", "retained", ExitCode.DONE)
