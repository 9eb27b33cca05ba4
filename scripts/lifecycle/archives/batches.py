"""Archives along a path: exported, uploaded, read back, and only then deleted, a batch at a time.

The DELETE asks for every row once more, in the version that was exported, under the gate: hold, period, fencing token
and stop switch are looked at there. If one row is not as it was, nothing goes, the object is thrown away and made anew
without that row. So an archive holds exactly what was deleted with it. While PostgreSQL deletes, threads write the
next archives.
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
from scripts.lifecycle.engine import poison
from scripts.lifecycle.engine.deleter import HEARTBEAT_SECONDS, PROBE_SECONDS, RETRY_ATTEMPTS, RETRY_SECONDS, unreadable
from scripts.lifecycle.engine.gated import (
    MAY_RUN,
    Blocked,
    Context,
    GatedTransaction,
    Statement,
    require_may_run,
)
from scripts.lifecycle.engine.politeness import Politeness
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.engine.windows import Path, Window, chosen_keys
from scripts.lifecycle.jobs import runs
from scripts.lifecycle.jobs.handover import Item, raise_item
from scripts.lifecycle.jobs.run import Run
from scripts.utils import composing as sql
from scripts.utils.archive_store import ArchiveStoreFailed, store_of
from scripts.utils.db_utils import Connection, connection_lost, is_deadlock
from scripts.utils.errors import OpsError, PolicyFailed, StoppedEarly, describe_database_error
from scripts.utils.logging_utils import get_logger
from scripts.utils.retry_utils import retry

_NOT_EXACTLY = "LA001"  # ops.seal_archive's
# Rows may change under every new attempt; what is left then is the closing pass's, or the next run's.
_ATTEMPTS = 5
# Archives that are written while one is deleted; two at once were slower, for they share one interpreter.
_AHEAD = 1
# Transactions of one archive besides its keys' and its DELETE: what the server counts as this run's own.
_OWN_TRANSACTIONS = 11

_EXPORTED = sql.SQL("""
exported AS MATERIALIZED (
    SELECT * FROM unnest(%(tids)s::tid[], %(xmins)s::xid[], %(keys)s::text[]) AS e (tid, xmin, key)
)
""")
# The window too: without its bounds every archive would look through all that is due, and the last one cost what all
# before it did.
_SAME = sql.SQL("{window} AND t.ctid = e.tid AND t.xmin = e.xmin AND {id} = e.key AND {removable}")

# As in every batch: a child that is being added while its parent goes would be deleted or cut off unseen.
_LOCK = sql.SQL("WITH {exported} SELECT count(*) FROM (SELECT FROM {table} t, exported e WHERE {same} FOR UPDATE) l")
_DELETE = sql.SQL("""
WITH {may_run}, {exported}, gone AS (
    DELETE FROM {table} t USING exported e
     WHERE {same} AND (SELECT owned AND NOT stopped FROM may_run)
    RETURNING e.key, {rule} AS rule
), audited AS (
    SELECT rule, count(*) AS rows,
           ops.note_audit((%(entry_ids)s::jsonb ->> rule)::uuid, %(actor)s, %(action)s, %(table_name)s,
                            %(reason_prefix)s || rule, %(run_id)s, array_agg(key), %(facts)s::jsonb -> rule) AS entry
      FROM gone GROUP BY rule
)
SELECT owned, stopped,
       CASE WHEN owned AND NOT stopped
            THEN ops.seal_archive(%(archive)s, (SELECT coalesce(sum(rows) FILTER (WHERE entry IS NOT NULL), 0)::bigint
                                                  FROM audited)) END
  FROM may_run
""")
_UNCHANGED = sql.SQL("""
WITH {exported} SELECT e.key FROM {table} t, exported e WHERE {same} FOR UPDATE OF t SKIP LOCKED
""")


def require_place(run: Run) -> None:
    """See that archives have a place and the right master key, before anything is looked at; writes nothing.

    Raises:
        Misconfigured: They have not.
    """
    store_of(run.settings)
    ArchiveKeys(run.database, run.settings).check()


@contextmanager
def cycles_left_alone() -> Iterator[None]:
    """Let Python not look for reference cycles: rows make none, and the search costs as much as their encryption."""
    gc.collect()
    gc.freeze()  # so that collecting between two archives looks at what is new only
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class _NotAsExported(Exception):
    """A row is not as it was, is held, or is locked by somebody else: nothing was deleted."""


class Archiver:
    """Archives and deletes what one policy selects, in one run; as far as a purge is concerned, a Deleter.

    Args:
        run: The run; it holds the job's lock.
        selection: What is to go.
        context: Lease and run record.
        politeness: What is known of the others; its first look was taken.

    Raises:
        Misconfigured: Store or master key is not set, or is not the right one.
    """

    def __init__(self, run: Run, selection: Selection, context: Context, politeness: Politeness) -> None:
        policy = selection.policy
        self._run = run
        self._selection = selection
        self._policy = policy
        self._context = context
        self._politeness = politeness
        self._log = get_logger().bind(policy=policy.name)
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
        self._lent = ExitStack()
        self._connection: Connection | None = None
        self._heartbeat_every = min(HEARTBEAT_SECONDS, run.settings.redis_lock_timeout / 3)
        self._changed: list[str] = []
        self._deleting_seconds = 0.0
        self._writer = ThreadPoolExecutor(_AHEAD, thread_name_prefix="archive")
        self._ending = False
        self.batch_rows = min(run.options.batch_size or archive_of(policy).rows, 50_000)
        """Rows an archive at most."""
        self.deleted = 0
        self.batches = 0
        """Archives sealed."""
        self.queued = 0
        self.poison: list[str] = []
        """Keys of rows that the database refuses to delete."""
        self.locked = False
        """Whether rows were left out because somebody else was at them."""

    def close(self) -> None:
        """End the writing threads and give the connection back."""
        self._writer.shutdown()
        self._disconnect()

    def _disconnect(self) -> None:
        self._connection = None
        self._lent.close()

    def _between(self) -> None:
        """Stop between two blocks of an archive: nothing is deleted for it yet."""
        if self._ending:
            raise StoppedEarly("not_wanted", "the run ends")
        self._run.checkpoint()

    @property
    def limit_reached(self) -> bool:
        """Whether ``--limit`` allows no further row."""
        limit = self._run.options.limit
        return limit is not None and self.deleted >= limit

    def follow(self, path: Path) -> None:
        """Archive and delete along a path.

        Raises:
            StoppedEarly: The run must stop; nothing is half done.
            PolicyFailed: The store fails, an object is not what was written, or too many rows are refused.
        """
        with cycles_left_alone():
            self._follow(path)

    def written(self, path: Path) -> Iterator[tuple[Window, Exported]]:
        """Archive along a path and delete nothing: whoever asks seals what comes, all at once, or discards it.

        Raises:
            StoppedEarly: The run must stop.
            PolicyFailed: The store fails, or an object is not what was written.
        """
        for window in self._windows(path):
            try:
                exported = self._prepare(window, [])
            except (ArchiveStoreFailed, ArchiveBroken) as error:
                raise self._failed(error) from error
            if exported is None:
                continue
            self._politeness.ours += _OWN_TRANSACTIONS + exported.calls
            yield window, exported
            self._run.writer.write(lambda connection: connection.execute(*self._heartbeat()))

    def _follow(self, path: Path) -> None:
        self._changed.clear()  # what another path leaves out
        windows = self._windows(path)
        ahead: deque[tuple[Window, Future[Exported | None]]] = deque()
        # While PostgreSQL deletes, the next ones are written. A limit depends on what this one deletes.
        depth = _AHEAD if self._run.options.limit is None else 0
        try:
            while True:
                self._fill(ahead, windows, depth + 1)
                if not ahead:
                    return
                self._run.checkpoint()
                window, prepared = ahead[0]
                exported = prepared.result()
                ahead.popleft()
                self._fill(ahead, windows, depth)
                self._carry_out(window, exported)
                gc.collect()
                self._make_room()
        except (ArchiveStoreFailed, ArchiveBroken) as error:
            raise self._failed(error) from error
        finally:
            self._forget([prepared for _, prepared in ahead])

    def _windows(self, path: Path) -> Iterator[Window]:
        window: Window | None = None
        while not self.limit_reached:
            rows = self._entries
            window = path.following(window, self._ask(path.question(window, rows)), rows)
            if window is None:
                return
            yield window

    def _fill(
        self, ahead: deque[tuple[Window, Future[Exported | None]]], windows: Iterator[Window], depth: int
    ) -> None:
        """Let archives be written meanwhile."""
        while len(ahead) < depth and (window := next(windows, None)):
            # A copy of the context: the thread's log lines carry the correlation id too.
            context = contextvars.copy_context()
            ahead.append((window, self._writer.submit(context.run, self._prepare, window, self._left_out)))

    def _forget(self, ahead: list[Future[Exported | None]]) -> None:
        """Throw away what was written in advance and is not wanted any more."""
        self._ending = True
        try:
            for prepared in ahead:
                if prepared.cancel():
                    continue
                with suppress(Exception):  # why the run ends is known already, and what failed has discarded itself
                    if exported := prepared.result():
                        self._discard(exported)
        finally:
            self._ending = False

    @property
    def _left_out(self) -> list[str]:
        return [*self.poison, *self._changed]

    @property
    def _entries(self) -> int:
        limit = self._run.options.limit
        return self.batch_rows if limit is None else max(1, min(self.batch_rows, limit - self.deleted))

    def _ask(self, question: Any) -> tuple[Any, ...] | None:
        if question is None:
            return None
        self._politeness.ours += 2
        answer: tuple[Any, ...] | None = self._run.database.read(
            lambda connection: connection.execute(*question).fetchone(), statement_timeout=PROBE_SECONDS
        )
        return answer

    def _failed(self, error: ArchiveStoreFailed | ArchiveBroken) -> PolicyFailed:
        """Hand the store's failure to a person too, once: a monthly job has time to be forgotten."""
        item = Item(
            item_type="archive_failed",
            resource_type=self._policy.table,
            priority="high",
            reason="what is past its date cannot be archived, so it is not deleted",
            raised_by=f"system:{self._run.script}",
            context={"policy": self._policy.name, "error": error.stop_reason},
        )
        self.queued += raise_item(self._run.writer, self._run.settings, item, self._policy.name)
        return PolicyFailed(error.stop_reason, f"policy {self._policy.name}: {error}; nothing was deleted for it")

    def _carry_out(self, window: Window, exported: Exported | None) -> None:
        """Delete what an archive holds; where rows stood in the way, archive the window again without them."""
        for _ in range(_ATTEMPTS):
            if exported is None:
                return
            self._politeness.ours += _OWN_TRANSACTIONS + exported.calls
            try:
                self._run.checkpoint()
                if self._seal(window, exported):
                    self._tell(exported)
                    return
            except psycopg.Error as error:
                self._discard(exported)
                self._in_halves(exported.key_list(), error)
                return
            except BaseException:
                self._discard(exported)
                raise
            changed = set(exported.key_list()) - self._unchanged(window, exported)
            self._discard(exported)
            self._changed += changed
            self.locked |= bool(changed)
            self._log.info("archive_redone", rows=exported.written.rows, left_out=len(changed))
            exported = self._prepare(window, self._left_out)
        if exported is not None:
            self._discard(exported)
            self._log.warning("window_locked", effect="left for the closing pass")

    def _prepare(self, window: Window, excluded: list[str]) -> Exported | None:
        """Write an archive and read it back; nothing is deleted yet."""
        try:
            exported = retry(
                lambda: self._exporter.export(window, excluded),
                on=connection_lost,
                attempts=RETRY_ATTEMPTS,
                seconds=RETRY_SECONDS,
                before_wait=self._before_retry,
            )
        except psycopg.errors.LockNotAvailable:
            raise unreadable(self._policy) from None
        if exported is None:
            return None
        begun, written = exported.begun, exported.written
        try:
            # With the key that the database has: it is the one that will be there in years.
            key = self._keys.object_key(begun.id)
            read_back(self._store, begun.object, key, rows=written.rows, sha256=written.sha256)
        except BaseException:
            self._discard(exported)
            raise
        return exported

    def _in_halves(self, keys: list[str], error: psycopg.Error) -> None:
        """Find the row that a batch was refused for, or do in two batches what took too long in one."""
        if isinstance(error, psycopg.errors.QueryCanceled):
            if len(keys) == 1:
                raise poison.too_slow(self._run, self._policy) from error
            self.batch_rows = max(1, len(keys) // 2)
        elif not poison.is_about_a_row(error):
            raise error
        elif len(keys) == 1:
            self._hand_over(keys[0], error)
            return
        self._log.warning("batch_refused", error=describe_database_error(error), effect="halving it")
        middle = len(keys) // 2
        for half in (keys[:middle], keys[middle:]):
            part = chosen_keys(self._selection, half)
            self._carry_out(part, self._prepare(part, self._left_out))

    def _hand_over(self, key: str, error: psycopg.Error) -> None:
        self.poison.append(key)
        self.queued += poison.hand_over(self._run, self._policy, key, error)
        poison.require_few(self._policy, self.poison)

    def _seal(self, window: Window, exported: Exported) -> bool:
        """Delete an archive's rows and seal it, in one transaction; False: a row is not as it was, and nothing went."""
        started = time.monotonic()
        try:
            owned, stopped, deleted = retry(
                lambda: self._delete(window, exported),
                on=lambda error: isinstance(error, Blocked) or is_deadlock(error) or connection_lost(error),
                attempts=RETRY_ATTEMPTS,
                seconds=RETRY_SECONDS,
                before_wait=self._before_retry,
            )
        except Blocked as blocked:
            raise blocked.stop() from None
        except psycopg.errors.LockNotAvailable:
            self._log.info("rows_locked", effect="archiving without them")
            return False
        except _NotAsExported:
            return False
        self._deleting_seconds = time.monotonic() - started
        require_may_run(owned=owned, stopped=stopped)
        self.deleted += deleted
        self.batches += 1
        return True

    def _delete(self, window: Window, exported: Exported) -> tuple[bool, bool, int]:
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
        look = self._politeness.look()
        statements += [self._heartbeat(), *([look] if look else [])]
        self._politeness.ours += 1
        try:
            if self._connection is None:
                self._connection = self._lent.enter_context(self._run.writer.connection())
            cursors = self._gated.send(self._connection, statements)
        except psycopg.Error as error:
            if error.sqlstate == _NOT_EXACTLY:
                raise _NotAsExported from error
            if not connection_lost(error):
                raise
            self._disconnect()
            if not self._catalogue.is_sealed(archive):
                raise
            self._log.info("commit_settled", records_deleted=exported.written.rows)
            return True, False, exported.written.rows
        self._politeness.learn(cursors[-1].fetchone() if look else None)
        owned, stopped, deleted = cursors[len(composed) - 1].fetchone() or (False, False, 0)
        return owned, stopped, deleted or 0

    def _before_retry(self, attempt: int, error: BaseException) -> None:
        self._log.warning("batch_retry", attempt=attempt, error=type(error).__name__)
        self._run.checkpoint()  # nothing of the batch happened

    def _parameters(self, window: Window, exported: Exported) -> dict[str, Any]:
        return {
            **self._selection.parameters,
            **window.parameters,
            **self._context.parameters(),
            "action": self._policy.action,
            "reason_prefix": self._policy.reason(""),
            "tids": exported.tids,
            "xmins": exported.xmins,
            "keys": exported.keys,
        }

    def _composed(self, window: Window) -> list[sql.Composed]:
        """Compose what deletes an archive's rows; the DELETE last."""
        names = {"exported": _EXPORTED, "table": self._selection.table, "same": self._same(window)}
        delete = _DELETE.format(may_run=MAY_RUN, rule=self._selection.rule_name, **names)
        if any(foreign_key.changes_children for foreign_key in self._selection.refusing):
            return [_LOCK.format(**names), delete]
        return [delete]

    def _same(self, window: Window) -> sql.Composed:
        return _SAME.format(
            window=window.clause, id=self._selection.record.id("t"), removable=self._selection.droppable
        )

    def _heartbeat(self) -> Statement:
        return runs.heartbeat(
            self._context.run_id,
            self._run.lock,
            records=self.deleted,
            batches=self.batches,
            pauses=self._politeness.pauses,
        )

    def _unchanged(self, window: Window, exported: Exported) -> set[str]:
        """Return the keys of the rows that are as they were exported and that nobody has locked."""
        statement = _UNCHANGED.format(exported=_EXPORTED, table=self._selection.table, same=self._same(window))
        with self._run.writer.transaction() as connection:
            connection.execute("SELECT set_config('enable_seqscan', 'off', true)")  # as in a batch
            return {key for (key,) in connection.execute(statement, self._parameters(window, exported))}

    def _discard(self, exported: Exported) -> None:
        self.discard(exported.begun)

    def discard(self, archive: Begun) -> bool:
        """Throw an archive away, unless it is sealed; returns whether the database and the store could be asked."""
        try:
            self._catalogue.discard(archive.id, archive.object)
        except (OpsError, psycopg.Error) as error:
            # It stays 'writing': the next run tries again.
            self._log.warning("archive_not_discarded", archive=str(archive.id), error=type(error).__name__)
            return False
        return True

    def _make_room(self) -> None:
        """Pause if somebody needs it; only the DELETE was in anybody's way."""
        step = self._politeness.after(self.batch_rows, self._deleting_seconds)
        if step.reason is None:
            return
        started = time.monotonic()
        try:
            # The heartbeat rides in the batches: a pause may not be longer than it can wait.
            self._run.pause(min(step.pause, self._heartbeat_every))
        finally:
            self._politeness.paused(step.reason, time.monotonic() - started)

    def _tell(self, exported: Exported) -> None:
        self._run.advance(self._policy.name, self.deleted)
        self._log.info(
            "archive_sealed",
            archive=str(exported.begun.id),
            rows=exported.written.rows,
            bytes=exported.written.bytes,
            deleting_seconds=round(self._deleting_seconds, 4),
            records_deleted_so_far=self.deleted,
        )
