"""Partitions of which every row is due are dropped; every other row goes, or stays, as it always did."""

from __future__ import annotations

import pytest

from scripts.lifecycle.audit import audit
from scripts.lifecycle.engine import holds
from tests.faults.stage import in_background, wait_until
from tests.lifecycle.purge.partitioned import EXPIRED, MONTHS, ROWS, make, marks, partitions, policies
from tests.lifecycle.support import ANNA, audited, left, record

# 20 rows every four minutes from midnight; what lies before 02:00 on January 1st is due: all 20 of the boundary.
DUE = sorted([number * 1000 + n for number in range(4) for n in range(ROWS)])
STAY = [4000 + n for n in range(ROWS)]
KEPT = [month for month in MONTHS if month not in EXPIRED]
WHOLE = [f"public.things_{month}" for month in EXPIRED]
BY = {"operator": "olga", "reason": "lawsuit"}


@pytest.fixture
def months(admin):
    make(admin)
    return admin


def balance(admin, db, *, gone=DUE):
    """Assert that what is gone is audited, once, and the chain is whole."""
    assert sorted(map(int, audited(admin))) == sorted(gone)
    assert left(admin) == sorted({*DUE, *STAY} - set(gone))
    assert audit.verify(db).intact


@pytest.mark.parametrize("anchor", ["timestamptz", pytest.param("timestamp", marks=pytest.mark.soak), "date"])
def test_expired_partitions_are_dropped_and_audited_and_the_boundary_goes_by_batches(apply, admin, db, anchor):
    # The session's own ways with time must not matter to bounds and comparisons.
    admin.execute("SET TimeZone = 'UTC'")
    make(admin, anchor=anchor)
    admin.execute("ALTER ROLE lifecycle_jobs SET DateStyle = 'ISO, DMY'")
    try:
        dry, run = apply(policies(), "--dry-run"), apply(policies())
        assert dry.code == 0, dry.lines
        again = apply(policies())
    finally:
        admin.execute("ALTER ROLE lifecycle_jobs RESET DateStyle")

    gone = DUE if anchor != "date" else DUE[:60]  # January 1st begins at midnight, which is not past the cut-off's day
    assert (dry.closing["records_to_delete"], dry.closing["partitions_to_drop"]) == (len(gone), 3)
    assert (run.closing["records_deleted"], run.closing["partitions_dropped"], run.code) == (len(gone), 3, 0)
    assert [line["partition"] for line in run.events("partition_dropped")] == WHOLE
    assert (again.closing["records_deleted"], again.closing["partitions_dropped"]) == (0, 0)
    assert partitions(admin) == KEPT
    assert marks(admin) == [(name, "dropped", ROWS) for name in WHOLE]
    balance(admin, db, gone=gone)
    (metadata,) = admin.execute("SELECT metadata FROM ops.audit_batches ORDER BY seq LIMIT 1").fetchone()
    assert metadata["partition"] == WHOLE[0]
    assert metadata["due_before"] == "2026-01-01T02:00:00+00:00"


def test_a_dry_run_changes_nothing(apply, months):
    apply(policies(), "--dry-run")
    assert partitions(months) == list(MONTHS)
    assert marks(months) == []


def test_the_audit_names_every_row_in_entries_of_bounded_size(apply, admin, db):
    make(admin, rows=12_001)
    run = apply(policies(max_rows=1_000_000))
    assert run.code == 0
    sizes = admin.execute(
        "SELECT cardinality(resource_ids) FROM ops.audit_batches WHERE metadata ->> 'partition' = %s ORDER BY seq",
        (WHOLE[0],),
    ).fetchall()
    assert sizes == [(5000,), (5000,), (2001,)]
    ids = audited(admin)
    assert len(ids) == len(set(ids)) == run.closing["records_deleted"]
    assert record(admin)["records_processed"] == len(ids)
    assert audit.verify(db).intact


HOLDS = {
    "row": {"table": "public.things", "resource_id": "1003"},
    "person": {"person": ANNA},
    "partition": {"table": "public.things_2025_11"},
}


@pytest.mark.parametrize("scope", ["person", "partition", pytest.param("row", marks=pytest.mark.soak)])
def test_a_held_row_keeps_its_partition_and_the_other_rows_of_it_go_by_batches(apply, months, db, scope):
    months.execute("UPDATE things SET person = %s WHERE id = 1003", (ANNA.upper(),))
    holds.place(db, **HOLDS[scope], **BY)
    held = [] if scope == "partition" else [1003]  # as ever: a policy's table is held by its own name

    dry, run = apply(policies(person="person"), "--dry-run"), apply(policies(person="person"))

    assert dry.closing["partitions_to_drop"] == run.closing["partitions_dropped"] == 2
    assert dry.closing["records_to_delete"] == run.closing["records_deleted"] == len(DUE) - len(held)
    assert partitions(months) == ["2025_11", *KEPT]
    balance(months, db, gone=[n for n in DUE if n not in held])


def test_a_hold_on_the_table_keeps_everything(apply, months, db):
    holds.place(db, table="public.things", **BY)
    assert apply(policies()).closing["records_deleted"] == 0
    assert partitions(months) == list(MONTHS)
    balance(months, db, gone=[])


KEEPS_NOVEMBER = {
    "when": ({"rules": {"old": {"when": {"kind": "unset"}, "anchor": "made_at", "keep": "30 days"}}}, 1),
    "exception": ({"exceptions": {"odd": {"when": {"kind": "set"}}}}, 1),
}


@pytest.mark.parametrize("how", KEEPS_NOVEMBER)
def test_a_row_that_is_not_due_or_excepted_keeps_its_partition(apply, months, db, how):
    months.execute("UPDATE things SET kind = 'red' WHERE id = 1007")
    changes, _ = KEEPS_NOVEMBER[how]
    run = apply(policies(**changes))
    assert run.closing["partitions_dropped"] == 2
    assert run.event("partitions_by_batches")["because"] == {"hold rows that may not go": 1}
    assert partitions(months) == ["2025_11", *KEPT]
    balance(months, db, gone=[n for n in DUE if n != 1007])


TWO_RULES = {
    "old": {"when": {"kind": "unset"}, "anchor": "made_at", "keep": "30 days"},
    "red": {"when": {"kind": "red"}, "anchor": "made_at", "keep": "30 days"},
}
BY_BATCHES = {
    "switched off": ("", {"drop_partitions": False}, {}),
    "several rules": ("", {"rules": TWO_RULES}, {}),
    "foreign key": (
        (
            "CREATE TABLE notes (id int, thing bigint, at timestamptz, FOREIGN KEY (thing, at) REFERENCES things (id,"
            " made_at)); CREATE INDEX ON notes (thing, at); GRANT SELECT ON notes TO lifecycle_jobs"
        ),
        {},
        {"is referred to by a foreign key": 3},
    ),
    "trigger": (
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';"
            "CREATE TRIGGER watch AFTER DELETE ON things FOR EACH ROW EXECUTE FUNCTION f()"
        ),
        {},
        {"has a trigger that wants to see its rows go": 3},
    ),
    "publication": (
        "CREATE PUBLICATION p FOR TABLE things; "
        + ";".join(f"ALTER TABLE things_{month} REPLICA IDENTITY FULL" for month in MONTHS),
        {},
        {"is published: its subscribers would keep the rows": 3},
    ),
    "owner": (
        (
            "CREATE ROLE another_owner; ALTER TABLE things OWNER TO another_owner;"
            "CREATE ROLE poor_migrator; ALTER FUNCTION ops.drop_partition OWNER TO poor_migrator"
        ),
        {},
        {"belongs to a role that the migrations' role is no member of": 3},
    ),
}


@pytest.mark.parametrize("why", BY_BATCHES)
def test_what_a_drop_would_not_do_as_a_delete_does_goes_by_batches(apply, months, db, why):
    statement, changes, because = BY_BATCHES[why]
    months.execute(statement or "SELECT")
    try:
        dry, run = apply(policies(**changes), "--dry-run"), apply(policies(**changes))
    finally:
        if why == "owner":  # roles belong to the whole server
            months.execute("ALTER TABLE things OWNER TO postgres; DROP OWNED BY poor_migrator CASCADE")
            months.execute("DROP ROLE another_owner; DROP ROLE poor_migrator")
    assert dry.closing["partitions_to_drop"] == run.closing["partitions_dropped"] == 0
    assert (run.code, run.closing["records_deleted"]) == (0, len(DUE))
    assert partitions(months) == list(MONTHS)
    assert marks(months) == []
    assert [line["because"] for line in run.events("partitions_by_batches")] == ([because] if because else [])
    balance(months, db)


def test_without_the_right_it_goes_by_batches_and_says_so(apply, months, db):
    apply(policies(drop_partitions=False), "--dry-run")  # --grants as it was before
    run = apply(policies(), grant=False)
    assert run.event("partitions_by_batches")["because"] == {"need migrate.py --grants": 3}
    assert partitions(months) == list(MONTHS)
    balance(months, db)


def test_a_period_that_became_shorter_in_the_file_alone_drops_nothing_more(apply, months, db):
    """What the functions go by is what --grants wrote, not what the job says."""
    apply(policies(rules={"old": {"anchor": "made_at", "keep": "61 days"}}), "--dry-run")
    run = apply(policies(), grant=False)
    assert run.closing["partitions_dropped"] == 2
    assert partitions(months) == ["2025_12", *KEPT]
    balance(months, db)


def test_a_default_and_a_subpartitioned_partition_and_the_newest_one_are_never_dropped(apply, admin, db):
    admin.execute(
        "CREATE TABLE things (id bigint NOT NULL, made_at timestamptz, person text, kind text, UNIQUE (id, made_at))"
        " PARTITION BY RANGE (made_at);"
        "CREATE TABLE things_default PARTITION OF things DEFAULT;"
        "CREATE TABLE things_1 PARTITION OF things FOR VALUES FROM (MINVALUE) TO ('2025-10-01Z')"
        " PARTITION BY RANGE (made_at);"
        "CREATE TABLE things_1_1 PARTITION OF things_1 FOR VALUES FROM (MINVALUE) TO ('2025-09-01Z');"
        "CREATE TABLE things_2 PARTITION OF things FOR VALUES FROM ('2025-10-01Z') TO ('2025-11-01Z');"
        "CREATE TABLE things_3 PARTITION OF things FOR VALUES FROM ('2025-11-01Z') TO ('2025-12-01Z');"
        "CREATE INDEX ON things (made_at);"
        "INSERT INTO things (id, made_at) VALUES (1, '2025-08-01Z'), (2, '2025-10-05Z'), (3, '2025-11-05Z'),"
        " (4, '2025-12-05Z'), (5, NULL), (6, '2026-01-20Z')"
    )
    run = apply(policies())
    assert (run.closing["partitions_dropped"], run.closing["records_deleted"]) == (1, 4)
    assert run.event("partitions_by_batches")["because"] == {"is partitioned itself": 1, "is the newest": 1}
    assert partitions(admin) == ["1", "3", "default"]
    assert [key for (key,) in admin.execute("SELECT id FROM things ORDER BY id")] == [5, 6]
    assert audited(admin) == ["1", "2", "3", "4"]


def test_rows_in_the_default_partition_go_by_batches_and_an_empty_partition_goes_without_an_entry(apply, months, db):
    months.execute("CREATE TABLE things_default PARTITION OF things DEFAULT")
    months.execute("INSERT INTO things (id, made_at) VALUES (9000, '2025-09-15Z')")
    months.execute("DELETE FROM things WHERE made_at < '2025-11-01Z'; INSERT INTO things VALUES (9000, '2025-09-15Z')")
    run = apply(policies())
    assert (run.closing["partitions_dropped"], run.closing["records_deleted"]) == (3, 61)
    assert marks(months)[0] == (WHOLE[0], "dropped", 0)
    assert partitions(months) == [*KEPT, "default"]
    assert "9000" in audited(months)


LIMITS = [(15, 0, 15), (1000, 3, 80)]


@pytest.mark.parametrize(
    ("limit", "whole", "rows"), [(50, 2, 50), *(pytest.param(*case, marks=pytest.mark.soak) for case in LIMITS)]
)
def test_a_limit_is_kept_exactly_and_predicted_exactly(apply, months, db, limit, whole, rows):
    dry = apply(policies(), "--limit", str(limit), "--dry-run")
    run = apply(policies(), "--limit", str(limit))
    assert dry.closing["partitions_to_drop"] == run.closing["partitions_dropped"] == whole
    assert dry.closing["records_to_delete"] == run.closing["records_deleted"] == rows
    balance(months, db, gone=DUE[:rows])


def test_a_rollout_drops_what_a_step_has_room_for(apply, months, db):
    run = apply(policies(), "--rollout")
    assert run.code == 0
    assert (run.closing["partitions_dropped"], run.closing["records_deleted"]) == (3, 80)  # 10 rows went before
    assert [line["surprise"] for line in run.events("rollout_step")] == [None, None]
    balance(months, db)


def test_the_rows_of_partitions_count_for_the_cap(apply, months, db):
    run = apply(policies(max_rows=79))
    assert (run.code, run.closing["stop_reason"]) == (1, "cap_exceeded")
    assert partitions(months) == list(MONTHS)
    assert apply(policies(max_rows=79), "--confirm-cap", "80").closing["partitions_dropped"] == 3
    balance(months, db)


def test_the_stop_switch_keeps_partitions_where_they_are(apply, months, db):
    months.execute(
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$BEGIN INSERT INTO"
        " ops.stop_switches (job, stopped_by, reason) VALUES ('*', 'operator:t', 't'); RETURN NULL; END$$;"
        "CREATE TRIGGER stop AFTER INSERT ON ops.detached_partitions FOR EACH ROW"
        f" WHEN (NEW.partition_name = '{WHOLE[1]}') EXECUTE FUNCTION stop()"
    )
    run = apply(policies())
    assert (run.code, run.closing["stop_reason"]) == (3, "stop_switch")
    assert partitions(months) == ["2025_11", "2025_12", *KEPT]
    assert [state for _, state, _ in marks(months)] == ["dropped", "attached"]
    balance(months, db, gone=DUE[:20])


def test_a_run_that_lost_its_lock_drops_nothing_more_and_the_next_one_finishes(apply, months, db):
    months.execute(
        "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$BEGIN"
        " UPDATE ops.leases SET fencing_token = fencing_token + 1; RETURN NULL; END$$;"
        "CREATE TRIGGER lose AFTER INSERT ON ops.detached_partitions FOR EACH ROW"
        f" WHEN (NEW.partition_name = '{WHOLE[1]}') EXECUTE FUNCTION lose()"
    )
    run = apply(policies())
    assert (run.code, run.closing["stop_reason"]) == (3, "lock_lost")
    assert [state for _, state, _ in marks(months)] == ["dropped", "detached"]
    assert (run.closing["records_deleted"], run.closing["records_remaining"]) == (20, 60)
    months.execute("DROP FUNCTION lose() CASCADE")
    assert apply(policies()).closing["partitions_dropped"] == 2
    balance(months, db)


@pytest.mark.parametrize("where", ["things_2025_11", "things"])
def test_whoever_uses_a_partition_keeps_it_and_nobody_waits_behind_us_for_long(apply, months, db, where, database):
    other = database.superuser()
    other.execute("BEGIN")
    other.execute(f"LOCK TABLE {where} IN ROW EXCLUSIVE MODE")
    run = apply(policies())
    locked = [line["partition"] for line in run.events("partition_locked")]
    assert locked == ([WHOLE[1]] if where == "things_2025_11" else WHOLE)
    assert run.closing["partitions_dropped"] == 3 - len(locked)
    assert (run.code, run.closing["records_deleted"]) == (0, 80)
    other.execute("ROLLBACK")
    balance(months, db)


def test_others_wait_no_longer_than_the_lock_timeout(apply, months, database):
    """The default partition's lock comes last: the table's is held meanwhile."""
    months.execute("CREATE TABLE things_default PARTITION OF things DEFAULT")
    other, user = database.superuser(), database.superuser()
    other.execute("BEGIN")
    other.execute("LOCK TABLE things_default IN ROW EXCLUSIVE MODE")
    waiting = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'things_default'::regclass"

    def insert():
        wait_until(lambda: user.execute(waiting).fetchone() is not None, what="the DETACH behind the other session")
        user.execute("SET statement_timeout = '1200ms'")
        user.execute("INSERT INTO things (id, made_at) VALUES (99, '2026-01-20Z')")

    inserted = in_background(insert)
    run = apply(policies(batch={"rows": 1000, "lock_timeout": "1 second", "statement_timeout": "60 seconds"}))
    inserted()
    assert len(run.events("partition_locked")) == 3
    assert (run.code, run.closing["records_deleted"]) == (0, 80)


def test_a_hold_that_comes_between_detach_and_drop_is_heeded(apply, months, db):
    months.execute(
        "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$BEGIN INSERT INTO"
        " ops.legal_holds (scope, table_name, resource_id, reason, placed_by) VALUES"
        " ('row', 'public.things', '1005', 't', 't'); RETURN NULL; END$$;"
        "CREATE TRIGGER hold AFTER INSERT ON ops.detached_partitions FOR EACH ROW"
        f" WHEN (NEW.partition_name = '{WHOLE[1]}') EXECUTE FUNCTION hold()"
    )
    run = apply(policies())
    assert run.event("partition_put_back")["partition"] == WHOLE[1]
    assert (run.closing["partitions_dropped"], run.closing["records_held"]) == (2, 1)
    assert partitions(months) == ["2025_11", *KEPT]
    balance(months, db, gone=[n for n in DUE if n != 1005])


def test_a_row_under_a_detached_partition_can_be_held(apply, months, db):
    """Somebody names a row in the moment in which its partition is away from the table."""
    apply(policies(), "--dry-run")
    leave_detached(months, "2025_11")
    holds.place(db, table="public.things", resource_id="1005", key="id", **BY)
    assert apply(policies()).closing["records_held"] == 1
    balance(months, db, gone=[n for n in DUE if n != 1005])


def test_a_foreign_key_of_the_partitioned_table_itself_is_no_obstacle(apply, months, db):
    months.execute(
        "CREATE TABLE kinds (kind text PRIMARY KEY); INSERT INTO kinds VALUES ('red'); UPDATE things SET kind = 'red';"
        "ALTER TABLE things ADD FOREIGN KEY (kind) REFERENCES kinds"
    )
    assert apply(policies()).closing["partitions_dropped"] == 3
    months.execute("INSERT INTO things (id, made_at, kind) VALUES (99, '2026-01-20Z', 'red')")
    assert sorted(map(int, audited(months))) == DUE
    assert audit.verify(db).intact


def test_one_that_is_put_back_is_what_it_was(apply, months):
    """Index, constraint, foreign key, rights and bound: nothing is lost on the way there and back."""
    months.execute(
        "CREATE TABLE kinds (kind text PRIMARY KEY); ALTER TABLE things ADD FOREIGN KEY (kind) REFERENCES kinds"
    )
    describe = (
        "SELECT pg_get_expr(relpartbound, c.oid), has_table_privilege('lifecycle_jobs', c.oid, 'SELECT'), (SELECT array_agg(pg_get_constraintdef(k.oid) ORDER BY conname)"
        " FROM pg_constraint k WHERE conrelid = c.oid), (SELECT array_agg(pg_get_indexdef(indexrelid) ORDER BY indexrelid)"
        " FROM pg_index WHERE indrelid = c.oid), (SELECT count(*) FROM pg_inherits h JOIN pg_index x ON"
        " x.indexrelid = h.inhrelid WHERE x.indrelid = c.oid) FROM pg_class c WHERE relname = 'things_2025_10'"
    )
    apply(policies(), "--dry-run")
    before = months.execute(describe).fetchone()
    leave_detached(months, "2025_10")
    assert months.execute(describe).fetchone() != before
    apply(policies(max_rows=1))
    assert months.execute(describe).fetchone() == before


def leave_detached(admin, month):
    """Do what a run does before it is killed; policies and rights are there."""
    admin.execute("INSERT INTO ops.policy_versions VALUES (repeat('a', 64), '', now(), 't') ON CONFLICT DO NOTHING")
    (run_id,) = admin.execute(
        "INSERT INTO ops.job_runs (id, script, policy, correlation_id, cutoff_at, policy_hash, fencing_token, host, pid,"
        " version) VALUES (gen_random_uuid(), 'x', 'things', 'c', '2026-01-31 02:00Z', repeat('a', 64), 1, 'h', 1, 'v')"
        " RETURNING id"
    ).fetchone()
    admin.execute(
        "SELECT ops.detach_partition(gen_random_uuid(), %s, %s::regclass)", (run_id, f"public.things_{month}")
    )


def test_what_was_left_detached_is_counted_and_finished(apply, months, db):
    apply(policies(), "--dry-run")
    leave_detached(months, "2025_10")
    dry = apply(policies(), "--dry-run")
    assert (dry.closing["records_to_delete"], dry.closing["partitions_to_drop"]) == (80, 3)
    run = apply(policies())
    assert (run.closing["records_deleted"], run.closing["records_remaining"]) == (80, 0)
    assert run.closing["partitions_dropped"] == 3
    assert partitions(months) == KEPT
    balance(months, db)


CHANGED_MINDS = {
    "switched off": (policies(drop_partitions=False), 80),
    "a longer period": (policies(rules={"old": {"anchor": "made_at", "keep": "1 year"}}), 0),
    "over the cap": (policies(max_rows=1), 0),
}


@pytest.mark.parametrize("why", CHANGED_MINDS)
def test_what_was_left_detached_and_may_not_be_dropped_is_put_back(apply, months, db, why):
    apply(policies(), "--dry-run")
    leave_detached(months, "2025_10")
    changed, rows = CHANGED_MINDS[why]
    run = apply(changed)
    assert run.closing["records_deleted"] == rows
    assert partitions(months) == list(MONTHS)
    assert [state for _, state, _ in marks(months)] == ["attached"]
    balance(months, db, gone=DUE[:rows])


def test_what_somebody_put_back_or_dropped_by_hand_is_noted(apply, months):
    apply(policies(), "--dry-run")
    leave_detached(months, "2025_10")
    leave_detached(months, "2025_11")
    months.execute(
        "DROP TABLE things_2025_10; ALTER TABLE things ATTACH PARTITION things_2025_11 FOR VALUES FROM"
        " ('2025-11-01') TO ('2025-12-01')"
    )
    run = apply(policies())
    assert run.event("partition_gone")["partition"] == WHOLE[0]
    assert (run.code, run.closing["records_deleted"], run.closing["partitions_dropped"]) == (0, 60, 2)
    assert sorted(audited(months), key=int) == [str(n) for n in DUE if n >= 1000]


def test_one_that_can_neither_be_dropped_nor_attached_goes_to_a_person(apply, months):
    apply(policies(), "--dry-run")
    leave_detached(months, "2025_10")
    # Rows of the same span came meanwhile, and one of the detached ones is held.
    months.execute("CREATE TABLE things_default PARTITION OF things DEFAULT")
    months.execute("INSERT INTO things (id, made_at) VALUES (99, '2025-10-20Z')")
    months.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
        " VALUES ('row', 'public.things', '3', 't', 't')"
    )
    run = apply(policies())
    assert run.event("partition_stuck")["partition"] == WHOLE[0]
    assert (run.code, run.closing["stop_reason"]) == (3, "partition_detached")
    assert (run.closing["records_remaining"], run.closing["records_held"], run.closing["records_queued"]) == (19, 1, 1)
    assert months.execute("SELECT count(*) FROM things_2025_10").fetchone() == (20,)
