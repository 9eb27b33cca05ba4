"""Figures known by construction, and the forms they come in."""

import json
import re
from datetime import timedelta

import pytest

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
KEYS = [
    "measured_at",
    "since",
    "until",
    "open_count",
    "deferred_count",
    "depth_by_priority",
    "depth_by_type",
    "open_age_median_seconds",
    "open_age_max_seconds",
    "resolved_count",
    "resolution_median_seconds",
    "resolution_p90_seconds",
    "resolution_by_type",
    "deadlines_kept_count",
    "deadlines_missed_count",
    "deadlines_missed_open_count",
    "deadlines_kept_percent",
    "raised_count",
    "escalated_count",
    "escalated_percent",
    "decisions",
    "trend",
]


def figures(done):
    assert done.returncode == 0, done.stdout + done.stderr
    first, *_, last = done.stdout.splitlines()
    assert json.loads(last)["event"] == "report_completed"
    return json.loads(first)


def test_an_empty_queue_has_counts_of_nothing_and_nothing_computed(report):
    found = figures(report())

    assert list(found) == KEYS
    for name, value in found.items():
        if name.endswith("_count"):
            assert value == 0, name
        if name.endswith(("_seconds", "_percent")):
            assert value is None, name
    assert [row["priority"] for row in found["depth_by_priority"]] == ["critical", "high", "medium", "low"]
    assert len(found["trend"]) == 30
    assert {row["unresolved_count"] for row in found["trend"]} == {0}


def test_every_figure(report, put, now):
    put(now - 10 * HOUR, priority="critical", deadline_at=now - 6 * HOUR)  # open, past its deadline
    put(now - 20 * HOUR)
    put(now - 30 * HOUR, status="escalated", escalated_at=now - HOUR)
    put(now - 500 * HOUR, status="deferred", priority="low", item_type="quiz_orphaned")
    done = {"resolved_by": "ada", "decision": "delete"}
    for hours in (1, 2, 3):
        put(now - 50 * HOUR, resolved_at=now - (50 - hours) * HOUR, deadline_at=now - 48 * HOUR, **done)
    put(now - 40 * DAY, resolved_at=now - 2 * DAY, item_type="quiz_orphaned", resolved_by="bob", decision="attach")
    put(now - 50 * DAY, resolved_at=now - 40 * DAY, **done)  # before the period

    found = figures(report())

    assert (found["open_count"], found["deferred_count"]) == (3, 1)
    assert [(row["open_count"], row["deferred_count"]) for row in found["depth_by_priority"]] == [
        *((1, 0), (2, 0), (0, 0), (0, 1))
    ]
    assert found["depth_by_type"] == [
        {"item_type": "quiz_undelivered", "open_count": 3, "deferred_count": 0},
        {"item_type": "quiz_orphaned", "open_count": 0, "deferred_count": 1},
    ]
    assert found["open_age_median_seconds"] == pytest.approx(20 * 3600, abs=60)
    assert found["open_age_max_seconds"] == pytest.approx(30 * 3600, abs=60)
    assert found["resolved_count"] == 4
    assert found["resolution_median_seconds"] == 2.5 * 3600
    by_type = {row["item_type"]: row for row in found["resolution_by_type"]}
    assert by_type["quiz_undelivered"]["resolution_median_seconds"] == 2 * 3600
    assert by_type["quiz_undelivered"]["resolution_p90_seconds"] == pytest.approx(2.8 * 3600)
    assert by_type["quiz_orphaned"]["resolution_p90_seconds"] == 38 * 86_400
    assert (found["deadlines_kept_count"], found["deadlines_missed_count"]) == (3, 2)
    assert (found["deadlines_missed_open_count"], found["deadlines_kept_percent"]) == (1, 60.0)
    assert (found["raised_count"], found["escalated_count"]) == (7, 1)
    assert found["escalated_percent"] == 14.29
    assert found["decisions"] == [
        {"operator": "ada", "decision": "delete", "resolved_count": 3},
        {"operator": "bob", "decision": "attach", "resolved_count": 1},
    ]
    assert found["trend"][0]["unresolved_count"] == 1
    assert found["trend"][-1]["unresolved_count"] == 4
    assert sum(row["raised_count"] for row in found["trend"]) == 7
    assert sum(row["resolved_count"] for row in found["trend"]) == 4


def test_a_period_has_its_first_moment_and_not_its_last(report, put, now):
    start = now.replace(year=2026, month=3, day=1, hour=0, minute=0, second=0)
    for at in (start - HOUR, start, start + 30 * HOUR, start + 2 * DAY):
        put(at - HOUR, resolved_at=at, deadline_at=at)

    found = figures(report("--since", "2026-03-01", "--until", "2026-03-03T00:00:00Z"))

    assert (found["resolved_count"], found["deadlines_kept_percent"]) == (2, 100.0)
    assert (found["since"], found["until"]) == ("2026-03-01T00:00:00Z", "2026-03-03T00:00:00Z")
    assert found["trend"][-1] == {"day": "2026-03-02", "raised_count": 2, "resolved_count": 1, "unresolved_count": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--since", "soon"], ["--since", "2026-03-01T00:00:00"], ["--since", "0001-01-01T00:00:00+14:00"]),
        *(["--since", "2026-03-02", "--until", "2026-03-01"], ["--until", "0001-01-02"], ["--format", "html"]),
        *(["--output", "."], ["--output", "not-there/report.json"], ["--email"], ["--output", "/dev/null"]),
    ],
)
def test_misuse_is_named(report, arguments):
    done = report(*arguments)

    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert arguments[0] in done.stdout + done.stderr


@pytest.mark.parametrize("form", ["json", "html", "console"])
def test_hostile_names_are_shown_and_never_obeyed(report, put, now, tmp_path, form):
    hostile = "<script>alert(1)</script>\"'[red]\x1b[31m"
    put(now - DAY, item_type=hostile)
    put(now - DAY, resolved_at=now, resolved_by=hostile, decision="<img src=x>")
    put(now - DAY, resolved_at=now, resolved_by="someone@example.com", decision="delete")
    page = tmp_path / f"report.{form}"

    done = report("--format", form, "--output", str(page))

    text = page.read_text()
    assert done.returncode == 0, done.stdout
    assert "example.com" not in text
    assert "\x1b" not in text
    assert "[red]" in text
    if form == "html":
        assert "<script" not in text
        assert "<img" not in text
        assert "&lt;script&gt;" in text
        assert re.search(r"https?:|//[a-z]|@import|url\(", text) is None


def test_a_file_is_replaced_whole_or_left_as_it_was(report, tmp_path):
    page = tmp_path / "report.json"
    page.write_text("what was there")

    failed = report("--output", str(page), "--since", "2026-03-02", "--until", "2026-03-01")
    assert failed.returncode == 2
    assert page.read_text() == "what was there"

    assert report("--output", str(page)).returncode == 0
    assert list(json.loads(page.read_text())) == KEYS
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_tables_go_to_the_terminal_and_not_to_standard_output(report, put, now):
    put(now - DAY, item_type="[bold]odd")

    done = report("--format", "console", "--log-format", "console")

    assert (done.returncode, done.stdout) == (0, "")
    assert "by priority" in done.stderr
    assert "[bold]odd" in done.stderr
