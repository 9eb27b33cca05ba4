"""Changes of a row's columns, as the policy file describes them for a decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.policy.conditions import written
from scripts.lifecycle.policy.lookups import Lookup
from scripts.lifecycle.policy.remedies import NOW
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection
from scripts.utils.errors import OpsError

Value = str | int | bool | Lookup | None


class NothingToTake(OpsError):
    """The lookup of a value finds no row, or more than one."""

    stop_reason = "decision_failed"


def change(connection: Connection, selection: Selection, key: str, values: Mapping[str, Value]) -> None:
    """Set columns of one row.

    Args:
        connection: In the transaction of the decision.
        selection: The policy's selection; it knows table, key and types.
        key: The row's key as the audit writes it.
        values: The new value of each column: a constant, or a lookup in another table.

    Raises:
        NothingToTake: A lookup does not find exactly one row; nothing was changed.
        psycopg.Error: The server refused the change; the transaction must be rolled back.
    """
    parameters: dict[str, Any] = {"row_key": key}
    new = {}
    for number, (column, value) in enumerate(values.items()):
        name = f"value_{number}"
        new[column] = _new(selection, column, value, name)
        if value is not None and value != NOW and not isinstance(value, Lookup):
            parameters[name] = selection.readings.texts[column, written(value)]
    taken = [column for column, value in values.items() if isinstance(value, Lookup)]
    statement = sql.SQL("UPDATE {} t SET {} WHERE {} RETURNING {}").format(
        selection.table,
        sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(column), term) for column, term in new.items()),
        selection.record.is_("t", sql.Placeholder("row_key")),
        sql.SQL(" AND ").join(
            [sql.SQL("true"), *(sql.SQL("t.{} IS NOT NULL").format(sql.Identifier(column)) for column in taken)]
        ),
    )
    try:
        row = connection.execute(statement, parameters).fetchone()
    except psycopg.errors.CardinalityViolation:
        raise NothingToTake("there is more than one row that it could be attached to: nothing was changed") from None
    if row is None or not row[0]:
        raise NothingToTake("there is no row that it could be attached to: nothing was changed")


def _new(selection: Selection, column: str, value: Value, parameter: str) -> sql.Composable:
    if isinstance(value, Lookup):
        return selection.found[value].probed(strictly=True)
    if value is None:
        return sql.SQL("NULL")
    if value == NOW:
        return selection.now(column)
    return sql.SQL("{}::{}").format(sql.Placeholder(parameter), selection.column_type(column))
