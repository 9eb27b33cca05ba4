"""What happens to the queue by itself, every thirty minutes: once, and with one alert an item."""

from pathlib import Path

import pytest

from tests.lifecycle.receivers import pagerduty_settings, slack_settings

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "manual-resolution"


@pytest.fixture
def escalate(call, slack, pagerduty):
    """A function that runs the script with both sinks."""
    sinks = slack_settings(slack) | pagerduty_settings(pagerduty)
    return lambda *arguments, **settings: call(FOLDER / "escalate_breaches.py", *arguments, **(sinks | settings))


@pytest.fixture
def late(link, item_of):
    """A function that adds an item whose deadline passed an hour ago."""

    def add(key="late", **facts):
        item = item_of("quiz_undelivered", key=key, **facts)
        link.execute(
            "UPDATE ops.manual_resolution_queue SET deadline_at = now() - interval '1 hour' WHERE id = %s", (item,)
        )
        return item

    return add


def items(link):
    """Return each item's state, and who has it."""
    rows = link.execute("SELECT resource_id, status, assigned_to FROM ops.manual_resolution_queue ORDER BY 1")
    return rows.fetchall()


def change(link, key, assignments):
    link.execute(f"UPDATE ops.manual_resolution_queue SET {assignments} WHERE resource_id = %s", (key,))


def audited(link):
    return link.execute("SELECT actor, action, resource_id FROM ops.audit_log ORDER BY seq, 3").fetchall()


def test_what_is_late_is_escalated_once_and_told_once(escalate, link, late, item_of, slack, pagerduty):
    key, critical = late(), late("worse", priority="critical")
    item_of("quiz_undelivered", key="in time")
    first = escalate()
    assert first.code == 0
    closing = first.lines[-1]
    assert (closing["event"], closing["escalated"], closing["alerts_raised"]) == ("escalation_completed", 2, 2)
    assert items(link) == [("in time", "pending", None), ("late", "escalated", None), ("worse", "escalated", None)]
    assert audited(link) == [
        ("system:escalate_breaches", "queue_item_escalated", item) for item in sorted([key, critical])
    ]
    assert len(slack.taken) == 2
    assert [body["event_action"] for body in pagerduty.taken] == ["trigger"]
    assert critical in str(pagerduty.taken[0])
    again = escalate().lines[-1]
    assert (again["escalated"], again["alerts_raised"], again["alerts_recovered"]) == (0, 0, 0)
    assert (len(slack.taken), len(pagerduty.taken), len(audited(link))) == (2, 1, 2)


def test_once_it_is_decided_the_alert_is_over(escalate, call, late, slack, pagerduty):
    key = late(priority="critical")
    escalate()
    reason = ("--decision", "refund", "--reason", "called them")
    assert call(FOLDER / "process_queue.py", "resolve", key, *reason).code == 0
    assert escalate().lines[-1]["alerts_recovered"] == 1
    assert [body["event_action"] for body in pagerduty.taken] == ["trigger", "resolve"]
    assert len(slack.taken) == 2
    assert escalate().lines[-1]["alerts_recovered"] == 0


def test_a_stale_claim_returns_and_a_live_one_stays(escalate, link, item_of):
    for key in ("stale", "live", "asked for help"):
        item_of("quiz_undelivered", key=key)
        change(link, key, "status = 'assigned', assigned_to = 'boris', claim_expires_at = now() + interval '5 minutes'")
    change(link, "stale", "claim_expires_at = now() - interval '1 second'")
    change(link, "asked for help", "status = 'escalated', claim_expires_at = now() - interval '1 second'")
    assert escalate().lines[-1]["claims_expired"] == 2
    assert items(link) == [
        ("asked for help", "escalated", None),
        ("live", "assigned", "boris"),
        ("stale", "pending", None),
    ]


def test_whoever_works_on_what_is_escalated_keeps_it_and_decides(escalate, call, link, late, quiz):
    quiz()
    key = late("00000000-0000-4000-8000-000000000001")
    assert call(FOLDER / "process_queue.py", "claim").answer["item"]["id"] == key
    assert escalate().lines[-1]["escalated"] == 1
    assert items(link) == [("00000000-0000-4000-8000-000000000001", "escalated", "olga")]
    reason = ("--decision", "delete", "--reason", "called them")
    assert call(FOLDER / "process_queue.py", "resolve", key, *reason).code == 0
    assert items(link)[0][1] == "resolved"


def test_a_deferral_comes_back_at_its_day_and_is_then_late(escalate, link, late, item_of):
    late("due")
    late("put off")
    change(link, "due", "status = 'deferred', deferred_until = now() - interval '1 second'")
    change(link, "put off", "status = 'deferred', deferred_until = now() + interval '1 day'")
    closing = escalate().lines[-1]
    assert (closing["deferrals_due"], closing["escalated"]) == (1, 1)
    assert [row[:2] for row in items(link)] == [("due", "escalated"), ("put off", "deferred")]


def test_a_sink_that_is_down_is_told_by_the_next_run(escalate, late, slack):
    late()
    slack.answers = [503] * 20
    assert escalate().code == 0
    assert slack.taken == []
    slack.answers = []
    escalate()
    assert len(slack.taken) == 1


@pytest.mark.parametrize("how", [{"CLEANUP_DRY_RUN": "true"}, "--dry-run"])
def test_a_dry_run_counts_and_changes_nothing(escalate, link, late, slack, how):
    late()
    done = escalate(**how) if isinstance(how, dict) else escalate(how)
    assert (done.code, done.lines[-1]["escalated"], done.lines[-1]["dry_run"]) == (0, 1, True)
    assert items(link) == [("late", "pending", None)]
    assert (audited(link), slack.bodies) == ([], [])
    assert link.execute("SELECT count(*) FROM ops.alerts").fetchone() == (0,)


def test_more_than_one_transaction_takes_them_all(escalate, link, late):
    key = late()
    link.execute(
        "INSERT INTO ops.manual_resolution_queue (item_type, resource_type, resource_id, priority, reason, raised_by,"
        " deadline_at, assigned_to, claim_expires_at, status) SELECT item_type, resource_type, n::text, priority, reason,"
        " raised_by, now() + interval '1 day', 'boris', now() - interval '1 hour', 'assigned'"
        " FROM ops.manual_resolution_queue, generate_series(1, 2500) n WHERE id = %s",
        (key,),
    )
    assert escalate().lines[-1]["claims_expired"] == 2500
    assert link.execute("SELECT count(DISTINCT resource_id) FROM ops.audit_log").fetchone() == (2501,)


def test_every_run_leaves_a_record_and_a_dry_run_none(escalate, link):
    escalate("--dry-run")
    assert link.execute("SELECT count(*) FROM ops.job_runs").fetchone() == (0,)
    escalate()
    records = link.execute("SELECT script, policy, status, stop_reason, exit_code FROM ops.job_runs").fetchall()
    assert records == [("escalate_breaches", "-", "completed", "done", 0)]


def test_a_run_that_fails_says_so_in_its_record(escalate, link, late):
    late()
    link.execute("REVOKE UPDATE ON ops.manual_resolution_queue FROM lifecycle_jobs")
    done = escalate()
    assert done.code == 1
    record = link.execute("SELECT status, stop_reason, exit_code, finished_at IS NOT NULL FROM ops.job_runs").fetchone()
    assert record == ("failed", "database_error", 1, True)


def test_a_lock_that_is_held_is_on_record(escalate, link, redis_client):
    redis_client.set(
        "lock:manual_resolution:escalate_breaches", "0123456789abcdef elsewhere 1 2026-01-01T00:00:00Z", px=60_000
    )
    assert escalate().code == 75
    assert link.execute("SELECT policy, status, stop_reason FROM ops.job_runs").fetchall() == [
        ("-", "skipped", "lock_held")
    ]


def test_a_run_without_sinks_swallows_nobodys_page(call, escalate, late, slack, pagerduty):
    late(priority="critical")
    assert call(FOLDER / "escalate_breaches.py").code == 0
    assert slack.taken == []
    escalate()
    assert (len(slack.taken), len(pagerduty.taken)) == (1, 1)
    escalate()
    assert (len(slack.taken), len(pagerduty.taken)) == (1, 1)


def test_it_stops_between_two_alerts(escalate, link, late, run_time):
    late()
    link.execute(
        "INSERT INTO ops.manual_resolution_queue (item_type, resource_type, resource_id, priority, reason, raised_by,"
        " deadline_at) SELECT item_type, resource_type, n::text, priority, reason, raised_by, deadline_at"
        " FROM ops.manual_resolution_queue, generate_series(1, 60) n"
    )
    run_time.step = 0.1
    done = escalate("--max-duration", "2")
    assert done.code == 3
    assert link.execute("SELECT count(*) BETWEEN 1 AND 60 FROM ops.alerts").fetchone() == (True,)
