"""Batches on a partitioned table: a ctid names a row in each partition, and a key may stand in several."""

from __future__ import annotations

import pytest
import yaml
from psycopg import sql

from scripts.lifecycle.audit import audit
from scripts.lifecycle.engine.preflight import preflight
from scripts.lifecycle.policy.policy_file import parse_policies
from scripts.lifecycle.purge.purge import _walks
from tests.lifecycle.purge.partitioned import MONTHS, ROWS, make, partitions, policies
from tests.lifecycle.support import AS_OF, audited, left, record

DUE = sorted(number * 1000 + n for number in range(4) for n in range(ROWS))
STAY = [4000 + n for n in range(ROWS)]
NO_DROP = {"drop_partitions": False}


@pytest.fixture
def months(admin):
    make(admin)
    assert admin.execute("SELECT count(DISTINCT tableoid) FROM things WHERE ctid = '(0,1)'").fetchone() == (5,)
    return admin


@pytest.mark.parametrize("arguments", [["--batch-size", "1"], ["--batch-size", "7"], ["--batch-size", "1000"], []])
def test_every_batch_size_deletes_the_same_rows_once(apply, months, db, arguments):
    run = apply(policies(**NO_DROP), *arguments)
    assert (run.code, run.closing["records_deleted"], run.closing["records_remaining"]) == (0, 80, 0)
    assert run.event("policy_started")["path"] == ["index:made_at"]
    assert left(months) == STAY
    assert sorted(map(int, audited(months))) == DUE
    assert audit.verify(db).intact


def test_a_limit_is_exact_and_takes_the_oldest(apply, months):
    assert apply(policies(**NO_DROP), "--limit", "30").closing["records_deleted"] == 30
    assert left(months) == [*DUE[30:], *STAY]


def test_a_locked_row_keeps_no_row_of_the_same_ctid_in_another_partition(apply, months, db, database):
    """Where locked rows are skipped, rows are named by ctid; the locked row must not be waited for again."""
    other = database.superuser()
    other.execute("BEGIN")
    other.execute("SELECT FROM things WHERE id = 1003 FOR UPDATE")
    run = apply(policies(**NO_DROP), "--batch-size", "35")
    assert (run.code, run.closing["stop_reason"]) == (3, "rows_locked")
    assert run.closing["records_deleted"] == 79
    assert run.events("window_locked") == []
    assert left(months) == sorted([1003, *STAY])
    other.execute("ROLLBACK")
    assert apply(policies(**NO_DROP)).closing["records_deleted"] == 1
    assert sorted(map(int, audited(months))) == DUE
    assert audit.verify(db).intact


def test_of_two_rows_with_one_key_each_goes_by_its_own_date(apply, months, db):
    """No index can forbid that on a table that is partitioned by another column."""
    months.execute("INSERT INTO things (id, made_at) VALUES (5, '2025-11-05Z'), (6, '2026-01-20Z')")
    run = apply(policies(**NO_DROP), "--batch-size", "10")
    assert run.closing["records_deleted"] == 81
    assert left(months) == [6, *STAY]
    assert sorted(map(int, audited(months))) == sorted([5, *DUE])
    assert audit.verify(db).intact


def test_a_row_that_moves_to_another_partition_meanwhile_is_judged_by_its_new_date(apply, months):
    months.execute(
        "CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " UPDATE things SET made_at = '2026-02-20Z' WHERE id = 1019; RETURN NULL; END$$;"
        "CREATE TRIGGER move AFTER DELETE ON things_2025_10 FOR EACH ROW WHEN (OLD.id = 5) EXECUTE FUNCTION move()"
    )
    months.execute("ALTER FUNCTION move() SECURITY DEFINER")
    run = apply(policies(**NO_DROP), "--batch-size", "10")
    assert (run.code, run.closing["records_deleted"]) == (0, 79)
    assert left(months) == [1019, *STAY]


def test_a_refused_row_is_bisected_to_in_its_partition(apply, months):
    months.execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'no'; END$$;"
        "CREATE TRIGGER no BEFORE DELETE ON things FOR EACH ROW WHEN (OLD.id = 2010) EXECUTE FUNCTION no()"
    )
    run = apply(policies())  # the trigger keeps partitions from being dropped, too
    assert (run.code, run.closing["records_deleted"], run.closing["records_queued"]) == (4, 79, 1)
    assert left(months) == [2010, *STAY]
    assert partitions(months) == list(MONTHS)


def test_windows_leave_out_the_partitions_that_lie_behind_them(apply, months, database):
    """The last batch does not look into the first partition again: pairs alone would not exclude any."""
    apply(policies(**NO_DROP), "--dry-run")
    rules = load(policies(**NO_DROP))
    with database.connect() as connection, connection.transaction():
        connection.execute("SET LOCAL TimeZone = 'UTC'")
        cleared = preflight(connection, rules, AS_OF)
        (walk,) = _walks(cleared.selection)
        window = None
        for _ in range(5):
            answer = connection.execute(*walk.question(window, 15)).fetchone()
            window = walk.following(window, answer, 15)
        plan = connection.execute(
            sql.SQL("EXPLAIN DELETE FROM things t WHERE {}").format(window.clause),
            window.parameters | cleared.selection.parameters,
        ).fetchall()
    text = str(plan)
    assert "things_2025_12" in text
    assert "things_2025_10" not in text
    assert "things_2026_02" not in text


def load(document):
    """Read one policy as a file has it."""
    return parse_policies(yaml.safe_dump({"policies": document, "jobs": {}}), "a test").policies["things"]


@pytest.mark.parametrize("action", ["soft_delete", "anonymize"])
def test_what_finds_its_row_again_by_the_key_wants_a_key_that_is_unique(apply, admin, action):
    make(admin, extra="gone_at timestamptz,")
    section = {
        "soft_delete": {"soft_delete": {"deleted_at": "gone_at"}},
        "anonymize": {"anonymize": {"columns": {"person": None}, "marker": "gone_at"}},
    }[action]
    run = apply(policies(action=action, **section))
    assert (run.code, run.closing["stop_reason"]) == (1, "preflight_failed")
    assert "is not a unique, non-null key" in run.closing["error"]


def test_a_unique_index_of_each_partition_will_do_and_none_will_not(apply, admin):
    admin.execute(
        "CREATE TABLE things (id bigint NOT NULL, made_at timestamptz) PARTITION BY RANGE (made_at);"
        "CREATE TABLE things_1 PARTITION OF things FOR VALUES FROM ('2025-10-01') TO ('2025-11-01');"
        "CREATE TABLE things_2 PARTITION OF things FOR VALUES FROM ('2025-11-01') TO ('2026-11-01');"
        "CREATE INDEX ON things (made_at); CREATE UNIQUE INDEX ON things_1 (id);"
        "INSERT INTO things SELECT n, '2025-10-01Z' FROM generate_series(1, 3) n"
    )
    run = apply(policies())
    assert "is not a unique, non-null key" in run.closing["error"]
    admin.execute("CREATE UNIQUE INDEX ON things_2 (id)")
    run = apply(policies())
    assert (run.code, run.closing["records_deleted"]) == (0, 3)
    assert record(admin)["records_processed"] == 3


def test_the_size_of_a_partitioned_table_is_that_of_its_partitions(apply, months, monkeypatch):
    """A missing index is refused above a size: the parent alone has none."""
    monkeypatch.setattr("scripts.lifecycle.engine.preflight.LARGE_TABLE_BYTES", 10_000)
    assert apply(policies(**NO_DROP)).code == 0
    months.execute("DROP INDEX things_made_at_idx")
    run = apply(policies(**NO_DROP))
    assert "has no index" in run.closing["error"]
