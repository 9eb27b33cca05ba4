"""Naive columns hold UTC, whatever zone the database, the role or the client lives in."""

from __future__ import annotations

from datetime import date

import pytest
import yaml
from psycopg import sql

from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.policy.policy_file import parse_policies
from tests.lifecycle.support import AS_OF, add_quiz, ago, left, policy, quiz_left

ZONES = ["Asia/Tokyo", "America/New_York", "Pacific/Chatham"]


@pytest.fixture(params=ZONES)
def zone(request, database, admin, administrator):
    """The database's own zone, and the role's in this database, are far from UTC."""
    for level in ("DATABASE {name}", "ROLE lifecycle_jobs IN DATABASE {name}"):
        statement = sql.SQL("ALTER " + level + " SET TimeZone TO {zone}")
        administrator.execute(statement.format(name=sql.Identifier(database.name), zone=sql.Literal(request.param)))
    assert database.connect().execute("SHOW TimeZone").fetchone() == (request.param,)
    return request.param


def test_naive_columns_are_compared_in_utc(run_job, admin, zone):
    for name, at in {"due": ago(hours=24, seconds=1), "on the edge": ago(hours=24), "fresh": ago(hours=23)}.items():
        add_quiz(admin, f"delivered {name}", delivered=at, paid=True)
        add_quiz(admin, f"abandoned {name}", created=at)
        add_quiz(admin, f"owed {name}", created=at, paid=True)

    dry, real = run_job("--dry-run"), run_job("--batch-size", "2")

    assert dry.closing["records_to_delete"] == real.closing["records_deleted"] == 2
    assert dry.closing["oldest_overdue_seconds"] == 1.0
    assert real.closing["records_queued"] == 1
    assert quiz_left(admin) == {
        *("delivered on the edge", "delivered fresh", "abandoned on the edge", "abandoned fresh"),
        *("owed due", "owed on the edge", "owed fresh"),
    }


def test_aware_columns_and_dates_are_compared_in_utc(apply, things, zone):
    things.execute("ALTER TABLE things ADD made_on date; CREATE INDEX ON things (made_on)")
    rows = [
        (1, ago(days=30, seconds=1), None),
        (2, ago(days=30), None),
        (3, ago(days=29), None),
        # Thirty days before AS_OF is 2026-01-01 02:00 UTC: a day is due only when all of it is.
        (4, None, date(2025, 12, 31)),
        (5, None, date(2026, 1, 1)),
        (6, None, date(2026, 1, 2)),
    ]
    things.cursor().executemany("INSERT INTO things (id, made_at, made_on) VALUES (%s, %s, %s)", rows)
    rules = {
        "moment": {"anchor": "made_at", "keep": "30 days"},
        "day": {"anchor": "made_on", "keep": "30 days"},
    }

    run = apply({"things": policy(rules=rules)}, "--batch-size", "1")

    assert (run.code, run.closing["records_deleted"]) == (0, 2)
    assert left(things) == [2, 3, 5, 6]


def test_a_real_run_without_a_moment_takes_no_row_too_early_or_too_late(run_job, admin, zone):
    admin.execute("SET TimeZone TO 'UTC'")
    for hours in (23, 25):
        add_quiz(admin, str(hours))
        admin.execute(
            "UPDATE quiz_responses SET created_at = now() - make_interval(hours => %s) WHERE quiz_data ->> 'name' = %s",
            (hours, str(hours)),
        )

    assert run_job(as_of=None).closing["records_deleted"] == 1
    assert quiz_left(admin) == {"23"}


# Either of the next two alone would do. Both have to fail before a row goes too early.
def test_every_transaction_is_in_utc(db, zone):
    with db.transaction() as connection:
        assert connection.execute("SHOW TimeZone").fetchone() == ("UTC",)


@pytest.mark.parametrize("session_zone", ZONES)
def test_the_predicate_means_utc_in_a_session_of_any_zone(admin, session_zone):
    admin.execute("CREATE TABLE odd (id int PRIMARY KEY, naive timestamp, aware timestamptz, day date)")
    admin.execute(
        "INSERT INTO odd SELECT n, t AT TIME ZONE 'UTC', t, (t AT TIME ZONE 'UTC')::date FROM"
        " (VALUES (1, %s::timestamptz), (2, %s), (3, %s), (4, %s)) rows (n, t)",
        (ago(days=31), ago(days=30, seconds=1), ago(days=30), ago(days=29)),
    )
    admin.execute("SELECT set_config('TimeZone', %s, false)", (session_zone,))
    rules = {name: {"anchor": name, "keep": "30 days"} for name in ("naive", "aware", "day")}
    text = yaml.safe_dump({"policies": {"odd": policy(table="public.odd", rules=rules)}, "jobs": {}})
    types = {
        "id": "integer",
        "naive": "timestamp without time zone",
        "aware": "timestamp with time zone",
        "day": "date",
    }
    selection = Selection(parse_policies(text, "a test").policies["odd"], AS_OF, types)

    due = {
        name: [
            key
            for (key,) in admin.execute(
                sql.SQL("SELECT id FROM odd t WHERE {} ORDER BY id").format(selection.rule(name)), selection.parameters
            )
        ]
        for name in rules
    }

    # AS_OF is two in the morning: of the day thirty days ago, two hours are not yet past.
    assert due == {"naive": [1, 2], "aware": [1, 2], "day": [1]}


def test_the_moment_may_be_given_in_any_zone(run_job, admin):
    add_quiz(admin, "due", delivered=ago(hours=24, seconds=1))
    add_quiz(admin, "on the edge", delivered=ago(hours=24))

    run = run_job(as_of="2026-01-31T11:00:00+09:00")

    assert run.event("cleanup_started")["cutoff_at"] == AS_OF.isoformat()
    assert quiz_left(admin) == {"on the edge"}


def test_rows_from_before_christ_and_from_minus_infinity_are_due_and_the_figures_stay_finite(apply, things):
    things.execute("INSERT INTO things VALUES (1, '-infinity'), (2, '0044-03-15 BC'), (3, 'infinity'), (4, NULL)")
    things.execute("INSERT INTO things VALUES (5, %s)", (ago(days=31),))

    dry, real = apply({"things": policy()}, "--dry-run"), apply({"things": policy()}, "--batch-size", "1")

    assert (dry.closing["records_to_delete"], real.closing["records_deleted"]) == (3, 3)
    assert dry.closing["oldest_overdue_seconds"] > 2000 * 365 * 86400
    assert left(things) == [3, 4]
