"""The JSON Schema of values that are read by our own functions: periods, durations, conditions, treatments, columns."""

from __future__ import annotations

from typing import Any

from scripts.utils import durations

_COLUMN = {"type": "string", "minLength": 1}
_VALUE = {"type": ["string", "integer", "boolean"]}


def _length(units: frozenset[str], *others: str) -> dict[str, Any]:
    spellings = [
        name for name, unit in durations.UNIT_OF.items() if unit in units and (name != "m" or "month" not in units)
    ]
    return {"type": "string", "pattern": f"^({'|'.join([*others, '[0-9]+ ?(' + '|'.join(spellings) + ')'])})$"}


PERIOD = _length(durations.PERIODS, "forever") | {
    "description": "A number and a unit (minutes, hours, days, weeks, months, years), or forever.",
    "examples": ["24 hours", "90d", "7 years", "forever"],
}
DURATION = _length(durations.DURATIONS) | {
    "description": "A number and a unit: milliseconds, seconds, minutes, hours, days or weeks.",
    "examples": ["500 milliseconds", "25 hours"],
}
COLUMNS = {"anyOf": [_COLUMN, {"type": "array", "items": _COLUMN, "minItems": 1, "maxItems": 8, "uniqueItems": True}]}
SAME = {
    "description": "A column of both tables, a list of several, or {own: theirs} where the names differ.",
    "anyOf": [
        *COLUMNS["anyOf"],
        {"type": "object", "additionalProperties": _COLUMN, "minProperties": 1, "maxProperties": 8},
    ],
}
NAME = {"type": "string", "pattern": "^[a-z][a-z0-9_]*$"}
TABLE = {
    "type": "string",
    "pattern": r'^([^."\s]([^."]*[^."\s])?\.[^."\s]([^."]*[^."\s])?|"([^".]|"")+"\."([^"]|"")+")$',
    "examples": ["public.quiz_responses"],
}


def _one(operator: str, operand: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {operator: operand}, "required": [operator], "additionalProperties": False}


CONDITION = {
    "description": "set, unset, a value, or one comparison; PostgreSQL reads a value as one of the column's type.",
    "examples": ["set", "unset", {"in": ["red", "blue"]}],
    "anyOf": [
        _VALUE,
        *(_one(operator, {"type": "array", "items": _VALUE, "minItems": 1}) for operator in ("in", "not_in")),
        *(_one(operator, _VALUE) for operator in ("before", "not_before")),
    ],
}
_CONSTANT = _one("constant", _VALUE)
TREATMENT = {
    "description": "The new value: null, a keyed pseudonym, an address cut to its network, or a constant.",
    "anyOf": [{"enum": [None, "pseudonym", "truncate_ip"]}, _CONSTANT],
}
ERASURE_TREATMENT = TREATMENT | {"anyOf": [{"enum": [None, "pseudonym", "truncate_ip", "suppression"]}, _CONSTANT]}
UNIT = {"enum": [f"{unit}{s}" for unit in ("minute", "hour", "day", "week", "month", "year") for s in ("s", "")]}
LOCK = {"type": "string", "pattern": "^lock:[a-z_]+:[a-z_]+$"}
FOREVER = {"type": ["integer", "null", "array"], "items": {"type": ["integer", "null"]}}
