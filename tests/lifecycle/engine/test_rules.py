"""What is due, to the second, and what stays however old it is."""

from __future__ import annotations

import pytest

from tests.lifecycle.support import add_quiz, ago, audited, key_of, queue_items, quiz_left

EDGES = [(ago(hours=24, seconds=1), False), (ago(hours=24), True), (ago(hours=24, seconds=-1), True)]


@pytest.mark.parametrize(("delivered", "stays"), EDGES)
def test_delivered_answers_go_once_more_than_24_hours_have_passed_since_delivery(run_job, admin, delivered, stays):
    add_quiz(admin, "answers", delivered=delivered, paid=True)

    run = run_job()

    assert (run.code, run.closing["records_deleted"]) == (0, 0 if stays else 1)
    assert quiz_left(admin) == ({"answers"} if stays else set())


@pytest.mark.parametrize(("created", "stays"), EDGES)
def test_abandoned_answers_go_once_more_than_24_hours_have_passed_since_they_were_given(run_job, admin, created, stays):
    add_quiz(admin, "answers", created=created)

    run = run_job()

    assert (run.code, run.closing["records_deleted"]) == (0, 0 if stays else 1)
    assert quiz_left(admin) == ({"answers"} if stays else set())


def test_answers_without_payment_that_were_delivered_lately_stay_although_they_were_given_long_ago(run_job, admin):
    add_quiz(admin, "given away", created=ago(days=30), delivered=ago(hours=1))

    assert run_job().code == 0
    assert quiz_left(admin) == {"given away"}


def test_delivered_answers_that_were_never_paid_go_by_their_delivery(run_job, admin):
    add_quiz(admin, "given away", created=ago(days=30), delivered=ago(hours=25))

    run_job()

    assert quiz_left(admin) == set()
    assert admin.execute("SELECT DISTINCT reason FROM ops.audit_log").fetchall() == [
        ("retention_policy:quiz_responses/delivered",)
    ]


def test_a_paid_and_undelivered_order_is_kept_and_handed_to_a_person_once(run_job, admin):
    add_quiz(admin, "owed", created=ago(days=400), paid=True)

    first, second = run_job(), run_job()

    assert quiz_left(admin) == {"owed"}
    assert (first.code, first.closing["records_queued"]) == (4, 1)
    assert (second.code, second.closing["records_queued"]) == (0, 0)
    assert queue_items(admin) == [("quiz_undelivered", key_of("owed"), 2)]


@pytest.mark.parametrize(("created", "queued"), [(at, not stays) for at, stays in EDGES])
def test_an_undelivered_order_reaches_the_queue_once_more_than_24_hours_have_passed(run_job, admin, created, queued):
    add_quiz(admin, "owed", created=created, paid=True)

    run = run_job()

    assert run.code == (4 if queued else 0)
    assert len(queue_items(admin)) == queued
    assert quiz_left(admin) == {"owed"}


def test_a_resolved_order_that_is_still_undelivered_comes_back_as_a_new_item(run_job, admin):
    add_quiz(admin, "owed", created=ago(days=2), paid=True)
    run_job()
    admin.execute("UPDATE ops.manual_resolution_queue SET status = 'resolved', resolved_at = now()")

    assert run_job().code == 4
    assert queue_items(admin) == [("quiz_undelivered", key_of("owed"), 1)] * 2


def test_everything_else_of_the_person_is_left_alone(run_job, admin):
    admin.execute(
        "INSERT INTO users VALUES ('u', 'anna@example.com', 'anna@example.com', 'x', '2001-01-01', '2001-01-01');"
        "INSERT INTO meal_plans VALUES ('m', 'p', 'a', 'a', 'path', 1, '{}', 'ai', 'completed', 0, '2001-01-01');"
        "INSERT INTO payment_transactions VALUES ('t', 'p', 'm', 1, 'EUR', 'card', 'succeeded', '2001-01-01',"
        " '2001-01-01', 'a', 'a', '2001-01-01', '2001-01-01');"
        "INSERT INTO magic_link_tokens VALUES ('l', 'h', 'a', 'a', '2001-01-01', '2001-01-01', null, '::1');"
        "INSERT INTO email_blacklist VALUES ('b', 'a', 'abuse', '2001-01-01', '2001-01-01')"
    )
    add_quiz(admin, "answers", delivered=ago(days=2), user="u")

    assert run_job().closing["records_deleted"] == 1
    for table in ("users", "meal_plans", "payment_transactions", "magic_link_tokens", "email_blacklist"):
        assert admin.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,), table


def test_deleting_twice_deletes_once(run_job, admin):
    add_quiz(admin, "answers", delivered=ago(days=2))

    assert [run_job().closing["records_deleted"] for _ in range(2)] == [1, 0]
    assert audited(admin, "public.quiz_responses") == [key_of("answers")]


def test_an_empty_table_is_nothing_to_do_and_no_failure(run_job):
    run = run_job()

    assert run.code == 0
    assert (run.closing["records_deleted"], run.closing["records_remaining"], run.closing["stop_reason"]) == (
        0,
        0,
        "done",
    )
