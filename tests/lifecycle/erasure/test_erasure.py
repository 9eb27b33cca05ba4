"""A person who asks to be erased is nowhere afterwards, and everybody else is where they were."""

import json

import pytest

from tests.lifecycle.erasure.conftest import ARCHIVE
from tests.lifecycle.erasure.world import ADDRESS, NAME, NEIGHBOURS, PERSON


def test_a_person_with_rows_everywhere_is_nowhere_afterwards(world, person, asked, erase):
    old = world.payment(PERSON, address=ADDRESS)
    archived = erase("run", script=ARCHIVE)
    assert (archived.code, archived.closing["records_deleted"]) == (0, 1)
    before = {neighbour: world.of(neighbour) for neighbour in NEIGHBOURS}
    request = asked()
    # The search that must find nothing afterwards finds her everywhere before.
    assert world.where() == {
        "archives",
        "blob",
        "table ops.erasure_requests",
        "table ops.manual_resolution_queue",
        *(f"table public.{table}" for table in world.of(PERSON)),
    }

    done = erase("--verbose")

    assert (done.code, done.closing["fulfilled"], done.closing["blocked"]) == (0, 1, 0), done.output
    assert world.where() == set()
    assert not [needle for needle in (ADDRESS, PERSON, NAME) if needle.lower() in done.output.lower()]
    assert {neighbour: world.of(neighbour) for neighbour in NEIGHBOURS} == before
    assert world.rows("payment_transactions", "amount::text, currency", f"id = '{person['payment_transactions']}'") == [
        ("29.90", "EUR")
    ]
    assert old not in [key for (key,) in world.rows("payment_transactions", "id")]
    ((status, blocked),) = world.rows("ops.erasure_requests", "status, person IS NULL AND email IS NULL")
    assert (status, blocked) == ("fulfilled", True)
    assert request == str(world.rows("ops.erasure_requests", "id")[0][0])


def test_what_stays_of_a_permanent_entry_is_a_pseudonym_that_the_application_can_look_up(world, person, asked, erase):
    import hashlib
    import hmac

    asked()
    assert erase().code == 0
    expected = "s1:" + hmac.new(bytes.fromhex("cd" * 32), PERSON.encode(), hashlib.sha256).hexdigest()
    assert world.rows("email_blacklist", "normalized_email, reason", f"id = '{person['email_blacklist']}'") == [
        (expected, "chargeback")
    ]

    world.add(PERSON, address=ADDRESS)  # she comes back, is listed again, and asks again
    asked()
    assert erase().code == 0
    assert world.link.execute(
        "SELECT count(*) FROM email_blacklist WHERE normalized_email = %s", (expected,)
    ).fetchone() == (1,)


def test_the_queue_keeps_type_and_times_and_forgets_the_rest(world, person, asked, erase):
    asked()
    assert erase().code == 0
    items = world.rows(
        "ops.manual_resolution_queue", "item_type, status, reason, context::text, justification, raised_by"
    )
    assert sorted(items) == [
        ("foreign_key_violation", "pending", "erased", "{}", "erased", "operator:test"),
        ("retention_exception", "pending", "xannegret@gmail.com wrote", "{}", None, "operator:test"),
        ("retention_exception", "resolved", "erased", "{}", "erased", "operator:test"),
        ("retention_exception", "resolved", "erased", "{}", "erased", "operator:test"),
    ]


def test_rows_that_only_a_foreign_key_ties_to_her_are_hers(world, person, asked, erase):
    """An account whose address was changed: the older answers name the former one."""
    world.link.execute(
        "UPDATE quiz_responses SET email = 'former@example.com', normalized_email = 'former@example.com' WHERE id = %s",
        (person["quiz_responses"],),
    )
    asked()
    assert erase().code == 0
    assert world.rows("quiz_responses", "id", f"id = '{person['quiz_responses']}'") == []


def test_a_restore_of_every_archive_does_not_bring_her_back(world, asked, erase):
    world.add(PERSON, address=ADDRESS, name=NAME, years=8)
    world.add("other@example.com", years=8)
    assert erase("run", script=ARCHIVE).closing["records_deleted"] == 2
    asked()
    done = erase()
    assert done.code == 0, done.output
    assert world.where() == set()

    restored = erase("restore", "--policy", "payment_transactions", script=ARCHIVE)
    assert restored.code == 0, restored.output
    assert world.where() == set()
    assert len(world.rows("payment_transactions")) == 1
    again = erase(
        "restore", "--policy", "payment_transactions", "--include-erased", "--drop", "customer_email", script=ARCHIVE
    )
    assert world.where() == set(), again.output
    assert erase().code == 0
    assert erase("run", script=ARCHIVE).code == 0
    assert world.where() == set()


def test_nothing_happens_before_the_identity_was_verified(world, person, asked, erase):
    request = asked(identity=None)
    done = erase()
    assert (done.code, done.closing["fulfilled"], done.closing["waiting_for_identity"]) == (0, 0, 1)
    assert len(world.of(PERSON)["users"]) == 1
    assert erase("identify", request, "--method", "passport").code == 0
    assert erase().closing["fulfilled"] == 1
    assert world.where() == set()


def test_a_request_of_the_application_is_taken_in_and_twice_is_once(world, person, erase):
    world.link.execute(
        "INSERT INTO ops.erasure_requests (email, channel, requested_at, identity_method, identity_verified_at)"
        " VALUES (%s, 'web', now() - interval '3 days', NULL, NULL), (%s, 'web', now() - interval '1 day', 'link', now()),"
        " ('not an address', 'web', now(), NULL, NULL)",
        (ADDRESS, PERSON.upper()),
    )
    done = erase()
    assert (done.code, done.closing["taken_in"], done.closing["fulfilled"]) == (0, 3, 1)
    rows = world.rows("ops.erasure_requests", "status, closed_because, merged_into IS NOT NULL")
    assert rows == [
        ("fulfilled", "fulfilled", False),
        ("merged", "asked_before", True),
        ("rejected", "no_address", False),
    ]
    assert world.where((*("not an address",), PERSON)) == set()


def test_a_request_can_be_withdrawn_before_it_ran_and_not_after(world, person, asked, erase):
    request = asked()
    assert erase("cancel", request).code == 0
    assert erase().closing["fulfilled"] == 0
    assert len(world.of(PERSON)["users"]) == 1
    assert world.rows("ops.erasure_requests", "status, email, person") == [("cancelled", None, None)]
    second = asked()
    assert erase().closing["fulfilled"] == 1
    refused = erase("cancel", second)
    assert (refused.code, "can be cancelled" in refused.closing["error"]) == (1, True)


def test_the_preview_says_what_would_happen_and_writes_nothing(world, person, erase):
    before = world.of(PERSON)
    done = erase("--preview", "-", stdin=f"{ADDRESS}\n")
    seen = done.event("erasure_preview")
    assert done.code == 0
    assert seen["found"] == {f"public.{table}": 1 for table in before} | {"ops.manual_resolution_queue": 3}
    assert seen["blobs"] == 1
    assert world.of(PERSON) == before
    assert world.rows("ops.audit_batches") == []
    assert PERSON not in done.output


def test_a_dry_run_predicts_and_writes_nothing(world, person, asked, erase):
    asked()
    audit = world.rows("ops.audit_batches", "seq")
    done = erase("--dry-run")
    assert (done.code, done.closing["requests"]) == (0, 1)
    assert done.event("erasure_predicted")["found"]["public.users"] == 1
    assert len(world.of(PERSON)["users"]) == 1
    assert world.rows("ops.audit_batches", "seq") == audit
    assert not list(world.folder.rglob("*.json"))


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("ARCHIVE_URL", "ARCHIVE_URL is not set"),
        ("SUPPRESSION_KEY", "SUPPRESSION_KEY is not set"),
        ("AUDIT_PSEUDONYM_KEY", "AUDIT_PSEUDONYM_KEY is not set"),
    ],
)
def test_what_is_not_set_is_said_before_anything_goes(world, person, asked, erase, missing, says):
    asked()
    done = erase(**{missing: None})
    assert (done.code, says in done.closing["error"]) == (2, True)
    assert len(world.of(PERSON)["users"]) == 1


def test_the_audit_names_her_by_a_pseudonym_alone(world, person, asked, erase):
    request = asked()
    assert erase().code == 0
    entries = world.rows(
        "ops.audit_log",
        "action, resource_type, resource_id, reason, metadata ->> 'person'",
        f"run_id = '{request}' AND action <> 'queue_item_erased'",
    )
    assert {entry[4][:3] for entry in entries} == {"k1:"}
    assert {(action, table, key) for action, table, key, *_ in entries} == {
        ("delete_blob", "public.meal_plans", person["meal_plans"]),
        ("delete", "public.users", person["users"]),
        ("delete", "public.quiz_responses", person["quiz_responses"]),
        ("delete", "public.meal_plans", person["meal_plans"]),
        ("delete", "public.magic_link_tokens", person["magic_link_tokens"]),
        ("anonymize", "public.email_blacklist", person["email_blacklist"]),
        ("anonymize", "public.payment_transactions", person["payment_transactions"]),
        ("delete", "public.manual_resolution", person["manual_resolution"]),
        ("delete", "public.refund_counts", entries[0][4]),  # the key is the address
        ("erasure_fulfilled", "ops.erasure_requests", request),
    }
    assert json.dumps([str(entry) for entry in entries]).count("@") == 0
