"""What the policy file says that a decision does to a row's columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.policy.policies import NOW, Lookup, table_identifier, written
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection
from scripts.utils.errors import OpsError

Value = str | int | bool | Lookup | None


class NothingToTake(OpsError):
    """A lookup finds no row, or more than one."""

    stop_reason = "decision_failed"


def change(connection: Connection, selection: Selection, key: str, values: Mapping[str, Value]) -> None:
    """Give columns of one row their new values.

    Raises:
        NothingToTake: A value is to come from another table's row, and there is not exactly one; nothing was changed.
        psycopg.Error: What else the server refused; the transaction must be undone.
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
        return sql.SQL("(SELECT o.{take} FROM {table} o WHERE o.{same} = t.{same})").format(
            take=sql.Identifier(value.take),
            table=table_identifier(value.from_table),
            same=sql.Identifier(value.same),
        )
    if value is None:
        return sql.SQL("NULL")
    if value == NOW:
        return selection.now(column)
    return sql.SQL("{}::{}").format(sql.Placeholder(parameter), selection.column_type(column))
