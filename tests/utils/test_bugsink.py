"""An error in a real ingest: Bugsink, which speaks Sentry's protocol, on loopback with a database of its own."""

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from scripts.lifecycle.health import services
from scripts.lifecycle.health.findings import Context
from scripts.utils.settings import load_settings
from scripts.utils.test_helpers import run_script
from tests.packages import folder_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.soak

JOB = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from scripts.utils import error_reporting
from scripts.lifecycle.jobs.entry_point import Job, main

def work(run):
    with run.database.transaction() as connection:
        connection.execute("INSERT INTO ops.stop_switches VALUES ('x', 'anna', 'anna@example.com', now())")
        connection.execute("SELECT set_config('statement_timeout', '60s', true)")
    row = {{"email": "anna@example.com", "name": "Anna Schmidt"}}
    with error_reporting.about("quiz_responses"):
        raise KeyError("no column for " + row["email"] + " with password=hunter2")

sys.exit(main(Job("cleanup_quiz_responses", work, "A job with a bug.")))
"""
MAKE_PROJECT = "from projects.models import Project; print('DSN', Project.objects.create(name='lifecycle').dsn)"
SHOW = "import json; from events.models import Event; [print('EVENT', json.dumps(e.get_parsed_data())) for e in Event.objects.all()]"


class Bugsink:
    """A running Bugsink."""

    def __init__(self, programs, folder):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._programs, self._folder = programs, folder
        self._run("bugsink-create-conf", "--template=local", "--host=127.0.0.1", f"--port={port}")
        self._run("bugsink-manage", "migrate")
        self._run("bugsink-manage", "migrate", "--database=snappea")
        self.dsn = self._ask(MAKE_PROJECT, "DSN")[0]
        self.process = subprocess.Popen(
            [programs / "gunicorn", "bugsink.wsgi", f"--bind=127.0.0.1:{port}"],
            cwd=folder,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(300):
            try:
                httpx.get(f"http://127.0.0.1:{port}/")
                break
            except httpx.TransportError:
                time.sleep(0.1)

    @property
    def _environment(self):
        return {"PATH": os.defpath, "DJANGO_SETTINGS_MODULE": "bugsink_conf", "PYTHONPATH": str(self._folder)}

    def _run(self, program, *arguments):
        done = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _ask(self, code, mark):
        lines = self._run("bugsink-manage", "shell", "-c", code).splitlines()
        return [line.removeprefix(f"{mark} ") for line in lines if line.startswith(f"{mark} ")]

    def events(self):
        return [json.loads(line) for line in self._ask(SHOW, "EVENT")]


@pytest.fixture(scope="module")
def bugsink(tmp_path_factory):
    running = Bugsink(folder_of("bugsink") / "bin", tmp_path_factory.mktemp("bugsink"))
    yield running
    running.process.terminate()
    running.process.wait(300)


def test_a_bug_arrives_with_its_tags_and_without_a_person(bugsink, database, redis_url, tmp_path):
    script = tmp_path / "job.py"
    script.write_text(JOB)
    env = {"DATABASE_URL": database.url, "REDIS_URL": redis_url, "SENTRY_DSN": bugsink.dsn}
    settings = {"SENTRY_ENVIRONMENT": "staging", "SENTRY_TRACES_SAMPLE_RATE": "1", "RENDER_GIT_COMMIT": "abc123"}
    done = run_script(script, env=env | settings)
    closing = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, closing["stop_reason"]) == (1, "bug")
    (event,) = bugsink.events()
    tags = dict(event["tags"])
    assert tags == {
        "script": "cleanup_quiz_responses",
        "policy": "quiz_responses",
        "correlation_id": closing["correlation_id"],
    }
    assert (event["environment"], event["release"]) == ("staging", "abc123")
    assert event["contexts"]["trace"]["trace_id"] == closing["trace_id"]
    assert event["exception"]["values"][-1]["type"] == "KeyError"
    values = json.dumps([value["value"] for value in event["exception"]["values"]])
    assert "[text withheld]" in values
    for secret in ("anna@example.com", "hunter2"):
        assert secret not in values
    without_source = json.dumps(
        [
            {key: value for key, value in frame.items() if key not in {"context_line", "pre_context", "post_context"}}
            for value in event["exception"]["values"]
            for frame in value["stacktrace"]["frames"]
        ]
    )
    rest = json.dumps({key: value for key, value in event.items() if key != "exception"})
    for personal in ("anna", "Anna", "hunter2", database.url):
        assert personal not in without_source + rest


def another_key(dsn):
    """The same DSN with a key that no project has."""
    key = dsn.partition("//")[2].partition("@")[0]
    return dsn.replace(key, key[:-1] + ("0" if key[-1] != "0" else "1"))


@pytest.mark.parametrize(("change", "status"), [(str, "PASS"), (another_key, "FAIL")])
def test_the_health_check_tells_whether_it_takes_the_key(bugsink, monkeypatch, change, status):
    monkeypatch.setenv("DATABASE_URL", "postgresql://jobs:pw@db.example.com/app")
    monkeypatch.setenv("REDIS_URL", "rediss://cache.example.com")
    monkeypatch.setenv("SENTRY_DSN", change(bugsink.dsn))
    run = SimpleNamespace(settings=load_settings(), options=SimpleNamespace(dry_run=False))
    (line,) = services.sentry(Context(run, None, None))
    assert line.status == status, line
