"""The certificate of an erasure: what was done, what stays and on what ground, sealed by the audit.

It names the request and nobody else. Its digest stands in the audit entry that fulfils the request, and that entry's
seal stands on the certificate: neither can be altered without the other (GDPR Art. 5(2), accountability).
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from scripts.lifecycle.audit import audit
from scripts.lifecycle.erasure.requests import TABLE, Request
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.utils import strict_json
from scripts.utils.archive_store import ArchiveStore
from scripts.utils.db_utils import Connection, ReadOnlyDatabase
from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.pages import environment
from scripts.utils.settings import Settings

PREFIX = "erasure/certificates/"
FULFILLED = "erasure_fulfilled"

_DONE = """
SELECT action, resource_type, CASE action WHEN 'queue_item_erased' THEN 'erasure_request:queue' ELSE reason END,
       sum(cardinality(resource_ids))::int FROM ops.audit_batches
 WHERE run_id = %s AND reason LIKE 'erasure\\_request:%%' AND action <> 'erasure_fulfilled'
 GROUP BY 1, 2, 3 ORDER BY min(seq)
"""


class CertificateInvalid(OpsError):
    """The certificate was altered, certifies nothing, or has no entry in the audit."""

    stop_reason = "certificate_invalid"


def body(
    connection: Connection, request: Request, policies: PolicySet, settings: Settings, now: datetime
) -> dict[str, Any]:
    """Return the certificate's text as data.

    The records are counted from the audit by the request's id, so a run that was killed and repeated counts nothing
    twice and forgets nothing.

    Args:
        connection: A connection inside the transaction that fulfils the request.
        request: The request.
        policies: The policy file that was carried out.
        settings: Give BACKUP_RETENTION_DAYS and the version of the code.
        now: When the request was fulfilled.
    """
    rows = connection.execute(_DONE, (request.id,)).fetchall()
    done, kept = [], []
    readable_until = now + timedelta(days=settings.backup_retention_days)
    for action, table, reason, records in rows:
        step = policies.erasure.get(reason.partition(":")[2])
        ground = step.ground if step else _ground(reason.partition(":")[2], readable_until)
        done.append({"action": action, "table": table, "records": records, "ground": ground})
        if step and action == "anonymize":
            kept.append({"table": table, "records": records, "without": sorted(step.columns), "ground": step.ground})
    deadline = request.deadline_at or request.requested_at
    return {
        "request": str(request.id),
        "channel": request.channel,
        "requested_at": _day(request.requested_at),
        "deadline_at": _day(deadline),
        "identity_verified_by": request.identity_method,
        "begun_at": _day(request.started_at),
        "fulfilled_at": _day(now),
        "in_time": now <= deadline,
        "done": done,
        "kept": kept,
        "backups_rolled_over_by": _day(readable_until),
        "searched": sorted({step.table for step in policies.erasure.values()}),
        "policy_file": policies.hash,
        "version": settings.render_git_commit,
    }


_GROUNDS = {
    "blob": "personal data, GDPR Art. 17(1)",
    "queue": "what was written about the person went; type and times of items stay, GDPR Art. 5(2)",
    "holds": "these holds had expired; the person that they named is forgotten",
    "archives": "the person's key is destroyed: what archives hold of the person's columns can be read by nobody, but"
    " until {readable_until} by somebody who has both the master key and a backup of the database from before; figures"
    " and dates stay for tax law, GDPR Art. 17(3)(b)",
}


def _ground(reason: str, readable_until: datetime) -> str:
    ground = _GROUNDS.get(reason, "personal data, GDPR Art. 17(1)")
    return ground.format(readable_until=f"{readable_until:%Y-%m-%d}")


def seal(connection: Connection, request: Request, facts: dict[str, Any], *, actor: str, person: str) -> str:
    """Write the audit entry that fulfils the request, in the caller's transaction.

    Returns:
        The audit's head, which the certificate carries.
    """
    audit.append(
        connection,
        actor=actor,
        action=FULFILLED,
        resource_type=TABLE,
        resource_ids=[str(request.id)],
        reason="erasure_request:fulfilled",
        run_id=request.id,
        metadata={"certificate_sha256": digest(facts), "person": person},
    )
    return audit.chained_now(connection)


def digest(facts: dict[str, Any]) -> str:
    """Return the SHA-256 of a certificate's body, over its keys in order and no spaces."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def document(facts: dict[str, Any], audit_head: str) -> dict[str, Any]:
    """Return the certificate as it is handed over."""
    return {"certificate": facts, "sha256": digest(facts), "audit_head": audit_head}


def as_json(request: Request) -> str:
    """Return a fulfilled request's certificate as JSON.

    Raises:
        OpsError: It is not fulfilled.
    """
    return json.dumps(_document_of(request), indent=2) + "\n"


def as_html(request: Request) -> str:
    """Return a fulfilled request's certificate as one page that prints.

    Raises:
        OpsError: It is not fulfilled.
    """
    return environment(Path(__file__).parent).get_template("certificate.html.jinja").render(_document_of(request))


def keep(store: ArchiveStore, request: Request) -> None:
    """Put the certificate beside the archives, where it outlives the request; of nothing there is none."""
    if request.certificate and request.certificate["done"]:
        with store.writing(f"{PREFIX}{request.id}.json") as file:
            file.write(as_json(request).encode())


def verify(database: ReadOnlyDatabase, text: str) -> dict[str, Any]:
    """Check a certificate against itself, against the audit, and the audit as a whole.

    Returns:
        What it says.

    Raises:
        Misconfigured: It is no certificate.
        CertificateInvalid: Says what does not agree.
    """
    try:
        paper = strict_json.loads(text)
        facts, sha256, head = paper["certificate"], paper["sha256"], paper["audit_head"]
        request, seq = facts["request"], int(head.partition(":")[0])
        done = list(facts["done"])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Misconfigured("that is not a certificate: give its JSON file") from None
    if not done:
        raise CertificateInvalid(f"nothing was done for request {request}: that certifies no erasure")
    if digest(facts) != sha256:
        raise CertificateInvalid("the certificate was altered: its text and its SHA-256 do not agree")
    row = database.read(
        lambda connection: connection.execute(
            "SELECT action, resource_ids, metadata ->> 'certificate_sha256' FROM ops.audit_batches WHERE seq = %s",
            (seq,),
        ).fetchone()
    )
    if row is None or row[0] != FULFILLED or row[1] != [request] or row[2] != sha256:
        raise CertificateInvalid("the audit knows no such certificate: it is another database's, or was forged")
    found = audit.verify(database, head)
    if not found.intact:
        raise CertificateInvalid(f"the audit does not verify: {found.findings[0]}")
    return dict(facts)


def _document_of(request: Request) -> dict[str, Any]:
    if request.certificate is None or request.audit_head is None:
        raise OpsError(f"request {request.id} has no certificate: it is {request.status}, not fulfilled")
    if not request.certificate["done"]:
        raise OpsError(
            f"request {request.id} has no certificate of an erasure: nothing of the person was found, or done"
        )
    return document(request.certificate, request.audit_head)


def _day(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None
