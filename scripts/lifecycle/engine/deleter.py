"""Delete along a path, batch by batch, and go on after locked rows, lost connections, deadlocks and refused rows.

A locked row is waited for briefly, then left to the closing pass. A lost connection or a deadlock repeats the batch; a
COMMIT whose answer was lost is settled first. A batch that takes too long is split. A batch that the database refuses
is bisected to the row, which goes to a person, and everything else of it goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import psycopg

from scripts.lifecycle.engine import poison
from scripts.lifecycle.engine.batches import BatchTooLarge, BatchWriter, Outcome
from scripts.lifecycle.engine.gated import Context
from scripts.lifecycle.engine.loop import BatchLoop, Course, Question, Worker
from scripts.lifecycle.engine.politeness import Politeness
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.engine.windows import Window, chosen_keys
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils.errors import StoppedEarly
from scripts.utils.pseudonyms import pseudonym
from scripts.utils.retry_utils import CircuitBreaker, CircuitOpen

_PLACES = 100_000


class _WindowLocked(Exception):
    """The batch ran into its lock time-out even though it skipped locked rows."""


class Deleter(Worker):
    """Carries out one policy's deletions in one run.

    Args:
        run: The run, which holds the job's lock.
        selection: The rows that may go.
        context: Lease, script and run record.
        politeness: What is known of other sessions; its first look must have been taken.
    """

    def __init__(self, run: Run, selection: Selection, context: Context, politeness: Politeness) -> None:
        policy = selection.policy
        loop = BatchLoop(
            run,
            policy,
            context,
            politeness,
            batch_rows=run.options.batch_size or policy.batch.rows,
            counted="blobs_intended" if policy.blob else "records_deleted",
        )
        super().__init__(run, selection, loop)
        self._writer = BatchWriter(run.writer, selection, context, lambda text: pseudonym(run.settings, text))
        self._breaker = CircuitBreaker(
            f"locks of {policy.table}",
            failure_limit=Fraction(4, 5),
            counts=lambda error: isinstance(error, _WindowLocked),
        )
        looked_up = {lookup.from_table for lookup in policy.lookups}
        # Room for a row, and of each table that it looks up for the dependant that goes with it and no earlier.
        self._least = 1 + sum(reach.foreign_key.table in looked_up for reach in selection.reaches)
        self._weight = 1.0

    def close(self) -> None:
        """Give the connection back."""
        self._writer.close()

    @property
    def rows(self) -> int:
        """Rows that lately had room in a batch with their dependants, and in the time that a batch may take."""
        wanted = self._run.options.batch_size or self.loop.step.rows
        return max(1, min(wanted, int(self.loop.batch_rows / self._weight)))

    def carry_out(self, course: Course, window: Window) -> Outcome:
        """Delete what may go of the window in hand, and ask for the next one in the same round trip.

        Raises:
            StoppedEarly: The run must stop.
            PolicyFailed: Too many rows are refused, or one row takes too long.
            DatabaseUnavailable: PostgreSQL went away.
        """
        outcome = self._delete(window, course.question())
        # Where rows refer to rows of their own table, the parents of what went may go now.
        return replace(outcome, again=bool(outcome.deleted and self._selection.own_keys))

    def _delete(self, window: Window, question: Question | None) -> Outcome:
        """Delete what may go of a window, in parts where the database refuses it as a whole."""
        try:
            return self._unless_locked(window, question)
        except psycopg.Error as error:
            self.loop.bisect(
                error,
                lambda: self._keys(window),
                lambda keys: self._unless_locked(chosen_keys(self._selection, keys), None),
            )
        return Outcome(owned=True, stopped=False, deleted=0, answer=self.loop.ask(question))

    def _unless_locked(self, window: Window, question: Question | None) -> Outcome:
        try:
            return self._breaker.call(lambda: self._patiently(window, question))
        except _WindowLocked:
            self._log.warning("window_locked", effect="left for the closing pass")
        except CircuitOpen:
            raise StoppedEarly(
                "breaker_open", f"{self._policy.table} stays locked by another session: four of five batches gave up"
            ) from None
        except BatchTooLarge:
            self._in_parts(window)
        return Outcome(owned=True, stopped=False, deleted=0, answer=self.loop.ask(question))

    def _patiently(self, window: Window, question: Question | None) -> Outcome:
        """Run a batch; if it runs into its lock time-out, run it again without the locked rows.

        Raises:
            _WindowLocked: It runs into its lock time-out without them, too.
        """
        try:
            return self._surely(window, question, skip_locked=False)
        except psycopg.errors.LockNotAvailable:
            self.loop.locked = True
            self._log.info("rows_locked", effect="skipping locked rows")
        try:
            return self._surely(window, question, skip_locked=True)
        except psycopg.errors.LockNotAvailable as error:
            raise _WindowLocked from error

    def _surely(self, window: Window, question: Question | None, *, skip_locked: bool) -> Outcome:
        def batch() -> Outcome:
            return self._writer.run(
                window,
                excluded=self.loop.poison,
                most=max(self.loop.batch_rows, self._least),
                skip_locked=skip_locked,
                question=question,
                heartbeat=self.loop.heartbeat(),
                look=self.loop.look(),
            )

        return self._weighed(batch, question)

    def _weighed(self, batch: Callable[[], Outcome], question: Question | None = None) -> Outcome:
        outcome = self.loop.surely(batch, question)
        if outcome.deleted:
            self._weight = 1 + outcome.dependants / outcome.deleted
        return outcome

    def _keys(self, window: Window) -> list[str]:
        statement = sql.SQL("SELECT {} FROM {} t WHERE {} AND {}").format(
            self._selection.record.id("t"), self._selection.table, window.clause, self._selection.removable
        )
        parameters = self._selection.parameters | window.parameters
        rows = self.loop.read(lambda connection: connection.execute(statement, parameters).fetchall())
        return [key for (key,) in rows if key not in self.loop.poison]

    def _in_parts(self, window: Window) -> None:
        """Do a window in batches that have room for their rows' dependants too."""
        weights = self._weights(window)
        if weights:
            self._weight = sum(weights.values()) / len(weights)
            most = self.loop.batch_rows
            self._log.info("batch_cut", rows=len(weights), records=sum(weights.values()), most=most)
        for part in _packed(weights, self.loop.batch_rows):
            self.loop.checkpoint()
            if len(part) > 1 or weights[part[0]] <= self.loop.batch_rows or self._drain(part[0]):
                self._delete(chosen_keys(self._selection, part), None)

    def _weights(self, window: Window) -> dict[str, int]:
        """Return how many records go with each row of a window, itself included; beyond a batch's size, about."""
        selection = self._selection
        each = [
            sql.SQL("(SELECT count(*) FROM (SELECT FROM {} c WHERE {} LIMIT {}) s)").format(
                table_identifier(reach.foreign_key.table), reach.foreign_key.joins("c"), self.loop.batch_rows
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
        rows = self.loop.read(lambda connection: connection.execute(statement, parameters).fetchall())
        return {key: weight for key, weight in rows if key not in self.loop.poison}

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
            self.loop.locked = True
            self._log.info("rows_locked", effect="a row and its dependants are left for the closing pass")
            return False
        except psycopg.errors.QueryCanceled as error:
            if self.loop.batch_rows == 1:
                raise poison.too_slow(self._run, self._policy) from error
            self.loop.batch_rows = max(1, self.loop.batch_rows // 2)
            return self._drain(key)
        except psycopg.Error as error:
            if not self.loop.refusals.is_about_a_row(error):
                raise
            self.loop.hand_over(key, error)
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
        for table, place in self.loop.read(lambda connection: connection.execute(statement, parameters).fetchall()):
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
            for first in range(0, len(all_there), self.loop.batch_rows):
                self.loop.checkpoint()
                some = table, all_there[first : first + self.loop.batch_rows]
                started = time.monotonic()
                outcome = self._weighed(
                    lambda some=some: self._writer.dependants_of(  # type: ignore[misc]
                        chosen, number, some, heartbeat=self.loop.heartbeat(), look=self.loop.look()
                    )
                )
                gone += outcome.dependants
                self.loop.done(outcome, len(some[1]), time.monotonic() - started)
                self.loop.make_room()
        return gone


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
