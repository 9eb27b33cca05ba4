"""The export of one person's data: a ZIP of JSON files and of the PDFs (GDPR Art. 15 and 20).

It writes the data that can be read and lists the rest, because a file with most of the data in time is worth more to
the person than a complete one after the deadline. Secrets are left out: a password's hash would help only a thief of
the file.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from scripts.lifecycle.archives.catalogue import entries
from scripts.lifecycle.archives.search import rows_of
from scripts.lifecycle.blobs.blobs import client_for
from scripts.lifecycle.erasure.erasure import archive_keys_of
from scripts.lifecycle.erasure.plan import ErasurePlan, Target
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.exported import left_out
from scripts.lifecycle.policy.tables import parts_of, table_identifier
from scripts.utils import composing as sql
from scripts.utils import pages, private_files
from scripts.utils.addresses import Address
from scripts.utils.archive_store import store_of
from scripts.utils.blob_client import BlobCallFailed, BlobClient
from scripts.utils.db_utils import Connection, ReadOnlyDatabase, connection_lost
from scripts.utils.errors import Misconfigured, OpsError, describe_database_error
from scripts.utils.retry_utils import CircuitOpen

_PAGE = 1000
_SECONDS = 3600.0


_NO_RIGHT = (
    "this role may not read it: set EXPORT_DATABASE_URL to that of lifecycle_export, and run backend/migrate.py"
    " --grants"
)
_READABLE = """
SELECT attname::text, has_column_privilege(attrelid, attnum, 'SELECT') FROM pg_attribute
 WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


class ExportIncomplete(OpsError):
    """Some of the person's data could not be read, or no file could be written at all."""

    stop_reason = "export_incomplete"


@dataclass
class Export:
    """What one file holds, and what it does not; it stands in the file as well, as ``about.json``."""

    records: dict[str, int] = field(default_factory=dict)
    """Rows by table, and how many blobs."""
    missing: list[dict[str, str]] = field(default_factory=list)
    """What could not be had, and why."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Columns that the policy file leaves out, or that are secrets, by table."""

    def miss(self, what: str, why: str) -> None:
        """Note what could not be had."""
        self.missing.append({"what": what, "why": why})

    @property
    def reasons(self) -> str:
        """Why something is missing, each reason once."""
        return "; ".join(dict.fromkeys(each["why"] for each in self.missing))


def export(run: Run, address: Address, output: Path) -> Export:
    """Write a person's data to a ZIP file that nobody else may read: all that can be had, and a list of the rest.

    Args:
        run: The command's run.
        address: The person.
        output: The file.

    Returns:
        What the file holds.

    Raises:
        ExportIncomplete: The file could not be written; there is none.
        Misconfigured: There is no place for the file.
    """
    pages.check_path(output)
    with _source(run) as source:
        return _export(run, source, address, output)


def _export(run: Run, source: ReadOnlyDatabase, address: Address, output: Path) -> Export:
    plan = source.read(lambda connection: ErasurePlan(connection, run.policies, reading=True))
    made = Export()
    for table, why in plan.left_out.items():
        made.miss(table, why)
    try:
        with (
            private_files.folder(output.parent) as within,
            private_files.replacing(within, output.name) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            blobs = _rows(run, source, plan, address.normalized, archive, made)
            _archived(run, address.normalized, archive, made)
            _blobs(run, blobs, archive, made)
            archive.writestr("about.json", json.dumps(asdict(made), indent=1) + "\n")
    except OSError as error:
        raise ExportIncomplete(f"--output {output}: {error.strerror}; nothing was written") from None
    return made


@contextmanager
def _source(run: Run) -> Iterator[ReadOnlyDatabase]:
    """Lend the database as the role that may read what a person is given; the jobs themselves need not read it."""
    url = run.settings.export_database_url
    if url is None:
        yield run.database
        return
    source = ReadOnlyDatabase(url.get_secret_value(), application_name=f"{run.job} export", max_size=1)
    source.open()
    try:
        yield source
    finally:
        source.close()


def _rows(
    run: Run, source: ReadOnlyDatabase, plan: ErasurePlan, person: str, archive: zipfile.ZipFile, made: Export
) -> list[str]:
    """Write one file for each table, with the queue's items about its rows; return the names of the blobs."""
    blobs: list[str] = []
    parameters = plan.parameters | {"person": person, "spellings": [person]}
    # One snapshot for all tables, so that every row's references are in the file too.
    with source.snapshot(statement_timeout=_SECONDS) as connection:
        for table, query in plan.spellings().items():
            with _noting(connection, made, table):
                parameters["spellings"] += [each for (each,) in connection.execute(query, parameters)]
        unread = {each["what"] for each in made.missing}
        items: list[str] = []
        for target in (each for table, each in plan.targets.items() if table not in unread):
            with _noting(connection, made, target.table):
                columns = _columns(run, connection, target.table, made)
                made.records[target.table] = _table(connection, target, parameters, columns, archive, blobs)
                items += _queue(connection, target, parameters)
        with archive.open("ops.manual_resolution_queue.json", "w") as file:
            made.records["ops.manual_resolution_queue"] = _write(file, items)
    return blobs


@contextmanager
def _noting(connection: Connection, made: Export, table: str) -> Iterator[None]:
    """Go on without a table that the server refuses; the transaction and its snapshot stay.

    Raises:
        psycopg.Error: The connection is lost.
    """
    try:
        with connection.transaction():
            yield
    except psycopg.Error as error:
        if connection_lost(error):
            raise
        made.miss(table, describe_database_error(error))


def _columns(run: Run, connection: Connection, table: str, made: Export) -> list[str]:
    """Return the columns to write; those that this role may not read are missing."""
    name = sql.quoted(*parts_of(table))
    readable = dict(connection.execute(_READABLE, (name,)).fetchall())
    without = left_out(run.policies, table, readable)
    if without:
        made.left_out[table] = without
    unreadable = [column for column, may_read in readable.items() if not may_read and column not in without]
    for column in unreadable:
        made.miss(f"{table}.{column}", _NO_RIGHT)
    return [column for column in readable if column not in (*without, *unreadable)]


def _queue(connection: Connection, target: Target, parameters: dict[str, Any]) -> Iterator[str]:
    """Return the queue's items about the person's rows of one table."""
    query = sql.SQL(
        "SELECT jsonb_build_object('item_type', q.item_type, 'about', q.resource_type, 'id', q.resource_id,"
        " 'reason', q.reason, 'context', q.context, 'since', q.first_seen_at, 'status', q.status,"
        " 'decision', q.decision)::text FROM ops.manual_resolution_queue q"
        " WHERE q.resource_type = {name} AND q.resource_id IN"
        " (SELECT {id} FROM {table} t WHERE {whose}) ORDER BY q.first_seen_at, q.id"
    ).format(
        name=sql.Literal(target.table),
        id=target.record.id("t"),
        table=table_identifier(target.table),
        whose=target.whose,
    )
    yield from (item for (item,) in connection.execute(query, parameters))


def _archived(run: Run, person: str, archive: zipfile.ZipFile, made: Export) -> None:
    """Write the person's archived rows, one file for each table."""
    sealed = run.database.read(lambda connection: entries(connection, statuses=["sealed", "expiring"]))
    for table in dict.fromkeys(entry.table_name for entry in sealed):
        name = f"archives/{table}"
        try:
            keys = archive_keys_of(run)
            chosen = [entry for entry in sealed if entry.table_name == table]
            # Read before the file is begun: an archive that is broken leaves no half of one.
            found = list(rows_of(run.database, store_of(run.settings), keys, person, chosen)) if keys else []
        except OpsError as error:
            made.miss(name, str(error))
            continue
        without = left_out(run.policies, table, dict.fromkeys(column for row in found for column in row))
        rows = ({column: value for column, value in row.items() if column not in without} for row in found)
        with archive.open(f"{name}.json", "w") as file:
            made.records[name] = _write(file, map(json.dumps, rows))


def _table(
    connection: Connection,
    target: Target,
    parameters: dict[str, Any],
    columns: list[str],
    archive: zipfile.ZipFile,
    blobs: list[str],
) -> int:
    """Write the person's rows of one table, and note their blobs.

    Args:
        connection: In the transaction whose snapshot is exported.
        target: The table.
        parameters: The person and the spellings of the address.
        columns: What is written of each row.
        archive: Gets the file.
        blobs: Gets the names of the blobs.

    Returns:
        How many rows there are.
    """
    query = sql.SQL(
        "SELECT to_jsonb(r)::text, {blob} FROM {table} t CROSS JOIN LATERAL (SELECT {columns}) r WHERE {whose}"
        " ORDER BY {key}"
    ).format(
        blob=sql.SQL("CASE WHEN {} THEN t.{} END").format(target.names_blob, sql.Identifier(target.blob.column))
        if target.blob
        else sql.SQL("NULL::text"),
        columns=sql.SQL(", ").join(sql.Identifier("t", column) for column in columns),
        table=table_identifier(target.table),
        whose=target.whose,
        key=target.record.columns("t"),
    )

    def noting_blobs(found: Iterable[tuple[str, str | None]]) -> Iterator[str]:
        for row, blob in found:
            blobs.extend([blob] if blob else [])
            yield row

    with connection.cursor(name="export") as cursor:
        cursor.itersize = _PAGE
        # What the server refuses, it refuses here, before the file is begun.
        found = cursor.execute(query, parameters)
        with archive.open(f"{target.table}.json", "w") as file:
            return _write(file, noting_blobs(found))


def _write(file: Any, rows: Iterable[str]) -> int:
    """Write rows that are JSON each as one list, and return how many there were."""
    number = 0
    file.write(b"[")
    for number, row in enumerate(rows, 1):
        file.write(b"\n" if number == 1 else b",\n")
        file.write(json.dumps(json.loads(row), ensure_ascii=False, indent=1).encode())
    file.write(b"\n]\n")
    return number


def _blobs(run: Run, names: list[str], archive: zipfile.ZipFile, made: Export) -> None:
    """Write the content of the person's blobs; the rows that name them are in the file already."""
    made.records["blobs"] = 0
    if not names:
        return
    try:
        client = client_for(run)
    except Misconfigured as error:
        for name in dict.fromkeys(names):
            made.miss(f"the content of {name}", str(error))
        return
    try:
        for number, name in enumerate(dict.fromkeys(names), 1):
            run.checkpoint()
            if why := _blob(client, name, archive, number):
                made.miss(f"the content of {name}", why)
            else:
                made.records["blobs"] += 1
    finally:
        client.close()


def _blob(client: BlobClient, name: str, archive: zipfile.ZipFile, number: int) -> str | None:
    """Write one blob; return why it is missing."""
    pathname = client.pathname(name)
    if pathname is None:
        return "a row names a blob of another store than BLOB_READ_WRITE_TOKEN's: its content must be added by hand"
    try:
        # Whole, before the file is begun: what breaks off half-way would look like a blob.
        content = b"".join(client.read(name))
    except BlobCallFailed as error:
        return f"the content of a blob could not be had ({error.code}): check the store and BLOB_READ_WRITE_TOKEN"
    except CircuitOpen:
        return "the blob store failed again and again: run it once more later"
    # Numbered: a pathname is the application's, and may be one that unpacks elsewhere.
    archive.writestr(f"blobs/{number:04}-{Path(pathname).name}", content)
    return None
