"""What each key of the policy file is for, read from the models: its docstring, whether it must be there, an example.

Only messages, the JSON Schema and the reference in the runbook need it, so that nothing here is done when a right file
is read.
"""

from __future__ import annotations

import ast
import inspect
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

# By model and key, as they stand in the file. A test requires one for each key and reads it with the model.
_EXAMPLES = {
    "Rule": {
        "when": "{payment_id: unset}",
        "anchor": "created_at",
        "floor": "90 days",
        "ceiling": "7 days",
        "keep": "24 hours",
    },
    "QueueRule": {
        "item_type": "quiz_undelivered",
        "priority": "high",
        "anchor": "created_at",
        "after": "24 hours",
        "reason": "paid more than 24 hours ago and not delivered",
    },
    "RowException": {
        "when": "{pdf_blob_path: set}",
        "queue": "{item_type: owed, priority: high, anchor: created_at, after: 1 day, reason: paid and not delivered}",
    },
    "Dependant": {
        "table": "public.payment_transactions",
        "column": "meal_plan_id",
        "action": "set_null",
        "key": "id",
        "person": "normalized_email",
    },
    "Batch": {"rows": "1000", "lock_timeout": "500 milliseconds", "statement_timeout": "60 seconds"},
    "Overdue": {"warning": "25 hours", "critical": "48 hours"},
    "SoftDelete": {"flag": "is_deleted", "deleted_at": "deleted_at"},
    "Blob": {
        "column": "pdf_blob_path",
        "deleted_at": "file_deleted_at",
        "cleared": "''",
        "prefix": "meal-plans/",
        "orphans": "7 days",
        "item_type": "pdf_deletion_failed",
        "priority": "medium",
    },
    "Anonymize": {"columns": "{email: pseudonym, ip: truncate_ip, notes: null}", "marker": "anonymized_at"},
    "Lookup": {"take": "id", "from": "public.users", "same": "normalized_email", "latest": "created_at"},
    "LookedUp": {"is": "set"},
    "RowPeriod": {
        "take": "retention_days",
        "unit": "days",
        "from": "public.tenants",
        "same": "tenant_id",
        "latest": "created_at",
        "else": "90 days",
        "forever": "[-1]",
    },
    "Remedy": {"label": "delete the answers now", "delete": "true", "set": "{payment_id: null}"},
    "Archive": {"personal": "[customer_email, normalized_email]", "keep": "3 years", "rows": "20000"},
    "ErasureStep": {
        "table": "public.users",
        "key": "id",
        "person": "normalized_email",
        "action": "delete",
        "when": "{status: closed}",
        "columns": "{normalized_email: suppression}",
        "by": "sender_id",
        "blocked_by": "{open_order: {payment_id: set, pdf_delivered_at: unset}}",
        "not_exported": "[password_hash]",
        "ground": "personal data, GDPR Art. 17(1)",
    },
    "Policy": {
        "description": "Quiz answers of visitors and customers",
        "table": "public.quiz_responses",
        "key": "id",
        "person": "normalized_email",
        "action": "delete",
        "soft_delete": "{flag: is_deleted, deleted_at: deleted_at}",
        "archive": "{personal: [normalized_email], keep: 3 years, rows: 20000}",
        "blob": "{column: pdf, deleted_at: gone_at, prefix: plans/, orphans: 7 days, item_type: pdf, priority: low}",
        "anonymize": "{columns: {email: null}, marker: anonymized_at}",
        "rules": "{abandoned: {anchor: created_at, keep: 24 hours}}",
        "exceptions": "{names_a_pdf: {when: {pdf_blob_path: set}}}",
        "dependants": "[{table: public.payment_transactions, column: meal_plan_id, action: set_null}]",
        "drop_partitions": "false",
        "decisions": "{quiz_orphaned: {delete: {label: delete the answers now, delete: true}}}",
        "legal_basis": "storage limitation, GDPR Art. 5(1)(e)",
        "owner": "compliance",
        "decision": "docs/decisions/0101-policy-quiz-responses.md",
        "max_rows": "2000000",
        "max_poison": "20",
        "batch": "{rows: 1000, lock_timeout: 500 milliseconds, statement_timeout: 60 seconds}",
        "overdue": "{warning: 25 hours, critical: 48 hours}",
    },
    "JobSpec": {
        "schedule": '"0 2 * * *"',
        "budget": "3600 seconds",
        "policies": "[quiz_responses]",
        "lock": "lock:cleanup:quiz_responses",
    },
    "Document": {
        "policies": "{quiz_responses: {table: public.quiz_responses}}",
        "defaults": "{owner: compliance, max_poison: 20}",
        "jobs": '{cleanup_quiz_responses: {schedule: "0 2 * * *", budget: 3600 seconds, policies: [quiz_responses]}}',
        "kept": "{public.users: kept until the person asks for erasure}",
        "erasure": "{users: {table: public.users, key: id, person: email, action: delete, ground: GDPR Art. 17(1)}}",
    },
}


@dataclass(frozen=True)
class Key:
    """One key of the policy file."""

    name: str
    field: FieldInfo
    description: str
    """In Markdown of docstrings: names in two backticks."""
    example: str
    """A value as it would stand in the file."""

    @property
    def required(self) -> bool:
        """Whether the key must be written."""
        return self.field.is_required()


@cache
def keys_of(model: type[BaseModel]) -> dict[str, Key]:
    """Return the keys of a model by their name in the file; not the one that no file can hold."""
    described = _docstrings(model)
    keys = {}
    for attribute, field in model.model_fields.items():
        name = str(field.validation_alias or field.alias or attribute)
        if not name.startswith("("):
            example = next((shown[name] for each in model.__mro__ if name in (shown := _examples(each))), "")
            keys[name] = Key(name, field, described.get(attribute, ""), example)
    return keys


def models_below(annotation: Any) -> Iterator[type[BaseModel]]:
    """Return the models that a value of this type may be, without those that lie deeper."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, types.UnionType):
        for part in get_args(annotation):
            yield from models_below(part)


def step_into(annotation: Any, step: str | int) -> Any:
    """Return the type of what stands under a key or at a position of a value; None: nothing is known to stand there."""
    for model in models_below(annotation):
        if step in keys_of(model):
            return keys_of(model)[str(step)].field.annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (dict, tuple):
        return arguments[1] if origin is dict else arguments[0]
    if origin in (Annotated, Union, types.UnionType):
        return next((found for part in arguments if (found := step_into(part, step)) is not None), None)
    return None


def every_model(document: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Return each model of the file with its place, such as ``policies.<name>.rules.<name>``, the first ones first."""
    waiting: list[tuple[str, Any]] = [("", document)]
    seen = set()
    while waiting:
        place, annotation = waiting.pop(0)
        for model in models_below(annotation):
            if (place, model) not in seen:
                seen.add((place, model))
                yield place, model
                below = f"{place}." if place else ""
                waiting += [(below + name, key.field.annotation) for name, key in keys_of(model).items()]
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is dict:
            waiting.append((f"{place}.<name>", arguments[1]))
        elif origin in (tuple, Annotated, Union, types.UnionType):
            waiting += [(place, part) for part in arguments]


def _name(model: type) -> str:
    """Return the name of the class that says what the model's keys are for: of ``defaults:``, the policy's own."""
    return model.__name__.removesuffix("Defaults")


def _examples(model: type) -> dict[str, str]:
    return _EXAMPLES.get(_name(model).removeprefix("_"), {})


@cache
def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        source = _classes(each.__module__).get(_name(each)) if issubclass(each, BaseModel) else None
        for statement, after in pairwise(source.body if source else []):
            match statement, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    if not module.startswith("scripts."):
        return {}
    parsed = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in parsed.body if isinstance(node, ast.ClassDef)}
