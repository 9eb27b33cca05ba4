"""All that is known of a person, in one file for her."""

import json
import stat
import zipfile

from tests.lifecycle.archives.payments import ODD
from tests.lifecycle.erasure.conftest import ARCHIVE
from tests.lifecycle.erasure.world import ADDRESS, NAME, PERSON


def test_all_rows_and_pdfs_of_hers_and_nobody_elses(world, person, erase, tmp_path):
    output = tmp_path / "export.zip"
    done = erase("--export", "-", "--output", str(output), stdin=f"{ADDRESS}\n")
    assert done.code == 0, done.output
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    with zipfile.ZipFile(output) as archive:
        rows = {
            name.removesuffix(".json").removeprefix("public."): json.loads(archive.read(name))
            for name in archive.namelist()
            if name.startswith("public.")
        }
        queue = json.loads(archive.read("ops.manual_resolution_queue.json"))
        pdfs = {name: archive.read(name) for name in archive.namelist() if name.startswith("blobs/")}
    assert rows == world.of(PERSON)
    assert sorted(item["about"] for item in queue) == ["public.payment_transactions", "public.users"]
    assert rows["quiz_responses"][0]["quiz_data"]["name"] == NAME
    assert list(pdfs.values()) == [f"%PDF-1.7 for {NAME}, {ADDRESS}".encode()]
    assert done.event("export_written")["records"]["blobs"] == 1
    assert PERSON not in done.output


def test_a_pdf_that_cannot_be_had_leaves_no_file(world, person, erase, tmp_path, blobs):
    blobs.delete([f"meal-plans/{person['meal_plans']}.pdf"])
    done = erase("--export", "-", "--output", str(tmp_path / "export.zip"), stdin=f"{ADDRESS}\n")
    assert (done.code, "the content of a blob could not be had" in done.closing["error"]) == (1, True)
    assert not [path for path in tmp_path.iterdir() if "export" in path.name]


def test_it_is_never_printed(person, erase):
    done = erase("--export", "-", stdin=f"{ADDRESS}\n")
    assert (done.code, "--output" in done.closing["error"]) == (2, True)


def test_what_lies_in_the_archives_is_hers_too(world, erase, tmp_path):
    keys = [world.payment(PERSON, address=f"{ODD}{ADDRESS}"), world.payment(PERSON, address=ADDRESS)]
    world.payment("other@example.com")
    live = {row["id"]: row for row in world.of(PERSON)["payment_transactions"]}
    assert erase("run", script=ARCHIVE).closing["records_deleted"] == 3
    output = tmp_path / "export.zip"
    assert erase("--export", "-", "--output", str(output), stdin=f"{ADDRESS}\n").code == 0
    with zipfile.ZipFile(output) as archive:
        assert archive.testzip() is None
        rows = json.loads(archive.read("archives/public.payment_transactions.json"))
    assert sorted(row["id"] for row in rows) == sorted(keys)
    for row in rows:
        before = live[row["id"]]
        assert {name: row[name] for name in ("customer_email", "normalized_email", "currency", "meal_plan_id")} == {
            name: before[name] for name in ("customer_email", "normalized_email", "currency", "meal_plan_id")
        }
        assert float(row["amount"]) == before["amount"]
