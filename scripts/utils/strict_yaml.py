"""YAML that means what it says: no key twice, no value that reads otherwise than it is written."""

from __future__ import annotations

from typing import Any

import yaml


class StrictLoader(yaml.CSafeLoader):
    """A safe loader that refuses a key that is written twice.

    libyaml parses: the parser that is written in Python takes several times as long, and every script waits for it.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is there already."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # refused below, as unhashable
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key_node.value} is written twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Refuse a value that reads otherwise than it is written."""
        try:
            value = super().construct_object(node, deep)
        except ValueError as error:  # what looks like a date or a number and is none
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None
        # YAML reads no, on, 010 and 12:30 as false, true, 8 and 750: an exception for Norway would keep nobody.
        if isinstance(value, bool | int) and str(value).lower() != str(node.value).lower():
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value} would mean {str(value).lower()}: write that, or quote it", node.start_mark
            )
        return value
