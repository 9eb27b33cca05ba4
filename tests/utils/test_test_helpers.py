"""The proxy that counts and cuts, in front of a real PostgreSQL; and scripts run for real."""

import threading

import psycopg
import pytest

from scripts.utils.test_helpers import Proxy, run_script, start_script


@pytest.fixture
def proxy(database):
    with Proxy.before(database.url) as proxy:
        yield proxy


@pytest.fixture
def connect(database, proxy):
    opened = []

    def make():
        opened.append(psycopg.connect(proxy.through(database.superuser_url), connect_timeout=5))
        return opened[-1]

    yield make
    for connection in opened:
        connection.close()


def rows(database):
    return database.superuser().execute("SELECT count(*) FROM public.users").fetchone()[0]


def insert(connection):
    connection.execute("INSERT INTO public.users VALUES ('1', 'a', 'a', null, now(), now())")


def test_counts_round_trips(connect, proxy):
    connection = connect()
    connection.autocommit = True
    proxy.turns = 0
    for _ in range(3):
        connection.execute("SELECT 1")
    assert proxy.turns == 3
    assert proxy.connections == 1


def test_passes_much_data_both_ways(connect):
    big = "x" * 5_000_000
    assert connect().execute("SELECT %s || 'y'", (big,)).fetchone() == (big + "y",)


def test_cut_breaks_what_is_open_and_nothing_later(connect, proxy):
    connection = connect()
    proxy.cut()
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    assert connect().execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(("before_forward", "kept"), [(True, 0), (False, 1)])
def test_a_commit_cut_off_on_either_side(connect, proxy, database, before_forward, kept):
    connection = connect()
    insert(connection)
    proxy.cut_when(b"COMMIT", before_forward=before_forward)
    with pytest.raises(psycopg.OperationalError):
        connection.commit()
    assert rows(database) == kept
    assert proxy.cuts == 1
    assert connect().execute("SELECT 1").fetchone() == (1,)


def test_a_pattern_in_two_pieces_is_found(proxy, database, connect):
    connection = connect()
    proxy.cut_when(b"needle" + b"x" * 100_000, before_forward=True)
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 'needle" + "x" * 200_000 + "'")


def test_refuses_as_often_as_told(connect, proxy):
    proxy.refuse(2)
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError):
            connect()
    assert connect().execute("SELECT 1").fetchone() == (1,)


def test_a_server_that_is_gone_refuses(database):
    with Proxy("127.0.0.1", 1) as proxy, pytest.raises(psycopg.OperationalError):
        psycopg.connect(proxy.through(database.url), connect_timeout=5)


def test_a_slow_line_is_slow_for_so_many_connections(database, monkeypatch):
    waited = []
    wait = threading.Event.wait
    monkeypatch.setattr(
        threading.Event, "wait", lambda event, seconds=None: waited.append(seconds) or wait(event, seconds)
    )
    with Proxy.before(database.url) as proxy:
        proxy.slow(1, 0.5)
        for _ in range(2):
            psycopg.connect(proxy.through(database.url)).close()
    assert waited.count(0.5) == 1


def test_an_end_closes_what_is_open(database):
    with Proxy.before(database.url) as proxy:
        connection = psycopg.connect(proxy.through(database.url))
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    connection.close()


def test_through_keeps_login_and_database():
    with Proxy("example.com", 1) as proxy:
        through = proxy.through("postgresql://me:p%40ss@example.com:1/app?sslmode=disable")
        assert through == f"postgresql://me:p%40ss@127.0.0.1:{proxy.port}/app?sslmode=disable"
    with pytest.raises(ValueError, match="no host and port"):
        Proxy.before("redis:///0")


def test_a_script_gets_the_given_environment_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("LEAKED", "1")
    script = tmp_path / "script.py"
    script.write_text("import os, sys; print(sorted(os.environ), sys.argv[1:], sys.stdin.read()); sys.exit(3)")
    done = run_script(script, "--flag", env={"GIVEN": "1"}, stdin="typed")
    assert done.returncode == 3
    assert "'GIVEN'" in done.stdout
    assert "'PATH'" in done.stdout
    assert "LEAKED" not in done.stdout
    assert done.stdout.endswith("['--flag'] typed\n")


def test_a_started_script_can_be_stopped(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import time; print('up', flush=True); time.sleep(3600)")
    with start_script(script, env={}) as process:
        assert process.stdout.readline() == "up\n"
        process.terminate()
    assert process.returncode == -15
