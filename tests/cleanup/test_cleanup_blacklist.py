"""Entries go once they have expired; permanent ones never do."""

import pytest

from tests.cleanup.conftest import ROOT

SCRIPT = ROOT / "scripts" / "cleanup" / "cleanup_blacklist.py"


@pytest.fixture
def link(database):
    return database.superuser()


@pytest.fixture
def blacklist(call, environment):
    """A function that runs cleanup_blacklist."""
    return lambda *arguments, **settings: call(*arguments, env=environment | settings, script=SCRIPT)


def add(link, number, expired, *, until=None):
    """Add the entry ``number``; it expired so long ago, or ends at a moment of its own."""
    key = f"00000000-0000-4000-8000-{number:012x}"
    link.execute(
        "INSERT INTO email_blacklist (id, normalized_email, reason, created_at, expires_at)"
        " SELECT %s, %s, 'chargeback', expires - interval '90 days', coalesce(%s::timestamp, expires)"
        " FROM (SELECT timezone('UTC', now()) - %s::interval AS expires) age",
        (key, f"person{number}@example.com", until, expired),
    )
    return key


def left(link):
    return {key for (key,) in link.execute("SELECT id FROM email_blacklist")}


@pytest.mark.pooled
def test_what_has_expired_goes_and_what_is_permanent_or_has_not_stays(blacklist, link):
    gone = [add(link, 1, "1 minute"), add(link, 2, "10 years")]
    kept = {
        *(add(link, 10, "-10 minutes"), add(link, 11, "-89 days")),
        *(add(link, 12, "40 years", until="infinity"), add(link, 13, "40 years", until="9999-12-31")),
    }

    predicted = blacklist("--dry-run")
    assert (predicted.code, predicted.closing["records_to_delete"]) == (0, len(gone))
    assert left(link) == kept | set(gone)

    done = blacklist()
    assert (done.code, done.closing["records_deleted"], done.closing["records_remaining"]) == (0, len(gone), 0)
    assert left(link) == kept
    rows = link.execute("SELECT action, reason, resource_id FROM ops.audit_log ORDER BY resource_id").fetchall()
    assert rows == [("delete", "retention_policy:email_blacklist/expired", key) for key in gone]

    again = blacklist()
    assert (again.code, again.closing["records_deleted"]) == (0, 0)
    assert again.closing["audit_head"] == done.closing["audit_head"]


def test_what_is_held_stays(blacklist, link):
    held = add(link, 1, "1 day")
    add(link, 2, "1 day")
    link.execute(
        "INSERT INTO ops.legal_holds (scope, person, reason, placed_by)"
        " VALUES ('person', 'person1@example.com', 'r', 'me')"
    )
    done = blacklist()
    assert (done.code, done.closing["records_deleted"], done.closing["records_held"]) == (0, 1, 1)
    assert left(link) == {held}


def test_no_address_in_what_is_said(blacklist, link):
    add(link, 1, "1 day")
    done = blacklist("--verbose", LOG_LEVEL="DEBUG")
    assert done.closing["records_deleted"] == 1
    assert "person1@example.com" not in done.out + done.err
