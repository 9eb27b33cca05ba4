"""People at work on the queue: nobody gets another's item, nothing is lost, every change is in the audit."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from scripts.lifecycle.jobs import handover
from scripts.lifecycle.queue import work as queue_work
from scripts.lifecycle.queue.work import TRANSITIONS, Filter, SomebodyWasFirst, Work
from scripts.utils.db_utils import Database
from scripts.utils.errors import Misconfigured
from scripts.utils.pseudonyms import pseudonym
from scripts.utils.settings import load_settings


@pytest.fixture
def settings(_settings, monkeypatch):
    monkeypatch.setenv("AUDIT_PSEUDONYM_KEY", "k1:" + "ab" * 32)
    return load_settings()


@pytest.fixture
def olga(db, settings):
    return Work(db, settings, "olga")


@pytest.fixture
def boris(db, settings):
    return Work(db, settings, "boris")


@pytest.fixture
def add(db, settings):
    """A function that puts items on the queue."""

    def put(*ids, priority="medium", item_type="quiz_orphaned", **context):
        item = handover.Item(item_type, "public.quiz_responses", priority, "names nobody", "system:tests", context)
        for key in ids:
            handover.raise_item(db, settings, item, key)

    return put


def states(admin):
    return dict(admin.execute("SELECT resource_id, status FROM ops.manual_resolution_queue").fetchall())


def audited(admin):
    rows = admin.execute("SELECT actor, action, reason FROM ops.audit_log ORDER BY seq")
    return rows.fetchall()


def test_the_worst_comes_first_by_deadline_then_priority_then_age(olga, add):
    add("low", priority="low")
    add("medium-old", "medium-young")
    add("critical", priority="critical")
    add("high", priority="high")
    order = [olga.claim().resource_id for _ in range(5)]
    assert order == ["critical", "high", "medium-old", "medium-young", "low"]
    assert olga.claim() is None


@pytest.mark.pooled
def test_a_claim_is_one_operators_and_audited(olga, boris, add, admin):
    add("1")
    item = olga.claim()
    assert (item.status, item.assigned_to) == ("assigned", "olga")
    assert boris.claim() is None
    assert boris.claim(Filter(item_id=item.id)) is None
    assert audited(admin) == [("operator:olga", "queue_item_claimed", "quiz_orphaned")]
    for change in (boris.release, boris.escalate):
        with pytest.raises(SomebodyWasFirst, match="assigned, olga has it"):
            change(item.id)


def test_a_claim_that_ran_out_is_free_again(olga, boris, add, admin):
    add("1")
    item = olga.claim()
    admin.execute("UPDATE ops.manual_resolution_queue SET claim_expires_at = now() - interval '1 second'")
    assert boris.claim().id == item.id
    with pytest.raises(SomebodyWasFirst):
        olga.resolve(item.id, "delete", "too late")


@pytest.mark.pooled
def test_fifty_at_once_never_get_the_same_item(db, settings, add):
    add(*(str(n) for n in range(200)))

    def drain(name):
        mine, work = [], Work(db, settings, name)
        while item := work.claim():
            mine.append(item.id)
            work.resolve(item.id, "keep", "looked at")
        return mine

    with ThreadPoolExecutor(8) as pool:
        taken = [item for part in pool.map(drain, (f"operator-{n}" for n in range(50))) for item in part]
    assert len(taken) == len(set(taken)) == 200


def test_resolving_scrubs_the_context_and_audits_a_code_and_a_digest(olga, add, admin):
    add("1", amount=12)
    item = olga.claim()
    done = olga.resolve(item.id, "delete", "Anna asked on the phone")
    assert (done.status, done.resolved_by, done.context) == ("resolved", "operator:olga", {})
    assert done.justification == "Anna asked on the phone"
    metadata = admin.execute("SELECT metadata FROM ops.audit_log WHERE action = 'queue_item_resolved'").fetchone()[0]
    assert metadata["decision"] == "delete"
    assert metadata["justification"].startswith("k1:")
    assert "Anna" not in str(metadata)


def test_a_decision_needs_a_justification_and_a_key(db, add, olga, monkeypatch):
    add("1")
    item = olga.claim()
    with pytest.raises(Misconfigured, match="justification"):
        olga.resolve(item.id, "delete", "  ")
    monkeypatch.delenv("AUDIT_PSEUDONYM_KEY")
    with pytest.raises(Misconfigured, match="AUDIT_PSEUDONYM_KEY"):
        Work(db, load_settings(), "olga").resolve(item.id, "delete", "because")


def test_a_deferred_item_comes_back_at_its_time(olga, boris, add, admin, db):
    add("1")
    item = olga.claim()
    assert olga.defer(item.id, db.now() + timedelta(days=1)).status == "deferred"
    assert boris.claim() is None
    admin.execute("UPDATE ops.manual_resolution_queue SET deferred_until = now() - interval '1 second'")
    assert boris.claim().id == item.id
    with pytest.raises(Misconfigured, match="past"):
        boris.defer(item.id, db.now() - timedelta(seconds=1))


def test_an_escalated_item_stays_escalated_while_somebody_has_it(olga, boris, add, admin):
    add("1")
    item = olga.claim()
    olga.escalate(item.id)
    taken = boris.claim()
    assert (taken.status, taken.assigned_to) == ("escalated", "boris")
    assert boris.release(item.id).status == "escalated"


@pytest.mark.parametrize("last", ["claim", "defer", "escalate"])
def test_undo_takes_the_last_step_back(olga, boris, add, admin, db, last):
    add("1")
    item = olga.claim()
    if last == "defer":
        olga.defer(item.id, db.now() + timedelta(days=1))
    elif last == "escalate":
        olga.escalate(item.id)
    with pytest.raises(SomebodyWasFirst):
        boris.undo(item.id)
    assert olga.undo(item.id).status == "pending"
    with pytest.raises(SomebodyWasFirst):
        olga.undo(item.id)
    assert audited(admin)[-1] == ("operator:olga", "queue_item_undone", "quiz_orphaned")


def test_reopening_counts_the_deadline_anew_and_never_makes_two_open_items(olga, add, admin, db, settings):
    add("1")
    item = olga.claim()
    olga.resolve(item.id, "delete", "because")
    admin.execute("UPDATE ops.manual_resolution_queue SET deadline_at = now() - interval '9 days'")
    again = olga.reopen(item.id)
    assert again.status == "pending"
    assert again.deadline_at > db.now() + timedelta(days=6)
    olga.resolve(item.id, "delete", "because")
    add("1")
    with pytest.raises(SomebodyWasFirst, match="open already"):
        olga.reopen(item.id)


def test_what_is_not_there_is_said(olga):
    with pytest.raises(SomebodyWasFirst, match="there is no such item"):
        olga.release("00000000-0000-4000-8000-000000000000")


def test_a_listing_is_worst_first_and_filters(db, add, olga):
    add("a", "b", priority="low")
    add("c", priority="high", item_type="quiz_undelivered")
    assert [item.resource_id for item in queue_work.items(db)] == ["c", "a", "b"]
    assert [item.resource_id for item in queue_work.items(db, Filter(item_type="quiz_undelivered"))] == ["c"]
    assert [item.resource_id for item in queue_work.items(db, Filter(priority="low"), limit=1)] == ["a"]
    olga.resolve(olga.claim().id, "keep", "x")
    assert [item.resource_id for item in queue_work.items(db)] == ["a", "b"]
    assert len(queue_work.items(db, open_only=False)) == 3


@pytest.mark.parametrize("state", ["pending", "assigned", "escalated", "deferred", "resolved"])
@pytest.mark.parametrize("target", ["deferred", "escalated", "resolved"])
def test_an_item_goes_where_an_arrow_leads_and_nowhere_else(olga, add, admin, db, state, target):
    add("1")
    item = admin.execute("SELECT id FROM ops.manual_resolution_queue").fetchone()[0]
    tomorrow = db.now() + timedelta(days=1)
    reach = {
        "pending": lambda: None,
        "assigned": olga.claim,
        "escalated": lambda: olga.escalate(item),
        "deferred": lambda: olga.defer(item, tomorrow),
        "resolved": lambda: olga.resolve(item, "keep", "looked at"),
    }
    reach[state]()
    if (state, target) in TRANSITIONS:
        reach[target]()
        assert states(admin) == {"1": target}
    else:
        with pytest.raises(SomebodyWasFirst, match=f"it is {state}"):
            reach[target]()
        assert states(admin) == {"1": state}


def test_the_arrows_are_those_of_the_domain():
    assert {to for state, to in TRANSITIONS if state == "resolved"} == {"pending"}
    assert {state for state, to in TRANSITIONS if to == "escalated"} == {"pending", "assigned"}
    assert {state for state, to in TRANSITIONS if to == "resolved"} == {"pending", "assigned", "escalated", "deferred"}


def test_a_claim_uses_the_index(admin, db, settings, olga):
    admin.execute(
        "INSERT INTO ops.manual_resolution_queue (item_type, resource_type, resource_id, priority, reason, raised_by,"
        " deadline_at) SELECT 'quiz_orphaned', 'public.quiz_responses', n::text, 'low', 'r', 'system:tests',"
        " now() + n * interval '1 second' FROM generate_series(1, 20000) n"
    )
    admin.execute("ANALYZE ops.manual_resolution_queue")
    plan = admin.execute(
        "EXPLAIN SELECT id FROM ops.manual_resolution_queue w WHERE w.status <> 'resolved' AND w.claimable_at <= now()"
        " ORDER BY w.deadline_at, w.priority_rank, w.first_seen_at, w.id LIMIT 1 FOR UPDATE SKIP LOCKED"
    ).fetchall()
    assert "manual_resolution_queue_worst_idx" in str(plan)
    assert olga.claim().resource_id == "1"


def test_a_decision_in_a_transaction_asks_for_no_second_connection(database, settings, add, olga):
    add("1")
    item = olga.claim()
    narrow = Database(database.url, application_name="tests", max_size=1)
    narrow.open()
    boris = Work(narrow, settings, "boris")
    try:
        with narrow.transaction() as connection, pytest.raises(SomebodyWasFirst, match="assigned, olga has it"):
            boris.require_mine(connection, item.id)
        with narrow.transaction() as connection, pytest.raises(SomebodyWasFirst, match="assigned, olga has it"):
            boris.resolve(item.id, "keep", "looked at", within=connection)
    finally:
        narrow.close()


def test_an_address_that_is_a_rows_key_is_kept_no_longer_than_the_item_is_open(olga, add, admin, settings):
    add("anna@example.com", "00000000-0000-4000-8000-000000000001", "ben%40example.com")
    assert {item.resource_id for item in queue_work.items(olga._database)} == set(states(admin))

    for _ in range(3):
        olga.resolve(olga.claim().id, "delete", "case 12")

    said = {pseudonym(settings, key) for key in ("anna@example.com", "ben%40example.com")}
    assert set(states(admin)) == {*said, "00000000-0000-4000-8000-000000000001"}
    (closed,) = admin.execute(
        "SELECT id FROM ops.manual_resolution_queue WHERE resource_id LIKE 'k1:%' LIMIT 1"
    ).fetchone()
    with pytest.raises(SomebodyWasFirst, match="its row's key, an address, was not kept"):
        olga.reopen(closed)
    add("anna@example.com")
    assert states(admin)["anna@example.com"] == "pending", "the same row can be raised again"
