"""A condition's value is read as a value of its column's type, by PostgreSQL, before anything is looked at."""

from __future__ import annotations

import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from scripts.lifecycle.engine import values
from scripts.lifecycle.engine.fragments import fragment
from scripts.lifecycle.engine.values import Written
from scripts.lifecycle.policy.conditions import Condition
from tests.lifecycle.support import ago, left, policy

TYPES = (
    "CREATE TYPE mood AS ENUM ('open', 'closed', 'Half way', '');"
    "CREATE DOMAIN price AS numeric(10,2) CHECK (VALUE >= 0); CREATE DOMAIN fee AS price; CREATE DOMAIN state AS mood;"
    "CREATE DOMAIN paper AS json; CREATE TYPE pair AS (a int, b text);"
)
# A type, spellings of one of its values, and texts that are none of its values or that a column could never hold.
CASES = [
    ("numeric(10,2)", ["70", "70.00", "7e1", " 70 "], ["70.005", "seventy", "1e9", ""]),
    ("numeric", ["70.005", "070.0050"], ["70,005"]),
    ("price", ["70", "70.0"], ["-1", "70.005"]),
    ("fee", ["70", "70.0"], ["-1", "70.005"]),
    ("smallint", ["7", "007", "+7"], ["70000", "7.0", "7 days"]),
    ("bigint", ["9007199254740993"], ["9223372036854775808"]),
    ("real", ["0.1", "1e-1"], ["1e400", "a"]),
    ("double precision", ["0.1", "1e-1"], ["1e400"]),
    ("boolean", ["true", "yes", "on", "1", "T"], ["maybe", "2"]),
    ("mood", ["open"], ["Open", "open ", "OPEN"]),
    ("state", ["Half way"], ["half way"]),
    ("text", ["now"], []),
    ("varchar(5)", ["Open"], ["Opened"]),
    ("char(5)", ["Open", "Open "], ["Opened"]),
    ('"char"', ["o"], ["open"]),
    ("name", ["open"], ["x" * 64]),
    (
        "date",
        ["2026-01-31", "20260131", "January 31, 2026", "2026-01-31 00:00:00+00"],
        ["2026-02-30", "2026-01-31 12:00", "today", " Yesterday"],
    ),
    (
        "timestamp",
        ["2026-01-31 02:00:00", "2026-01-31T02:00"],
        ["2026-01-31 02:00+05", "2026-13-01", "now", "today 02:00"],
    ),
    ("timestamp(0)", ["2026-01-31 02:00:00"], ["2026-01-31 02:00:00.5"]),
    (
        "timestamptz",
        ["2026-01-31 02:00:00+00", "2026-01-31 04:00+02", "2026-01-31T02:00Z"],
        ["2026-01-31 02:00+99", "NOW", "tomorrow"],
    ),
    ("time", ["02:00", "2:00:00", "02:00 AM"], ["25:00", "now"]),
    ("interval", ["1 day", "24:00:00", "P1D"], ["1 dya"]),
    ("uuid", ["0B1E6C7A-0000-4000-8000-000000000001", "0b1e6c7a000040008000000000000001"], ["0b1e", ""]),
    ("jsonb", ['{"a": 1, "b": 2}', '{"b":2,"a":1.0}'], ["{'a': 1}"]),
    ("json", ['{"a": 1, "b": 2}', '{"b":2,"a":1}'], ["{'a': 1}"]),
    ("paper", ['{"a": 1, "b": 2}', '{"b":2,"a":1}'], ["{'a': 1}"]),
    ("int[]", ["{1,2}", "{ 1, 02 }"], ["{1,a}", "1,2"]),
    ("mood[]", ["{open,closed}", '{"open","closed"}'], ["{Open}"]),
    ("inet", ["10.0.0.1", "10.0.0.1/32"], ["10.0.0.256"]),
    ("cidr", ["10.0.0.0/8", "10/8"], ["10.0.0.1/8"]),
    ("bytea", ["\\x6869", "hi"], ["\\xzz"]),
    ("tstzrange", ["[2026-01-31 02:00+00,infinity)"], ["[now,)"]),
    ("int4range", ["[1,3)", "[1,2]"], ["[3,1)"]),
    ("bit(3)", ["101"], ["1011", "102"]),
    ("pair", ["(1,a)", '("1","a")'], ["(a,1)"]),
    ("point", [], ["(1,2)"]),
    ("box", [], ["(1,1),(0,0)"]),
    ("xml", [], ["<a/>"]),
]


@pytest.fixture
def typed(admin):
    admin.execute(TYPES)
    columns = ", ".join(f"c{number} {kind}" for number, (kind, _, _) in enumerate(CASES))
    admin.execute(f"CREATE TABLE typed (id bigint PRIMARY KEY, {columns})")
    return admin


def rows_met(admin, table, column, *texts, operator="in"):
    """Return the ids of the rows where a column is one of the values, or why that cannot be asked."""
    readings, problems = values.read(admin, table, [Written("here", column, text) for text in texts])
    if problems:
        return problems
    met = fragment(
        "SELECT id FROM {} t WHERE {} ORDER BY id",
        sql.Identifier(*table.split(".")),
        readings.met({column: Condition(operator, texts)}, "p"),
    )
    return [key for (key,) in admin.execute(met, met.parameters)]


@pytest.mark.parametrize("style", ["ISO, MDY", "German, DMY", "SQL, DMY", "Postgres, DMY"])
def test_every_spelling_of_a_value_is_that_value_and_nothing_else_is(typed, style):
    typed.execute(
        "SELECT set_config('DateStyle', %s, false), set_config('IntervalStyle', 'sql_standard', false)", (style,)
    )
    typed.execute("SELECT set_config('TimeZone', 'Asia/Tokyo', false), set_config('bytea_output', 'escape', false)")
    for number, (kind, same, wrong) in enumerate(CASES):
        column = f"c{number}"
        typed.execute("TRUNCATE typed")
        for text in same[:1]:
            with typed.transaction():
                typed.execute("SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL TimeZone = 'UTC'")
                typed.execute(f"INSERT INTO typed (id, {column}) VALUES (1, %s), (2, NULL)", (text,))
        for text in same:
            assert rows_met(typed, "public.typed", column, text) == [1], (kind, text)
            assert rows_met(typed, "public.typed", column, text, operator="not_in") == [2], (kind, text)
        for text in wrong:
            (problem,) = rows_met(typed, "public.typed", column, text)
            assert problem.startswith(f"here: {text!r} is no value of public.typed.{column}"), (kind, text)


def test_a_problem_names_the_labels_there_are(typed):
    number = [kind for kind, *_ in CASES].index("state")

    assert rows_met(typed, "public.typed", f"c{number}", "Open") == [
        f"here: 'Open' is no value of public.typed.c{number}, which is state; its labels are open, closed, Half way, "
    ]


def test_a_problem_with_an_array_of_an_enum_names_the_labels_too(typed):
    number = [kind for kind, *_ in CASES].index("mood[]")

    (problem,) = rows_met(typed, "public.typed", f"c{number}", "{Open}")

    assert problem.endswith("which is mood[]; its labels are open, closed, Half way, ")


def test_one_that_is_none_does_not_hide_another(typed):
    named = [
        Written("one", "c0", "a"),
        Written("two", "c0", "70"),
        Written("three", "c9", "b"),
        Written("x", "none", ""),
    ]

    readings, problems = values.read(typed, "public.typed", named)

    assert [problem.split(":")[0] for problem in problems] == ["one", "three"]
    assert readings.texts == {("c0", "70"): "70"}


ANY = {
    "numeric(10,2)": st.decimals(min_value=-(10**7), max_value=10**7, places=2, allow_nan=False).map(str),
    "bigint": st.integers(-(2**63), 2**63 - 1).map(str),
    "double precision": st.floats(allow_nan=False).map(repr),
    "text": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    "boolean": st.sampled_from(["true", "false", "yes", "no", "on", "off", "1", "0", "t", "f"]),
    "date": st.dates().map(str),
    "timestamptz": st.datetimes(timezones=st.timezones()).map(str),
    "timestamp": st.datetimes().map(str),
    "interval": st.tuples(st.integers(-999, 999), st.integers(-999, 999), st.integers(-9999, 9999)).map(
        lambda parts: "{} months {} days {} seconds".format(*parts)
    ),
    "uuid": st.uuids().map(str),
    "inet": st.ip_addresses().map(str),
    "bytea": st.binary(max_size=9).map(lambda value: f"\\x{value.hex()}"),
    "int[]": st.lists(st.integers(-99, 99)).map(lambda value: f"{{{','.join(map(str, value))}}}"),
    "varchar(9)": st.text(string.printable, max_size=9),
    "char(9)": st.text(string.ascii_letters + " ", max_size=9),
}


@pytest.fixture
def anything(admin):
    admin.execute(
        "SELECT set_config('TimeZone', 'America/New_York', false), set_config('DateStyle', 'SQL, DMY', false)"
    )
    for kind in ANY:
        admin.execute(sql.SQL("CREATE TABLE {} (id bigint PRIMARY KEY, v " + kind + ")").format(sql.Identifier(kind)))
    return admin


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_row_meets_a_condition_exactly_where_postgresql_says_that_the_values_are_equal(anything, data):
    kind = data.draw(st.sampled_from(list(ANY)))
    stored, asked = data.draw(ANY[kind]), data.draw(ANY[kind])
    table = sql.Identifier(kind)
    with anything.transaction(force_rollback=True):
        anything.execute("SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'")
        anything.execute(sql.SQL("INSERT INTO {} VALUES (1, %s)").format(table), (stored,))
        equal = anything.execute(sql.SQL("SELECT v = %s::" + kind + " FROM {}").format(table), (asked,)).fetchone()[0]
        anything.execute("SET LOCAL TimeZone = 'Asia/Tokyo'; SET LOCAL DateStyle = 'German'")

        assert rows_met(anything, f"public.{kind}", "v", stored) == [1]
        assert rows_met(anything, f"public.{kind}", "v", asked) == ([1] if equal else [])
        assert rows_met(anything, f"public.{kind}", "v", asked, operator="not_in") == ([] if equal else [1])


AMOUNTS = "ALTER TABLE things ADD amount numeric(10,2)"
MOODS = "CREATE TYPE mood AS ENUM ('open', 'closed'); ALTER TABLE things ADD mood mood"


def with_two(admin, column, kept, gone):
    admin.cursor().executemany(
        sql.SQL("INSERT INTO things (id, made_at, {}) VALUES (%s, %s, %s)").format(sql.Identifier(column)),
        [(1, ago(days=90), kept), (2, ago(days=90), gone)],
    )


def test_an_exception_keeps_a_number_however_it_is_written(apply, things):
    things.execute(AMOUNTS)
    with_two(things, "amount", "70", "71")

    run = apply({"things": policy(exceptions={"kept": {"when": {"amount": 70}}})})

    assert run.code == 0
    assert left(things) == [1]


@pytest.mark.parametrize(
    ("setup", "changes", "problem"),
    [
        (
            MOODS,
            {"exceptions": {"kept": {"when": {"mood": "Open"}}}},
            "exceptions.kept.when.mood: 'Open' is no value of public.things.mood, which is mood; its labels are open,",
        ),
        (
            MOODS,
            {"rules": {"old": {"when": {"mood": {"not_in": ["close"]}}, "anchor": "made_at", "keep": "30 days"}}},
            "rules.old.when.mood: 'close' is no value of public.things.mood",
        ),
        (
            AMOUNTS,
            {"decisions": {"quiz_orphaned": {"mend": {"label": "x", "set": {"amount": "much"}}}}},
            "decisions.quiz_orphaned.mend.set.amount: 'much' is no value of public.things.amount, which is numeric(10,2)",
        ),
        (
            AMOUNTS,
            {"decisions": {"quiz_orphaned": {"mend": {"label": "x", "set": {"amount": "now"}}}}},
            "decisions.quiz_orphaned.mend.set.amount: now is for a date or timestamp, the column is numeric",
        ),
        (
            "",
            {"decisions": {"quiz_orphaned": {"mend": {"label": "x", "set": {"id": None}}}}},
            "decisions.quiz_orphaned.mend.set.id: the column may not be null",
        ),
    ],
)
def test_a_value_that_is_none_stops_its_policy_before_the_first_row(apply, things, setup, changes, problem):
    if setup:
        things.execute(setup)
    things.execute("INSERT INTO things (id, made_at) VALUES (1, %s)", (ago(days=90),))

    run = apply({"things": policy(**changes)})

    assert run.code == 1
    assert problem in run.event("policy_failed")["error"]
    assert left(things) == [1]


def test_a_fraction_and_a_day_are_read_as_the_columns_types(apply, things):
    things.execute(AMOUNTS + ", ADD day date")
    things.execute(
        "INSERT INTO things (id, made_at, amount, day) VALUES (1, %(at)s, 70.5, NULL), (2, %(at)s, 70, '2026-01-02'),"
        " (3, %(at)s, 70, '2026-02-01')",
        {"at": ago(days=90)},
    )
    exceptions = {"a": {"when": {"amount": "70.50"}}, "b": {"when": {"day": "January 2, 2026"}}}

    assert apply({"things": policy(exceptions=exceptions)}).code == 0
    assert left(things) == [1, 2]


def test_a_column_that_a_decision_sets_and_that_is_not_there_is_named(apply, things):
    decisions = {"quiz_orphaned": {"mend": {"label": "x", "set": {"colour": "red"}}}}

    run = apply({"things": policy(decisions=decisions)}, grant=False)

    assert run.code == 1
    assert "column public.things.colour does not exist" in run.event("policy_failed")["error"]
