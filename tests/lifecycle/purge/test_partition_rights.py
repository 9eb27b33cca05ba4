"""What lifecycle_jobs can drop: partitions that have expired, of tables that --grants named, with their audit. No more."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.lifecycle.purge.partitioned import MONTHS, ROWS, make, marks, partitions, policies
from tests.lifecycle.support import audited

NO_RIGHT, NO_MARK, NOT_EXPIRED, KEPT = "LP001", "LP002", "LP003", "LP004"


class Jobs:
    """Somebody with the jobs' password, and nothing else."""

    def __init__(self, link):
        self.link = link
        self.run = uuid4()

    def begin_run(self, *, cutoff="2026-01-31 02:00Z", policy="things", status="running"):
        self.link.execute(
            "INSERT INTO ops.policy_versions VALUES (encode(sha256(''), 'hex'), '', now(), 't') ON CONFLICT DO NOTHING"
        )
        self.link.execute(
            "INSERT INTO ops.job_runs (id, script, policy, correlation_id, cutoff_at, policy_hash, fencing_token, host,"
            " pid, version, status) VALUES (%s, 'x', %s, 'c', %s, encode(sha256(''), 'hex'), 1, 'h', 1, 'v', %s)",
            (self.run, policy, cutoff, status),
        )
        return self

    def detach(self, table="public.things_2025_10"):
        """Return the mark."""
        mark = uuid4()
        self.link.execute("SELECT ops.detach_partition(%s, %s, %s::regclass)", (mark, self.run, table))
        return mark

    def drop(self, mark, archives=None):
        arguments = (mark, self.run, "system:x", "retention_policy:things/old", archives and Jsonb(archives))
        return self.link.execute("SELECT ops.drop_partition(%s, %s, %s, %s, '{}', %s)", arguments).fetchone()[0]

    def refused(self, call, *arguments, sqlstate=NOT_EXPIRED, **options):
        with pytest.raises(psycopg.Error) as caught:
            call(*arguments, **options)
        assert caught.value.sqlstate == sqlstate


@pytest.fixture
def months(apply, admin):
    """The table, with the rights that its policy gives."""
    make(admin)
    assert apply(policies(), "--dry-run").code == 0
    return admin


@pytest.fixture
def jobs(months, database):
    return Jobs(database.connect()).begin_run()


def test_the_functions_do_what_they_are_for(jobs, months):
    assert jobs.drop(jobs.detach()) == ROWS
    assert partitions(months) == list(MONTHS)[1:]
    assert audited(months) == sorted(str(n) for n in range(ROWS))
    assert marks(months) == [("public.things_2025_10", "dropped", ROWS)]


def test_nothing_else_can_be_detached(jobs, months, database):
    months.execute("CREATE TABLE other (id int)")
    make(months, table="elsewhere")
    months.execute("CREATE TABLE things_default PARTITION OF things DEFAULT")
    for table in (
        *("public.things_2026_01", "public.things_2026_02", "public.things", "public.things_default"),
        *("public.other", "public.elsewhere_2025_10", "ops.audit_batches", "pg_catalog.pg_class"),
    ):
        jobs.refused(jobs.detach, table)
    assert marks(months) == []
    assert partitions(months) == [*MONTHS, "default"]
    assert partitions(months, "elsewhere") == list(MONTHS)


@pytest.mark.parametrize(
    "record",
    [
        {"cutoff": "2999-01-01 00:00Z"},
        {"status": "completed"},
        {"policy": "another"},
    ],
)
def test_a_run_record_that_says_too_much_opens_nothing(months, database, record):
    jobs = Jobs(database.connect()).begin_run(**record)
    jobs.refused(jobs.detach, sqlstate=NO_RIGHT)
    assert partitions(months) == list(MONTHS)


def test_the_clock_and_the_granted_period_decide_and_no_word_of_the_jobs(jobs, months):
    months.execute("UPDATE ops.partition_rights SET keep = '61 days'")
    jobs.refused(jobs.detach, "public.things_2025_12")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        jobs.link.execute("UPDATE ops.partition_rights SET keep = '1 day'")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        jobs.link.execute("UPDATE ops.detached_partitions SET ends_at = '2000-01-01'")


def test_only_what_is_marked_is_dropped_or_attached(jobs, months):
    months.execute("ALTER TABLE things DETACH PARTITION things_2025_11")
    jobs.refused(jobs.drop, uuid4(), sqlstate=NO_MARK)
    mark = jobs.detach()
    assert jobs.drop(mark) == ROWS
    jobs.refused(jobs.drop, mark, sqlstate=NO_MARK)
    assert months.execute("SELECT count(*) FROM things_2025_11").fetchone() == (ROWS,)


def test_a_mark_is_of_no_use_to_a_run_of_another_cut_off(jobs, months, database):
    mark = jobs.detach("public.things_2025_12")
    earlier = Jobs(database.connect()).begin_run(cutoff="2025-12-31 00:00Z")
    earlier.refused(earlier.drop, mark)
    assert months.execute("SELECT count(*) FROM things_2025_12").fetchone() == (ROWS,)


CHANGES = {
    "a row that is due no more": "UPDATE things_2025_10 SET made_at = '2026-01-20Z' WHERE id = 3",
    "a row without a date": "ALTER TABLE things_2025_10 ALTER made_at DROP NOT NULL;"
    "UPDATE things_2025_10 SET made_at = NULL WHERE id = 3",
    "a hold on a row": "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
    " VALUES ('row', 'public.things', '3', 't', 't')",
    "a hold on the table": "INSERT INTO ops.legal_holds (scope, table_name, reason, placed_by)"
    " VALUES ('table', 'public.things', 't', 't')",
    "a hold on the partition": "INSERT INTO ops.legal_holds (scope, table_name, reason, placed_by)"
    " VALUES ('table', 'public.things_2025_10', 't', 't')",
    "no right any more": "DELETE FROM ops.partition_rights",
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_since_it_was_detached_is_seen(jobs, months, what):
    mark = jobs.detach()
    months.execute(CHANGES[what])
    jobs.refused(jobs.drop, mark, sqlstate=NO_RIGHT if what.startswith("no right") else KEPT)
    assert months.execute("SELECT count(*) FROM things_2025_10").fetchone() == (ROWS,)
    assert audited(months) == []


def test_a_hold_on_a_person_is_seen_by_the_function_itself(apply, months, jobs):
    apply(policies(person="person"), "--dry-run")
    months.execute("UPDATE things SET person = 'Anna@Example.COM' WHERE id = 3")
    months.execute(
        "INSERT INTO ops.legal_holds (scope, person, reason, placed_by) VALUES ('person', 'anna@example.com', 't', 't')"
    )
    jobs.refused(jobs.drop, jobs.detach(), sqlstate=KEPT)


def test_without_its_audit_nothing_is_dropped(jobs, months):
    """The audit is refused, or swallows an entry: either way the rows stay."""
    mark = jobs.detach()
    months.execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'no'; END$$;"
        "CREATE TRIGGER no BEFORE INSERT ON ops.audit_batches FOR EACH ROW EXECUTE FUNCTION no()"
    )
    jobs.refused(jobs.drop, mark, sqlstate="P0001")
    months.execute("DROP TRIGGER no ON ops.audit_batches")
    months.execute(
        "CREATE OR REPLACE FUNCTION ops.append_audit(p_id uuid, p_actor text, p_action text, p_resource_type text,"
        " p_reason text, p_run_id uuid, p_resource_ids text[], p_metadata jsonb) RETURNS text LANGUAGE sql"
        " AS 'SELECT NULL::text'"
    )
    jobs.refused(jobs.drop, mark, sqlstate=KEPT)
    assert months.execute("SELECT count(*) FROM things_2025_10").fetchone() == (ROWS,)


def test_a_forged_search_path_leads_nowhere(jobs, months, database):
    """Whatever the jobs put before pg_catalog, the functions do not find it."""
    months.execute("GRANT TEMPORARY ON DATABASE " + database.name + " TO PUBLIC")
    jobs.link.execute(
        "CREATE TEMP TABLE partition_rights AS SELECT * FROM ops.partition_rights;"
        "UPDATE pg_temp.partition_rights SET keep = '1 second';"
        "CREATE TEMP TABLE pg_class AS SELECT * FROM pg_catalog.pg_class;"
        "CREATE TEMP TABLE pg_inherits AS SELECT * FROM pg_catalog.pg_inherits;"
        "CREATE TEMP TABLE legal_holds AS SELECT * FROM ops.legal_holds;"
        "CREATE FUNCTION pg_temp.format(text, text, text) RETURNS text LANGUAGE sql AS $$SELECT 'public.victim'$$;"
        "CREATE FUNCTION pg_temp.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$SELECT timestamptz 'infinity'$$;"
        "SET search_path = pg_temp, public, pg_catalog, ops; SET TimeZone = 'Pacific/Kiritimati';"
        "SET DateStyle = 'SQL, DMY'"
    )
    months.execute("CREATE TABLE victim (id int)")
    jobs.refused(jobs.detach, "public.things_2026_01")
    assert jobs.drop(jobs.detach()) == ROWS
    assert months.execute("SELECT bound, ends_at::text FROM ops.detached_partitions").fetchone()[0] == (
        "FOR VALUES FROM ('2025-10-01 00:00:00+00') TO ('2025-11-01 00:00:00+00')"
    )
    assert months.execute("SELECT to_regclass('public.victim') IS NOT NULL").fetchone() == (True,)
    assert len(audited(months)) == ROWS


def test_a_name_that_looks_like_sql_is_a_name(apply, admin, database):
    """Table, partition and columns are quoted wherever they are written."""
    admin.execute(
        'CREATE TABLE "Od;d" ("k y" bigint NOT NULL, "a""t" timestamptz, UNIQUE ("k y", "a""t")) PARTITION BY RANGE ("a""t");'
        'CREATE TABLE "x; DROP TABLE ""Od;d""" PARTITION OF "Od;d" FOR VALUES FROM (\'2025-10-01\') TO (\'2025-11-01\');'
        "CREATE TABLE \"p2\" PARTITION OF \"Od;d\" FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');"
        'CREATE INDEX ON "Od;d" ("a""t"); INSERT INTO "Od;d" SELECT n, \'2025-10-05\' FROM generate_series(1, 5) n'
    )
    rules = {"old": {"anchor": 'a"t', "keep": "30 days"}}
    run = apply(policies(table="public.Od;d", key="k y", rules=rules))
    assert (run.code, run.closing["partitions_dropped"], run.closing["records_deleted"]) == (0, 1, 5)
    assert admin.execute('SELECT count(*) FROM "Od;d"').fetchone() == (0,)
    assert len(audited(admin, "public.Od;d")) == 5


def test_rights_come_with_a_partitioned_table_and_go_with_it(apply, things, admin, database):
    may = (
        "SELECT has_function_privilege('lifecycle_jobs', oid, 'EXECUTE') FROM pg_proc WHERE proname = 'drop_partition'"
    )
    apply(policies(), "--dry-run")
    assert admin.execute("SELECT FROM ops.partition_rights").fetchall() == []
    assert admin.execute(may).fetchone() == (False,)
    admin.execute("DROP TABLE things")
    make(admin)
    apply(policies(), "--dry-run")
    assert admin.execute("SELECT table_name, keep::text FROM ops.partition_rights").fetchall() == [
        ("public.things", "30 days")
    ]
    assert admin.execute(may).fetchone() == (True,)
    apply(policies(drop_partitions=False), "--dry-run")
    assert admin.execute("SELECT FROM ops.partition_rights").fetchall() == []
