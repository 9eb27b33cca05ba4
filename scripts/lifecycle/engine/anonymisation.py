"""Compose the SQL that anonymises a row's columns, and the condition that a row is not anonymised yet.

A pseudonym is computed in Python, because its key must not reach the server's logs. So a batch first reads the values
and then writes only to rows that are still in the version that was read. All other treatments are pure SQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scripts.lifecycle.engine.record_keys import RecordKey
from scripts.lifecycle.policy.sections import Anonymize
from scripts.lifecycle.policy.treatments import Treatment
from scripts.utils import composing as sql

_TEXTS = ("text", "character varying", "character")
_ADDRESSES = (*_TEXTS, "inet")
# A key's id, a colon, and SHA-256 in hexadecimal digits (scripts/utils/pseudonyms.py).
_PSEUDONYM = sql.SQL("'^[a-z0-9]{1,16}:[0-9a-f]{64}$'")
_IS_PSEUDONYM = re.compile("[a-z0-9]{1,16}:[0-9a-f]{64}")
_PSEUDONYM_LENGTH = 81
_KEYED = ("pseudonym", "suppression")

# A row that changed after it was read is left out: the pseudonym would be that of its former value.
FRESH = sql.SQL("fresh AS (SELECT * FROM unnest({arrays}) AS f ({names}))")
# Table, place and version identify the row that was read: an inheritance child may have a row with an equal key.
_PLACE = sql.SQL("t.tableoid::text || t.ctid::text")
_STILL_FRESH = sql.SQL(" AND ({id}, {place}, t.xmin::text) IN (SELECT key, place, version FROM fresh)")


@dataclass(frozen=True)
class Described:
    """A column as the catalogue describes it."""

    type: str
    not_null: bool
    length: int | None
    """The most characters that the type holds; None: it has no such limit."""


def problems(section: Anonymize, columns: Mapping[str, Described]) -> list[str]:
    """Return the reasons why existing columns cannot be anonymised as the section says, each with its column's name."""
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


def constants(section: Anonymize, texts: Mapping[tuple[str, str], str]) -> dict[str, str]:
    """Return the parameters that hold the constants, each in the form in which PostgreSQL writes it.

    Args:
        section: The policy's section ``anonymize``.
        texts: The constants as PostgreSQL writes them, by column and by text in the policy file.
    """
    return {
        f"constant_{number}": texts[name, treatment.constant]
        for number, (name, treatment) in enumerate(section.columns.items())
        if treatment.constant is not None
    }


def not_done(section: Anonymize, types: Mapping[str, str]) -> sql.Composed:
    """Return SQL that is true, never null, for a row of ``t`` that is not anonymised yet."""
    if section.marker:
        return sql.SQL("t.{} IS NULL").format(sql.Identifier(section.marker))
    finished = [
        done(name, treatment, types[name], sql.Placeholder(f"constant_{number}"))
        for number, (name, treatment) in enumerate(section.columns.items())
    ]
    return sql.SQL("NOT ({})").format(sql.SQL(" AND ").join(finished))


def done(name: str, treatment: Treatment, kind: str, constant: sql.Placeholder) -> sql.Composed:
    """Return SQL that is true where a column of ``t`` has its final value.

    Args:
        name: The column.
        treatment: What anonymising does to it.
        kind: The column's type, as ``format_type`` writes it.
        constant: The parameter that holds the constant, if the treatment has one.
    """
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
    """Return the assignments of the UPDATE. Its FROM clause has ``f`` with a column ``value_N`` for each pseudonym."""
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
    """Return the CTE that holds the rows that were read for the batch, with their pseudonyms."""
    names = ["key", "place", "version", *(f"value_{number}" for number in range(len(section.pseudonymised)))]
    return FRESH.format(
        arrays=sql.SQL(", ").join(sql.SQL("{}::text[]").format(sql.Placeholder(f"fresh_{name}")) for name in names),
        names=sql.SQL(", ").join(map(sql.Identifier, names)),
    )


def still_fresh(record: RecordKey) -> sql.Composed:
    """Return the condition that a row of ``t`` is in the version that was read."""
    return _STILL_FRESH.format(id=record.id("t"), place=_PLACE)


def read(section: Anonymize, table: sql.Composable, record: RecordKey, where: sql.Composable) -> sql.Composed:
    """Return the query for the values that pseudonyms replace, with each row's key, place and version."""
    columns = [sql.SQL("t.{}::text").format(sql.Identifier(name)) for name in section.pseudonymised]
    return sql.SQL("SELECT {id}, {place}, t.xmin::text, {columns} FROM {table} t WHERE {where}").format(
        place=_PLACE, id=record.id("t"), columns=sql.SQL(", ").join(columns), table=table, where=where
    )


def parameters_of(
    section: Anonymize, rows: list[tuple[Any, ...]], pseudonym: Callable[[str], str]
) -> dict[str, list[str | None]]:
    """Return the arrays of :func:`fresh`. A value that is null or already a pseudonym stays as it is."""
    arrays: dict[str, list[str | None]] = {
        "fresh_key": [row[0] for row in rows],
        "fresh_place": [row[1] for row in rows],
        "fresh_version": [row[2] for row in rows],
    }
    for number in range(len(section.pseudonymised)):
        values = [row[3 + number] for row in rows]
        arrays[f"fresh_value_{number}"] = [
            value if value is None or _IS_PSEUDONYM.fullmatch(value) else pseudonym(value) for value in values
        ]
    return arrays
