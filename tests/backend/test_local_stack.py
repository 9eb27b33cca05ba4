"""The embedded servers, started and stopped for real."""

import os
import re
import signal
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
import redis

from backend import embedded_servers, local_stack
from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.test_helpers import run_script

SCRIPT = local_stack.__file__
SCRIPTS = Path(local_stack.__file__).parents[1] / "scripts"


@pytest.fixture
def directory(tmp_path):
    """A folder for a stack; what runs there in the end is stopped and deleted."""
    folder = tmp_path / "it's a stack"
    yield folder
    if (folder / "stack.json").exists():
        started = local_stack.load(folder)
        local_stack.stop(started)
        local_stack.delete(started)


def postmaster(started):
    return int((started.runtime / "postgres" / "data" / "postmaster.pid").read_text().split("\n", 1)[0])


def execute(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def ask(url, question):
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(question).fetchone()[0]


def test_starts_once_and_finds_itself_again(directory):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: local_stack.start(directory, durable=False), range(2))
    assert first == second == local_stack.load(directory)
    assert "password" not in repr(first)


def test_only_passwords_open_it(stack):
    wrong = stack.superuser_url().replace(stack.superuser_password, "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        ask(wrong, "SELECT 1")
    with redis.Redis(port=stack.redis_port, retry=None) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    state = stack.directory / "stack.json"
    assert stat.S_IMODE(state.stat().st_mode) == 0o600


def test_only_this_machine_reaches_it(stack):
    connections = [c for c in psutil.net_connections("tcp") if c.status == "LISTEN"]
    ports = {c.laddr.port: c.laddr.ip for c in connections if c.laddr.port in (stack.postgres_port, stack.redis_port)}
    assert ports == {stack.postgres_port: "127.0.0.1", stack.redis_port: "127.0.0.1"}
    assert ask(stack.superuser_url(), "SHOW unix_socket_directories") == ""


def test_no_password_on_any_command_line(stack):
    lines = " ".join(" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    for password in (stack.superuser_password, stack.jobs_password, stack.redis_password):
        assert password not in lines


def test_the_servers_do_not_run_as_root(stack):
    assert psutil.Process(postmaster(stack)).uids().real != 0


def test_settings(stack, redis_client):
    assert ask(stack.superuser_url(), "SHOW max_connections") == "200"
    assert ask(stack.superuser_url(), "SHOW fsync") == "off"
    assert ask(stack.superuser_url(), "SHOW synchronous_commit") == "on"
    assert redis_client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


@pytest.mark.soak
def test_data_and_ports_survive_a_stop_and_a_crash(directory):
    started = local_stack.start(directory)
    assert ask(started.superuser_url(), "SHOW fsync") == "on"
    execute(started.superuser_url(), "CREATE TABLE kept AS SELECT 1")
    local_stack.stop(started)
    assert not local_stack.postgres_answers(started)
    assert not local_stack.redis_answers(started)
    assert local_stack.start(directory) == started
    os.kill(postmaster(started), signal.SIGKILL)
    # A process of somebody else's now has the number that the file names, as it may after a reboot.
    pid_file = started.runtime / "postgres" / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getppid()), *lines[1:]]))
    again = local_stack.start(directory)
    assert ask(again.superuser_url(), "SELECT count(*) FROM kept") == 1


@pytest.mark.soak
def test_a_port_taken_meanwhile_is_left_alone(directory):
    started = local_stack.start(directory, durable=False)
    local_stack.stop(started)
    with socket.create_server(("127.0.0.1", started.postgres_port)):
        again = local_stack.start(directory, durable=False)
    assert again.postgres_port != started.postgres_port
    assert local_stack.postgres_answers(again)


@pytest.mark.soak
def test_leaves_nothing_behind(tmp_path):
    with local_stack.running(tmp_path / "one", durable=False) as one:
        pid = postmaster(one)
        folders = {one.directory, one.runtime}
    assert not any(folder.exists() for folder in folders)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.soak
def test_folders_above_keep_their_rights(directory):
    directory.parent.chmod(0o700)
    started = local_stack.start(directory, durable=False)
    assert local_stack.postgres_answers(started)
    assert stat.S_IMODE(directory.parent.stat().st_mode) == 0o700


def test_the_command_line_from_start_to_stop(directory):
    def run(*args):
        return run_script(SCRIPT, *args, "--directory", str(directory), env={})

    done = run("exports")
    assert (done.returncode, done.stdout) == (1, "")
    assert "make stack" in done.stderr
    done = run("start", "--rows", "200")
    assert done.returncode == 0, done.stderr
    exports = dict(re.findall(r"^export (\w+)='([^']+)'$", run("exports").stdout, re.MULTILINE))
    blob = {"VERCEL_BLOB_API_URL", "VERCEL_BLOB_DELIVERY_URL", "BLOB_READ_WRITE_TOKEN", "BLOB_RATE_LIMIT_PER_MINUTE"}
    keys = {"AUDIT_PSEUDONYM_KEY", "SUPPRESSION_KEY", "ARCHIVE_MASTER_KEY", "ARCHIVE_URL"}
    assert set(exports) == {"DATABASE_URL", "EXPORT_DATABASE_URL", "MIGRATION_DATABASE_URL", "REDIS_URL"} | keys | blob
    with psycopg.connect(exports["MIGRATION_DATABASE_URL"]) as link:
        (address,) = link.execute("SELECT email FROM meal_plans WHERE pdf_blob_path <> '' LIMIT 1").fetchone()
    output = directory.parent / "export.zip"
    done = run_script(
        SCRIPTS / "retention" / "enforce_gdpr_deletion.py",
        "--export",
        "-",
        "--output",
        str(output),
        env=exports,
        stdin=f"{address}\n",
    )
    assert (done.returncode, output.exists()) == (0, True), done.stdout
    listed = httpx.get(
        exports["VERCEL_BLOB_API_URL"],
        headers={"authorization": f"Bearer {exports['BLOB_READ_WRITE_TOKEN']}", "x-api-version": "12"},
    ).json()
    assert len(listed["blobs"]) == ask(
        exports["MIGRATION_DATABASE_URL"],
        f"SELECT count(*) + {local_stack.FORGOTTEN_PDFS} FROM meal_plans WHERE pdf_blob_path <> ''",
    )
    assert ask(exports["DATABASE_URL"], "SELECT current_user || count(*) FROM quiz_responses") == "lifecycle_jobs200"
    assert ask(exports["MIGRATION_DATABASE_URL"], "SELECT current_database()") == "app"
    assert "there already" in run("start").stdout
    assert run("status").returncode == 0
    assert run("stop").returncode == 0
    assert run("status").returncode == 1
    assert run("exports").stdout == ""
    assert run("stop", "--delete").returncode == 0
    assert not directory.exists()


def test_missing_wheels_are_one_clear_message(monkeypatch, capsys, directory):
    monkeypatch.setattr(embedded_servers.importlib.util, "find_spec", lambda _: None)
    assert local_stack.main(["start", "--directory", str(directory)]) == 2
    assert "make stack" in capsys.readouterr().err


def test_no_account_to_run_as(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(embedded_servers.pwd, "getpwall", list)
    with pytest.raises(Misconfigured, match="does not run as root"):
        embedded_servers._account()


def test_a_server_that_cannot_start_names_its_log(directory, monkeypatch):
    monkeypatch.setattr(embedded_servers, "_postgres_options", lambda *_: "-c nonsense=1")
    with pytest.raises(OpsError, match=r"server\.log\. .*nonsense"):
        local_stack.start(directory, durable=False)
