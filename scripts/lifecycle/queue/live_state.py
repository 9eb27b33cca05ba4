"""The present state of an item's resource: its row, what keeps it, its blob. Without personal data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from scripts.lifecycle.engine.preflight import preflight
from scripts.lifecycle.engine.resources import blob_named_by, row_state
from scripts.lifecycle.engine.selection import store_for
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.queue.decisions import policy_of
from scripts.lifecycle.queue.work import QueueItem
from scripts.utils.blob_client import BlobCallFailed, BlobClient
from scripts.utils.blob_names import blob_name
from scripts.utils.db_utils import Connection
from scripts.utils.errors import OpsError, describe_database_error
from scripts.utils.retry_utils import CircuitOpen


def look(run: Run, item: QueueItem, client: Callable[[], BlobClient]) -> dict[str, Any]:
    """Return the state of an item's resource by name. A fact that could not be read says why.

    Args:
        run: The command's run.
        item: The item.
        client: Returns the client of the blob store; it is called only if the item is about a blob.
    """
    policy = policy_of(run.policies, item)
    if policy is None or item.resource_id == policy.name:
        return {"row": "not one row"}
    cutoff = run.database.now()

    def read(connection: Connection) -> tuple[dict[str, Any], str | None]:
        selection = preflight(connection, policy, cutoff, blob_store=store_for(policy, run.settings)).selection
        state = row_state(connection, selection, item.resource_id)
        if state is None:
            return {"row": "gone"}, None
        facts = {"row": "there", **state.moments, "kept_because": state.why_kept or "nothing keeps it"}
        return facts, blob_named_by(connection, selection, item.resource_id)

    try:
        facts, blob = run.database.read(read)
    except OpsError as error:
        return {"row": f"could not be looked at: {error}"}
    except psycopg.Error as error:
        return {"row": f"could not be looked at: {describe_database_error(error)}"}
    return facts | ({"blob": _blob_state(client(), blob)} if policy.blob else {})


def _blob_state(client: BlobClient, blob: str | None) -> str:
    if blob is None:
        return "the row names none"
    name = blob_name(blob)
    if name.store not in ("", client.store):
        return "in another store, which this token cannot see"
    pathname = name.pathname
    if pathname is None:
        return "not to be told: the row holds no name that the store would take"
    try:
        return "still there" if client.exists(pathname) else "gone"
    except BlobCallFailed as error:
        return f"could not be asked: {error.code}"
    except CircuitOpen:
        return "could not be asked: too many calls failed"
