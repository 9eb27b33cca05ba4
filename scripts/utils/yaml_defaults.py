"""Fills in what the policy file says once for all: the keys of ``defaults:`` that a policy does not write itself."""

from __future__ import annotations

from collections.abc import Container, Sequence

import yaml

SECTIONS: dict[str, Container[str] | None] = {"policies": None, "erasure": ("key", "person")}
"""The sections whose entries get defaults, and which of the defaults; None: all of them."""


def filled_in(root: yaml.Node) -> yaml.Node:
    """Return the file with its defaults written into each entry, key by key; the entry's own keys come first.

    Nodes keep their marks, so that a message about a default points at its line under ``defaults:``. ``defaults:``
    itself stays.
    """
    defaults = _under(root, "defaults")
    if not isinstance(root, yaml.MappingNode) or not isinstance(defaults, yaml.MappingNode):
        return root
    filled: list[tuple[yaml.Node, yaml.Node]] = []
    for key, section in root.value:
        if key.value in SECTIONS and isinstance(section, yaml.MappingNode):
            only = SECTIONS[key.value]
            pairs = [pair for pair in defaults.value if only is None or pair[0].value in only]
            entries = [(name, _with(entry, pairs)) for name, entry in section.value]
            filled.append((key, _anew(section, entries)))
        else:
            filled.append((key, section))
    return _anew(root, filled)


def _with(entry: yaml.Node, defaults: list[tuple[yaml.Node, yaml.Node]]) -> yaml.Node:
    if not isinstance(entry, yaml.MappingNode):
        return entry
    said = {key.value: value for key, value in defaults}
    # One level down, as for batch: an entry that writes one of its keys has the others from the defaults.
    own = [
        (key, _with(value, default.value) if isinstance(default := said.get(_name(key)), yaml.MappingNode) else value)
        for key, value in entry.value
    ]
    names = [_name(key) for key, _ in own]
    return _anew(entry, own + [(key, value) for key, value in defaults if key.value not in names])


def _name(key: yaml.Node) -> str:
    return key.value if isinstance(key, yaml.ScalarNode) else ""


def _anew(node: yaml.MappingNode, pairs: Sequence[tuple[yaml.Node, yaml.Node]]) -> yaml.MappingNode:
    # A new node: an alias may repeat the old one elsewhere.
    return yaml.MappingNode(node.tag, list(pairs), node.start_mark, node.end_mark, node.flow_style)


def _under(node: yaml.Node | None, step: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for key, value in pairs if key.value == step), None)
