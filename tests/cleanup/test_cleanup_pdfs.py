"""PDFs leave the store when their period has ended; what must stay stays, and the dry run knew."""

import json

import pytest
import yaml

from scripts.lifecycle.policy.policies import DEFAULT_POLICY_FILE

DUE = range(250)


@pytest.mark.pooled
def test_a_dry_run_predicts_a_run_deletes_and_the_next_finds_nothing(run_pdfs, plans):
    plans.add(DUE)
    plans.add(range(1000, 1010), age="89 days")

    predicted = run_pdfs("--dry-run")
    assert (predicted.code, predicted.closing["records_to_delete"]) == (0, len(DUE))
    assert plans.blobs.counters.requests == 0
    assert plans.intents() == {}

    real = run_pdfs()
    assert real.code == 0
    assert real.closing["records_deleted"] == len(DUE)
    assert real.closing["records_remaining"] == 0
    assert plans.finalised() == {plans.id(n) for n in DUE}
    assert plans.there(range(2000)) == set(range(1000, 1010))
    assert plans.intents() == {"confirmed": len(DUE)}
    plans.balance()
    assert plans.link.execute("SELECT DISTINCT actor, action, resource_type, reason FROM ops.audit_log").fetchall() == [
        ("system:cleanup_pdfs", "delete_blob", "public.meal_plans", "retention_policy:meal_plan_pdfs/expired")
    ]

    again = run_pdfs()
    assert (again.code, again.closing["records_deleted"]) == (0, 0)
    assert again.closing["audit_head"] == real.closing["audit_head"]


def test_many_blobs_go_in_one_call(run_pdfs, plans):
    plans.add(DUE)
    assert run_pdfs().code == 0
    assert plans.blobs.counters.operations == {"delete": 3}
    assert plans.blobs.counters.connections <= 4


def test_what_must_survive_survives(run_pdfs, plans):
    plans.add([1], age="90 days 10 minutes")
    plans.add([2], age="89 days 23 hours 50 minutes")
    plans.add([3], person="held@example.com")
    plans.add([4])
    plans.link.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, person, reason, placed_by) VALUES"
        " ('person', NULL, NULL, 'held@example.com', 'r', 'me'), ('row', 'public.meal_plans', %s, NULL, 'r', 'me')",
        (plans.id(4),),
    )
    done = run_pdfs()
    assert (done.code, done.closing["records_deleted"], done.closing["records_held"]) == (0, 1, 2)
    assert plans.there(range(5)) == {2, 3, 4}
    plans.balance()


def test_a_blob_that_another_row_still_names_is_kept_until_that_row_is_due_too(run_pdfs, plans, blobs):
    plans.add([1])
    plans.add([2], age="10 days", name=lambda _: blobs.url_of(plans.path(1)), put=False)
    plans.add([3], name=lambda _: blobs.url_of(plans.path(4)), put=False)
    plans.add([4], age="10 days")

    predicted, kept = run_pdfs("--dry-run"), run_pdfs()
    assert (predicted.closing["records_to_delete"], kept.closing["records_deleted"]) == (0, 0)
    assert plans.there([1, 4]) == {1, 4}
    assert kept.code == 4, "that due rows are still needed is for a person to know"

    plans.link.execute("UPDATE meal_plans SET created_at = created_at - interval '100 days'")
    done = run_pdfs()
    assert (done.code, done.closing["records_deleted"]) == (0, 4)
    assert plans.there([1, 4]) == set()
    plans.balance()


def test_urls_pathnames_and_blobs_that_are_gone_already(run_pdfs, plans, blobs):
    plans.add([1], name=lambda n: blobs.url_of(plans.path(n)))
    plans.add([2], put=False)
    plans.add([3])
    done = run_pdfs()
    assert (done.code, done.closing["records_deleted"]) == (0, 3)
    assert plans.there([1, 2, 3]) == set()
    plans.balance()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("https://otherstore.public.blob.vercel-storage.com/meal-plans/x.pdf", "foreign_store"),
        ("https://example.com/meal-plans/x.pdf", "foreign_store"),
        ("invoices/x.pdf", "outside_prefix"),
        ("meal-plans/../invoices/x.pdf", "outside_prefix"),
    ],
)
def test_what_is_not_ours_gets_neither_call_nor_token(run_pdfs, plans, name, error):
    plans.add([1], name=lambda _: name, put=False)
    plans.add([2])
    done = run_pdfs()
    assert done.code == 4
    assert plans.finalised() == {plans.id(2)}
    assert plans.items() == [(plans.id(1), "pending", 1)]
    assert plans.reasons()[plans.id(1)] == error
    assert [call.targets for call in plans.blobs.log] == [(plans.path(2),)]
    assert name not in done.out


def test_limit_takes_so_many_and_the_next_run_the_rest(run_pdfs, plans):
    plans.add(DUE)
    first = run_pdfs("--limit", "10")
    assert (first.code, first.closing["records_deleted"], first.closing["stop_reason"]) == (0, 10, "limit_reached")
    assert len(plans.there(DUE)) == len(DUE) - 10
    assert run_pdfs().closing["records_deleted"] == len(DUE) - 10
    plans.balance()


def test_no_personal_data_and_no_token_in_what_is_said(run_pdfs, plans, blobs):
    plans.add([1], name=lambda n: blobs.url_of(plans.path(n)))
    blobs.faults.failing_calls = 1
    done = run_pdfs("--verbose", LOG_LEVEL="DEBUG")
    assert done.code == 0
    said = done.out + done.err + json.dumps(plans.link.execute("SELECT row_to_json(a) FROM ops.audit_log a").fetchall())
    for secret in ("anna@example.com", "meal-plans/", blobs.token, blobs.token.rpartition("_")[2]):
        assert secret not in said


def test_without_a_token_the_job_is_misconfigured(run_pdfs, plans):
    plans.add([1])
    done = run_pdfs(BLOB_READ_WRITE_TOKEN="")
    assert done.code == 2
    assert "BLOB_READ_WRITE_TOKEN is not set" in done.closing["error"]
    assert plans.intents() == {}


@pytest.mark.parametrize("host", ["{ours}:port", "{ours}:99999", "someone@{ours}"])
def test_an_odd_url_is_for_a_person_and_stops_neither_this_run_nor_the_next(run_pdfs, plans, blobs, host):
    name = f"https://{host.format(ours=blobs.delivery_host)}/meal-plans/x.pdf"
    plans.add([1], name=lambda _: name, put=False)
    plans.add([2])
    assert [run_pdfs().code for _ in range(2)] == [4, 0]
    assert plans.finalised() == {plans.id(2)}
    assert plans.items() == [(plans.id(1), "pending", 2)]
    plans.balance()


def test_a_url_of_the_other_kind_of_store_names_the_same_blob(run_pdfs, plans, blobs):
    private = blobs.url_of(plans.path(1)).replace(".public.", ".private.")
    plans.add([1], name=lambda _: private)
    plans.add([2])
    assert run_pdfs().code == 0
    assert plans.there([1, 2]) == set()
    plans.balance()


def test_rows_whose_key_has_several_columns(run_pdfs, plans, tmp_path):
    document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    document["policies"]["meal_plan_pdfs"]["key"] = ["created_at", "id"]
    path = tmp_path / "policies.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    plans.add(range(6))
    plans.add([100], age="1 day", put=False)
    plans.link.execute(
        "CREATE UNIQUE INDEX ON meal_plans (id, created_at); ALTER TABLE meal_plans ALTER created_at SET NOT NULL"
    )
    ids = "SELECT jsonb_build_array(created_at, id)::text FROM meal_plans WHERE id = ANY(%s) ORDER BY id"
    keys = [key for (key,) in plans.link.execute(ids, ([plans.id(n) for n in range(6)],))]
    plans.link.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
        " VALUES ('row', 'public.meal_plans', %s, 'r', 'me')",
        (keys[2],),
    )

    done = run_pdfs("--policy-file", str(path))

    assert (done.code, done.closing["records_deleted"], done.closing["records_held"]) == (0, 5, 1)
    assert plans.there(range(6)) == {2}
    assert plans.audited() == [key for key in keys if key != keys[2]]
    assert plans.finalised() == {plans.id(n) for n in (0, 1, 3, 4, 5)}

    pseudonyms = {"AUDIT_PSEUDONYM_KEY": "k1:" + "ab" * 32}
    assert run_pdfs("--policy-file", str(path), "--reconcile", **pseudonyms).code == 0
    assert plans.id(100) in plans.finalised()
    assert run_pdfs("--policy-file", str(path)).closing["records_deleted"] == 0
