"""The manual-resolution queue against its thresholds."""

from datetime import timedelta

import pytest

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SCOPE = "mrq:queue:"


class Queue:
    """Items of a given age."""

    def __init__(self, database):
        self.admin = database.superuser()

    def put(self, items, age=timedelta(), *, resolved=None, status=None):
        """Put items on it that were first seen so long ago, and resolved so long ago."""
        self.admin.execute(
            "INSERT INTO ops.manual_resolution_queue (item_type, resource_type, resource_id, priority, reason, raised_by,"
            " first_seen_at, deadline_at, status, resolved_at, deferred_until)"
            " SELECT 'quiz_undelivered', 'public.quiz_responses', gen_random_uuid()::text, 'high', 'x', 'x', now() - %s::interval,"
            " now() - %s::interval + interval '1 day', %s, now() - %s::interval, CASE WHEN %s = 'deferred' THEN now() + interval '9 days' END"
            " FROM generate_series(1, %s)",
            (age, age, status or ("resolved" if resolved is not None else "pending"), resolved, status, items),
        )

    def empty(self):
        self.admin.execute(
            "UPDATE ops.manual_resolution_queue SET status = 'resolved', resolved_at = now() WHERE status <> 'resolved'"
        )

    def alerts(self):
        rows = self.admin.execute("SELECT key, severity FROM ops.alerts WHERE resolved_at IS NULL ORDER BY key")
        return {key.removeprefix(SCOPE): severity for key, severity in rows}


@pytest.fixture
def queue(database):
    return Queue(database)


@pytest.fixture
def monitor(run_script_here):
    """A function that looks once."""

    def look(**settings):
        done = run_script_here("monitor_manual_resolution_queue", **settings)
        assert done.code == 0, done.lines
        return done.event("queue_monitored")

    return look


def test_an_empty_queue_is_well(monitor, queue, told):
    done = monitor()
    assert (done["depth"], done["sla_status"], queue.alerts(), told()) == (0, "within_sla", {}, ([], []))


@pytest.mark.parametrize(("items", "severity"), [(100, None), (101, "warning"), (500, "warning"), (501, "critical")])
def test_depth(monitor, queue, told, items, severity):
    queue.put(items)
    queue.put(700, status="deferred")
    monitor()
    assert queue.alerts() == ({"depth": severity} if severity else {})
    if severity is None:
        return
    lines, actions = told()
    assert len(lines) == 1
    assert actions == ([("trigger", f"{SCOPE}depth")] if severity == "critical" else [])
    monitor()
    assert told() == ([], [])
    queue.empty()
    assert monitor()["recovered"] == [f"{SCOPE}depth"]
    lines, actions = told()
    assert lines == ["*[recovered]* over: too much lies on the manual-resolution queue"]
    assert actions == ([("resolve", f"{SCOPE}depth")] if severity == "critical" else [])


def test_a_depth_that_grows_gets_worse_and_better_again(monitor, queue, told):
    queue.put(101)
    monitor()
    queue.put(400)
    monitor()
    assert queue.alerts() == {"depth": "critical"}
    queue.admin.execute(
        "DELETE FROM ops.manual_resolution_queue WHERE id IN (SELECT id FROM ops.manual_resolution_queue LIMIT 300)"
    )
    monitor()
    lines, actions = told()
    assert [line.partition(" too")[0] for line in lines] == [
        "*[WARNING]*",
        "*[CRITICAL]* worse than before:",
        "*[WARNING]* less bad than before:",
    ]
    assert [action for action, _ in actions] == ["trigger", "resolve"]


@pytest.mark.parametrize(("ages", "alerts"), [((50, 45), {}), ((60, 40), {"mean_age": "warning"})])
def test_mean_age(monitor, queue, ages, alerts):
    for age in ages:
        queue.put(1, age * HOUR)
    monitor()
    assert queue.alerts() == alerts


@pytest.mark.parametrize(("hours", "alerts"), [(167, {}), (169, {"oldest": "critical"})])
def test_the_oldest_item(monitor, queue, hours, alerts):
    queue.put(9)
    queue.put(1, hours * HOUR)
    monitor()
    assert queue.alerts() == alerts


def test_a_deferred_item_is_not_old(monitor, queue):
    queue.put(1, 30 * DAY, status="deferred")
    assert monitor()["sla_status"] == "within_sla"


@pytest.mark.parametrize(("today", "alerts"), [(4, {"resolution_rate": "warning"}), (5, {})])
def test_the_resolution_rate_against_its_own_average(monitor, queue, today, alerts):
    queue.put(1)
    for day in range(28):
        queue.put(10, (day + 3) * DAY, resolved=(day + 1.5) * DAY)
    queue.put(today, 2 * DAY, resolved=HOUR)
    done = monitor()
    assert (done["resolved_today"], done["resolved_a_day"]) == (today, 10)
    assert queue.alerts() == alerts


def test_with_nothing_to_do_nobody_is_slow(monitor, queue):
    for day in range(28):
        queue.put(10, (day + 3) * DAY, resolved=(day + 1.5) * DAY)
    assert monitor()["sla_status"] == "within_sla"


def test_the_thresholds_are_settings(monitor, queue):
    queue.put(3, 3 * HOUR)
    monitor(MRQ_DEPTH_WARNING="1", MRQ_DEPTH_CRITICAL="2", MRQ_AGE_WARNING_HOURS="2", MRQ_AGE_ESCALATION_HOURS="1")
    assert queue.alerts() == {"depth": "critical", "mean_age": "warning", "oldest": "critical"}


def test_two_looks_write_one_observation_a_slot(monitor, queue):
    queue.put(3)
    for _ in range(3):
        monitor()
    rows = queue.admin.execute(
        "SELECT script, subject, items, count(*) FROM ops.sla_observations GROUP BY 1, 2, 3, slot"
    )
    assert rows.fetchall() == [("monitor_manual_resolution_queue", "manual_resolution_queue", 3, 1)]


def test_a_dry_run_tells_and_writes_nothing(monitor, queue, told):
    queue.put(700)
    monitor(CLEANUP_DRY_RUN="true")
    assert (queue.alerts(), told()) == ({}, ([], []))
    assert queue.admin.execute("SELECT count(*) FROM ops.sla_observations").fetchone() == (0,)


def test_it_leaves_the_alerts_of_others_alone(monitor, queue):
    queue.admin.execute(
        "INSERT INTO ops.alerts (key, severity, what, how_bad, what_to_do, runbook, raised_by, since)"
        " SELECT k, 'warning', 'x', 'x', 'x', 'x', 'x', now() FROM unnest(ARRAY['sla:a', 'mrq:item:1', 'mrq:queue:depth']) k"
    )
    assert monitor()["recovered"] == ["mrq:queue:depth"]
