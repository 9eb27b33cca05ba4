"""The types and base classes that all models of the policy file share."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, PrivateAttr, Strict, WithJsonSchema

from scripts.lifecycle.policy import shapes

Priority = Literal["critical", "high", "medium", "low"]
"""How urgent an item of the manual-resolution queue is."""
PRIORITIES: tuple[str, ...] = get_args(Priority)
_NAME = re.compile(r"[a-z][a-z0-9_]*")
# The key under which a policy's name is passed to the model. No file can hold it: it is not a name.
NAME_KEY = "(name)"


def matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    """Return the check that a text matches a pattern as a whole; ``what`` completes "is not …" in the message."""

    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"is not {what}")
        return value

    return AfterValidator(check)


Number = Annotated[int, Strict()]
"""A whole number as such: ``true``, ``1.0`` and ``"1"`` are none."""
Truth = Annotated[bool, Strict()]
"""``true`` or ``false`` as such: ``1`` and ``"yes"`` are neither."""
Name = Annotated[
    str, matching(_NAME, "a name of lower-case letters, digits and underscores"), WithJsonSchema(shapes.NAME)
]


class Model(BaseModel):
    """Frozen, and no other key than the named ones: a misspelt key would be a rule that silently does not apply."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Lines(dict[str, int]):
    """The line of each place in the policy file. All are equal: where a rule stands says nothing about the rule."""

    def __eq__(self, other: object) -> bool:
        """Tell that the places of two entries are no difference."""
        return isinstance(other, Lines)

    def __ne__(self, other: object) -> bool:
        """Tell the same."""
        return not self == other

    __hash__ = None


class Located(Model):
    """An entry that knows the line of each of its keys."""

    _lines: Lines = PrivateAttr(default_factory=Lines)

    def at(self, *path: str | int) -> str:
        """Return a place below this entry as messages name it, with its line if the entry was read from a file."""
        place = ".".join(map(str, path))
        while path and ".".join(map(str, path)) not in self._lines:
            path = path[:-1]  # what the file leaves out, such as a key's default
        line = self._lines.get(".".join(map(str, path)))
        return f"{place} (line {line})" if line else place
