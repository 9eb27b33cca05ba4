"""What is typed wrong is refused, and does nothing."""

import os
import subprocess
import sys

import pytest

from tests.lifecycle.erasure.conftest import SCRIPT
from tests.lifecycle.erasure.world import ADDRESS
from tests.project.conftest import load_script


@pytest.mark.parametrize(
    "words",
    [
        ("--add", "-", "list"),
        ("add", "list"),
        ("list", "--channel", "web"),
        ("preview", "--identity", "passport"),
        ("show", "00000000-0000-4000-8000-000000000001", "--limit", "1"),
        ("--export", "-", "list"),
        ("--add", "-", "--preview", "-"),
        ("--requested-at", "2026-01-01T00:00:00Z"),
        ("--identity", "passport"),
        ("--channel", "web"),
        ("--replay", "list"),
        ("--replay", "--preview", "-"),
        ("--limit", "1", "list"),
        ("--preview", "-", "--output", "x.json"),
    ],
)
def test_two_things_at_once_are_refused(world, person, erase, words):
    try:
        done = erase(*words, stdin=f"{ADDRESS}\n")
        code = done.code
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ([], ["run"]),
        (["--dry-run", "--limit", "2"], ["run", "--dry-run", "--limit", "2"]),
        (["--identity", "passport", "--add", "-"], ["add", "--identity", "passport", "-"]),
        (["--log-format", "json", "--preview=-"], ["preview", "--log-format", "json"]),
        (["--export", "-", "--output", "x.zip"], ["export", "-", "--output", "x.zip"]),
        (["--limit", "1", "--replay"], ["replay", "--limit", "1"]),
        (["list", "--all"], ["list", "--all"]),
        (["--operator", "olga", "list"], ["--operator", "olga", "list"]),
        (["--help"], ["--help"]),
    ],
)
def test_the_flags_of_earlier_versions_are_the_verbs_of_the_same_name(words, meant):
    assert load_script(SCRIPT).JOB.spelled(words) == meant


@pytest.mark.parametrize(
    "words", [("--add", "-", "--dry-run"), ("--dry-run", "--add", "-"), ("add", "--dry-run"), ("--dry-run", "add", "-")]
)
def test_a_dry_run_of_an_entry_enters_nothing(world, erase, words):
    done = erase(*words, stdin=f"{ADDRESS}\n")
    assert world.rows("ops.erasure_requests") == [], done.output


@pytest.mark.parametrize("text", [b"ann\xe9@example.com\n", b"a\x00b@example.com\n", b"", b"\n"])
@pytest.mark.parametrize("encoding", ["utf-8:strict", "utf-8:surrogateescape"])
def test_what_is_no_text_is_no_address(world, environment, text, encoding):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--add", "-"],
        env={**environment, "PATH": os.environ["PATH"], "PYTHONIOENCODING": encoding},
        input=text,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2, done.stdout
    assert b"bug" not in done.stdout
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("column", ["channel", "identity_method"])
def test_no_address_gets_onto_a_request_as_a_word(world, column):
    import psycopg

    with pytest.raises(psycopg.errors.CheckViolation):
        world.link.execute(
            "INSERT INTO ops.erasure_requests (email, channel, identity_method, identity_verified_at)"
            " VALUES ('a@example.com', %(channel)s, %(identity_method)s, now())",
            {"channel": "web", "identity_method": "link"} | {column: "mail of anne@example.com"},
        )


def test_a_command_is_no_run_of_the_job(person, asked, erase, tmp_path):
    """Neither Sentry nor Prometheus is to believe that the nightly run was there."""
    figures = tmp_path / "figures"
    figures.mkdir()
    request = asked()
    for words in (["list"], ["show", request], ["--preview", "-"]):
        done = erase(*words, stdin="someone@example.com\n", METRICS_TEXTFILE_DIR=str(figures))
        assert (done.code, list(figures.iterdir())) == (0, [])
    assert erase(METRICS_TEXTFILE_DIR=str(figures)).code == 0
    assert len(list(figures.iterdir())) == 1
