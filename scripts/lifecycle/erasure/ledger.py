"""The erasure ledger: which erasures must be repeated after a restore of the database to a point in time.

The ledger has one object a request in ARCHIVE_URL, written before the first row goes. A line names nobody: it has a
keyed digest of the person's address, which a replay compares with the digests of all addresses in the restored tables.
Each line carries an authentication code over its content and its name in the store, under a key derived from
SUPPRESSION_KEY: who may write to the store, but has not that key, can erase nobody through it. After
BACKUP_RETENTION_DAYS no backup can bring anybody back, and the line is deleted. A line that somebody deletes is not
missed: a restored database does not know how many lines there were.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from scripts.lifecycle.engine.selection import normal_address
from scripts.lifecycle.erasure.requests import TABLE, Request
from scripts.lifecycle.policy.policies import ErasureStep, table_identifier
from scripts.utils import composing as sql
from scripts.utils import strict_json
from scripts.utils.archive_store import ArchiveStore, ObjectMissing
from scripts.utils.db_utils import Connection, Database, ReadOnlyDatabase
from scripts.utils.errors import Misconfigured
from scripts.utils.pseudonyms import ledger_code
from scripts.utils.settings import Settings

PREFIX = "erasure/ledger/"
REPLAY = "replay"
_PAGE = 5000


class LedgerBroken(Misconfigured):
    """An object of the ledger is no line that this suite wrote there under this SUPPRESSION_KEY."""

    stop_reason = "ledger_broken"


@dataclass(frozen=True)
class Line:
    """One erasure that was begun."""

    request: str
    digest: str
    archive_pseudonym: str | None
    """The person's pseudonym among the archives' keys, hexadecimal; None: nothing was ever archived."""
    channel: str
    requested_at: str
    deadline_at: str
    identity_method: str
    started_at: str

    def signed(self) -> bytes:
        """Return what the line's code is over: all that it says, and the place that it belongs at."""
        facts = asdict(self) | {"place": _name(self.request)}
        return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()


def write(
    store: ArchiveStore,
    settings: Settings,
    request: Request,
    *,
    digest: str,
    archive_pseudonym: bytes | None,
    now: datetime,
) -> None:
    """Write a request's line; the same line again does no harm.

    Args:
        store: Where the archives are.
        settings: Give the key that authenticates the line.
        request: The request that begins.
        digest: What stands for the person.
        archive_pseudonym: The person's pseudonym among the archives' keys; None: nothing was ever archived.
        now: The database's time.

    Raises:
        ArchiveStoreFailed: The line is not there for good, and nothing may be erased.
        Misconfigured: SUPPRESSION_KEY is not set.
    """
    line = Line(
        request=str(request.id),
        digest=digest,
        archive_pseudonym=archive_pseudonym.hex() if archive_pseudonym else None,
        channel=request.channel,
        requested_at=request.requested_at.isoformat(),
        deadline_at=(request.deadline_at or request.requested_at).isoformat(),
        identity_method=request.identity_method or "",
        started_at=now.isoformat(),
    )
    with store.writing(_name(request.id)) as file:
        file.write(json.dumps(asdict(line) | {"code": ledger_code(settings)(line.signed())}, indent=1).encode())


def take_back(store: ArchiveStore, request: UUID) -> None:
    """Delete the line of a request for which nothing was done."""
    store.delete(_name(request))


def forget(database: Database, store: ArchiveStore, *, days: int, between: Callable[[], None]) -> int:
    """Delete the lines of erasures that no backup can undo any more.

    Args:
        database: Knows the requests.
        store: Where the ledger is.
        days: BACKUP_RETENTION_DAYS.
        between: Called before each deletion; may raise to stop.

    Returns:
        How many went.
    """
    rows = database.read(
        lambda connection: connection.execute(
            f"SELECT id FROM {TABLE} WHERE ledger_at IS NOT NULL AND closed_at < now() - make_interval(days => %s)",  # noqa: S608
            (days,),
        ).fetchall()
    )
    for (request,) in rows:
        between()
        store.delete(_name(request))
        database.write(
            lambda connection, request=request: connection.execute(  # type: ignore[misc]
                f"UPDATE {TABLE} SET ledger_at = NULL WHERE id = %s",  # noqa: S608 - constants
                (request,),
            )
        )
    return len(rows)


def lines(store: ArchiveStore, settings: Settings) -> Iterator[Line]:
    """Return every line of the ledger, authenticated.

    Raises:
        LedgerBroken: One was not written under this key, was altered, or lies at another one's place.
        Misconfigured: SUPPRESSION_KEY is not set.
    """
    code = ledger_code(settings)
    for name in store.names():
        if not name.startswith(PREFIX):
            continue
        try:
            facts = strict_json.loads(b"".join(store.read(name)))
            claimed = facts.pop("code")
            line = Line(**facts)
            genuine = name == _name(line.request) and hmac.compare_digest(code(line.signed()), claimed)
        except ObjectMissing:
            continue  # it has just gone
        except (ValueError, TypeError, KeyError, AttributeError):
            genuine = False
        if not genuine:
            raise LedgerBroken(
                f"{name} is no line that was written under this SUPPRESSION_KEY, or it was altered, moved or copied:"
                " nothing was replayed; set the key that erasures are done with, or bring the line back from a backup"
                " of ARCHIVE_URL"
            )
        yield line


def undone(database: ReadOnlyDatabase, store: ArchiveStore, settings: Settings) -> list[Line]:
    """Return the erasures that this database does not know as fulfilled: it was restored to a point before them.

    An erasure that the database knows as fulfilled is left out: a person who is there again has come back by choice. An
    erasure that began before BACKUP_RETENTION_DAYS is left out as well, because no backup is so old.

    Raises:
        LedgerBroken: As :func:`lines` raises it.
    """
    since = database.now() - timedelta(days=settings.backup_retention_days)
    every = list(lines(store, settings))
    begun = {line.request: line for line in every if datetime.fromisoformat(line.started_at) >= since}
    rows = database.read(
        lambda connection: connection.execute(
            f"SELECT id::text FROM {TABLE} WHERE id = ANY(%s::uuid[]) AND closed_at IS NOT NULL",  # noqa: S608
            ([*begun],),
        ).fetchall()
    )
    return [line for request, line in begun.items() if (request,) not in rows]


def people(
    database: ReadOnlyDatabase, steps: dict[str, ErasureStep], digest_of: Callable[[str], str], wanted: set[str]
) -> dict[str, str]:
    """Return the persons that the digests stand for, by digest, if any table names them.

    Memory does not grow with the tables.

    Args:
        database: The database.
        steps: The erasure's steps; their tables are searched.
        digest_of: Returns the digest of a normalized address.
        wanted: The digests to find.
    """
    found: dict[str, str] = {}
    # A request or a hold may be all that names the person. Data under a hold must not be taken for nobody's data.
    columns = {TABLE: "person", "ops.legal_holds": "person"}
    columns |= {step.table: step.person for step in steps.values() if step.person}
    for table, column in columns.items():
        with database.snapshot(statement_timeout=3600.0) as connection:
            for person in _distinct(connection, table, column):
                if (digest := digest_of(person)) in wanted:
                    found[digest] = person
    return found


def _distinct(connection: Connection, table: str, column: str) -> Iterator[str]:
    query = sql.SQL("SELECT DISTINCT {} FROM {} t WHERE {} IS NOT NULL").format(
        normal_address("t", column), table_identifier(table), sql.Identifier("t", column)
    )
    with connection.cursor(name="people") as cursor:
        cursor.itersize = _PAGE
        for (person,) in cursor.execute(query, {}):
            yield person


def reopen(connection: Connection, line: Line, person: str) -> None:
    """Enter a request again that the restored database has lost, or has not carried out yet.

    If the person has another open request, that one takes its place.
    """
    facts: dict[str, Any] = asdict(line) | {"person": person, "replay": REPLAY}
    asked_again = connection.execute(
        f"UPDATE {TABLE} SET identity_method = coalesce(identity_method, %(identity_method)s),"  # noqa: S608
        " identity_verified_at = coalesce(identity_verified_at, now()) WHERE person = %(person)s AND id <> %(request)s"
        " RETURNING id",
        facts,
    ).fetchone()
    if asked_again:
        settle(connection, line, "merged", "asked_before", merged_into=asked_again[0])
        return
    connection.execute(
        f"INSERT INTO {TABLE} AS r (id, channel, requested_at, deadline_at, person, identity_method,"  # noqa: S608
        " identity_verified_at, started_at, ledger_at, status) VALUES (%(request)s, %(replay)s,"
        " %(requested_at)s, %(deadline_at)s, %(person)s, %(identity_method)s, now(), %(started_at)s, now(), 'running')"
        " ON CONFLICT (id) DO UPDATE SET identity_method = coalesce(r.identity_method, EXCLUDED.identity_method),"
        " identity_verified_at = coalesce(r.identity_verified_at, now())",
        facts,
    )


def settle(connection: Connection, line: Line, status: str, because: str, merged_into: UUID | None = None) -> None:
    """Enter a replayed request as closed: another replay leaves it alone, and its line goes when its time has come."""
    connection.execute(
        f"INSERT INTO {TABLE} (id, channel, requested_at, deadline_at, started_at, ledger_at, status, closed_at,"  # noqa: S608
        " closed_because, merged_into) VALUES (%(request)s, %(replay)s, %(requested_at)s, %(deadline_at)s,"
        " %(started_at)s, now(), %(status)s, now(), %(because)s, %(into)s) ON CONFLICT (id) DO NOTHING",
        asdict(line) | {"replay": REPLAY, "status": status, "because": because, "into": merged_into},
    )


def _name(request: UUID | str) -> str:
    return f"{PREFIX}{request}.json"
