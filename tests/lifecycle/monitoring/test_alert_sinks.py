"""A sink that is down delays an alert and nothing else."""

import contextlib
import socket
import threading
import time

import pytest

from scripts.lifecycle.monitoring.alerts import Alerts
from scripts.utils import alert_sinks, error_reporting, retry_utils
from scripts.utils.settings import load_settings
from tests.lifecycle.monitoring.test_alerts import KEY, actions, lines, problem, rows
from tests.lifecycle.receivers import Receiver, SentryReceiver, pagerduty_settings, slack_settings


@pytest.fixture
def alerts(db, _settings, monkeypatch):
    def make(**settings):
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        return Alerts(db, load_settings(), "a_monitor")

    return make


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def sleeps(monkeypatch):
    """The seconds that retries wait, which they do not do here."""
    slept = []
    monkeypatch.setattr(retry_utils.time, "sleep", slept.append)
    return slept


def test_a_500_is_asked_again_at_once(alerts, admin, slack):
    slack.answers = [500]
    alerts(**slack_settings(slack)).raise_(problem())
    assert (slack.refused, lines(slack)) == ([500], ["*[CRITICAL]* a_job did not start"])
    assert rows(admin, "waiting") == [([],)]


def test_the_wait_that_a_sink_asks_for_is_kept(alerts, slack, monkeypatch):
    slack.answers, slack.headers = [429], {"Retry-After": "1"}
    slept = sleeps(monkeypatch)
    alerts(**slack_settings(slack)).raise_(problem())
    assert slept == [1.0]
    assert len(slack.taken) == 1


def test_a_sink_that_asks_for_an_hour_is_left_to_the_next_run(alerts, admin, slack, monkeypatch):
    slack.answers, slack.headers = [429], {"Retry-After": "3600"}
    monitor = alerts(**slack_settings(slack))
    slept = sleeps(monkeypatch)
    monitor.raise_(problem())
    assert slept == []
    assert rows(admin, "waiting") == [(["slack"],)]
    monitor.deliver()
    assert len(slack.taken) == 1


def test_what_a_dead_sink_did_not_take_the_next_run_of_any_monitor_sends(alerts, admin, slack, pagerduty, free_port):
    settings = pagerduty_settings(pagerduty) | {"MRQ_ALERT_SLACK_WEBHOOK": f"http://127.0.0.1:{free_port}/secret-part"}
    assert alerts(**settings).raise_(problem()) is True
    assert [action for action, _ in actions(pagerduty)] == ["trigger"]
    ((waiting, told),) = rows(admin, "waiting, told")
    assert waiting == ["slack"]
    assert (told["slack"]["attempts"], told["slack"]["error"]) == (1, "ConnectError")

    back = Receiver(port=free_port)
    try:
        monitor = Alerts(alerts()._writer, load_settings(), "another_monitor")
        assert monitor.raise_(problem()) is False
        assert monitor.raise_(problem()) is False
        assert lines(back) == ["*[CRITICAL]* a_job did not start"]
    finally:
        back.close()
    assert len(pagerduty.taken) == 1
    assert rows(admin, "waiting") == [([],)]


def test_one_dead_sink_is_asked_once_a_run_and_the_others_are_told_all(alerts, pagerduty, slack):
    slack.answers = [503] * 100
    monitor = alerts(**slack_settings(slack), **pagerduty_settings(pagerduty))
    monitor.settle("sla:", [problem(key=f"sla:{number}") for number in range(8)])
    assert len(slack.bodies) == alert_sinks.ATTEMPTS
    assert len(pagerduty.taken) == 8


def test_a_message_that_is_refused_holds_up_no_other(alerts, admin, slack):
    slack.answers = [400]
    alerts(**slack_settings(slack)).settle("sla:", [problem(key="sla:1"), problem(key="sla:2")])
    assert len(slack.taken) == 1
    assert rows(admin, "waiting") == [(["slack"],), ([],)]


def test_over_before_it_could_be_told_is_told_with_its_period(alerts, slack):
    slack.answers = [503] * alert_sinks.ATTEMPTS
    monitor = alerts(**slack_settings(slack))
    monitor.raise_(problem())
    monitor.settle(KEY, [])
    assert lines(slack) == ["*[recovered]* over: a_job did not start"]
    assert "since 2026-01-31 02:00 UTC until" in slack.taken[0]["text"]


def test_a_run_that_was_killed_while_telling_does_not_keep_the_alert_for_itself(alerts, admin, slack):
    slack.answers = [503] * alert_sinks.ATTEMPTS
    monitor = alerts(**slack_settings(slack))
    monitor.raise_(problem())
    claim = (
        "jsonb_build_object('slack', jsonb_build_object('claim', 'x', 'claimed_until', extract(epoch FROM now()) + {}))"
    )
    admin.execute(f"UPDATE ops.alerts SET told = {claim.format(60)}")
    monitor.deliver()
    assert slack.taken == []
    admin.execute(f"UPDATE ops.alerts SET told = {claim.format(-1)}")
    monitor.deliver()
    assert len(slack.taken) == 1


def test_no_secret_of_a_sink_is_logged_or_kept(alerts, admin, slack, pagerduty, capfd):
    slack.answers = pagerduty.answers = [500] * 10
    alerts(**slack_settings(slack), **pagerduty_settings(pagerduty)).raise_(problem())
    said = capfd.readouterr()
    everything = said.out + said.err + str(rows(admin, "told"))
    assert "http_500" in everything
    for secret in ("secret-part", "R0123456789"):
        assert secret not in everything


class TestSentry:
    @pytest.fixture
    def sentry(self, monkeypatch):
        import sentry_sdk

        receiver = SentryReceiver()
        monkeypatch.setattr(error_reporting, "_active", False)
        yield receiver
        sentry_sdk.get_client().close(timeout=0)
        sentry_sdk.get_global_scope().set_client(None)
        receiver.close()

    @pytest.fixture
    def monitor(self, alerts, sentry):
        monitor = alerts(SENTRY_DSN=sentry.dsn)
        error_reporting.start(load_settings(), script="a_monitor", correlation_id="c0ffee")
        return monitor

    def test_one_issue_a_problem(self, monitor, sentry):
        monitor.raise_(problem("warning"))
        monitor.raise_(problem("critical"))
        monitor.settle(KEY, [])
        events = sentry.events
        assert [(event["level"], event["fingerprint"]) for event in events] == [
            ("warning", [KEY]),
            ("fatal", [KEY]),
            ("info", [KEY]),
        ]
        assert [event["tags"]["alert_news"] for event in events] == ["raised", "worsened", "recovered"]
        assert events[0]["message"] == "a_job did not start"
        assert events[0]["contexts"]["alert"]["what_to_do"] == "start it by hand"
        assert events[0]["tags"]["script"] == "a_monitor"

    def test_a_dead_sentry_is_told_by_the_next_run(self, monitor, sentry, admin):
        sentry.answers = [503]
        monitor.raise_(problem())
        assert rows(admin, "waiting") == [(["sentry"],)]
        monitor.deliver()
        assert [event["fingerprint"] for event in sentry.events] == [[KEY]]
        assert rows(admin, "waiting") == [([],)]

    def test_a_sentry_that_hangs_is_left_after_two_seconds(self, monitor, sentry, admin):
        sentry.delays = [600]
        monitor.raise_(problem())
        assert rows(admin, "waiting") == [(["sentry"],)]


def test_a_sink_with_a_bug_stops_no_job_and_no_other_sink(alerts, admin, slack):
    class Broken:
        name, least = "broken", "warning"

        def send(self, message):
            raise KeyError(message.key)

    monitor = alerts(**slack_settings(slack))
    monitor._sinks.insert(0, Broken())
    monitor._delivery._sinks["broken"] = monitor._sinks[0]
    assert monitor.raise_(problem()) is True
    assert len(slack.taken) == 1
    assert rows(admin, "waiting, told -> 'broken' ->> 'error'") == [(["broken"], "KeyError")]


def test_a_sink_that_trickles_its_answer_holds_nobody_up(alerts, admin):
    server = socket.create_server(("127.0.0.1", 0))

    def trickle():
        with server.accept()[0] as link, contextlib.suppress(OSError):
            link.recv(65_536)
            link.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
            while True:
                link.sendall(b".")
                time.sleep(0.2)

    thread = threading.Thread(target=trickle)
    thread.start()
    alerts(MRQ_ALERT_SLACK_WEBHOOK=f"http://127.0.0.1:{server.getsockname()[1]}/hook").raise_(problem())
    assert admin.execute("SELECT waiting FROM ops.alerts").fetchone() == ([],)
    thread.join()
    server.close()
