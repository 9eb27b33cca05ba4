"""Delete along a path, batch by batch, and go on after locked rows, lost connections, deadlocks and refused rows.

A locked row is waited for briefly, then left to the closing pass. A lost connection or a deadlock repeats the batch; a
COMMIT whose answer was lost is settled first. A batch that takes too long is split. A batch that the database refuses
is bisected to the row, which goes to a person, and everything else of it goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any
from uuid import UUID

import psycopg

from scripts.lifecycle.engine import poison
from scripts.lifecycle.engine.batches import Ambiguous, BatchTooLarge, BatchWriter, Outcome
from scripts.lifecycle.engine.gated import Blocked, Context, require_may_run
from scripts.lifecycle.engine.politeness import START_ROWS, Politeness, Step
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.engine.windows import Path, Window, chosen_keys
from scripts.lifecycle.jobs import runs
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection, Result, connection_lost, is_deadlock
from scripts.utils.errors import DatabaseUnavailable, StoppedEarly, describe_database_error
from scripts.utils.logging_utils import get_logger
from scripts.utils.pseudonyms import pseudonym
from scripts.utils.retry_utils import CircuitBreaker, CircuitOpen, retry
from scripts.utils.tracing import span

HEARTBEAT_SECONDS = 5.0  # or a third of REDIS_LOCK_TIMEOUT, if that is less
PROGRESS_SECONDS = 10.0
PROBE_SECONDS = 300.0
RETRY_ATTEMPTS = 6
RETRY_SECONDS = 60.0
_PLACES = 100_000

Question = tuple[sql.Composed, dict[str, Any]]


class _WindowLocked(Exception):
    """The batch ran into its lock time-out even though it skipped locked rows."""


class Deleter:
    """Carries out one policy's deletions in one run.

    Args:
        run: The run, which holds the job's lock.
        selection: The rows that may go.
        context: Lease, script and run record.
        politeness: What is known of other sessions; its first look must have been taken.
    """

    def __init__(self, run: Run, selection: Selection, context: Context, politeness: Politeness) -> None:
        self._run = run
        self._selection = selection
        self._policy = selection.policy
        self._context = context
        self._log = get_logger().bind(policy=self._policy.name)
        self._writer = BatchWriter(run.writer, selection, context, lambda text: pseudonym(run.settings, text))
        self._breaker = CircuitBreaker(
            f"locks of {self._policy.table}",
            failure_limit=Fraction(4, 5),
            counts=lambda error: isinstance(error, _WindowLocked),
        )
        self._heartbeat_every = min(HEARTBEAT_SECONDS, run.settings.redis_lock_timeout / 3)
        self._heartbeat_at = self._progress_at = time.monotonic()
        self._counted = "blobs_intended" if self._policy.blob else "records_deleted"
        self._politeness = politeness
        self._pause_told_at = -PROGRESS_SECONDS
        looked_up = {lookup.from_table for lookup in self._policy.lookups}
        # Room for a row, and of each table that it looks up for the dependant that goes with it and no earlier.
        self._least = 1 + sum(reach.foreign_key.table in looked_up for reach in selection.reaches)
        self.batch_rows = run.options.batch_size or self._policy.batch.rows
        """Rows a batch at most."""
        self._rows = run.options.batch_size or START_ROWS
        self._weight = 1.0
        self.deleted = 0
        """Rows on which the action was carried out; of a policy about blobs, intents written."""
        self.batches = 0
        self._refusals = poison.Refusals(run, self._policy)
        self.locked = False
        """Whether rows were left out because another session had them locked."""

    def close(self) -> None:
        """Give the connection back."""
        self._writer.close()

    @property
    def poison(self) -> list[str]:
        """The keys of the rows that were refused; a caller may add to them."""
        return self._refusals.keys

    @property
    def queued(self) -> int:
        """How many refused rows were new on the queue."""
        return self._refusals.queued

    @property
    def limit_reached(self) -> bool:
        """Whether ``--limit`` allows no further row."""
        limit = self._run.options.limit
        return limit is not None and self.deleted >= limit

    def follow(self, path: Path) -> None:
        """Delete along a path; each batch asks for the next window in its own round trip.

        Raises:
            StoppedEarly: The run must stop.
            PolicyFailed: Too many rows are refused, or one row takes too long.
            DatabaseUnavailable: PostgreSQL went away.
        """
        rows = self._entries
        window = path.following(None, self._ask(path.question(None, rows)), rows)
        step = Step(rows)
        while window is not None and not self.limit_reached:
            self._make_room(step)
            self._run.checkpoint()
            started = time.monotonic()
            # Under a limit the next window's size depends on what this batch deletes, so it is asked for afterwards.
            ahead = self._run.options.limit is None
            following = self._entries
            with span("batch", self._policy.name) as facts:
                outcome = self._delete(window, path.question(window, following) if ahead else None)
                facts[self._counted] = outcome.deleted
            seconds = time.monotonic() - started
            self.batches += 1
            self._tell(outcome, seconds)
            self._politeness.learn(outcome.looked)
            step = self._politeness.after(rows, seconds)
            if self._run.options.batch_size is None:
                self._rows = step.rows
            rows = following if ahead else self._entries
            if outcome.deleted and self._selection.own_keys:
                continue  # the parents of what went may go now: the same window once more
            answer = outcome.answer if ahead else self._ask(path.question(window, rows))
            window = path.following(window, answer, rows)

    @property
    def _entries(self) -> int:
        limit = self._run.options.limit
        # A batch has its rows' dependants in it: as many rows as lately had room with theirs.
        rows = max(1, min(self._rows, int(self.batch_rows / self._weight)))
        return rows if limit is None else max(1, min(rows, limit - self.deleted))

    def _make_room(self, step: Step) -> None:
        """Pause if another session or a replica needs it; a signal ends the pause at once."""
        if step.reason is None:
            return
        started = time.monotonic()
        try:
            # The heartbeat is written by the batches, so no pause may be longer than its interval.
            self._run.pause(min(step.pause, self._heartbeat_every))
        finally:
            seconds = time.monotonic() - started
            self._politeness.paused(step.reason, seconds)
            self._tell_pause(step.reason, seconds)

    def _tell_pause(self, reason: str, seconds: float) -> None:
        say = self._log.debug
        if time.monotonic() - self._pause_told_at >= PROGRESS_SECONDS:
            self._pause_told_at = time.monotonic()
            say = self._log.info
        say("paused", reason=reason, seconds=round(seconds, 4), pauses_so_far=self._politeness.pauses)

    def _tell(self, outcome: Outcome, seconds: float) -> None:
        if not self._policy.blob:
            self._run.advance(self._policy.name, self.deleted)
        say = self._log.debug
        if time.monotonic() - self._progress_at >= PROGRESS_SECONDS:
            self._progress_at = time.monotonic()
            say = self._log.info
        say(
            "batch_completed",
            batch=self.batches,
            duration_seconds=round(seconds, 4),
            **{self._counted: outcome.deleted, f"{self._counted}_so_far": self.deleted},
        )

    def _ask(self, question: Question | None) -> tuple[Any, ...] | None:
        if question is None:
            return None
        self._politeness.ours += 2  # the transaction, and the check of a connection that is lent
        return self._read(lambda connection: connection.execute(*question).fetchone())

    def _read(self, work: Callable[[Connection], Result]) -> Result:
        try:
            return self._run.database.read(work, statement_timeout=PROBE_SECONDS)
        except psycopg.errors.LockNotAvailable:
            raise unreadable(self._policy) from None

    def _delete(self, window: Window, question: Question | None) -> Outcome:
        try:
            return self._breaker.call(lambda: self._patiently(window, question))
        except _WindowLocked:
            self._log.warning("window_locked", effect="left for the closing pass")
        except CircuitOpen:
            raise StoppedEarly(
                "breaker_open", f"{self._policy.table} stays locked by another session: four of five batches gave up"
            ) from None
        except psycopg.errors.QueryCanceled as error:
            self._split(window, error)
        except psycopg.Error as error:
            if not self._refusals.is_about_a_row(error):
                raise
            self._log.warning("batch_refused", error=describe_database_error(error), effect="bisecting to the row")
            self._isolate(self._keys(window))
        except BatchTooLarge:
            self._in_parts(window)
        return Outcome(owned=True, stopped=False, deleted=0, answer=self._ask(question))

    def _patiently(self, window: Window, question: Question | None) -> Outcome:
        """Run a batch; if it runs into its lock time-out, run it again without the locked rows.

        Raises:
            _WindowLocked: It runs into its lock time-out without them, too.
        """
        try:
            return self._surely(window, question, skip_locked=False)
        except psycopg.errors.LockNotAvailable:
            self.locked = True
            self._log.info("rows_locked", effect="skipping locked rows")
        try:
            return self._surely(window, question, skip_locked=True)
        except psycopg.errors.LockNotAvailable as error:
            raise _WindowLocked from error

    def _surely(self, window: Window, question: Question | None, *, skip_locked: bool) -> Outcome:
        def batch() -> Outcome:
            return self._writer.run(
                window,
                excluded=self.poison,
                most=max(self.batch_rows, self._least),
                skip_locked=skip_locked,
                question=question,
                heartbeat=self._heartbeat(),
                look=self._politeness.look(),
            )

        return self._repeated(batch, question)

    def _repeated(self, batch: Callable[[], Outcome], question: Question | None) -> Outcome:
        """Repeat a batch through lost connections and deadlocks; a lost answer is settled before.

        Raises:
            StoppedEarly: The gate stays closed, the lease is lost, or the stop switch is on.
            DatabaseUnavailable: The connection broke in every attempt.
            psycopg.Error: What else the server refused; nothing of the batch happened.
        """

        def once() -> Outcome:
            self._politeness.ours += 1
            try:
                return batch()
            except Ambiguous as ambiguous:
                settled = self._settle(ambiguous.entry_ids)
                if settled is None:
                    raise
                self._log.info("commit_settled", records_deleted=settled)
                return Outcome(owned=True, stopped=False, deleted=settled, answer=self._ask(question))

        try:
            outcome = retry(
                once,
                on=lambda error: isinstance(error, Ambiguous | Blocked) or is_deadlock(error),
                attempts=RETRY_ATTEMPTS,
                seconds=RETRY_SECONDS,
                before_wait=self._before_retry,
            )
        except Blocked as blocked:
            raise blocked.stop() from None
        except Ambiguous as error:
            raise DatabaseUnavailable("the connection to PostgreSQL broke in every attempt at a batch") from error
        require_may_run(owned=outcome.owned, stopped=outcome.stopped)
        self.deleted += outcome.deleted
        if outcome.deleted:
            self._weight = 1 + outcome.dependants / outcome.deleted
        return outcome

    def _before_retry(self, attempt: int, error: BaseException) -> None:
        name = type(error if isinstance(error, Blocked) else error.__cause__ or error).__name__
        self._log.warning("batch_retry", attempt=attempt, error=name)
        self._run.checkpoint()  # nothing of the batch happened

    def _settle(self, entry_ids: list[UUID]) -> int | None:
        return retry(
            lambda: self._writer.settle(entry_ids),
            on=lambda error: connection_lost(error) or is_deadlock(error),
            attempts=RETRY_ATTEMPTS,
            seconds=RETRY_SECONDS,
        )

    def _heartbeat(self) -> tuple[sql.Composed, dict[str, Any]] | None:
        if time.monotonic() - self._heartbeat_at < self._heartbeat_every:
            return None
        self._heartbeat_at = time.monotonic()
        return runs.heartbeat(
            self._context.run_id,
            self._run.lock,
            records=0 if self._policy.blob else self.deleted,
            batches=self.batches,
            pauses=self._politeness.pauses,
        )

    def _keys(self, window: Window) -> list[str]:
        statement = sql.SQL("SELECT {} FROM {} t WHERE {} AND {}").format(
            self._selection.record.id("t"), self._selection.table, window.clause, self._selection.removable
        )
        parameters = self._selection.parameters | window.parameters
        rows = self._read(lambda connection: connection.execute(statement, parameters).fetchall())
        return [key for (key,) in rows if key not in self.poison]

    def _split(self, window: Window, error: psycopg.Error) -> None:
        """Split a batch that ran into its statement time-out, and make the following batches smaller too.

        Raises:
            PolicyFailed: One row alone takes too long.
        """
        keys = self._keys(window)
        if len(keys) <= 1:
            raise poison.too_slow(self._run, self._policy) from error
        self._log.warning("batch_timed_out", rows=len(keys), effect="splitting it")
        self.batch_rows = min(self.batch_rows, len(keys) // 2)
        for part in _halves(keys):
            self._run.checkpoint()
            self._delete(chosen_keys(self._selection, part), None)

    def _in_parts(self, window: Window) -> None:
        """Do a window in batches that have room for their rows' dependants too."""
        weights = self._weights(window)
        if weights:
            self._weight = sum(weights.values()) / len(weights)
            self._log.info("batch_cut", rows=len(weights), records=sum(weights.values()), most=self.batch_rows)
        for part in _packed(weights, self.batch_rows):
            self._run.checkpoint()
            if len(part) > 1 or weights[part[0]] <= self.batch_rows or self._drain(part[0]):
                self._delete(chosen_keys(self._selection, part), None)

    def _weights(self, window: Window) -> dict[str, int]:
        """Return how many records go with each row of a window, itself included; beyond a batch's size, about."""
        selection = self._selection
        each = [
            sql.SQL("(SELECT count(*) FROM (SELECT FROM {} c WHERE {} LIMIT {}) s)").format(
                table_identifier(reach.foreign_key.table), reach.foreign_key.joins("c"), self.batch_rows
            )
            for reach in selection.reaches
        ]
        statement = sql.SQL("SELECT {}, {} FROM {} t WHERE {} AND {}").format(
            selection.record.id("t"),
            sql.SQL(" + ").join([sql.SQL("1"), *each]),
            selection.table,
            window.clause,
            selection.removable,
        )
        parameters = selection.parameters | window.parameters
        rows = self._read(lambda connection: connection.execute(statement, parameters).fetchall())
        return {key: weight for key, weight in rows if key not in self.poison}

    def _drain(self, key: str) -> bool:
        """Let all dependants of one row go, in batches before its own; False: some of them stay, and so does it.

        Raises:
            PolicyFailed: One dependant alone takes too long, or too many rows are refused.
            psycopg.Error: What the server refused for another reason than a row.
        """
        chosen = chosen_keys(self._selection, [key])
        try:
            for number, _ in enumerate(self._selection.reaches):
                while places := self._places(chosen, number):
                    if not self._drain_some(chosen, number, places):
                        return False
        except psycopg.errors.LockNotAvailable:
            self.locked = True
            self._log.info("rows_locked", effect="a row and its dependants are left for the closing pass")
            return False
        except psycopg.errors.QueryCanceled as error:
            if self.batch_rows == 1:
                raise poison.too_slow(self._run, self._policy) from error
            self.batch_rows = max(1, self.batch_rows // 2)
            return self._drain(key)
        except psycopg.Error as error:
            if not self._refusals.is_about_a_row(error):
                raise
            self._hand_over(key, error)
            return False
        return True

    def _places(self, chosen: Window, number: int) -> dict[int, list[str]]:
        """Return where dependants of a row are, by table or partition.

        This number at a time: to look for the next few before each batch would read the entries of those that are gone
        every time, as long as another session holds an old snapshot.
        """
        selection, key = self._selection, self._selection.reaches[number].foreign_key
        statement = sql.SQL(
            "SELECT c.tableoid::bigint, c.ctid::text FROM {} c JOIN {} t ON {} WHERE {} AND {}{} LIMIT {}"
        ).format(
            table_identifier(key.table),
            selection.table,
            key.joins("c"),
            chosen.clause,
            selection.removable,
            self._but_the_last(key.table),
            _PLACES,
        )
        parameters = selection.parameters | chosen.parameters
        places: dict[int, list[str]] = {}
        for table, place in self._read(lambda connection: connection.execute(statement, parameters).fetchall()):
            places.setdefault(table, []).append(place)
        return places

    def _but_the_last(self, table: str) -> sql.Composed:
        """Leave one dependant, the latest, to the row's own batch, where the row is due by what it looks up in it."""
        for lookup in self._policy.lookups:
            if lookup.from_table == table:
                latest = sql.Identifier("c", lookup.latest or lookup.take)
                return sql.SQL(" ORDER BY {} DESC NULLS LAST OFFSET 1").format(latest)
        return sql.SQL("").format()

    def _drain_some(self, chosen: Window, number: int, places: dict[int, list[str]]) -> int:
        """Let the dependants at these places go, batch by batch; returns how many went."""
        gone = 0
        for table, all_there in places.items():
            for first in range(0, len(all_there), self.batch_rows):
                self._run.checkpoint()
                some = table, all_there[first : first + self.batch_rows]
                started = time.monotonic()
                outcome = self._repeated(
                    lambda some=some: self._writer.dependants_of(  # type: ignore[misc]
                        chosen, number, some, heartbeat=self._heartbeat(), look=self._politeness.look()
                    ),
                    None,
                )
                gone += outcome.dependants
                self.batches += 1
                self._politeness.learn(outcome.looked)
                self._make_room(self._politeness.after(len(some[1]), time.monotonic() - started))
        return gone

    def _isolate(self, keys: list[str]) -> None:
        """Bisect to the rows that the database refuses to delete.

        A half is every other row, so the first rows that are found lie far from each other: if a trigger refuses one as
        the other, it refuses more than a stretch of the table.

        Raises:
            PolicyFailed: Too many rows are refused, a trigger refuses them all, or one row takes too long.
            psycopg.Error: What the server refused for another reason than a row.
        """
        parts = [keys] if keys else []
        while parts:
            self._run.checkpoint()
            part = parts.pop()
            try:
                self._patiently(chosen_keys(self._selection, part), None)
            except _WindowLocked:
                continue
            except BatchTooLarge:
                self._in_parts(chosen_keys(self._selection, part))
            except psycopg.errors.QueryCanceled as error:
                self._split(chosen_keys(self._selection, part), error)
            except psycopg.Error as error:
                if not self._refusals.is_about_a_row(error):
                    raise
                if len(part) == 1:
                    self._hand_over(part[0], error)
                else:
                    parts += [part[::2], part[1::2]]

    def _hand_over(self, key: str, error: psycopg.Error) -> None:
        self._refusals.hand_over(key, error, gone=self.deleted)


def unreadable(policy: Policy) -> StoppedEarly:
    """Return the stop for a table that stays locked even against reading."""
    return StoppedEarly("breaker_open", f"{policy.table} stays locked by another session, even against reading")


def _packed(weights: dict[str, int], most: int) -> list[list[str]]:
    """Put keys together, in their order, as far as a batch has room; one that is too heavy stays alone."""
    parts: list[list[str]] = []
    room = 0
    for key, weight in weights.items():
        if weight > room:
            parts.append([])
            room = most
        parts[-1].append(key)
        room -= weight
    return parts


def _halves(keys: list[str]) -> list[list[str]]:
    middle = len(keys) // 2
    return [keys[:middle], keys[middle:]]
