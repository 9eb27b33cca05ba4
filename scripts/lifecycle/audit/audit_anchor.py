"""The audit's heads kept where the database's owner has no say: one small object a head, in a folder or a bucket.

An object is named ``audit-heads/<database>/<batch, 18 digits>-<seal>.json``, so a listing alone tells every head, in
the chain's order, and whose it is (:meth:`Database.identity`): a copy, a staging database and a second application may
share the place. An object is written once and never replaced. Heads of a version that did not name the database lie one
level higher and are compared with every database. Give the place versions or an object lock, and the jobs' login no
right to delete there: a person who can rewrite the chain must not be able to rewrite these.
"""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING

from scripts.lifecycle.audit.audit_chain import Head
from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.logging_utils import get_logger
from scripts.utils.settings import Settings

if TYPE_CHECKING:
    from scripts.utils.archive_store import ArchiveStore

KEEPER = "the anchor"
_NAME = re.compile(r"audit-heads/(?:([^/]+)/)?(\d{18})-([0-9a-f]{64})\.json")
# The longest that a run's end waits for the anchor. After a signal SIGKILL follows, on Render after 30 seconds.
_PATIENCE = timedelta(seconds=5)


def anchor_of(settings: Settings) -> ArchiveStore | None:
    """Return the store of the heads without a request to it; None: AUDIT_ANCHOR_URL is not set.

    Raises:
        Misconfigured: The bucket's credentials are not set.
    """
    if settings.audit_anchor_url is None:
        return None
    from scripts.utils.archive_store import store_at

    return store_at(settings.audit_anchor_url, settings, "AUDIT_ANCHOR_URL", patience=_PATIENCE)


def keep(settings: Settings, database: str, head: str, *, script: str, correlation_id: str) -> None:
    """Keep a run's head, where a place for it is set; a failure is a warning and never changes the run's result.

    Args:
        settings: Name the place.
        database: :meth:`Database.identity` of the database whose head it is.
        head: As the closing line says it.
        script: Whose run it is.
        correlation_id: The run's, as its log has it.
    """
    try:
        store = anchor_of(settings)
        if store is None or head == "0:":
            return
        facts = {"database": database, "script": script, "correlation_id": correlation_id}
        _write(store, Head.parsed(head), facts)
    except OpsError as error:
        get_logger().warning(
            "audit_head_not_kept", audit_head=head, error=str(error), effect="it stands in this run's log only"
        )


def heads(store: ArchiveStore, database: str) -> list[Head]:
    """Return the heads of one database, in the chain's order in a folder, as a bucket lists them otherwise.

    Args:
        store: The anchor.
        database: :meth:`Database.identity` of the database whose chain is compared.

    Raises:
        ArchiveStoreFailed: The place did not answer.
        Misconfigured: There is no head of this database: a comparison with nothing proves nothing.
    """
    found, others = [], set()
    for name in store.names():
        if match := _NAME.fullmatch(name):
            if match[1] in (None, database):
                found.append(Head(int(match[2]), bytes.fromhex(match[3]), KEEPER))
            else:
                others.add(match[1])
    if not found:
        there = f"; there are heads of {', '.join(sorted(others))}" if others else ""
        raise Misconfigured(
            f"AUDIT_ANCHOR_URL holds no head of this database, {database}{there}: nothing was compared. Either no run"
            " has kept one yet, or they were removed, or this is a copy: verify it without AUDIT_ANCHOR_URL"
        )
    return found


def _write(store: ArchiveStore, head: Head, facts: dict[str, str]) -> None:
    name = f"audit-heads/{facts['database']}/{head.seq:018d}-{head.seal.hex()}.json"
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
