"""Archive, prove, delete: what goes is in an archive exactly once, and nothing else goes."""

import json

import pytest

from scripts.lifecycle.archives.format import ObjectReader
from scripts.lifecycle.archives.keys import ArchiveKeys
from tests.lifecycle.archives.payments import ODD

RESTORE = ("restore", "--policy", "payment_transactions")


@pytest.mark.pooled
def test_what_is_due_is_archived_and_gone(run, payments, folder):
    payments.fill(50)
    done = run("--batch-size", "20")

    assert done.code == 0
    assert done.closing["event"] == "archive_completed"
    assert done.closing["records_deleted"] == 50
    assert done.closing["records_remaining"] == 0
    assert payments.catalogue() == [("sealed", 20), ("sealed", 20), ("sealed", 10)]
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 3
    payments.balance()
    (record,) = payments.link.execute("SELECT row_to_json(r) FROM ops.job_runs r").fetchone()
    assert (record["status"], record["records_processed"], record["batches"]) == ("completed", 50, 3)


def test_the_audit_names_the_archive(run, payments):
    payments.fill(3)
    run()
    (archive,) = payments.catalogue("id::text")[0]
    rows = payments.link.execute("SELECT DISTINCT action, reason, metadata ->> 'archive' FROM ops.audit_log").fetchall()
    assert rows == [("archive_then_delete", "retention_policy:payment_transactions/expired", archive)]


@pytest.mark.pooled
def test_what_comes_back_is_what_went(run, payments):
    payments.fill(60)
    run("--batch-size", "25")
    done = run(*RESTORE)
    assert done.code == 0
    assert done.event("records_restored")["records_restored"] == 60
    assert payments.rows() == payments.due | payments.survivors
    assert sorted(payments.audited("restore")) == sorted(payments.due)


def test_a_second_restore_does_nothing(run, payments):
    payments.fill(10)
    run()
    run(*RESTORE)
    again = run(*RESTORE)
    assert (again.code, again.event("records_restored")["records_restored"]) == (0, 0)
    assert again.event("records_restored")["records_present"] == 10
    assert len(payments.audited("restore")) == 10


def test_one_row_comes_back_by_its_key(run, payments):
    payments.fill(30)
    run("--batch-size", "10")
    done = run(*RESTORE, "--id", payments.id(17))
    assert done.code == 0
    assert payments.rows() == payments.survivors | {payments.id(17): payments.due[payments.id(17)]}
    assert len(done.events("archive_restored")) == 1  # the audit knew which


def test_rows_come_back_into_a_table_beside(run, payments):
    payments.fill(5)
    run()
    payments.link.execute(
        "CREATE TABLE public.payments_again (LIKE public.payment_transactions);"
        " GRANT SELECT, INSERT ON public.payments_again TO lifecycle_jobs"
    )
    for _ in range(2):
        assert run(*RESTORE, "--into", "public.payments_again").code == 0
    assert payments.rows("public.payments_again") == payments.due
    assert payments.rows() == payments.survivors


def test_a_row_that_was_restored_and_archived_again_is_not_doubled(run, payments):
    payments.fill(5)
    run()
    run(*RESTORE)
    assert run().code == 0
    assert payments.rows() == payments.survivors
    assert len(payments.audited()) == 10
    run(*RESTORE)
    assert payments.rows() == payments.due | payments.survivors


def test_a_dry_run_writes_nothing_anywhere(run, payments, folder, redis_client):
    payments.fill(8)
    done = run("--dry-run")
    assert (done.code, done.closing["records_to_delete"]) == (0, 8)
    assert list(folder.iterdir()) == []
    assert redis_client.keys() == []
    for table in ("archives", "archive_keys", "audit_batches", "job_runs", "leases", "policy_versions"):
        assert payments.link.execute(f"SELECT count(*) FROM ops.{table}").fetchone() == (0,)
    payments.balance(left=8)


def test_a_dry_run_predicts_the_run(run, payments):
    payments.fill(30)
    payments.hold(3)
    as_of = payments.link.execute("SELECT now()::text").fetchone()[0].replace(" ", "T")
    predicted, done = run("--dry-run", "--as-of", as_of), run("--as-of", as_of)
    assert predicted.closing["records_to_delete"] == done.closing["records_deleted"] == 29
    assert predicted.closing["records_held"] == done.closing["records_held"] == 1
    payments.balance(left=1)


def test_a_limit_is_kept_to_the_row(run, payments):
    payments.fill(30)
    done = run("--limit", "7", "--batch-size", "5")
    assert (done.code, done.closing["records_deleted"], done.closing["stop_reason"]) == (0, 7, "limit_reached")
    assert payments.catalogue() == [("sealed", 5), ("sealed", 2)]
    payments.balance(left=23)


def test_a_rollout_goes_step_by_step(run, payments):
    payments.fill(110)
    done = run("--rollout")
    assert done.code == 0
    assert [rows for _, rows in payments.catalogue()] == [10, 100]
    payments.balance()


def test_too_many_rows_are_not_archived_unasked(run, payments, policy_file):
    payments.fill(12)
    flags = policy_file(max_rows=10)
    done = run(*flags)
    assert (done.code, done.closing["stop_reason"]) == (1, "cap_exceeded")
    payments.balance(left=12)
    assert run(*flags, "--confirm-cap", "12").code == 0
    payments.balance()


def test_run_is_what_happens_without_a_verb(run, payments):
    payments.fill(4)
    assert run("run", "--limit", "2").closing["records_deleted"] == 2
    assert run("run").closing["records_deleted"] == 2
    payments.balance()


def test_a_row_under_a_person_s_hold_stays(run, payments):
    payments.fill(20)
    payments.link.execute(
        "INSERT INTO ops.legal_holds (scope, person, reason, placed_by)"
        " VALUES ('person', 'person.4@example.com', 'test', 'test')"
    )
    done = run()
    held = {payments.id(number) for number in range(1, 21) if number % 9 == 4}
    assert payments.rows().keys() == payments.survivors.keys() | held
    assert done.closing["records_held"] == len(held)
    payments.balance(left=len(held))


def test_nothing_personal_can_be_read_from_the_objects_or_said_by_the_job(run, payments, folder):
    payments.fill(40)
    done = run("--verbose")
    data = b"".join(path.read_bytes() for path in folder.rglob("*.archive"))
    assert b"xample.com" not in data
    assert "xample.com" not in json.dumps(done.lines)
    for table in ("archives", "archive_keys", "audit_batches"):
        (text,) = payments.link.execute(f"SELECT string_agg(t::text, '') FROM ops.{table} t").fetchone()
        assert "xample.com" not in text


def test_the_header_says_what_it_is(run, payments, folder, db, settings):
    payments.fill(3)
    run()
    (path,) = folder.rglob("*.archive")
    reader = ObjectReader("x", [path.read_bytes()])
    ((archive,),) = payments.catalogue("id")
    assert reader.header == {}, "nobody has sealed it so far"
    list(reader.blocks(ArchiveKeys(db, settings).object_key(archive)))
    header = reader.header
    assert header["table"] == "public.payment_transactions"
    assert ["amount", "numeric(10,2)"] in header["columns"]
    assert header["personal"] == ["customer_email", "normalized_email"]
    manifest, oldest, newest = payments.link.execute("SELECT manifest, oldest, newest FROM ops.archives").fetchone()
    assert manifest.items() >= header.items()
    assert (manifest["rows"], len(manifest["sha256"]), len(manifest["content_sha256"])) == (3, 64, 64)
    assert oldest < newest


def test_the_list_shows_every_archive(run, payments):
    payments.fill(30)
    run("--batch-size", "10")
    listed = run("list").events("archive")
    assert [each["rows"] for each in listed] == [10, 10, 10]
    assert {each["status"] for each in listed} == {"sealed"}


def test_verify_finds_nothing_wrong(run, payments):
    payments.fill(30)
    run("--batch-size", "10")
    done = run("verify")
    assert (done.code, done.event("archives_intact")["rows"]) == (0, 30)


def test_archives_whose_own_period_is_over_expire(run, payments, folder):
    payments.fill(5)
    run()
    payments.link.execute(
        "UPDATE ops.archives SET sealed_at = sealed_at - interval '3 years 1 day', created_at = created_at - interval '3 years 1 day'"
    )
    payments.link.execute("UPDATE ops.archive_keys SET last_used_on = last_used_on - 1100 WHERE kind = 'person'")
    assert run("--dry-run").event("archives_would_expire")["archives"] == 1
    assert list(folder.rglob("*.archive"))
    done = run()
    assert (done.code, done.event("archives_expired")["archives"]) == (0, 1)
    assert list(folder.rglob("*.archive")) == []
    assert payments.statuses() == ["expired"]
    assert payments.link.execute(
        "SELECT count(*) FROM ops.archive_keys WHERE kind <> 'lookup' AND wrapped IS NOT NULL"
    ).fetchone() == (0,)
    assert payments.link.execute("SELECT count(*) FROM ops.audit_log WHERE action = 'archive_expired'").fetchone() == (
        1,
    )


def test_an_object_that_cannot_be_deleted_does_not_keep_the_others(run, payments, folder):
    payments.fill(15)
    run("--batch-size", "5")
    payments.link.execute("UPDATE ops.archives SET sealed_at = sealed_at - interval '4 years'")
    stuck = folder / "payment_transactions" / f"{payments.catalogue('id')[-1][0]}.archive"
    stuck.unlink()
    (stuck / "in the way").mkdir(parents=True)

    done = run()

    assert (done.code, done.event("archives_expired")["archives"]) == (1, 2)
    assert stuck.name in done.event("archive_not_deleted")["object"]
    assert sorted(payments.statuses()) == ["expired", "expired", "expiring"]
    (stuck / "in the way").rmdir()
    stuck.rmdir()
    assert run().code == 0
    assert payments.statuses() == ["expired"] * 3


@pytest.mark.parametrize(
    "hold",
    [
        "('table', 'public.payment_transactions', NULL, NULL)",
        "('row', 'public.payment_transactions', '00000002-0000-4000-8000-000000000000', NULL)",
        "('person', NULL, NULL, 'person.3@example.com')",
    ],
)
def test_a_hold_keeps_archives_too(run, payments, folder, hold):
    payments.fill(5)
    run()
    payments.link.execute("UPDATE ops.archives SET sealed_at = sealed_at - interval '4 years'")
    payments.link.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, person, reason, placed_by)"
        f" SELECT *, 'test', 'test' FROM (VALUES {hold}) h (a, b, c, d)"
    )
    done = run()
    assert done.code == 0
    expired = done.event("archives_expired")
    assert (expired["archives"], expired["held"]) == (0, 1)
    assert payments.statuses() == ["sealed"]
    assert list(folder.rglob("*.archive"))


def test_a_shorter_period_of_the_archive_is_asked_about(run, payments, policy_file):
    payments.fill(5)
    run()
    shorter = policy_file(archive={"personal": ["customer_email", "normalized_email"], "keep": "1 year", "rows": 20000})
    done = run(*shorter)
    assert (done.code, done.closing["stop_reason"]) == (1, "cap_exceeded")
    assert "archive" in done.closing["error"]
    assert run(*shorter, "--confirm-cap", "1").code == 0


def test_the_odd_text_is_really_odd():
    assert all(each in ODD for each in "\t\n\r\\")


def test_the_last_archive_looks_at_no_more_rows_than_the_first(run, payments):
    """Every statement stays within its window: over all archives a row is looked at a few times, whatever their number."""
    payments.fill(2000)
    payments.link.execute("ANALYZE payment_transactions")
    assert run("--batch-size", "50", "--confirm-cap", "2000").code == 0
    (looked,) = payments.link.execute(
        "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_user_tables WHERE relname = 'payment_transactions'"
    ).fetchone()
    assert looked < 10 * 2000
    payments.balance()
