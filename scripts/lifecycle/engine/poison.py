"""Rows that the database refuses to give up: each goes to a person, and too many of them stop their policy."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from scripts.lifecycle.engine.catalogue import catalogue_of, pointing_at
from scripts.lifecycle.engine.obstacles import triggers_behind
from scripts.lifecycle.jobs.handover import Item, raise_item
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policies import Policy
from scripts.utils.db_utils import Connection
from scripts.utils.errors import PolicyFailed, describe_database_error, functions_of

# Data exceptions, constraint violations and what triggers raise are about a row; anything else is about the run.
_ROW_ERRORS = ("22", "23", "27", "2F", "38", "39", "44", "P0")


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


def require_few(policy: Policy, refused: Sequence[str]) -> None:
    """Stop a policy of which too many rows were refused: then the cause is not in the rows.

    Raises:
        PolicyFailed: There are more of them than its ``max_poison``.
    """
    if len(refused) > policy.max_poison:
        raise PolicyFailed(
            "too_many_poison_rows",
            f"policy {policy.name} stopped: the database refused {len(refused)} rows of"
            f" {policy.table}, max_poison is {policy.max_poison}; look at their items on the queue",
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
