"""What others do while a run is under way: withdraw, write, hold, archive."""

import threading

from tests.faults.stage import wait_until
from tests.lifecycle.erasure.conftest import ARCHIVE, FOLDER
from tests.lifecycle.erasure.world import ADDRESS, NAME, PERSON

HOLDS = FOLDER / "legal_holds.py"


def test_a_request_that_is_withdrawn_while_an_earlier_one_is_carried_out_is_not_carried_out(world, asked, erase, start):
    world.add("first@example.com")
    world.add(PERSON, address=ADDRESS, name=NAME)
    asked("first@example.com", requested_at="2026-01-01T00:00:00Z")
    request = asked()
    before = world.of(PERSON)
    world.valve("ops.blob_deletions", "UPDATE", "NEW.status = 'sending'")
    running = start()
    wait_until(world.stopped, what="the run at the valve")
    assert erase("cancel", request).code == 0
    world.open_valve()
    closing = running.finish(0)
    assert closing["fulfilled"] == 1
    assert world.of(PERSON) == before
    assert [path.stem for path in world.folder.rglob("ledger/*")].count(request) == 0


def test_a_child_that_is_added_while_its_parent_goes_is_never_taken_along_unseen(world, person, asked, start, database):
    """The account's row is being referred to, so the steps go one by one; the child is there before the parent goes."""
    request = asked()
    other = database.superuser()
    other.execute("BEGIN")
    other.execute(
        "INSERT INTO quiz_responses (id, user_id, email, normalized_email, quiz_data, calorie_target, created_at)"
        " VALUES ('00000000-0000-4000-8000-00000000cafe', %s, 'b@example.com', 'b@example.com', '{}', 1, now())",
        (person["users"],),
    )
    running = start()

    def deleting():
        return world.link.execute(
            "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%DELETE FROM \"public\".\"users\"%'"
            " AND datname = current_database()"
        ).fetchone()

    done = threading.Event()

    def commit():
        for _ in range(600):
            if done.wait(0.05) or deleting() is not None:
                break
        other.execute("COMMIT")

    watcher = threading.Thread(target=commit)
    watcher.start()
    running.process.wait(300)
    done.set()
    watcher.join()
    there = world.rows("quiz_responses", "id", "id LIKE '%cafe'")
    audited = world.rows("ops.audit_log", "action", f"run_id = '{request}' AND resource_id LIKE '%cafe'")
    assert bool(there) != bool(audited), (there, audited)


def test_what_is_written_about_her_on_the_queue_stays_under_a_hold_on_her(world, person, asked, erase):
    before = world.rows("ops.manual_resolution_queue", "id, reason, context, justification")
    placed = erase("place", "--person", "-", "--reason", "a case", script=HOLDS, stdin=f"{ADDRESS}\n").event(
        "hold_placed"
    )
    asked()
    assert erase().code == 4
    after = world.rows(
        "ops.manual_resolution_queue", "id, reason, context, justification", "item_type <> 'erasure_blocked'"
    )
    assert after == before
    assert erase("release", placed["hold"], script=HOLDS).code == 0
    assert erase().code == 0
    assert world.where() == set()


def test_a_hold_that_ran_out_by_itself_does_not_keep_her_address(world, person, asked, erase):
    assert erase("place", "--person", "-", "--reason", "a case", script=HOLDS, stdin=f"{ADDRESS}\n").code == 0
    world.link.execute(
        "UPDATE ops.legal_holds SET placed_at = now() - interval '2 days', expires_at = now() - interval '1 day'"
    )
    asked()
    done = erase()
    assert (done.code, done.closing["fulfilled"]) == (0, 1), done.output
    assert world.where() == set()


def test_the_very_first_archive_while_a_run_is_under_way(world, erase, start):
    world.payment(PERSON, address=ADDRESS)
    world.link.execute(
        "INSERT INTO ops.erasure_requests (email, channel, identity_method, identity_verified_at)"
        " VALUES (%s, 'web', 'link', now())",
        (ADDRESS,),
    )
    world.valve("ops.erasure_requests", "UPDATE", "NEW.person IS NOT NULL AND OLD.person IS NULL")
    running = start()
    wait_until(world.stopped, what="the run at the valve")
    assert erase("run", script=ARCHIVE).closing["records_deleted"] == 1
    world.open_valve()
    running.finish(0)
    assert world.where() == set()


def test_an_address_in_another_of_its_spellings_is_found_on_the_queue(world, asked, erase):
    world.add(PERSON, address=ADDRESS, name=NAME)
    world.link.execute(
        "INSERT INTO ops.manual_resolution_queue (item_type, resource_type, resource_id, priority, reason, context,"
        " raised_by, deadline_at) VALUES ('retention_exception', 'public.things', 'n', 'low',"
        " 'A.n.n.e.Gret+else@gmail.com wrote', '{}', 'operator:test', now()),"
        " ('retention_exception', 'public.things', 'm', 'low', 'annegret.x@gmail.com wrote', '{}', 'operator:test', now())"
    )
    asked(PERSON)
    assert erase().code == 0
    assert world.rows("ops.manual_resolution_queue", "resource_id, reason") == [
        ("m", "annegret.x@gmail.com wrote"),
        ("n", "erased"),
    ]


def test_a_personal_key_does_not_stay_on_the_queue_as_the_items_resource(world, asked, erase):
    key = "someone@example.com"
    world.add(PERSON, address=ADDRESS, name=NAME)
    world.link.execute("UPDATE magic_link_tokens SET id = %s WHERE normalized_email = %s", (key, PERSON))
    world.queue_item("public.magic_link_tokens", key)
    asked()
    assert erase().code == 0
    assert world.where((key, PERSON)) == set()


def test_two_requests_of_one_person_that_come_in_at_the_same_moment_are_one(world, start, database):
    other = database.superuser()
    other.execute("BEGIN")
    other.execute(
        "INSERT INTO ops.erasure_requests (email, person, channel, deadline_at) VALUES (%s, %s, 'web', now())",
        (ADDRESS, PERSON),
    )
    world.link.execute("INSERT INTO ops.erasure_requests (email, channel) VALUES (%s, 'web')", (ADDRESS,))
    running = start()
    wait_until(
        lambda: world.link.execute(
            "SELECT 1 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
        ).fetchone(),
        what="the run at the other's entry",
    )
    other.execute("COMMIT")
    running.finish(0)
    assert world.rows("ops.erasure_requests", "status") == [("merged",), ("received",)]
