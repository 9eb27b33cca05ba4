"""Killed at each step, run again: the same end, one certificate."""

import json
import signal

import pytest

from tests.faults.stage import wait_until
from tests.lifecycle.archives.payments import kill
from tests.lifecycle.erasure.conftest import ARCHIVE
from tests.lifecycle.erasure.world import ADDRESS, NAME, PERSON

REQUESTS = "ops.erasure_requests"
STEPS = {
    "taken_in": (REQUESTS, "UPDATE", "OLD.person IS NULL AND NEW.person IS NOT NULL"),
    "ledger": (REQUESTS, "UPDATE", "NEW.status = 'running'"),
    "blob_intended": ("ops.blob_deletions", "INSERT", "true"),
    "blob_claimed": ("ops.blob_deletions", "UPDATE", "NEW.status = 'sending'"),
    "blob_gone": ("ops.blob_deletions", "UPDATE", "NEW.status = 'confirmed'"),
    "rows": ("public.users", "DELETE", "true"),
    "payments": ("public.payment_transactions", "UPDATE", "true"),
    "archive_key": ("ops.archive_keys", "UPDATE", "NEW.destroyed_at IS NOT NULL"),
    "fulfilled": (REQUESTS, "UPDATE", "NEW.status = 'fulfilled' AND OLD.status <> 'fulfilled'"),
    "told": (REQUESTS, "UPDATE", "NEW.certified_at IS NOT NULL"),
}


@pytest.mark.parametrize("step", STEPS)
def test_sigkill_at_each_step_and_a_rerun_come_to_the_same_end(world, erase, start, step):
    world.add("neighbour@example.com")
    world.payment(PERSON, address=ADDRESS)
    assert erase("run", script=ARCHIVE).closing["records_deleted"] == 1
    world.add(PERSON, address=ADDRESS, name=NAME)
    world.link.execute(
        f"INSERT INTO {REQUESTS} (email, channel, identity_method, identity_verified_at) VALUES (%s, 'web', 'link', now())",
        (ADDRESS,),
    )
    world.valve(*STEPS[step])

    killed = start()
    wait_until(world.stopped, what="the run at the valve")
    kill(killed)
    world.open_valve()
    closing = start().finish(0)

    assert world.where() == set()
    assert closing["blocked"] == closing["unfinished"] == 0
    ((request, status, told),) = world.rows(REQUESTS, "id::text, status, certified_at IS NOT NULL")
    assert (status, told) == ("fulfilled", True)
    assert world.rows("ops.audit_batches", "resource_ids", "action = 'erasure_fulfilled'") == [([request],)]
    assert [path.name for path in world.folder.rglob("certificates/*")] == [f"{request}.json"]
    assert [path.name for path in world.folder.rglob("ledger/*")] == [f"{request}.json"]
    # Each record is audited once, whether the killed run or the next one deleted it.
    audited = world.link.execute(
        "SELECT resource_type, resource_id, action, count(*) FROM ops.audit_log WHERE run_id = %s"
        " GROUP BY 1, 2, 3 HAVING count(*) > 1",
        (request,),
    ).fetchall()
    assert audited == []
    certificate = json.loads(next(world.folder.rglob("certificates/*")).read_text())["certificate"]
    done = {(each["table"], each["action"]): each["records"] for each in certificate["done"]}
    assert done == {
        ("public.meal_plans", "delete_blob"): 1,
        ("public.quiz_responses", "delete"): 1,
        ("public.magic_link_tokens", "delete"): 1,
        ("public.meal_plans", "delete"): 1,
        ("public.users", "delete"): 1,
        ("public.email_blacklist", "anonymize"): 1,
        ("public.manual_resolution", "delete"): 1,
        ("public.refund_counts", "delete"): 1,
        ("public.payment_transactions", "anonymize"): 1,
        ("ops.archive_keys", "destroy_key"): 1,
    }
    assert len(world.rows("users")) == 1


def test_sigterm_between_two_people_leaves_the_second_for_the_next_run(world, erase, start):
    for number in range(2):
        world.add(f"person{number}@example.com")
        world.link.execute(
            f"INSERT INTO {REQUESTS} (email, channel, requested_at, identity_method, identity_verified_at)"
            " VALUES (%s, 'web', now() - make_interval(days => %s), 'link', now())",
            (f"person{number}@example.com", 10 - number),
        )
    world.valve("public.users", "DELETE", "true")
    running = start()
    wait_until(world.stopped, what="the run at the valve")
    running.send(signal.SIGTERM)
    world.open_valve()
    closing = running.finish(143)
    assert closing["fulfilled"] <= 1
    assert world.of("person1@example.com")["users"], "the one whose deadline is later is untouched"
    assert erase().code == 0
    assert world.rows("users") == []
