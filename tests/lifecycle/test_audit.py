"""The audit chain: whatever was done to it by whoever may do anything is found, and named."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest

from scripts.lifecycle import audit
from tests.lifecycle.support import add_things, policy

ENTRY = {"actor": "system:tests", "action": "delete", "resource_type": "public.things", "reason": "a_test"}


def write(db, number, ids=("1", "2")):
    """Append so many batches."""
    for _ in range(number):
        with db.transaction() as connection:
            audit.append(connection, **ENTRY, resource_ids=list(ids), run_id=uuid4(), metadata={"a": 1})


def said(db):
    return [str(finding).split(" (")[0] for finding in audit.verify(db).findings]


@pytest.fixture
def tamper(admin, db):
    """A chain of five, and a connection that may change it behind the triggers' back."""
    write(db, 5)
    admin.execute("SET session_replication_role = replica")
    return admin


def test_an_empty_chain_is_intact(db):
    result = audit.verify(db)

    assert (result.intact, result.batches, result.entries, result.head) == (True, 0, 0, "0:")


def test_an_untouched_chain_is_intact_and_counted(db):
    write(db, 3, ids=("1", "2"))
    write(db, 1, ids=("ä", "'\"\\{}", "", "NULL"))

    result = audit.verify(db)

    assert (result.intact, result.batches, result.entries) == (True, 4, 10)
    with db.transaction(read_only=True) as connection:
        assert result.head == audit.head(connection)
    assert result.head.startswith("4:")


def test_a_real_runs_chain_is_intact_and_its_closing_line_carries_the_head(apply, things, db):
    add_things(things, 1, 50)

    run = apply({"things": policy()}, "--batch-size", "7")

    result = audit.verify(db)
    assert (result.intact, result.entries, result.head) == (True, 50, run.closing["audit_head"])


def test_a_chain_longer_than_a_page_is_walked_to_its_end(db, admin, monkeypatch):
    monkeypatch.setattr(audit, "_PAGE", 2)
    write(db, 5)
    assert audit.verify(db).batches == 5

    admin.execute("SET session_replication_role = replica")
    admin.execute("UPDATE ops.audit_batches SET actor = 'operator:eve' WHERE seq = 5")

    assert said(db) == ["batch 5"]


ALTERED = {
    "occurred_at": "occurred_at + interval '1 microsecond'",
    "actor": "'operator:eve'",
    "action": "'restore'",
    "resource_type": "'public.others'",
    "reason": "reason || ' '",
    "run_id": "NULL",
    "id": "gen_random_uuid()",
    "metadata": "'{\"a\": 2}'",
    "resource_ids": "ARRAY['1', '3']",
    "seal": "sha256(seal)",
}


@pytest.mark.parametrize("column", ALTERED)
def test_a_column_that_was_altered_is_found_and_its_batch_named(db, tamper, column):
    tamper.execute(f"UPDATE ops.audit_batches SET {column} = {ALTERED[column]} WHERE seq = 3")

    findings = audit.verify(db).findings

    assert (findings[0].kind, findings[0].seq) == ("altered", 3)
    (batch_id,) = tamper.execute("SELECT id::text FROM ops.audit_batches WHERE seq = 3").fetchone()
    assert str(findings[0]) == f"batch 3 ({batch_id}) was altered"
    assert len(findings) == (2 if column == "seal" else 1)


TAMPERED = {
    "ids in another order": (
        "UPDATE ops.audit_batches SET resource_ids = ARRAY['2', '1'] WHERE seq = 3",
        ["batch 3 was altered"],
    ),
    "two ids become one": ("UPDATE ops.audit_batches SET resource_ids = ARRAY['1,2'] WHERE seq = 3", ["batch 3 was altered"]),
    "the first removed": ("DELETE FROM ops.audit_batches WHERE seq = 1", ["batch 1 is missing"]),
    "one in the middle removed": ("DELETE FROM ops.audit_batches WHERE seq = 3", ["batch 3 is missing"]),
    "some in the middle removed": (
        "DELETE FROM ops.audit_batches WHERE seq IN (2, 3, 4)",
        ["batches 2 to 4 are missing"],
    ),
    "the last removed": ("DELETE FROM ops.audit_batches WHERE seq = 5", ["batch 5 is missing"]),
    "the last two removed": ("DELETE FROM ops.audit_batches WHERE seq > 3", ["batches 4 to 5 are missing"]),
    "all removed": ("DELETE FROM ops.audit_batches", ["batches 1 to 5 are missing"]),
    "one added at the end": (
        "INSERT INTO ops.audit_batches SELECT 6, gen_random_uuid(), occurred_at, actor, action, resource_type, reason,"
        " run_id, resource_ids, metadata, seal FROM ops.audit_batches WHERE seq = 5",
        ["batch 6 was added"],
    ),
    "one added before the first": (
        "ALTER TABLE ops.audit_batches DROP CONSTRAINT audit_batches_seq_check;"
        + "INSERT INTO ops.audit_batches SELECT 0, gen_random_uuid(), occurred_at, actor, action, resource_type, reason,"
        + " run_id, resource_ids, metadata, seal FROM ops.audit_batches WHERE seq = 1",
        ["batch 0 was added"],
    ),
    "one added between": (
        "ALTER TABLE ops.audit_batches DROP CONSTRAINT audit_batches_seq_key;"
        + "INSERT INTO ops.audit_batches SELECT seq, gen_random_uuid(), occurred_at, actor, action, resource_type,"
        + " reason, run_id, ARRAY['9'], metadata, seal FROM ops.audit_batches WHERE seq = 3",
        ["batch 3 was altered"],
    ),
    "two swapped": (
        "UPDATE ops.audit_batches SET seq = 99 WHERE seq = 2; UPDATE ops.audit_batches SET seq = 2 WHERE seq = 4;"
        + "UPDATE ops.audit_batches SET seq = 4 WHERE seq = 99",
        ["batch 2 was altered", "batch 3 was altered", "batch 4 was altered", "batch 5 was altered"],
    ),
    "one removed and the rest moved up": (
        "DELETE FROM ops.audit_batches WHERE seq = 3; UPDATE ops.audit_batches SET seq = 3 WHERE seq = 4;"
        + "UPDATE ops.audit_batches SET seq = 4 WHERE seq = 5",
        ["batch 3 was altered", "batch 4 was altered", "batch 5 is missing"],
    ),
    "the head's number": ("UPDATE ops.audit_head SET seq = 7", ["batches 6 to 7 are missing"]),
    "the head put back": ("UPDATE ops.audit_head SET seq = 4", ["batch 5 was added"]),
    "the head's seal": (
        "UPDATE ops.audit_head SET seal = sha256('x')",
        ["the head does not match batch 5: batches at the end were replaced"],
    ),
    "the head removed": ("DELETE FROM ops.audit_head", [f"batch {n} was added" for n in range(1, 6)]),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampering_is_found_and_the_batch_named(db, tamper, case):
    statement, expected = TAMPERED[case]
    tamper.execute(statement)

    found = [str(finding) for finding in audit.verify(db).findings]

    assert [text if "(" not in text else " ".join([*text.split()[:2], *text.split()[3:]]) for text in found][
        : len(expected)
    ] == expected
    assert found


@pytest.mark.parametrize("who", ["lifecycle_jobs", "postgres"])
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET {} = {}", "DELETE FROM {}", "TRUNCATE {}", "DELETE FROM {} WHERE false"]
)
@pytest.mark.parametrize(("table", "column"), [("audit_batches", "seq"), ("policy_versions", "hash")])
def test_what_is_append_only_refuses_change_even_to_its_owner(db, database, admin, who, statement, table, column):
    write(db, 1)
    connection = database.connect() if who == "lifecycle_jobs" else admin

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement.format(f"ops.{table}", column, column))

    assert audit.verify(db).batches == 1


@pytest.mark.parametrize("table", ["audit_batches", "audit_head", "audit_log"])
def test_the_jobs_cannot_write_the_audit_but_by_its_function(database, table):
    connection = database.connect()

    for statement in (f"INSERT INTO ops.{table} DEFAULT VALUES", f"UPDATE ops.{table} SET seq = 0", f"DELETE FROM ops.{table}"):
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
            connection.execute(statement)


def test_an_entry_without_an_actor_or_without_ids_is_refused_and_leaves_no_gap(db):
    write(db, 1)
    for wrong in ({"actor": "eve"}, {"actor": "system:"}, {"resource_ids": []}):
        with pytest.raises(psycopg.errors.CheckViolation), db.transaction() as connection:
            audit.append(connection, **(ENTRY | {"resource_ids": ["1"]} | wrong))
    write(db, 1)

    assert (audit.verify(db).intact, audit.verify(db).batches) == (True, 2)


def test_appends_from_several_connections_at_once_make_one_intact_chain_in_the_order_of_time(db, admin):
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: write(db, 10), range(6)))

    result = audit.verify(db)
    assert (result.intact, result.batches) == (True, 60)
    assert admin.execute(
        "SELECT bool_and(at >= before) FROM (SELECT occurred_at AS at, lag(occurred_at) OVER (ORDER BY seq) AS before"
        " FROM ops.audit_batches) t"
    ).fetchone() == (True,)


def test_an_append_that_is_rolled_back_leaves_no_gap(db):
    write(db, 1)
    with pytest.raises(RuntimeError), db.transaction() as connection:
        audit.append(connection, **ENTRY, resource_ids=["1"])
        raise RuntimeError
    write(db, 1)

    assert (audit.verify(db).intact, audit.verify(db).batches) == (True, 2)


def test_the_log_shows_one_entry_for_every_record(db, admin):
    write(db, 2, ids=("a", "b", "c"))

    assert admin.execute("SELECT seq, resource_id, actor FROM ops.audit_log ORDER BY 1, 2").fetchall() == [
        (seq, key, "system:tests") for seq in (1, 2) for key in ("a", "b", "c")
    ]


def test_another_time_zone_or_date_style_changes_no_seal(db, admin, administrator, database):
    write(db, 1)
    administrator.execute(f"ALTER DATABASE {database.name} SET DateStyle = 'German'")
    administrator.execute(f"ALTER DATABASE {database.name} SET TimeZone = 'Asia/Tokyo'")
    administrator.execute(f"ALTER DATABASE {database.name} SET bytea_output = 'escape'")
    database.connect().execute(
        "SELECT ops.append_audit(gen_random_uuid(), 'system:x', 'a', 't', 'r', NULL, ARRAY['ä'], '{\"b\": 1.50}')"
    )

    assert (audit.verify(db).intact, audit.verify(db).batches) == (True, 2)
