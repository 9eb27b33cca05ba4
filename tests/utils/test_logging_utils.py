"""Lines that a machine reads: one JSON object each, the same first keys, and nothing that crashes the job."""

import json
import logging
import re
import sys
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from scripts.utils.logging_utils import configure_logging, get_logger

FIRST_KEYS = ["timestamp", "level", "correlation_id", "script", "event"]


def configure(level="INFO", log_format="json"):
    return configure_logging(script="a_script", correlation_id="c0ffee", level=level, log_format=log_format)


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


@pytest.fixture
def lines(capsys):
    """A function that returns what standard output got, line by line; nothing may be on standard error."""

    def read():
        out, err = capsys.readouterr()
        assert err == ""
        return [json.loads(line, parse_constant=refuse) for line in out.splitlines()]

    return read


def test_a_line_begins_with_the_same_keys(lines):
    configure()
    get_logger().warning("batch_completed", script_facts=1, records_deleted=2)
    logging.getLogger("a.library").error("said %s", "this")
    ours, theirs = lines()
    assert list(ours) == [*FIRST_KEYS, "script_facts", "records_deleted"]
    assert list(theirs) == FIRST_KEYS
    assert (ours["level"], ours["correlation_id"], ours["script"], ours["event"]) == (
        *("WARNING", "c0ffee", "a_script"),
        "batch_completed",
    )
    assert (theirs["level"], theirs["script"], theirs["event"]) == ("ERROR", "a_script", "said this")


def test_the_time_is_utc(lines):
    configure()
    get_logger().info("now")
    (line,) = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
    assert abs(datetime.fromisoformat(line["timestamp"]) - datetime.now(UTC)) < timedelta(seconds=10)


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("DEBUG", ["DEBUG", "INFO", "WARNING", "ERROR"]),
        ("INFO", ["INFO", "WARNING", "ERROR"]),
        ("WARN", ["WARNING", "ERROR"]),
        ("WARNING", ["WARNING", "ERROR"]),
        ("ERROR", ["ERROR"]),
    ],
)
def test_the_level_hides_what_is_below(lines, level, seen):
    configure(level)
    for source in (get_logger(), logging.getLogger("a.library")):
        for name in ("debug", "info", "warning", "error"):
            getattr(source, name)(name)
    assert [line["level"] for line in lines()] == seen * 2


def test_chatty_libraries_are_heard_from_warning_on(lines):
    configure()
    for name in ("httpx", "httpcore", "redis"):
        logging.getLogger(f"{name}.client").info("a request")
        logging.getLogger(f"{name}.client").warning("trouble")
    assert [line["event"] for line in lines()] == ["trouble"] * 3


def test_a_thread_s_lines_name_the_run_too(lines):
    configure()
    thread = threading.Thread(target=lambda: get_logger().warning("redis_lost"))
    thread.start()
    thread.join()
    (line,) = lines()
    assert (line["correlation_id"], line["script"]) == ("c0ffee", "a_script")


def test_configured_again_each_line_still_comes_once(lines):
    configure_logging(script="a_script", correlation_id="-", level="INFO", log_format="json")
    configure()
    get_logger().info("once")
    assert [(line["event"], line["correlation_id"]) for line in lines()] == [("once", "c0ffee")]


class Unshowable:
    def __str__(self):
        raise RuntimeError("not even this")

    __repr__ = __str__


def test_values_that_json_does_not_know_become_text(lines):
    configure()
    knot = []
    knot.append(knot)
    get_logger().info(
        "odd",
        moment=datetime(2026, 1, 31, tzinfo=UTC),
        exact=Decimal("1.50"),
        path=Path("a/b"),
        many={3},
        keys={(1, 2): "pair", None: "none"},
        unshowable=Unshowable(),
        not_a_number=float("nan"),
        endless=float("inf"),
        knot=knot,
        lone="\udcff",
    )
    (line,) = lines()
    assert line["moment"] == "2026-01-31 00:00:00+00:00"
    assert (line["exact"], line["path"], line["many"]) == ("1.50", "a/b", [3])
    assert line["keys"] == {"(1, 2)": "pair", "None": "none"}
    assert (line["unshowable"], line["not_a_number"], line["endless"]) == ("[Unshowable]", "nan", "inf")
    assert "[too deep]" in json.dumps(line["knot"])
    assert line["lone"] == "\udcff"


def test_a_line_that_cannot_be_made_is_missed_without_its_values(capsys):
    configure()
    logging.getLogger("a.library").error("%s and %s", *["anna@example.com"])
    get_logger().info("after")
    out, err = capsys.readouterr()
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["after"]
    assert err == "a log line of a.library was lost: TypeError\n"


def test_an_exception_is_one_line_with_its_place_and_no_traceback(lines):
    configure()
    try:
        int("wrong: anna@example.com")
    except ValueError:
        logging.getLogger("a.library").exception("failed for %s", "cleo@example.com")
        get_logger().exception("ours")
        get_logger().error("by hand", exc_info=sys.exc_info())
    for line, event in zip(lines(), ("failed for [e-mail]", "ours", "by hand"), strict=True):
        assert list(line) == [*FIRST_KEYS, "raised", "raised_at"]
        assert (line["event"], line["raised"]) == (
            event,
            "ValueError: invalid literal for int() with base 10: 'wrong: [e-mail]'",
        )
        assert re.fullmatch(r"test_logging_utils\.py:\d+ in test_an_exception_is_\w+", line["raised_at"])


def test_a_driver_s_error_is_named_never_quoted(lines, database):
    link = database.superuser()
    for _ in range(2):
        try:
            link.execute("INSERT INTO users VALUES ('1', 'anna', 'anna', NULL, now(), now())")
        except psycopg.Error as caught:
            error = caught
    assert "(anna)" in str(error) or "(1)" in str(error)
    configure()
    logging.getLogger("a.library").warning("error ignored in %r: %s", "pipeline", error)
    logging.getLogger("a.library").warning("error ignored", exc_info=error)
    get_logger().error("batch_refused", error=error, causes=[error])
    texts = [json.dumps(line) for line in lines()]
    assert len(texts) == 3
    for text in texts:
        assert "UniqueViolation (SQLSTATE 23505, schema public, table users, constraint users_pkey)" in text
        assert "DETAIL" not in text
        assert "already exists" not in text


@pytest.mark.parametrize("name", ["psycopg", "psycopg.pool"])
@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING"])
def test_the_driver_s_own_warnings_which_name_host_and_user_are_not_written(lines, database, name, level):
    link = database.superuser()
    configure(level=level)
    with link.pipeline() as pipeline:
        logging.getLogger(name).warning("error ignored terminating %r: %s", pipeline, "broken")
    get_logger().error("batch_refused")
    assert [line["event"] for line in lines()] == ["batch_refused"]


def test_the_console_gets_its_lines_on_standard_error(capsys):
    assert configure(log_format="console") == "console"
    get_logger().info("cleanup_started", person="anna@example.com", limit=3)
    out, err = capsys.readouterr()
    assert out == ""
    assert "cleanup_started" in err
    assert "limit=3" in err
    assert "[e-mail]" in err
    assert "anna" not in err
    assert "\x1b[" not in err, "colours are for a terminal"


def test_not_a_terminal_means_json(capsys):
    assert configure(log_format=None) == "json"
