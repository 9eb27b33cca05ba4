"""JSON from outside, read strictly: duplicate names, NaN and bottomless nesting are errors."""

from __future__ import annotations

import json
from typing import Any


def loads(text: str | bytes) -> Any:
    """Read JSON that somebody else may have written.

    Two readers of an object with the same name twice may take different values (RFC 8259, section 4), so a seal that
    one of them has checked says nothing about what the other one reads.

    Raises:
        ValueError: It is no JSON, has a name twice in one object, has NaN or Infinity, or is nested too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
