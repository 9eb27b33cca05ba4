"""All that is known of a person, in one file for her."""

import json
import stat
import zipfile

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.policy.exported import left_out
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from scripts.lifecycle.policy.policy_set import PolicySet
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
    secret = {"users": "password_hash", "magic_link_tokens": "token_hash"}
    assert rows == {
        table: [{name: value for name, value in row.items() if name != secret.get(table)} for row in found]
        for table, found in world.of(PERSON).items()
    }
    assert sorted(item["about"] for item in queue) == ["public.payment_transactions", "public.users"]
    assert rows["quiz_responses"][0]["quiz_data"]["name"] == NAME
    assert list(pdfs.values()) == [f"%PDF-1.7 for {NAME}, {ADDRESS}".encode()]
    assert done.event("export_written")["records"]["blobs"] == 1
    assert PERSON not in done.output


SECRETS = {"public.users": ["password_hash"], "public.magic_link_tokens": ["token_hash"]}


@pytest.fixture
def exported(erase, tmp_path):
    """A function that exports, and returns the run, what the file says of itself and what it holds."""

    def export(*flags, **changes):
        output = tmp_path / "export.zip"
        done = erase("--export", "-", "--output", str(output), *flags, stdin=f"{ADDRESS}\n", **changes)
        with zipfile.ZipFile(output) as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
        return done, json.loads(held.pop("about.json")), held

    return export


def test_a_pdf_that_cannot_be_had_is_listed_and_the_rest_is_there(world, person, exported, blobs):
    path = f"keto-meal-plan-{person['meal_plans']}.pdf"
    blobs.delete([path])
    done, about, held = exported()
    assert (done.code, "the content of a blob could not be had" in done.closing["error"]) == (1, True)
    assert [each["what"] for each in about["missing"]] == [f"the content of {path}"]
    assert path not in done.output
    assert len(json.loads(held["public.meal_plans.json"])) == 1


def test_without_a_token_the_rows_are_there_and_the_variable_is_named(person, exported):
    done, about, held = exported(BLOB_READ_WRITE_TOKEN=None)
    assert (done.code, "BLOB_READ_WRITE_TOKEN" in done.closing["error"]) == (1, True)
    assert len(about["missing"]) == 1
    assert json.loads(held["public.users.json"])[0]["email"] == ADDRESS


@pytest.mark.parametrize("name", ["ARCHIVE_MASTER_KEY", "ARCHIVE_URL"])
def test_without_what_opens_archives_the_rest_is_there_and_the_variable_is_named(world, exported, erase, name):
    world.payment(PERSON, address=ADDRESS)
    assert erase("run", script=ARCHIVE).code == 0
    world.add(PERSON, address=ADDRESS, name=NAME)
    done, about, held = exported(**{name: None})
    assert (done.code, name in done.closing["error"]) == (1, True)
    assert [each["what"] for each in about["missing"]] == ["archives/public.payment_transactions"]
    assert json.loads(held["public.users.json"])[0]["email"] == ADDRESS


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ("DROP TABLE magic_link_tokens", "public.magic_link_tokens"),
        ("REVOKE SELECT ON magic_link_tokens FROM lifecycle_export", "public.magic_link_tokens"),
        ("ALTER TABLE magic_link_tokens RENAME normalized_email TO address", "public.magic_link_tokens"),
    ],
)
def test_a_table_that_cannot_be_read_is_listed_and_the_others_are_there(world, person, exported, change, missing):
    world.link.execute(change)
    done, about, held = exported()
    assert done.code == 1
    assert missing in {each["what"] for each in about["missing"]}
    assert json.loads(held["public.users.json"])[0]["email"] == ADDRESS
    assert len([name for name in held if name.startswith("blobs/")]) == 1


def test_secrets_are_left_out_and_so_is_what_the_policy_file_names(world, person, exported, tmp_path, database):
    world.link.execute("UPDATE users SET password_hash = 'the-hash'")
    _, about, held = exported()
    assert about["left_out"] == SECRETS
    assert "password_hash" not in json.loads(held["public.users.json"])[0]
    assert b"the-hash" not in held["public.users.json"]

    document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    document["erasure"]["users"]["not_exported"] = ["updated_at"]
    document["erasure"]["magic_link_tokens"]["not_exported"] = []
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    done, about, held = exported("--policy-file", "p.yaml")
    assert (done.code, [each["what"] for each in about["missing"]]) == (
        1,
        ["public.users.password_hash", "public.magic_link_tokens.token_hash"],
    )
    migrate.grant(database.superuser_url, tmp_path / "p.yaml")
    done, about, held = exported("--policy-file", "p.yaml")
    assert (done.code, about["missing"]) == (0, [])
    assert about["left_out"] == {"public.users": ["updated_at"]}
    assert json.loads(held["public.users.json"])[0]["password_hash"] == "the-hash"


def test_the_jobs_role_alone_exports_what_it_may_read_and_lists_the_rest(world, person, exported):
    done, about, held = exported(EXPORT_DATABASE_URL=None)
    assert done.code == 1
    assert "EXPORT_DATABASE_URL" in done.closing["error"]
    missing = {each["what"] for each in about["missing"]}
    assert {"public.quiz_responses.quiz_data", "public.users.email"} < missing
    assert not missing & {"public.users.password_hash", "public.magic_link_tokens.token_hash"}
    assert json.loads(held["public.quiz_responses.json"])[0].keys() >= {"id", "normalized_email"}


@pytest.mark.parametrize(
    ("column", "secret"),
    [
        ("password_hash", True),
        ("passwordHash", True),
        ("reset_token", True),
        ("api_key", True),
        ("totp_secret", True),
        ("passwordhash", True),
        ("unsubscribeSecretHex", True),
        ("sessiontoken", True),
        ("twofa_key", True),
        ("secretary", False),
        ("twofa_type", False),
        ("token_count", False),
        ("passenger", False),
        ("country_code", False),
        ("normalized_email", False),
    ],
)
def test_what_a_secret_is_called(column, secret):
    assert left_out(PolicySet({}, {}, "", ""), "public.users", [column]) == ([column] if secret else [])


def test_it_is_never_printed(person, erase):
    assert erase("export", "-", stdin=f"{ADDRESS}\n").code == 2


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
