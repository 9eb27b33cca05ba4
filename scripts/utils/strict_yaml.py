"""YAML that means what it says: no key twice, no value that reads otherwise than it is written, nothing unbounded."""

from __future__ import annotations

from typing import Any

import yaml

MAX_DEPTH = 32
MAX_VALUES = 100_000
MAX_CHARACTERS = 10_000
"""Of one value."""


class StrictLoader(yaml.CSafeLoader):
    """A safe loader that refuses YAML which two readers may understand differently, and documents without bounds.

    Refused are a key that is written twice, merge keys (``<<``), and a value that YAML reads otherwise than it is
    written, such as ``no`` or ``010``. A part that an alias repeats counts as often as it is repeated.

    The parser is libyaml: the one written in Python takes several times as long, and every script waits for it.
    """

    def __init__(self, stream: str) -> None:
        require_bounds(stream)
        super().__init__(stream)

    def refuse(self, problem: str, node: yaml.Node) -> None:
        """Refuse a key or a value. A loader that is to name all of them overrides this.

        Raises:
            yaml.MarkedYAMLError: Says what, and where.
        """
        raise _refused(problem, node)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse a merge key instead of merging.

        Raises:
            yaml.MarkedYAMLError: There is one.
        """
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                self.refuse("merge keys (<<) are not allowed here: write the keys out", key_node)
        node.value = [pair for pair in node.value if pair[0].tag != "tag:yaml.org,2002:merge"]
        super().flatten_mapping(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is written twice.

        Raises:
            yaml.MarkedYAMLError: There is one.
        """
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # refused below, as unhashable
            if key_node.value in seen:
                self.refuse(f"{key_node.value} is written twice", key_node)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Refuse a value that YAML reads otherwise than it is written.

        Raises:
            yaml.MarkedYAMLError: The value is one, or looks like a date or a number and is none.
        """
        try:
            value = super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:  # what looks like a date or a number and is none
            self.refuse(str(error), node)
            return None
        # YAML reads no, on, 010 and 12:30 as false, true, 8 and 750: an exception for Norway (no) would match no row.
        if isinstance(value, bool | int) and str(value).lower() != str(node.value).lower():
            self.refuse(f"{node.value} would mean {str(value).lower()}: write that, or quote it", node)
        return value


def require_bounds(text: str) -> None:
    """Refuse a document that is nested too deeply or too large, before any part of it is built.

    libyaml builds a document by recursion in C: without this check, deep nesting ends the process with SIGSEGV.

    Raises:
        yaml.MarkedYAMLError: Says what, and where.
    """
    values = 0
    sizes: dict[str | None, int] = {}
    # Of each collection that is open: its anchor, and how many values came before it.
    opened: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            sizes[anchor] = values - before
            continue
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, values))
        if isinstance(event, yaml.NodeEvent):
            values += _size(event, sizes, {anchor for anchor, _ in opened})
        if len(opened) > MAX_DEPTH:
            raise _refused(f"nested deeper than {MAX_DEPTH} levels", event)
        if values > MAX_VALUES:
            raise _refused(f"holds more than {MAX_VALUES} values", event)


def _size(event: yaml.NodeEvent, sizes: dict[str | None, int], opened: set[str | None]) -> int:
    """Return how many values begin here: of an alias, those of the part that it repeats."""
    if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_CHARACTERS:
        raise _refused(f"the value is longer than {MAX_CHARACTERS} characters", event)
    if not isinstance(event, yaml.AliasEvent):
        return 1
    if event.anchor in opened:
        raise _refused("an alias may not stand inside of what it names", event)
    return sizes.get(event.anchor, 1)


def _refused(problem: str, place: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, place.start_mark)
