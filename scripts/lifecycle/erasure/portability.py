"""Everything about one person, as she may take it along: a ZIP of JSON and of her PDFs (GDPR Art. 15 and 20)."""

from __future__ import annotations

import json
import os
import secrets
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from scripts.lifecycle.archives.catalogue import entries
from scripts.lifecycle.archives.search import rows_of
from scripts.lifecycle.blobs.blobs import client_for
from scripts.lifecycle.erasure.erasure import archive_keys_of
from scripts.lifecycle.erasure.plan import ErasurePlan, Target
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policies import table_identifier
from scripts.utils import composing as sql
from scripts.utils import pages
from scripts.utils.addresses import Address
from scripts.utils.archive_store import store_of
from scripts.utils.blob_client import BlobCallFailed, BlobClient
from scripts.utils.db_utils import Connection
from scripts.utils.errors import OpsError

_PAGE = 1000
_SECONDS = 3600.0


class ExportIncomplete(OpsError):
    """Something of hers could not be had; no file was written."""

    stop_reason = "export_incomplete"


def export(run: Run, address: Address, output: Path) -> dict[str, int]:
    """Write a person's data to a ZIP file that nobody else may read, as a whole or not at all.

    Args:
        run: The command's run.
        address: Whose data.
        output: The file.

    Returns:
        Rows by table, and how many PDFs.

    Raises:
        ExportIncomplete: A blob could not be read, or the file not be written.
        Misconfigured: There is no place for the file.
    """
    pages.check_path(output)
    plan = run.database.read(lambda connection: ErasurePlan(connection, run.policies))
    fresh = output.with_name(f".{output.name[:100]}.{secrets.token_hex(6)}.new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                counts, blobs = _rows(run, plan, address.normalized, archive)
                counts |= _archived(run, address.normalized, archive)
                counts["blobs"] = _blobs(run, blobs, archive)
            fresh.replace(output)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise ExportIncomplete(f"--output {output}: {error.strerror}; nothing was written") from None
    return counts


def _rows(run: Run, plan: ErasurePlan, person: str, archive: zipfile.ZipFile) -> tuple[dict[str, int], list[str]]:
    counts: dict[str, int] = {}
    blobs: list[str] = []
    parameters = plan.parameters | {"person": person}
    # One snapshot for all of it: what refers to what fits together.
    with run.database.snapshot(statement_timeout=_SECONDS) as connection:
        parameters["spellings"] = [each for (each,) in connection.execute(plan.spellings(), parameters)]
        for target in plan.targets.values():
            with archive.open(f"{target.table}.json", "w") as file:
                counts[target.table] = _table(connection, target, parameters, file, blobs)
        with archive.open("ops.manual_resolution_queue.json", "w") as file:
            counts["ops.manual_resolution_queue"] = _write(file, _queue(connection, plan, parameters))
    return counts, blobs


def _queue(connection: Connection, plan: ErasurePlan, parameters: dict[str, Any]) -> Iterator[str]:
    """Return what people had to decide about her rows."""
    for target in plan.targets.values():
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


def _archived(run: Run, person: str, archive: zipfile.ZipFile) -> dict[str, int]:
    """Write her rows in cold storage, a file a table."""
    keys = archive_keys_of(run)
    if keys is None:
        return {}
    sealed = run.database.read(lambda connection: entries(connection, statuses=["sealed", "expiring"]))
    counts = {}
    for table in dict.fromkeys(entry.table_name for entry in sealed):
        chosen = [entry for entry in sealed if entry.table_name == table]
        found = rows_of(run.database, store_of(run.settings), keys, person, chosen)
        with archive.open(f"archives/{table}.json", "w") as file:
            counts[f"archives/{table}"] = _write(file, map(json.dumps, found))
    return counts


def _table(connection: Connection, target: Target, parameters: dict[str, Any], file: Any, blobs: list[str]) -> int:
    query = sql.SQL("SELECT to_jsonb(t)::text, {} FROM {} t WHERE {} ORDER BY {}").format(
        sql.SQL("CASE WHEN {} THEN t.{} END").format(target.names_blob, sql.Identifier(target.blob.column))
        if target.blob
        else sql.SQL("NULL::text"),
        table_identifier(target.table),
        target.whose,
        target.record.columns("t"),
    )

    def noting_blobs(found: Iterable[tuple[str, str | None]]) -> Iterator[str]:
        for row, blob in found:
            blobs.extend([blob] if blob else [])
            yield row

    with connection.cursor(name="export") as cursor:
        cursor.itersize = _PAGE
        return _write(file, noting_blobs(cursor.execute(query, parameters)))


def _write(file: Any, rows: Iterable[str]) -> int:
    """Write rows that are JSON each as one list, and return how many there were."""
    number = 0
    file.write(b"[")
    for number, row in enumerate(rows, 1):
        file.write(b"\n" if number == 1 else b",\n")
        file.write(json.dumps(json.loads(row), ensure_ascii=False, indent=1).encode())
    file.write(b"\n]\n")
    return number


def _blobs(run: Run, names: list[str], archive: zipfile.ZipFile) -> int:
    if not names:
        return 0
    client = client_for(run)
    try:
        for number, name in enumerate(dict.fromkeys(names), 1):
            run.checkpoint()
            _blob(client, name, archive, number)
    finally:
        client.close()
    return len(set(names))


def _blob(client: BlobClient, name: str, archive: zipfile.ZipFile, number: int) -> None:
    pathname = client.pathname(name)
    if pathname is None:
        raise ExportIncomplete("a row names a blob of another store: its content must be added by hand")
    try:
        # Numbered: a pathname is the application's, and may be one that unpacks elsewhere.
        with archive.open(f"blobs/{number:04}-{Path(pathname).name}", "w") as file:
            for piece in client.read(name):
                file.write(piece)
    except BlobCallFailed as error:
        raise ExportIncomplete(f"the content of a blob could not be had ({error.code}): nothing was written") from None
