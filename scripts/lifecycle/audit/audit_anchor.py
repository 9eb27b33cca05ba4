"""The audit's heads kept where the database's owner has no say: one small object a head, in a folder or a bucket.

An object is named ``audit-heads/<batch, 18 digits>-<seal>.json``, so a listing alone tells every head, in the chain's
order. It is written once and never replaced. Give the place versions or an object lock, and the jobs' login no right to
delete there: whoever can rewrite the chain must not be able to rewrite these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from scripts.lifecycle.audit.audit_chain import Head
from scripts.utils.errors import OpsError
from scripts.utils.logging_utils import get_logger
from scripts.utils.settings import Settings

if TYPE_CHECKING:
    from scripts.utils.archive_store import ArchiveStore

KEEPER = "the anchor"
_NAME = re.compile(r"audit-heads/(\d{18})-([0-9a-f]{64})\.json")
# A run's end waits so long at most: whoever sent a signal sends SIGKILL next, Render after 30 seconds.
_PATIENCE = timedelta(seconds=5)


def anchor_of(settings: Settings) -> ArchiveStore | None:
    """Return the place of the heads; None: there is none. Nothing is asked of it yet.

    Raises:
        Misconfigured: A bucket's login is not set.
    """
    if settings.audit_anchor_url is None:
        return None
    from scripts.utils.archive_store import store_at

    return store_at(settings.audit_anchor_url, settings, "AUDIT_ANCHOR_URL", patience=_PATIENCE)


def keep(settings: Settings, head: str | None, *, script: str, correlation_id: str) -> None:
    """Keep a run's head, where a place for it is set; whatever goes wrong is only said.

    Args:
        settings: Name the place.
        head: As the closing line says it; None: it could not be read.
        script: Whose run it is.
        correlation_id: The run's, as its log has it.
    """
    try:
        store = anchor_of(settings)
        if store is None or head is None or head == "0:":
            return
        _write(store, Head.parsed(head), {"script": script, "correlation_id": correlation_id})
    except OpsError as error:
        get_logger().warning(
            "audit_head_not_kept", audit_head=head, error=str(error), effect="it stands in this run's log only"
        )


def heads(store: ArchiveStore) -> Iterator[Head]:
    """Return every head that is kept there, in the chain's order in a folder, as a bucket lists them otherwise.

    Raises:
        ArchiveStoreFailed: The place did not answer.
    """
    for name in store.names():
        if match := _NAME.fullmatch(name):
            yield Head(int(match[1]), bytes.fromhex(match[2]), KEEPER)


def _write(store: ArchiveStore, head: Head, facts: dict[str, str]) -> None:
    name = f"audit-heads/{head.seq:018d}-{head.seal.hex()}.json"
    if _is_there(store, name):
        return
    document = {"audit_head": str(head), "seq": head.seq, "seal": head.seal.hex(), **facts}
    with store.writing(name) as file:
        file.write(json.dumps(document).encode() + b"\n")


def _is_there(store: ArchiveStore, name: str) -> bool:
    from scripts.utils.archive_store import ArchiveStoreFailed

    try:
        for _ in store.read(name):
            pass
    except ArchiveStoreFailed:  # missing; or a login that may only write, which is as good
        return False
    return True
