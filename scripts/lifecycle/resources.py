"""Rows that people name: is the table there, which column is its key, is the row there?"""

from __future__ import annotations

import psycopg
from psycopg import sql

from scripts.lifecycle.policies import PolicySet, table_identifier
from scripts.utils.db_utils import Connection, local_settings
from scripts.utils.errors import Misconfigured, describe_database_error
from scripts.utils.logging_utils import get_logger

_LOOK_SECONDS = 5.0
_CANNOT_LOOK = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
)


def key_of(policies: PolicySet, table: str) -> str | None:
    """Return the key column of a table that some policy deletes from or reaches, by the policy file; None: no such."""
    for policy in policies.policies.values():
        if policy.table == table:
            return policy.key
    reached = (dependant for policy in policies.policies.values() for dependant in policy.dependants)
    return next((dependant.key for dependant in reached if dependant.table == table), None)


def require_resource(connection: Connection, policies: PolicySet, table: str, resource_id: str) -> None:
    """Check that a table exists and, where a policy names its key, that the row does.

    Raises:
        Misconfigured: One of them does not.
    """
    if not table_exists(connection, table):
        raise Misconfigured(f"there is no table {table}: name it with its schema, as the policy file does")
    if key := key_of(policies, table):
        require_row(connection, table, key, resource_id)


def require_row(connection: Connection, table: str, key: str, resource_id: str) -> None:
    """Refuse a row that is not there; where nobody can look, say so: a hold too many does no harm."""
    statement = sql.SQL("SELECT t.{key}::text FROM {table} t WHERE t.{key} = %s").format(
        key=sql.Identifier(key), table=table_identifier(table)
    )
    try:
        with connection.transaction():
            # The gate is closed meanwhile: no job's batch goes on until this has an answer.
            connection.execute(*local_settings(lock_timeout=_LOOK_SECONDS, statement_timeout=_LOOK_SECONDS))
            row = connection.execute(statement, (resource_id,)).fetchone()
    except psycopg.DataError:
        row = None  # such as letters where the key is a number
    except _CANNOT_LOOK as error:
        get_logger().warning("row_not_checked", table=table, error=describe_database_error(error))
        return
    if row is None:
        raise Misconfigured(f"there is no row in {table} whose {key} is the given id")
    # The engine compares text: a UUID in capital letters is the same key, and its hold would keep nothing.
    if row[0] != resource_id:
        raise Misconfigured(f"the id is not written as {table} has it: write it exactly so: {row[0]}")


def table_exists(connection: Connection, table: str) -> bool:
    """Tell whether there is such a table."""
    schema, _, name = table.partition(".")
    row = connection.execute(
        "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')",
        (schema, name),
    ).fetchone()
    return row is not None
