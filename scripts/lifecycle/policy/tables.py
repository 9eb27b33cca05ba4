"""Names of tables and columns, as the policy file writes them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from scripts.lifecycle.policy import shapes
from scripts.utils import composing as sql

_PART = r"[^.\s\"](?:[^.\"]*[^.\s\"])?"
_TABLE = re.compile(rf"{_PART}\.{_PART}")
# As PostgreSQL itself writes a name that needs quotation marks, each mark in it doubled.
_QUOTED = re.compile(r'"((?:[^"]|"")+)"\."((?:[^"]|"")+)"')
# The audit and what proves it. No policy may change these tables, whatever the policy file says.
NEVER_CHANGED = frozenset(
    {
        *("ops.audit_batches", "ops.audit_head", "ops.audit_log", "ops.policy_versions", "ops.schema_migrations"),
        *("ops.detached_partitions", "ops.partition_rights"),
    }
)


def table_name(value: str) -> str:
    """Return ``schema.table`` without quotation marks: the form that audit, holds and queue name a table by.

    Raises:
        ValueError: The text names no table, or not one alone.
    """
    quoted = _QUOTED.fullmatch(value)
    schema, name = (part.replace('""', '"') for part in quoted.groups()) if quoted else ("", "")
    if quoted and "." not in schema:
        return f"{schema}.{name}"
    if not _TABLE.fullmatch(value):
        raise ValueError("is not a table with its schema, such as public.quiz_responses")
    return value


Table = Annotated[str, AfterValidator(table_name), WithJsonSchema(shapes.TABLE)]
"""A table with its schema; in quotation marks, both of them, where a name holds a dot or a quotation mark."""
Column = Annotated[str, Field(min_length=1)]


def _columns(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _each_once(columns: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(columns)) < len(columns):
        raise ValueError("names a column twice")
    return columns


Columns = Annotated[
    tuple[Column, ...],
    Field(min_length=1, max_length=8),
    BeforeValidator(_columns),
    AfterValidator(_each_once),
    WithJsonSchema(shapes.COLUMNS),
]
"""One column, or a list of several."""


def parts_of(table: str) -> tuple[str, str]:
    """Return schema and name of ``schema.table``; a dot after the first one belongs to the name."""
    schema, _, name = table.partition(".")
    return schema, name


def table_identifier(table: str) -> sql.Identifier:
    """Return ``schema.table`` quoted for SQL."""
    return sql.Identifier(*parts_of(table))
