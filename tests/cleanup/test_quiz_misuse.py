"""What an operator can get wrong: exit 2, what and where, and nothing has been touched."""

import time

import pytest

CLOSED = {"DATABASE_URL": "postgresql://jobs:hunter2@127.0.0.1:1/app", "REDIS_URL": "redis://:hunter2@127.0.0.1:1"}


@pytest.fixture
def call(call_process):
    """As a scheduler starts it: a process of its own."""
    return call_process


def test_help_needs_no_environment_and_says_so(call):
    done = call("--help", env={})
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("usage: cleanup_quiz_responses.py")
    assert "Delete quiz answers whose retention has ended." in done.out
    assert "needs no environment" in done.out
    for flag in ("dry-run", "limit", "batch-size", "max-duration", "policy-file", "confirm-cap", "as-of", "log-format"):
        assert f"--{flag}" in done.out


def test_a_missing_environment_is_named_in_one_line(call):
    done = call(env={})
    assert done.code == 2
    (line,) = done.lines
    assert (line["event"], line["level"], line["exit_code"]) == ("cleanup_failed", "ERROR", 2)
    assert line["error"] == "environment: DATABASE_URL is not set; REDIS_URL is not set"


def test_what_is_wrong_with_environment_and_policy_file_is_named_at_once(call):
    done = call("--policy-file", "none.yaml", env=CLOSED | {"LOG_LEVEL": "hunter2", "CLEANUP_DRY_RUN": "hunter2"})
    assert done.code == 2
    assert done.closing["error"] == (
        "environment: LOG_LEVEL must be 'DEBUG', 'INFO', 'WARN', 'WARNING' or 'ERROR';"
        " CLEANUP_DRY_RUN must be true or false; policy file none.yaml: cannot be read (FileNotFoundError)"
    )
    assert "hunter2" not in done.out + done.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit", "0"], "argument --limit: '0' is not a whole number above 0"),
        (["--limit", "-1"], "argument --limit: '-1' is not a whole number above 0"),
        (["--limit", "x"], "argument --limit: 'x' is not a whole number above 0"),
        (["--batch-size", "1.5"], "argument --batch-size: '1.5' is not a whole number above 0"),
        (["--as-of", "2026-01-31T02:00:00"], "argument --as-of: '2026-01-31T02:00:00' has no time zone"),
        (["--as-of", "yesterday"], "argument --as-of: 'yesterday' is not a time such as 2026-01-31T02:00:00Z"),
        (["--log-format", "xml"], "argument --log-format: invalid choice: 'xml'"),
        (["--force"], "unrecognized arguments: --force"),
        (["quiz_responses"], "unrecognized arguments: quiz_responses"),
    ],
)
def test_a_flag_that_makes_no_sense(call, flags, message):
    done = call(*flags, env={})
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policies: [", "line 2, column 1: "),
        ("policies: {}\njobs: {}\n", "policies"),
        ("policies: {quiz: {tabel: x}}\njobs: {}\n", "policies.quiz.tabel (line 1, column 19): is not a known key"),
        ("", "policy file"),
    ],
)
def test_a_broken_policy_file_is_found_before_any_connection(call, tmp_path, text, message):
    (tmp_path / "broken.yaml").write_text(text)
    began = time.monotonic()
    done = call("--policy-file", "broken.yaml", env=CLOSED)
    assert done.code == 2
    (line,) = done.lines
    assert line["error"].startswith("policy file broken.yaml")
    assert message in line["error"]
    assert time.monotonic() - began < 10, "30 s would be the retries of a connection"


def test_a_real_run_does_not_go_beyond_the_clock_and_a_dry_run_may(run):
    refused = run("--as-of", "2999-01-01T00:00:00Z")
    assert (refused.code, refused.closing["event"]) == (2, "cleanup_failed")
    assert refused.closing["error"].startswith("--as-of lies in the future")
    assert run("--as-of", "2999-01-01T00:00:00Z", "--dry-run").code == 0


def test_a_wrong_password_is_named_without_it(run, database):
    done = run(DATABASE_URL=database.url.replace("lifecycle_jobs:", "lifecycle_jobs:hunter2"))
    assert done.code == 2
    assert (
        "PostgreSQL refuses the login: user or password is wrong (28P01): check user and password"
        in done.closing["error"]
    )
    assert "hunter2" not in done.out + done.err


def test_a_database_without_the_suite_s_tables_says_what_to_do(run, empty_database):
    done = run(DATABASE_URL=empty_database.url)
    assert done.code == 2
    assert "run backend/migrate.py" in done.closing["error"]
    assert "Traceback" not in done.out + done.err
