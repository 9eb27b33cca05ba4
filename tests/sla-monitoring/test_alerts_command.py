"""What the person on call does: list alerts, silence them, end a silence, close a leftover, send a test alert."""

from datetime import timedelta
from pathlib import Path

import pytest

from tests.forked import run_script

HOUR = timedelta(hours=1)
KEY = "sla:cleanup_quiz_responses:missed"


@pytest.fixture
def command(run_script_here):
    """A function that runs one verb."""
    return lambda *arguments, **settings: run_script_here("alerts", *arguments, OPERATOR="anna", **settings)


@pytest.fixture
def watched(world):
    world.watched()
    return world


def silence(command, scope="sla:", length="2h", **settings):
    return command("silence", scope, "--for", length, "--reason", "moving the database", **settings)


def test_a_silence_keeps_quiet_and_what_is_still_open_at_its_end_is_told(command, monitor, watched, told):
    assert silence(command).code == 0
    monitor()
    assert told() == ([], [])
    assert watched.alerts() == [(KEY, "critical")]
    monitor()
    assert told() == ([], [])
    watched.admin.execute("UPDATE ops.alert_silences SET until = now() - interval '1 second'")
    monitor()
    lines, actions = told()
    assert (len(lines), actions) == (1, [("trigger", KEY)])
    monitor()
    assert told() == ([], [])


def test_a_reason_with_an_address_is_refused(command, watched):
    with pytest.raises(SystemExit, match="2"):
        command("silence", "sla:", "--for", "2h", "--reason", "for olga@example.com")
    assert watched.admin.execute("SELECT count(*) FROM ops.alert_silences").fetchone() == (0,)


def test_what_began_and_ended_under_a_silence_is_never_told(command, monitor, watched, told):
    silence(command)
    monitor()
    watched.ran(watched.now)
    assert monitor()["recovered"] == [KEY]
    watched.admin.execute("UPDATE ops.alert_silences SET until = now() - interval '1 second'")
    monitor()
    assert told() == ([], [])


def test_that_it_is_over_is_told_also_under_a_silence(command, monitor, watched, told):
    monitor()
    told()
    silence(command)
    watched.ran(watched.now)
    monitor()
    assert told()[1] == [("resolve", KEY)]


def test_another_scope_is_not_silenced(command, monitor, watched, told):
    silence(command, "sla:cleanup_pdfs:")
    monitor()
    assert told()[1] == [("trigger", KEY)]


def test_a_silence_can_be_ended_before_its_time(command, monitor, watched, told):
    made = silence(command).event("alerts_silenced")["silence"]
    monitor()
    assert command("unsilence", made).code == 0
    assert told()[1] == [("trigger", KEY)]
    assert command("unsilence", made).code == 2


def test_who_silenced_what_is_audited_without_the_reason(command, watched):
    made = silence(command).event("alerts_silenced")["silence"]
    command("unsilence", made)
    rows = watched.admin.execute("SELECT actor, action, resource_id FROM ops.audit_log ORDER BY seq").fetchall()
    assert rows == [
        ("operator:anna", "alerts_silenced", made),
        ("operator:anna", "alerts_unsilenced", made),
    ]


@pytest.mark.parametrize(("length", "code"), [("7d", 0), ("168h", 0), ("8d", 2), ("0m", 2)])
def test_a_silence_has_an_end_that_is_near(command, watched, length, code):
    assert silence(command, length=length).code == code


@pytest.mark.parametrize("scope", ["anna@example.com", " sla:"])
def test_a_scope_is_the_beginning_of_a_key(command, watched, scope):
    assert silence(command, scope).code == 2


def test_a_silence_without_a_reason_is_refused(command, watched):
    assert command("silence", "sla:", "--for", "1h", "--reason", " ").code == 2


def test_the_list_shows_what_is_open_and_what_is_silenced(command, monitor, watched):
    monitor()
    silence(command)
    done = command("list")
    open_ = done.event("alert_open")
    assert (open_["alert"], open_["severity"], open_["silenced"]) == (KEY, "critical", True)
    assert {"what", "how_bad", "what_to_do", "runbook", "since", "waiting"} <= open_.keys()
    assert done.event("silence_in_force")["by"] == "anna"


def test_a_leftover_can_be_closed(command, monitor, watched, told):
    monitor()
    told()
    assert command("close", KEY).code == 0
    assert told()[1] == [("resolve", KEY)]
    assert command("close", KEY).code == 2
    monitor()  # it was no leftover: it comes back
    assert told()[1] == [("trigger", KEY)]


def test_the_way_to_whoever_is_on_call(command, watched, told):
    done = command("test", "--severity", "critical").event("alert_test")
    assert (done["told"], done["not_told"]) == (["pagerduty", "slack"], [])
    lines, actions = told()
    assert lines == ["*[CRITICAL]* this is a test", "*[recovered]* over: this is a test"]
    assert [action for action, _ in actions] == ["trigger", "resolve"]
    assert watched.alerts() == []


def test_a_way_that_is_cut_is_an_error(command, watched, slack):
    slack.answers = [404]
    done = command("test")
    assert done.code == 1
    assert "not told: slack" in done.closing["error"]


def test_without_any_sink_the_test_says_so(command, watched):
    done = command("test", MRQ_ALERT_SLACK_WEBHOOK="", PAGERDUTY_ROUTING_KEY="")
    assert done.event("no_sink_is_set")["severity"] == "warning"


@pytest.mark.parametrize("verb", [("silence", "sla:", "--for", "1h", "--reason", "x"), ("close", KEY), ("test",)])
def test_a_dry_run_changes_nothing(command, monitor, watched, told, verb):
    monitor()
    told()
    assert command(*verb, CLEANUP_DRY_RUN="true").code == 0
    assert watched.alerts() == [(KEY, "critical")]
    assert watched.admin.execute("SELECT count(*) FROM ops.alert_silences").fetchone() == (0,)
    assert told() == ([], [])


def test_the_list_in_a_terminal(environment, monitor, watched):
    monitor()
    path = Path(__file__).parents[2] / "scripts" / "sla-monitoring" / "alerts.py"
    done = run_script(path, "list", "--log-format", "console", env=environment | {"COLUMNS": "200"})
    assert done.returncode == 0
    assert KEY in done.stderr
    assert "silences: none" in done.stderr
