"""A superuser alters the audit in many ways; verification finds each change and names the batch."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.lifecycle.audit import audit
from tests.lifecycle.support import append_batches

LENGTH = 5
TABLES = ("audit_batches", "audit_head")
COPY = (
    "INSERT INTO ops.audit_batches SELECT {}, gen_random_uuid(), occurred_at, actor, action, resource_type, reason,"
    " run_id, ARRAY['9'], metadata, seal FROM ops.audit_batches WHERE seq = {}"
)
SWAP = "UPDATE ops.audit_batches SET seq = CASE seq WHEN {0} THEN {1} ELSE {0} END WHERE seq IN ({0}, {1})"
REMOVE = "DELETE FROM ops.audit_batches WHERE seq = {}"
ALTER = "UPDATE ops.audit_batches SET {} = {} WHERE seq = {}"


@pytest.fixture
def tamper(admin, db):
    """A chain of five, kept aside as it was written, and a connection that nothing hinders."""
    append_batches(db, LENGTH)
    admin.execute("SET session_replication_role = replica; CREATE SCHEMA written")
    admin.execute("ALTER TABLE ops.audit_batches DROP CONSTRAINT audit_batches_seq_check")
    admin.execute("ALTER TABLE ops.audit_batches DROP CONSTRAINT audit_batches_seq_key")
    for table in TABLES:
        admin.execute(f"CREATE TABLE written.{table} AS TABLE ops.{table}")
    return admin


def put_back(admin):
    for table in TABLES:
        admin.execute(f"TRUNCATE ops.{table}; INSERT INTO ops.{table} TABLE written.{table}")


def found(db):
    """Return what an operator is told, without the batches' ids."""
    return [re.sub(r" \([0-9a-f-]{36}\)", "", str(finding)) for finding in audit.verify(db).findings]


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


def test_a_column_that_was_altered_is_found_and_its_batch_named(db, tamper):
    for column, value in ALTERED.items():
        put_back(tamper)
        tamper.execute(ALTER.format(column, value, 3))

        # The next batch's seal stands on this one's.
        altered = [3, 4] if column == "seal" else [3]
        assert found(db) == [f"batch {number} was altered" for number in altered], column


def test_the_finding_carries_the_batchs_id(db, tamper):
    tamper.execute(ALTER.format("actor", "'operator:eve'", 3))

    (batch_id,) = tamper.execute("SELECT id::text FROM ops.audit_batches WHERE seq = 3").fetchone()
    assert [str(finding) for finding in audit.verify(db).findings] == [f"batch 3 ({batch_id}) was altered"]


TAMPERED = {
    "ids in another order": (ALTER.format("resource_ids", "ARRAY['2', '1']", 3), ["batch 3 was altered"]),
    "two ids become one": (ALTER.format("resource_ids", "ARRAY['1,2']", 3), ["batch 3 was altered"]),
    "an id moved from one column to another": (
        ALTER.format("action", "'delet', resource_type = 'epublic.things'", 3),
        ["batch 3 was altered"],
    ),
    "the first removed": (REMOVE.format(1), ["batch 1 is missing"]),
    "one in the middle removed": (REMOVE.format(3), ["batch 3 is missing"]),
    "some in the middle removed": (REMOVE.format("ANY('{2,3,4}')"), ["batches 2 to 4 are missing"]),
    "the last removed": (REMOVE.format(5), ["batch 5 is missing"]),
    "the last two removed": (REMOVE.format("ANY('{4,5}')"), ["batches 4 to 5 are missing"]),
    "all removed": (REMOVE.format("seq"), ["batches 1 to 5 are missing"]),
    "one added at the end": (COPY.format(6, 5), ["batch 6 was added"]),
    "one added before the first": (COPY.format(0, 1), ["batch 0 was added"]),
    "one added far before the first": (COPY.format(-(2**62), 1), [f"batch {-(2**62)} was added"]),
    "two swapped": (SWAP.format(2, 4), [f"batch {n} was altered" for n in (2, 3, 4, 5)]),
    "one removed and the rest moved up": (
        f"{REMOVE.format(3)}; UPDATE ops.audit_batches SET seq = seq - 1 WHERE seq > 3",
        ["batch 3 was altered", "batch 4 was altered", "batch 5 is missing"],
    ),
    "the head's number raised": ("UPDATE ops.audit_head SET seq = 7", ["batches 6 to 7 are missing"]),
    "the head's number lowered": (
        "UPDATE ops.audit_head SET seq = 4",
        ["batch 5 was added", "the head does not match batch 4: batches at the end were replaced"],
    ),
    "the head's seal": (
        "UPDATE ops.audit_head SET seal = sha256('x')",
        ["the head does not match batch 5: batches at the end were replaced"],
    ),
    "the head removed": ("DELETE FROM ops.audit_head", [f"batch {n} was added" for n in range(1, 6)]),
    "the last replaced by another with a seal of its own": (
        ALTER.format("resource_ids", "ARRAY['7'], seal = sha256('x')", 5),
        ["batch 5 was altered", "the head does not match batch 5: batches at the end were replaced"],
    ),
}


def test_tampering_is_found_and_the_batch_named(db, tamper):
    for case, (statement, expected) in TAMPERED.items():
        put_back(tamper)
        tamper.execute(statement)

        assert found(db) == expected, case


def test_a_batch_added_between_is_found_whichever_of_the_two_is_read_first(db, tamper):
    tamper.execute(COPY.format(3, 3))

    assert "batch 3 was added" in found(db)


NUMBER = st.integers(1, LENGTH)
ANY_NUMBER = st.integers(-1, LENGTH + 2)
STEP = st.one_of(
    st.builds(REMOVE.format, NUMBER),
    st.builds(COPY.format, ANY_NUMBER, NUMBER),
    st.builds(SWAP.format, NUMBER, NUMBER),
    st.builds(lambda seq, to: f"UPDATE ops.audit_batches SET seq = {to} WHERE seq = {seq}", NUMBER, ANY_NUMBER),
    st.builds(lambda column, seq: ALTER.format(column, ALTERED[column], seq), st.sampled_from(sorted(ALTERED)), NUMBER),
    st.builds(lambda seq: f"UPDATE ops.audit_head SET seq = {seq}", ANY_NUMBER),
    st.builds(lambda byte: f"UPDATE ops.audit_head SET seal = set_byte(seal, 7, {byte})", st.integers(0, 255)),
    st.just("DELETE FROM ops.audit_head"),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(steps=st.lists(STEP, max_size=4))
def test_a_chain_verifies_only_while_it_is_what_was_written(db, tamper, steps):
    put_back(tamper)
    for step in steps:
        tamper.execute(step)
    (same,) = tamper.execute(
        "SELECT NOT EXISTS (TABLE ops.audit_batches EXCEPT ALL TABLE written.audit_batches)"
        " AND NOT EXISTS (TABLE written.audit_batches EXCEPT ALL TABLE ops.audit_batches)"
        " AND NOT EXISTS (TABLE written.audit_head EXCEPT ALL TABLE ops.audit_head)"
    ).fetchone()

    assert audit.verify(db).intact == same
