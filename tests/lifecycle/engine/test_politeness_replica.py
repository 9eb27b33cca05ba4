"""A replica that lags: a walsender's client that says once how far it is, and then no more."""

import secrets
import struct
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql

from scripts.lifecycle.engine import politeness
from scripts.lifecycle.engine.politeness import REPLICA_LAG
from tests.faults.stage import wait_until
from tests.lifecycle.support import add_things, policy, record

STATUS = "SELECT count(*) FROM pg_stat_replication WHERE application_name = %s AND replay_lsn IS NOT NULL"


@pytest.fixture
def seeing_role(database, administrator, monkeypatch, _settings):
    """The jobs run as a role of this test's own that has the jobs' rights and may read all statistics."""
    name, password = f"seer_{secrets.token_hex(4)}", secrets.token_hex(16)
    create = "CREATE ROLE {} LOGIN PASSWORD {} IN ROLE lifecycle_jobs, pg_read_all_stats"
    administrator.execute(sql.SQL(create).format(sql.Identifier(name), sql.Literal(password)))
    server = database.url.rpartition("@")[2]
    monkeypatch.setenv("DATABASE_URL", f"postgresql://{name}:{password}@{server}")
    yield name
    administrator.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture
def replica(database, administrator):
    """A replica that is where the server was when the test began."""
    name = f"replica_{secrets.token_hex(4)}"
    with psycopg.connect(
        database.superuser_url, replication="true", application_name=name, autocommit=True
    ) as connection:
        start = connection.pgconn.exec_(b"IDENTIFY_SYSTEM").get_value(0, 2).decode()
        connection.pgconn.exec_(f"START_REPLICATION PHYSICAL {start}".encode())
        high, low = (int(part, 16) for part in start.split("/"))
        position = (high << 32) + low
        connection.pgconn.put_copy_data(b"r" + struct.pack(">QQQQB", position, position, position, 0, 0))
        while connection.pgconn.flush():
            pass
        wait_until(lambda: administrator.execute(STATUS, (name,)).fetchone()[0], what="the replica's first word")
        yield name
        connection.pgconn.finish()


@pytest.fixture(autouse=True)
def _always_looking(monkeypatch):
    monkeypatch.setattr(politeness, "LOOK_SECONDS", 0.0)
    shorter = [replace(each, pause_seconds=min(each.pause_seconds, 0.01)) for each in politeness.CONDITIONS]
    monkeypatch.setattr(politeness, "CONDITIONS", tuple(shorter))


def test_a_replica_that_lags_is_waited_for(apply, things, seeing_role, replica, monkeypatch):
    monkeypatch.setattr(politeness, "LAG_BYTES", 1)
    add_things(things, 1, 30)
    run = apply({"things": policy()}, "--batch-size", "5")
    assert run.events("politeness_not_visible") == []
    assert run.closing["records_deleted"] == 30
    assert run.closing["pauses"][REPLICA_LAG]["count"] == record(things)["batches"] - 1 == 5
    assert record(things)["pauses"] == run.closing["pauses"]


def test_a_replica_that_keeps_up_is_not(apply, things, seeing_role, replica, monkeypatch):
    monkeypatch.setattr(politeness, "LAG_BYTES", 2**40)  # other tests write too
    monkeypatch.setattr(politeness, "LAG_SECONDS", 3600.0)
    add_things(things, 1, 30)
    run = apply({"things": policy()}, "--batch-size", "5")
    assert run.events("politeness_not_visible") == []
    assert REPLICA_LAG not in run.closing["pauses"]


def test_what_the_role_may_not_see_is_said_once_and_not_taken_for_fine(apply, things, replica, monkeypatch):
    monkeypatch.setattr(politeness, "LAG_BYTES", 1)
    add_things(things, 1, 30)
    run = apply({"things": policy()}, "--batch-size", "5")
    assert run.event("politeness_not_visible")["what"] == [REPLICA_LAG]
    assert run.closing["records_deleted"] == 30
