"""Which rows a condition means, above all where a column is null."""

from __future__ import annotations

import pytest
from psycopg import sql

from tests.lifecycle.support import ago, left, policy, queue_items

NULL, EMPTY, RED, BLUE, QUOTED = 1, 2, 3, 4, 5
ALL = {NULL, EMPTY, RED, BLUE, QUOTED}
CASES = [
    ("set", ALL - {NULL}),
    ("unset", {NULL}),
    ("red", {RED}),
    ({"in": ["red", "blue"]}, {RED, BLUE}),
    ({"in": ["Red"]}, set()),
    ({"in": [""]}, {EMPTY}),
    ({"in": ['it\'s \\ "odd", {%s}']}, {QUOTED}),
    # A null is not red: it is in what is not in.
    ({"not_in": ["red"]}, ALL - {RED}),
    ({"not_in": ["red", "blue", ""]}, {NULL, QUOTED}),
]


ROWS = {NULL: None, EMPTY: "", RED: "red", BLUE: "blue", QUOTED: 'it\'s \\ "odd", {%s}'}


def fill(admin, table="things"):
    admin.cursor().executemany(
        sql.SQL("INSERT INTO {} (id, made_at, kind) VALUES (%s, %s, %s)").format(sql.Identifier(table)),
        [(number, ago(days=31), kind) for number, kind in ROWS.items()],
    )
    return admin


@pytest.fixture
def kinds(things):
    return fill(things)


def run_cases(apply, admin, policy_of):
    """Run a policy for each case, each on a table of its own, and return what is left of them."""
    policies = {}
    for number, (condition, _) in enumerate(CASES):
        admin.execute(f"CREATE TABLE case_{number} (LIKE things INCLUDING ALL)")
        fill(admin, f"case_{number}")
        policies[f"case_{number}"] = policy(table=f"public.case_{number}", **policy_of(condition))
    assert apply(policies).code == 0
    return [(condition, set(left(admin, f"case_{number}"))) for number, (condition, _) in enumerate(CASES)]


def test_a_rule_takes_what_its_condition_means(apply, things):
    kept = run_cases(
        apply,
        things,
        lambda condition: {"rules": {"old": {"when": {"kind": condition}, "anchor": "made_at", "keep": "30 days"}}},
    )

    assert kept == [(condition, ALL - meant) for condition, meant in CASES]


def test_an_exception_keeps_what_its_condition_means_and_nothing_more(apply, things):
    kept = run_cases(apply, things, lambda condition: {"exceptions": {"spared": {"when": {"kind": condition}}}})

    assert kept == CASES


def test_several_columns_are_all_required(apply, kinds):
    kinds.execute("UPDATE things SET person = 'anna' WHERE id IN (3, 4)")
    both = {"kind": {"in": ["red", ""]}, "person": "set"}

    apply({"things": policy(exceptions={"spared": {"when": both}})})

    assert left(kinds) == [RED]


def test_any_one_exception_keeps_a_row_from_every_rule(apply, kinds):
    rules = {"old": {"anchor": "made_at", "keep": "30 days"}, "older": {"anchor": "made_at", "keep": "1 day"}}
    exceptions = {"red_ones": {"when": {"kind": "red"}}, "blue_ones": {"when": {"kind": "blue"}}}

    apply({"things": policy(rules=rules, exceptions=exceptions)})

    assert left(kinds) == [RED, BLUE]


def test_enum_boolean_and_number_columns_are_compared_by_their_text(apply, things):
    things.execute(
        "CREATE TYPE state AS ENUM ('open', 'done'); ALTER TABLE things ADD state state, ADD kept boolean, ADD level int;"
        "INSERT INTO things (id, made_at, state, kept, level) VALUES (1, '2020-01-01', 'done', false, 1),"
        " (2, '2020-01-01', 'open', false, 1), (3, '2020-01-01', 'done', true, 1), (4, '2020-01-01', 'done', null, 1),"
        " (5, '2020-01-01', null, false, 1), (6, '2020-01-01', 'done', false, 2), (7, '2020-01-01', 'done', false, 1)"
    )
    when = {"state": {"in": ["done"]}, "kept": False, "level": {"in": [1]}}
    rules = {"done": {"when": when, "anchor": "made_at", "keep": "30 days"}}

    apply({"things": policy(rules=rules)})

    assert left(things) == [2, 3, 4, 5, 6]


def test_a_permanent_row_is_one_whose_flag_is_true_not_one_whose_flag_is_unknown(apply, things):
    things.execute(
        "ALTER TABLE things ADD is_permanent boolean;"
        "INSERT INTO things (id, made_at, is_permanent) VALUES (1, '2020-01-01', true), (2, '2020-01-01', false),"
        " (3, '2020-01-01', null)"
    )

    apply({"things": policy(exceptions={"permanent": {"when": {"is_permanent": True}}})})

    assert left(things) == [1]


PERIODS = {
    # AS_OF is 2026-01-31 02:00: a month before it is 31 December, two are 30 November, which has no 31st.
    "1 month": "2025-12-31 02:00",
    "2 months": "2025-11-30 02:00",
    "11 months": "2025-02-28 02:00",
    "1 year": "2025-01-31 02:00",
    "2 weeks": "2026-01-17 02:00",
    "90 minutes": "2026-01-31 00:30",
    "0 hours": "2026-01-31 02:00",
}


def test_months_and_years_are_calendar_ones(apply, things):
    rules = {}
    for number, (keep, due_before) in enumerate(PERIODS.items()):
        rules[f"rule_{number}"] = {"when": {"kind": keep}, "anchor": "made_at", "keep": keep}
        things.execute(
            "INSERT INTO things (id, made_at, kind) SELECT 10 * %s + n, (%s::timestamp AT TIME ZONE 'UTC')"
            " + make_interval(secs => n), %s FROM generate_series(-1, 1) n",
            (number, due_before, keep),
        )

    apply({"things": policy(rules=rules)})

    # Of each three, the one that is a second older is gone.
    assert left(things) == [10 * number + n for number in range(len(PERIODS)) for n in (0, 1)]


def test_a_leap_day_is_a_year_old_on_the_day_after_the_end_of_february(apply, things):
    things.execute("INSERT INTO things (id, made_at) VALUES (1, '2024-02-29 02:00Z')")
    policies = {"things": policy(rules={"old": {"anchor": "made_at", "keep": "1 year"}})}

    assert apply(policies, as_of="2025-02-28T02:00:00Z").closing["records_deleted"] == 0
    assert apply(policies, as_of="2025-03-01T02:00:00Z").closing["records_deleted"] == 1


def test_forever_deletes_nothing_and_does_not_stop_the_other_rules(apply, kinds):
    rules = {
        "reds": {"when": {"kind": "red"}, "anchor": "made_at", "keep": "forever"},
        "blues": {"when": {"kind": "blue"}, "anchor": "made_at", "keep": "30 days"},
    }

    run = apply({"things": policy(rules=rules)})

    assert (run.code, run.closing["records_deleted"], run.closing["records_remaining"]) == (0, 1, 0)
    assert set(left(kinds)) == ALL - {BLUE}


def test_a_policy_of_nothing_but_forever_still_hands_its_exceptions_over(apply, kinds):
    handed = {"item_type": "old_blue", "priority": "low", "anchor": "made_at", "after": "30 days", "reason": "is old"}
    rules = {"all": {"anchor": "made_at", "keep": "forever"}}

    run = apply({"things": policy(rules=rules, exceptions={"blues": {"when": {"kind": "blue"}, "queue": handed}})})

    assert (run.code, run.closing["records_deleted"], run.closing["records_remaining"]) == (4, 0, 0)
    assert set(left(kinds)) == ALL
    assert queue_items(kinds) == [("old_blue", str(BLUE), 1)]


def test_an_exception_that_waits_forever_hands_nothing_over(apply, kinds):
    handed = {"item_type": "old_blue", "priority": "low", "anchor": "made_at", "after": "forever", "reason": "is old"}

    run = apply({"things": policy(exceptions={"blues": {"when": {"kind": "blue"}, "queue": handed}})})

    assert (run.code, left(kinds), queue_items(kinds)) == (0, [BLUE], [])
