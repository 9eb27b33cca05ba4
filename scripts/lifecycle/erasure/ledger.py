"""The erasure ledger: which erasures must be repeated after a restore of the database to a point in time.

The ledger has one object a request in ARCHIVE_URL, written before the first row goes. A line names nobody: it has a
keyed digest of the person's address, which a replay compares with the digests of all addresses in the restored tables.
Each line carries an authentication code over its content and its name in the store, under a key derived from
SUPPRESSION_KEY: a person who may write to the store, but has not that key, can erase nobody through it.

The head, one more object, says how many lines there are, and holds the sum of a keyed digest of each line's name
(a multiset hash: adding and removing a line costs the same at any size). So the ledger itself shows that a line was
deleted; a restored database could not know. Only the erasure job, under its lock, writes the head. A line is written
before the head counts it. It is deleted after the head has ceased to count it. So a killed job leaves at most one line
that the head does not count, and the next run counts it. Where an old head and exactly its lines are put back, the
ledger looks whole; ``ledger_lines`` in the runs' closing lines tells that.

After BACKUP_RETENTION_DAYS no backup can bring anybody back, and the line is deleted.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from scripts.lifecycle.audit import audit
from scripts.lifecycle.engine.selection import normal_address
from scripts.lifecycle.erasure.requests import TABLE, Request
from scripts.lifecycle.policy.erasure_steps import ErasureStep
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils import strict_json
from scripts.utils.archive_store import ArchiveStore, ObjectMissing
from scripts.utils.db_utils import Connection, Database, ReadOnlyDatabase
from scripts.utils.errors import Misconfigured
from scripts.utils.pseudonyms import ledger_code
from scripts.utils.settings import Settings

PREFIX = "erasure/ledger/"
HEAD = "erasure/ledger-head.json"
_MODULUS = 2**256
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
    withdrawn: bool = False
    """The request was cancelled since; nothing had been done for it. The job's next run deletes the line."""

    def facts(self) -> dict[str, Any]:
        """Return what is written, without the code."""
        return {name: value for name, value in asdict(self).items() if value is not False}

    def signed(self) -> bytes:
        """Return what the line's code is over: all that it says, and the place that it belongs at."""
        facts = self.facts() | {"place": _name(self.request)}
        return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Head:
    """How many lines there are, and the sum over their names, hexadecimal."""

    lines: int
    sum: str

    def with_line(self, weight: int, by: int) -> Head:
        """Return the head with one line more (``by`` 1) or less (``by`` -1)."""
        return Head(self.lines + by, f"{(int(self.sum, 16) + by * weight) % _MODULUS:064x}")

    def signed(self) -> bytes:
        """Return what the head's code is over."""
        return json.dumps(asdict(self) | {"place": HEAD}, sort_keys=True, separators=(",", ":")).encode()


NO_LINES = Head(0, "0" * 64)


class Ledger:
    """The ledger, for its one writer: the erasure job, which holds its lock.

    Args:
        store: Where the archives are.
        settings: Give the key that authenticates lines and head.

    Raises:
        LedgerBroken: A line is missing, or the ledger was written under another key.
        Misconfigured: SUPPRESSION_KEY is not set.
    """

    def __init__(self, store: ArchiveStore, settings: Settings) -> None:
        self._store = store
        self._code = ledger_code(settings)
        head, names = _head_and_names(store, self._code)
        uncounted = _uncounted(head, names, self._code)
        self._names = set(names)
        self._head = head or NO_LINES
        if uncounted:
            _genuine(store, uncounted, self._code)
            self._count(uncounted, 1)

    @property
    def lines(self) -> int:
        """How many lines the ledger has."""
        return self._head.lines

    def write(self, request: Request, *, digest: str, archive_pseudonym: bytes | None, now: datetime) -> None:
        """Write a request's line; the same line again does no harm.

        Args:
            request: The request that begins.
            digest: The keyed digest of the person's address.
            archive_pseudonym: The person's pseudonym among the archives' keys; None: nothing was ever archived.
            now: The database's time.

        Raises:
            ArchiveStoreFailed: The line or the head is not there for good, and nothing may be erased.
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
        _write(self._store, line, self._code)
        name = _name(request.id)
        if name not in self._names:
            self._names.add(name)
            self._count(name, 1)

    def remove(self, request: UUID) -> None:
        """Delete a request's line; a line that is not there is no error."""
        name = _name(request)
        if name in self._names:
            self._names.remove(name)
            self._count(name, -1)
        self._store.delete(name)

    def forget(self, database: Database, *, days: int, between: Callable[[], None]) -> int:
        """Delete the lines of erasures that no backup can undo any more, and of requests that were cancelled.

        Args:
            database: Knows the requests.
            days: BACKUP_RETENTION_DAYS.
            between: Called before each deletion; may raise to stop.

        Returns:
            How many lines were deleted.
        """
        rows = database.read(
            lambda connection: connection.execute(
                f"SELECT id FROM {TABLE} WHERE ledger_at IS NOT NULL AND (closed_at < now() - make_interval(days => %s)"  # noqa: S608
                " OR closed_because IN ('withdrawn', 'nothing_done'))",
                (days,),
            ).fetchall()
        )
        for (request,) in rows:
            between()
            self.remove(request)
            database.write(
                lambda connection, request=request: connection.execute(  # type: ignore[misc]
                    f"UPDATE {TABLE} SET ledger_at = NULL WHERE id = %s",  # noqa: S608 - constants
                    (request,),
                )
            )
        return len(rows)

    def _count(self, name: str, by: int) -> None:
        self._head = self._head.with_line(_weight(name, self._code), by)
        _write_head(self._store, self._head, self._code)


def withdraw(store: ArchiveStore, settings: Settings, request: UUID) -> None:
    """Mark the line of a request that was cancelled: no replay may carry it out. The head, the job's alone, stays.

    Raises:
        LedgerBroken: The line was not written under this key.
        Misconfigured: SUPPRESSION_KEY is not set.
    """
    code = ledger_code(settings)
    try:
        _write(store, replace(_genuine(store, _name(request), code), withdrawn=True), code)
    except ObjectMissing:
        return


def lines(store: ArchiveStore, settings: Settings) -> Iterator[Line]:
    """Return every line of the ledger, authenticated, once it is clear that none is missing.

    Raises:
        LedgerBroken: There is no ledger, a line is missing, or one was not written under this key, was altered, or
            lies at another one's place.
        Misconfigured: SUPPRESSION_KEY is not set.
    """
    code = ledger_code(settings)
    head, names = _head_and_names(store, code)
    if head is None and not names:
        raise LedgerBroken(
            "there is no erasure ledger at the place that ARCHIVE_URL names: are erasures done with another place? If"
            " nobody was ever erased, there is nothing to replay"
        )
    _uncounted(head, names, code)
    for name in names:
        try:
            yield _genuine(store, name, code)
        except ObjectMissing:
            continue  # it has just gone


def _genuine(store: ArchiveStore, name: str, code: Callable[[bytes], str]) -> Line:
    line, genuine = _parsed(name, b"".join(store.read(name)), code)
    if line is None or not genuine:
        raise LedgerBroken(
            f"{name} is no line that was written under this SUPPRESSION_KEY, or it was altered, moved or copied:"
            " nothing was done; set the key that erasures are done with, or bring the line back from a backup of"
            " ARCHIVE_URL; a line of an earlier version: sign-ledger"
        )
    return line


def _parsed(name: str, text: bytes, code: Callable[[bytes], str]) -> tuple[Line | None, bool]:
    """Return the line, None if it is none that belongs at this place; and whether its code is right."""
    try:
        facts = strict_json.loads(text)
        claimed = facts.pop("code", "")
        line = Line(**facts)
        datetime.fromisoformat(line.started_at)
        if name != _name(UUID(line.request)):
            return None, False
        return line, hmac.compare_digest(code(line.signed()), claimed)
    except (ValueError, TypeError, AttributeError):
        return None, False


def _write(store: ArchiveStore, line: Line, code: Callable[[bytes], str]) -> None:
    with store.writing(_name(line.request)) as file:
        file.write(json.dumps(line.facts() | {"code": code(line.signed())}, indent=1).encode())


def _write_head(store: ArchiveStore, head: Head, code: Callable[[bytes], str]) -> None:
    with store.writing(HEAD) as file:
        file.write(json.dumps(asdict(head) | {"code": code(head.signed())}, indent=1).encode())


def _weight(name: str, code: Callable[[bytes], str]) -> int:
    return int(code(b"name " + name.encode()).rpartition(":")[2], 16)


def _sum(names: Iterable[str], code: Callable[[bytes], str]) -> int:
    return sum(_weight(name, code) for name in names) % _MODULUS


def _head_and_names(store: ArchiveStore, code: Callable[[bytes], str]) -> tuple[Head | None, list[str]]:
    """Return the head and the names of the lines, of one moment: a reader has no lock.

    Raises:
        LedgerBroken: The head is not one that was written under this key.
    """
    while True:
        head = _read_head(store, code)
        # A hidden file is one that a killed process left incomplete.
        names = [name for name in store.names() if name.startswith(PREFIX) and not name.startswith(PREFIX + ".")]
        if head == _read_head(store, code):
            return head, names


def _read_head(store: ArchiveStore, code: Callable[[bytes], str]) -> Head | None:
    try:
        facts = strict_json.loads(b"".join(store.read(HEAD)))
        claimed = facts.pop("code")
        head = Head(**facts)
        genuine = hmac.compare_digest(code(head.signed()), claimed)
    except ObjectMissing:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        genuine = False
    if not genuine:
        raise LedgerBroken(
            f"{HEAD} was not written under this SUPPRESSION_KEY, or it was altered: nothing was done; set the key that"
            " erasures are done with, or bring the object back from a backup of ARCHIVE_URL"
        )
    return head


def _uncounted(head: Head | None, names: list[str], code: Callable[[bytes], str]) -> str | None:
    """Return the line that a killed run left and the head does not count yet; None: there is none.

    Raises:
        LedgerBroken: A line is missing, or there are lines that the head does not count.
    """
    found = _sum(names, code)
    if head is None:
        if not names:
            return None
        problem = f"the erasure ledger has {len(names)} lines and no head, {HEAD}"
    else:
        counted, more = int(head.sum, 16), len(names) - head.lines
        if (more, found) == (0, counted):
            return None
        for name in names if more == 1 else ():
            if (found - _weight(name, code)) % _MODULUS == counted:
                return name
        problem = (
            f"{-more} of {head.lines} lines of the erasure ledger are missing"
            if more < 0
            else f"the erasure ledger has {len(names)} lines, and they are not the {head.lines} that its head counts"
        )
    raise LedgerBroken(
        f"{problem}: nothing was done; bring what is missing back from a backup of ARCHIVE_URL, or look at what is"
        " there and accept it: sign-ledger"
    )


@dataclass(frozen=True)
class Unsigned:
    """What :func:`examine` found."""

    lines: list[Line]
    """Lines without a valid code: of an earlier version, or somebody else's."""
    refused: list[str]
    """Objects that are no lines at all."""
    whole: list[str]
    """The names of all lines."""
    missing: int | None
    """How many lines fewer than the head counts, 0 if the sum differs too; None: nothing is missing."""


def examine(store: ArchiveStore, settings: Settings) -> Unsigned:
    """Look at the ledger for ``sign-ledger``; nothing is written.

    Raises:
        LedgerBroken: The head was written under another key.
        Misconfigured: SUPPRESSION_KEY is not set.
    """
    code = ledger_code(settings)
    head, names = _head_and_names(store, code)
    unsigned, refused = [], []
    for name in names:
        line, genuine = _parsed(name, b"".join(store.read(name)), code)
        if line is None:
            refused.append(name)
        elif not genuine:
            unsigned.append(line)
    missing = None
    try:
        _uncounted(head, names, code)
    except LedgerBroken:
        missing = max(0, head.lines - len(names)) if head else None
    return Unsigned(unsigned, refused, names, missing)


def sign(connection: Connection, store: ArchiveStore, settings: Settings, found: Unsigned, *, operator: str) -> None:
    """Accept what :func:`examine` found: sign the lines, count all of them, and audit it as the operator's act.

    Args:
        connection: A connection inside a transaction.
        store: Where the archives are.
        settings: Give the key.
        found: What the operator accepts.
        operator: The operator's handle.
    """
    code = ledger_code(settings)
    requests = [line.request for line in found.lines]
    row = connection.execute(
        "INSERT INTO ops.ledger_signatures (signed_by, requests, lines, missing) VALUES (%s, %s::uuid[], %s, %s)"
        " RETURNING id::text",
        (operator, requests, len(found.whole), found.missing or 0),
    ).fetchone()
    audit.append(
        connection,
        actor=f"operator:{operator}",
        action="ledger_signed",
        resource_type="ops.ledger_signatures",
        resource_ids=[row[0] if row else ""],
        reason="erasure_ledger",
        metadata={"signed": len(requests), "lines": len(found.whole), "missing": found.missing or 0},
    )
    for line in found.lines:
        _write(store, line, code)
    _write_head(store, Head(len(found.whole), f"{_sum(found.whole, code):064x}"), code)


def undone(database: ReadOnlyDatabase, store: ArchiveStore, settings: Settings) -> list[Line]:
    """Return the erasures that this database does not know as fulfilled: it was restored to a point before them.

    An erasure that the database knows as fulfilled is left out: a person who is there again has come back by choice. An
    erasure that began before BACKUP_RETENTION_DAYS is left out as well, because no backup is so old.

    Raises:
        LedgerBroken: As :func:`lines` raises it.
    """
    since = database.now() - timedelta(days=settings.backup_retention_days)
    every = list(lines(store, settings))
    begun = {
        line.request: line for line in every if not line.withdrawn and datetime.fromisoformat(line.started_at) >= since
    }
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
