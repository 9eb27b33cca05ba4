"""Pieces of SQL that carry the values of their parameters: neither is composed, kept or sent without the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, LiteralString

from scripts.utils import composing as sql


class Fragment(sql.Composed):
    """A piece of SQL and the values of its named parameters; neither ever changes.

    Args:
        parts: The SQL.
        parameters: The value of each placeholder that the SQL names itself.
    """

    def __init__(self, parts: Iterable[Any], parameters: Mapping[str, Any]) -> None:
        super().__init__(list(parts))
        self.parameters = MappingProxyType[str, Any](dict(parameters))


def fragment(
    template: LiteralString,
    *parts: sql.Composable,
    parameters: Mapping[str, Any] | None = None,
    **named: sql.Composable,
) -> Fragment:
    """Format a template, and take over the parameters of every part that is a fragment.

    Raises:
        ValueError: Two parts give one parameter two values.
    """
    own = Fragment([], parameters or {})
    return Fragment(sql.SQL(template).format(*parts, **named), together(*parts, *named.values(), own))


def joined(separator: LiteralString, parts: Iterable[sql.Composable]) -> Fragment:
    """Join parts, and take over the parameters of each that is a fragment.

    Raises:
        ValueError: Two parts give one parameter two values.
    """
    listed = list(parts)
    return Fragment(sql.SQL(separator).join(listed), together(*listed))


def together(*parts: sql.Composable) -> dict[str, Any]:
    """Return the parameters of all the parts that are fragments.

    Raises:
        ValueError: Two parts give one parameter two values.
    """
    merged: dict[str, Any] = {}
    for part in parts:
        if isinstance(part, Fragment):
            for name in part.parameters.keys() & merged.keys():
                if part.parameters[name] != merged[name]:
                    raise ValueError(f"the parameter {name} would have two values")
            merged |= part.parameters
    return merged
