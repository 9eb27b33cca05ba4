"""Read the policy file: parse it, check it, and name every problem with its place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from scripts.lifecycle.policy import mistakes
from scripts.lifecycle.policy.document import Document
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.lifecycle.policy.sections import Dependant
from scripts.utils.errors import Misconfigured
from scripts.utils.yaml_defaults import filled_in

DEFAULT_POLICY_FILE = Path(__file__).resolve().parents[2] / "retention" / "retention_policies.yaml"


def load_policies(path: Path = DEFAULT_POLICY_FILE) -> PolicySet:
    """Read and check a policy file.

    Raises:
        Misconfigured: Names every problem with its place.
    """
    try:
        text = path.read_bytes().decode()  # unchanged: the hash covers the line ends
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise Misconfigured(
            f"policy file {path}, line {line}: cannot be read (UnicodeDecodeError): save the file as UTF-8"
        ) from None
    except OSError as error:
        raise Misconfigured(f"policy file {path}: cannot be read ({type(error).__name__})") from None
    return parse_policies(text, str(path))


def parse_policies(text: str, place: str) -> PolicySet:
    """Check the text of a policy file; ``place`` names it in messages.

    Raises:
        Misconfigured: Names every problem with its place.
    """
    try:
        loader = mistakes.CollectingLoader(text)
        written = loader.get_single_node()
        root = filled_in(written) if written else None
        content = loader.construct_document(root) if root else None
    except yaml.YAMLError as error:
        raise Misconfigured(f"policy file {place}{mistakes.syntax(error, text)}") from None
    if root is None:
        raise Misconfigured(f"policy file {place}: is empty: it must hold policies and jobs")
    document = _checked(content, root, loader.refused, place)
    digest = hashlib.sha256(text.encode()).hexdigest()
    for section, entries in (("policies", document.policies), ("erasure", document.erasure)):
        for name, entry in entries.items():
            entry._lines.update(_lines_below(root, section, name))  # noqa: SLF001 - filled here, and nowhere else
    policies = {
        name: policy.model_copy(update={"dependants": with_people(document.policies, policy.dependants)})
        for name, policy in document.policies.items()
    }
    return PolicySet(policies, document.jobs, digest, text, document.kept, document.erasure)


def with_people(policies: Mapping[str, Policy], dependants: Iterable[Dependant]) -> tuple[Dependant, ...]:
    """Return the dependants; one without the key ``person`` gets the person column of the first policy on its table."""
    people = {policy.table: policy.person for policy in reversed(list(policies.values())) if policy.person}
    return tuple(
        dependant
        if "person" in dependant.model_fields_set or dependant.table not in people
        else dependant.model_copy(update={"person": people[dependant.table]})
        for dependant in dependants
    )


def _checked(content: Any, root: yaml.Node, refused: dict[tuple[int, int], str], place: str) -> Document:
    details: list[Any] = [
        {"type": "value_error", "loc": loc, "msg": said, "input": None}
        for loc, said in mistakes.jobs_without_policies(root)
    ]
    try:
        document = Document.model_validate(content)
    except ValidationError as error:
        details += error.errors(include_url=False)
    if not details and not refused:
        return document
    found = mistakes.problems(details, root, Document, refused)
    raise Misconfigured(f"policy file {place}: {mistakes.told(found)}") from None


def _lines_below(node: yaml.Node | None, *path: str) -> Iterator[tuple[str, int]]:
    """Return each place below an entry of the file, as :meth:`Located.at` is given it, with its line."""
    for step in path:
        child = mistakes.child_of(node, step)
        if child is None:
            return
        node = child[1]
        found: tuple[int, yaml.Node] = (child[0].start_mark.line + 1, child[1])
    yield from _every_line(".".join(path), *found)


def _every_line(place: str, line: int, node: yaml.Node) -> Iterator[tuple[str, int]]:
    yield place, line
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _every_line(f"{place}.{key.value}", key.start_mark.line + 1, value)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _every_line(f"{place}.{number}", value.start_mark.line + 1, value)
