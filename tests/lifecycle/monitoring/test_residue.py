"""What is still past its date is counted on the data after the run: that is the service level."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.lifecycle.support import add_quiz, add_things, ago, left, policy, record


def test_nothing_left_is_zero_and_not_null(apply, things):
    add_things(things, 1, 3)

    closing = apply({"things": policy()}).closing

    assert (closing["records_remaining"], closing["oldest_overdue_seconds"], closing["sla_status"]) == (
        0,
        0,
        "within_sla",
    )


def test_it_counts_what_stays_past_its_date_and_how_late_the_oldest_is(apply, things):
    things.execute("INSERT INTO things (id, made_at) VALUES (1, %s), (2, %s)", (ago(days=31), ago(days=33)))

    run = apply({"things": policy()}, "--limit", "1")

    assert left(things) == [1]
    assert run.closing["records_remaining"] == 1
    assert run.closing["oldest_overdue_seconds"] == timedelta(days=1).total_seconds()
    assert record(things)["oldest_overdue_seconds"] == timedelta(days=1).total_seconds()


@pytest.mark.parametrize(
    ("overdue", "status"),
    [
        ({"hours": 25}, "within_sla"),
        ({"hours": 25, "seconds": 1}, "warning"),
        ({"hours": 48}, "warning"),
        ({"hours": 48, "seconds": 1}, "breached"),
    ],
)
def test_how_late_the_oldest_row_is_decides_on_the_service_level(apply, things, overdue, status):
    late = ago(days=30, **overdue)
    # The oldest goes by the limit, the second oldest is what stays.
    things.execute("INSERT INTO things (id, made_at) VALUES (1, %s), (2, %s)", (late - timedelta(days=9), late))

    run = apply({"things": policy()}, "--limit", "1")

    assert left(things) == [2]
    assert (run.closing["sla_status"], record(things)["sla_status"]) == (status, status)


def test_the_oldest_of_all_rules_counts_each_by_its_own_period(run_job, admin):
    add_quiz(admin, "delivered", delivered=ago(hours=26))
    add_quiz(admin, "abandoned", created=ago(hours=30))
    add_quiz(admin, "owed", created=ago(days=300), paid=True)

    assert run_job("--dry-run").closing["oldest_overdue_seconds"] == timedelta(hours=6).total_seconds()


def test_rows_that_are_still_referred_to_are_late_all_the_same(apply, things):
    things.execute("INSERT INTO things (id, made_at) VALUES (1, %s)", (ago(days=40),))
    things.execute(
        "CREATE TABLE notes (id int PRIMARY KEY, thing bigint REFERENCES things); CREATE INDEX ON notes (thing)"
    )
    things.execute("INSERT INTO notes VALUES (1, 1); GRANT SELECT ON notes TO lifecycle_jobs")

    closing = apply({"things": policy()}).closing

    assert closing["oldest_overdue_seconds"] == timedelta(days=10).total_seconds()
    assert (closing["records_remaining"], closing["sla_status"]) == (1, "breached")


def test_a_count_that_failed_is_null_and_not_zero(apply, things):
    add_things(things, 1, 3)
    # The table disappears from the role's sight between the last batch and the count.
    things.execute(
        "CREATE FUNCTION hide() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
        " $$ BEGIN REVOKE SELECT ON things FROM lifecycle_jobs; RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER hide AFTER DELETE ON things DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION hide()"
    )

    run = apply({"things": policy()})

    assert run.code == 1
    assert (run.closing["records_deleted"], run.closing["records_remaining"]) == (3, None)
    assert run.closing["oldest_overdue_seconds"] is None
    assert run.closing["sla_status"] == "warning"
    row = record(things)
    assert (row["records_processed"], row["records_remaining"], row["records_held"]) == (3, None, None)
    assert run.event("residue_not_counted")["error"] == "InsufficientPrivilege"
    assert not [f for f in run.event("run_figures")["figures"] if f["name"] == "lifecycle_job_records_remaining"]


def test_one_policy_that_could_not_be_counted_makes_the_sum_unknown(apply, things):
    add_things(things, 1, 3)

    run = apply({"things": policy(), "gone": policy(table="public.gone")}, grant=False)

    assert record(things)["records_remaining"] is None
    apply({"things": policy()}, "--dry-run")
    run = apply({"things": policy(), "gone": policy(table="public.gone")}, grant=False)
    assert (record(things)["records_remaining"], record(things, "gone")["records_remaining"]) == (0, None)
    assert run.closing["records_remaining"] is None


def test_a_failure_in_the_closing_walk_is_followed_by_a_fresh_count(apply, things):
    add_things(things, 1, 30)
    things.execute(
        # Ten rows appear behind the walk as its last row goes; the database fails at the last of them.
        "CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN INSERT INTO public.things"
        " (id, made_at) SELECT n, '2020-01-01' FROM generate_series(101, 110) n; RETURN NULL; END $$;"
        "CREATE TRIGGER more AFTER DELETE ON things FOR EACH ROW WHEN (OLD.id = 1) EXECUTE FUNCTION more();"
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '53100'; END $$;"
        "CREATE TRIGGER fail BEFORE DELETE ON things FOR EACH ROW WHEN (OLD.id = 110) EXECUTE FUNCTION fail()"
    )

    run = apply({"things": policy()}, "--batch-size", "4")

    assert (run.code, left(things)) == (1, [109, 110])
    assert (run.closing["records_deleted"], run.closing["records_remaining"]) == (38, 2)
