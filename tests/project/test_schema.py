"""The JSON Schema of the policy file and the reference of its keys say what the models say."""

import json

import jsonschema
import pytest
import yaml
from pydantic import create_model

from scripts.lifecycle.policy.document import Document
from scripts.lifecycle.policy.keys import every_model, keys_of
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE, parse_policies
from scripts.utils.errors import Misconfigured
from tests.lifecycle.policy.test_defaults import DEFAULTS, SHORT
from tests.lifecycle.support import POLICY_TEXT as TEXT
from tests.project import schema

VALIDATOR = jsonschema.Draft202012Validator(json.loads(schema.SCHEMA.read_text()))
KEYS = [
    pytest.param(model, key, id=f"{model.__name__}.{key.name}")
    for model in dict.fromkeys(model for _, model in every_model(Document))
    for key in keys_of(model).values()
]


def test_what_make_schema_writes_is_what_stands_there():
    assert schema.SCHEMA.read_text() == schema.schema_text()
    assert schema.RUNBOOK.read_text() == schema.runbook_text()


def test_it_is_a_schema_and_the_shipped_file_names_it_and_is_right_by_it():
    text = DEFAULT_POLICY_FILE.read_text()

    VALIDATOR.check_schema(VALIDATOR.schema)
    assert text.startswith(f"# yaml-language-server: $schema={schema.SCHEMA.name}\n")
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize(("model", "key"), KEYS)
def test_every_key_has_a_description_and_an_example_that_the_model_reads(model, key):
    assert key.description
    assert key.example
    if (model, key.name) != (Document, "policies"):
        alone = create_model("Alone", __config__=Document.model_config, value=(key.field.rebuild_annotation(), ...))
        alone.model_validate({"value": yaml.safe_load(key.example)})


RIGHT = [
    ("keep: 30 days", "keep: 24h"),
    ("keep: 30 days", "keep: forever"),
    ("keep: 30 days", "keep: {take: days, unit: days, from: public.tenants, same: tenant_id, else: 90 days}"),
    ("keep: 30 days", "keep: {take: kept, else: 90 days, forever: null}"),
    ("{kind: red}", "{kind: {in: [red, 1]}, made_at: {before: '2026-01-01'}}"),
    ("{kind: red}", "{sent: {take: sent_at, from: public.mails, same: {id: thing_id}, is: set}}"),
    ("{kind: red}", "{sent_at: {from: public.mails, same: [id, kind], is: unset}}"),
    ("anchor: made_at, keep", "anchor: {take: sent_at, from: public.mails, same: id}, keep"),
    ("    key: id\n", "    key: [id, kind]\n"),
    ("table: public.things", 'table: \'"My Schema"."order.items"\''),
    ("table: public.things", "table: My Schema.things"),
]
WRONG = [
    ("keep: 30 days", "keep: 90"),
    ("keep: 30 days", "keep: -1 day"),
    ("keep: 30 days", "keep: 1.5 days"),
    ("keep: 30 days", "keep: 30m"),
    ("keep: 30 days", "keep: [30 days]"),
    ("keep: 30 days", "keep: {take: days, unit: fortnights, else: 90 days}"),
    (", keep: 30 days", ""),
    ("anchor: made_at, keep", "anchr: made_at, keep"),
    ("{kind: red}", "{kind: {like: [red]}}"),
    ("{kind: red}", "{kind: {in: []}}"),
    ("{kind: red}", "red"),
    ("action: delete\n", "action: shred\n"),
    ("action: delete\n", "action: soft_delete\n"),
    ("action: delete\n", "action: delete\n    soft_delete: {deleted_at: gone_at}\n"),
    ("priority: low", "priority: urgent"),
    ("item_type: odd_thing", "item_type: Odd"),
    ("table: public.things", "table: things"),
    ("table: public.things", "table: a.b.c"),
    ("    key: id\n", "    key: []\n"),
    ("    key: id\n", "    key: [id, id]\n"),
    ("max_rows: 10", "max_rows: 0"),
    ("max_rows: 10", "max_rows: '10'"),
    ("max_rows: 10", "max_rows: true"),
    ("lock_timeout: 1 second", "lock_timeout: 500"),
    ("lock_timeout: 1 second", "lock_timeout: 1 month"),
    ("budget: 60 seconds", "budget: soon"),
    ('"lock:cleanup:things"', "things"),
    ("owner: me", "owner: ''"),
    ("    legal_basis: none\n", "    legal_base: none\n"),
    ("  things:\n", "  Things:\n"),
    ("jobs:", "job:"),
    ("policies:\n", "defaults: {action: delete}\npolicies:\n"),
    ("policies:\n", "defaults: {person: null}\npolicies:\n"),
    ("policies:\n", "defaults: {batch: {rows: 0}}\npolicies:\n"),
    ("policies:\n", "kept: {users: because}\npolicies:\n"),
]


@pytest.mark.parametrize(("old", "new"), RIGHT)
def test_what_is_right_is_right_to_both(old, new):
    text = TEXT.replace(old, new)

    assert TEXT.count(old) == 1
    assert parse_policies(text, "file").policies
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(text))] == []


def test_a_file_with_defaults_is_right_to_both():
    assert parse_policies(DEFAULTS + SHORT, "file").policies
    assert VALIDATOR.is_valid(yaml.safe_load(DEFAULTS + SHORT))


@pytest.mark.parametrize(("old", "new"), WRONG)
def test_what_is_wrong_is_wrong_to_both(old, new):
    text = TEXT.replace(old, new)

    assert TEXT.count(old) == 1
    with pytest.raises(Misconfigured):
        parse_policies(text, "file")
    assert not VALIDATOR.is_valid(yaml.safe_load(text))
