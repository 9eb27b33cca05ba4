"""A part of the chain, by number and by time, and the heads that others kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from scripts.lifecycle.audit import audit
from scripts.lifecycle.audit.audit_chain import span_of
from scripts.utils.errors import Misconfigured
from tests.lifecycle.support import append_batches, seal_anew

LENGTH = 6
DAY_ONE = datetime(2026, 1, 1, tzinfo=UTC)


def day(number):
    return DAY_ONE + timedelta(days=number - 1)


@pytest.fixture
def chain(admin, db):
    """Six batches, one a day from 1 January; nothing hinders this connection."""
    admin.execute("SET session_replication_role = replica")
    append_batches(db, LENGTH)
    admin.execute(
        "UPDATE ops.audit_batches SET occurred_at = '2026-01-01 12:00Z'::timestamptz + (seq - 1) * '1 day'::interval"
    )
    seal_anew(admin)
    return admin


def said(db, *heads, **part):
    return [str(finding).split(" (")[0] for finding in audit.verify(db, *heads, **part).findings]


def heads_of(admin):
    return [head for (head,) in admin.execute("SELECT seq || ':' || encode(seal, 'hex') FROM ops.audit_batches")]


def test_a_period_is_walked_from_the_seal_before_it_to_the_batch_after_it(db, chain):
    result = audit.verify(db, period=(day(3), day(5)))

    assert (result.intact, result.span, result.batches) == (True, audit.Span(3, 4), 2)
    assert result.entries == 2 * audit.verify(db).entries / LENGTH

    for altered, found in ((2, []), (3, ["batch 3"]), (4, ["batch 4"]), (6, [])):
        chain.execute("UPDATE ops.audit_batches SET actor = 'operator:eve' WHERE seq = %s", (altered,))
        assert said(db, period=(day(3), day(5))) == found, altered
        chain.execute("UPDATE ops.audit_batches SET actor = 'system:tests' WHERE seq = %s", (altered,))
    # The last batch of the period with a seal of its own making: the batch after it tells.
    chain.execute("UPDATE ops.audit_batches SET seal = sha256('x') WHERE seq = 4")
    assert said(db, period=(day(3), day(5))) == ["batch 4", "batch 5"]


@pytest.mark.parametrize(
    ("removed", "period", "found"),
    [
        ((3, 4), (3, 5), ["batches 3 to 4 are missing"]),  # the whole period
        ((4,), (3, 5), ["batch 4 is missing"]),
        ((2,), (3, 5), ["batch 2 is missing"]),  # what the period's first one stands on
        ((5, 6), (5, 9), ["batches 5 to 6 are missing"]),
        ((1,), (1, 3), ["batch 1 is missing"]),
        ((6,), (1, 3), []),
    ],
)
def test_what_was_removed_from_a_period_is_missed(db, chain, removed, period, found):
    chain.execute("DELETE FROM ops.audit_batches WHERE seq = ANY(%s)", (list(removed),))

    assert said(db, period=(day(period[0]), day(period[1]))) == found


def test_a_period_without_a_batch_is_an_empty_part_of_the_chain(db, chain):
    for since, until in ((day(-5), day(-1)), (day(20), day(30))):
        result = audit.verify(db, period=(since, until))
        assert (result.intact, result.batches, result.entries) == (True, 0, 0)
    with db.snapshot() as connection:
        assert span_of(connection, day(20), day(30)) == audit.Span(7, 6)


def test_from_a_batch_on(db, chain):
    assert audit.verify(db, span=audit.Span(4)).batches == 3
    assert audit.verify(db, span=audit.Span(LENGTH + 1)).intact
    with pytest.raises(Misconfigured, match="there is no batch 9"):
        audit.verify(db, span=audit.Span(9))

    chain.execute("UPDATE ops.audit_head SET seal = sha256('x')")
    assert said(db, span=audit.Span(4)) == ["the head does not match batch 6: batches at the end were replaced"]


def test_every_head_must_be_at_its_place_also_outside_the_part(db, chain):
    kept = heads_of(chain)
    result = audit.verify(db, *kept, "0:", span=audit.Span(4))
    assert (result.intact, result.heads) == (True, LENGTH + 1)

    wrong = f"2:{'ab' * 32}"
    assert said(db, *kept, wrong, span=audit.Span(4)) == ["batch 2"]
    later = [audit.Head(9, b"\1" * 32, "the anchor"), audit.Head(8, b"\1" * 32, "the anchor")]
    assert said(db, *later) == ["batches 7 to 9 are missing: the anchor has a head of them"]

    chain.execute("DELETE FROM ops.audit_batches WHERE seq = 2")
    assert said(db, *kept, span=audit.Span(4)) == ["batch 2 is missing"]
    assert said(db, *kept) == ["batch 2 is missing"], "not once more for the head"


def test_a_batch_with_one_id_and_one_with_a_megabyte_of_them_are_counted(db, admin):
    append_batches(db, 1, ids=("1",))
    append_batches(db, 1, ids=tuple(str(number).zfill(36) for number in range(30_000)))

    result = audit.verify(db)
    assert (result.intact, result.entries) == (True, 30_001)
