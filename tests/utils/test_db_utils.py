"""Connections that heal, transactions that leave no trace in a session, and errors that say which kind they are."""

import time
from datetime import UTC, timedelta

import psycopg
import pytest

from scripts.utils import db_utils
from scripts.utils.db_utils import Database, connection_lost, explained, is_deadlock, local_settings
from scripts.utils.errors import DatabaseRefused, DatabaseUnavailable
from scripts.utils.test_helpers import Proxy
from tests.pooler import Pooler


@pytest.fixture
def connect():
    """A function that opens a Database; all are closed at the end."""
    opened = []

    def connect(url, *, max_size=2, name="test"):
        opened.append(Database(url, application_name=name, max_size=max_size))
        opened[-1].open()
        return opened[-1]

    yield connect
    for database in opened:
        database.close()


@pytest.fixture
def proxy(database):
    with Proxy.before(database.url) as proxy:
        yield proxy


def one(database, query):
    return database.read(lambda connection: connection.execute(query).fetchone()[0])


def settings_of(connection):
    names = ("TimeZone", "row_security", "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
    return [connection.execute("SELECT current_setting(%s)", (name,)).fetchone()[0] for name in names]


@pytest.mark.pooled
def test_a_transaction_has_its_settings_and_leaves_none_behind(connect, database):
    pool = connect(database.url, max_size=1)
    with pool.connection() as connection:
        before = settings_of(connection)
    with pool.transaction(lock_timeout=0.25, statement_timeout=7) as connection:
        assert settings_of(connection) == ["UTC", "off", "250ms", "7s", "7s"]
    with pool.connection() as connection:
        assert settings_of(connection) == before
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def test_a_timeout_is_never_rounded_down_to_none():
    assert local_settings(lock_timeout=0.0001, statement_timeout=0.0001)[1] == {"lock_ms": "1", "statement_ms": "1"}


@pytest.mark.pooled
def test_a_read_only_transaction_cannot_write_and_sees_one_moment(connect, database):
    pool = connect(database.url)
    with pool.snapshot() as connection:
        count = "SELECT count(*) FROM ops.stop_switches"
        assert connection.execute(count).fetchone() == (0,)
        database.superuser().execute("INSERT INTO ops.stop_switches VALUES ('a', 'b', 'c')")
        assert connection.execute(count).fetchone() == (0,)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), connection.transaction():
            connection.execute("DELETE FROM ops.stop_switches")
    assert one(pool, "SELECT count(*) FROM ops.stop_switches") == 1


@pytest.mark.pooled
def test_an_error_undoes_the_transaction(connect, database):
    pool = connect(database.url, max_size=1)
    with pytest.raises(psycopg.errors.DivisionByZero), pool.transaction() as connection:
        connection.execute("INSERT INTO ops.stop_switches VALUES ('a', 'b', 'c'); SELECT 1 / 0")
    assert one(pool, "SELECT count(*) FROM ops.stop_switches") == 0


@pytest.mark.pooled
def test_the_application_name_is_shown(connect, database):
    pool = connect(database.url, name="some_job 0123456789abcdef")
    assert one(pool, "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()") == (
        "some_job 0123456789abcdef"
    )


def test_now_is_the_databases_and_knows_its_zone(connect, database):
    now = connect(database.url).now()
    assert now.utcoffset() == timedelta(0)
    server = database.superuser().execute("SELECT now()").fetchone()[0]
    assert abs(server.astimezone(UTC) - now) < timedelta(seconds=10)


@pytest.mark.parametrize(
    ("break_url", "told"),
    [
        (lambda url: url.replace("@", "secret@"), "28P01"),
        (lambda url: url.rpartition("/")[0] + "/nowhere", "3D000"),
        # A server with scram-sha-256 does not tell a stranger that there is no such role.
        (lambda url: url.replace("lifecycle_jobs", "nobody_at_all"), "28P01|28000"),
    ],
    ids=["password", "database", "role"],
)
def test_what_the_server_refuses_is_not_tried_again(connect, database, break_url, told):
    with (
        Proxy.before(database.url) as proxy,
        pytest.raises(DatabaseRefused, match=rf"refuses the login.*\(({told})\).*check") as refused,
    ):
        connect(break_url(proxy.through(database.url)))
    assert proxy.connections == 1
    assert "secret" not in str(refused.value)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    "refuse", ["REVOKE CONNECT ON DATABASE {} FROM PUBLIC", "ALTER DATABASE {} ALLOW_CONNECTIONS false"]
)
def test_a_database_that_lets_nobody_in_refuses(connect, database, administrator, refuse):
    administrator.execute(refuse.format(database.name))
    with pytest.raises(DatabaseRefused):
        connect(database.url)


def test_nobody_there_is_said_after_bounded_attempts(connect, monkeypatch):
    monkeypatch.setattr(db_utils, "CONNECT_ATTEMPTS", 3)
    with pytest.raises(DatabaseUnavailable, match="connection refused"):
        connect("postgresql://jobs:secret@127.0.0.1:1/app")


def test_a_sleeping_database_is_waited_for(connect, database, proxy, monkeypatch):
    monkeypatch.setattr(db_utils, "CONNECT_TIMEOUT_SECONDS", 2)
    proxy.refuse(3)
    proxy.slow(1, 2.5)  # taken, and then silent for too long
    assert one(connect(proxy.through(database.url)), "SELECT 1") == 1
    assert proxy.connections >= 2


def test_a_pooler_that_throws_out_who_is_idle_is_survived(connect, database, stack):
    """As Neon does when it goes to sleep: both what the pooler kept open, and who was connected to it."""
    pooler = Pooler(stack, client_idle_timeout=1, server_idle_timeout=1)
    try:
        pool = connect(pooler.through(database.straight_url))
        assert one(pool, "SELECT 1") == 1
        until = time.monotonic() + 20
        while "client_idle_timeout" not in pooler.log:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert one(pool, "SELECT 1") == 1
        with pool.transaction() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        pooler.stop()


def test_an_idle_connection_that_was_cut_is_replaced(connect, database, proxy):
    pool = connect(proxy.through(database.url))
    for _ in range(3):
        proxy.cut()
        assert one(pool, "SELECT 1") == 1
        with pool.transaction() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_terminated_idle_server_process_is_replaced(connect, database):
    pool = connect(database.url)
    pid = one(pool, "SELECT pg_backend_pid()")
    database.superuser().execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    with pool.transaction() as connection:
        assert connection.info.backend_pid != pid


def test_a_read_that_is_cut_is_done_again(connect, database, proxy):
    pool = connect(proxy.through(database.url))
    proxy.cut_when(b"'needle'", before_forward=False)
    assert one(pool, "SELECT 'needle'") == "needle"
    assert proxy.cuts == 1


def test_a_read_that_is_cut_every_time_gives_up(connect, database, monkeypatch):
    monkeypatch.setattr(db_utils, "CONNECT_ATTEMPTS", 3)
    pool, attempts = connect(database.url), []

    def cut(connection):
        attempts.append(1)
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(DatabaseUnavailable, match="broke in every attempt"):
        pool.read(cut)
    assert len(attempts) == 3


def test_a_read_that_is_wrong_is_not_repeated(connect, database):
    attempts = []
    with pytest.raises(psycopg.errors.UndefinedTable):
        connect(database.url).read(lambda link: attempts.append(1) or link.execute("SELECT FROM nowhere"))
    assert attempts == [1]


def test_a_database_that_went_away_is_waited_for_once(connect, database, proxy, monkeypatch):
    monkeypatch.setattr(db_utils, "CONNECT_SECONDS", 2.0)
    monkeypatch.setattr(db_utils, "LAST_WORD_SECONDS", 0.1)
    pool = connect(proxy.through(database.url))
    proxy.refuse(10**9)
    proxy.cut()
    for words in ("within 2 s", "within 0 s", "within 0 s"):
        with pytest.raises(DatabaseUnavailable, match=words), pool.connection():
            pass
    proxy.refuse(0)
    until = time.monotonic() + 20
    while not _answers(pool):
        assert time.monotonic() < until
    assert pool._patience == 2.0


def _answers(pool):
    try:
        return one(pool, "SELECT 1") == 1
    except DatabaseUnavailable:
        return False


def test_a_pool_that_is_used_up_says_so(connect, database, monkeypatch):
    monkeypatch.setattr(db_utils, "CONNECT_SECONDS", 0.2)
    pool = connect(database.url, max_size=1)
    with pool.connection(), pytest.raises(DatabaseUnavailable, match="did not give a connection"), pool.connection():
        pass


def test_which_errors_mean_a_lost_connection():
    lost = [psycopg.OperationalError, psycopg.errors.AdminShutdown, psycopg.errors.ConnectionFailure]
    lost += [psycopg.errors.CrashShutdown, psycopg.errors.CannotConnectNow, psycopg.errors.TooManyConnections]
    for kind in lost:
        assert connection_lost(kind())
    for kind in (psycopg.errors.LockNotAvailable, psycopg.errors.DiskFull, psycopg.errors.QueryCanceled, OSError):
        assert not connection_lost(kind())
    for kind in (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
        assert is_deadlock(kind())
        assert not connection_lost(kind())
    assert not is_deadlock(psycopg.errors.LockNotAvailable())


def test_a_driver_error_is_explained():
    lost, locked, full = psycopg.OperationalError(), psycopg.errors.LockNotAvailable(), psycopg.errors.DiskFull()
    assert isinstance(explained(lost), DatabaseUnavailable)
    assert "a rerun is safe" in str(explained(lost))
    assert [explained(error).stop_reason for error in (locked, full)] == ["database_error"] * 2
    assert "stays locked by another session" in str(explained(locked))
    assert str(explained(full)) == "DiskFull (SQLSTATE 53100)"


@pytest.mark.pooled
def test_no_transaction_compiles_its_statements_whatever_the_server_says(connect, database):
    database.superuser().execute(f"ALTER DATABASE {database.name} SET jit = on")
    pool = connect(database.url, max_size=1)

    with pool.connection() as connection:
        assert connection.execute("SHOW jit").fetchone() == ("on",)
    with pool.transaction() as connection:
        assert connection.execute("SHOW jit").fetchone() == ("off",)


def test_closing_the_gate_locks_it_before_the_first_statement(connect, database):
    pool = connect(database.url)
    batch = database.superuser()
    asked = "LOCK TABLE ops.gate IN ROW SHARE MODE NOWAIT"

    with pool.closing_gate(), pytest.raises(psycopg.errors.LockNotAvailable), batch.transaction():
        batch.execute(asked)
    with batch.transaction():
        batch.execute(asked)


def test_every_transaction_that_the_server_does_is_counted_once(connect, database):
    """As the server counts them; politeness takes the rest of the server's count for other sessions'."""
    watcher = database.superuser()
    pool = connect(database.url, max_size=1)
    seen = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"

    def work(connection):
        connection.execute("SELECT 1")
        return connection.execute("SELECT 2").fetchone()

    flush = "SELECT pg_stat_force_next_flush(), count(*) FROM ops.leases"  # without a table, nothing is reported
    with pool.connection() as connection:
        connection.execute(flush)
        before = pool.transactions, watcher.execute(seen).fetchone()[0]
    for _ in range(100):
        pool.read(work)
        pool.write(work)
        with pool.connection() as connection:
            connection.execute("SELECT 1")
            connection.execute("SELECT 2")
            with connection.pipeline():
                connection.execute("BEGIN")
                connection.execute("SELECT 1")
                connection.execute("SELECT 2")
                connection.execute("COMMIT")
    with pool.connection() as connection:
        connection.execute(flush)
        counted, told = pool.transactions - before[0], watcher.execute(seen).fetchone()[0] - before[1]

    assert counted >= 800
    assert 0 <= told - counted < 50, "the watcher's and an autovacuum's are the server's own"
