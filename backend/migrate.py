"""Applies the suite's own schema ``ops`` and gives the jobs' role its rights.

    python backend/migrate.py                        apply what is pending
    python backend/migrate.py --sample-app           the sample application's tables too (demo and tests only)
    python backend/migrate.py --status               list applied and pending files
    python backend/migrate.py --check                exit 1 when something is pending or was changed
    python backend/migrate.py --grants POLICY_FILE   least rights on what the policy file names, and no others
    python backend/migrate.py --indexes POLICY_FILE  print the indexes that its tables lack; --apply makes them

The database is MIGRATION_DATABASE_URL, by default DATABASE_URL_UNPOOLED, then DATABASE_URL.
Exit codes: 0 done, 1 failed, 2 misconfigured.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from backend import grants
from scripts.lifecycle.audit import definitions
from scripts.lifecycle.engine import indexes
from scripts.lifecycle.engine.indexes import MissingIndex
from scripts.lifecycle.policy.policy_file import load_policies
from scripts.utils import tls
from scripts.utils.errors import DatabaseRefused, DatabaseUnavailable, Misconfigured, OpsError, describe_database_error
from scripts.utils.free_text import visible

Connection = psycopg.Connection[Any]

MIGRATIONS = Path(__file__).resolve().parent / "migrations"
ROLE, READER, EXPORT = grants.ROLE, grants.READER, grants.EXPORT
# The direct host comes before the pooled one: a transaction pooler does not suit long locks and much DDL.
URLS = ("MIGRATION_DATABASE_URL", "DATABASE_URL_UNPOOLED", "DATABASE_URL")
LOCK_KEY = 5_918_402_277_310_664_901
LOCK_TIMEOUT = "30s"
CONNECT_TIMEOUT_SECONDS = 10

_FILE_NAME = re.compile(r"(\d{4})_(\w+)\.sql")
_CREATED_TABLE = re.compile(r"^\s*CREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?([\w.]+)", re.IGNORECASE | re.MULTILINE)
_CREATE_LEDGER = """
    CREATE SCHEMA IF NOT EXISTS ops;
    CREATE TABLE IF NOT EXISTS ops.schema_migrations (
        set        text        NOT NULL,
        version    text        NOT NULL,
        name       text        NOT NULL,
        checksum   text        NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (set, version)
    )
"""
# EXCLUSIVE lets the jobs and pg_dump read meanwhile.
_LOCK_LEDGER = "LOCK TABLE ops.schema_migrations IN EXCLUSIVE MODE"
# Only in these SQLSTATE classes does PostgreSQL's message name objects and never row values.
_SAFE_MESSAGE_CLASSES = ("0A", "3D", "3F", "42", "55", "57")
# libpq gives no SQLSTATE for a refused login, and its own text may quote a part of the URL, so of the password.
_REFUSALS = {
    "authentication failed": "the user or the password is wrong",
    "no password supplied": "it asks for a password and the URL has none",
    "does not exist": "the database or the role in the URL does not exist",
    "not permitted to log in": "the role may not log in",
    "pg_hba.conf": "its pg_hba.conf does not let this user, host or encryption in",
}
_UNREACHABLE = {
    "could not translate host name": "its host name is unknown",
    "failed to resolve host": "its host name is unknown",
    "Connection refused": "nothing listens at its host and port",
    "timeout expired": f"no answer within {CONNECT_TIMEOUT_SECONDS} seconds",
    "too many": "it has no connection left",
}


@dataclass(frozen=True)
class Migration:
    """One SQL file of a set (``ops`` or ``sample_app``)."""

    set: str
    version: str
    name: str
    path: Path

    @property
    def key(self) -> tuple[str, str]:
        """Set and version: what identifies an applied migration."""
        return self.set, self.version

    @property
    def checksum(self) -> str:
        """SHA-256 of the file's bytes, in hexadecimal."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def __str__(self) -> str:
        """Return the name that lists and messages show."""
        return f"{self.set}/{self.version}_{self.name}"


def files(set_name: str, root: Path = MIGRATIONS) -> list[Migration]:
    """List a set's files in the order in which they apply.

    Raises:
        Misconfigured: A file is not named ``NNNN_words.sql``, or the set has no files at all.
    """
    found = []
    for path in sorted((root / set_name).glob("*.sql")):
        named = _FILE_NAME.fullmatch(path.name)
        if not named:
            raise Misconfigured(f"{path.name} is not named NNNN_words.sql")
        found.append(Migration(set_name, named[1], named[2], path))
    if not found:
        raise Misconfigured(f"There are no migrations in {root / set_name}")
    return found


def apply(conninfo: str, *, sample_app: bool = False, root: Path = MIGRATIONS) -> list[str]:
    """Apply the pending migrations in one transaction; safe to repeat, and safe when two deployments run at once.

    Args:
        conninfo: A role that may create schemas, tables and roles.
        sample_app: Create the sample application's tables too.
        root: The folder that holds a folder for each set.

    Returns:
        The migrations applied now, in order.

    Raises:
        Misconfigured: The database cannot be used with this connection string.
        OpsError: A file failed, was changed after it was applied, or would create a table that exists.
    """
    wanted = files("ops", root) + (files("sample_app", root) if sample_app else [])
    with _connect(conninfo) as connection:
        _lock(connection)
        connection.execute(_CREATE_LEDGER)
        connection.execute(_LOCK_LEDGER)
        ledger = _ledger(connection)
        _refuse_changed(wanted, ledger)
        pending = [migration for migration in wanted if migration.key not in ledger]
        for migration in pending:
            _apply_one(connection, migration)
        if pending:
            _let_the_role_read_the_ledger(connection)
        if connection.execute("SELECT to_regclass('ops.definitions')").fetchone() != (None,):
            definitions.record(connection, wanted[-1].version)
    return [str(migration) for migration in pending]


def check(conninfo: str, *, root: Path = MIGRATIONS) -> list[str]:
    """List the migrations that are pending or were changed after they were applied; an empty list means up to date."""
    return [f"{state}: {migration}" for migration, state in status(conninfo, root=root) if state != "applied"]


def status(conninfo: str, *, root: Path = MIGRATIONS) -> list[tuple[Migration, str]]:
    """Tell of each file whether it is ``applied``, ``pending`` or ``changed``; writes nothing.

    The sample application counts only where it is in use.
    """
    with _connect(conninfo) as connection:
        ledger = _ledger(connection)
    sets = ["ops", *(["sample_app"] if any(key[0] == "sample_app" for key in ledger) else [])]
    return [(migration, _state(migration, ledger)) for name in sets for migration in files(name, root)]


def grant(conninfo: str, policy_file: Path) -> grants.Given:
    """Give the suite's roles the least rights that the policies in the file need, and take back all others.

    Returns:
        The statements executed, as text, and what a person should know besides.
    """
    policy_set = load_policies(policy_file)
    with _connect(conninfo) as connection:
        _lock(connection)
        applied = _ledger(connection)
        texts = [migration.path.read_text() for migration in files("ops") if migration.key in applied]
        return grants.give(connection, policy_set, migrations=texts)


def missing_indexes(conninfo: str, policy_file: Path) -> list[MissingIndex]:
    """List the indexes that the policies in the file need and that the application's tables lack; writes nothing."""
    policy_set = load_policies(policy_file)
    with _connect(conninfo) as connection:
        connection.read_only = True
        return indexes.missing_indexes(connection, policy_set)


def make_indexes(conninfo: str, missing: Iterable[MissingIndex]) -> Iterator[str]:
    """Make indexes one after the other, and yield each statement when it is done.

    Writers are let in meanwhile (CONCURRENTLY), so each statement waits for the transactions that are open. What was
    interrupted leaves an invalid index: it is dropped before the index is made anew.

    Raises:
        OpsError: PostgreSQL refused one. Those before it are made.
    """
    with _connect(conninfo, autocommit=True) as connection:
        for index in missing:
            for invalid in indexes.left_behind(connection, index):
                connection.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(invalid))
            for statement in index.statements:
                connection.execute(statement)
                yield statement.as_string(connection)


def _state(migration: Migration, ledger: dict[tuple[str, str], str]) -> str:
    if migration.key not in ledger:
        return "pending"
    return "applied" if ledger[migration.key] == migration.checksum else "changed"


def _refuse_changed(wanted: list[Migration], ledger: dict[tuple[str, str], str]) -> None:
    changed = [str(migration) for migration in wanted if _state(migration, ledger) == "changed"]
    if changed:
        raise OpsError(f"Changed after it was applied: {', '.join(changed)}. Restore it and add a new migration.")


def _apply_one(connection: Connection, migration: Migration) -> None:
    text = migration.path.read_bytes()
    if migration.set == "sample_app":
        _refuse_existing_tables(connection, text.decode())
    try:
        connection.execute(text)
    except psycopg.Error as error:
        raise OpsError(f"{migration}.sql failed, nothing was applied: {_explain(error)}") from error
    connection.execute(
        "INSERT INTO ops.schema_migrations (set, version, name, checksum) VALUES (%s, %s, %s, %s)",
        (*migration.key, migration.name, migration.checksum),
    )


def _refuse_existing_tables(connection: Connection, text: str) -> None:
    for table in _CREATED_TABLE.findall(text):
        if connection.execute("SELECT to_regclass(%s)", (table,)).fetchone() != (None,):
            raise OpsError(
                f"Table {table} exists and the sample app did not create it: this database belongs to a real "
                "application. Run without --sample-app; nothing was changed."
            )


def _lock(connection: Connection) -> None:
    """Keep other migrations out until COMMIT: by a lock on the ledger, which only its owner may take.

    Any login may take an advisory lock, so one is used only while there is no ledger yet.
    """
    # Bound to the transaction: a session's lock would be lost or left behind on a transaction pooler.
    connection.execute("SELECT set_config('lock_timeout', %s, true)", (LOCK_TIMEOUT,))
    if _has_ledger(connection):
        connection.execute(_LOCK_LEDGER)
    else:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_KEY,))


def _has_ledger(connection: Connection) -> bool:
    return connection.execute("SELECT to_regclass('ops.schema_migrations')").fetchone() != (None,)


def _ledger(connection: Connection) -> dict[tuple[str, str], str]:
    if not _has_ledger(connection):
        return {}
    rows = connection.execute("SELECT set, version, checksum FROM ops.schema_migrations")
    return {(set_name, version): checksum for set_name, version, checksum in rows}


def _let_the_role_read_the_ledger(connection: Connection) -> None:
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchone() is not None:
        connection.execute(sql.SQL("GRANT SELECT ON ops.schema_migrations TO {}").format(sql.Identifier(ROLE)))


@contextmanager
def _connect(conninfo: str, *, autocommit: bool = False) -> Iterator[Connection]:
    try:
        connection = psycopg.connect(  # noqa: TID251 - needs an owner's role, not the jobs' settings
            make_conninfo(conninfo, **tls.libpq_options(conninfo)),
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            client_encoding="UTF8",
            prepare_threshold=None,
            autocommit=autocommit,
            application_name="migrate",
        )
    except psycopg.ProgrammingError:
        raise Misconfigured("The database URL is not a valid connection string.") from None
    except psycopg.OperationalError as error:
        raise _no_connection(str(error)) from None
    try:
        with connection:
            yield connection
    except psycopg.Error as error:
        raise OpsError(f"The database refused, nothing was changed: {_explain(error)}") from error


def _no_connection(text: str) -> OpsError:
    if unsafe := tls.problem(text):
        return DatabaseRefused(f"The server is not to be trusted: {unsafe}.")
    for phrase, reason in _REFUSALS.items():
        if phrase in text:
            return DatabaseRefused(f"The database refuses the login: {reason}.")
    reasons = (reason for phrase, reason in _UNREACHABLE.items() if phrase in text)
    return DatabaseUnavailable(f"The database cannot be reached: {next(reasons, 'check host, port, TLS and network')}.")


def _explain(error: psycopg.Error) -> str:
    facts = describe_database_error(error)
    safe = (error.sqlstate or "").startswith(_SAFE_MESSAGE_CLASSES) and str(error.diag.message_primary) not in facts
    return f"{error.diag.message_primary} [{facts}]" if safe else facts


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(prog="migrate.py", description=lines[0], epilog=lines[-1])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sample-app", action="store_true", help="create the sample application's tables too")
    what.add_argument("--status", action="store_true", help="list applied and pending files")
    what.add_argument("--check", action="store_true", help="exit 1 when a file is pending or was changed")
    what.add_argument("--grants", type=Path, metavar="POLICY_FILE", help="give the roles what they need, no more")
    what.add_argument("--indexes", type=Path, metavar="POLICY_FILE", help="print the indexes that its tables lack")
    parser.add_argument("--apply", action="store_true", help="with --indexes: make them, one after the other")
    arguments = parser.parse_args(argv)
    if arguments.apply and not arguments.indexes:
        parser.error("--apply goes with --indexes")
    return arguments


def _url() -> str:
    for name in URLS:
        if url := os.environ.get(name):  # noqa: TID251 - the jobs' settings know nothing of the owner's URL
            return url
    raise Misconfigured(f"Set {', '.join(URLS[:-1])} or {URLS[-1]} to the database to migrate.")


def _show_indexes(missing: list[MissingIndex], *, apply_them: bool) -> None:
    if not missing:
        print("nothing is missing")
    for index in missing:
        for reason in index.reasons:
            print(f"-- {reason}")
        for statement in index.statements:
            print(f"{statement.as_string(None)};")
    if apply_them:
        for done in make_indexes(_url(), missing):
            print(f"made: {done}", flush=True)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.status:
        for migration, state in status(_url()):
            print(f"{state:8} {migration}")
        return 0
    if arguments.check:
        problems = check(_url())
        print("\n".join(problems) or "up to date")
        return 1 if problems else 0
    if arguments.indexes:
        _show_indexes(missing_indexes(_url(), arguments.indexes), apply_them=arguments.apply)
        return 0
    if arguments.grants:
        given = grant(_url(), arguments.grants)
        notes = [f"-- {note}" for note in (*given.notes, *given.missing)]
        print("\n".join([*given.statements, *notes]) or "nothing to do")
        return 1 if given.missing else 0
    print("\n".join(apply(_url(), sample_app=arguments.sample_app)) or "nothing to do")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run from a terminal; errors are one line each.

    Returns:
        The exit code: 0 done, 1 failed, 2 misconfigured.
    """
    arguments = _arguments(argv)
    try:
        return _run(arguments)
    except OpsError as error:
        print(f"migrate.py: {visible(str(error), lines=True)}", file=sys.stderr)
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
