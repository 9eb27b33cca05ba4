"""A batch that takes too long is split; a row that takes too long stops its policy and no other."""

from __future__ import annotations

import pytest

from tests.lifecycle.support import add_things, audited, left, policy, queue_items, record

QUICK = {"rows": 1000, "lock_timeout": "500 milliseconds", "statement_timeout": "300 milliseconds"}


@pytest.fixture
def forty(things):
    add_things(things, 1, 40)
    return things


def slow(admin, body, when="true"):
    admin.execute(
        f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN OLD; END $$;"
        f"CREATE TRIGGER slow BEFORE DELETE ON things FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION slow()"
    )


def test_a_batch_that_takes_too_long_is_split_until_it_does_not(apply, forty):
    slow(forty, "PERFORM pg_sleep(0.012)")

    run = apply({"things": policy(batch=QUICK)})

    assert (run.code, run.closing["stop_reason"]) == (0, "done")
    assert left(forty) == []
    assert sorted(audited(forty), key=int) == [str(n) for n in range(1, 41)]
    assert run.events("batch_timed_out")[0]["rows"] == 40


def test_later_batches_have_the_size_that_fitted(apply, things):
    add_things(things, 1, 100)
    slow(things, "PERFORM pg_sleep(0.005)")
    batch = QUICK | {"statement_timeout": "75 milliseconds"}

    run = apply({"things": policy(batch=batch)}, "--batch-size", "80", "--limit", "100")

    assert (run.code, left(things)) == (0, [])
    # Eighty, forty and twenty did not fit, ten do: two more batches, a few more on a bad day, but not twenty of one row.
    assert record(things)["batches"] <= 8


def test_a_row_that_takes_too_long_by_itself_stops_its_policy_and_the_others_go_on(apply, forty):
    forty.execute("CREATE TABLE others (LIKE things INCLUDING ALL); INSERT INTO others SELECT * FROM things")
    slow(forty, "PERFORM pg_sleep(2)", when="OLD.id = 7")

    run = apply({"things": policy(batch=QUICK), "others": policy(table="public.others")}, "--batch-size", "4")

    assert (run.code, run.closing["stop_reason"]) == (1, "statement_timeout")
    assert "deleting one row of public.things takes longer than batch.statement_timeout" in run.closing["error"]
    assert 7 in left(forty)
    assert sorted([*left(forty), *map(int, audited(forty))]) == list(range(1, 41))
    assert record(forty)["records_remaining"] == len(left(forty))
    assert (left(forty, "others"), record(forty, "others")["status"]) == ([], "completed")
    assert queue_items(forty) == []


def test_refused_rows_among_slow_ones_are_found_all_the_same(apply, forty):
    # In whatever order the rows are met the first is refused at once, so halves time out while bisecting.
    slow(forty, "IF OLD.id IN (1, 40) THEN RAISE EXCEPTION 'no'; END IF; PERFORM pg_sleep(0.018)")

    run = apply({"things": policy(batch=QUICK)})

    assert (run.code, left(forty)) == (4, [1, 40])
    assert queue_items(forty, "resource_id") == [("1",), ("40",)]
    assert run.closing["records_deleted"] == 38
