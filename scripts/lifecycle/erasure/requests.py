"""Requests to be erased: ops.erasure_requests, from the day that somebody asks to the day that it is done.

Its states: ``received`` (nothing happens until the identity was verified) becomes ``running``, perhaps ``blocked``, and
``fulfilled``; or ``cancelled`` before it ran, ``merged`` into an older one of the same person, ``rejected``. The clock
starts with the request, whenever it was entered (GDPR Art. 12(3)). The address is cleared on closing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from psycopg.errors import UniqueViolation
from psycopg.rows import class_row

from scripts.lifecycle.audit import audit
from scripts.utils.addresses import normalize_email
from scripts.utils.db_utils import Connection, Database
from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.retry_utils import retry

Result = TypeVar("Result")
TABLE = "ops.erasure_requests"
_PAGE = 500
_COLUMNS = (
    "id, channel, requested_at, email, person, status, deadline_at, identity_verified_at, identity_method, started_at,"
    " ledger_at, policy_hash, closed_at, closed_because, merged_into, certificate, audit_head, certified_at,"
    " confirmed_at"
)


@dataclass(frozen=True)
class Request:
    """A request; who made it is not shown."""

    id: UUID
    channel: str
    requested_at: datetime
    email: str | None = field(repr=False)
    person: str | None = field(repr=False)
    status: str
    deadline_at: datetime | None
    identity_verified_at: datetime | None
    identity_method: str | None
    started_at: datetime | None
    ledger_at: datetime | None
    policy_hash: str | None
    closed_at: datetime | None
    closed_because: str | None
    merged_into: UUID | None
    certificate: dict[str, Any] | None = field(repr=False)
    audit_head: str | None
    certified_at: datetime | None
    confirmed_at: datetime | None

    def facts(self) -> dict[str, object]:
        """Return what may be shown and logged."""
        return {
            "request": str(self.id),
            "status": self.status,
            "channel": self.channel,
            "requested_at": self.requested_at.isoformat(),
            "deadline_at": self.deadline_at.isoformat() if self.deadline_at else None,
            "identity": self.identity_method,
            "closed_at": self.closed_at.isoformat() if self.closed_at else None,
            "closed_because": self.closed_because,
            "merged_into": str(self.merged_into) if self.merged_into else None,
        }


class NoSuchRequest(OpsError):
    """There is no such request, or it is not in the state that was meant."""

    stop_reason = "no_such_request"


def add(
    connection: Connection, *, email: str, channel: str, requested_at: datetime | None, identity: str | None, days: int
) -> UUID:
    """Enter a request, and take it in.

    Args:
        connection: A connection inside a transaction.
        email: As the person wrote it.
        channel: How it came, such as ``support``.
        requested_at: When she asked; None: now.
        identity: How her identity was verified; None: it was not yet.
        days: The deadline (``GDPR_DELETION_DEADLINE_DAYS``).

    Returns:
        The request's id; of one that is open already, if she has asked before.

    Raises:
        Misconfigured: It is not an address, or the date lies in the future.
    """
    normalize_email(email)
    row = connection.execute(
        f"INSERT INTO {TABLE} (email, channel, requested_at, identity_method, identity_verified_at)"
        " SELECT %(email)s, %(channel)s, coalesce(%(at)s, now()), %(identity)s::text,"
        " CASE WHEN %(identity)s::text IS NOT NULL THEN now() END"
        " WHERE coalesce(%(at)s::timestamptz <= now(), true) RETURNING id",
        {"email": email.strip(), "channel": channel, "at": requested_at, "identity": identity},
    ).fetchone()
    if row is None:
        raise Misconfigured("--requested-at lies in the future")
    taken = _take_in(connection, _new(connection, only=row[0]), days)
    request = taken.get(row[0])
    if request is None:
        raise AssertionError("a request with an address is taken in")
    return request


def take_in(database: Database, days: int) -> int:
    """Take in what the application wrote into the table: normalize, set the deadline, merge, reject.

    Returns:
        How many were taken in.
    """

    def page(connection: Connection) -> int:
        return len(_take_in(connection, _new(connection), days))

    total = 0
    while taken := again_if_she_is_entered_twice(lambda: database.write(page)):
        total += taken
    return total


def again_if_she_is_entered_twice(enter: Callable[[], Result]) -> Result:
    """Do it once more if somebody else took in a request of the same person at the same moment: it stands for both."""
    return retry(enter, on=lambda error: isinstance(error, UniqueViolation), attempts=4, seconds=30.0)


def _new(connection: Connection, only: UUID | None = None) -> list[Request]:
    with connection.cursor(row_factory=class_row(Request)) as cursor:
        return cursor.execute(
            f"SELECT {_COLUMNS} FROM {TABLE} WHERE closed_at IS NULL AND person IS NULL"  # noqa: S608 - constants
            " AND (%(only)s::uuid IS NULL OR id = %(only)s) ORDER BY requested_at, id LIMIT %(page)s FOR UPDATE",
            {"only": only, "page": _PAGE},
        ).fetchall()


def _take_in(connection: Connection, requests: list[Request], days: int) -> dict[UUID, UUID]:
    """Return for each request the one that stands for it."""
    stands: dict[UUID, UUID] = {}
    outcome: dict[str, list[str]] = {"received": [], "merged": [], "rejected": []}
    for request in requests:
        stands[request.id], what = _taken(connection, request, days)
        outcome[what].append(str(request.id))
    for what, ids in outcome.items():
        if ids:
            audit.append(
                connection,
                actor="system:enforce_gdpr_deletion",
                action=f"erasure_{what}",
                resource_type=TABLE,
                resource_ids=ids,
                reason="erasure_request",
            )
    return stands


def _taken(connection: Connection, request: Request, days: int) -> tuple[UUID, str]:
    try:
        person = normalize_email(request.email or "")
    except Misconfigured:
        _close(connection, request.id, "rejected", "no_address")
        return request.id, "rejected"
    facts = {
        "id": request.id,
        "person": person,
        "requested_at": request.requested_at,
        "days": timedelta(days=days),
        "verified": request.identity_verified_at,
        "method": request.identity_method,
    }
    # The one that is open keeps its number, and the earlier clock.
    row = connection.execute(
        f"UPDATE {TABLE} SET requested_at = least(requested_at, %(requested_at)s),"  # noqa: S608 - constants
        " deadline_at = least(deadline_at, %(requested_at)s + %(days)s),"
        " identity_method = coalesce(identity_method, %(method)s::text),"
        " identity_verified_at = coalesce(identity_verified_at, %(verified)s::timestamptz)"
        " WHERE person = %(person)s RETURNING id",
        facts,
    ).fetchone()
    if row:
        _close(connection, request.id, "merged", "asked_before", row[0])
        return row[0], "merged"
    connection.execute(
        f"UPDATE {TABLE} SET person = %(person)s, deadline_at = %(requested_at)s + %(days)s WHERE id = %(id)s",  # noqa: S608
        facts,
    )
    return request.id, "received"


def _close(connection: Connection, request: UUID, status: str, because: str, merged_into: UUID | None = None) -> None:
    connection.execute(
        f"UPDATE {TABLE} SET status = %s, closed_at = now(), closed_because = %s, merged_into = %s, email = NULL,"  # noqa: S608
        " person = NULL WHERE id = %s",
        (status, because, merged_into, request),
    )


def identify(database: Database, request: UUID, *, method: str, operator: str) -> None:
    """Note that the identity was verified; the next run carries the request out.

    Raises:
        NoSuchRequest: There is none that waits for it.
    """
    with database.transaction() as connection:
        done = connection.execute(
            f"UPDATE {TABLE} SET identity_method = %s, identity_verified_at = now() WHERE id = %s"  # noqa: S608
            " AND closed_at IS NULL AND identity_verified_at IS NULL",
            (method, request),
        )
        if not done.rowcount:
            raise NoSuchRequest(f"no request {request} waits for an identity: see list")
        _note(connection, request, "erasure_identified", operator)


def cancel(database: Database, request: UUID, *, operator: str) -> None:
    """Withdraw a request before it ran, and forget who made it.

    Raises:
        NoSuchRequest: There is none, or it has begun: what was deleted does not come back.
    """
    with database.transaction() as connection:
        row = connection.execute(
            f"SELECT FROM {TABLE} WHERE id = %s AND status = 'received' FOR UPDATE",
            (request,),
        ).fetchone()
        if row is None:
            raise NoSuchRequest(f"no request {request} can be cancelled: it does not exist, has begun, or is closed")
        _close(connection, request, "cancelled", "withdrawn")
        _note(connection, request, "erasure_cancelled", operator)


def _note(connection: Connection, request: UUID, action: str, operator: str) -> None:
    audit.append(
        connection,
        actor=f"operator:{operator}",
        action=action,
        resource_type=TABLE,
        resource_ids=[str(request)],
        reason="erasure_request",
    )


def find(connection: Connection, request: UUID) -> Request:
    """Return one request.

    Raises:
        NoSuchRequest: There is none.
    """
    with connection.cursor(row_factory=class_row(Request)) as cursor:
        found = cursor.execute(f"SELECT {_COLUMNS} FROM {TABLE} WHERE id = %s", (request,)).fetchone()  # noqa: S608
    if found is None:
        raise NoSuchRequest(f"there is no request {request}")
    return found


def to_carry_out(database: Database) -> Iterator[Request]:
    """Return what is to be done, the oldest deadline first; it may have been withdrawn when its turn comes."""
    return _walk(database, "closed_at IS NULL AND person IS NOT NULL AND identity_verified_at IS NOT NULL")


def listed(database: Database, *, everything: bool) -> Iterator[Request]:
    """Return the open requests, or all, by deadline."""
    return _walk(database, "true" if everything else "closed_at IS NULL")


def to_finish(database: Database) -> Iterator[Request]:
    """Return what is fulfilled, but not yet told to its author, or whose certificate is not yet with the archives."""
    return _walk(database, "status = 'fulfilled' AND (email IS NOT NULL OR certified_at IS NULL)")


def _walk(database: Database, which: str) -> Iterator[Request]:
    after: tuple[datetime | None, UUID | None] = (None, None)
    while True:

        def page(connection: Connection, after: tuple[datetime | None, UUID | None] = after) -> list[Request]:
            with connection.cursor(row_factory=class_row(Request)) as cursor:
                return cursor.execute(
                    f"SELECT {_COLUMNS} FROM {TABLE} WHERE {which}"  # noqa: S608 - constants
                    " AND (%(deadline)s::timestamptz IS NULL OR (coalesce(deadline_at, requested_at), id)"
                    " > (%(deadline)s, %(id)s::uuid)) ORDER BY coalesce(deadline_at, requested_at), id LIMIT %(page)s",
                    {"deadline": after[0], "id": after[1], "page": _PAGE},
                ).fetchall()

        found = database.read(page)
        yield from found
        if len(found) < _PAGE:
            return
        after = found[-1].deadline_at or found[-1].requested_at, found[-1].id


def waiting(database: Database) -> int:
    """Return how many open requests wait for an identity to be verified."""
    row = database.read(
        lambda connection: connection.execute(
            f"SELECT count(*) FROM {TABLE} WHERE closed_at IS NULL AND identity_verified_at IS NULL"  # noqa: S608
        ).fetchone()
    )
    return int(row[0]) if row else 0
