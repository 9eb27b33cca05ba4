"""The store compared with the rows: what neither side knows of the other is put right, and nothing else is touched."""

import time

import pytest

from backend.blob_faults import ALWAYS
from backend.blob_server import BlobServer
from backend.blob_store import BlobStore

KEY = {"AUDIT_PSEUDONYM_KEY": "k1:" + "ab" * 32}
DAY = 86_400.0


@pytest.fixture
def reconcile(run_pdfs):
    """A function that runs cleanup_pdfs --reconcile."""
    return lambda *arguments, **settings: run_pdfs("--reconcile", *arguments, **(KEY | settings))


@pytest.fixture
def orphan(blobs):
    """A function that puts a blob that no row names."""

    def put(name, age_days=30.0):
        blobs.put(name, b"%PDF", overwrite=True, uploaded_at=time.time() - age_days * DAY)
        return name

    return put


def actions(plans):
    rows = plans.link.execute("SELECT action, reason, count(*) FROM ops.audit_log GROUP BY 1, 2 ORDER BY 1, 2")
    return rows.fetchall()


def test_orphans_go_and_rows_without_a_blob_are_finalised(reconcile, plans, blobs, orphan):
    plans.add(range(20), age="10 days")
    plans.add([30, 31], age="10 days", put=False)
    lost = [orphan(f"meal-plans/lost-{n}.pdf") for n in range(3)]
    young = orphan("meal-plans/young.pdf", age_days=6.9)
    elsewhere = orphan("avatars/someone.png")

    predicted = reconcile("--dry-run")
    assert (predicted.code, predicted.closing["records_to_delete"]) == (0, 5)
    assert actions(plans) == []

    done = reconcile()
    assert (done.code, done.closing["records_deleted"]) == (0, 5)
    assert [blobs.get(name) for name in lost] == [None] * 3
    assert blobs.get(young)
    assert blobs.get(elsewhere)
    assert plans.there(range(20)) == set(range(20))
    assert plans.finalised() == {plans.id(30), plans.id(31)}
    assert actions(plans) == [
        ("blob_gone", "retention_policy:meal_plan_pdfs/gone", 2),
        ("delete_blob", "retention_policy:meal_plan_pdfs/orphaned", 3),
    ]
    ids = plans.link.execute("SELECT resource_id FROM ops.audit_log WHERE action = 'delete_blob'").fetchall()
    assert all(name.startswith("k1:") and len(name) == 67 for (name,) in ids)
    again = reconcile()
    assert (again.code, again.closing["records_deleted"]) == (0, 0)


def test_a_row_that_names_its_blob_by_url_knows_it(reconcile, plans, blobs):
    plans.add(range(5), age="10 days", name=lambda n: blobs.url_of(plans.path(n)))
    for n in range(5):
        blobs.put(plans.path(n), b"%PDF", overwrite=True, uploaded_at=time.time() - 30 * DAY)
    assert reconcile().closing["records_deleted"] == 0
    assert plans.there(range(5)) == set(range(5))


def test_a_url_of_the_other_kind_of_store_is_asked_for_by_its_pathname(reconcile, plans, blobs):
    plans.add(
        [1], age="10 days", name=lambda n: blobs.url_of(plans.path(n)).replace(".public.", ".private."), put=False
    )
    done = reconcile()
    assert (done.code, done.closing["records_deleted"]) == (0, 1)
    assert plans.finalised() == {plans.id(1)}


def test_names_that_sort_differently_as_text_and_as_bytes(reconcile, plans, blobs, orphan):
    names = ["meal-plans/Ä b.pdf", "meal-plans/a%20b.pdf", "meal-plans/B.pdf", "meal-plans/b.pdf", "meal-plans/😀.pdf"]
    for number, name in enumerate(names):
        plans.add([number], age="10 days", name=lambda _, name=name: name, put=False)
        orphan(name)
    assert reconcile().closing["records_deleted"] == 0


def test_more_blobs_than_a_page(reconcile, plans, blobs):
    for _ in blobs.populate(2500, "meal-plans/old-", on_disk=False, uploaded_at=time.time() - 30 * DAY):
        pass
    plans.add(range(3), age="10 days")
    assert reconcile().closing["records_deleted"] == 2500
    assert blobs.count("meal-plans/") == 3


@pytest.mark.parametrize("scope", ["row", "table"])
def test_what_is_held_stays_as_it_is(reconcile, plans, blobs, orphan, scope):
    plans.add([1], age="10 days", put=False)
    kept = orphan("meal-plans/lost.pdf")
    plans.link.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
        " VALUES (%s, 'public.meal_plans', %s, 'r', 'me')",
        (scope, plans.id(1) if scope == "row" else None),
    )
    reconcile()
    assert plans.finalised() == set()
    assert (blobs.get(kept) is not None) == (scope == "table")


def test_the_wrong_store_is_refused(reconcile, plans, tmp_path, blobs):
    plans.add(range(150), age="10 days")
    with BlobServer(tmp_path / "empty", token=f"vercel_blob_rw_{blobs.store_id}_x") as other:
        done = reconcile(**other.settings())
    assert (done.code, done.closing["stop_reason"]) == (1, "cap_exceeded")
    assert "150 of 150 rows seem to have lost their blob" in done.closing["error"]
    assert plans.finalised() == set()


def test_a_row_that_begins_to_name_an_orphan_keeps_it(reconcile, plans, blobs, orphan):
    name = orphan("meal-plans/found-again.pdf")
    plans.link.execute(
        "CREATE FUNCTION public.name_it() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        " UPDATE meal_plans SET pdf_blob_path = 'meal-plans/found-again.pdf'; RETURN NULL; END $$;"
        " CREATE TRIGGER name_it AFTER INSERT ON ops.blob_deletions FOR EACH STATEMENT EXECUTE FUNCTION name_it()"
    )
    plans.add([1], age="10 days")
    reconcile()
    assert blobs.get(name)
    assert set(plans.reasons().values()) == {"named_by_a_row"}


def test_a_store_that_fails_while_it_lists_changes_nothing(reconcile, plans, blobs, orphan):
    plans.add([1], age="10 days", put=False)
    orphan("meal-plans/lost.pdf")
    blobs.faults.change({"failing_calls": ALWAYS, "operations": ["list"]})
    done = reconcile()
    assert done.code == 1
    assert actions(plans) == []


def test_an_unordered_listing_changes_nothing(reconcile, plans, orphan, monkeypatch, blobs):
    orphan("meal-plans/a.pdf")
    orphan("meal-plans/b.pdf")
    page = BlobStore.page

    def reversed_page(store, **options):
        found = page(store, **options)
        found.blobs.reverse()
        return found

    monkeypatch.setattr(BlobStore, "page", reversed_page)
    done = reconcile()
    assert (done.code, done.closing["stop_reason"]) == (1, "unordered_listing")
    assert blobs.get("meal-plans/a.pdf")


def test_without_a_key_for_pseudonyms_it_is_misconfigured(run_pdfs):
    done = run_pdfs("--reconcile")
    assert done.code == 2
    assert "AUDIT_PSEUDONYM_KEY is not set" in done.closing["error"]
