"""Actions that keep the row: what must be true of the columns that they write, and what stands in them afterwards."""

from __future__ import annotations

import pytest

from backend.blob_server import BlobServer
from tests.lifecycle.support import add_things, audited, left, policy, record

COLUMNS = "ALTER TABLE things ADD gone boolean, ADD gone_at timestamptz, ADD pdf text"
MARKED = {"action": "soft_delete", "soft_delete": {"flag": "gone", "deleted_at": "gone_at"}}
BLOB = {
    "column": "pdf",
    "deleted_at": "gone_at",
    "prefix": "pdfs/",
    "orphans": "7 days",
    "item_type": "pdf_deletion_failed",
    "priority": "low",
}
EMPTIED = {"action": "delete_blob", "blob": BLOB}


@pytest.fixture
def blobs(tmp_path, monkeypatch):
    """A store, and the settings that point to it."""
    with BlobServer(tmp_path / "store") as server:
        for name, value in server.settings().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def marked(things):
    """Things, nine of them due, with the columns that an action may write; each has a PDF."""
    things.execute(COLUMNS)
    add_things(things, 1, 9)
    things.execute("UPDATE things SET pdf = 'pdfs/' || id")
    return things


WRONG = {
    "no flag": ("ALTER TABLE things DROP gone", MARKED, "column public.things.gone does not exist"),
    "no moment": ("ALTER TABLE things DROP gone_at", MARKED, "column public.things.gone_at does not exist"),
    "text flag": ("ALTER TABLE things ALTER gone TYPE text", MARKED, "public.things.gone is not a boolean"),
    "text moment": (
        "ALTER TABLE things ALTER gone_at TYPE text",
        MARKED,
        "public.things.gone_at is not a date or timestamp",
    ),
    "may not set the flag": (
        "REVOKE UPDATE (gone) ON things FROM lifecycle_jobs",
        MARKED,
        "no right to UPDATE public.things.gone for policies.things.soft_delete (line 25): run backend/migrate.py",
    ),
    "may not set the moment": (
        "REVOKE UPDATE (gone_at) ON things FROM lifecycle_jobs",
        MARKED,
        "no right to UPDATE public.things.gone_at",
    ),
    "no blob column": ("ALTER TABLE things DROP pdf", EMPTIED, "column public.things.pdf does not exist"),
    "blob column not null": (
        "ALTER TABLE things ALTER pdf SET NOT NULL",
        EMPTIED,
        "public.things.pdf may not be null: say blob.cleared, such as ''",
    ),
    "blob moment a number": (
        "ALTER TABLE things ALTER gone_at TYPE bigint USING NULL",
        EMPTIED,
        "public.things.gone_at is not a date or timestamp",
    ),
    "may not clear": (
        "REVOKE UPDATE (pdf) ON things FROM lifecycle_jobs",
        EMPTIED,
        "no right to UPDATE public.things.pdf",
    ),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_what_the_database_contradicts_stops_the_policy(apply, marked, blobs, case, arguments):
    statement, action, said = WRONG[case]
    for number in range(1, 10):
        blobs.put(f"pdfs/{number}", b"%PDF")
    apply({"things": policy(**action)}, "--dry-run")  # grants what is usual
    marked.execute(statement)

    run = apply({"things": policy(**action)}, *arguments, grant=False)

    assert (run.code, run.closing["stop_reason"]) == (1, "preflight_failed")
    assert said in run.closing["error"]
    assert left(marked) == list(range(1, 10))
    assert audited(marked, action="soft_delete") == audited(marked, action="delete_blob") == []
    assert (blobs.count(), blobs.counters.requests) == (9, 0)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT",
        "ALTER TABLE things ALTER gone_at TYPE timestamp",
        "ALTER TABLE things ALTER gone_at TYPE date",
        "ALTER TABLE things ALTER gone SET DEFAULT false; UPDATE things SET gone = false",
    ],
)
def test_rows_are_marked_with_the_flag_and_the_moment(apply, marked, statement):
    marked.execute(statement)
    add_things(marked, 11, 12, days=1)

    run = apply({"things": policy(**MARKED)})

    assert (run.code, run.closing["records_deleted"]) == (0, 9)
    rows = marked.execute(
        "SELECT id, gone, abs(extract(epoch FROM gone_at - timezone('UTC', now()))) < 172800 FROM things ORDER BY id"
    ).fetchall()
    assert rows[:9] == [(number, True, True) for number in range(1, 10)]
    assert {flag for _, flag, _ in rows[9:]} <= {None, False}
    assert audited(marked, action="soft_delete") == [str(number) for number in range(1, 10)]
    assert apply({"things": policy(**MARKED)}).closing["records_deleted"] == 0


def test_rows_without_a_flag_are_marked_by_the_moment_alone(apply, marked):
    changes = {"action": "soft_delete", "soft_delete": {"deleted_at": "gone_at"}}
    assert apply({"things": policy(**changes)}).closing["records_deleted"] == 9
    assert marked.execute("SELECT count(*), count(gone) FROM things WHERE gone_at IS NOT NULL").fetchone() == (9, 0)
    assert apply({"things": policy(**changes)}).closing["records_deleted"] == 0


@pytest.mark.parametrize(("cleared", "constraint"), [("", "SET NOT NULL"), ("expired", "SET NOT NULL"), (None, None)])
@pytest.mark.parametrize("moment", ["gone_at", None])
def test_a_blob_column_is_cleared_with_what_the_policy_says(apply, marked, blobs, cleared, constraint, moment):
    marked.execute("CREATE INDEX ON things (pdf)")
    if constraint:
        marked.execute(f"ALTER TABLE things ALTER pdf {constraint}")
    for number in range(1, 10):
        blobs.put(f"pdfs/{number}", b"%PDF")
    policies = {"things": policy(action="delete_blob", blob=BLOB | {"cleared": cleared, "deleted_at": moment})}

    predicted, done = apply(policies, "--dry-run"), apply(policies)

    assert (done.code, predicted.closing["records_to_delete"], done.closing["records_deleted"]) == (0, 9, 9)
    assert marked.execute("SELECT DISTINCT pdf, gone_at IS NOT NULL FROM things").fetchall() == [
        (cleared, moment is not None)
    ]
    assert (blobs.count(), len(audited(marked, action="delete_blob"))) == (0, 9)
    again = apply(policies)
    assert (again.code, again.closing["records_deleted"], again.closing["records_remaining"]) == (0, 0, 0)
    assert record(marked)["status"] == "completed"
