"""Decisions by one command line: carried out, audited, and the item closed; or nothing happened."""

from pathlib import Path

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.queue import verbs as queue_verbs

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
ROW = "00000000-0000-4000-8000-000000000001"
OTHER = "00000000-0000-4000-8000-000000000002"
PERSON = "anna@example.com"


def item(link, key):
    """Return an item's status, decision, and who decided."""
    return link.execute(
        "SELECT status, decision, resolved_by, assigned_to FROM ops.manual_resolution_queue WHERE id = %s", (key,)
    ).fetchone()


def audit(link, table):
    """Return the audit's entries about a table: actor, action, reason, resource, run."""
    return link.execute(
        "SELECT actor, action, reason, resource_id, run_id::text FROM ops.audit_log WHERE resource_type = %s ORDER BY seq",
        (table,),
    ).fetchall()


def left(link, table="quiz_responses"):
    return {key for (key,) in link.execute(f"SELECT id FROM {table}")}


def resolve(process, key, decision, *more, **settings):
    return process("resolve", key, "--decision", decision, "--reason", "looked into it", *more, **settings)


@pytest.mark.pooled
def test_a_row_is_deleted_through_the_engine_and_audited_to_the_operator(process, link, quiz, item_of):
    quiz(), quiz(OTHER)
    key = item_of("quiz_undelivered")
    said = resolve(process, key, "delete")
    assert (said.code, said.answer["happened"]) == (0, "the row was deleted")
    assert said.answer["item"]["status"] == "resolved"
    assert left(link) == {OTHER}
    assert item(link, key) == ("resolved", "delete", "operator:olga", "olga")
    assert audit(link, "public.quiz_responses") == [
        ("operator:olga", "delete", "decision:quiz_undelivered/delete", ROW, key)
    ]
    changes = [(actor, action) for actor, action, *_ in audit(link, "ops.manual_resolution_queue")]
    assert changes == [("operator:olga", "queue_item_claimed"), ("operator:olga", "queue_item_resolved")]
    assert "looked into it" not in str(link.execute("SELECT * FROM ops.audit_batches").fetchall())


@pytest.mark.parametrize(
    ("decision", "column"), [("delivered", "pdf_delivered_at IS NOT NULL"), ("refund", "payment_id IS NULL")]
)
def test_what_the_policy_file_says_is_done_to_the_row(call, process, link, quiz, item_of, decision, column):
    quiz()
    key = item_of("quiz_undelivered")
    assert resolve(process, key, decision).code == 0
    assert link.execute(f"SELECT {column} FROM quiz_responses").fetchone() == (True,)
    assert audit(link, "public.quiz_responses") == [
        ("operator:olga", "decide", f"decision:quiz_undelivered/{decision}", ROW, key)
    ]
    # It is out of the exception: the job does not raise it again.
    assert call(SCRIPTS / "cleanup" / "cleanup_quiz_responses.py").code == 0
    assert link.execute("SELECT count(*) FROM ops.manual_resolution_queue WHERE status <> 'resolved'").fetchone() == (
        0,
    )


def test_answers_are_attached_to_the_one_user_with_the_same_address(process, link, quiz, item_of):
    quiz()
    key = item_of("quiz_orphaned")
    said = resolve(process, key, "attach")
    assert said.code == 1
    assert "no row that it could be attached to" in said.error
    assert item(link, key) == ("pending", None, None, None)
    link.execute(
        "INSERT INTO users (id, email, normalized_email, created_at, updated_at) VALUES ('u1', %s, %s, now(), now())",
        (PERSON, PERSON),
    )
    assert resolve(process, key, "attach").code == 0
    assert link.execute("SELECT user_id FROM quiz_responses").fetchone() == ("u1",)
    link.execute("UPDATE quiz_responses SET user_id = NULL")
    link.execute(
        "INSERT INTO users (id, email, normalized_email, created_at, updated_at) VALUES ('u2', 'a2', %s, now(), now())",
        (PERSON,),
    )
    said = resolve(process, item_of("quiz_orphaned"), "attach")
    assert said.code == 1
    assert "more than one row" in said.error


def test_a_hold_outranks_the_operator(call, process, link, quiz, item_of):
    quiz()
    key = item_of("quiz_undelivered")
    hold = SCRIPTS / "retention" / "legal_holds.py"
    assert call(hold, "place", "--table", "public.quiz_responses", "--id", ROW, "--reason", "a case").code == 0
    said = resolve(process, key, "delete")
    assert said.code == 1
    assert "a legal hold keeps it" in said.error
    assert left(link) == {ROW}
    assert item(link, key) == ("pending", None, None, None)


def test_a_row_that_is_gone_needs_no_deleting(process, link, item_of):
    key = item_of("quiz_undelivered")
    assert resolve(process, key, "delete").answer["happened"] == "the row was gone already"
    assert item(link, key)[:2] == ("resolved", "delete")
    assert audit(link, "public.quiz_responses") == []


@pytest.mark.parametrize(("decision", "stays"), [("lift", False), ("reject", True)])
def test_a_dispute_is_lifted_or_rejected(process, link, item_of, decision, stays):
    link.execute(
        "INSERT INTO email_blacklist (id, normalized_email, reason, created_at, expires_at)"
        " VALUES (%s, %s, 'abuse', now(), now() + interval '9 days')",
        (ROW, PERSON),
    )
    key = item_of("blacklist_disputed", "public.email_blacklist")
    assert resolve(process, key, decision).code == 0
    assert left(link, "email_blacklist") == ({ROW} if stays else set())
    assert item(link, key)[:2] == ("resolved", decision)


def test_an_exception_is_kept_under_a_hold_and_released(call, process, link, quiz, item_of):
    quiz(paid=False)
    key = item_of("retention_exception")
    assert resolve(process, key, "keep").code == 2
    said = resolve(process, key, "keep", "--until", "30d")
    assert said.code == 0
    cleanup = SCRIPTS / "cleanup" / "cleanup_quiz_responses.py"
    assert call(cleanup).code == 0
    assert left(link) == {ROW}
    assert resolve(process, item_of("retention_exception"), "release").code == 0
    assert call(cleanup).code == 0
    assert left(link) == set()


def test_a_blob_is_retried_and_its_item_closed(call, process, link, plans, blobs):
    plans.add([1, 2])
    blobs.faults.unavailable = {plans.path(1)}
    assert call(SCRIPTS / "cleanup" / "cleanup_pdfs.py").code == 4
    key = str(link.execute("SELECT id FROM ops.manual_resolution_queue").fetchone()[0])
    seen = process("show", key).answer
    assert (seen["now"]["row"], seen["now"]["blob"]) == ("there", "could not be asked: service_unavailable")
    assert list(seen["decisions"]) == ["retry", "gone", "not_ours", "defer", "escalate"]
    said = resolve(process, key, "retry")
    assert (said.code, "the store did not say what became of the blob (service_unavailable)" in said.error) == (1, True)
    blobs.faults.reset()
    assert process("show", key).answer["now"]["blob"] == "still there"
    said = resolve(process, key, "gone")
    assert (said.code, "it is still there" in said.error) == (1, True)
    assert item(link, key) == ("pending", None, None, None)
    assert plans.named() == {plans.id(1)}
    assert resolve(process, key, "retry").answer["happened"] == "the blob is gone, and its row says so"
    assert plans.there([1]) == set()
    assert item(link, key) == ("resolved", "retry", "operator:olga", "olga")
    entry = ("operator:olga", "delete_blob", "retention_policy:meal_plan_pdfs/expired", plans.id(1), key)
    assert audit(link, "public.meal_plans")[-1] == entry
    note = link.execute("SELECT metadata FROM ops.audit_log WHERE action = 'queue_item_resolved'").fetchone()[0]
    assert (note["decision"], note["justification"][:3]) == ("retry", "k1:")
    plans.balance()


def test_a_blob_that_is_gone_is_marked_so(process, link, plans, item_of):
    plans.add([1], put=False)
    key = item_of("pdf_deletion_failed", "public.meal_plans", plans.id(1))
    assert resolve(process, key, "gone").code == 0
    assert plans.finalised() == {plans.id(1)}
    assert item(link, key)[:2] == ("resolved", "gone")
    plans.balance()


def test_a_blob_of_another_store_is_the_operators_word(process, link, plans, item_of):
    plans.add([1], name=lambda n: f"https://elsewhere.public.blob.vercel-storage.com/keto-meal-plan-{n}.pdf", put=False)
    key = item_of("pdf_deletion_failed", "public.meal_plans", plans.id(1))
    assert "in another store" in process("show", key).answer["now"]["blob"]
    assert "foreign_store" in resolve(process, key, "retry").error
    assert resolve(process, key, "gone").code == 0
    metadata = link.execute("SELECT metadata FROM ops.audit_log WHERE action = 'queue_item_resolved'").fetchone()[0]
    assert metadata["seen"] == "not_visible"


@pytest.mark.parametrize(
    "name",
    [
        "https://elsewhere.public.blob.vercel-storage.com/keto-meal-plan-x.pdf",
        "https://example.com/keto-meal-plan-x.pdf",
        "invoices/x.pdf",
        " keto-meal-plan-x.pdf",
    ],
)
def test_a_row_whose_blob_is_not_ours_is_settled_for_good(call, process, link, plans, blobs, name):
    blobs.put("invoices/x.pdf", b"%PDF")
    plans.add([1], name=lambda _: name, put=False)
    plans.add([2])
    cleanup = SCRIPTS / "cleanup" / "cleanup_pdfs.py"
    predicted = call(cleanup, "--dry-run").lines[-1]
    assert (predicted["records_to_delete"], predicted["records_queued"]) == (1, 1)
    first = call(cleanup)
    assert (first.code, first.lines[-1]["records_deleted"], first.lines[-1]["records_queued"]) == (4, 1, 1)
    assert call(cleanup, "--dry-run").lines[-1]["records_queued"] == 0

    key = str(link.execute("SELECT id FROM ops.manual_resolution_queue").fetchone()[0])
    assert resolve(process, key, "not_ours").code == 0

    assert item(link, key)[:2] == ("resolved", "not_ours")
    assert link.execute("SELECT pdf_blob_path FROM meal_plans WHERE id = %s", (plans.id(1),)).fetchone() == ("",)
    assert audit(link, "public.meal_plans")[-1][1:3] == ("blob_left_alone", "decision:pdf_deletion_failed/not_ours")
    assert blobs.get("invoices/x.pdf")
    again = call(cleanup)
    assert (
        again.code,
        again.lines[-1]["records_remaining"],
        link.execute("SELECT count(*) FROM ops.manual_resolution_queue").fetchone(),
    ) == (0, 0, (1,))


def test_a_blob_of_ours_is_not_left_alone(process, link, plans, item_of):
    plans.add([1])
    key = item_of("pdf_deletion_failed", "public.meal_plans", plans.id(1))
    said = resolve(process, key, "not_ours")
    assert (said.code, "below the policy's prefix" in said.error, item(link, key)[0]) == (1, True, "pending")
    assert plans.named() == {plans.id(1)}


def test_a_blob_that_is_not_due_is_left_alone(process, link, plans, item_of):
    plans.add([1], age="5 days")
    key = item_of("pdf_deletion_failed", "public.meal_plans", plans.id(1))
    said = resolve(process, key, "retry")
    assert (said.code, "its period has not ended" in said.error) == (1, True)
    assert plans.there([1]) == {1}
    assert item(link, key)[0] == "pending"


def test_a_token_that_is_refused_leaves_the_item_as_it_was(process, link, plans, item_of, blobs):
    plans.add([1])
    key = item_of("pdf_deletion_failed", "public.meal_plans", plans.id(1))
    wrong = blobs.settings()["BLOB_READ_WRITE_TOKEN"] + "x"
    said = resolve(process, key, "retry", BLOB_READ_WRITE_TOKEN=wrong)
    assert (said.code, "check BLOB_READ_WRITE_TOKEN" in said.error) == (1, True)
    assert item(link, key) == ("pending", None, None, None)
    assert resolve(process, key, "retry").code == 0


@pytest.fixture
def notes(database, link, tmp_path):
    """Things that notes refer to, with a policy that does not declare them; return the policy file's path."""
    link.execute(
        "CREATE TABLE things (id bigint PRIMARY KEY, made_at timestamptz); CREATE INDEX ON things (made_at);"
        "CREATE TABLE notes (id bigint PRIMARY KEY, thing_id bigint REFERENCES things); CREATE INDEX ON notes (thing_id);"
        "INSERT INTO things SELECT n, now() - interval '90 days' FROM generate_series(1, 3) n;"
        "INSERT INTO notes VALUES (10, 1), (11, 1), (12, 2)"
    )
    policy = {
        "description": "Things",
        "table": "public.things",
        "key": "id",
        "person": None,
        "action": "delete",
        "rules": {"old": {"anchor": "made_at", "keep": "30 days"}},
        "dependants": [],
        "legal_basis": "none",
        "owner": "tests",
        "decision": "none",
        "max_rows": 100,
        "max_poison": 5,
        "batch": {"rows": 10, "lock_timeout": "500 milliseconds", "statement_timeout": "60 seconds"},
        "overdue": {"warning": "25 hours", "critical": "48 hours"},
    }
    path = tmp_path / "policies.yaml"
    path.write_text(yaml.safe_dump({"policies": {"things": policy}, "jobs": {}}))
    migrate.grant(database.superuser_url, path)
    link.execute("GRANT SELECT ON notes TO lifecycle_jobs")
    return path


def test_what_refers_to_a_row_goes_first_if_a_person_decides_so(process, link, item_of, notes):
    key = item_of("foreign_key_violation", "public.things", "1")
    file = ("--policy-file", notes)
    said = resolve(process, key, "retry", *file)
    assert (said.code, "something else still needs it" in said.error) == (1, True)
    said = resolve(process, key, "delete_dependants", *file)
    assert (said.code, "no right to DELETE" in said.error) == (1, True)
    assert link.execute("SELECT count(*) FROM notes").fetchone() == (3,)
    link.execute("GRANT DELETE, UPDATE ON notes TO lifecycle_jobs")
    assert resolve(process, key, "delete_dependants", *file).code == 0
    assert link.execute("SELECT array_agg(id) FROM notes").fetchone() == ([12],)
    assert link.execute("SELECT array_agg(id ORDER BY id) FROM things").fetchone() == ([2, 3],)
    assert {entry[3] for entry in audit(link, "public.notes")} == {"10", "11"}
    assert audit(link, "public.things") == [("operator:olga", "delete", "retention_policy:things/old", "1", key)]


def test_the_item_of_a_whole_policy_is_closed_once_nothing_is_in_the_way(process, link, item_of, notes):
    key = item_of("foreign_key_violation", "public.things", "things")
    file = ("--policy-file", notes)
    assert "2 rows that are due" in resolve(process, key, "retry", *file).error
    link.execute("DELETE FROM notes")
    assert resolve(process, key, "retry", *file).code == 0
    assert item(link, key)[0] == "resolved"


def test_what_no_policy_knows_is_only_noted(process, link, item_of):
    key = item_of("archive_failed", "public.elsewhere", "7")
    assert list(process("show", key).answer["decisions"]) == ["settled", "defer", "escalate"]
    assert resolve(process, key, "settled").answer["happened"] == "noted"


def test_many_are_previewed_and_then_decided(process, link, quiz, item_of):
    old = [item_of("quiz_undelivered", key=quiz(ROW[:-2] + f"{n:02}"), age="3 days") for n in range(5)]
    young = item_of("quiz_undelivered", key=quiz(ROW[:-2] + "90"))
    held = item_of("quiz_undelivered", key=quiz(ROW[:-2] + "91"), age="3 days")
    link.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
        " VALUES ('row', 'public.quiz_responses', %s, 'a case', 'x')",
        (ROW[:-2] + "91",),
    )
    filters = (
        "resolve",
        "--item-type",
        "quiz_undelivered",
        "--older-than",
        "2d",
        "--decision",
        "delete",
        "--reason",
        "r",
    )
    preview = process(*filters)
    assert (preview.code, preview.answer["would_decide"]) == (0, 6)
    assert len(left(link)) == 7
    assert process(*filters, "--yes", CLEANUP_DRY_RUN="true").answer["would_decide"] == 6
    done = process(*filters, "--yes")
    assert done.code == 1
    assert done.answer["decided"] == 5
    assert list(done.answer["failed"]) == [held]
    assert len(left(link)) == 2
    assert {item(link, key)[0] for key in old} == {"resolved"}
    assert item(link, young)[0] == item(link, held)[0] == "pending"


def test_claim_release_defer_escalate_undo_reopen(process, link, quiz, item_of):
    quiz()
    key = item_of("quiz_undelivered")
    assert process("claim").answer["item"]["id"] == key
    assert process("claim").answer["item"] is None
    assert process("release", key, OPERATOR="boris").code == 1
    assert process("release", key).answer["item"]["status"] == "pending"
    assert process("defer", key, "--until", "7d").answer["item"]["status"] == "deferred"
    assert process("undo", key).answer["item"]["status"] == "pending"
    assert process("escalate", key).answer["item"]["status"] == "escalated"
    assert process("list").answer["items"][0]["id"] == key
    assert resolve(process, key, "refund").code == 0
    assert process("list").answer == {"open": 0, "past_deadline": 0, "items": []}
    assert process("list", "--status", "resolved").answer["items"][0]["id"] == key
    assert process("reopen", key).answer["item"]["status"] == "pending"


def test_an_item_that_somebody_else_has_is_left_to_them(process, link, quiz, item_of):
    quiz()
    key = item_of("quiz_undelivered")
    process("claim", OPERATOR="boris")
    said = resolve(process, key, "delete")
    assert (said.code, "boris has it" in said.error) == (1, True)
    assert left(link) == {ROW}
    assert resolve(process, key, "delete", "--operator", "boris").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", ROW), "there is no item"),
        (("resolve", "--decision", "delete", "--reason", "r"), "needs an item's ID, or a filter"),
        (("list", "--item-type", "quiz"), "--item-type is none of"),
        (("list", "--older-than", "soon"), "neither a day"),
        ((), "a session needs a terminal"),
    ],
)
def test_misuse_is_named(process, arguments, said):
    done = process(*arguments)
    assert (done.code, said in done.error) == (2, True)


def test_a_decision_that_is_not_offered_is_refused(process, item_of):
    said = resolve(process, item_of("quiz_undelivered"), "retry")
    assert (said.code, "it is one of delivered, refund, delete, defer, escalate" in said.error) == (2, True)


def test_nothing_happens_without_a_key_for_the_digest(process, link, quiz, item_of):
    quiz()
    key = item_of("quiz_undelivered")
    assert resolve(process, key, "delete", AUDIT_PSEUDONYM_KEY="").code == 2
    assert left(link) == {ROW}
    assert item(link, key) == ("pending", None, None, None)


def test_the_stop_switch_stops_operators_too(call, process, link, quiz, item_of):
    quiz()
    key = item_of("quiz_undelivered")
    assert call(SCRIPTS / "cleanup" / "stop_switch.py", "stop", "--all", "--reason", "an incident").code == 0
    assert resolve(process, key, "delete").code == 75
    assert left(link) == {ROW}
    assert item(link, key) == ("pending", None, None, None)


def test_a_dry_run_changes_nothing(process, link, quiz, item_of):
    quiz()
    key = item_of("quiz_undelivered")
    assert resolve(process, key, "delete", CLEANUP_DRY_RUN="true").code == 0
    assert process("claim", CLEANUP_DRY_RUN="true").code == 0
    assert left(link) == {ROW}
    assert item(link, key) == ("pending", None, None, None)


def test_a_row_that_is_being_written_to_is_tried_again_and_then_left(process, link, database, quiz, item_of):
    quiz()
    key = item_of("quiz_undelivered")
    other = database.superuser()
    other.execute("BEGIN")
    other.execute("SELECT FROM quiz_responses WHERE id = %s FOR UPDATE", (ROW,))
    said = resolve(process, key, "delete")
    assert (said.code, "somebody else is writing to that row" in said.error) == (1, True)
    other.execute("ROLLBACK")
    assert left(link) == {ROW}
    assert item(link, key) == ("pending", None, None, None)


def test_for_a_person_it_is_lines_and_tables(process, quiz, item_of):
    quiz()
    key = item_of("quiz_undelivered")
    for arguments, shown in [
        (["list", "--format", "console"], [key, "1 open, 0 past deadline; 1 shown"]),
        (
            ["show", key, "--format", "console"],
            ["--decision refund: the customer wants the money back", "kept_because"],
        ),
        (["claim", "--format", "console"], ["quiz_undelivered, medium, assigned"]),
        (["release", key, "--format", "console"], ["quiz_undelivered, medium, pending"]),
        (
            [
                "resolve",
                "--item-type",
                "quiz_undelivered",
                "--decision",
                "refund",
                "--reason",
                "r",
                "--format",
                "console",
            ],
            ["1 items would be decided: refund"],
        ),
    ]:
        done = process(*arguments)
        assert done.code == 0
        for text in shown:
            assert text in " ".join(done.err.split())


def test_many_stop_when_everything_fails(process, link, item_of, plans, blobs, monkeypatch):
    monkeypatch.setattr(queue_verbs, "_FAILURES_IN_A_ROW", 3)
    plans.add(range(6))
    blobs.faults.unavailable = {plans.path(n) for n in range(6)}
    for n in range(6):
        item_of("pdf_deletion_failed", "public.meal_plans", plans.id(n))
    filters = ("--item-type", "pdf_deletion_failed", "--decision", "gone", "--reason", "r", "--yes")
    done = process("resolve", *filters)
    assert done.code == 1
    assert (done.answer["decided"], len(done.answer["failed"])) == (0, 3)
    assert {state for (state,) in link.execute("SELECT status FROM ops.manual_resolution_queue")} == {"pending"}


def test_a_blob_whose_end_the_store_did_not_confirm_stays_open_until_it_does(
    call, process, link, plans, blobs, item_of
):
    plans.add([1])
    key = item_of("pdf_deletion_failed", "public.meal_plans", plans.id(1))
    blobs.faults.change({"cut_after_calls": 1_000_000_000, "operations": ["delete"]})
    said = resolve(process, key, "retry")
    assert (said.code, "it may be gone" in said.error) == (1, True)
    assert plans.there([1]) == set()
    assert plans.intents() == {"sending": 1}
    blobs.faults.reset()
    hold = ("place", "--table", "public.meal_plans", "--id", plans.id(1), "--reason", "a case")
    held = call(SCRIPTS / "retention" / "legal_holds.py", *hold)
    assert [line["rows"] for line in held.lines if line["event"] == "blobs_in_flight"] == [[plans.id(1)]]
    link.execute("UPDATE ops.legal_holds SET released_at = now()")
    assert resolve(process, key, "retry").code == 0
    assert item(link, key)[:2] == ("resolved", "retry")
    plans.balance()


def test_what_refers_to_a_row_is_kept_while_it_may_be_about_somebody_under_a_hold(process, link, item_of, notes):
    link.execute("GRANT DELETE, UPDATE ON notes TO lifecycle_jobs")
    link.execute(
        "INSERT INTO ops.legal_holds (scope, person, reason, placed_by) VALUES ('person', %s, 'a case', 'x')", (PERSON,)
    )
    key = item_of("foreign_key_violation", "public.things", "1")
    said = resolve(process, key, "delete_dependants", "--policy-file", notes)
    assert (said.code, "under a legal hold" in said.error) == (1, True)
    assert link.execute("SELECT count(*) FROM notes").fetchone() == (3,)
    assert item(link, key)[0] == "pending"


def test_what_refers_to_a_row_and_is_about_somebody_under_a_hold_keeps_it(process, link, item_of, notes):
    link.execute("GRANT DELETE, UPDATE ON notes TO lifecycle_jobs; ALTER TABLE notes ADD who text")
    document = yaml.safe_load(notes.read_text())
    kept = {"action": "retain", "table": "public.notes", "person": "who", "rules": {}}
    document["policies"]["notes"] = document["policies"]["things"] | kept
    notes.write_text(yaml.safe_dump(document))
    link.execute("UPDATE notes SET who = CASE id WHEN 11 THEN %s ELSE 'ben@example.com' END", (PERSON,))
    link.execute(
        "INSERT INTO ops.legal_holds (scope, person, reason, placed_by) VALUES ('person', %s, 'a case', 'x')", (PERSON,)
    )
    kept, gone = (item_of("foreign_key_violation", "public.things", thing) for thing in ("1", "2"))
    said = resolve(process, kept, "delete_dependants", "--policy-file", notes)
    assert (said.code, "a legal hold keeps it" in said.error) == (1, True)
    assert resolve(process, gone, "delete_dependants", "--policy-file", notes).code == 0
    assert link.execute("SELECT array_agg(id ORDER BY id) FROM notes").fetchone() == ([10, 11],)


def test_a_decision_ends_no_hold_that_somebody_else_placed(call, process, link, quiz, item_of):
    quiz()
    place = ("place", "--table", "public.quiz_responses", "--id", ROW, "--reason", "litigation 4711")
    assert call(SCRIPTS / "retention" / "legal_holds.py", *place, OPERATOR="lawyer").code == 0
    key = item_of("retention_exception")
    said = resolve(process, key, "release")
    assert (said.code, "placed by lawyer" in said.error) == (1, True)
    assert link.execute("SELECT released_at FROM ops.legal_holds").fetchone() == (None,)
    assert item(link, key)[0] == "pending"


def test_the_preview_shows_what_would_be_decided(process, link, quiz, item_of):
    for n in range(4):
        quiz(ROW[:-1] + str(n))
        item_of("quiz_undelivered", key=ROW[:-1] + str(n))
    process("claim", OPERATOR="boris")
    deferred = process("list").answer["items"][-1]["id"]
    assert process("defer", deferred, "--until", "7d").code == 0
    filters = ("--item-type", "quiz_undelivered", "--decision", "refund", "--reason", "r")
    preview = process("resolve", *filters).answer
    assert (preview["would_decide"], len(preview["first"])) == (2, 2)
    assert process("resolve", *filters, "--yes").answer["decided"] == 2


def test_a_justification_names_no_address_and_can_be_read(call, process, link, quiz, item_of, monkeypatch):
    quiz()
    key = item_of("quiz_undelivered")
    said = process("resolve", key, "--decision", "refund", "--reason", "a letter of ben@example.org")
    assert (said.code, "must not hold an e-mail address" in said.error) == (2, True)
    assert item(link, key)[0] == "pending"
    assert process("resolve", key, "--decision", "refund", "--reason", "-", stdin="they called\n").code == 0
    assert link.execute("SELECT justification FROM ops.manual_resolution_queue").fetchone() == ("they called",)
