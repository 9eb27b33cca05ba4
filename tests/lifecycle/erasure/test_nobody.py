"""Who is not found, or whose address is none, is told nothing; a person decides, and the deadline goes on."""

import json

import pytest

from tests.lifecycle.erasure.conftest import FOLDER
from tests.lifecycle.erasure.world import ADDRESS, NAME, PERSON
from tests.mailbox import Mailbox, mail_server


def written_by_the_application(world, address, *, verified=True):
    """What the form of the application made of what somebody typed."""
    ((request,),) = world.link.execute(
        "INSERT INTO ops.erasure_requests (email, channel, requested_at, identity_method, identity_verified_at)"
        " VALUES (%s, 'web', now() - interval '1 day', %s, %s) RETURNING id::text",
        (address, "link" if verified else None, "2026-11-01" if verified else None),
    ).fetchall()
    return request


def items(world):
    return world.rows(
        "ops.manual_resolution_queue",
        "resource_id, status, priority, decision",
        "item_type = 'erasure_blocked' AND resource_type = 'ops.erasure_requests'",
    )


@pytest.fixture
def mailed(erase):
    """A function that runs the job with a mail server, and returns the run and the mails."""

    def run(*arguments):
        mailbox = Mailbox()
        with mail_server(mailbox) as settings:
            done = erase(*arguments, **settings)
        return done, mailbox.mails

    return run


def test_who_is_in_no_table_is_handed_to_a_person_and_not_told_that_it_was_done(world, person, asked, mailed, erase):
    request = asked("somebody.else@example.com")

    done, mails = mailed()
    again, _ = mailed()

    assert (done.code, done.closing["fulfilled"], done.closing["newly_queued"]) == (4, 0, 1)
    assert (again.code, again.closing["newly_queued"]) == (0, 0)
    assert mails == []
    assert items(world) == [(request, "pending", "critical", None)]
    ((status, deadline),) = world.rows("ops.erasure_requests", "status, deadline_at > now() + interval '29 days'")
    assert (status, deadline) == ("blocked", True)
    assert list(world.folder.rglob("ledger/*.json")) == []
    assert erase("certificate", request).code == 1

    # She turns up after all: she used another address, or her row came late.
    world.add("somebody.else@example.com")
    assert erase().closing["fulfilled"] == 1
    assert items(world) == [(request, "resolved", "critical", "fulfilled")]


@pytest.mark.parametrize(
    "address", ["<plain2@hotmail.com>", "mailto:plain2@hotmail.com", "a@x.example,b@y.example", ""]
)
def test_a_verified_request_whose_address_is_none_stays_open(world, mailed, erase, address):
    world.add("plain2@hotmail.com")
    request = written_by_the_application(world, address)

    done, mails = mailed()
    again, _ = mailed()

    assert (done.code, done.closing["newly_queued"], again.code) == (4, 1, 0)
    assert (mails, items(world)) == ([], [(request, "pending", "critical", None)])
    ((status, email, days),) = world.rows(
        "ops.erasure_requests", "status, email, extract(day FROM deadline_at - requested_at)"
    )
    assert (status, email, days) == ("blocked", address, 30)
    assert len(world.of("plain2@hotmail.com")["users"]) == 1

    # A person finds out what she meant, enters it, and closes this one.
    assert erase("cancel", request).code == 0
    assert items(world) == [(request, "resolved", "critical", "cancelled")]
    assert world.rows("ops.erasure_requests", "status, closed_because, email") == [("cancelled", "nothing_done", None)]


def test_what_nobody_verified_and_is_no_address_is_rejected(world, erase):
    written_by_the_application(world, "<plain2@hotmail.com>", verified=False)

    assert erase().code == 0
    assert world.rows("ops.erasure_requests", "status, closed_because") == [("rejected", "no_address")]


def test_a_quoted_name_is_an_address_like_any_other(world, mailed):
    address = '"Quoted Name"@x.example'
    world.add(address.lower(), address=address)
    world.queue_item("public.somewhere", "else")
    world.link.execute(
        "UPDATE ops.manual_resolution_queue SET reason = %s, justification = NULL, context = jsonb_build_object('by', %s)",
        (f"{address} called", address),
    )
    written_by_the_application(world, address)

    done, mails = mailed()

    assert (done.code, done.closing["confirmed"]) == (0, 1), done.output
    assert [recipients for recipients, _ in mails] == [[address]]
    assert world.where((address.lower(), json.dumps(address.lower())[1:-1])) == set()


def test_what_was_blocked_by_a_hold_can_be_withdrawn_and_is_not_replayed(world, erase, asked):
    world.add(PERSON, address=ADDRESS, name=NAME)
    holds = FOLDER / "legal_holds.py"
    assert erase("place", "--person", "-", "--reason", "a case", stdin=f"{ADDRESS}\n", script=holds).code == 0
    request = asked()
    assert erase().code == 4
    assert len(list(world.folder.rglob("ledger/*.json"))) == 1

    assert erase("cancel", request).code == 0
    assert items(world) == [(request, "resolved", "critical", "cancelled")]
    assert len(world.of(PERSON)["users"]) == 1
    # As if the database had been restored to a point before she asked.
    world.link.execute("DELETE FROM ops.manual_resolution_queue; DELETE FROM ops.erasure_requests")
    world.link.execute("UPDATE ops.legal_holds SET released_at = now(), released_by = 'olga', person = NULL")
    assert erase("--replay").closing["replayed"] == 0
    assert len(world.of(PERSON)["users"]) == 1


def test_the_line_of_a_withdrawn_request_is_deleted_by_the_next_run(world, erase, asked):
    world.add(PERSON, address=ADDRESS, name=NAME)
    holds = FOLDER / "legal_holds.py"
    assert erase("place", "--person", "-", "--reason", "a case", stdin=f"{ADDRESS}\n", script=holds).code == 0
    request = asked()
    assert erase().closing["ledger_lines"] == 1
    assert erase("cancel", request).code == 0
    assert erase().closing["ledger_lines"] == 0
    assert list(world.folder.rglob("ledger/*.json")) == []


def test_for_whom_something_was_deleted_nothing_can_be_withdrawn(world, erase, asked):
    world.add(PERSON, address=ADDRESS, name=NAME, open_order=True)
    request = asked()
    assert erase().code == 4
    done = erase("cancel", request)
    assert (done.code, "something was done for it" in done.closing["error"]) == (1, True)
