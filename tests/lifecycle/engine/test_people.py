"""A person column that holds no addresses finds nobody: it is told before a hold or an erasure believes it."""

from __future__ import annotations

import io

import pytest
import yaml

from scripts.lifecycle.engine import holds
from scripts.lifecycle.engine.people import nameless
from scripts.lifecycle.policy.policy_file import parse_policies
from scripts.retention.legal_holds import JOB
from tests.lifecycle.support import ANNA, policy

PSEUDONYM = f"k1:{'ab' * 32}"


@pytest.fixture
def people(admin, database):
    """A function that puts values into the person column, and tells what is said of them."""
    admin.execute("CREATE TABLE things (id serial PRIMARY KEY, made_at timestamptz, person text)")

    def say(*values, column="person"):
        for value in values:
            admin.execute("INSERT INTO things (person) VALUES (%s)", (value,))
        document = {"policies": {"things": policy(person=column)}, "jobs": {}}
        policies = parse_policies(yaml.safe_dump(document), "p.yaml")
        return nameless(database.superuser(), policies)

    return say


@pytest.mark.parametrize(
    "values",
    [
        (),
        (None, None),
        ("",),
        (ANNA,),
        ("Anna <Anna@Example.com>",),
        ("4711", ANNA),
        (PSEUDONYM,),
        (PSEUDONYM, None, ""),
    ],
    ids=str,
)
def test_a_column_with_an_address_or_with_nothing_of_a_person_is_no_finding(people, values):
    assert people(*values) == []


@pytest.mark.parametrize("values", [("4711",), ("Anna Example", ""), ("4711", PSEUDONYM), ("a" * 64,)], ids=str)
def test_a_column_of_something_else_is_named_and_no_value_of_it(people, values):
    (problem,) = people(*values)

    assert problem.startswith("policies.things.person (line ")
    assert "public.things.person holds no address in any of the 1 rows looked at" in problem
    assert not [value for value in values if value and value in problem]


def test_a_column_of_numbers_and_one_that_is_not_there(people):
    assert people(ANNA, column="nobody") == []
    (problem,) = people(column="id")
    assert "public.things.id holds no address" in problem


def test_a_column_that_cannot_be_read_is_another_problem(people, admin, database):
    people("4711")
    policies = parse_policies(yaml.safe_dump({"policies": {"things": policy(person="person")}, "jobs": {}}), "p.yaml")

    assert nameless(database.connect(), policies) == []


def test_a_hold_on_a_person_is_refused_where_a_table_knows_nobody(run_job, admin, db, monkeypatch):
    admin.execute("INSERT INTO users VALUES ('u', 'anna@example.com', 'user 4711', NULL, now(), now())")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ANNA}\n"))

    run = run_job("place", "--person", "-", "--reason", "case 7", "--operator", "olga", job=JOB, as_of=None)

    assert run.code == 2
    assert "nothing is held: erasure.users.person" in run.closing["error"]
    assert "name the column that holds the e-mail address" in run.closing["error"]
    assert ANNA not in str(run.lines)
    assert holds.active(db) == []
