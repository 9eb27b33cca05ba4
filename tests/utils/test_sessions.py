"""What a role, a database or a server has as defaults changes nothing: every setting with a meaning is pinned."""

import os
import signal
import threading
import time
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest

from scripts.utils import db_utils
from scripts.utils.connect_errors import cause_of
from scripts.utils.db_utils import Database, ReadOnlyDatabase, connection_lost, explained, writable
from scripts.utils.errors import DatabaseUnavailable, StoppedEarly
from scripts.utils.redis_lock import connect_redis
from scripts.utils.session_settings import PINNED, local_settings, unpinned

ODD = {
    "DateStyle": ["German", "SQL, DMY", "Postgres, DMY"],
    "IntervalStyle": ["sql_standard", "iso_8601", "postgres_verbose"],
    "TimeZone": ["Asia/Kathmandu"],
    "extra_float_digits": ["-15"],
    "bytea_output": ["escape"],
    "array_nulls": ["off"],
    "xmloption": ["document"],
    "standard_conforming_strings": ["off"],
    "quote_all_identifiers": ["on"],
    "transform_null_equals": ["on"],
    "gin_fuzzy_search_limit": ["1"],
    "synchronous_commit": ["off", "local"],
    "default_transaction_isolation": ["serializable"],
    "default_transaction_read_only": ["on"],
    "default_transaction_deferrable": ["on"],
    "statement_timeout": ["5s"],
    "idle_in_transaction_session_timeout": ["5s"],
    "transaction_timeout": ["5s"],
    "lock_timeout": ["5s"],
    "row_security": ["on"],
    "plan_cache_mode": ["force_generic_plan", "force_custom_plan"],
    "log_parameter_max_length_on_error": ["-1"],
    "client_encoding": ["latin1"],
    "search_path": ["ops, pg_catalog"],
} | {name: ["off"] for name in PINNED if name.startswith("enable_")}
MOMENT = datetime(2026, 2, 1, 12, tzinfo=UTC)


@pytest.fixture
def odd_role(database, new_database):
    """A function that gives lifecycle_jobs a default in this test's database only."""
    link = database.superuser()

    def give(name, value):
        link.execute(f"ALTER ROLE lifecycle_jobs IN DATABASE {database.name} SET {name} = '{value}'")

    return give


@pytest.fixture
def pool(database):
    opened = []

    def open_(kind=Database, url=database.url, max_size=2):
        opened.append(kind(url, application_name="tests", max_size=max_size))
        opened[-1].open()
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def read_back(connection):
    """What a driver and a statement make of values, in one transaction, and what the transaction is."""
    return connection.execute(
        "SELECT %s::timestamptz, %s::timestamptz::timestamp, interval '1 day 2 hours', date '2026-02-01',"
        " '01/02/2026'::date, 0.1::float8::text, '\\xff'::bytea::text, '{NULL}'::text[], ''::text = 'ä',"
        " current_setting('transaction_isolation'), current_setting('transaction_read_only')",
        (MOMENT, MOMENT),
    ).fetchone()


EXPECTED = (
    MOMENT,
    MOMENT.replace(tzinfo=None),
    timedelta(days=1, hours=2),
    date(2026, 2, 1),
    date(2026, 1, 2),
    "0.1",
    "\\xff",
    [None],
    False,
)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ODD.items() for value in values])
@pytest.mark.pooled
def test_no_default_of_the_role_changes_what_a_transaction_means(pool, odd_role, name, value):
    odd_role(name, value)
    database = pool()
    with database.transaction() as connection:
        assert read_back(connection) == (*EXPECTED, "read committed", "off")
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
        for limit in (
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
            "transaction_timeout",
        ):
            assert connection.execute("SELECT current_setting(%s, true)", (limit,)).fetchone() != ("5s",)
        assert not unpinned(connection)
    with database.snapshot() as connection:
        assert read_back(connection) == (*EXPECTED, "repeatable read", "on")
    database.write(lambda connection: connection.execute("INSERT INTO ops.stop_switches VALUES ('a', 'b', 'c')"))


@pytest.mark.parametrize(("name", "value"), [("DateStyle", "German"), ("IntervalStyle", "iso_8601")])
@pytest.mark.pooled
def test_a_pipeline_is_read_rightly_although_its_settings_are_reported_last(pool, odd_role, name, value):
    odd_role(name, value)
    with pool().connection() as connection, connection.pipeline():
        connection.execute("BEGIN")
        connection.execute(*local_settings(lock_timeout=1, statement_timeout=1))
        cursor = connection.execute("SELECT %s::timestamptz, interval '1 day 2 hours'", (MOMENT,))
        connection.execute("COMMIT")
    assert cursor.fetchone() == (MOMENT, timedelta(days=1, hours=2))


def test_a_stronger_commit_is_not_weakened(pool, odd_role):
    odd_role("synchronous_commit", "remote_apply")
    with pool().transaction() as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("remote_apply",)


def test_no_schema_comes_before_the_catalogue(pool, database, odd_role):
    database.superuser().execute(
        "CREATE SCHEMA trap; GRANT USAGE ON SCHEMA trap TO lifecycle_jobs;"
        " CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT timestamptz ''2100-01-01 00:00+00'''"
    )
    odd_role("search_path", "trap, pg_catalog")
    assert pool().now().year < 2100


def test_what_cannot_be_pinned_is_named(pool, odd_role):
    odd_role("session_replication_role", "replica")
    with pool().snapshot() as connection:
        assert unpinned(connection) == {"session_replication_role": ("replica", "origin")}


def test_every_pinned_setting_is_tried():
    assert not PINNED.keys() - ODD.keys() - {"lc_monetary", "jit"}  # these are "off" and "C" here anyhow


def test_a_read_only_database_has_no_way_to_write(pool):
    database = pool(ReadOnlyDatabase)
    for name in ("transaction", "write", "closing_gate", "connection"):
        assert not hasattr(database, name)
    with pytest.raises(RuntimeError, match="dry run"):
        writable(database)
    for statement in (
        "INSERT INTO ops.stop_switches VALUES ('a', 'b', 'c')",
        "SET TRANSACTION READ WRITE",
        "CREATE TEMPORARY TABLE t ()",
        "SELECT nextval('ops.archive_keys_id_seq')",
    ):
        with database.snapshot() as connection, pytest.raises(psycopg.Error), connection.transaction():
            connection.execute(statement)


def test_a_dry_runs_redis_client_only_reads(redis_url, redis_client):
    redis_client.set("lock:a", "x", px=60_000)
    with connect_redis(redis_url, "tests", read_only=True) as client:
        assert client.get("lock:a") == b"x"
        assert client.pttl("lock:a") > 0
        assert client.info("memory")
        for command in (
            lambda: client.set("lock:b", "x"),
            lambda: client.delete("lock:a"),
            lambda: client.eval("return redis.call('DEL', KEYS[1])", 1, "lock:a"),
            lambda: client.pipeline().delete("lock:a").execute(),
        ):
            with pytest.raises(RuntimeError, match="a dry run sends no"):
                command()
    assert redis_client.keys() == ["lock:a"]


@pytest.mark.pooled
def test_a_look_is_ended_at_once_from_a_signal_handler(pool, database):
    stop = StoppedEarly("sigterm", "SIGTERM received")
    reader = pool()
    former = signal.signal(signal.SIGTERM, lambda *_: reader.interrupt(stop))
    try:
        threading.Thread(target=_signal_once_asleep, args=(database.superuser(),)).start()
        with pytest.raises(StoppedEarly) as raised:
            reader.read(lambda connection: connection.execute("SELECT pg_sleep(600)"))
    finally:
        signal.signal(signal.SIGTERM, former)
    assert raised.value is stop
    assert reader.now()  # nothing later is hit


def test_what_writes_is_not_interrupted(pool):
    writer = pool()
    with writer.transaction() as connection:
        writer.interrupt(StoppedEarly("sigterm", "SIGTERM received"))
        assert connection.execute("SELECT pg_sleep(0.2), 1").fetchone()[1] == 1


def _signal_once_asleep(link):
    while not link.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'").fetchone():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("dead", [1, 2, 4, 6])
def test_dead_connections_are_replaced_at_once(pool, database, dead, monkeypatch):
    waits = []
    monkeypatch.setattr("psycopg_pool.pool.sleep", waits.append)
    reader = pool(max_size=8)
    lent = [reader._alive(5) for _ in range(dead)]
    for connection in lent:
        reader._pool.putconn(connection)
    database.superuser().execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'tests'"
        " AND datname = current_database()"
    )
    assert reader.now()
    assert waits == []


def test_a_driver_error_on_a_broken_session_is_a_lost_connection():
    lost = psycopg.InternalError("received 2 results from command 'COMMIT'")
    assert connection_lost(lost)
    assert explained(lost).stop_reason == "database_unavailable"
    assert connection_lost(psycopg.InterfaceError("the connection is closed"))
    assert not connection_lost(psycopg.errors.InternalError_("a function of the server failed"))
    assert not connection_lost(psycopg.ProgrammingError("the query has 1 placeholder but 2 parameters were passed"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("FATAL:  sorry, too many clients already", "too_many_connections"),
        (
            "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
            "too_many_connections",
        ),
        ('FATAL:  too many connections for role "lifecycle_jobs"', "too_many_connections"),
        ("FATAL:  no more connections allowed (max_client_conn)", "too_many_connections"),
        ("FATAL:  the database system is starting up", "starting_up"),
        ("FATAL:  the database system is not yet accepting connections", "starting_up"),
        ('FATAL:  database "app" does not exist', "database_missing"),
        ("FATAL:  no such database: app", "database_missing"),
        ('FATAL:  password authentication failed for user "x"', "password"),
        ("fe_sendauth: no password supplied", "password"),
        ('FATAL:  role "x" does not exist', "role"),
        ('FATAL:  role "x" is not permitted to log in', "role"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "x", database "app", no encryption', "role"),
        ('FATAL:  permission denied for database "app"', "no_connect_right"),
        ('FATAL:  database "app" is not currently accepting connections', "no_connect_right"),
        ("failed to resolve host 'db.invalid': [Errno -2] Name or service not known", "host_unknown"),
        ('connection to server at "127.0.0.1", port 1 failed: Connection refused', "refused"),
        ('connection to server at "10.0.0.1", port 5432 failed: timeout expired', "timeout"),
        ('connection to server at "10.0.0.1", port 5432 failed: No route to host', "unreachable"),
        ("FATAL:  pgbouncer cannot connect to server", "pooler_without_server"),
        ("server closed the connection unexpectedly", "connection_closed"),
        ("FATAL:  Passwort-Authentifizierung fehlgeschlagen", "unknown"),
    ],
)
def test_each_cause_of_a_failed_connect_reads_differently(text, code):
    assert cause_of(psycopg.OperationalError(f"connection failed: {text}")).code == code


def test_a_server_without_a_free_connection_says_so(pool, database, administrator, monkeypatch):
    monkeypatch.setattr(db_utils, "CONNECT_ATTEMPTS", 2)
    administrator.execute(f"ALTER DATABASE {database.name} CONNECTION LIMIT 0")
    with pytest.raises(DatabaseUnavailable, match="no connection left"):
        pool()


def test_a_host_that_is_none_is_told_from_a_port_where_nothing_listens(pool, monkeypatch):
    monkeypatch.setattr(db_utils, "CONNECT_ATTEMPTS", 1)
    with pytest.raises(DatabaseUnavailable, match="has no address"):
        pool(url="postgresql://jobs:secret@nowhere.invalid/app?sslmode=disable")
