"""A predicate and the values of its parameters are composed together, and reading a selection never changes it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import yaml
from psycopg import sql

from scripts.lifecycle.engine.fragments import fragment, joined
from scripts.lifecycle.engine.selection import Cause, Selection
from scripts.lifecycle.engine.values import Kind, Readings
from scripts.lifecycle.policy.policy_file import parse_policies
from tests.lifecycle.support import AS_OF, policy

TYPES = {"id": "bigint", "made_at": "timestamp with time zone", "kind": "text"}


def selection(**kwargs):
    text = yaml.safe_dump({"policies": {"things": policy(exceptions={"kept": {"when": {"kind": "red"}}})}, "jobs": {}})
    readings = Readings({"kind": Kind("kind", "text", "text", domain=False)}, {("kind", "red"): "red"})
    return Selection(parse_policies(text, "a test").policies["things"], AS_OF, TYPES, readings=readings, **kwargs)


def test_a_fragment_takes_over_the_parameters_of_its_parts():
    one, two = fragment("%(a)s", parameters={"a": 1}), fragment("%(b)s", parameters={"b": 2})

    both = fragment("{} AND {other}", one, other=joined(" OR ", [two, sql.SQL("false")]), parameters={"c": 3})

    assert both.as_string(None) == "%(a)s AND %(b)s OR false"
    assert dict(both.parameters) == {"a": 1, "b": 2, "c": 3}


def test_a_parameter_has_one_value():
    one, other = (fragment("%(a)s", parameters={"a": value}) for value in (1, 2))

    with pytest.raises(ValueError, match="parameter a would have two values"):
        joined(" AND ", [one, other])


def test_nothing_can_be_written_into_a_selection_or_its_parameters():
    chosen = selection()

    with pytest.raises(FrozenInstanceError):
        chosen.blob_store = "other"
    with pytest.raises(TypeError):
        chosen.parameters["blob_store"] = "other"
    with pytest.raises(TypeError):
        chosen.due.parameters["due_old"] = AS_OF


def test_reading_a_selection_changes_neither_it_nor_a_copy():
    read, untouched = selection(), selection()
    copy = read.at("public.other")

    first = (read.removable, read.parameters, read.rule_name)

    assert (read.removable, read.parameters, read.rule_name) == first
    assert read == untouched
    assert copy.parameters == read.parameters
    assert copy.table != read.table


def test_each_predicate_carries_all_that_it_asks_for(admin):
    admin.execute("CREATE TABLE things (id bigint PRIMARY KEY, made_at timestamptz NOT NULL, kind text, person text)")
    admin.execute("INSERT INTO things VALUES (1, '2001-01-01', 'red', NULL), (2, '2001-01-01', 'blue', NULL)")
    due = selection().due

    rows = admin.execute(fragment("SELECT id FROM things t WHERE {}", due), due.parameters).fetchall()

    assert rows == [(2,)]


def test_a_cause_chooses_in_place_of_the_rules():
    decided = selection().because(Cause("gone", "decision:x/", {"note": "1"}, fragment("true")))

    assert decided.causes == ("gone",)
    assert decided.facts == {"gone": {"note": "1"}}
    assert not any(name.startswith("due_") for name in decided.parameters)
