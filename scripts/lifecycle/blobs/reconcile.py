"""Compares the store with the rows: finds orphans (blobs that no row names) and rows whose blob is gone.

Both lists are copied into a private SQLite file and joined there by canonical name. So memory does not grow with
either list, neither list needs an order, and no transaction is open while the store is asked.
The comparison finds candidates only. Each one is looked at again before anything is done: an orphan in the claim, which
asks the rows right before the call; a row by asking the store for its blob.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar
from uuid import UUID, uuid4

from scripts.lifecycle.blobs.blob_intents import ORPHANED, changes
from scripts.lifecycle.blobs.blobs import BlobRemoval, breaker_open, client_for, refused
from scripts.lifecycle.engine.gated import MAY_RUN, Context, GatedTransaction
from scripts.lifecycle.engine.policy_run import Ending, PolicyRun, first_look, within_budget
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.jobs.results import PolicyResult
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.sections import Blob
from scripts.utils import composing as sql
from scripts.utils.blob_client import BlobCallFailed, BlobClient, ListedBlob
from scripts.utils.blob_names import blob_name, meanings
from scripts.utils.db_utils import Connection
from scripts.utils.errors import ExitCode, PolicyFailed
from scripts.utils.pseudonyms import pseudonym
from scripts.utils.retry_utils import CircuitOpen

Answer = TypeVar("Answer")

_PAGE = 1000
# More rows without a blob than this number, and than this share of all, mean another store or prefix.
_GONE_MINIMUM, _GONE_SHARE = 100, 0.05

_ROWS = sql.SQL("""
COPY (SELECT {id}, t.{blob}, ({held})::int FROM {table} t WHERE {names}) TO STDOUT
""")

_OPEN_INTENTS = """
SELECT blob FROM ops.blob_deletions WHERE policy = %s AND rule = %s AND closed_at IS NULL
"""

_TABLE_HELD = "SELECT EXISTS (SELECT FROM ops.holds_in_force WHERE scope = 'table' AND table_name = %s)"

# A row whose value is no certain name keeps every blob that has the same key.
_FILE = """
CREATE TABLE rows (id TEXT, name TEXT, pathname TEXT, key BLOB, certain INTEGER, final INTEGER);
CREATE TABLE blobs (pathname TEXT PRIMARY KEY, key BLOB, old INTEGER) WITHOUT ROWID;
CREATE INDEX rows_key ON rows (key);
CREATE VIEW orphans AS SELECT pathname, '' FROM blobs b WHERE old AND NOT EXISTS (
    SELECT 1 FROM rows r WHERE r.key = b.key AND (NOT r.certain OR r.pathname = b.pathname)) ORDER BY pathname;
CREATE VIEW gone AS SELECT id, name FROM rows r WHERE final AND NOT EXISTS (
    SELECT 1 FROM blobs b WHERE b.pathname = r.pathname) ORDER BY id;
"""

_INTEND = sql.SQL("""
WITH {may_run} INSERT INTO ops.blob_deletions (policy, rule, table_name, resource_id, blob, run_id)
SELECT %(policy)s, %(rule)s, %(table_name)s, o.id, o.blob, %(run_id)s
  FROM unnest(%(ids)s::text[], %(blobs)s::text[]) AS o (id, blob)
 WHERE (SELECT owned AND NOT stopped FROM may_run)
   AND NOT EXISTS (SELECT FROM ops.holds_in_force h WHERE h.scope = 'table' AND h.table_name = %(table_name)s)
   AND NOT EXISTS (SELECT FROM ops.blob_deletions d WHERE d.policy = %(policy)s AND d.rule = %(rule)s
                      AND d.blob = o.blob AND d.closed_at IS NULL)
    ON CONFLICT (table_name, resource_id, home) WHERE closed_at IS NULL DO NOTHING
""")

_FINALISE = sql.SQL("""
WITH {may_run}, gone AS (
    UPDATE {table} t SET {changes}
      FROM unnest(%(ids)s::text[], %(blobs)s::text[], %(said)s::text[]) AS g (id, blob, said)
     WHERE {is_it} AND t.{blob} = g.blob AND NOT {held}
       AND (SELECT owned AND NOT stopped FROM may_run)
    RETURNING g.said
)
SELECT count(*), ops.note_audit(%(entry_id)s, %(actor)s, 'blob_gone', %(table_name)s, %(reason_prefix)s || 'gone',
                                  %(run_id)s, array_agg(said), '{{}}')
  FROM gone HAVING count(*) > 0
""")


@dataclass(frozen=True)
class Comparison:
    """The counts of a comparison; the candidates are in its file."""

    file: sqlite3.Connection
    rows: int
    """Rows whose blob lies in the store and below the prefix."""
    blobs: int
    orphans: int
    gone: int

    def limited(self, limit: int | None) -> tuple[int, int]:
        """Return how many rows and how many orphans a run under ``--limit`` puts right; the rows come first."""
        if limit is None:
            return self.gone, self.orphans
        return min(self.gone, limit), min(self.orphans, max(0, limit - self.gone))

    def candidates(self, kind: str, limit: int) -> Iterator[list[tuple[str, str]]]:
        """Read candidates, a page at a time.

        Args:
            kind: ``gone``, for pairs of a row's key and value; ``orphans``, for pairs of a pathname and an empty text.
            limit: How many at most.
        """
        found = self.file.execute(f"SELECT * FROM {kind} LIMIT ?", (limit,))  # noqa: S608 - one of two constants
        while page := found.fetchmany(_PAGE):
            yield page


def reconcile(run: Run, policy: str) -> None:
    """Compare the store with the rows: delete orphans and clear rows whose blob is gone; in a dry run only count.

    Raises:
        StoppedEarly: The run must stop.
        Misconfigured: The file has no such policy; a token or a key is missing.
    """
    rules = run.policies.policy(policy)
    pseudonym(run.settings, "")
    try:
        if run.options.dry_run:
            run.results.append(_predict(run, rules))
        else:
            _Reconciliation(run, rules).carry_out()
    except PolicyFailed as error:
        run.fail(policy, error)


def _predict(run: Run, policy: Policy) -> PolicyResult:
    with ExitStack() as stack:
        selection, found = _compare(run, policy, stack)
    why = _refusal(run, selection.policy, found)
    gone, orphans = found.limited(run.options.limit)
    return PolicyResult(
        policy=f"{policy.name}/reconcile",
        status="failed" if why else "completed",
        stop_reason="would_be_refused" if why else "dry_run",
        exit_code=ExitCode.FAILED if why else ExitCode.DONE,
        records_deleted=orphans + gone,
        records_held=0,
        records_remaining=0,
        oldest_overdue_seconds=0.0,
        by_rule={ORPHANED: orphans, "gone": gone},
        error=why,
    )


class _Reconciliation(PolicyRun):
    """A comparison in a real run."""

    def __init__(self, run: Run, policy: Policy) -> None:
        super().__init__(run, policy)
        self._name = f"{policy.name}/reconcile"

    def work(self, run_id: UUID) -> Ending:
        """Compare, then look at each candidate again and put it right.

        Raises:
            PolicyFailed: There are more differences than may be put right unasked, or the store refuses every call.
        """
        run = self._run
        context = Context.of(run, run_id)
        with ExitStack() as stack:
            self._selection, found = _compare(run, self._policy, stack)
            self._log.info(
                "store_compared",
                rows=found.rows,
                blobs=found.blobs,
                orphans=found.orphans,
                rows_without_blob=found.gone,
            )
            if why := _refusal(run, self._policy, found):
                raise PolicyFailed("cap_exceeded", f"policy {self._policy.name} changed nothing: {why}")
            gone, orphans = found.limited(run.options.limit)
            run.expect(self._policy.name, orphans + gone)
            act = _Act(run, self._selection, context)
            for page in found.candidates("gone", gone):
                run.checkpoint()
                self._deleted += act.finalise(self._really_gone(page))
            for page in found.candidates("orphans", orphans):
                run.checkpoint()
                act.intend(page)
        with closing(BlobRemoval(run, self._selection, context, rule=ORPHANED)) as removal:
            try:
                removal.drain()
            finally:
                self._deleted += removal.removed
                self._batches += removal.rounds
                self._queued += removal.queued
        if removal.unknown:
            message = f"the store did not say what became of {removal.unknown} blobs: the next run asks for them again"
            return Ending("partial", "blobs_unknown", ExitCode.STOPPED_EARLY, message)
        return Ending("completed", "done", ExitCode.NEEDS_A_PERSON if self._queued else ExitCode.DONE)

    def _really_gone(self, page: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Ask the store for each blob: it may have been uploaded after the listing."""
        with closing(client_for(self._run)) as client:
            # By pathname: the store refuses a URL of the other kind, public or private.
            return _asking(
                lambda: [(key, blob) for key, blob in page if not client.exists(client.pathname(blob) or blob)]
            )


class _Act:
    """Writes what a comparison found, in transactions behind the gate."""

    def __init__(self, run: Run, selection: Selection, context: Context) -> None:
        policy = selection.policy
        blob = _blob_of(policy)
        self._run = run
        self._gated = GatedTransaction(policy.batch)
        self._parameters: dict[str, Any] = {
            **selection.parameters,
            **context.parameters(),
            "policy": policy.name,
            "rule": ORPHANED,
            "reason_prefix": policy.reason(""),
        }
        self._record = selection.record
        self._intend = _INTEND.format(may_run=MAY_RUN)
        self._finalise = _FINALISE.format(
            may_run=MAY_RUN,
            table=selection.table,
            changes=changes(selection, blob),
            is_it=selection.record.is_("t", sql.Identifier("g", "id")),
            blob=sql.Identifier(blob.column),
            held=selection.held,
        )

    def intend(self, page: list[tuple[str, str]]) -> None:
        """Write intents for orphans."""
        named = [(pseudonym(self._run.settings, pathname), pathname) for pathname, _ in page]
        self._send(self._intend, named)

    def finalise(self, page: list[tuple[str, str]]) -> int:
        """Clear rows whose blob is gone; return how many."""
        row = self._send(self._finalise, page, said=[self._said(key) for key, _ in page]) if page else None
        return int(row[0]) if row else 0

    def _said(self, key: str) -> str:
        return key if self._record.is_nameable(key) else pseudonym(self._run.settings, key)

    def _send(
        self, statement: sql.Composed, page: list[tuple[str, str]], said: list[str] | None = None
    ) -> tuple[Any, ...] | None:
        parameters = self._parameters | {"ids": [one for one, _ in page], "blobs": [other for _, other in page]}
        parameters["said"] = said
        with self._run.writer.connection() as connection:
            cursor = self._gated.send(connection, [(statement, parameters | {"entry_id": uuid4()})])[0]
            return cursor.fetchone() if cursor.description else None


def _compare(run: Run, policy: Policy, stack: ExitStack) -> tuple[Selection, Comparison]:
    blob = _blob_of(policy)
    client = stack.enter_context(closing(client_for(run)))
    # SQLite unlinks this file as soon as it has made it, so a killed run leaves nothing behind.
    file = stack.enter_context(closing(sqlite3.connect("", isolation_level=None)))
    file.executescript(f"PRAGMA synchronous = off; PRAGMA journal_mode = off; {_FILE}")

    def look(connection: Connection) -> tuple[Selection, bool, list[str]]:
        selection = first_look(run, connection, policy)[0].selection
        held = connection.execute(_TABLE_HELD, (policy.table,)).fetchone()
        intents = connection.execute(_OPEN_INTENTS, (policy.name, ORPHANED)).fetchall()
        return selection, bool(held and held[0]), [name for (name,) in intents]

    selection, held, intended = within_budget(run, look)
    within_budget(run, lambda connection: _copy_rows(connection, selection, client.store, file))
    file.execute("BEGIN")
    uploaded_before = blob.orphans.before(run.cutoff)
    for page in _listed(run, client, blob.prefix):
        entries = [
            (name.pathname, name.key, not held and uploaded_before is not None and each.uploaded_at < uploaded_before)
            for each in page
            if (name := blob_name(each.pathname)).pathname == each.pathname
            and name.trouble(client.store, blob.prefix) is None
        ]
        file.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?)", entries)
    listed = _count(file, "blobs")
    # The run carries out the intents too that a killed run has left open.
    left = [(name.pathname, name.key) for name in map(blob_name, intended) if name.pathname]
    file.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?, 1)", left)
    file.execute("COMMIT")
    found = Comparison(file, _count(file, "rows WHERE final"), listed, _count(file, "orphans"), _count(file, "gone"))
    return selection, found


def _count(file: sqlite3.Connection, what: str) -> int:
    return int(file.execute(f"SELECT count(*) FROM {what}").fetchone()[0])  # noqa: S608 - constants


def _copy_rows(connection: Connection, selection: Selection, store: str, file: sqlite3.Connection) -> None:
    """Copy every row that may name a blob of the store; ``final`` marks those that may be cleared."""
    blob = _blob_of(selection.policy)
    statement = _ROWS.format(
        id=selection.record.id("t"),
        blob=sql.Identifier(blob.column),
        held=selection.held,
        table=selection.table,
        names=selection.names_blob("t"),
    )

    def read(values: tuple[Any, ...]) -> Iterator[tuple[str, str, str | None, bytes, bool, bool]]:
        key, value, kept = values
        name = blob_name(value)
        keys = meanings(value)
        certain = name.certain and len(keys) == 1
        final = name.certain and kept == "0" and name.trouble(store, blob.prefix) is None
        if len(keys) > 1 or name.store in (None, "", store):
            for each in keys:
                yield key, value, name.pathname, each, certain, final

    if not file.in_transaction:
        file.execute("BEGIN")
    file.execute("DELETE FROM rows")  # of an attempt that lost its connection
    with connection.cursor() as cursor, cursor.copy(statement, selection.held.parameters) as copy:
        file.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", chain.from_iterable(map(read, copy.rows())))
    file.execute("COMMIT")


def _listed(run: Run, client: BlobClient, prefix: str) -> Iterator[list[ListedBlob]]:
    cursor: str | None = None
    while True:
        run.checkpoint()
        page = _asking(lambda at=cursor: client.page(prefix, at))  # type: ignore[misc]
        yield page.blobs
        cursor = page.cursor
        if cursor is None:
            return


def _refusal(run: Run, policy: Policy, found: Comparison) -> str | None:
    """Return why the comparison found too much to act on it unasked; None: it did not."""
    rows = found.orphans + found.gone
    confirmed = run.options.confirm_cap
    if confirmed is not None:
        return f"{rows} differences, --confirm-cap allows {confirmed}" if rows > confirmed else None
    cure = f"is it the right store and prefix? If so, allow it once with --confirm-cap {rows}"
    if found.gone > max(_GONE_MINIMUM, _GONE_SHARE * found.rows):
        return f"{found.gone} of {found.rows} rows seem to have lost their blob: {cure}"
    if rows > policy.max_rows:
        return f"{rows} differences, the policy's max_rows is {policy.max_rows}: {cure}"
    return None


def _asking(ask: Callable[[], Answer]) -> Answer:
    try:
        return ask()
    except BlobCallFailed as error:
        raise refused(error) from error
    except CircuitOpen:
        raise breaker_open() from None


def _blob_of(policy: Policy) -> Blob:
    if policy.blob is None:
        raise PolicyFailed("no_blobs", f"policy {policy.name} has no blobs to reconcile")
    return policy.blob
