"""The local stack, for demo, tests and trying a script by hand: servers, tables, rights and sample data.

python backend/local_stack.py start      start, migrate, load sample data, print the settings
python backend/local_stack.py exports    eval "$(python backend/local_stack.py exports)" puts them into a shell
python backend/local_stack.py status     say what runs and where
python backend/local_stack.py stop       stop; the data stays, with --delete it goes
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from psycopg import sql

from backend import migrate
from backend.blob_store import SAMPLE_BODY, BlobStore
from backend.embedded_servers import (
    APP_DATABASE,
    Stack,
    as_superuser,
    blob_answers,
    delete,
    in_memory,
    load,
    postgres_answers,
    redis_answers,
    running,
    start,
    stop,
)
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from scripts.utils.errors import Misconfigured, OpsError

__all__ = [
    "Stack",
    "create_database",
    "delete",
    "in_memory",
    "load",
    "prepare",
    "run_script",
    "running",
    "set_jobs_password",
    "start",
    "stop",
]

DEFAULT_ROWS = 20_000
FORGOTTEN_PDFS = 5


def prepare(
    stack: Stack, *, database: str = APP_DATABASE, rows: int = 0, say: Callable[[str], None] = lambda _: None
) -> None:
    """Create a database with both sets of tables, the jobs' rights and, where it is empty, sample data.

    Args:
        stack: A running stack.
        database: The database's name.
        rows: Sample quiz responses; 0 loads no data.
        say: Told each step, for a person.
    """
    url = stack.superuser_url(database)
    create_database(stack, database)
    applied = migrate.apply(url, sample_app=True)
    say(f"migrated: {len(applied)} applied now" if applied else "migrated: up to date")
    granted = migrate.grant(url, DEFAULT_POLICY_FILE)
    say(f"granted {migrate.ROLE} what the policies need: {len(granted.statements)} statements")
    set_jobs_password(stack)
    if rows:
        loaded = _load_sample_data(url, rows, say)
        if loaded and stack.blob_port:
            _put_pdfs(stack, url, say)


def run_script(path: str, *arguments: str, env: dict[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a script of the checkout as an operator does, and wait for it.

    Args:
        path: The script, from the checkout's root.
        arguments: Its arguments.
        env: Its whole environment.
        stdin: Text for its standard input.
    """
    command = [sys.executable, str(ROOT / path), *arguments]
    return subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, check=False)


def create_database(stack: Stack, name: str) -> None:
    """Create a database unless it exists."""
    with as_superuser(stack.superuser_url()) as connection:
        found = connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone()
        if found is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def set_jobs_password(stack: Stack) -> None:
    """Give the suite's roles the password; they exist once a database was migrated."""
    with as_superuser(stack.superuser_url()) as connection:
        for role in (migrate.ROLE, migrate.READER, migrate.EXPORT):
            # Hashed here: PostgreSQL logs a statement that fails, with the password in it.
            verifier = connection.pgconn.encrypt_password(
                stack.jobs_password.encode(), role.encode(), b"scram-sha-256"
            ).decode()
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier)))


def _load_sample_data(url: str, rows: int, say: Callable[[str], None]) -> bool:
    """Return whether the tables were empty."""
    from backend import sample_data

    with as_superuser(url) as connection:
        if connection.execute("SELECT FROM public.quiz_responses LIMIT 1").fetchone() is not None:
            say("sample data: there already")
            return False
        try:
            with connection.transaction():
                counts = sample_data.load(connection, rows=rows)
        except ValueError as error:
            raise Misconfigured(f"No sample data: {error}") from None
    say(f"sample data: {counts.total} quiz responses ({counts.delivered_due + counts.abandoned_due} due), and the rest")
    return True


def _put_pdfs(stack: Stack, url: str, say: Callable[[str], None]) -> None:
    """Give every meal plan that names a PDF one, and the store a few that no row knows."""
    store = BlobStore(stack.blob_folder)
    with as_superuser(url) as connection:
        named = connection.execute(
            "SELECT ops.blob_pathname(pdf_blob_path), extract(epoch FROM created_at AT TIME ZONE 'UTC')::float8"
            " FROM public.meal_plans WHERE pdf_blob_path <> ''"
        ).fetchall()
    forgotten = [(f"keto-meal-plan-forgotten-{number}.pdf", 0.0) for number in range(FORGOTTEN_PDFS)]
    try:
        for pathname, uploaded_at in named + forgotten:
            store.put(pathname, SAMPLE_BODY, overwrite=True, uploaded_at=uploaded_at)
    finally:
        store.close()
    say(f"Blob store: {len(named)} PDFs of meal plans, and {FORGOTTEN_PDFS} that no row names")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="local_stack.py", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    start_command = commands.add_parser("start", help="start, migrate, load sample data, print the settings")
    start_command.add_argument("--rows", type=int, default=DEFAULT_ROWS, help="sample rows (default: %(default)s)")
    start_command.add_argument("--no-data", action="store_const", const=0, dest="rows", help="load no sample data")
    stop_command = commands.add_parser("stop", help="stop; the data stays")
    stop_command.add_argument("--delete", action="store_true", help="delete the data too")
    commands.add_parser("status", help="say what runs and where; exit 1 when something does not")
    commands.add_parser("exports", help="print the settings for eval")
    for command in commands.choices.values():
        command.add_argument("--directory", type=Path, help="where the stack is kept (default: .stack in the checkout)")
    return parser.parse_args(argv)


def _start(arguments: argparse.Namespace) -> int:
    print("starting PostgreSQL 18, Valkey 9 and a Blob store on 127.0.0.1 ...")
    stack = start(arguments.directory, blob=True)
    print(f"PostgreSQL: port {stack.postgres_port}, log {stack.postgres_log}")
    print(f"Valkey:     port {stack.redis_port}, log {stack.redis_log}")
    print(f"Blob store: port {stack.blob_port}, log {stack.blob_log}")
    prepare(stack, rows=arguments.rows, say=print)
    print("\nThe settings, for a shell of yours:\n")
    _print_exports(stack)
    print(
        '\nNext:\n  eval "$(.venv/bin/python backend/local_stack.py exports)"\n'
        "  .venv/bin/python scripts/cleanup/cleanup_quiz_responses.py --dry-run\n"
        "  .venv/bin/python scripts/cleanup/cleanup_quiz_responses.py\n"
        "  make stack-stop"
    )
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    stack = load(arguments.directory)
    stop(stack)
    if arguments.delete:
        delete(stack)
    print("stopped and deleted" if arguments.delete else "stopped; the data stays")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    stack = load(arguments.directory)
    answers = {f"PostgreSQL, port {stack.postgres_port}": postgres_answers(stack)}
    answers[f"Valkey, port {stack.redis_port}"] = redis_answers(stack)
    if stack.blob_port:
        answers[f"Blob store, port {stack.blob_port}"] = blob_answers(stack)
    for name, up in answers.items():
        print(f"{name}: {'running' if up else 'not running'}")
    print(f"data and logs: {stack.runtime}")
    return 0 if all(answers.values()) else 1


def _exports(arguments: argparse.Namespace) -> int:
    stack = load(arguments.directory)
    if not (postgres_answers(stack) and redis_answers(stack)):
        raise OpsError("The local stack is not running. Start it: make stack")
    _print_exports(stack)
    return 0


def _print_exports(stack: Stack) -> None:
    for name, value in stack.exports().items():
        print(f"export {name}='{value}'")


_COMMANDS = {"start": _start, "stop": _stop, "status": _status, "exports": _exports}


def main(argv: list[str] | None = None) -> int:
    """Run from a terminal; errors are one line each.

    Returns:
        The exit code: 0 done, 1 failed, 2 misconfigured.
    """
    arguments = _arguments(argv)
    try:
        return _COMMANDS[arguments.command](arguments)
    except OpsError as error:
        print(f"local_stack.py: {error}", file=sys.stderr)
        return int(error.exit_code)
    except PermissionError as error:
        print(f"local_stack.py: no right to use {error.filename}; was it made by another user?", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
