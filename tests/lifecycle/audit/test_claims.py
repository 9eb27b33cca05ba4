"""What a job may say in the audit: nothing that the suite's own tables do not bear out, and nothing unreadable."""

from __future__ import annotations

import json

import psycopg
import pytest
from psycopg.types.json import Jsonb

from scripts.lifecycle.audit import audit
from tests.lifecycle.support import ENTRY, append_batches

NOBODY = "00000000-0000-4000-8000-000000000000"
APPEND = "SELECT ops.append_audit(gen_random_uuid(), %s, %s, %s, 'r', %s, %s, %s)"


def claim(link, *, actor="system:x", action="delete", table="public.things", run=None, ids=("1",), metadata="{}"):
    link.execute(APPEND, (actor, action, table, run, list(ids), metadata))


@pytest.fixture
def jobs(database):
    return database.connect()


def test_an_entry_records_the_login_that_wrote_it_and_nobody_says_another(db, admin):
    with db.transaction() as connection:
        audit.append(connection, **ENTRY, resource_ids=["1"], metadata={"session_user": "ceo", "a": 1})

    assert admin.execute("SELECT metadata FROM ops.audit_batches").fetchall() == [
        ({"a": 1, "session_user": "lifecycle_jobs"},)
    ]
    assert audit.verify(db).intact


@pytest.mark.parametrize(
    "claimed",
    [
        {"actor": "operator:ceo"},
        {"actor": "operator:ceo", "action": "decide", "run": NOBODY},
        {"actor": "operator:ceo", "action": "restore", "metadata": json.dumps({"archive": NOBODY})},
        {"actor": "operator:ceo", "action": "stop_switch_on", "table": "ops.stop_switches", "ids": ["*"]},
        {"actor": "operator:ceo", "action": "anything", "table": "ops.stop_switches", "ids": ["*"]},
        {"actor": "operator:ceo", "action": "alerts_silenced", "table": "ops.alert_silences", "ids": [NOBODY]},
        {
            "actor": "operator:ceo",
            "action": "erasure_cancelled",
            "table": "ops.erasure_requests",
            "ids": [NOBODY],
        },
        {
            "actor": "operator:ceo",
            "action": "queue_item_resolved",
            "table": "ops.manual_resolution_queue",
            "ids": [NOBODY],
        },
        {"action": "hold_placed", "table": "ops.legal_holds"},
        {"action": "hold_released", "table": "public.things"},
        {"action": "erasure_fulfilled", "table": "ops.erasure_requests", "run": NOBODY, "ids": [NOBODY]},
        {"action": "erasure_fulfilled"},
    ],
    ids=str,
)
def test_a_job_cannot_claim_what_only_the_suites_functions_may(jobs, admin, claimed):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        claim(jobs, **claimed)
    assert admin.execute("SELECT count(*) FROM ops.audit_batches").fetchone() == (0,)


def test_an_operator_is_believed_about_the_item_that_is_hers_and_about_no_other(jobs, admin):
    items = [
        admin.execute(
            "INSERT INTO ops.manual_resolution_queue (item_type, resource_type, resource_id, priority, reason,"
            " raised_by, deadline_at, status, assigned_to) VALUES ('poison', 't', %s, 'low', 'r', 'x', now(),"
            " 'assigned', %s) RETURNING id",
            (who, who),
        ).fetchone()[0]
        for who in ("olga", "otto")
    ]

    claim(jobs, actor="operator:olga", action="decide", run=items[0])
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        claim(jobs, actor="operator:olga", action="decide", run=items[1])


@pytest.mark.parametrize("private", ["seal_entry", "operator_acted"])
def test_the_functions_behind_it_are_nobodys_to_call(jobs, private):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        jobs.execute(
            f"SELECT ops.{private}(p_id => gen_random_uuid(), p_actor => 'operator:ceo', p_action => 'x',"
            " p_resource_type => 't', p_reason => 'r', p_run_id => NULL, p_resource_ids => ARRAY['1'],"
            " p_metadata => '{}')"
            if private == "seal_entry"
            else f"SELECT ops.{private}('ceo', 'x', 't', NULL, ARRAY['1'], '{{}}')"
        )


DEEP = "[" * 1000 + "]" * 1000


@pytest.mark.parametrize(
    "metadata",
    [None, "null", "[]", "1", '"x"', DEEP, f'{{"a": {DEEP}}}', json.dumps({"a": "x" * 20_000}), '{"a":[[[[[1]]]]]}'],
    ids=["none", "null", "list", "number", "text", "deep list", "deep object", "long", "six levels"],
)
def test_metadata_is_a_small_flat_object(jobs, admin, metadata):
    for link in (jobs, admin):
        with pytest.raises(psycopg.errors.CheckViolation):
            claim(link, metadata=metadata)


def test_a_policy_file_cannot_be_planted_under_a_hash_that_is_not_its_own(jobs, admin):
    planting = "INSERT INTO ops.policy_versions (hash, document, first_used_by) VALUES (%s, %s, 'x')"
    with pytest.raises(psycopg.errors.CheckViolation):
        jobs.execute(planting, ("ab" * 32, "policies: {}"))
    jobs.execute(
        "INSERT INTO ops.policy_versions (hash, document, first_used_by)"
        " VALUES (encode(sha256(convert_to('ä', 'UTF8')), 'hex'), 'ä', 'x')"
    )
    assert admin.execute("SELECT document FROM ops.policy_versions").fetchall() == [("ä",)]


def test_the_chain_of_many_logins_verifies(db, admin):
    append_batches(db, 2)
    admin.execute(APPEND, ("operator:olga", "x", "t", None, ["1"], Jsonb({"b": [1, {"c": None}]})))

    assert (audit.verify(db).intact, audit.verify(db).batches) == (True, 3)
