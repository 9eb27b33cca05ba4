"""Requests to be erased: ops.erasure_requests, from the day that somebody asks to the day that it is done.

Its states: ``received`` (nothing happens until the identity was verified) becomes ``running``, perhaps ``blocked``, and
``fulfilled``; or ``cancelled`` before anything was done, ``merged`` into an older one of the same person, ``rejected``
where nobody's identity was verified and the address is none. The clock starts with the request, whenever it was entered
(GDPR Art. 12(3)). The address is cleared on closing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from psycopg import sql
from psycopg.errors import UniqueViolation
from psycopg.rows import class_row

from scripts.lifecycle.audit import audit
from scripts.lifecycle.jobs.handover import Item, raise_rows
from scripts.utils.addresses import Address, NoAddress
from scripts.utils.db_utils import Connection, Database, ReadOnlyDatabase
from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.retry_utils import retry
from scripts.utils.settings import Settings

Result = TypeVar("Result")
TABLE = "ops.erasure_requests"
BLOCKED = "erasure_blocked"
_PAGE = 500
_COLUMNS = (
    "id, channel, requested_at, email, person, status, deadline_at, identity_verified_at, identity_method, started_at,"
    " ledger_at, policy_hash, closed_at, closed_because, merged_into, certificate, audit_head, certified_at,"
    " confirmed_at"
)


@dataclass(frozen=True)
class Request:
    """A request. Its ``repr`` does not show the person."""

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

    @property
    def address(self) -> Address | None:
        """Who asked, of an open request that was taken in; None of any other."""
        return Address(self.email or self.person, self.person) if self.person else None

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
    connection: Connection,
    settings: Settings,
    *,
    address: Address,
    channel: str,
    requested_at: datetime | None,
    identity: str | None,
    actor: str,
) -> UUID:
    """Insert a request, parse its address and set its deadline.

    Args:
        connection: A connection inside a transaction.
        settings: Give the deadline, ``GDPR_DELETION_DEADLINE_DAYS``.
        address: The address of the person who asks.
        channel: How the request came, such as ``support``.
        requested_at: When the person asked; None: now.
        identity: How the identity was verified; None: it is not verified yet.
        actor: The actor for the audit.

    Returns:
        The request's id; if the person has an open request already, the id of that one.

    Raises:
        Misconfigured: The date lies in the future.
        AssertionError: A request with an address was not taken in; a bug.
    """
    row = connection.execute(
        f"INSERT INTO {TABLE} (email, channel, requested_at, identity_method, identity_verified_at)"
        " SELECT %(email)s, %(channel)s, coalesce(%(at)s, now()), %(identity)s::text,"
        " CASE WHEN %(identity)s::text IS NOT NULL THEN now() END"
        " WHERE coalesce(%(at)s::timestamptz <= now(), true) RETURNING id",
        {"email": address.raw, "channel": channel, "at": requested_at, "identity": identity},
    ).fetchone()
    if row is None:
        raise Misconfigured("--requested-at lies in the future")
    taken, _ = _take_in(connection, settings, _new(connection, only=row[0]), actor)
    request = taken.get(row[0])
    if request is None:
        raise AssertionError("a request with an address is taken in")
    return request


def take_in(database: Database, settings: Settings, *, actor: str) -> tuple[int, int]:
    """Take in what the application wrote into the table: parse the address, set the deadline, merge.

    A verified request with an address that cannot be parsed stays open, its deadline runs, and a queue item is raised:
    the person has asked, whatever the form made of the address (GDPR Art. 12(3)).

    Returns:
        Number of requests taken in, and number of those that a queue item was raised for.
    """

    def page(connection: Connection) -> tuple[int, int]:
        stands, blocked = _take_in(connection, settings, _new(connection), actor)
        return len(stands), blocked

    total = told = 0
    while (taken := again_if_entered_twice(lambda: database.write(page))) != (0, 0):
        total, told = total + taken[0], told + taken[1]
    return total, told


def again_if_entered_twice(enter: Callable[[], Result]) -> Result:
    """Do it once more if somebody else took in a request of the same person at the same moment: it stands for both."""
    return retry(enter, on=lambda error: isinstance(error, UniqueViolation), attempts=4, seconds=30.0)


def _new(connection: Connection, only: UUID | None = None) -> list[Request]:
    with connection.cursor(row_factory=class_row(Request)) as cursor:
        return cursor.execute(
            f"SELECT {_COLUMNS} FROM {TABLE} WHERE closed_at IS NULL AND person IS NULL AND status = 'received'"  # noqa: S608 - constants
            " AND (%(only)s::uuid IS NULL OR id = %(only)s) ORDER BY requested_at, id LIMIT %(page)s FOR UPDATE",
            {"only": only, "page": _PAGE},
        ).fetchall()


def _take_in(
    connection: Connection, settings: Settings, requests: list[Request], actor: str
) -> tuple[dict[UUID, UUID], int]:
    """Return for each request the one that stands for it, and how many are blocked from the beginning."""
    stands: dict[UUID, UUID] = {}
    outcome: dict[str, list[str]] = {"received": [], "merged": [], "rejected": [], "blocked": []}
    for request in requests:
        stands[request.id], what = _taken(connection, settings, request, actor)
        outcome[what].append(str(request.id))
    for what, ids in outcome.items():
        if ids:
            audit.append(
                connection,
                actor=actor,
                action=f"erasure_{what}",
                resource_type=TABLE,
                resource_ids=ids,
                reason="erasure_request",
            )
    return stands, len(outcome["blocked"])


def _taken(connection: Connection, settings: Settings, request: Request, actor: str) -> tuple[UUID, str]:
    days = timedelta(days=settings.gdpr_deletion_deadline_days)
    try:
        person = Address.parse(request.email or "").normalized
    except NoAddress:
        if request.identity_verified_at is None:
            _close(connection, request.id, "rejected", "no_address")
            return request.id, "rejected"
        connection.execute(
            f"UPDATE {TABLE} SET deadline_at = %s WHERE id = %s",  # noqa: S608 - constants
            (request.requested_at + days, request.id),
        )
        block(connection, settings, request.id, "its address is none that can be searched for", actor=actor)
        return request.id, "blocked"
    facts = {
        "id": request.id,
        "person": person,
        "requested_at": request.requested_at,
        "days": days,
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


def block(
    connection: Connection,
    settings: Settings,
    request: UUID,
    reason: str,
    *,
    actor: str,
    context: dict[str, object] | None = None,
) -> bool:
    """Hand a request to a person: the deadline goes on, and nothing is confirmed to anybody.

    Args:
        connection: A connection inside a transaction.
        settings: Give the item's deadline.
        request: The request's reference; it stays open.
        reason: What is in the way, for the item; nothing personal.
        actor: Who met it.
        context: Facts that a decision needs; nothing personal.

    Returns:
        Whether nobody knew it before.
    """
    item = Item(
        item_type=BLOCKED,
        resource_type=TABLE,
        priority="critical",
        reason=reason,
        raised_by=actor,
        context=context or {},
    )
    row = sql.SQL("(SELECT %(resource_id)s::text AS resource_id)")
    new = raise_rows(connection, settings, item, row, {"resource_id": str(request)})
    connection.execute(
        f"UPDATE {TABLE} SET status = 'blocked' WHERE id = %s AND closed_at IS NULL",  # noqa: S608 - constants
        (request,),
    )
    return bool(new)


def settle_item(connection: Connection, request: UUID, decision: str, *, actor: str) -> None:
    """Close the item about a request that is closed."""
    connection.execute(
        "UPDATE ops.manual_resolution_queue SET status = 'resolved', resolved_at = clock_timestamp(),"
        " resolved_by = %s, decision = %s, context = '{}', claim_expires_at = NULL,"
        " deferred_until = NULL, before_last = NULL WHERE item_type = %s AND resource_type = %s"
        " AND resource_id = %s AND status <> 'resolved'",
        (actor, decision, BLOCKED, TABLE, str(request)),
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


def cancel(database: Database, request: UUID, *, operator: str) -> bool:
    """Close a request for which nothing was done, and forget who made it.

    Returns:
        Whether its line is in the erasure ledger, and must be withdrawn.

    Raises:
        NoSuchRequest: There is none, it is running, or something was deleted for it: that does not come back.
    """
    with database.transaction() as connection:
        row = connection.execute(
            f"SELECT status, ledger_at FROM {TABLE} r WHERE id = %s AND (status = 'received' OR status = 'blocked'"  # noqa: S608
            " AND NOT EXISTS (SELECT FROM ops.audit_batches b WHERE b.run_id = r.id)) FOR UPDATE OF r",
            (request,),
        ).fetchone()
        if row is None:
            raise NoSuchRequest(
                f"no request {request} can be cancelled: it does not exist, something was done for it, or it is closed"
            )
        _close(connection, request, "cancelled", "withdrawn" if row[0] == "received" else "nothing_done")
        settle_item(connection, request, "cancelled", actor=f"operator:{operator}")
        _note(connection, request, "erasure_cancelled", operator)
    return row[1] is not None


def _note(connection: Connection, request: UUID, action: str, operator: str) -> None:
    audit.append(
        connection,
        actor=f"operator:{operator}",
        action=action,
        resource_type=TABLE,
        resource_ids=[str(request)],
        reason="erasure_request",
    )


def begun(connection: Connection, requests: list[str]) -> list[UUID]:
    """Return which of these requests the database knows as begun, with a line in the ledger."""
    rows = connection.execute(
        f"SELECT id FROM {TABLE} WHERE id = ANY(%s::uuid[]) AND ledger_at IS NOT NULL",  # noqa: S608 - constants
        (requests,),
    )
    return [request for (request,) in rows.fetchall()]


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


def to_carry_out(database: ReadOnlyDatabase) -> Iterator[Request]:
    """Return the requests to carry out, the oldest deadline first; each may be cancelled before its turn comes."""
    return _walk(database, "closed_at IS NULL AND person IS NOT NULL AND identity_verified_at IS NOT NULL")


def listed(database: ReadOnlyDatabase, *, everything: bool) -> Iterator[Request]:
    """Return the open requests, or all, by deadline."""
    return _walk(database, "true" if everything else "closed_at IS NULL")


def to_finish(database: ReadOnlyDatabase) -> Iterator[Request]:
    """Return the fulfilled requests of which the person was not told, or the certificate is not stored yet."""
    return _walk(database, "status = 'fulfilled' AND (email IS NOT NULL OR certified_at IS NULL)")


def _walk(database: ReadOnlyDatabase, which: str) -> Iterator[Request]:
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


def waiting(database: ReadOnlyDatabase) -> int:
    """Return how many open requests wait for an identity to be verified."""
    row = database.read(
        lambda connection: connection.execute(
            f"SELECT count(*) FROM {TABLE} WHERE closed_at IS NULL AND identity_verified_at IS NULL"  # noqa: S608
        ).fetchone()
    )
    return int(row[0]) if row else 0
