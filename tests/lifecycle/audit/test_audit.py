"""The audit chain: written by one function only, without gaps, and never changed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from scripts.lifecycle.audit import audit
from scripts.utils.errors import Misconfigured
from tests.lifecycle.support import ENTRY, add_things, append_batches, policy


def test_an_empty_chain_is_intact(db):
    result = audit.verify(db)

    assert (result.intact, result.batches, result.entries, result.head) == (True, 0, 0, "0:")


def test_an_untouched_chain_is_intact_and_counted(db):
    append_batches(db, 3, ids=("1", "2"))
    append_batches(db, 1, ids=("ä", "'\"\\{}", "", "NULL"))

    result = audit.verify(db)

    assert (result.intact, result.batches, result.entries) == (True, 4, 10)
    with db.snapshot() as connection:
        assert result.head == audit.head(connection)
    assert result.head.startswith("4:")


def test_a_real_runs_chain_is_intact_and_its_closing_line_carries_the_head(apply, things, db):
    add_things(things, 1, 50)

    run = apply({"things": policy()}, "--batch-size", "7")

    result = audit.verify(db)
    assert (result.intact, result.entries, result.head) == (True, 50, run.closing["audit_head"])


REFUSED = ("UPDATE {} SET {} = {}", "DELETE FROM {}", "TRUNCATE {} CASCADE", "DELETE FROM {} WHERE false")


@pytest.mark.parametrize("who", ["lifecycle_jobs", "postgres"])
def test_what_is_append_only_refuses_change_even_to_its_owner(apply, things, database, who):
    add_things(things, 1, 3)
    apply({"things": policy()})
    connection = database.connect() if who == "lifecycle_jobs" else things

    for table, column in (("audit_batches", "actor"), ("policy_versions", "document")):
        for statement in REFUSED:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.format(f"ops.{table}", column, column))
        assert things.execute(f"SELECT count(*) FROM ops.{table}").fetchone() == (1,)


@pytest.mark.parametrize("table", ["audit_batches", "audit_head", "audit_log"])
def test_the_jobs_cannot_write_the_audit_but_by_its_function(database, table):
    connection = database.connect()

    for statement in (
        f"INSERT INTO ops.{table} DEFAULT VALUES",
        f"UPDATE ops.{table} SET seq = 0",
        f"DELETE FROM ops.{table}",
    ):
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
            connection.execute(statement)


def test_an_entry_without_an_actor_or_without_ids_is_refused_and_leaves_no_gap(db):
    append_batches(db, 1)
    for wrong in ({"actor": "eve"}, {"actor": "system:"}, {"resource_ids": []}):
        with pytest.raises(psycopg.errors.CheckViolation), db.transaction() as connection:
            audit.append(connection, **(ENTRY | {"resource_ids": ["1"]} | wrong))
    append_batches(db, 1)

    assert (audit.verify(db).intact, audit.verify(db).batches) == (True, 2)


@pytest.mark.pooled
def test_appends_from_several_connections_at_once_make_one_intact_chain_in_the_order_of_time(db, admin):
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: append_batches(db, 10), range(6)))

    result = audit.verify(db)
    assert (result.intact, result.batches) == (True, 60)
    assert admin.execute(
        "SELECT bool_and(at >= before) FROM (SELECT occurred_at AS at, lag(occurred_at) OVER (ORDER BY seq) AS before"
        " FROM ops.audit_batches) t"
    ).fetchone() == (True,)


def test_an_append_that_is_rolled_back_leaves_no_gap(db):
    append_batches(db, 1)
    with db.transaction() as connection:
        audit.append(connection, **ENTRY, resource_ids=["1"])
        raise psycopg.Rollback
    append_batches(db, 1)

    assert (audit.verify(db).intact, audit.verify(db).batches) == (True, 2)


def test_the_log_shows_one_entry_for_every_record(db, admin):
    append_batches(db, 2, ids=("a", "b", "c"))

    assert admin.execute("SELECT seq, resource_id, actor FROM ops.audit_log ORDER BY 1, 2").fetchall() == [
        (seq, key, "system:tests") for seq in (1, 2) for key in ("a", "b", "c")
    ]


def test_another_time_zone_or_date_style_changes_no_seal(db, admin, administrator, database):
    append_batches(db, 1)
    administrator.execute(f"ALTER DATABASE {database.name} SET DateStyle = 'German'")
    administrator.execute(f"ALTER DATABASE {database.name} SET TimeZone = 'Asia/Tokyo'")
    administrator.execute(f"ALTER DATABASE {database.name} SET bytea_output = 'escape'")
    database.connect().execute(
        "SELECT ops.append_audit(gen_random_uuid(), 'system:x', 'a', 't', 'r', NULL, ARRAY['ä'], '{\"b\": 1.50}')"
    )

    assert (audit.verify(db).intact, audit.verify(db).batches) == (True, 2)


def test_a_chain_rewritten_as_a_whole_is_found_by_the_head_that_a_log_store_kept(db, admin):
    append_batches(db, 3)
    with db.snapshot() as connection:
        kept = audit.head(connection)
    append_batches(db, 1)
    assert audit.verify(db, kept).intact

    admin.execute("SET session_replication_role = replica; TRUNCATE ops.audit_batches")
    admin.execute("UPDATE ops.audit_head SET seq = 0, seal = ''")
    append_batches(db, 4)

    assert audit.verify(db).intact
    assert [str(finding).split(" (")[0] for finding in audit.verify(db, kept).findings] == ["batch 3"]


def test_a_chain_cut_off_with_its_head_is_found_by_the_head_that_a_log_store_kept(db, admin):
    append_batches(db, 3)
    with db.snapshot() as connection:
        kept = audit.head(connection)

    admin.execute("SET session_replication_role = replica; DELETE FROM ops.audit_batches WHERE seq > 1")
    admin.execute("UPDATE ops.audit_head SET (seq, seal) = (SELECT seq, seal FROM ops.audit_batches)")

    assert audit.verify(db).intact
    assert [str(finding) for finding in audit.verify(db, kept).findings] == ["batches 2 to 3 are missing"]


def test_what_is_no_head_is_refused_rather_than_found_in_order(db):
    append_batches(db, 3)
    for head in ("", ":", "3", "x:00", "3:xyz", "3:00ff", f"-1:{'0' * 64}", f"0:{'0' * 64}", "3:"):
        with pytest.raises(Misconfigured, match="not an audit_head"):
            audit.verify(db, head)

    assert audit.verify(db, "0:").intact, "the head of the empty chain, from which this one grew"
