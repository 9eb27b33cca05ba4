"""What is wrong with a job's runs is told once, and once that it is over."""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from scripts.lifecycle.monitoring.alerts import RUNBOOK, AlertKind

ROOT = Path(__file__).resolve().parents[2]
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
PREFIX = "sla:cleanup_quiz_responses:"


def expect_once(monitor, told, kind, severity, repair):
    """The alert comes once, stays quiet, and ends once after the repair."""
    key = PREFIX + kind
    assert monitor()["raised"] == [key]
    lines, actions = told()
    assert len(lines) == 1
    assert lines[0].startswith(f"*[{severity.upper()}]*")
    assert actions == ([("trigger", key)] if severity == "critical" else [])
    assert monitor()["raised"] == []
    assert told() == ([], [])
    repair()
    assert monitor()["recovered"] == [key]
    lines, actions = told()
    assert [line.partition("]*")[0] for line in lines] == ["*[recovered"]
    assert actions == ([("resolve", key)] if severity == "critical" else [])
    assert monitor()["recovered"] == []
    assert told() == ([], [])


@pytest.fixture
def watched(world):
    world.watched()
    return world


def test_a_job_that_runs_well_is_no_alert(monitor, watched, told):
    watched.ran()
    assert (monitor()["alerts"], told()) == (0, ([], []))
    assert watched.alerts(open_only=False) == []


def test_a_run_that_never_started(monitor, watched, told, slack):
    def repair():
        watched.ran(watched.now - MINUTE)

    expect_once(monitor, told, "missed", "critical", repair)


def test_a_job_without_a_policy_is_watched_from_its_first_run_on(monitor, watched, told):
    watched.ran()
    job = {
        "schedule": f"0 {watched.due.hour} * * *",
        "budget": "60 seconds",
        "lock": "lock:retention:enforce_gdpr_deletion",
    }
    watched.document["jobs"]["enforce_gdpr_deletion"] = job
    watched.write()
    watched.ran()
    assert monitor()["alerts"] == 0  # nothing is known of it: it may have been added this minute
    watched.ran(watched.due - 47 * HOUR, script="enforce_gdpr_deletion", policy="erasure", seconds=10)
    assert monitor()["raised"] == ["sla:enforce_gdpr_deletion:missed"]
    watched.ran(watched.now, script="enforce_gdpr_deletion", policy="erasure", seconds=10)
    assert monitor()["recovered"] == ["sla:enforce_gdpr_deletion:missed"]


def test_a_missed_run_is_said_with_its_time_and_the_last_run(monitor, watched, slack):
    watched.ran(watched.due - 24 * HOUR)
    monitor()
    (body,) = slack.taken
    for part in (f"due {watched.due:%Y-%m-%d %H:%M} UTC", "the last run started 1 d 3 h ago", "#missed", "by hand"):
        assert part in body["text"]


def test_within_the_grace_time_it_is_not_missed(monitor, watched):
    watched.ran(watched.due - 24 * HOUR)
    assert monitor(SLA_START_GRACE_MINUTES="300")["alerts"] == 0
    assert monitor(SLA_START_GRACE_MINUTES="60")["alerts"] == 1


def test_a_job_that_nobody_watched_when_it_was_due_is_not_missed(monitor, world):
    assert monitor()["alerts"] == 0
    world.watched(ago=HOUR)
    assert monitor()["alerts"] == 0


def test_a_run_that_still_works_at_its_next_tick_is_not_missed(monitor, watched, redis_client):
    run = watched.ran(
        watched.due - 10 * MINUTE, status="running", silent=timedelta(seconds=3), sla_budget_seconds=999_999
    )
    redis_client.set("lock:cleanup:quiz_responses", f"{run} h 1 2026-01-01T00:00:00Z")
    assert monitor()["alerts"] == 0


def test_a_job_that_was_stopped_by_hand_is_no_missed_one(monitor, watched, told):
    watched.admin.execute("INSERT INTO ops.stop_switches VALUES ('cleanup_quiz_responses', 'operator', 'a reason')")
    expect_once(monitor, told, "switched_off", "warning", lambda: watched.ran(watched.now - MINUTE))


def test_a_killed_run_is_marked_and_told_with_who_held_what(monitor, watched, told, slack):
    run = watched.ran(watched.now - HOUR, status="running", silent=20 * MINUTE)
    assert monitor()["raised"] == [f"{PREFIX}killed"]
    for part in (run, "somewhere-else", "4711", "lock:cleanup:quiz_responses", "token 7"):
        assert part in slack.taken[0]["text"]
    assert watched.admin.execute("SELECT status, stop_reason FROM ops.job_runs").fetchall() == [
        ("abandoned", "process_gone")
    ]
    told()
    # Marked as abandoned, it is still the job's last word; and one failure of one run today.
    assert monitor()["raised"] == [f"{PREFIX}success_rate"]
    told()
    watched.ran(watched.now - MINUTE)
    assert monitor()["recovered"] == [f"{PREFIX}killed", f"{PREFIX}success_rate"]
    assert told()[1] == [("resolve", f"{PREFIX}killed"), ("resolve", f"{PREFIX}success_rate")]


def test_a_silent_run_whose_process_still_holds_its_lock_is_left_alone(monitor, watched, redis_client):
    run = watched.ran(watched.now - HOUR / 2, status="running", silent=20 * MINUTE)
    redis_client.set("lock:cleanup:quiz_responses", f"{run} somewhere-else 4711 2026-01-01T00:00:00Z")
    assert monitor()["alerts"] == 0
    assert watched.admin.execute("SELECT status FROM ops.job_runs").fetchall() == [("running",)]


def test_a_run_that_makes_no_progress_is_told_but_not_declared_dead(monitor, watched, told, redis_client):
    run = watched.ran(watched.now - 55 * MINUTE, status="running", silent=50 * MINUTE, sla_budget_seconds=99_999)
    redis_client.set("lock:cleanup:quiz_responses", f"{run} somewhere-else 4711 2026-01-01T00:00:00Z")

    def repair():
        watched.admin.execute("UPDATE ops.job_runs SET heartbeat_at = now()")

    expect_once(monitor, told, "stuck", "critical", repair)
    assert watched.admin.execute("SELECT status FROM ops.job_runs").fetchall() == [("running",)]


def test_a_stuck_run_is_told_also_when_the_next_one_found_its_lock_held(monitor, watched, redis_client):
    run = watched.ran(watched.now - 55 * MINUTE, status="running", silent=50 * MINUTE, sla_budget_seconds=99_999)
    redis_client.set("lock:cleanup:quiz_responses", f"{run} somewhere-else 4711 2026-01-01T00:00:00Z")
    watched.ran(watched.now - MINUTE, status="skipped", code=75, stop_reason="lock_held", seconds=0)
    assert monitor()["raised"] == [f"{PREFIX}stuck", f"{PREFIX}lock"]


def test_without_redis_nobody_is_declared_dead(monitor, watched, free_port):
    watched.ran(watched.now - HOUR, status="running", silent=50 * MINUTE, sla_budget_seconds=99_999)
    assert monitor(REDIS_URL=f"redis://127.0.0.1:{free_port}/0")["raised"] == [f"{PREFIX}stuck"]
    assert watched.admin.execute("SELECT status FROM ops.job_runs").fetchall() == [("running",)]


@pytest.mark.parametrize(
    ("seconds", "severity"),
    [(2879, None), (2881, "warning"), (3599, "warning"), (3601, "critical"), (7000, "critical")],
)
def test_the_time_budget(monitor, watched, told, seconds, severity):
    watched.ran(seconds=seconds)
    if severity is None:
        assert monitor()["alerts"] == 0
    else:
        expect_once(monitor, told, "budget", severity, lambda: watched.ran(watched.now - MINUTE))


def test_the_thresholds_of_the_time_budget_are_settings(monitor, watched):
    watched.ran(seconds=1900)
    assert monitor()["alerts"] == 0
    assert monitor(SLA_WARNING_THRESHOLD_PERCENT="50")["raised"] == [f"{PREFIX}budget"]
    assert watched.alerts() == [(f"{PREFIX}budget", "warning")]
    monitor(SLA_WARNING_THRESHOLD_PERCENT="50", SLA_CRITICAL_THRESHOLD_PERCENT="52")
    assert watched.alerts() == [(f"{PREFIX}budget", "critical")]


def test_a_running_run_is_measured_by_the_database_s_clock(monitor, watched, redis_client):
    run = watched.ran(watched.now - 61 * MINUTE, status="running", silent=timedelta(seconds=1))
    redis_client.set("lock:cleanup:quiz_responses", f"{run} h 1 2026-01-01T00:00:00Z")
    assert monitor()["raised"] == [f"{PREFIX}budget"]
    assert watched.alerts() == [(f"{PREFIX}budget", "critical")]


def test_more_time_that_was_given_by_hand_is_no_breach(monitor, watched):
    watched.ran(seconds=5000, sla_budget_seconds=10_000)
    assert monitor()["alerts"] == 0


def test_a_failure_of_a_daily_job_is_below_its_rate_until_it_succeeds(monitor, watched, told):
    watched.ran(status="failed", code=1)
    expect_once(monitor, told, "success_rate", "critical", lambda: watched.ran(watched.now - MINUTE))


def test_the_rate_of_a_job_that_runs_often(monitor, watched):
    watched.ran(watched.now - 5 * MINUTE, status="failed", code=1)
    for number in range(1, 24):
        watched.ran(watched.now - number * 30 * MINUTE, seconds=10)
    assert monitor()["alerts"] == 0  # 23 of 24: 95.8 %
    watched.ran(watched.now - 12 * MINUTE, status="failed", code=1)
    assert monitor()["raised"] == [f"{PREFIX}success_rate"]
    watched.ran(watched.now - MINUTE)
    assert monitor()["recovered"] == []  # 24 of 26: still below, and here the rate tells more than the last run


@pytest.mark.parametrize(("status", "code"), [("partial", 3), ("interrupted", 143), ("completed", 4)])
def test_what_is_no_failure_does_not_count_as_one(monitor, watched, status, code):
    watched.ran(status=status, code=code)
    assert monitor()["alerts"] == 0


def test_three_failures_in_a_row(monitor, watched, told):
    for number in range(3):
        watched.ran(watched.due - (2 - number) * 24 * HOUR, status="partial", code=3)
    expect_once(monitor, told, "failures", "critical", lambda: watched.ran(watched.now - MINUTE))


def test_two_failures_in_a_row_are_not_three(monitor, watched):
    for number in range(2):
        watched.ran(watched.due - (1 - number) * 24 * HOUR, status="partial", code=3)
    watched.ran(watched.due - 48 * HOUR)
    assert monitor()["alerts"] == 0


def test_less_than_half_of_its_own_speed(monitor, watched, told):
    for number in range(1, 7):
        watched.ran(watched.due - number * 24 * HOUR, seconds=100, deleted=10_000)
    watched.ran(seconds=100, deleted=4_900)
    expect_once(
        monitor, told, "throughput", "warning", lambda: watched.ran(watched.now - MINUTE, seconds=30, deleted=9_000)
    )


def test_a_small_run_says_nothing_about_speed(monitor, watched):
    for number in range(1, 7):
        watched.ran(watched.due - number * 24 * HOUR, seconds=100, deleted=10_000)
    watched.ran(seconds=100, deleted=999)
    assert monitor()["alerts"] == 0


def test_a_lock_that_others_hold(monitor, watched, told, slack):
    watched.ran(watched.due + MINUTE, status="skipped", code=75, stop_reason="lock_held", seconds=0)
    expect_once(monitor, told, "lock", "warning", lambda: watched.ran(watched.now - MINUTE))


def test_two_looks_write_one_observation_a_slot(monitor, watched):
    watched.ran()
    slots = "SELECT count(DISTINCT slot), count(*) FROM ops.sla_observations"
    before = watched.admin.execute(slots).fetchone()[1]
    for _ in range(3):
        monitor()
    distinct, rows = watched.admin.execute(slots).fetchone()
    assert rows == distinct
    assert rows - before in (1, 2)  # the quarter of an hour may have changed meanwhile


def test_a_dry_run_tells_and_writes_nothing(monitor, watched, told):
    watched.ran(watched.now - HOUR, status="running", silent=20 * MINUTE)
    before = watched.admin.execute("SELECT count(*) FROM ops.sla_observations").fetchone()
    monitor(CLEANUP_DRY_RUN="true")
    assert told() == ([], [])
    assert watched.alerts(open_only=False) == []
    assert watched.admin.execute("SELECT count(*) FROM ops.sla_observations").fetchone() == before
    assert watched.admin.execute("SELECT status FROM ops.job_runs").fetchall() == [("running",)]


def test_every_alert_s_page_is_in_the_runbook():
    """The person on call follows the address in the alert: its heading must be there."""
    text = (ROOT / RUNBOOK).read_text()
    headings = re.findall(r"^### ([\w-]+)$", text, re.MULTILINE)
    assert sorted(headings) == sorted(AlertKind)


def test_a_job_without_a_policy_stays_missed_however_long_ago_it_last_ran(monitor, world):
    world.document["jobs"]["escalate_breaches"] = {
        "schedule": "*/30 * * * *",
        "budget": "300 seconds",
        "lock": "lock:manual_resolution:escalate_breaches",
    }
    world.write()
    world.watched()
    world.ran()
    world.ran(world.now - 40 * 24 * HOUR, script="escalate_breaches", policy="-")
    assert monitor()["raised"] == ["sla:escalate_breaches:missed"]


def test_the_reason_is_that_of_the_policy_that_failed(monitor, watched):
    for n in range(3):
        run = watched.ran(watched.due - n * 24 * HOUR, status="failed", code=1, stop_reason="cap_exceeded")
        watched.ran(watched.due - n * 24 * HOUR, policy="other", correlation_id=run)
    monitor()
    told = watched.admin.execute("SELECT how_bad FROM ops.alerts WHERE key LIKE '%:failures'").fetchone()[0]
    assert "cap_exceeded" in told
