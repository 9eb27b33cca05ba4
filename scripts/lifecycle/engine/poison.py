"""Rows that the database refuses to give up: each goes to a person, and too many of them stop their policy."""

from __future__ import annotations

from functools import cached_property

import psycopg

from scripts.lifecycle.engine.catalogue import catalogue_of, pointing_at
from scripts.lifecycle.engine.obstacles import Trigger, known_triggers, raised_in, told, triggers_behind
from scripts.lifecycle.jobs.handover import Item, raise_item
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policies import Policy
from scripts.utils.db_utils import Connection
from scripts.utils.errors import PolicyFailed, describe_database_error, functions_of

# Data exceptions, constraint violations and what triggers raise are about a row; anything else is about the run.
_ROW_ERRORS = ("22", "23", "27", "2F", "38", "39", "44", "P0")

ALIKE = 10
"""So many rows refused by one trigger in one way, and none gone: then the cause is in the trigger."""


def is_about_a_row(error: psycopg.Error) -> bool:
    """Tell whether the server refused because of what a row holds, or of what refers to it."""
    return error.sqlstate is not None and error.sqlstate.startswith(_ROW_ERRORS)


def hand_over(run: Run, policy: Policy, key: str, error: psycopg.Error) -> int:
    """Put a row that was refused on the manual-resolution queue.

    Args:
        run: The run.
        policy: The row's policy.
        key: The row's key.
        error: Why the database refused to delete the row.

    Returns:
        1 if the item is new, 0 if it was open already.
    """
    violation = isinstance(error, psycopg.errors.ForeignKeyViolation)
    item = Item(
        item_type="foreign_key_violation" if violation else "row_deletion_failed",
        resource_type=policy.table,
        priority="medium",
        reason="the database refuses to delete this row",
        raised_by=f"system:{run.script}",
        context={
            "policy": policy.name,
            "sqlstate": error.sqlstate,
            "constraint": error.diag.constraint_name,
            "table": error.diag.table_name,
            "functions": functions_of(error),
        },
    )
    return raise_item(run.writer, run.settings, item, key)


def statement_refused(policy: Policy, error: psycopg.Error) -> PolicyFailed:
    """Return the error for a statement outside the batches that PostgreSQL refused."""
    what = describe_database_error(error)
    return PolicyFailed("database_error", f"policy {policy.name} on {policy.table}: {what}")


class Refusals:
    """What the database refused in one policy's run, row by row, and whether the cause is in the rows at all.

    Args:
        run: The run.
        policy: The policy.
    """

    def __init__(self, run: Run, policy: Policy) -> None:
        self._run = run
        self._policy = policy
        self._alike: list[tuple[str | None, list[str]]] = []
        self.keys: list[str] = []
        """The keys of the rows that were refused."""
        self.queued = 0
        """How many of them were new on the queue."""

    @cached_property
    def _fired(self) -> list[Trigger]:
        return known_triggers(self._run.database, self._policy)

    def is_about_a_row(self, error: psycopg.Error) -> bool:
        """Tell whether other rows may go where this error was raised.

        A trigger that fires once a statement and does not see the rows refuses any rows.
        """
        if not is_about_a_row(error):
            return False
        raised = raised_in(error, self._fired) if functions_of(error) else []
        return not raised or any(each.sees_rows for each in raised)

    def hand_over(self, key: str, error: psycopg.Error, *, gone: int) -> None:
        """Put a row that was refused on the queue, and stop the policy if the cause is not in the rows.

        Args:
            key: The row's key.
            error: Why the database refused it.
            gone: How many rows the run has deleted.

        Raises:
            PolicyFailed: A trigger refuses one row as the other, and none has gone; or there are more refused rows
                than ``max_poison``.
        """
        self.keys.append(key)
        new = hand_over(self._run, self._policy, key, error)
        self.queued += new
        where = f"policy {self._policy.name} stopped: the database refused"
        if len(self.keys) > self._policy.max_poison:
            raise PolicyFailed(
                "too_many_poison_rows",
                f"{where} {len(self.keys)} rows of {self._policy.table}, max_poison is {self._policy.max_poison};"
                f" look at their items on the queue; the last one: {told(error, self._fired)}",
            )
        kind = error.sqlstate, functions_of(error)
        if gone or not new or not raised_in(error, self._fired):
            return  # rows that were refused in an earlier run say nothing about the others
        self._alike = [*self._alike, kind] if kind in self._alike[-1:] or not self._alike else [kind]
        if len(self._alike) >= ALIKE:
            raise PolicyFailed(
                "trigger_refuses",
                f"{where} each of the {ALIKE} rows of {self._policy.table} that were tried, and all alike:"
                f" {told(error, self._fired)}",
            )


def too_slow(run: Run, policy: Policy) -> PolicyFailed:
    """Return the error for a row that could not be deleted within a batch's statement time-out.

    It names what the catalogue shows as a possible cause: a foreign key without an index, or a trigger.
    """

    def causes(connection: Connection) -> list[str]:
        table, _ = catalogue_of(connection, policy.table)
        keys = pointing_at(connection, table["oid"]) if table and policy.removes_rows else []
        slow = [f"foreign key {key.name} on {key.table} has no index" for key in keys if not key.indexed]
        return slow + [f"{trigger} fires" for trigger in triggers_behind(connection, policy)]

    found = run.database.read(causes)
    why = "; ".join(found) or "every foreign key has an index and no trigger fires: look at the server's load"
    return PolicyFailed(
        "statement_timeout",
        f"policy {policy.name}: deleting one row of {policy.table} takes longer than batch.statement_timeout; {why}",
    )
