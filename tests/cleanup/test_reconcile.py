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
    lost = [orphan(f"keto-meal-plan-lost-{n}.pdf") for n in range(3)]
    young = orphan("keto-meal-plan-young.pdf", age_days=6.9)
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
    names = [
        "keto-meal-plan-Ä b.pdf",
        "keto-meal-plan-a%20b.pdf",
        "keto-meal-plan-B.pdf",
        "keto-meal-plan-b.pdf",
        "keto-meal-plan-😀.pdf",
    ]
    for number, name in enumerate(names):
        plans.add([number], age="10 days", name=lambda _, name=name: name, put=False)
        orphan(name)
    assert reconcile().closing["records_deleted"] == 0


def test_more_blobs_than_a_page(reconcile, plans, blobs):
    for _ in blobs.populate(2500, "keto-meal-plan-old-", on_disk=False, uploaded_at=time.time() - 30 * DAY):
        pass
    plans.add(range(3), age="10 days")
    assert reconcile().closing["records_deleted"] == 2500
    assert blobs.count("keto-meal-plan-") == 3


@pytest.mark.parametrize("scope", ["row", "table"])
def test_what_is_held_stays_as_it_is(reconcile, plans, blobs, orphan, scope):
    plans.add([1], age="10 days", put=False)
    kept = orphan("keto-meal-plan-lost.pdf")
    plans.link.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
        " VALUES (%s, 'public.meal_plans', %s, 'r', 'me')",
        (scope, plans.id(1) if scope == "row" else None),
    )
    predicted, done = reconcile("--dry-run"), reconcile()
    assert predicted.closing["records_to_delete"] == done.closing["records_deleted"]
    assert plans.finalised() == set()
    assert (blobs.get(kept) is not None) == (scope == "table")


def test_the_wrong_store_is_refused(reconcile, plans, tmp_path, blobs):
    plans.add(range(150), age="10 days")
    with BlobServer(tmp_path / "empty", token=f"vercel_blob_rw_{blobs.store_id}_x") as other:
        done = reconcile(**other.settings())
    assert (done.code, done.closing["stop_reason"]) == (1, "cap_exceeded")
    assert "150 of 150 rows seem to have lost their blob" in done.closing["error"]
    assert plans.finalised() == set()


@pytest.mark.parametrize("spelling", ["keto-meal-plan-found%20again.pdf?x", " keto-meal-plan-found again.pdf"])
def test_a_row_that_begins_to_name_an_orphan_keeps_it(reconcile, plans, blobs, orphan, spelling):
    name = orphan("keto-meal-plan-found again.pdf")
    plans.link.execute(
        "CREATE FUNCTION public.name_it() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        f" UPDATE meal_plans SET pdf_blob_path = '{spelling}'; RETURN NULL; END $$;"
        " CREATE TRIGGER name_it AFTER INSERT ON ops.blob_deletions FOR EACH STATEMENT EXECUTE FUNCTION name_it()"
    )
    plans.add([1], age="10 days")
    reconcile()
    assert blobs.get(name)
    assert set(plans.reasons().values()) == {"named_by_a_row"}


def test_a_store_that_fails_while_it_lists_changes_nothing(reconcile, plans, blobs, orphan):
    plans.add([1], age="10 days", put=False)
    orphan("keto-meal-plan-lost.pdf")
    blobs.faults.change({"failing_calls": ALWAYS, "operations": ["list"]})
    done = reconcile()
    assert done.code == 1
    assert actions(plans) == []


def test_no_order_is_asked_of_the_listing(reconcile, plans, orphan, monkeypatch, blobs):
    plans.add(range(5), age="10 days")
    orphan("keto-meal-plan-a.pdf")
    orphan("keto-meal-plan-b.pdf")
    page = BlobStore.page

    def reversed_page(store, **options):
        found = page(store, **options)
        found.blobs.reverse()
        return found

    monkeypatch.setattr(BlobStore, "page", reversed_page)
    assert reconcile().closing["records_deleted"] == 2
    assert plans.there(range(5)) == set(range(5))


@pytest.fixture
def pages_of_seven(monkeypatch):
    monkeypatch.setattr("scripts.utils.blob_client.PAGE", 7)


def names_of_twenty(blobs):
    return [
        f"keto-meal-plan-plan {n:03}.pdf" for n in range(1, 21)
    ], f"https://{blobs.delivery_host}/keto-meal-plan-plan%20"


ODD = [" {url}021.pdf", "\xa0{url}005.pdf", "keto-meal-plan-%zz.pdf", "{url}%ff.pdf", "zzz", "~~~ä/x", "://"]


@pytest.mark.parametrize("odd", ODD)
def test_one_odd_value_neither_deletes_nor_blocks_anything_but_itself(
    reconcile, plans, blobs, orphan, pages_of_seven, odd
):
    names, url = names_of_twenty(blobs)
    plans.add(range(1, 21), age="10 days", name=lambda n: f"{url}{n:03}.pdf", put=False)
    plans.add([99], age="10 days", name=lambda _: odd.format(url=url), put=False)
    lost = [
        orphan(name)
        for name in ("keto-meal-plan-lost.pdf", "keto-meal-plan-plan%20001.pdf.bak", "keto-meal-plan-ä.pdf")
    ]
    for name in names:
        orphan(name)

    predicted, done = reconcile("--dry-run"), reconcile()

    assert (predicted.closing["records_to_delete"], done.closing["records_deleted"]) == (3, 3)
    assert [blobs.get(name) is not None for name in names] == [True] * 20
    assert [blobs.get(name) for name in lost] == [None] * 3
    assert plans.finalised() == set()


def test_what_may_mean_a_blob_keeps_it_from_being_an_orphan(reconcile, plans, blobs, orphan):
    values = {
        "keto-meal-plan-a b.pdf": "keto-meal-plan-a%20b.pdf",
        "keto-meal-plan-c.pdf": " keto-meal-plan-c.pdf",
        "keto-meal-plan-d.pdf": "https://cdn.example.com/keto-meal-plan-d.pdf",
        "keto-meal-plan-e.pdf": "keto-meal-plan-e.pdf?download=1",
        "keto-meal-plan-f.pdf": f"//{blobs.delivery_host}/keto-meal-plan-f.pdf",
    }
    for number, (pathname, value) in enumerate(values.items()):
        orphan(pathname)
        plans.add([number], age="10 days", name=lambda _, value=value: value, put=False)
    predicted, done = reconcile("--dry-run"), reconcile()
    assert (predicted.closing["records_to_delete"], done.closing["records_deleted"]) == (0, 0)
    assert all(blobs.get(pathname) for pathname in values)
    assert plans.finalised() == set()


def test_rows_of_another_store_need_nothing_of_this_one(reconcile, plans, blobs, orphan):
    name = orphan("keto-meal-plan-a.pdf")
    plans.add([1], age="10 days", name=lambda _: f"https://other.public.blob.vercel-storage.com/{name}", put=False)
    assert reconcile("--dry-run").closing["records_to_delete"] == 1
    assert reconcile().closing["records_deleted"] == 1
    assert blobs.get(name) is None
    assert plans.finalised() == set()


@pytest.mark.parametrize("limit", [1, 3, 4])
def test_a_limit_is_predicted_as_it_is_kept(reconcile, plans, blobs, orphan, limit):
    plans.add(range(2), age="10 days", put=False)
    for n in range(3):
        orphan(f"keto-meal-plan-lost-{n}.pdf")
    predicted = reconcile("--dry-run", "--limit", str(limit))
    assert predicted.closing["records_to_delete"] == limit
    assert reconcile("--limit", str(limit)).closing["records_deleted"] == limit


def test_what_a_killed_run_left_open_is_predicted_too(reconcile, plans, blobs, orphan):
    name = orphan("keto-meal-plan-lost.pdf")
    plans.link.execute(
        "INSERT INTO ops.blob_deletions (policy, rule, table_name, resource_id, blob, run_id) VALUES"
        " ('meal_plan_pdfs', 'orphaned', 'public.meal_plans', 'k1:left', 'keto-meal-plan-gone.pdf', gen_random_uuid())"
    )
    plans.add([1])
    predicted, done = reconcile("--dry-run"), reconcile()
    assert (predicted.closing["records_to_delete"], done.closing["records_deleted"]) == (2, 2)
    assert blobs.get(name) is None
    assert plans.there([1]) == {1}, "what is due goes by its own run"


def test_without_a_key_for_pseudonyms_it_is_misconfigured(run_pdfs):
    done = run_pdfs("--reconcile")
    assert done.code == 2
    assert "AUDIT_PSEUDONYM_KEY is not set" in done.closing["error"]
