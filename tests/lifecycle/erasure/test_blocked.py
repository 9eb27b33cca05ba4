"""What is in the way of an erasure stays, is named to a person once, and keeps nothing else from going."""

import pytest

from tests.faults.stage import wait_until
from tests.lifecycle.erasure.conftest import ARCHIVE, FOLDER
from tests.lifecycle.erasure.world import ADDRESS, NAME, PERSON

HOLDS = FOLDER / "legal_holds.py"


def items(world):
    return world.rows(
        "ops.manual_resolution_queue",
        "status, priority, occurrences, context -> 'kept'",
        "item_type = 'erasure_blocked'",
    )


def hold(erase, *what, stdin=""):
    done = erase("place", *what, "--reason", "a case", script=HOLDS, stdin=stdin)
    assert done.code == 0, done.output
    return done.event("hold_placed")["hold"]


def test_a_hold_on_the_person_keeps_everything_until_it_is_released(world, person, asked, erase):
    world.payment(PERSON, address=ADDRESS)
    # Archived before the hold.
    assert erase("run", script=ARCHIVE).closing["records_deleted"] == 1
    before = world.of(PERSON)
    placed = hold(erase, "--person", "-", stdin=f"{ADDRESS}\n")
    asked()

    first, second = erase(), erase()

    assert (first.code, first.closing["blocked"], first.closing["newly_queued"]) == (4, 1, 1)
    assert (second.code, second.closing["blocked"], second.closing["newly_queued"]) == (0, 1, 0)
    assert world.of(PERSON) == before
    ((status, priority, seen, kept),) = items(world)
    assert (status, priority, seen) == ("pending", "critical", 2)
    assert kept["public.users"]["held"] == kept["ops.archive_keys"]["held"] == 1
    assert PERSON not in first.output + second.output

    assert erase("release", placed, script=HOLDS).code == 0
    assert erase().closing["fulfilled"] == 1
    assert world.where() == set()
    assert [item[0] for item in items(world)] == ["resolved"]


def test_a_hold_on_a_row_keeps_that_row_and_what_it_refers_to(world, person, asked, erase):
    placed = hold(erase, "--table", "public.quiz_responses", "--id", person["quiz_responses"])
    asked()
    assert erase().code == 4
    left = {table: len(rows) for table, rows in world.of(PERSON).items()}
    assert left == {"users": 1, "quiz_responses": 1} | dict.fromkeys(left.keys() - {"users", "quiz_responses"}, 0)
    assert items(world)[0][3] == {"public.users": {"referenced": 1}, "public.quiz_responses": {"held": 1}}
    assert erase("release", placed, script=HOLDS).code == 0
    assert erase().code == 0
    assert world.where() == set()


def test_an_open_order_keeps_its_answers_and_the_rest_goes(world, asked, erase):
    world.add(PERSON, address=ADDRESS, name=NAME, open_order=True)
    asked()
    assert erase().code == 4
    assert items(world)[0][3]["public.quiz_responses"] == {"open_order": 1}
    assert len(world.of(PERSON)["quiz_responses"]) == 1
    assert world.of(PERSON)["magic_link_tokens"] == []
    world.link.execute("UPDATE quiz_responses SET pdf_delivered_at = timezone('UTC', now())")
    assert erase().code == 0
    assert world.where() == set()


@pytest.mark.parametrize(("sent", "code"), [("timezone('UTC', now())", 0), ("null", 4)])
def test_an_order_is_open_until_its_plan_was_sent(world, asked, erase, sent, code):
    world.add(PERSON, address=ADDRESS, name=NAME, open_order=True)
    world.link.execute("UPDATE quiz_responses SET payment_id = (SELECT payment_id FROM meal_plans)")
    world.link.execute(f"UPDATE meal_plans SET email_sent_at = {sent}")
    asked()
    assert erase().code == code
    assert [item[3]["public.quiz_responses"] for item in items(world)] == [{"open_order": 1}] * (code == 4)
    assert (world.where() == set()) == (code == 0)


def test_a_blob_that_does_not_go_keeps_its_row_and_no_other(world, person, asked, erase):
    asked()
    failing = erase(VERCEL_BLOB_API_URL="http://127.0.0.1:9/api/blob", BLOB_TIMEOUT_SECONDS="1")
    assert failing.code == 4, failing.output
    left = {table: len(rows) for table, rows in world.of(PERSON).items() if rows}
    assert left == {"meal_plans": 1}
    assert items(world)[0][3] == {"public.meal_plans": {"names_a_blob": 1}, "ops.blob_deletions": {"not_confirmed": 1}}
    assert erase().code == 0
    assert world.where() == set()


def test_a_token_that_the_store_refuses_fails_the_run_after_everything_else_was_done(world, person, asked, erase):
    asked()
    done = erase(BLOB_READ_WRITE_TOKEN="vercel_blob_rw_wrongstore_secret")
    assert done.code == 1
    assert {table for table, rows in world.of(PERSON).items() if rows} == {"meal_plans"}
    assert erase().code == 0
    assert world.where() == set()


def test_a_row_that_something_unknown_refers_to_stays_and_is_named(world, person, asked, erase):
    world.link.execute(
        "CREATE TABLE public.reviews (id bigint PRIMARY KEY, plan varchar(36) NOT NULL REFERENCES meal_plans);"
        "GRANT SELECT ON public.reviews TO lifecycle_jobs"
    )
    world.link.execute("INSERT INTO public.reviews VALUES (1, %s)", (person["meal_plans"],))
    asked()
    assert erase().code == 4
    assert items(world)[0][3] == {"public.meal_plans": {"referenced": 1}}
    assert {table for table, rows in world.of(PERSON).items() if rows} == {"meal_plans"}


def test_a_row_that_the_database_refuses_stays_and_the_rest_goes(world, person, asked, erase):
    world.link.execute(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'no'; END$$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON magic_link_tokens FOR EACH ROW EXECUTE FUNCTION public.refuse()"
    )
    asked()
    assert erase().code == 4
    assert {table for table, rows in world.of(PERSON).items() if rows} == {"magic_link_tokens"}
    ((refused,),) = world.rows("ops.manual_resolution_queue", "context -> 'refused'", "item_type = 'erasure_blocked'")
    assert list(refused) == ["magic_link_tokens"]
    assert "P0001" in refused["magic_link_tokens"]


def test_a_row_that_somebody_is_writing_to_is_left_for_the_next_run(world, person, asked, erase, database):
    asked()
    other = database.superuser()
    other.execute("BEGIN")
    other.execute("SELECT FROM magic_link_tokens WHERE id = %s FOR UPDATE", (person["magic_link_tokens"],))
    done = erase()
    assert (done.code, done.closing["unfinished"], items(world)) == (3, 1, [])
    assert {table for table, rows in world.of(PERSON).items() if rows} == {"magic_link_tokens"}
    other.execute("ROLLBACK")
    assert erase().code == 0
    assert world.where() == set()


def test_rows_that_are_written_while_she_is_being_erased_are_found_by_the_last_search(world, person, asked, start):
    """Her browser is still open: an answer arrives after hers were deleted."""
    asked()
    world.valve("public.users", "DELETE", "true")
    running = start()
    wait_until(world.stopped, what="the run at the valve")
    world.link.execute(
        "INSERT INTO quiz_responses (id, email, normalized_email, quiz_data, calorie_target, created_at)"
        " VALUES ('late', %s, %s, '{}', 1, now())",
        (ADDRESS, PERSON),
    )
    world.open_valve()
    running.finish(0)
    assert world.where() == set()


def test_a_key_that_is_personal_itself_is_audited_by_a_pseudonym(world, asked, erase):
    key = "someone@example.com"
    world.add(PERSON, address=ADDRESS, name=NAME)
    world.link.execute("UPDATE magic_link_tokens SET id = %s WHERE normalized_email = %s", (key, PERSON))
    asked()
    assert erase().code == 0
    ((named,),) = world.rows("ops.audit_log", "resource_id", "resource_type = 'public.magic_link_tokens'")
    assert named.startswith("k1:")
    assert world.where((key, PERSON)) == set()


def test_while_a_partition_is_detached_nobody_is_said_to_be_gone(world, person, asked, erase):
    """A run was killed between DETACH and DROP: the partition's rows are in no table that a search looks into."""
    world.link.execute(
        "CREATE TABLE public.old_answers (LIKE quiz_responses);"
        "INSERT INTO ops.detached_partitions (id, policy, table_name, partition_name, table_oid, partition_oid, bound, ends_at,"
        " run_id, cutoff_at, granted) SELECT gen_random_uuid(), 'quiz_responses', 'public.quiz_responses',"
        " 'public.old_answers', 'public.quiz_responses'::regclass, 'public.old_answers'::regclass, '', now(),"
        " gen_random_uuid(), now(), false"
    )
    asked()
    assert (erase().code, items(world)) == (3, [])
    world.link.execute("UPDATE ops.detached_partitions SET state = 'gone', closed_at = now()")
    assert erase().code == 0
