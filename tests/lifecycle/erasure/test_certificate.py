"""The certificate says what was done, names nobody, and cannot be altered; the person is told once and forgotten."""

import json

import pytest

from scripts.lifecycle.erasure import certificate
from tests.lifecycle.erasure.conftest import ARCHIVE, FOLDER
from tests.lifecycle.erasure.world import ADDRESS, NAME, PERSON
from tests.mailbox import Mailbox, mail_server


@pytest.fixture
def fulfilled(person, asked, erase):
    """The reference of a request that was carried out."""
    request = asked()
    assert erase().code == 0
    return request


@pytest.fixture
def paper(fulfilled, erase, tmp_path):
    """Its certificate, as an operator takes it."""
    path = tmp_path / "certificate.json"
    assert erase("certificate", fulfilled, "--output", str(path)).code == 0
    return path


def test_it_says_what_was_done_and_what_stays_and_why(world, fulfilled, paper):
    facts = json.loads(paper.read_text())["certificate"]
    assert facts["request"] == fulfilled
    assert facts["in_time"] is True
    done = {(each["action"], each["table"]): each["records"] for each in facts["done"]}
    assert done == {
        ("delete_blob", "public.meal_plans"): 1,
        ("delete", "public.users"): 1,
        ("delete", "public.quiz_responses"): 1,
        ("delete", "public.meal_plans"): 1,
        ("delete", "public.magic_link_tokens"): 1,
        ("anonymize", "public.email_blacklist"): 1,
        ("delete", "public.manual_resolution"): 1,
        ("delete", "public.refund_counts"): 1,
        ("anonymize", "public.payment_transactions"): 1,
        ("queue_item_erased", "ops.manual_resolution_queue"): 3,
    }
    kept = {each["table"]: each["ground"] for each in facts["kept"]}
    assert "tax law" in kept["public.payment_transactions"]
    assert all(each["ground"] for each in facts["done"])
    days = world.link.execute(
        "SELECT (%s::timestamptz - %s::timestamptz)::text", (facts["backups_rolled_over_by"], facts["fulfilled_at"])
    ).fetchone()
    assert days == ("30 days",)
    assert not [word for word in (ADDRESS, PERSON, NAME, "k1:", "@") if word.lower() in paper.read_text().lower()]
    # The same certificate lies beside the archives, where it outlives the request.
    assert next(world.folder.rglob("certificates/*.json")).read_text() == paper.read_text()


def test_it_verifies_and_an_altered_one_does_not(world, paper, erase, tmp_path):
    assert erase("verify", str(paper)).code == 0
    document = json.loads(paper.read_text())

    altered = document | {"certificate": document["certificate"] | {"in_time": False}}
    forged = altered | {"sha256": certificate.digest(altered["certificate"])}
    for content, says in (
        (altered, "was altered"),
        (forged, "knows no such certificate"),
        ("nonsense", "not a certificate"),
    ):
        path = tmp_path / "other.json"
        path.write_text(json.dumps(content))
        done = erase("verify", str(path))
        assert (done.code, says in done.closing["error"]) == (2 if content == "nonsense" else 1, True)

    world.link.execute("ALTER TABLE ops.audit_batches DISABLE TRIGGER ALL")
    world.link.execute("UPDATE ops.audit_batches SET reason = 'another' WHERE seq = 1")
    done = erase("verify", str(paper))
    assert (done.code, "does not verify" in done.closing["error"]) == (1, True)


def test_a_certificate_that_can_be_read_in_two_ways_is_none(paper, erase, tmp_path):
    text = paper.read_text()
    other = tmp_path / "other.json"
    nested = "[" * 2000 + "]" * 2000
    for content in (
        text.replace('"in_time": true', '"in_time": false, "in_time": true'),
        text.replace('"certificate": {', '"certificate": {}, "certificate": {', 1),
        text.replace('"in_time": true', '"in_time": NaN'),
        text.replace('"in_time": true', f'"in_time": {nested}'),
    ):
        other.write_text(content)
        done = erase("verify", str(other))
        assert (done.code, "not a certificate" in done.closing["error"]) == (2, True)


def test_a_certificate_of_nothing_certifies_no_erasure(world, paper, fulfilled, erase):
    """As earlier versions wrote them: sealed, and true to the letter."""
    document = json.loads(paper.read_text())
    nothing = document["certificate"] | {"done": [], "kept": []}
    paper.write_text(json.dumps(certificate.document(nothing, document["audit_head"])))
    done = erase("verify", str(paper))
    assert (done.code, "certifies no erasure" in done.closing["error"]) == (1, True)
    world.link.execute("UPDATE ops.erasure_requests SET certificate = %s::jsonb", (json.dumps(nothing),))
    for form in ("json", "html"):
        done = erase("certificate", fulfilled, "--format", form)
        assert (done.code, "no certificate of an erasure" in done.closing["error"]) == (1, True)
    world.link.execute("UPDATE ops.erasure_requests SET certified_at = NULL")
    assert erase().code == 0


def test_what_archives_hold_of_her_is_proved_to_be_unreadable(world, asked, erase, tmp_path):
    for person in (PERSON, PERSON, "other@example.com"):
        world.payment(person)
    assert erase("run", script=ARCHIVE).closing["records_deleted"] == 3
    kept = world.rows("ops.archive_keys", "id, pseudonym, wrapped", "kind = 'person'")
    request = asked()
    assert erase().code == 0
    path = tmp_path / "certificate.json"
    erase("certificate", request, "--output", str(path))
    done = erase("verify", str(path), "--archives")
    seen = done.event("archives_unreadable")
    facts = json.loads(path.read_text())["certificate"]
    (ground,) = [each["ground"] for each in facts["done"] if each["table"] == "ops.archive_keys"]
    assert (
        f"but until {facts['backups_rolled_over_by'][:10]} by somebody who has both the master key and a backup"
        in ground
    )
    assert (done.code, seen["keys"], seen["archives"], seen["rows"]) == (0, 1, 1, 2)

    for key, pseudonym, wrapped in kept:  # somebody puts the keys back from a backup
        world.link.execute(
            "UPDATE ops.archive_keys SET pseudonym = %s, wrapped = %s, destroyed_at = NULL WHERE id = %s",
            (pseudonym, wrapped, key),
        )
    done = erase("verify", str(path), "--archives")
    assert (done.code, "is in ops.archive_keys" in done.closing["error"]) == (1, True)


def test_one_page_that_prints(fulfilled, erase):
    done = erase("certificate", fulfilled, "--format", "html")
    assert done.code == 0
    assert "<h1>Certificate of erasure</h1>" in done.output
    assert "amounts and dates stay for tax law" in done.output
    assert "<script" not in done.output


def test_there_is_none_before_it_is_fulfilled(person, asked, erase):
    done = erase("certificate", asked())
    assert (done.code, "has no certificate: it is received" in done.closing["error"]) == (1, True)


def test_the_person_is_told_at_the_address_that_she_wrote_and_it_is_forgotten(world, person, asked, erase):
    mailbox = Mailbox()
    request = asked()
    with mail_server(mailbox) as settings:
        assert erase(**settings).closing["confirmed"] == 1
        assert erase(**settings).closing["confirmed"] == 0
    ((recipients, mail),) = mailbox.mails
    assert recipients == [ADDRESS]
    assert request in mail.get_content()
    assert world.where() == set()


def test_a_mail_server_that_is_down_is_tried_again_and_no_address_is_kept_beyond_the_deadline(
    world, person, asked, erase
):
    asked()
    down = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": "9", "SMTP_FROM": "a@example.com", "SMTP_STARTTLS": "false"}
    first = erase(**down)
    assert (first.code, first.closing["fulfilled"], first.closing["confirmed"]) == (0, 1, 0)
    assert first.event("erasure_not_confirmed")["error"].startswith("mail server 127.0.0.1:9 failed")
    assert world.rows("ops.erasure_requests", "email") == [(ADDRESS,)]
    mailbox = Mailbox()
    with mail_server(mailbox) as settings:
        assert erase(**settings).closing["confirmed"] == 1
    assert world.where() == set()

    world.add(PERSON, address=ADDRESS)
    asked(requested_at="2026-01-01T00:00:00Z")
    late = erase(**down)
    assert late.closing["fulfilled"] == 1
    assert world.where() == set()


def test_nobody_is_told_where_there_is_no_mail_server(world, person, asked, erase):
    asked()
    done = erase()
    assert done.code == 0
    assert done.event("erasure_not_confirmed")["error"] == "SMTP_HOST or SMTP_FROM is not set"
    assert world.where() == set()


def test_under_which_rule_has_an_answer(person, fulfilled, erase):
    done = erase("--run", fulfilled, script=FOLDER / "explain_deletion.py")
    assert done.code == 0, done.output
    said = {line["reason"]: line for line in done.lines if line["event"] == "deletion_explained"}
    payments = said["erasure_request:payment_transactions"]
    assert "tax law" in payments["legal_basis"]
    assert payments["policy_text"].startswith("  payment_transactions:\n    table: public.payment_transactions")
