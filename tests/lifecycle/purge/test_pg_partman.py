"""Tables that pg_partman partitions, on Debian's PostgreSQL 15, where neither owner nor migrations' role is a superuser."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest

from backend import migrate
from tests.lifecycle.support import audited, policy
from tests.packages import folder_of

PACKAGE = "postgresql-15-partman"
PORT = 5432  # of a socket in a folder of its own
RUN_AS = next((name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()}), None)

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def server():
    """The socket's folder of a PostgreSQL 15 with pg_partman; root has another user run it."""
    files = folder_of(PACKAGE)
    folder = Path(tempfile.mkdtemp(prefix="partman-"))
    who = {}
    if os.geteuid() == 0:
        folder.chmod(0o711)
        who = {"user": RUN_AS, "group": pwd.getpwnam(RUN_AS).pw_gid, "extra_groups": []}
    shutil.copytree(files / "usr", folder / "usr", symlinks=True)
    data = folder / "server"
    data.mkdir(mode=0o700)
    if who:
        shutil.chown(data, RUN_AS)
    binaries = folder / "usr" / "lib" / "postgresql" / "15" / "bin"
    libraries = folder / "usr" / "lib" / f"{os.uname().machine}-linux-gnu"

    def run(program, *arguments):
        done = subprocess.run(
            [binaries / program, *arguments],
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C", "LD_LIBRARY_PATH": str(libraries)},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
            **who,
        )
        if done.returncode:
            pytest.skip(
                f"NOT CHECKED AGAINST A REAL {PACKAGE.upper()}: {program} does not run here: {done.stderr[-200:]}"
            )

    try:
        run(
            "initdb",
            "-D",
            data / "data",
            "-U",
            "postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )
        options = f"-c listen_addresses='' -c unix_socket_directories={data} -c port={PORT} -c fsync=off"
        run("pg_ctl", "start", "-w", "-D", data / "data", "-l", data / "log", "-o", options)
        yield data
        run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", data / "data")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Partman:
    """A database that an ordinary role owns, tables and schema ops alike."""

    def __init__(self, server):
        self._server = server
        self.superuser_url = self._url("owner")
        self.url = self._url("lifecycle_jobs")
        self._links = []
        with psycopg.connect(self._url("postgres", "postgres"), autocommit=True) as link:
            link.execute("CREATE ROLE owner LOGIN CREATEROLE")
            link.execute("CREATE DATABASE app OWNER owner")
        with psycopg.connect(self._url("postgres"), autocommit=True) as link:
            link.execute("CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman")
            link.execute(
                "GRANT ALL ON SCHEMA partman, public TO owner; GRANT ALL ON ALL TABLES IN SCHEMA partman TO owner;"
                "GRANT EXECUTE ON ALL ROUTINES IN SCHEMA partman TO owner"
            )

    def _url(self, user, database="app"):
        return f"postgresql://{user}@/{database}?host={self._server}&port={PORT}"

    def superuser(self):
        """The owner, who is none."""
        link = psycopg.connect(self.superuser_url, autocommit=True)
        self._links.append(link)
        return link

    def close(self):
        for link in self._links:
            link.close()


@pytest.fixture(scope="module")
def database(server):
    """Takes the place of the embedded server's."""
    database = Partman(server)
    migrate.apply(database.superuser_url)
    yield database
    database.close()


@pytest.mark.parametrize("key", ["template", "parent"])
def test_partitions_of_pg_partman_are_dropped_and_it_goes_on_making_new_ones(apply, admin, database, key):
    """Its unique index of each partition comes from a template; or the table's own has the control column in it."""
    table = f"things_{key}"
    unique = ", UNIQUE (id, made_at)" if key == "parent" else ""
    admin.execute(
        f"CREATE TABLE {table} (id bigint NOT NULL, made_at timestamptz NOT NULL{unique}) PARTITION BY RANGE (made_at);"
        f"CREATE INDEX ON {table} (made_at); CREATE TABLE {table}_template (LIKE {table});"
    )
    if key == "template":
        admin.execute(f"ALTER TABLE {table}_template ADD PRIMARY KEY (id)")
    admin.execute(
        "SELECT partman.create_parent(p_parent_table := %s, p_control := 'made_at', p_type := 'native',"
        " p_interval := 'monthly', p_premake := 2, p_start_partition := '2025-09-01', p_template_table := %s)",
        (f"public.{table}", f"public.{table}_template"),
    )
    admin.execute(
        f"INSERT INTO {table} SELECT n, timestamptz '2025-09-01Z' + n * interval '1 day' FROM generate_series(0, 150) n"
    )
    before = children(admin, table)
    assert f"{table}_p2025_09" in before
    assert f"{table}_default" in before

    rules = policy(table=f"public.{table}")
    dry, run = apply({"things": rules}, "--dry-run"), apply({"things": rules})

    assert run.events("partition_locked") == []
    due = 123  # from September 1st to January 1st
    assert (dry.closing["records_to_delete"], dry.closing["partitions_to_drop"]) == (due, 4)
    assert (run.code, run.closing["records_deleted"], run.closing["partitions_dropped"]) == (0, due, 4)
    assert before - children(admin, table) == {f"{table}_p2025_{month:02}" for month in (9, 10, 11, 12)}
    assert sorted(map(int, audited(admin, f"public.{table}"))) == list(range(due))

    admin.execute("UPDATE partman.part_config SET premake = 30 WHERE parent_table = %s", (f"public.{table}",))
    admin.execute("SELECT partman.run_maintenance(%s)", (f"public.{table}",))
    assert children(admin, table) > before - {f"{table}_p2025_{month:02}" for month in (9, 10, 11, 12)}
    admin.execute(f"INSERT INTO {table} VALUES (999, now())")
    assert admin.execute(f"SELECT count(*) FROM {table}_default").fetchone() == (0,)
    assert apply({"things": rules}).closing["partitions_dropped"] == 0


def children(admin, table):
    query = "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = %s::regclass"
    return {name for (name,) in admin.execute(query, (f"public.{table}",))}
