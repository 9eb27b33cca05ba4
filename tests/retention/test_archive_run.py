"""Archive, prove, delete: what goes is in an archive exactly once, and nothing else goes."""


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
