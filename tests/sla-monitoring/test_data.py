"""What the user was promised: what is past its date is gone. And what if nobody can tell."""

import re
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from scripts.lifecycle.monitoring.residue import measure
from scripts.lifecycle.policy.policy_file import load_policies
from scripts.utils.db_utils import Database
from scripts.utils.errors import PolicyFailed
from scripts.utils.settings import load_settings
from tests.forked import run_script

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
PREFIX = "sla:cleanup_quiz_responses:quiz_responses:"


@pytest.fixture
def well(world):
    """A job that is watched and ran when it was due."""
    world.watched()
    world.ran()
    return world


@pytest.mark.parametrize(
    ("overdue", "severity"),
    [(24 * HOUR, None), (25 * HOUR + MINUTE, "warning"), (47 * HOUR, "warning"), (48 * HOUR + MINUTE, "critical")],
)
def test_the_oldest_row_past_its_date_is_the_service_level(monitor, well, told, overdue, severity):
    well.quiz(overdue)
    monitor()
    key = f"{PREFIX}overdue"
    assert [alert for alert in well.alerts() if alert[0] == key] == ([(key, severity)] if severity else [])
    if severity:
        told()
        well.delete_quiz()
        assert key in monitor()["recovered"]
        assert told()[0] == [
            "*[recovered]* over: public.quiz_responses holds data that should be gone (quiz_responses)"
        ]


def test_it_says_how_old_how_many_and_since_when(monitor, well, slack):
    well.quiz(30 * HOUR, rows=7)
    well.quiz(2 * HOUR, rows=4)
    monitor()
    said = " ".join(body["text"] for body in slack.taken if "overdue" in body["text"])
    for part in ("1 d 6 h past its date", "11 rows are past theirs, 7 of them late", "warns at 1 d 1 h", "#overdue"):
        assert part in said
    (since,) = well.admin.execute("SELECT now() - since FROM ops.alerts WHERE key LIKE '%%overdue'").fetchone()
    assert abs(since - 5 * HOUR) < MINUTE


def test_a_row_under_a_legal_hold_is_not_overdue(monitor, well):
    well.quiz(99 * HOUR)
    well.admin.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, reason, placed_by)"
        " VALUES ('table', 'public.quiz_responses', 'a case', 'tests')"
    )
    assert monitor()["alerts"] == 0
    ((_, status, items, figures),) = well.observations()
    assert (status, items, figures["held"]) == ("within_sla", 0, 1)


def test_what_was_seen_is_kept(monitor, well):
    well.quiz(26 * HOUR, rows=3)
    monitor()
    ((subject, status, items, figures),) = well.observations()
    assert (subject, status, items) == ("quiz_responses", "warning", 3)
    assert figures["job"] == "cleanup_quiz_responses"
    assert figures["late"] == 3


def test_a_column_that_was_renamed(monitor, well, told):
    well.quiz(60 * HOUR)
    monitor()
    told()
    well.admin.execute("ALTER TABLE quiz_responses RENAME pdf_delivered_at TO delivered_at")
    done = monitor()
    assert done["not_counted"] == 1
    assert done["raised"] == [f"{PREFIX}uncounted"]
    assert done["recovered"] == []  # nobody knows whether what was overdue is gone
    assert f"{PREFIX}overdue" in dict(well.alerts())
    lines, _ = told()
    assert lines == ["*[WARNING]* what is past its date in public.quiz_responses cannot be counted"]
    assert monitor()["raised"] == []
    well.admin.execute("ALTER TABLE quiz_responses RENAME delivered_at TO pdf_delivered_at")
    assert monitor()["recovered"] == [f"{PREFIX}uncounted"]


def test_unknown_is_kept_as_unknown_and_not_as_nothing(monitor, well):
    well.admin.execute("DROP TABLE quiz_responses CASCADE")
    monitor()
    ((_, status, items, figures),) = well.observations()
    assert (status, items) == ("unknown", None)
    assert "does not exist" in figures["because"]


def test_unknown_for_longer_than_the_promise_is_critical(monitor, world):
    world.watched(ago=26 * HOUR, items=5)
    world.ran()
    world.admin.execute("ALTER TABLE quiz_responses RENAME pdf_delivered_at TO delivered_at")
    monitor()
    assert world.alerts() == [(f"{PREFIX}uncounted", "critical")]


def test_a_locked_table_holds_the_monitor_up_for_seconds_only(monitor, well, database, told):
    holder = database.superuser()
    holder.execute("BEGIN")
    holder.execute("LOCK TABLE quiz_responses IN ACCESS EXCLUSIVE MODE")
    assert monitor()["raised"] == [f"{PREFIX}uncounted"]
    holder.execute("ROLLBACK")
    assert "stays locked" in well.admin.execute("SELECT how_bad FROM ops.alerts").fetchone()[0]
    told()
    assert monitor()["recovered"] == [f"{PREFIX}uncounted"]
    assert len(told()[0]) == 1


def test_a_table_too_large_to_count_in_time(well, database, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    well.quiz(HOUR, rows=100_000)
    pool = Database(database.url, application_name="tests", max_size=2)
    pool.open()
    try:
        policy = load_policies(well.path).policies["quiz_responses"]
        facts = {"policy": policy, "now": pool.now(), "completed": None}
        assert measure(pool, load_settings(), **facts, seconds=20).remaining == 100_000
        with pytest.raises(PolicyFailed, match="not counted within") as caught:
            measure(pool, load_settings(), **facts, seconds=0.05)
        assert caught.value.stop_reason == "count_timeout"
    finally:
        pool.close()


def test_a_monitor_whose_own_time_is_up_says_so_of_what_it_did_not_count(monitor, well):
    well.document["jobs"]["monitor_cleanup_sla"]["budget"] = "1 second"
    well.write()
    well.ran()
    assert monitor()["raised"] == [f"{PREFIX}uncounted"]
    assert "the monitor's own time was used up" in well.admin.execute("SELECT how_bad FROM ops.alerts").fetchone()[0]


def test_a_job_that_reports_success_and_deletes_nothing_is_named(monitor, world, told, slack):
    world.watched()
    world.quiz(20 * HOUR, rows=30)
    world.watched(ago=4 * HOUR, items=30)
    world.ran(deleted=0, records_remaining=0)
    world.quiz(2 * HOUR, rows=12)  # it grows
    assert monitor()["raised"] == [f"{PREFIX}deletes_nothing"]
    (body,) = slack.taken
    assert "reports success and does not delete" in body["text"]
    assert "deleted 0 rows; 30 rows that were due then are still" in body["text"]
    told()
    assert monitor()["raised"] == []
    world.delete_quiz()
    world.ran(world.now - MINUTE, deleted=42)
    assert monitor()["recovered"] == [f"{PREFIX}deletes_nothing"]
    assert told() == (
        ["*[recovered]* over: cleanup_quiz_responses reports success and does not delete (quiz_responses)"],
        [("resolve", f"{PREFIX}deletes_nothing")],
    )


def test_what_others_delete_does_not_excuse_the_job(monitor, world):
    world.watched()
    world.quiz(20 * HOUR, rows=30)
    world.watched(ago=4 * HOUR, items=30)
    world.ran(deleted=0, records_remaining=0)
    monitor()
    world.admin.execute("DELETE FROM quiz_responses WHERE id IN (SELECT id FROM quiz_responses LIMIT 5)")
    assert monitor()["recovered"] == []
    assert (f"{PREFIX}deletes_nothing", "critical") in world.alerts()


def test_a_row_that_came_after_the_run_with_an_old_date_accuses_nobody(monitor, world):
    world.watched()
    world.watched(ago=4 * HOUR, items=30)
    world.ran(deleted=30)
    world.quiz(20 * HOUR, rows=5)
    assert monitor()["alerts"] == 0


def test_rows_that_a_person_was_given_accuse_nobody(monitor, world):
    world.watched()
    world.quiz(20 * HOUR, rows=2)
    world.watched(ago=4 * HOUR, items=2)
    world.ran(deleted=0, code=4)
    world.admin.execute(
        "INSERT INTO ops.manual_resolution_queue (item_type, resource_type, resource_id, priority, reason, raised_by,"
        " deadline_at) SELECT 'row_deletion_failed', 'public.quiz_responses', id, 'medium', 'x', 'x', now() + '1 day'"
        " FROM quiz_responses"
    )
    assert monitor()["alerts"] == 0


def test_a_backlog_that_grows_never_ends_and_one_that_shrinks_has_an_end(monitor, world, told):
    world.watched(ago=24 * HOUR, items=10)
    world.ran(deleted=20, status="partial", code=0)
    world.quiz(30 * HOUR, rows=60)
    key = f"{PREFIX}backlog"
    assert key in monitor()["raised"]
    (how_bad,) = world.admin.execute("SELECT how_bad FROM ops.alerts WHERE key = %s", (key,)).fetchone()
    # The slot of yesterday lies up to a quarter of an hour before this minute of yesterday.
    arrive, go = map(int, re.fullmatch(r"(\d+) arrive and (\d+) go a day .over 1 d.: .* never ends", how_bad).groups())
    assert (arrive, go) == (pytest.approx(70, rel=0.02), pytest.approx(20, rel=0.02))
    ((*_, figures),) = world.observations()
    assert figures["arrivals_per_day"] == pytest.approx(70, rel=0.02)
    assert figures["deletions_per_day"] == pytest.approx(20, rel=0.02)
    assert figures["days_left"] is None
    told()
    world.ran(world.now - MINUTE, deleted=80, status="partial", code=0)
    world.admin.execute("DELETE FROM quiz_responses WHERE id IN (SELECT id FROM quiz_responses LIMIT 55)")
    done = monitor()
    assert done["recovered"] == [key]
    text = "a day (over 1 d): the backlog of 5 ends in"
    assert text in world.admin.execute("SELECT how_bad FROM ops.alerts WHERE key LIKE '%%overdue'").fetchone()[0]


def test_what_a_daily_job_has_to_do_next_is_no_backlog(monitor, world):
    world.watched(ago=24 * HOUR, items=60)
    world.ran(deleted=60)
    world.quiz(HOUR, rows=60)
    assert monitor()["alerts"] == 0


def test_a_policy_that_no_job_names(monitor, world, told):
    world.watched()
    world.ran()
    world.document["jobs"]["cleanup_quiz_responses"].pop("policies")
    world.write()
    assert monitor()["raised"] == ["sla:no_job:quiz_responses:unclaimed"]


def test_two_monitors_at_once_tell_once(environment, world, told, tmp_path):
    path = Path(__file__).parents[2] / "scripts" / "sla-monitoring" / "monitor_cleanup_sla.py"
    world.watched()
    world.quiz(50 * HOUR)
    done = []

    def look():
        done.append(run_script(path, "--policy-file", str(world.path), env=environment))

    for expected in (2, 2):
        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert [each.returncode for each in done] == [0] * len(done), done
        lines, actions = told()
        assert len(lines) == len(actions) == expected, lines
        world.delete_quiz()
        world.ran(world.now)
        world.admin.execute("UPDATE ops.alerts SET last_seen_at = last_seen_at - interval '1 second'")
    assert world.alerts() == []


def test_a_sink_that_is_down_delays_and_fails_nothing(monitor, world, told, free_port, pagerduty):
    world.watched()
    assert monitor(MRQ_ALERT_SLACK_WEBHOOK=f"http://127.0.0.1:{free_port}/x")["raised"] != []
    lines, actions = told()
    assert (lines, len(actions)) == ([], 1)
    monitor()
    lines, actions = told()
    assert (len(lines), actions) == (1, [])


def test_its_own_failure_is_an_exit_code(run_script_here, world, free_port, database):
    done = run_script_here(
        "monitor_cleanup_sla",
        "--policy-file",
        str(world.path),
        DATABASE_URL=database.url.replace(database.url.rpartition("@")[2].partition("/")[0], f"127.0.0.1:{free_port}"),
    )
    assert done.code == 1
    assert done.closing["event"] == "monitor_failed"
