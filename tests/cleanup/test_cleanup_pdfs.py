"""PDFs leave the store when their period has ended; what must stay stays, and the dry run knew."""

import json

import pytest
import yaml

from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from scripts.lifecycle.purge.purge import Purge
from tests.faults.stage import wait_until

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


NAMES_OF_ONE = [
    "https://{host}/keto-meal-plan-a%20b.pdf",
    "https://{host}/keto-meal-plan-a%20b.pdf?download=1",
    "https://{host}/keto-meal-plan-%61%20b.pdf#page=2",
    "HTTPS://{HOST}:443/keto-meal-plan-a%20b.pdf",
    "http://{private}/keto-meal-plan-a%20b.pdf",
    "/keto-meal-plan-a b.pdf",
    # What is no certain name of it protects it all the same.
    " keto-meal-plan-a b.pdf",
    "\ufeffhttps://{host}/keto-meal-plan-a%20b.pdf",
    "keto-meal-plan-a%20b.pdf",
    "keto-meal-plan-a b.pdf?download=1",
    "//keto-meal-plan-a b.pdf",
    "https://someone@{host}:8443/keto-meal-plan-a%20b.pdf",
    "https://cdn.example.com/keto-meal-plan-a%20b.pdf",
    "https://cdn.example.com/delivery/keto-meal-plan-a%20b.pdf",
    '"https://{host}/keto-meal-plan-a%20b.pdf"',
    "[plan](https://{host}/keto-meal-plan-a%20b.pdf)",
    "/_next/image?url=https%3A%2F%2F{host}%2Fketo-meal-plan-a%2520b.pdf&w=640",
]
OTHER_BLOBS = [
    "https://{host}/keto-meal-plan-a%2520b.pdf",
    "https://{host}/keto-meal-plan-A%20b.pdf",
    "keto-meal-plan-a  b.pdf",
    "https://otherstore.public.blob.vercel-storage.com/keto-meal-plan-a%20b.pdf",
]


def spelled(name, blobs):
    host = blobs.delivery_host
    return name.format(host=host, HOST=host.upper(), private=host.replace(".public.", ".private."))


@pytest.mark.parametrize("name", NAMES_OF_ONE)
@pytest.mark.parametrize("indexed", [True, False], ids=["indexed", "unindexed"])
def test_a_blob_that_another_row_names_in_another_spelling_stays(run_pdfs, plans, blobs, name, indexed):
    if indexed:
        plans.link.execute("CREATE INDEX ON meal_plans (ops.blob_key(pdf_blob_path))")
    blobs.put("keto-meal-plan-a b.pdf", b"%PDF")
    plans.add([1], name=lambda _: "keto-meal-plan-a b.pdf", put=False)
    plans.add([2], age="1 day", name=lambda _: spelled(name, blobs), put=False)
    plans.add([3])

    predicted, done = run_pdfs("--dry-run"), run_pdfs()

    assert (predicted.closing["records_to_delete"], done.closing["records_deleted"]) == (1, 1)
    assert blobs.get("keto-meal-plan-a b.pdf")
    assert plans.intents() == {"confirmed": 1}


@pytest.mark.parametrize("name", NAMES_OF_ONE)
def test_a_comparison_takes_no_blob_for_an_orphan_that_a_row_may_name(run_pdfs, plans, blobs, name):
    for pathname in ("keto-meal-plan-a b.pdf", "keto-meal-plan-orphan.pdf"):
        blobs.put(pathname, b"%PDF", uploaded_at=0.0)
    plans.add([2], age="1 day", name=lambda _: spelled(name, blobs), put=False)
    run_pdfs("--reconcile", AUDIT_PSEUDONYM_KEY="k1:" + "ab" * 32)
    assert blobs.get("keto-meal-plan-a b.pdf")
    assert blobs.get("keto-meal-plan-orphan.pdf") is None


@pytest.mark.parametrize("name", OTHER_BLOBS)
def test_a_blob_that_no_other_row_names_goes(run_pdfs, plans, blobs, name):
    blobs.put("keto-meal-plan-a b.pdf", b"%PDF")
    plans.add([1], name=lambda _: "keto-meal-plan-a b.pdf", put=False)
    plans.add([2], age="1 day", name=lambda _: spelled(name, blobs), put=False)
    assert run_pdfs().closing["records_deleted"] == 1
    assert blobs.get("keto-meal-plan-a b.pdf") is None


@pytest.mark.parametrize(
    "change", ["created_at = now()", "created_at = NULL", "pdf_blob_path = '/keto-meal-plan-a b.pdf'"]
)
def test_a_row_that_needs_the_blob_since_its_intent_was_written_keeps_it(run_pdfs, plans, blobs, change):
    blobs.put("keto-meal-plan-a b.pdf", b"%PDF")
    plans.add([1], name=lambda _: "keto-meal-plan-a b.pdf", put=False)
    plans.add([2], name=lambda _: spelled(NAMES_OF_ONE[0], blobs), put=False)
    plans.link.execute("ALTER TABLE meal_plans ALTER created_at DROP NOT NULL")
    plans.link.execute(
        "CREATE FUNCTION public.need_it() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        f" UPDATE public.meal_plans SET {change} WHERE id = '{plans.id(2)}'; RETURN NULL; END $$;"
        " CREATE TRIGGER need_it AFTER INSERT ON ops.blob_deletions FOR EACH STATEMENT EXECUTE FUNCTION need_it()"
    )
    run_pdfs()
    assert blobs.get("keto-meal-plan-a b.pdf")
    assert plans.id(2) in plans.named()


def test_a_row_without_a_date_keeps_its_blob(run_pdfs, plans, blobs):
    plans.link.execute("ALTER TABLE meal_plans ALTER created_at DROP NOT NULL")
    plans.add([1])
    plans.add([2], age=None, name=lambda _: blobs.url_of(plans.path(1)), put=False)
    assert run_pdfs().closing["records_deleted"] == 0
    assert plans.there([1]) == {1}


@pytest.mark.parametrize("flags", [(), ("--reconcile",), ("--dry-run",)])
def test_a_policy_file_that_lacks_the_job_s_policy_is_misuse(run_pdfs, plans, tmp_path, flags):
    document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    document["policies"]["our_pdfs"] = document["policies"].pop("meal_plan_pdfs")
    document["jobs"]["cleanup_pdfs"]["policies"] = ["our_pdfs"]
    (tmp_path / "policies.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    plans.add([1])
    done = run_pdfs("--policy-file", str(tmp_path / "policies.yaml"), *flags)
    assert (done.code, done.closing["stop_reason"]) == (2, "misconfigured")
    assert "the policy file has no policy meal_plan_pdfs, which this script carries out" in done.closing["error"]
    assert plans.there([1]) == {1}


def calls_of_a_dry_run(run_pdfs, plans, rows):
    """How often a dry run reads a name, with so many rows and no index."""
    plans.link.execute("TRUNCATE meal_plans CASCADE")
    plans.link.execute("DROP INDEX IF EXISTS meal_plans_blob_key_idx")
    plans.add(range(rows // 2), put=False)
    plans.add(range(rows // 2, rows), age="1 day", name=lambda n: plans.path(n - rows // 2), put=False)
    plans.link.execute("SELECT pg_stat_reset()")
    assert run_pdfs("--dry-run").closing["records_to_delete"] == 0
    # A server process writes its last statistics when it ends, which may be after the run has ended.
    others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    wait_until(lambda: plans.link.execute(others).fetchone() is None, what="the end of the run's sessions")
    (calls,) = plans.link.execute(
        "SELECT coalesce(sum(calls), 0) FROM pg_stat_user_functions WHERE funcname LIKE '%blob%'"
    ).fetchone()
    return int(calls)


@pytest.mark.parametrize("analysed", [True, False])
def test_without_an_index_the_survey_reads_each_name_so_many_times_and_no_more(run_pdfs, plans, analysed):
    plans.link.execute("ALTER DATABASE " + plans.link.info.dbname + " SET track_functions = 'all'")
    if not analysed:
        plans.link.execute("ALTER TABLE meal_plans SET (autovacuum_enabled = off)")
    few, many = (calls_of_a_dry_run(run_pdfs, plans, rows) for rows in (400, 1600))
    assert few > 0
    assert many <= 4 * few


def test_a_count_ends_when_the_runs_time_is_used_up(run_pdfs, plans):
    plans.add([1])
    plans.link.execute(
        "CREATE OR REPLACE FUNCTION ops.blob_trouble(p_of text, p_pathname text, p_store text, p_prefix text)"
        " RETURNS text LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'"
    )
    for arguments in (["--dry-run"], []):
        done = run_pdfs(*arguments, "--max-duration", "2")
        assert (done.code, done.closing["stop_reason"]) == (3, "time_budget")
    assert plans.there([1]) == {1}


def test_what_a_restart_undid_is_said_and_the_next_run_puts_it_right(run_pdfs, plans, monkeypatch):
    """As with ``synchronous_commit = off`` and a server that was stopped at once: the last commits are not there."""
    plans.add(range(3))
    finish = Purge._finish

    def after_a_restart(purge, *arguments):
        link = plans.link
        link.execute("SET session_replication_role = replica")
        link.execute("UPDATE meal_plans SET pdf_blob_path = 'keto-meal-plan-' || id || '.pdf'")
        link.execute("DELETE FROM ops.blob_deletions; DELETE FROM ops.audit_batches")
        link.execute("UPDATE ops.audit_head SET seq = 0, seal = '\\x'")
        link.execute("SET session_replication_role = origin")
        finish(purge, *arguments)

    monkeypatch.setattr(Purge, "_finish", after_a_restart)
    done = run_pdfs()
    assert (done.code, done.closing["stop_reason"]) == (3, "changes_lost")
    assert "3 changes that PostgreSQL had confirmed are not there any more" in done.closing["error"]
    assert "trigger" not in done.out

    monkeypatch.undo()
    again = run_pdfs()
    assert (again.code, again.closing["records_deleted"]) == (0, 3)
    assert plans.finalised() == {plans.id(n) for n in range(3)}


def test_names_that_are_not_ours_in_number_stop_the_run_before_anything_is_done(run_pdfs, plans):
    plans.add(range(201), name=lambda n: f"elsewhere/{n}.pdf", put=False)
    plans.add([300])
    predicted, done = run_pdfs("--dry-run"), run_pdfs()
    assert (predicted.code, done.code, done.closing["stop_reason"]) == (1, 1, "cap_exceeded")
    assert "is it the right store and prefix?" in done.closing["error"]
    assert plans.there([300]) == {300}


def test_a_limit_is_not_used_up_by_what_is_for_a_person(run_pdfs, plans):
    plans.add(range(5), age="92 days", name=lambda n: f"elsewhere/{n}.pdf", put=False)
    plans.add(range(10, 14))
    predicted, done = run_pdfs("--dry-run", "--limit", "3"), run_pdfs("--limit", "3")
    assert [(each.closing["records_queued"]) for each in (predicted, done)] == [5, 5]
    assert (predicted.closing["records_to_delete"], done.closing["records_deleted"]) == (3, 3)


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
        ("https://otherstore.public.blob.vercel-storage.com/keto-meal-plan-x.pdf", "foreign_store"),
        ("https://example.com/keto-meal-plan-x.pdf", "foreign_store"),
        ("invoices/x.pdf", "outside_prefix"),
        ("keto-meal-plan-x/../invoices/x.pdf", "outside_prefix"),
    ],
)
def test_what_is_not_ours_gets_neither_call_nor_token(run_pdfs, plans, name, error):
    plans.add([1], name=lambda _: name, put=False)
    plans.add([2])
    done = run_pdfs()
    assert done.code == 4
    assert plans.finalised() == {plans.id(2)}
    assert plans.items() == [(plans.id(1), "pending", 1)]
    assert plans.link.execute("SELECT context ->> 'error' FROM ops.manual_resolution_queue").fetchall() == [(error,)]
    assert plans.intents() == {"confirmed": 1}
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
    for secret in ("anna@example.com", "keto-meal-plan-", blobs.token, blobs.token.rpartition("_")[2]):
        assert secret not in said


def test_without_a_token_the_job_is_misconfigured(run_pdfs, plans):
    plans.add([1])
    done = run_pdfs(BLOB_READ_WRITE_TOKEN="")
    assert done.code == 2
    assert "BLOB_READ_WRITE_TOKEN is not set" in done.closing["error"]
    assert plans.intents() == {}


@pytest.mark.parametrize("host", ["{ours}:port", "{ours}:99999", "someone@{ours}"])
def test_an_odd_url_is_for_a_person_and_stops_neither_this_run_nor_the_next(run_pdfs, plans, blobs, host):
    name = f"https://{host.format(ours=blobs.delivery_host)}/keto-meal-plan-x.pdf"
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
