"""A real run that is killed in the middle of a batch, a real lock conflict, and the monitor that finds both."""

import signal
from pathlib import Path

import pytest

from tests.faults.stage import wait_until
from tests.forked import run_script, start_script

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
VALVE = 4711


@pytest.fixture
def real(world, environment):
    """How the job itself is started, and its monitor."""
    env = environment
    job = SCRIPTS / "cleanup" / "cleanup_quiz_responses.py"
    monitor = SCRIPTS / "sla-monitoring" / "monitor_cleanup_sla.py"
    flags = ("--policy-file", str(world.path))
    return (
        lambda *more: start_script(job, *flags, *more, env=env),
        lambda *more: run_script(job, *flags, *more, env=env),
        lambda: run_script(monitor, *flags, env=env),
    )


def freeze(world):
    world.admin.execute("SELECT pg_advisory_lock(%s)", (VALVE,))
    world.admin.execute(
        "CREATE FUNCTION public.close_valve() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = 0"
        f" AS 'BEGIN PERFORM pg_advisory_xact_lock_shared({VALVE}); RETURN OLD; END';"
        " CREATE TRIGGER valve BEFORE DELETE ON quiz_responses FOR EACH ROW EXECUTE FUNCTION public.close_valve()"
    )


def test_a_run_killed_by_sigkill_is_found_named_and_over_with_the_next_run(
    real, world, slack, pagerduty, told, redis_client
):
    start, run_to_end, look = real
    world.watched()
    world.quiz(world.now - world.due, rows=50)
    freeze(world)
    process = start()
    waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted"
    try:
        wait_until(lambda: world.admin.execute(waiting, (VALVE,)).fetchone(), what="the batch at the valve")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=300)
    world.admin.execute("SELECT pg_advisory_unlock(%s)", (VALVE,))
    world.admin.execute("DROP TRIGGER valve ON quiz_responses")

    assert look().returncode == 0
    assert told() == ([], [])  # its lock has not run out yet: it might still live
    redis_client.delete("lock:cleanup:quiz_responses")  # as Redis does when its time is over
    for table in ("ops.leases", "ops.job_runs"):
        world.admin.execute(f"UPDATE {table} SET heartbeat_at = heartbeat_at - interval '1 hour'")
    assert look().returncode == 0
    lines, actions = told()
    assert lines == ["*[CRITICAL]* cleanup_quiz_responses was killed in the middle of a run"]
    assert actions == [("trigger", "sla:cleanup_quiz_responses:killed")]
    assert world.admin.execute("SELECT status FROM ops.job_runs").fetchall() == [("abandoned",)]
    (how_bad,) = world.admin.execute("SELECT how_bad FROM ops.alerts").fetchone()
    assert f"pid {process.pid}" in how_bad
    assert "lock:cleanup:quiz_responses with token 1" in how_bad

    assert run_to_end().returncode == 0
    assert look().returncode == 0
    lines, actions = told()
    assert lines == ["*[recovered]* over: cleanup_quiz_responses was killed in the middle of a run"]
    assert actions == [("resolve", "sla:cleanup_quiz_responses:killed")]


@pytest.mark.soak
def test_a_run_that_finds_the_lock_held_is_on_record_and_told(real, world, redis_client, told):
    _, run_to_end, look = real
    world.watched()
    redis_client.set("lock:cleanup:quiz_responses", "c0ffee another-host 1 2026-01-01T00:00:00Z", ex=60)
    assert run_to_end().returncode == 75
    assert world.admin.execute("SELECT status, stop_reason, exit_code FROM ops.job_runs").fetchall() == [
        ("skipped", "lock_held", 75)
    ]
    assert look().returncode == 0
    assert told()[0] == ["*[WARNING]* cleanup_quiz_responses finds its lock held"]
    (how_bad,) = world.admin.execute("SELECT how_bad FROM ops.alerts").fetchone()
    assert "now held by c0ffee another-host" in how_bad
    redis_client.delete("lock:cleanup:quiz_responses")
    assert run_to_end().returncode == 0
    assert look().returncode == 0
    assert told()[0] == ["*[recovered]* over: cleanup_quiz_responses finds its lock held"]


def test_a_dry_run_that_finds_the_lock_held_writes_nothing(real, world, redis_client):
    _, run_to_end, _ = real
    redis_client.set("lock:cleanup:quiz_responses", "c0ffee another-host 1 2026-01-01T00:00:00Z", ex=60)
    assert run_to_end("--dry-run").returncode == 0
    assert world.admin.execute("SELECT count(*) FROM ops.job_runs").fetchone() == (0,)
