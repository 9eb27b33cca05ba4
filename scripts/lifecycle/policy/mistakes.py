"""Say what is wrong at each place of the policy file: line and column, what is allowed there, the corrected line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from scripts.lifecycle.policy.keys import Key, every_model, keys_of, models_below, step_into
from scripts.utils import durations
from scripts.utils.errors import pydantic_message
from scripts.utils.strict_yaml import StrictLoader
from scripts.utils.yaml_defaults import SECTIONS

_WORDS = {
    "dict_type": "must be keys with their values, each on a line of its own that is indented further",
    "model_type": "must be keys with their values, each on a line of its own that is indented further",
    "tuple_type": "must be a list: [one, two], or one entry a line after a dash",
    "string_type": "must be a text; in quotation marks where YAML would read a number, a date, true or null",
    "int_type": "must be a whole number, without quotation marks",
    "bool_type": "must be true or false, without quotation marks",
}
_ONE_VALUE = ("string_type", "literal_error", "int_type", "bool_type")
# libyaml's words for what it did not expect, and what is usually the cause.
_SYNTAX = (
    ("tab character", "Indent with blanks: YAML allows no tab there"),
    ("cannot start any token", "A value that begins with one of @ ` % must stand in quotation marks"),
    ("mapping values are not allowed", "The line is indented too far, or a value with a colon needs quotation marks"),
    ("expected key", "The line is indented otherwise than the lines that it belongs to, or a bracket is missing above"),
    ("could not find expected ':'", "A colon and a blank must stand between key and value"),
    ("expected ',' or", "A bracket is opened and not closed"),
    ("unexpected end of stream", "A quotation mark is opened and not closed"),
)


@dataclass(frozen=True)
class _Spot:
    """A place in the file."""

    path: tuple[str, ...]
    key: yaml.Node | None
    value: yaml.Node | None
    kind: Any
    """The type of what stands here."""
    within: Any
    """The type of what it stands in."""

    def at(self, node: yaml.Node | None) -> str:
        place = ".".join(self.path)
        line, column = (self.key.start_mark.line, self.key.start_mark.column) if self.key else (0, 0)
        if node and node.start_mark.line == line:
            column = node.start_mark.column
        return f"{place} (line {line + 1}, column {column + 1}): " if place else ""

    def with_value(self, value: str) -> str:
        """Return the line, or the part of it that is about this key, with another value."""
        return f"{self.key.value}: {value}" if self.key and self.key is not self.value else value

    def with_key(self, key: str) -> str:
        """Return the line, or the part of it that is about this key, with another key."""
        simple = isinstance(self.value, yaml.ScalarNode) and not self.value.style
        return f"{key}: {self.value.value}" if self.value and simple else f"{key}:"


class CollectingLoader(StrictLoader):
    """A strict loader that goes on after a value that it refuses, so that all of them are named at once."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.refused: dict[tuple[int, int], str] = {}
        """What is wrong with a key or value, by its line and column, both counted from 0."""

    def refuse(self, problem: str, node: yaml.Node) -> None:
        """Note what is wrong, and go on."""
        self.refused[node.start_mark.line, node.start_mark.column] = problem


def syntax(error: yaml.YAMLError, text: str) -> str:
    """Return what stops the file from being read as YAML: where, what, and what is usually the cause."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        if control := re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text):
            line = text.count("\n", 0, control.start()) + 1
            return f", line {line}: holds characters that YAML does not allow (U+{ord(control[0]):04X})"
        return ": holds characters that YAML does not allow"
    problem = str(getattr(error, "problem", ""))
    lines = text.splitlines()
    written = lines[mark.line] if mark.line < len(lines) else ""
    said = f", line {mark.line + 1}, column {mark.column + 1}: {problem}"
    opened = getattr(error, "context_mark", None)
    if opened and opened.line != mark.line:
        said += f" ({getattr(error, 'context', '')} that begins on line {opened.line + 1}, column {opened.column + 1})"
    indented = written[: len(written) - len(written.lstrip())]
    if "\t" in indented:
        cause = "Indent with blanks: YAML allows no tab there"
        return f"{said}. {cause}. Write {_shown(_indented_as_before(lines, mark.line))}"
    cause = next((cause for words, cause in _SYNTAX if words in problem), "")
    above = _depths(lines, mark.line)
    if ("expected key" in problem or "mapping values" in problem) and above and above[0] != len(indented):
        cause += f". It is indented by {len(indented)}, the lines above by {' or '.join(map(str, above))}"
    return f"{said}. {cause}" if cause else said


def problems(
    details: Iterable[Any], root: yaml.Node | None, document: type[BaseModel], refused: dict[tuple[int, int], str]
) -> list[str]:
    """Return every problem of the file in the order of its lines.

    Args:
        details: What pydantic found.
        root: The file as YAML nodes.
        document: The model of the whole file.
        refused: What the loader refused, by line and column; what pydantic says of the same place is left out.
    """
    found: dict[str, tuple[int, int]] = {}
    for (line, column), problem in refused.items():
        found[f"line {line + 1}, column {column + 1}: {problem}"] = line, column
    for detail in details:
        if detail["loc"][-1:] == ("(name)",):
            continue  # pydantic says the same of the key itself
        spot = _spot(detail, root, document)
        marks = [(node.start_mark.line, node.start_mark.column) for node in (spot.key, spot.value) if node]
        if not refused.keys() & set(marks[:2] if spot.path else ()):
            found[_problem(detail, spot, document)] = marks[0] if marks else (0, 0)
    return sorted(found, key=lambda problem: (found[problem], problem))


def told(problems: list[str]) -> str:
    """Return problems as one line: the log escapes line ends in a value, so several lines would be hard to read."""
    return "; ".join(problems)


def unknown(word: str, known: Iterable[str]) -> str:
    """Return a question about the nearest right word; nothing where no word is near."""
    near = _near(word, known)
    return f": did you mean `{near}`?" if near else ""


def jobs_without_policies(root: yaml.Node | None) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Return what jobs name that is no policy, or another job's, with its place; also where the rest has mistakes."""
    policies, jobs = (_entries(_under(root, section)) for section in ("policies", "jobs"))
    names = [name for name, _ in policies]
    seen: dict[str, str] = {}
    for job, spec in jobs:
        listed = _under(spec, "policies")
        for number, node in enumerate(listed.value if isinstance(listed, yaml.SequenceNode) else []):
            place = ("jobs", job, "policies", number)
            if not isinstance(node, yaml.ScalarNode):
                continue
            if node.value not in names:
                yield place, f"there is no policy {node.value}{unknown(node.value, names)}"
            elif node.value in seen:
                yield place, f"{node.value} is already carried out by {seen[node.value]}"
            seen.setdefault(node.value, job)


def _spot(detail: Any, root: yaml.Node | None, document: type[BaseModel]) -> _Spot:
    defaults = set(_keys_below(_under(root, "defaults")))
    spot = _Spot((), None, root, document, None)
    for step in detail["loc"]:
        if str(step).startswith("("):
            continue  # tells two ways of writing a value apart, and stands nowhere in the file
        child = child_of(spot.value, step)
        if child is None and detail["type"] not in ("missing", "extra_forbidden"):
            break  # the rest of the location names a type, not a place in the file
        path = (*spot.path, str(step))
        if child and id(child[0]) in defaults and path[0] in SECTIONS:
            # Said once there, and not again for each policy.
            path = ("defaults", *path[2:])
            if len(path) == 2:  # noqa: PLR2004 - the first key below defaults
                spot = _Spot(path[:1], spot.key, spot.value, step_into(document, "defaults"), document)
        if child is None:
            return _Spot(path, spot.key, None, step_into(spot.kind, step), spot.kind)
        spot = _Spot(path, *child, step_into(spot.kind, step), spot.kind)
    return spot


def _problem(detail: Any, spot: _Spot, document: type[BaseModel]) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        return spot.at(spot.key) + _unknown_key(spot, document)
    if kind == "missing":
        return spot.at(spot.key) + _missing(spot)
    if detail["loc"][-1:] == ("[key]",) and spot.key:
        said = pydantic_message(detail)
        better = re.sub(r"[^a-z0-9_]+", "_", str(spot.key.value).lower()).strip("_")
        return spot.at(spot.key) + said + (_write(spot.with_key(better)) if re.match("[a-z]", better) else "")
    said = pydantic_message(detail, **_WORDS).replace("Input should be", "must be", 1)
    if kind in ("dict_type", "model_type") and not spot.path:
        said = f"the file {said}: policies, jobs and, where they are needed, defaults, kept and erasure"
    if kind in ("dict_type", "model_type") and len(spot.path) > 1:
        said += _belongs(spot.path[-1], document)
    if isinstance(detail.get("input"), list) and kind in _ONE_VALUE:
        said += ": one value and no list"
    advice, line = _better(detail, said, spot)
    return spot.at(spot.value) + said + (f": {advice}" if advice else "") + (_write(line) if line else "")


def _better(detail: Any, said: str, spot: _Spot) -> tuple[str, str | None]:
    """Return what else there is to say about a value, and the line as it was probably meant."""
    value = detail.get("input")
    one_is_wanted = detail["type"] in ("string_type", "literal_error") or said.startswith(("is not a p", "is not a d"))
    if one_is_wanted and isinstance(value, list):
        return "", spot.with_value(value[0]) if len(value) == 1 and isinstance(value[0], str) else None
    if said.startswith("is not a period") and value in (None, ""):
        return "write forever where the rows are kept for good", None
    for words, units in (("is not a period", durations.PERIODS), ("is not a duration", durations.DURATIONS)):
        if said.startswith(words) and isinstance(value, str | int | float):
            advice, meant = durations.advice(str(value), units)
            return advice, spot.with_value(meant) if meant else None
    better = _MEANT[detail["type"]](detail, str(value)) if detail["type"] in _MEANT else None
    if said.startswith("is not a table") and re.fullmatch(r"[^.\s\"]+", str(value)):
        better = f"public.{value}"
    if said.startswith("is not a name") and isinstance(value, str):
        better = re.sub(r"[^a-z0-9_]+", "_", value.lower()).strip("_")
    return "", spot.with_value(better) if better else None


def _meant_word(detail: Any, value: str) -> str | None:
    return _near(value, re.findall(r"'([^']+)'", detail["ctx"]["expected"]))


def _meant_number(_: Any, value: str) -> str | None:
    plain = re.sub(r"[,_' ]|\.0+$", "", value)
    return str(int(plain)) if re.fullmatch(r"[0-9]{1,18}", plain) else None


def _meant_list(detail: Any, value: str) -> str | None:
    return f"[{value}]" if isinstance(detail["input"], str | int) else None


_MEANT: dict[str, Callable[[Any, str], str | None]] = {
    "literal_error": _meant_word,
    "int_type": _meant_number,
    "tuple_type": _meant_list,
    "bool_type": lambda _, value: {"yes": "true", "on": "true", "1": "true"}.get(
        value.lower(), "false" if value.lower() in ("no", "off", "0") else None
    ),
}


def _unknown_key(spot: _Spot, document: type[BaseModel]) -> str:
    word = spot.path[-1]
    allowed = [name for model in models_below(spot.within) for name in keys_of(model)]
    near = _near(word, allowed)
    said = "is not a known key" + (f": did you mean `{near}`?" if near else _belongs(word, document))
    said += f"{'' if said.endswith('?') else '.'} Allowed here: {', '.join(allowed)}" if allowed else ""
    return said + (_write(spot.with_key(near)) if near else "")


def _belongs(word: str, document: type[BaseModel]) -> str:
    """Return where a key that stands at a wrong place belongs: the usual cause is a wrong indentation."""
    places = [place for place, model in every_model(document) if word in keys_of(model)]
    if not places:
        return ""
    told_places = " or ".join(f"`{place}`" if place else "the file" for place in places[:3])
    return f". {word} is a key of {told_places}: is the line indented rightly?"


def _missing(spot: _Spot) -> str:
    keys = {name: key for model in models_below(spot.within) for name, key in keys_of(model).items()}
    key: Key | None = keys.get(spot.path[-1])
    said = "is missing"
    if key and key.description:
        said += f": {key.description.replace('``', '`').rstrip('.')}"
    return said + (_write(f"{key.name}: {key.example}", "Example:") if key and key.example else "")


def _near(word: str, known: Iterable[str]) -> str | None:
    words = {each.lower(): each for each in known}
    return next((words[each] for each in difflib.get_close_matches(word.lower(), list(words), 1)), None)


def _write(line: str, how: str = "Write") -> str:
    return f". {how} {_shown(line)}"


def _shown(line: str) -> str:
    return f"`{line}`"


def _indented_as_before(lines: list[str], number: int) -> str:
    before = next((line for line in reversed(lines[:number]) if line.strip() and not line.lstrip().startswith("#")), "")
    depth = len(before) - len(before.lstrip()) + (2 if before.rstrip().endswith(":") else 0)
    return " " * depth + lines[number].strip()


def _depths(lines: list[str], number: int) -> list[int]:
    """Return the indentation of the line above, and those of the lines that it belongs to, the nearest first."""
    found: list[int] = []
    for line in reversed(lines[:number]):
        depth = len(line) - len(line.lstrip())
        if line.strip() and not line.lstrip().startswith("#") and (not found or depth < found[-1]):
            found.append(depth)
    return found


def child_of(node: yaml.Node | None, step: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """Return key and value under a key, or the value at a position twice; None: there is no such place."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


def _under(node: yaml.Node | None, step: str) -> yaml.Node | None:
    child = child_of(node, step)
    return child[1] if child else None


def _keys_below(node: yaml.Node | None) -> Iterator[int]:
    for key, value in _pairs(node):
        yield id(key)
        yield from _keys_below(value)


def _pairs(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _entries(node: yaml.Node | None) -> list[tuple[str, yaml.Node]]:
    return [(str(key.value), value) for key, value in _pairs(node)]
