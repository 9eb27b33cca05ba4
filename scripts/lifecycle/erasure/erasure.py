"""Carries requests out, one person at a time; each is safe to interrupt at any point and to run again.

The order and the reasons for it are in the docstring of this package.
"""

from __future__ import annotations

from datetime import timedelta
from enum import Enum, auto
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from scripts.lifecycle.archives.keys import ArchiveKeys
from scripts.lifecycle.engine import holds
from scripts.lifecycle.engine.gated import Context, GatedTransaction, repeated, require_may_run
from scripts.lifecycle.engine.poison import is_about_a_row
from scripts.lifecycle.erasure import certificate
from scripts.lifecycle.erasure import requests as erasure_requests
from scripts.lifecycle.erasure.blobs import BlobsOfPeople
from scripts.lifecycle.erasure.ledger import Ledger, Line
from scripts.lifecycle.erasure.plan import BLOB, HOLDS, LOCKED, REFERENCED, UNCLEAR, ErasurePlan, Found, addresses
from scripts.lifecycle.erasure.requests import TABLE, Request
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.sections import Batch
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils.addresses import Address
from scripts.utils.archive_store import ArchiveStore, store_of
from scripts.utils.db_utils import Connection, is_deadlock
from scripts.utils.errors import Misconfigured, describe_database_error
from scripts.utils.logging_utils import get_logger
from scripts.utils.pseudonyms import ledger_digest, pseudonym, suppression
from scripts.utils.retry_utils import retry

_BATCH = Batch.model_construct(
    rows=5000, lock_timeout=timedelta(milliseconds=500), statement_timeout=timedelta(seconds=60)
)
# Rows that appear while a person is being erased are deleted by the next pass. If somebody keeps writing, the next run
# goes on.
_PASSES = 3


class _NothingDoneError(Exception):
    """The last search found nothing, and the audit has nothing that was done for the request."""


class Outcome(Enum):
    """What became of one request in one run."""

    FULFILLED = auto()
    BLOCKED = auto()
    BLOCKED_ANEW = auto()
    """Blocked, and the item on the queue is new."""
    UNFINISHED = auto()
    """Somebody is writing to the person's rows: the next run goes on."""
    WITHDRAWN = auto()
    """The request was cancelled before its turn came."""


class Eraser:
    """Erases people, in one run.

    Args:
        run: The run.

    Raises:
        Misconfigured: Place, key or section that an erasure needs is missing.
        PolicyFailed: The database contradicts the policy file.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._settings = run.settings
        self.store: ArchiveStore = store_of(run.settings)
        self.plan = run.database.read(lambda connection: ErasurePlan(connection, run.policies))
        # Composed once: for each request anew it would cost more than sending it.
        with run.database.snapshot() as connection:
            self._locks = {table: each.as_bytes(connection) for table, each in self.plan.locks()}
            self._statements = [(name, each.as_bytes(connection)) for name, each in self.plan.statements()]
            self._look = self.plan.look().as_bytes(connection)
            self._unclear = self.plan.unclear().as_bytes(connection)
            spellings = [*self.plan.spellings().values(), sql.SQL("SELECT %(person)s::text").format()]
            self._spellings = sql.SQL(" UNION ").join(spellings).as_bytes(connection)
        self._gated = GatedTransaction(_BATCH)
        self._ledger: Ledger | None = None
        self._keys = archive_keys_of(run)
        self.blobs = BlobsOfPeople(run, self.plan)

    def parameters(self, address: Address, request: Request | None = None) -> dict[str, Any]:
        """Return who a person is, for every statement.

        Raises:
            Misconfigured: A key is not set.
        """
        person = address.normalized
        named = pseudonym(self._settings, person)
        return self.plan.parameters | {
            "person": person,
            "spellings": [person],
            "addresses": addresses(person, address.raw),
            "pseudonym": named,
            "suppression": suppression(self._settings, person),
            "archive_pseudonym": self._keys.pseudonyms([person.encode()])[0] if self._keys else None,
            "facts": Jsonb({"person": named, "policy_hash": self._run.policies.hash}),
            "names": Jsonb({}),
            "rows": self._run.options.batch_size or _BATCH.rows,
            "run_id": request.id if request else None,
        }

    def look(self, connection: Connection, parameters: dict[str, Any]) -> list[Found]:
        """Search for everything that is left of a person; the list has only tables where something was found."""
        rows = connection.execute(self._look, parameters).fetchall()
        return [
            Found(table, count, {reason: rows for reason, rows in kept.items() if rows}, unnameable)
            for table, count, kept, unnameable in rows
            if count
        ]

    def _mentions(self, connection: Connection, parameters: dict[str, Any]) -> list[Found]:
        """Find values that are no plain address and may name the person, so that no certificate can be written."""
        rows = connection.execute(self._unclear, parameters).fetchall()
        return [Found(table, count, {UNCLEAR: count}, 0) for table, count in rows if count]

    def search(self, address: Address) -> list[Found]:
        """Search for everything about a person, with or without a request."""
        return self._search(self.parameters(address))

    def _search(self, parameters: dict[str, Any]) -> list[Found]:
        def read(connection: Connection) -> list[Found]:
            self._note_spellings(connection, parameters)
            return self.look(connection, parameters)

        return self._run.database.read(read)

    def _note_spellings(self, connection: Connection, parameters: dict[str, Any]) -> None:
        """Give the statements every spelling of the person's address that a table has now."""
        parameters["spellings"] = [spelling for (spelling,) in connection.execute(self._spellings, parameters)]

    def ledger(self) -> Ledger:
        """Return the ledger, for writing; only the job under its lock may ask for it.

        Raises:
            LedgerBroken: A line is missing, or the ledger was written under another key.
            Misconfigured: SUPPRESSION_KEY is not set.
        """
        self._ledger = self._ledger or Ledger(self.store, self._settings)
        return self._ledger

    def close(self) -> None:
        """Close the connections to the blob store."""
        self.blobs.close()

    def carry_out(self, request: Request) -> Outcome:
        """Erase one person as far as nothing is in the way.

        Raises:
            StoppedEarly: The run must stop; what was done stands, the next run goes on.
            ArchiveStoreFailed: The ledger could not be written; nothing was erased.
            AssertionError: The request was not taken in; a bug.
        """
        address = request.address
        if address is None:
            raise AssertionError("only a request that was taken in is carried out")
        self._keys = self._keys or archive_keys_of(self._run)  # the very first archive may be made meanwhile
        parameters = self.parameters(address, request)
        context = self._context(request.id)
        if not request.ledger_at and not self._search(parameters):
            return self._found_nobody(request)
        if not self._begin(request, parameters):
            get_logger().info("erasure_withdrawn", request=str(request.id))
            return Outcome.WITHDRAWN
        parameters |= context.parameters()
        found = self._search(parameters)
        if any(each.table == HOLDS for each in found):
            holds.forget_expired(self._run.writer, address.normalized, actor=f"system:{self._run.script}")
        naming = {each.table for each in found if BLOB in each.kept}
        for policy in self._run.policies.policies.values():
            if policy.blob and policy.table in naming:
                self.blobs.erase(policy, context, parameters)
        try:
            return self._take_rows(request, parameters, context, found)
        except _NothingDoneError:
            return self._found_nobody(request)

    def _take_rows(self, request: Request, parameters: dict[str, Any], context: Context, found: list[Found]) -> Outcome:
        """Delete and change the person's rows, pass by pass, until nothing is found or something is in the way.

        Raises:
            _NothingDoneError: As :meth:`_finish` raises it.
        """
        refused: dict[str, str] = {}
        passes = 0
        while True:
            self._run.checkpoint()
            before, passes = found, passes + 1
            parameters["names"] = Jsonb(self._names(found, parameters))
            refused = self._rows(parameters)
            found = self._finish(request, parameters, context)
            if not found:
                get_logger().info("erasure_fulfilled", request=str(request.id))
                return Outcome.FULFILLED
            stuck = found == before and all(each.kept for each in found)
            # Rows that refer to rows of their own table go from the last one up, a pass each.
            fewer = sum(each.rows for each in found) < sum(each.rows for each in before)
            if refused or stuck or (passes >= _PASSES and not fewer):
                return self._block(request, found, refused)

    def _context(self, request: UUID) -> Context:
        return Context.of(self._run, request)

    def _begin(self, request: Request, parameters: dict[str, Any]) -> bool:
        """Write the ledger, then say that it has begun; a request that was begun before has its line already.

        Returns:
            Whether it is open: it was read a while ago, and may have been withdrawn since.
        """
        if request.ledger_at:
            return True
        if self._run.database.read(lambda c: erasure_requests.find(c, request.id)).closed_at:
            return False
        now = self._run.database.now()
        digest = ledger_digest(self._settings, parameters["person"])
        whose = parameters["archive_pseudonym"]
        self.ledger().write(request, digest=digest, archive_pseudonym=whose, now=now)
        statement = (
            f"UPDATE {TABLE} SET status = 'running', started_at = coalesce(started_at, now()), ledger_at = now(),"  # noqa: S608
            " policy_hash = %s WHERE id = %s AND closed_at IS NULL"
        )
        facts = (self._run.policies.hash, request.id)
        begun = self._run.writer.write(lambda connection: connection.execute(statement, facts).rowcount)
        if not begun:
            self.ledger().remove(request.id)
        return bool(begun)

    def _names(self, found: list[Found], parameters: dict[str, Any]) -> dict[str, str]:
        """Return pseudonyms for the keys that could be personal themselves."""
        tables = [each.table for each in found if each.unnameable]

        def read(connection: Connection) -> list[str]:
            keys: list[str] = []
            for target in (self.plan.targets[table] for table in tables):
                query = sql.SQL("SELECT {} FROM {} t WHERE {} AND {}").format(
                    target.record.id("t"), table_identifier(target.table), target.left, target.unnameable
                )
                keys += [key for (key,) in connection.execute(query, parameters)]
            return keys

        return {key: pseudonym(self._settings, key) for key in self._run.database.read(read)} if tables else {}

    def _rows(self, parameters: dict[str, Any]) -> dict[str, str]:
        """Delete and change what nothing keeps, batch by batch; return what the database refuses, by step.

        Raises:
            psycopg.Error: The failure is not about this person's rows and does not pass by itself.
        """
        while True:
            self._run.checkpoint()
            try:
                together = [*self._locks.values(), *(statement for _, statement in self._statements)]
                counts = self._together(together, parameters)
            except psycopg.Error as error:
                if not (_passes(error) or _is_about_the_person(error)):
                    raise
                return self._one_by_one(parameters)
            if max(counts) < parameters["rows"]:
                return {}

    def _one_by_one(self, parameters: dict[str, Any]) -> dict[str, str]:
        """Do each step by itself, so that one that is refused keeps no other from being done.

        Raises:
            psycopg.Error: As :meth:`_rows` raises it.
        """
        refused: dict[str, str] = {}
        for name, statement in self._statements:
            step = self.plan.steps.get(name)
            lock = [self._locks[step.table]] if step and step.table in self._locks else []
            try:
                while self._together([*lock, statement], parameters)[-1] >= parameters["rows"]:
                    self._run.checkpoint()
            except psycopg.Error as error:
                if not (_passes(error) or _is_about_the_person(error)):
                    raise
                refused[name] = LOCKED if _passes(error) else describe_database_error(error)
        return refused

    def _together(self, statements: list[bytes], parameters: dict[str, Any]) -> list[int]:
        """Run statements in one transaction behind the gate; return the rows of each."""

        def once() -> list[int]:
            with self._run.writer.connection() as connection:
                cursors = self._gated.send(connection, [(statement, parameters) for statement in statements])
                answers = [cursor.fetchone() or (False, False, 0) for cursor in cursors]
                for owned, stopped, *_ in answers:
                    require_may_run(owned=owned, stopped=stopped)
                return [int(answer[2]) for answer in answers]

        # What is gone is gone, and is audited in the transaction that took it.
        return repeated(once, attempts=4)

    def destroy_key(self, line: Line) -> bool:
        """Destroy the archive key of a person whom no table names any more; a restore of the database brought it back.

        Returns:
            Whether there is none now; False: a hold keeps it.
        """
        whose = bytes.fromhex(line.archive_pseudonym or "")
        parameters = self.plan.parameters | self._context(UUID(line.request)).parameters()
        parameters |= {"archive_pseudonym": whose, "person": None, "facts": Jsonb({"replayed": line.request})}

        def once() -> bool:
            # A hold names a person, and only this process can compute the pseudonym. The gate keeps new holds out.
            with self._gated.opened(self._run.writer) as connection:
                people = connection.execute("SELECT person FROM ops.holds_in_force WHERE scope = 'person'").fetchall()
                if self._keys and whose in self._keys.pseudonyms(person.encode() for (person,) in people):
                    return False
                for statement in (each for name, each in self._statements if name == "archives"):
                    owned, stopped, *_ = connection.execute(statement, parameters).fetchone() or (False, False)
                    require_may_run(owned=owned, stopped=stopped)
                left = connection.execute(
                    "SELECT FROM ops.archive_keys WHERE pseudonym = %(archive_pseudonym)s::bytea", parameters
                ).fetchone()
                return left is None

        return repeated(once, attempts=4)

    def _finish(self, request: Request, parameters: dict[str, Any], context: Context) -> list[Found]:
        """Search once more; if nothing is found, fulfil the request in the same transaction, with its certificate.

        Raises:
            _NothingDoneError: Nothing was done for the request either, so there is nothing to certify.
        """

        def once(connection: Connection) -> list[Found]:
            row = connection.execute(
                f"SELECT now(), started_at FROM {TABLE} WHERE id = %s AND closed_at IS NULL FOR UPDATE",  # noqa: S608
                (request.id,),
            ).fetchone()
            self._note_spellings(connection, parameters)
            found = self.look(connection, parameters) or self._mentions(connection, parameters)
            if row is None or found:
                return found if row else []  # a COMMIT whose answer was lost: it is fulfilled
            current = erasure_requests.find(connection, request.id)
            facts = certificate.body(connection, current, self._run.policies, self._settings, row[0])
            if not facts["done"]:
                raise _NothingDoneError
            actor = str(context.parameters()["actor"])
            # Before the seal, which locks the audit's head until COMMIT.
            erasure_requests.settle_item(connection, request.id, "fulfilled", actor=actor)
            head = certificate.seal(connection, current, facts, actor=actor, person=parameters["pseudonym"])
            connection.execute(
                f"UPDATE {TABLE} SET status = 'fulfilled', closed_at = now(), closed_because = 'fulfilled',"  # noqa: S608
                " person = NULL, certificate = %s, audit_head = %s WHERE id = %s",
                (Jsonb(facts), head, request.id),
            )
            return []

        return retry(lambda: self._run.writer.write(once), on=is_deadlock, attempts=4, seconds=30.0)

    def _block(self, request: Request, found: list[Found], refused: dict[str, str]) -> Outcome:
        """Tell a person what is in the way; the deadline goes on."""
        kept = {each.table: each.kept or {LOCKED: each.rows} for each in found}
        get_logger().warning("erasure_blocked", request=str(request.id), kept=kept, refused=refused)
        # Another session is writing to the person's rows: the next run continues when it has ended.
        reasons = {*refused.values(), *(reason for each in kept.values() for reason in each)}
        if LOCKED in reasons and reasons <= {LOCKED, REFERENCED}:
            return Outcome.UNFINISHED
        reason = "something is in the way of an erasure, whose deadline goes on"
        return self._hand_over(request, reason, {"kept": kept, "refused": refused})

    def _found_nobody(self, request: Request) -> Outcome:
        """Tell a person that no table knows who asked: a certificate or a message would say what did not happen."""
        get_logger().warning("erasure_blocked", request=str(request.id), kept={}, refused={}, found=0)
        reason = "no table names who asked: is it the address that the person uses here? the deadline goes on"
        return self._hand_over(request, reason, {"found": 0})

    def _hand_over(self, request: Request, reason: str, context: dict[str, object]) -> Outcome:
        context["deadline"] = request.deadline_at.isoformat() if request.deadline_at else None
        new = self._run.writer.write(
            lambda connection: erasure_requests.block(
                connection, self._settings, request.id, reason, actor=f"system:{self._run.script}", context=context
            )
        )
        return Outcome.BLOCKED_ANEW if new else Outcome.BLOCKED


def _passes(error: psycopg.Error) -> bool:
    """Tell whether the error passes by itself: another session holds a row lock."""
    return isinstance(error, psycopg.errors.LockNotAvailable) or is_deadlock(error)


def _is_about_the_person(error: psycopg.Error) -> bool:
    """Tell whether the server refused because of this person's rows: then everybody else is erased all the same.

    The preflight has checked the rights, so a right that is missing now is one that a trigger of the application needs.
    A statement time-out counts too: this person has very many rows.
    """
    return is_about_a_row(error) or str(error.sqlstate).startswith("42") or error.sqlstate == "57014"


def archive_keys_of(run: Run) -> ArchiveKeys | None:
    """Return the archives' keys; None: nothing was ever archived.

    Raises:
        Misconfigured: There are keys, and no master key.
    """
    if run.settings.archive_master_key:
        keys = ArchiveKeys(run.database, run.settings)
        keys.check()
        return keys if _any_keys(run) else None
    if _any_keys(run):
        raise Misconfigured(
            "ARCHIVE_MASTER_KEY is not set: a person's archives are erased by destroying the person's key"
        )
    return None


def _any_keys(run: Run) -> bool:
    row = run.database.read(
        lambda connection: connection.execute("SELECT FROM ops.archive_keys WHERE kind = 'lookup' LIMIT 1").fetchone()
    )
    return row is not None
