"""The JSON Schema of the policy file and the reference of its keys, both made from the models that read the file.

An editor completes and checks the file by the schema. The schema cannot say everything that the models check: that a
floor is not longer than a period, or that a job names a policy. ``--check`` and every script read the file with the
models.
"""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel

from scripts.lifecycle.policy.document import Document
from scripts.lifecycle.policy.keys import every_model, keys_of
from scripts.utils.yaml_defaults import SECTIONS

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SECTION_OF = {
    "soft_delete": "soft_delete",
    "archive_then_delete": "archive",
    "delete_blob": "blob",
    "anonymize": "anonymize",
}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the policy file."""
    schema: dict[str, Any] = _plain(Document.model_json_schema())
    models: dict[str, type[BaseModel]] = {model.__name__: model for _, model in every_model(Document)}
    described = [
        (schema, Document),
        *((schema["$defs"][name], model) for name, model in models.items() if name in schema["$defs"]),
    ]
    for part, model in described:
        for name, key in keys_of(model).items():
            about = {"description": key.description.replace("``", "`"), "examples": [yaml.safe_load(key.example)]}
            part["properties"][name] = {
                **part["properties"][name],
                **{word: said for word, said in about.items() if said},
            }
    _with_defaults(schema["$defs"])
    # Without `take`, it is the name under which the condition stands.
    schema["$defs"]["LookedUp"]["required"].remove("take")
    return {"$schema": _DIALECT, "title": "Policy file", **schema}


def _with_defaults(models: dict[str, Any]) -> None:
    """Let a policy leave out what ``defaults:`` may say, and tie each action to its section."""
    models["Policy"]["properties"].pop("(name)")
    models["Policy"]["required"].remove("(name)")
    defaults = models["PolicyDefaults"]["properties"]
    for section, model in (("policies", "Policy"), ("erasure", "ErasureStep")):
        only = SECTIONS[section]
        models[model]["required"] = [
            key for key in models[model]["required"] if key not in defaults or (only is not None and key not in only)
        ]
    for key in ("batch", "overdue"):
        models["Policy"]["properties"][key]["$ref"] = defaults[key]["$ref"]
    models["Policy"]["allOf"] = [
        {
            "if": {"properties": {"action": {"const": action}}, "required": ["action"]},
            "then": {"required": [section]},
            "else": {"properties": {section: {"type": "null"}}},
        }
        for action, section in _SECTION_OF.items()
    ]


def _plain(part: Any) -> Any:
    """Return a part of pydantic's schema without titles and defaults, and with no other keys than the named ones."""
    if isinstance(part, list):
        return [_plain(each) for each in part]
    if not isinstance(part, dict):
        return part
    named = "properties" in part or "$defs" in part
    plain: dict[str, Any] = {
        key: {name: _plain(each) for name, each in value.items()} if key in ("properties", "$defs") else _plain(value)
        for key, value in part.items()
        if key != "default" and not (key == "title" and isinstance(value, str))
    }
    if "description" in plain and named:
        plain["description"] = plain["description"].replace("``", "`").split("\n\n")[0].replace("\n", " ")
    if "patternProperties" in plain:
        plain |= {"additionalProperties": False}
        plain.pop("propertyNames", None)
    return plain


def reference() -> str:
    """Return the reference of every key as Markdown: a table for each section, with its place in the file."""
    places: dict[type[BaseModel], list[str]] = {}
    for place, model in every_model(Document):
        if not model.__name__.endswith("Defaults"):
            places.setdefault(model, []).append(place)
    return "\n".join(_table(model, found) for model, found in places.items())


def _table(model: type[BaseModel], places: list[str]) -> str:
    rows = [
        f"| `{name}`{'' if key.required else ' (optional)'} | {key.description.replace('``', '`')} | `{key.example}` |"
        for name, key in keys_of(model).items()
    ]
    below = [f"`{place}`" for place in places if not place.startswith("defaults")] or ["`defaults`"]
    where = f"Below {' and '.join(below)}" if places != [""] else "At the top"
    return "\n".join([f"**{where}**", "", "| key | says | example |", "|---|---|---|", *rows, ""])
