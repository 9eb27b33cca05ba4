"""Figures as Prometheus reads them: from a real Pushgateway, and from a textfile; and a gateway that is away."""

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from scripts.utils.metrics_utils import Figure
from scripts.utils.prometheus_sinks import PushgatewaySink, TextfileSink
from scripts.utils.test_helpers import script_environment
from tests.forked import run_script
from tests.packages import debian_program

ROOT = Path(__file__).resolve().parents[2]
CLEANUP = ROOT / "scripts" / "cleanup" / "cleanup_quiz_responses.py"
SUCCESS = "lifecycle_job_last_success_timestamp_seconds"
REMAINING = "lifecycle_job_records_remaining"
EXIT = "lifecycle_job_last_exit_code"


def run_of(code, *, success=None, remaining=None):
    figures = [Figure(EXIT, code, {"script": "a_job"})]
    figures.append(Figure(REMAINING, remaining, {"script": "a_job", "policy": "p"}))
    if success:
        figures.append(Figure(SUCCESS, success, {"script": "a_job"}))
    return figures


def samples(text):
    return {
        (sample.name, sample.labels["script"], sample.labels.get("policy")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("lifecycle_job")
    }


@pytest.fixture(scope="session")
def pushgateway():
    """The URL of a real Pushgateway on a free port."""
    program = debian_program("prometheus-pushgateway", "prometheus-pushgateway")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [program, "--web.enable-admin-api", f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                assert httpx.get(f"{url}/-/ready").is_success
                break
            except httpx.HTTPError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(300)


@pytest.fixture(params=["pushgateway", "textfile"])
def sink(request, tmp_path):
    """Each sink, and what Prometheus reads there afterwards."""
    if request.param == "textfile":
        return TextfileSink(tmp_path), (tmp_path / "lifecycle_a_job.prom").read_text
    url = request.getfixturevalue("pushgateway")
    assert httpx.put(f"{url}/api/v1/admin/wipe").is_success
    return PushgatewaySink(url), lambda: httpx.get(f"{url}/metrics").text


def test_what_is_sent_is_read(sink):
    target, read = sink
    target.send("a_job", run_of(4, success=1_700_000_000.5, remaining=3))
    assert samples(read()) == {
        (SUCCESS, "a_job", None): 1_700_000_000.5,
        (EXIT, "a_job", None): 4,
        (REMAINING, "a_job", "p"): 3,
    }
    assert "# TYPE lifecycle_job_last_exit_code gauge" in read()


def test_a_run_that_fails_keeps_the_last_success_and_not_the_last_count(sink):
    target, read = sink
    target.send("a_job", run_of(0, success=1_700_000_000.0, remaining=3))
    target.send("a_job", run_of(1))
    found = samples(read())
    assert found[SUCCESS, "a_job", None] == 1_700_000_000
    assert found[EXIT, "a_job", None] == 1
    assert math.isnan(found[REMAINING, "a_job", "p"])


def test_what_nobody_can_read_is_replaced(tmp_path):
    (tmp_path / "lifecycle_a_job.prom").write_text("this is { no metric\n")
    TextfileSink(tmp_path).send("a_job", run_of(0))
    assert samples((tmp_path / "lifecycle_a_job.prom").read_text())[EXIT, "a_job", None] == 0


def test_a_reader_never_sees_half_a_textfile(tmp_path):
    target, path, seen, done = TextfileSink(tmp_path), tmp_path / "lifecycle_a_job.prom", set(), threading.Event()
    target.send("a_job", run_of(0))

    def read():
        while not done.is_set():
            seen.add(len(samples(path.read_text())))

    reader = threading.Thread(target=read)
    reader.start()
    for code in range(200):
        target.send("a_job", run_of(code % 3))
    done.set()
    reader.join()
    assert seen == {2}
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_an_error_of_the_sink(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        TextfileSink(tmp_path).send("a_job", run_of(0))


class _Gateway(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.seen.append((self.path, self.headers.get("authorization")))
        self.send_response(202)
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


def test_a_login_in_the_url_is_sent_as_one():
    with HTTPServer(("127.0.0.1", 0), _Gateway) as server:
        server.seen = []
        threading.Thread(target=server.handle_request).start()
        PushgatewaySink(f"http://push:p%40ss@127.0.0.1:{server.server_port}/base/").send("a_job", run_of(0))
        assert server.seen == [("/base/metrics/job/a_job", "Basic cHVzaDpwQHNz")]


@pytest.fixture
def environment(database, redis_url):
    return {"DATABASE_URL": database.url, "REDIS_URL": redis_url}


def test_a_job_s_figures_arrive_in_both(environment, pushgateway, tmp_path):
    assert httpx.put(f"{pushgateway}/api/v1/admin/wipe").is_success
    done = run_script(
        CLEANUP, env=environment | {"PUSHGATEWAY_URL": pushgateway, "METRICS_TEXTFILE_DIR": str(tmp_path)}
    )
    assert done.returncode == 0, done.stdout
    pushed = samples(httpx.get(f"{pushgateway}/metrics").text)
    written = samples((tmp_path / "lifecycle_cleanup_quiz_responses.prom").read_text())
    assert pushed == written
    assert pushed[EXIT, "cleanup_quiz_responses", None] == 0
    assert pushed[REMAINING, "cleanup_quiz_responses", "quiz_responses"] == 0
    assert time.time() - pushed[SUCCESS, "cleanup_quiz_responses", None] < 60


def test_a_dry_run_sends_nothing(environment, pushgateway, tmp_path):
    assert httpx.put(f"{pushgateway}/api/v1/admin/wipe").is_success
    settings = {"PUSHGATEWAY_URL": pushgateway, "METRICS_TEXTFILE_DIR": str(tmp_path)}
    assert run_script(CLEANUP, "--dry-run", env=environment | settings).returncode == 0
    assert samples(httpx.get(f"{pushgateway}/metrics").text) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=["refuses", "hangs"])
def dead_host(request):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if request.param == "refuses":
            server.close()
        yield port


def test_a_gateway_that_is_away_fails_no_job(environment, dead_host):
    settings = {"PUSHGATEWAY_URL": f"http://push:hunter2@127.0.0.1:{dead_host}"}
    done = run_script(CLEANUP, env=environment | settings)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, lines[-1]["event"]) == (0, "cleanup_completed")
    (lost,) = [line for line in lines if line["event"] == "metrics_lost"]
    assert lost["sink"] == "PushgatewaySink"
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize("wanted", [False, True])
def test_the_client_library_is_loaded_only_for_a_sink_that_is_set(environment, wanted, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from scripts.cleanup.cleanup_quiz_responses import JOB\n"
        "from scripts.lifecycle.jobs.entry_point import main\n"
        "code = main(JOB, [])\n"
        "print('prometheus_client' in sys.modules, 'sentry_sdk' in sys.modules, file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    settings = {"METRICS_TEXTFILE_DIR": str(tmp_path)} if wanted else {}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=script_environment(environment | settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, f"{wanted} False\n")
