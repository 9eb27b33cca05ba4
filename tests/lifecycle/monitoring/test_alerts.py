"""One alert a problem, its reminders, its end; told to servers that keep what they are sent."""

import threading
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import structlog

from scripts.lifecycle.monitoring.alerts import Alert, Alerts
from scripts.utils.db_utils import ReadOnlyDatabase
from scripts.utils.settings import load_settings
from tests.lifecycle.receivers import pagerduty_settings, slack_settings

KEY = "sla:a_job:missed"
SINCE = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)


def problem(severity="critical", key=KEY, **changes):
    facts = {
        "what": "a_job did not start",
        "how_bad": "due 02:00, 90 minutes ago",
        "what_to_do": "start it by hand",
        "runbook": "scripts/sla-monitoring/README.md#missed",
        "since": SINCE,
    }
    return Alert(key, severity, **facts | changes)


@pytest.fixture
def alerts(db, _settings, monkeypatch, slack, pagerduty):
    """A function that makes what a monitor has; settings are given by name."""

    def make(**settings):
        for name, value in {**slack_settings(slack), **pagerduty_settings(pagerduty), **settings}.items():
            monkeypatch.setenv(name, value)
        return Alerts(db, load_settings(), "a_monitor")

    return make


def rows(admin, columns="key, severity, news, resolved_at IS NOT NULL, waiting"):
    return admin.execute(f"SELECT {columns} FROM ops.alerts ORDER BY raised_at, key").fetchall()


def lines(receiver):
    """The first line of each message that Slack took."""
    return [body["text"].splitlines()[0] for body in receiver.taken]


def actions(receiver):
    return [(body["event_action"], body["dedup_key"]) for body in receiver.taken]


def later(admin, **period):
    """Let so much time pass for every alert."""
    admin.execute(
        "UPDATE ops.alerts SET news_at = news_at - %s, last_seen_at = last_seen_at - %s", [timedelta(**period)] * 2
    )


def test_a_problem_is_told_once_however_often_it_is_seen(alerts, admin, slack, pagerduty):
    monitor = alerts()
    assert monitor.raise_(problem()) is True
    assert [monitor.raise_(problem()) for _ in range(3)] == [False] * 3
    assert lines(slack) == ["*[CRITICAL]* a_job did not start"]
    assert actions(pagerduty) == [("trigger", f"data-lifecycle:{KEY}")]
    assert rows(admin, "key, severity, news, occurrences, waiting, since") == [
        (KEY, "critical", "raised", 4, [], SINCE)
    ]


def test_a_message_says_all_that_whoever_is_woken_up_needs(alerts, slack, pagerduty):
    alerts(ALERT_RUNBOOK_URL="https://git.example.com/p/blob/main/", ALERT_SOURCE="production").raise_(
        problem(how_bad="<5 & more>")
    )
    page = "https://git.example.com/p/blob/main/scripts/sla-monitoring/README.md#missed"
    (said,) = slack.taken
    for part in (
        "a_job did not start",
        "since 2026-01-31 02:00 UTC",
        "&lt;5 &amp; more&gt;",
        "start it by hand",
        page,
        KEY,
    ):
        assert part in said["text"]
    assert "production" in said["text"]
    (event,) = pagerduty.taken
    assert event["dedup_key"] == f"production:{KEY}"
    assert event["links"] == [{"href": page, "text": "runbook"}]
    payload = event["payload"]
    assert payload["summary"] == "a_job did not start: <5 & more>"
    assert (payload["severity"], payload["source"], payload["component"]) == ("critical", "production", "a_monitor")
    assert payload["timestamp"] == "2026-01-31T02:00:00+00:00"
    assert payload["custom_details"]["what_to_do"] == "start it by hand"


def test_its_end_is_told_once_to_whoever_was_told_of_it(alerts, admin, slack, pagerduty):
    monitor = alerts()
    monitor.raise_(problem())
    assert monitor.settle(KEY, []).recovered == [KEY]
    assert monitor.settle(KEY, []).recovered == []
    assert lines(slack)[1:] == ["*[recovered]* over: a_job did not start"]
    assert "until" in slack.taken[1]["text"]
    assert actions(pagerduty)[1:] == [("resolve", f"data-lifecycle:{KEY}")]
    assert rows(admin) == [(KEY, "critical", "recovered", True, [])]


def test_a_problem_that_comes_back_is_a_new_one(alerts, admin, slack, pagerduty):
    monitor = alerts()
    for _ in range(2):
        assert monitor.raise_(problem()) is True
        monitor.settle(KEY, [])
    assert [action for action, _ in actions(pagerduty)] == ["trigger", "resolve"] * 2
    assert len(rows(admin)) == 2


@pytest.mark.parametrize(
    ("severity", "slack_told", "pagerduty_told", "level"),
    [("info", 0, 0, "info"), ("warning", 1, 0, "warning"), ("critical", 1, 1, "error")],
)
def test_the_severity_is_the_way(alerts, slack, pagerduty, severity, slack_told, pagerduty_told, level):
    monitor = alerts()
    with structlog.testing.capture_logs() as logged:
        monitor.raise_(problem(severity))
        monitor.raise_(problem(severity))
        monitor.settle(KEY, [])
    assert (len(slack.taken), len(pagerduty.taken)) == (2 * slack_told, 2 * pagerduty_told)
    said = [(line["event"], line["log_level"]) for line in logged]
    assert said == [("alert_raised", level), ("alert_recovered", "info")]
    assert {"alert", "severity", "what", "how_bad", "what_to_do", "runbook"} <= logged[0].keys()


def test_without_any_sink_the_state_is_kept(alerts, admin):
    monitor = alerts(MRQ_ALERT_SLACK_WEBHOOK="", PAGERDUTY_ROUTING_KEY="")
    assert monitor.raise_(problem()) is True
    assert monitor.settle(KEY, []).recovered == [KEY]
    assert rows(admin) == [(KEY, "critical", "recovered", True, [])]


def test_a_reminder_comes_after_the_pause_and_not_before(alerts, admin, slack, pagerduty):
    monitor = alerts(ALERT_REMINDER_HOURS="6")
    monitor.raise_(problem())
    later(admin, hours=5)
    monitor.raise_(problem(how_bad="8 hours ago"))
    assert len(slack.taken) == 1
    later(admin, hours=1)
    assert monitor.raise_(problem(how_bad="9 hours ago")) is False
    monitor.raise_(problem(how_bad="9 hours ago"))
    assert lines(slack)[1:] == ["*[CRITICAL]* still so: a_job did not start"]
    assert "9 hours ago" in slack.taken[1]["text"]
    assert actions(pagerduty)[1:] == [("trigger", f"data-lifecycle:{KEY}")]


def test_worse_is_told_at_once_and_better_stands_pagerduty_down(alerts, admin, slack, pagerduty):
    monitor = alerts()
    monitor.raise_(problem("warning"))
    assert pagerduty.taken == []
    assert monitor.raise_(problem("critical")) is False
    assert [action for action, _ in actions(pagerduty)] == ["trigger"]
    monitor.raise_(problem("warning"))
    assert [action for action, _ in actions(pagerduty)] == ["trigger", "resolve"]
    assert lines(slack)[1:] == [
        "*[CRITICAL]* worse than before: a_job did not start",
        "*[WARNING]* less bad than before: a_job did not start",
    ]
    assert rows(admin, "severity, news, version") == [("warning", "eased", 3)]


def test_a_whole_view_ends_what_is_not_in_it_and_nothing_else(alerts, admin, slack):
    monitor = alerts()
    for key in ("sla:a:missed", "sla:b:missed", "mrq:depth"):
        monitor.raise_(problem("warning", key))
    settled = monitor.settle("sla:", [problem("warning", "sla:b:missed"), problem("warning", "sla:c:missed")])
    assert (settled.raised, settled.recovered) == (["sla:c:missed"], ["sla:a:missed"])
    still = {key for key, open_ in rows(admin, "key, resolved_at IS NULL") if open_}
    assert still == {"sla:b:missed", "sla:c:missed", "mrq:depth"}
    assert monitor.settle("sla:", []).recovered == ["sla:b:missed", "sla:c:missed"]
    assert {key for key, open_ in rows(admin, "key, resolved_at IS NULL") if open_} == {"mrq:depth"}


def test_what_could_not_be_looked_at_is_not_over(alerts, admin):
    monitor = alerts()
    for key in ("sla:a:overdue", "sla:b:overdue"):
        monitor.raise_(problem("warning", key))
    assert monitor.settle("sla:", [], unknown=["sla:a:"]).recovered == ["sla:b:overdue"]


def test_an_older_view_does_not_end_what_somebody_has_seen_since(alerts, db):
    monitor = alerts()
    before = db.now()
    monitor.raise_(problem())
    assert monitor.settle("sla:", [], measured_at=before).recovered == []
    assert monitor.settle("sla:", [], measured_at=db.now()).recovered == [KEY]


def test_an_alert_outside_the_scope_is_refused_before_anything_is_written(alerts, admin):
    with pytest.raises(ValueError, match="not under sla:"):
        alerts().settle("sla:", [problem(), problem(key="mrq:depth")])
    assert rows(admin) == []


@pytest.mark.parametrize("wrong", [{"key": ""}, {"severity": "fatal"}])
def test_an_alert_that_could_not_be_told_is_refused(wrong):
    with pytest.raises(ValueError, match="no alert"):
        problem(**wrong)


@pytest.fixture
def reader(database):
    pool = ReadOnlyDatabase(database.url, application_name="tests", max_size=2)
    pool.open()
    yield pool
    pool.close()


def test_a_dry_run_writes_and_sends_nothing(alerts, reader, admin, slack, pagerduty):
    monitor = alerts()
    monitor.raise_(problem())
    slack.forget()
    pagerduty.forget()
    dry = Alerts(reader, load_settings(), "a_monitor")
    assert dry.raise_(problem(key="sla:other")) is False
    assert dry.settle(KEY, []).recovered == []
    assert dry.settle("sla:", []).recovered == []
    assert rows(admin) == [(KEY, "critical", "raised", False, [])]
    assert slack.bodies == pagerduty.bodies == []


def test_no_address_of_a_person_leaves_in_an_alert(alerts, admin, slack, pagerduty):
    alerts().raise_(problem(what="anna@example.com waits", how_bad="token=abcdef"))
    assert "anna" not in str(slack.bodies + pagerduty.bodies + rows(admin, "what, how_bad"))
    assert "abcdef" not in str(slack.bodies + pagerduty.bodies + rows(admin, "what, how_bad"))


def test_two_monitors_at_once_alert_once_and_recover_once(alerts, admin, slack, pagerduty):
    monitors = [alerts() for _ in range(6)]
    calls = (lambda monitor: monitor.raise_(problem()), lambda monitor: monitor.settle(KEY, []).recovered == [KEY])
    for call in calls:
        start, results = threading.Barrier(len(monitors)), []

        def race(monitor, call=call, results=results, start=start):
            start.wait()
            results.append(call(monitor))

        threads = [threading.Thread(target=race, args=(monitor,)) for monitor in monitors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert sorted(results) == [False] * 5 + [True]
    assert lines(slack) == ["*[CRITICAL]* a_job did not start", "*[recovered]* over: a_job did not start"]
    assert [action for action, _ in actions(pagerduty)] == ["trigger", "resolve"]
    assert len(rows(admin)) == 1


def test_the_role_of_the_jobs_cannot_delete_what_is_alerted(alerts, database):
    alerts().raise_(problem())
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.connect().execute("DELETE FROM ops.alerts")
