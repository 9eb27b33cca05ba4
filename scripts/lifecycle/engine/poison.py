"""Rows that the database refuses to give up: each goes to a person, and too many of them stop their policy."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from scripts.lifecycle.jobs.handover import Item, raise_item
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policies import Policy
from scripts.utils.errors import PolicyFailed

# Data exceptions, constraint violations and what triggers raise are about a row; anything else is about the run.
_ROW_ERRORS = ("22", "23", "27", "2F", "38", "39", "44", "P0")


def is_about_a_row(error: psycopg.Error) -> bool:
    """Tell whether the server refused because of what a row holds, or of what refers to it."""
    return error.sqlstate is not None and error.sqlstate.startswith(_ROW_ERRORS)


def hand_over(run: Run, policy: Policy, key: str, error: psycopg.Error) -> int:
    """Put a row that was refused on the manual-resolution queue.

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
        },
    )
    return raise_item(run.database, run.settings, item, key)


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


def too_slow(policy: Policy) -> PolicyFailed:
    """Return what it means that not even one row could be deleted in a batch's time."""
    return PolicyFailed(
        "statement_timeout",
        f"policy {policy.name}: deleting one row of {policy.table} takes longer than"
        " batch.statement_timeout; look for an unindexed foreign key or a slow trigger",
    )
