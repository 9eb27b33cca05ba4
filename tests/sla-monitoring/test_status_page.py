"""The status page in a real browser, wide and narrow, with nothing, little and much on it."""

from datetime import timedelta

import pytest

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def fill(world, much):
    """Put a history on record, and with ``much`` everything that can be wrong."""
    world.watched(ago=7 * 24 * HOUR, items=12)
    for number in range(60, 0, -1):
        world.watched(ago=number * HOUR, items=number * 7 % 50)
    for number in range(40 if much else 3, 0, -1):
        states = [
            ("completed", 0),
            ("failed", 1),
            ("partial", 3),
            ("interrupted", 143),
            ("skipped", 75),
            ("abandoned", None),
        ]
        status, code = states[number % 6] if much else ("completed", 0)
        world.ran(world.due - number * 12 * HOUR, status=status, code=code, deleted=number * 1000)
    if much:
        world.quiz(70 * HOUR, rows=1234)
        world.ran(world.now - HOUR, seconds=3590)
        world.admin.execute(
            "INSERT INTO ops.alert_silences (scope, reason, silenced_by, until)"
            " VALUES ('sla:cleanup_quiz_responses:' || repeat('x', 90), %s, 'anna', now() + interval '1 hour')",
            ("a reason that is " + "very-" * 40 + "long",),
        )
        world.admin.execute(
            "INSERT INTO ops.alerts (key, severity, what, how_bad, what_to_do, runbook, raised_by, since)"
            " SELECT 'mrq:' || repeat('k', 120) || n, 'warning', '<b>what</b> ' || repeat('w', 200), 'x', 'x',"
            " 'https://example.com/' || repeat('p', 200), 'x', now() FROM generate_series(1, 20) n"
        )
    else:
        world.ran()


@pytest.mark.parametrize("case", ["nothing", "little", "much", "uncounted"])
def test_the_page_fits_and_shows_what_is_there(browser, monitor, world, tmp_path, case):
    if case != "nothing":
        fill(world, case == "much")
    if case == "uncounted":
        world.admin.execute("ALTER TABLE quiz_responses RENAME pdf_delivered_at TO delivered_at")
    page = tmp_path / "status.html"
    monitor("--output", str(page))

    for width in (1280, 400):
        browser.open(page, width=width)

        assert browser.complaints() == []
        assert browser.requests() == [page.as_uri()]
        assert browser.value("document.documentElement.scrollWidth") <= width
        runs = {"nothing": 0, "little": 4, "much": 30, "uncounted": 4}[case]
        assert browser.value("document.querySelectorAll('svg.strip rect').length") == runs
        assert browser.value("document.querySelectorAll('svg.meter').length") == (case != "nothing")
        lines = browser.value("document.querySelectorAll('svg.lines polyline').length")
        assert lines == 1
        assert browser.value("[...document.querySelectorAll('svg[role=img]')].every(s => s.querySelector('title'))")
        alerts = browser.value("document.querySelectorAll('.alert').length")
        assert alerts == {"nothing": 0, "little": 0, "uncounted": 1}.get(case, alerts)
        if case == "much":
            assert alerts >= 22
            assert browser.value("document.querySelectorAll('main b').length") == 0
        assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    text = browser.value("document.body.innerText")
    assert "Next due" in text
    if case == "uncounted":
        assert "Could not be counted" in text
    if case == "much":
        assert "% of the time budget of 1 h 0 min used" in text
        assert "Silenced until" in text


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_done(run_script_here, world, told, tmp_path):
    world.watched()
    done = run_script_here("monitor_cleanup_sla", "--policy-file", str(world.path), "--output", str(tmp_path))
    assert done.code == 2
    assert world.alerts() == []
