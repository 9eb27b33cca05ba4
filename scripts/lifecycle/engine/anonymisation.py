"""What anonymising does to a row's columns, and how a row is told that it was done to.

A pseudonym is worked out here, because its key must not reach the server's logs: the values are read, and the batch
then writes only to rows that are still in the version that was read. Everything else is SQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from scripts.lifecycle.engine.record_keys import RecordKey
from scripts.lifecycle.policy.policies import Anonymize, Treatment

_TEXTS = ("text", "character varying", "character")
_ADDRESSES = (*_TEXTS, "inet")
# A key's id, a colon, and SHA-256 in hexadecimal digits (scripts/utils/pseudonyms.py).
_PSEUDONYM = sql.SQL("'^[a-z0-9]{1,16}:[0-9a-f]{64}$'")
_IS_PSEUDONYM = re.compile("[a-z0-9]{1,16}:[0-9a-f]{64}")
_PSEUDONYM_LENGTH = 81
_KEYED = ("pseudonym", "suppression")

# What was read and has changed since is left alone: its pseudonym would be that of a former value.
FRESH = sql.SQL("fresh AS (SELECT * FROM unnest({arrays}) AS f ({names}))")
STILL_FRESH = sql.SQL(" AND ({id}, t.xmin::text) IN (SELECT key, version FROM fresh)")


@dataclass(frozen=True)
class Described:
    """A column as the catalogue has it."""

    type: str
    not_null: bool
    length: int | None
    """Characters at most; None: no such bound."""


def problems(section: Anonymize, columns: Mapping[str, Described]) -> list[str]:
    """Return what keeps columns that exist from being anonymised so, each named by its column."""
    found = []
    for name, treatment in section.columns.items():
        column = columns.get(name)
        if column is None:
            continue
        if treatment.how == "null" and column.not_null:
            found.append(f"{name} may not be null: give it a constant")
        if treatment.how in _KEYED and column.type not in _TEXTS:
            found.append(f"{name} is {column.type}: a pseudonym is a text")
        elif treatment.how in _KEYED and column.length and column.length < _PSEUDONYM_LENGTH:
            found.append(f"{name} holds {column.length} characters, a pseudonym up to {_PSEUDONYM_LENGTH}")
        if treatment.how == "truncate_ip" and column.type not in _ADDRESSES:
            found.append(f"{name} is {column.type}: no IP address")
        if treatment.how == "constant" and column.type in ("json", "xml", "point") and section.marker is None:
            found.append(f"{name} is {column.type}, which cannot be compared: name a marker")
        length = len(treatment.constant or "")
        if treatment.how == "constant" and column.length and length > column.length:
            found.append(f"{name} holds {column.length} characters, the constant has {length}")
    marker = columns.get(section.marker) if section.marker else None
    if marker and not marker.type.startswith(("timestamp", "date")):
        found.append(f"{section.marker} is {marker.type}, not a date or timestamp")
    return found


def constants(section: Anonymize) -> dict[str, str | None]:
    """Return the parameters that hold the constants."""
    return {
        f"constant_{number}": treatment.constant
        for number, treatment in enumerate(section.columns.values())
        if treatment.how == "constant"
    }


def not_done(section: Anonymize, types: Mapping[str, str]) -> sql.Composed:
    """Return SQL that is true, never null, where a row of ``t`` has yet to be anonymised."""
    if section.marker:
        return sql.SQL("t.{} IS NULL").format(sql.Identifier(section.marker))
    finished = [
        done(name, treatment, types[name], sql.Placeholder(f"constant_{number}"))
        for number, (name, treatment) in enumerate(section.columns.items())
    ]
    return sql.SQL("NOT ({})").format(sql.SQL(" AND ").join(finished))


def done(name: str, treatment: Treatment, kind: str, constant: sql.Placeholder) -> sql.Composed:
    """Return SQL that is true where a column of ``t`` has its final value; its type is ``kind``."""
    column, cast = sql.Identifier("t", name), sql.SQL(kind)
    if treatment.how == "null":
        return sql.SQL("{} IS NULL").format(column)
    if treatment.how == "constant":
        return sql.SQL("{} IS NOT DISTINCT FROM {}::{}").format(column, constant, cast)
    if treatment.how in _KEYED:
        return sql.SQL("({0} IS NULL OR {0} ~ {1})").format(column, _PSEUDONYM)
    return sql.SQL("({0} IS NULL OR {0} = ops.truncate_ip({0}::text)::{1})").format(column, cast)


def marks(
    section: Anonymize, column_type: Callable[[str], sql.SQL], now: Callable[[str], sql.Composed]
) -> sql.Composed:
    """Return the assignments of the UPDATE; its FROM has ``f``, with a value_N for each pseudonym."""
    assigned = []
    pseudonymised = section.pseudonymised
    for number, (name, treatment) in enumerate(section.columns.items()):
        value: sql.Composable
        if treatment.how == "null":
            value = sql.SQL("NULL")
        elif treatment.how == "constant":
            value = sql.SQL("{}::{}").format(sql.Placeholder(f"constant_{number}"), column_type(name))
        elif treatment.how == "pseudonym":
            value = sql.SQL("f.{}").format(sql.Identifier(f"value_{pseudonymised.index(name)}"))
        else:
            value = sql.SQL("ops.truncate_ip(t.{}::text)::{}").format(sql.Identifier(name), column_type(name))
        assigned.append(sql.SQL("{} = {}").format(sql.Identifier(name), value))
    if section.marker:
        assigned.append(sql.SQL("{} = {}").format(sql.Identifier(section.marker), now(section.marker)))
    return sql.SQL(", ").join(assigned)


def fresh(section: Anonymize) -> sql.Composed:
    """Return the CTE of what was read and worked out for the batch."""
    names = ["key", "version", *(f"value_{number}" for number in range(len(section.pseudonymised)))]
    return FRESH.format(
        arrays=sql.SQL(", ").join(sql.SQL("{}::text[]").format(sql.Placeholder(f"fresh_{name}")) for name in names),
        names=sql.SQL(", ").join(map(sql.Identifier, names)),
    )


def read(section: Anonymize, table: sql.Composable, record: RecordKey, where: sql.Composable) -> sql.Composed:
    """Return the query for the values that become pseudonyms, with each row's key and version."""
    columns = [sql.SQL("t.{}::text").format(sql.Identifier(name)) for name in section.pseudonymised]
    return sql.SQL("SELECT {id}, t.xmin::text, {columns} FROM {table} t WHERE {where}").format(
        id=record.id("t"), columns=sql.SQL(", ").join(columns), table=table, where=where
    )


def parameters_of(
    section: Anonymize, rows: list[tuple[Any, ...]], pseudonym: Callable[[str], str]
) -> dict[str, list[str | None]]:
    """Return the arrays of :func:`fresh`; what is null, or a pseudonym already, stays as it is."""
    arrays: dict[str, list[str | None]] = {
        "fresh_key": [row[0] for row in rows],
        "fresh_version": [row[1] for row in rows],
    }
    for number in range(len(section.pseudonymised)):
        values = [row[2 + number] for row in rows]
        arrays[f"fresh_value_{number}"] = [
            value if value is None or _IS_PSEUDONYM.fullmatch(value) else pseudonym(value) for value in values
        ]
    return arrays
