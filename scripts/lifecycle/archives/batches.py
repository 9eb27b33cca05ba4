"""Archive rows in batches along a path: export, upload and read back each batch, and only then delete its rows.

The DELETE runs under the gate and names each row in the version that was exported. It checks legal hold, period,
fencing token and stop switch once more. If one row is not as it was exported, nothing is deleted: the object is
discarded, and a new one is written without that row. So an archive has exactly the rows that were deleted with it.
While PostgreSQL deletes, a thread writes the next archive.
"""

from __future__ import annotations

import contextvars
import gc
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.types.json import Jsonb

from scripts.lifecycle.archives.catalogue import Begun, Catalogue
from scripts.lifecycle.archives.export import Exported, Exporter, archive_of
from scripts.lifecycle.archives.format import ArchiveBroken
from scripts.lifecycle.archives.keys import ArchiveKeys
from scripts.lifecycle.archives.verify import read_back
from scripts.lifecycle.engine.batches import Ambiguous, Outcome
from scripts.lifecycle.engine.decided import Decided
from scripts.lifecycle.engine.gated import MAY_RUN, Context, GatedTransaction, Rescued, Statement
from scripts.lifecycle.engine.loop import RETRY_ATTEMPTS, RETRY_SECONDS, BatchLoop, Course, Worker
from scripts.lifecycle.engine.politeness import Politeness
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.engine.windows import Path, Window, chosen_keys
from scripts.lifecycle.jobs.handover import Item, raise_item
from scripts.lifecycle.jobs.run import Run
from scripts.utils import composing as sql
from scripts.utils.archive_store import ArchiveStoreFailed, store_of
from scripts.utils.db_utils import Connection, connection_lost
from scripts.utils.errors import OpsError, PolicyFailed, StoppedEarly
from scripts.utils.pseudonyms import pseudonym
from scripts.utils.retry_utils import retry

_NOT_EXACTLY = "LA001"  # raised by ops.seal_archive: not exactly the archive's rows were deleted
# Rows may change during every new attempt. The closing pass or the next run takes what is left after these.
_ATTEMPTS = 5
_MOST_ROWS = 50_000

_EXPORTED = sql.SQL("""
exported AS MATERIALIZED (
    SELECT * FROM unnest(%(homes)s::oid[], %(tids)s::tid[], %(xmins)s::xid[], %(keys)s::text[], %(said)s::text[])
               AS e (home, tid, xmin, key, said)
)
""")
# The window's bounds are needed for speed: without them, the statements of each archive would look through every row
# that is due, and the last archive would cost as much as all before it.
_SAME = sql.SQL(
    "{window} AND t.tableoid = e.home AND t.ctid = e.tid AND t.xmin = e.xmin AND {id} = e.key AND {removable}"
)

# The rows are locked first, as in every batch: otherwise a child row that another session inserts meanwhile would be
# deleted or set to null with its parent, without being counted.
_LOCK = sql.SQL("WITH {exported} SELECT count(*) FROM (SELECT FROM {table} t, exported e WHERE {same} FOR UPDATE) l")
_DELETE = sql.SQL("""
WITH {may_run}, {exported}, gone AS (
    DELETE FROM {table} t USING exported e
     WHERE {same} AND (SELECT owned AND NOT stopped FROM may_run)
    RETURNING e.said AS key, {rule} AS rule{decided}
), audited AS (
    SELECT rule, count(*) AS rows,
           ops.note_audit((%(entry_ids)s::jsonb ->> rule)::uuid, %(actor)s, %(action)s, %(table_name)s,
                            %(reason_prefix)s || rule, %(run_id)s, array_agg(key), %(facts)s::jsonb -> rule) AS entry
      FROM gone GROUP BY rule
){remembered}
SELECT owned, stopped,
       CASE WHEN owned AND NOT stopped
            THEN ops.seal_archive(%(archive)s, (SELECT coalesce(sum(rows) FILTER (WHERE entry IS NOT NULL), 0)::bigint
                                                  FROM audited)) END
  FROM may_run{kept}
""")
_UNCHANGED = sql.SQL("""
WITH {exported} SELECT e.home::text, e.key FROM {table} t, exported e WHERE {same} FOR UPDATE OF t SKIP LOCKED
""")


def require_place(run: Run) -> None:
    """Check, before any row is looked at, that the archive store is set and the master key is right; write nothing.

    Raises:
        Misconfigured: The store is not set, or the master key is missing or another one.
    """
    store_of(run.settings)
    ArchiveKeys(run.database, run.settings).check()


@contextmanager
def cycles_left_alone() -> Iterator[None]:
    """Turn off Python's cycle collector: rows make no reference cycles, and its search costs as much as encryption."""
    gc.collect()
    gc.freeze()  # a collection between two archives then looks at new objects only
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class _NotAsExported(Exception):
    """A row was changed since its export, is held, or is locked by another session: nothing was deleted."""


class Archiver(Worker):
    """Archives and deletes what one policy selects, in one run; a purge uses it like a Deleter.

    Args:
        run: The run; it holds the job's lock.
        selection: The rows that may go.
        context: The lease's fencing token and the id of the run's record.
        politeness: Decides on pauses for other sessions; its first look was taken.

    Raises:
        Misconfigured: The store is not set, or the master key is missing or another one.
    """

    def __init__(self, run: Run, selection: Selection, context: Context, politeness: Politeness) -> None:
        policy = selection.policy
        self._object_rows = min(run.options.batch_size or archive_of(policy).rows, _MOST_ROWS)
        loop = BatchLoop(run, policy, context, politeness, batch_rows=self._object_rows)
        super().__init__(run, selection, loop)
        self._context = context
        self._store = store_of(run.settings)
        self._keys = ArchiveKeys(run.database, run.settings)
        self._keys.lookup()
        self._catalogue = Catalogue(run.writer, self._store, self._keys)
        self._exporter = Exporter(
            run.writer,
            selection,
            context,
            catalogue=self._catalogue,
            store=self._store,
            keys=self._keys,
            between=self._between,
            about={"policy_hash": run.policies.hash, "version": run.settings.render_git_commit},
        )
        self._gated = GatedTransaction(policy.batch)
        self._decided = Decided(selection)
        self._lent = ExitStack()
        self._connection: Connection | None = None
        self._changed: list[str] = []
        self._deleting_seconds = 0.0
        self._sealed = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="archive")
        self._ahead: deque[tuple[Window, Future[Exported | None]]] = deque()
        self._ending = False

    def close(self) -> None:
        """End the writing thread and give the connection back."""
        self._writer.shutdown()
        self._disconnect()

    def _disconnect(self) -> None:
        self._connection = None
        self._lent.close()

    def _between(self) -> None:
        """Stop between two blocks of an archive, if the run must stop: no row of it is deleted yet.

        Raises:
            StoppedEarly: The run must stop, or the archive is not wanted any more.
        """
        if self._ending:
            raise StoppedEarly("not_wanted", "the run ends")
        self._run.checkpoint()

    @property
    def rows(self) -> int:
        """Rows of the next archive."""
        return self.loop.batch_rows

    def follow(self, path: Path) -> None:
        """Archive the rows along a path, and delete them.

        Raises:
            StoppedEarly: The run must stop; no archive is sealed without its rows being deleted.
            PolicyFailed: The store fails, an object read back is not what was written, or too many rows are refused.
        """
        self._changed.clear()  # a row that one path left out is tried again on the next
        with cycles_left_alone():
            try:
                super().follow(path)
            except (ArchiveStoreFailed, ArchiveBroken) as error:
                raise self._failed(error) from error
            finally:
                self._forget()

    def carry_out(self, course: Course, window: Window) -> Outcome:
        """Delete the rows of the window's archive, while the next window's is written.

        Raises:
            StoppedEarly: The run must stop.
            PolicyFailed: A row takes too long, or too many rows are refused.
            ArchiveStoreFailed: The store fails.
            ArchiveBroken: An object read back is not what was written.
        """
        if not self._ahead:
            self._submit(window)
        if following := course.ahead():
            self._submit(following)
        exported = self._ahead[0][1].result()
        self._ahead.popleft()
        before = self.loop.deleted
        self._sealed = 0
        self._deleting_seconds = 0.0
        try:
            self._carry_out(window, exported)
        except psycopg.Error as error:
            keys = exported.key_list() if exported else []
            self.loop.bisect(error, lambda: keys, self._carry_out_these)
        gc.collect()
        return Outcome(
            owned=True,
            stopped=False,
            deleted=self.loop.deleted - before,
            batches=self._sealed,
            seconds=self._deleting_seconds,
        )

    def tell(self, outcome: Outcome, seconds: float) -> None:
        """Say nothing: each archive has had its line when it was sealed."""

    def written(self, path: Path) -> Iterator[tuple[Window, Exported]]:
        """Archive the rows along a path, and delete none. The caller seals all archives in one transaction.

        An archive that the caller does not seal, it discards.

        Raises:
            StoppedEarly: The run must stop.
            PolicyFailed: The store fails, or an object read back is not what was written.
        """
        course = Course(path, self.loop, self)
        while course.window is not None:
            try:
                # SQL itself writes the keys of a dropped partition to the audit.
                exported = self._prepare(course.window, [], nameable=True)
            except (ArchiveStoreFailed, ArchiveBroken) as error:
                raise self._failed(error) from error
            if exported is not None:
                yield course.window, exported
            self._run.writer.write(lambda connection: connection.execute(*self.loop.beat()))
            course.move()

    def _submit(self, window: Window) -> None:
        """Have the writing thread write a window's archive. Two threads at once were slower: they share the GIL."""
        # The thread gets a copy of the context, so that its log lines have the correlation id.
        context = contextvars.copy_context()
        self._ahead.append((window, self._writer.submit(context.run, self._prepare, window, self._left_out)))

    def _forget(self) -> None:
        """Discard the archives that were written in advance and whose rows will not be deleted."""
        self._ending = True
        try:
            while self._ahead:
                _, prepared = self._ahead.popleft()
                if prepared.cancel():
                    continue
                with suppress(Exception):  # why the run ends is known; an export that failed has discarded itself
                    if exported := prepared.result():
                        self._discard(exported)
        finally:
            self._ending = False

    @property
    def _left_out(self) -> list[str]:
        return [*self.loop.poison, *self._changed]

    def _failed(self, error: ArchiveStoreFailed | ArchiveBroken) -> PolicyFailed:
        """Raise a queue item for the store's failure, once, and return the error.

        The job runs monthly: without an item, its failure could be forgotten before the next run.
        """
        item = Item(
            item_type="archive_failed",
            resource_type=self._policy.table,
            priority="high",
            reason="what is past its date cannot be archived, so it is not deleted",
            raised_by=f"system:{self._run.script}",
            context={"policy": self._policy.name, "error": error.stop_reason},
        )
        self.loop.handed_over += raise_item(self._run.writer, self._run.settings, item, self._policy.name)
        return PolicyFailed(error.stop_reason, f"policy {self._policy.name}: {error}; nothing was deleted for it")

    def _carry_out_these(self, keys: list[str]) -> None:
        part = chosen_keys(self._selection, keys)
        self._carry_out(part, self._prepare(part, self._left_out))

    def _carry_out(self, window: Window, exported: Exported | None) -> None:
        """Delete the rows of an archive. If rows changed meanwhile, archive the window again without them.

        Args:
            window: The part of the path that was exported.
            exported: The archive; None: the window has no row that may go.

        Raises:
            StoppedEarly: The run must stop.
            psycopg.Error: The database refuses the batch; nothing of it happened, and the archive is discarded.
        """
        for _ in range(_ATTEMPTS):
            if exported is None:
                return
            try:
                self._run.checkpoint()
                if self._seal(window, exported):
                    return
            except BaseException:
                self._discard(exported)
                raise
            changed = {key for _, key in exported.rows - self._unchanged(window, exported)}
            self._discard(exported)
            self._changed += changed
            self.loop.locked |= bool(changed)
            self._log.info("archive_redone", rows=exported.written.rows, left_out=len(changed))
            exported = self._prepare(window, self._left_out)
        if exported is not None:
            self._discard(exported)
            self._log.warning("window_locked", effect="left for the closing pass")

    def _prepare(self, window: Window, excluded: list[str], *, nameable: bool = False) -> Exported | None:
        """Write an archive and read it back; delete nothing.

        Args:
            window: The part of the path to export.
            excluded: Keys of rows to leave out.
            nameable: Leave out rows whose key may be personal, whatever the selection says.

        Returns:
            The archive; None: the window has no row that may go.

        Raises:
            StoppedEarly: The run must stop, or the table stays locked.
            ArchiveStoreFailed: The store fails.
            ArchiveBroken: The object read back is not what was written.
        """
        with self.loop.readable():
            exported = retry(
                lambda: self._exporter.export(window, excluded, nameable=nameable or self._nameable),
                on=connection_lost,
                attempts=RETRY_ATTEMPTS,
                seconds=RETRY_SECONDS,
                before_wait=self.loop.before_retry,
            )
        if exported is None:
            return None
        begun, written = exported.begun, exported.written
        try:
            # Decrypt with the key as the database has it: in years, that is the key that a restore will use.
            key = self._keys.object_key(begun.id)
            read_back(self._store, begun.object, key, rows=written.rows, sha256=written.sha256)
        except BaseException:
            self._discard(exported)
            raise
        return exported

    def _seal(self, window: Window, exported: Exported) -> bool:
        """Delete an archive's rows and seal it, in one transaction.

        Returns:
            Whether that was done; False: a row is not as it was exported, or is locked, and nothing was deleted.

        Raises:
            StoppedEarly: The gate stays closed, the lease is lost, or the stop switch is on.
            DatabaseUnavailable: The connection broke in every attempt.
            psycopg.Error: The database refuses the DELETE.
        """
        started = time.monotonic()
        try:
            self.loop.surely(lambda: self._delete(window, exported))
        except psycopg.errors.LockNotAvailable:
            self._log.info("rows_locked", effect="archiving without them")
            return False
        except _NotAsExported:
            return False
        seconds = time.monotonic() - started
        self._deleting_seconds += seconds
        self._sealed += 1
        self._run.advance(self._policy.name, self.loop.deleted)
        self._log.info(
            "archive_sealed",
            archive=str(exported.begun.id),
            rows=exported.written.rows,
            bytes=exported.written.bytes,
            deleting_seconds=round(seconds, 4),
            records_deleted_so_far=self.loop.deleted,
        )
        return True

    def _delete(self, window: Window, exported: Exported) -> Outcome:
        archive = exported.begun.id
        known = self._context.noted(self._selection.facts)
        facts = {rule: fact | {"archive": str(archive)} for rule, fact in known.items()}
        parameters = self._parameters(window, exported) | {
            "archive": archive,
            "facts": Jsonb(facts),
            "entry_ids": Jsonb({rule: str(uuid4()) for rule in self._selection.causes}),
        }
        composed = self._composed(window)
        statements: list[Statement] = [(statement, parameters) for statement in composed]
        look = self.loop.look()
        statements += [extra for extra in (self.loop.heartbeat(), look) if extra]
        told = len(statements) - 1
        statements += [(statement, parameters) for statement in self._decided.settling]
        try:
            if self._connection is None:
                self._connection = self._lent.enter_context(self._run.writer.connection())
            cursors = self._gated.send(self._connection, statements)
        except Rescued as error:
            raise _NotAsExported from error  # the rows that may go are archived without the others
        except psycopg.Error as error:
            if error.sqlstate == _NOT_EXACTLY:
                raise _NotAsExported from error
            if not connection_lost(error):
                raise
            if self._connection is not None:
                self._connection.close()  # behind a pooler it may look well
            self._disconnect()
            raise Ambiguous(lambda: exported.written.rows if self._catalogue.is_sealed(archive) else None) from error
        owned, stopped, deleted = cursors[len(composed) - 1].fetchone() or (False, False, 0)
        return Outcome(owned, stopped, deleted or 0, looked=cursors[told].fetchone() if look else None)

    def _parameters(self, window: Window, exported: Exported) -> dict[str, Any]:
        return {
            **self._selection.parameters,
            **window.parameters,
            **self._context.parameters(),
            "action": self._policy.action,
            "reason_prefix": self._policy.reason(""),
            "homes": exported.homes,
            "tids": exported.tids,
            "xmins": exported.xmins,
            "keys": exported.keys,
            "said": self._said(exported),
        }

    def _composed(self, window: Window) -> list[sql.Composed]:
        """Return the statements that delete an archive's rows; the DELETE is the last."""
        names: dict[str, sql.Composable] = {
            "exported": _EXPORTED,
            "table": self._selection.table,
            "same": self._same(window),
        }
        kept = self._decided.kept_with()
        names |= {name: kept.pop(name) for name in ("decided", "remembered", "kept")}
        delete = _DELETE.format(may_run=MAY_RUN, rule=self._selection.rule_of_due, **names)
        if any(foreign_key.changes_children for foreign_key in self._selection.refusing):
            return [_LOCK.format(**names), delete]
        return [delete]

    def _same(self, window: Window) -> sql.Composed:
        return _SAME.format(
            window=window.clause,
            id=self._selection.record.id("t"),
            removable=self._selection.droppable if self._nameable else self._selection.removable,
        )

    @property
    def _nameable(self) -> bool:
        """Whether rows stay whose key may be personal: no due row had such a key when the run began."""
        return not self._selection.pseudonymous

    def _said(self, exported: Exported) -> list[str] | str:
        """Return what the audit calls each row: its key, or the key's pseudonym if that may be personal."""
        if self._nameable:
            return exported.keys
        keys = exported.key_list()
        return [key if self._selection.record.is_nameable(key) else pseudonym(self._run.settings, key) for key in keys]

    def _unchanged(self, window: Window, exported: Exported) -> set[tuple[str, str]]:
        """Return table (oid) and key of the rows that are as they were exported and that no session has locked."""
        statement = _UNCHANGED.format(exported=_EXPORTED, table=self._selection.table, same=self._same(window))
        with self._run.writer.transaction() as connection:
            connection.execute("SELECT set_config('enable_seqscan', 'off', true)")  # as in a batch
            found = connection.execute(statement, self._parameters(window, exported))
            return {(home, key) for home, key in found}

    def _discard(self, exported: Exported) -> None:
        self.discard(exported.begun)

    def discard(self, archive: Begun) -> bool:
        """Discard an archive, unless it is sealed; return whether database and store could be reached."""
        try:
            self._catalogue.discard(archive.id, archive.object)
        except (OpsError, psycopg.Error) as error:
            # The archive stays in the state 'writing': the next run tries again.
            self._log.warning("archive_not_discarded", archive=str(archive.id), error=type(error).__name__)
            return False
        return True
