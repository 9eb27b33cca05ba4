"""The loop over one policy's batches: how many there may be, when the next one may run, and what ends them.

A worker carries a window out: a deleter by one transaction, an archiver by an archive and the transaction that seals
it. Everything else about a sequence of batches is here, once: ``--limit``, signals, budget and lock between two
batches, pauses for other sessions, the heartbeat, the progress line, what is repeated after a lost connection or a
deadlock, and the rows that are handed to a person.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from scripts.lifecycle.engine import poison
from scripts.lifecycle.engine.batches import Ambiguous, Outcome
from scripts.lifecycle.engine.gated import Blocked, Context, Statement, require_may_run
from scripts.lifecycle.engine.politeness import START_ROWS, Look, Politeness, Step
from scripts.lifecycle.jobs import runs
from scripts.lifecycle.jobs.run import Run
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection, Result, connection_lost, is_deadlock
from scripts.utils.errors import (
    DatabaseUnavailable,
    GateBusy,
    StoppedEarly,
    describe_database_error,
)
from scripts.utils.logging_utils import get_logger
from scripts.utils.retry_utils import retry
from scripts.utils.tracing import span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.lifecycle.engine.selection import Selection
    from scripts.lifecycle.engine.windows import Path, Window
    from scripts.lifecycle.policy.policies import Policy

HEARTBEAT_SECONDS = 5.0  # or a third of REDIS_LOCK_TIMEOUT, if that is less
PROGRESS_SECONDS = 10.0
PROBE_SECONDS = 300.0
RETRY_ATTEMPTS = 6
RETRY_SECONDS = 60.0

Question = tuple[sql.Composed, dict[str, Any]]


class Every:
    """Tells when an interval has passed.

    Args:
        seconds: The length of the interval.
        at_once: Whether the first interval has passed at the beginning.
    """

    def __init__(self, seconds: float, *, at_once: bool = False) -> None:
        self.seconds = seconds
        self._since = time.monotonic() - (seconds if at_once else 0.0)

    def passed(self) -> bool:
        """Tell whether the interval has passed; if it has, the next one begins."""
        now = time.monotonic()
        if now - self._since < self.seconds:
            return False
        self._since = now
        return True


class BatchLoop:
    """The state of one policy's batches in one run, and the conditions under which they follow each other.

    Args:
        run: The run; it holds the job's lock.
        policy: The policy.
        context: The lease and the run record.
        politeness: What is known of other sessions.
        batch_rows: Rows that a batch may have at most.
        counted: What a batch's rows are called in the log. The run record and the terminal count only rows that are
            gone, ``records_deleted``.
    """

    def __init__(
        self,
        run: Run,
        policy: Policy,
        context: Context,
        politeness: Politeness,
        *,
        batch_rows: int,
        counted: str = "records_deleted",
    ) -> None:
        self._run = run
        self._policy = policy
        self._context = context
        self._politeness = politeness
        self._counted = counted
        self._log = get_logger().bind(policy=policy.name)
        self._beats = Every(min(HEARTBEAT_SECONDS, run.settings.redis_lock_timeout / 3))
        self._progress = Every(PROGRESS_SECONDS)
        self._pause_lines = Every(PROGRESS_SECONDS, at_once=True)
        self.step = Step(run.options.batch_size or START_ROWS)
        """What the last batch means for the next one: its rows, and the pause before it."""
        self.batch_rows = batch_rows
        """Rows a batch at most; less, once a batch of that size has taken too long."""
        self.deleted = 0
        """Rows on which the action was carried out; of a policy about blobs, intents written."""
        self.batches = 0
        self.refusals = poison.Refusals(run, policy)
        self.handed_over = 0
        """New items on the queue that are about no row."""
        self.locked = False
        """Whether rows were left out because another session had them locked."""

    @property
    def limit_reached(self) -> bool:
        """Whether ``--limit`` allows no further row."""
        limit = self._run.options.limit
        return limit is not None and self.deleted >= limit

    @property
    def poison(self) -> list[str]:
        """The keys of the rows that were refused; a caller may add to them."""
        return self.refusals.keys

    @property
    def queued(self) -> int:
        """How many items were new on the queue."""
        return self.refusals.queued + self.handed_over

    @property
    def unlimited(self) -> bool:
        """Whether the next window may be chosen before the batch in hand is over.

        Under a limit its size depends on what the batch deletes.
        """
        return self._run.options.limit is None

    def room(self, rows: int) -> int:
        """Return how many of these rows the limit leaves room for; at least one."""
        limit = self._run.options.limit
        return max(1, rows if limit is None else min(rows, limit - self.deleted))

    def follow(self, path: Path, worker: Worker) -> None:
        """Have a worker carry out every window of a path, as far as the limit allows.

        Raises:
            StoppedEarly: The run must stop.
            PolicyFailed: The worker cannot go on, or too many rows are refused.
            DatabaseUnavailable: PostgreSQL went away.
        """
        course = Course(path, self, worker)
        while course.window is not None and not self.limit_reached:
            self.make_room()
            self._run.checkpoint()
            started = time.monotonic()
            with span("batch", self._policy.name) as facts:
                outcome = worker.carry_out(course, course.window)
                facts[self._counted] = outcome.deleted
            seconds = time.monotonic() - started
            self.done(outcome, course.rows, seconds)
            worker.tell(outcome, seconds)
            if not outcome.again:
                course.move(outcome.answer)

    def done(self, outcome: Outcome, rows: int, seconds: float) -> None:
        """Take in what a batch was like, for the next one.

        Args:
            outcome: Its answer.
            rows: About how many rows it should have had.
            seconds: How long it took, unless its answer says how long it was in other sessions' way.
        """
        self.batches += outcome.batches
        self.step = self._politeness.after(rows, seconds if outcome.seconds is None else outcome.seconds)

    def make_room(self) -> None:
        """Pause if another session or a replica needs it; a signal ends the pause at once.

        Raises:
            StoppedEarly: The run must stop.
        """
        step = self.step
        if step.reason is None:
            return
        self.step = Step(step.rows)
        started = time.monotonic()
        try:
            # Heartbeats are sent with batches, so no pause may be longer than their interval.
            self._run.pause(min(step.pause, self._beats.seconds))
        finally:
            seconds = time.monotonic() - started
            self._politeness.paused(step.reason, seconds)
            say = self._log.info if self._pause_lines.passed() else self._log.debug
            say("paused", reason=step.reason, seconds=round(seconds, 4), pauses_so_far=self._politeness.pauses)

    def checkpoint(self) -> None:
        """Stop here if the run must stop; called between two transactions.

        Raises:
            StoppedEarly: The run must stop.
        """
        self._run.checkpoint()

    def tell(self, outcome: Outcome, seconds: float) -> None:
        """Tell the terminal and the log what a batch did; the log at level INFO every ten seconds only."""
        if self._counted == "records_deleted":
            self._run.advance(self._policy.name, self.deleted)
        say = self._log.info if self._progress.passed() else self._log.debug
        say(
            "batch_completed",
            batch=self.batches,
            duration_seconds=round(seconds, 4),
            **{self._counted: outcome.deleted, f"{self._counted}_so_far": self.deleted},
        )

    def ask(self, question: Question | None) -> tuple[Any, ...] | None:
        """Ask for a path's next window in a transaction of its own.

        Raises:
            StoppedEarly: The table stays locked, even against reading.
        """
        return self.read(lambda connection: connection.execute(*question).fetchone()) if question else None

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Look at the table between two batches.

        Raises:
            StoppedEarly: It stays locked, even against reading.
            DatabaseUnavailable: The connection broke in every attempt.
        """
        with self.readable():
            return self._run.database.read(work, statement_timeout=PROBE_SECONDS)

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Turn the lock time-out of a statement that only reads into the end of the run.

        Raises:
            StoppedEarly: The table stays locked.
        """
        try:
            yield
        except psycopg.errors.LockNotAvailable:
            raise StoppedEarly(
                "breaker_open", f"{self._policy.table} stays locked by another session, even against reading"
            ) from None

    def heartbeat(self) -> Statement | None:
        """Return the statement that shows the run to be alive, for the batch to take along; None: not due yet."""
        return self.beat() if self._beats.passed() else None

    def look(self) -> Look | None:
        """Return the look at the server that the batch takes along, as its last statement; None: not due yet."""
        return self._politeness.look()

    def beat(self, *, records: int = 0, batches: int = 0) -> Statement:
        """Return the statement that shows the run to be alive, and how far it is.

        Args:
            records: Rows that go in the transaction that has the statement, and are not counted yet.
            batches: The same for batches.
        """
        return runs.heartbeat(
            self._context.run_id,
            self._run.lock,
            records=self.deleted + records if self._counted == "records_deleted" else 0,
            batches=self.batches + batches,
            pauses=self._politeness.pauses,
        )

    def surely(self, batch: Callable[[], Outcome], question: Question | None = None) -> Outcome:
        """Repeat a batch through lost connections and deadlocks, and count what it did; a lost answer is settled first.

        Args:
            batch: The transaction.
            question: The question that the batch takes along; asked again where its answer was lost.

        Raises:
            StoppedEarly: The gate stays closed, the lease is lost, or the stop switch is on.
            DatabaseUnavailable: The connection broke in every attempt.
            psycopg.Error: What else the server refused; nothing of the batch happened.
        """

        def once() -> Outcome:
            try:
                return batch()
            except Ambiguous as ambiguous:
                settled = self._settled(ambiguous)
                if settled is None:
                    raise
                self._log.info("commit_settled", records_deleted=settled)
                return Outcome(owned=True, stopped=False, deleted=settled, answer=self.ask(question))

        try:
            outcome = retry(
                once,
                on=lambda error: isinstance(error, Ambiguous | Blocked) or is_deadlock(error),
                attempts=RETRY_ATTEMPTS,
                seconds=RETRY_SECONDS,
                before_wait=self.before_retry,
            )
        except Blocked as blocked:
            raise blocked.stop() from None
        except Ambiguous as error:
            raise DatabaseUnavailable("the connection to PostgreSQL broke in every attempt at a batch") from error
        self._politeness.learn(outcome.looked)
        require_may_run(owned=outcome.owned, stopped=outcome.stopped)
        self.deleted += outcome.deleted
        return outcome

    def before_retry(self, attempt: int, error: BaseException) -> None:
        """Say that a batch is repeated, unless the run must stop: nothing of the batch happened.

        Raises:
            StoppedEarly: The run must stop.
        """
        known = error.__cause__ if isinstance(error, Ambiguous) and error.__cause__ else error
        self._log.warning("batch_retry", attempt=attempt, error=type(known).__name__)
        self._run.checkpoint()

    def _settled(self, ambiguous: Ambiguous) -> int | None:
        """Return how many rows a batch with a lost answer deleted; None: nothing of it happened."""
        try:
            return retry(
                ambiguous.settle,
                on=lambda error: connection_lost(error) or is_deadlock(error),
                attempts=RETRY_ATTEMPTS,
                seconds=RETRY_SECONDS,
            )
        except GateBusy as busy:
            raise StoppedEarly(
                busy.stop_reason, f"the connection broke in a batch, and what became of it is not known yet: {busy}"
            ) from busy

    def hand_over(self, key: str, error: psycopg.Error) -> None:
        """Hand a row that the database refuses to give up to a person.

        Raises:
            PolicyFailed: Too many rows are refused, or a trigger refuses one as the other.
        """
        self.refusals.hand_over(key, error, gone=self.deleted)

    def bisect(
        self, error: psycopg.Error, keys: Callable[[], list[str]], carry_out: Callable[[list[str]], object]
    ) -> None:
        """Carry a refused batch out in parts, down to the rows that the database refuses, which go to a person.

        A batch that took too long is halved as well, and the following batches are made smaller.

        Args:
            error: Why the database refused the batch.
            keys: Returns the batch's rows.
            carry_out: Carries out some of them, and raises what the database raises.

        Raises:
            StoppedEarly: The run must stop.
            PolicyFailed: One row alone takes too long, too many rows are refused, or a trigger refuses them all.
            psycopg.Error: A refusal that is about neither a row nor the time.
        """
        if self.refusals.is_about_a_row(error):
            self._log.warning("batch_refused", error=describe_database_error(error), effect="bisecting to the row")
        elif not isinstance(error, psycopg.errors.QueryCanceled):
            raise error
        parts = self._halves(keys(), error)
        while parts:
            self._run.checkpoint()
            part = parts.pop(0)
            try:
                carry_out(part)
            except psycopg.Error as refusal:
                parts = [*self._halves(part, refusal), *parts]

    def _halves(self, keys: list[str], error: psycopg.Error) -> list[list[str]]:
        """Return the halves of a refused batch that are to be tried; none of a single row, which is handed over."""
        if isinstance(error, psycopg.errors.QueryCanceled):
            if len(keys) <= 1:
                raise poison.too_slow(self._run, self._policy) from error
            self._log.warning("batch_timed_out", rows=len(keys), effect="splitting it")
            self.batch_rows = min(self.batch_rows, len(keys) // 2)
            return [keys[: len(keys) // 2], keys[len(keys) // 2 :]]
        if not self.refusals.is_about_a_row(error):
            raise error
        if len(keys) <= 1:
            for key in keys:
                self.hand_over(key, error)
            return []
        # Every other row, so the first rows that are found lie far from each other: a trigger that refuses one as the
        # other refuses more than a stretch of the table.
        return [keys[::2], keys[1::2]]


class Worker(ABC):
    """Carries out the windows of a policy's paths in one run.

    Args:
        run: The run; it holds the job's lock.
        selection: The rows that may go.
        loop: The conditions of its batches.
    """

    def __init__(self, run: Run, selection: Selection, loop: BatchLoop) -> None:
        self._run = run
        self._selection = selection
        self._policy = selection.policy
        self._log = get_logger().bind(policy=selection.policy.name)
        self.loop = loop

    @property
    @abstractmethod
    def rows(self) -> int:
        """Rows that the next window should have, whatever the limit says."""

    @abstractmethod
    def carry_out(self, course: Course, window: Window) -> Outcome:
        """Carry out the window in hand.

        Args:
            course: Where it stands; tells the window after it, and the question for it.
            window: The window in hand.

        Raises:
            StoppedEarly: The run must stop.
            PolicyFailed: The worker cannot go on, or too many rows are refused.
            DatabaseUnavailable: PostgreSQL went away.
        """

    def tell(self, outcome: Outcome, seconds: float) -> None:
        """Tell what a window's batch did, and how many seconds it took."""
        self.loop.tell(outcome, seconds)

    def follow(self, path: Path) -> None:
        """Carry out every window of a path.

        Raises:
            StoppedEarly: The run must stop.
            PolicyFailed: The worker cannot go on, or too many rows are refused.
            DatabaseUnavailable: PostgreSQL went away.
        """
        self.loop.follow(path, self)

    @abstractmethod
    def close(self) -> None:
        """Give the connections back."""


class Course:
    """A path that is being followed: the window in hand, and the one after it.

    The next window may be asked for by the batch in hand in its own round trip (:meth:`question`), before the batch
    (:meth:`ahead`), or after it.

    Args:
        path: The path.
        loop: Asks the questions.
        worker: Says how many rows a window should have.
    """

    def __init__(self, path: Path, loop: BatchLoop, worker: Worker) -> None:
        self._path = path
        self._loop = loop
        self._worker = worker
        self._asked: int | None = None
        self._ahead: tuple[Window | None, int] | None = None
        self.window, self.rows = self._following(None)
        """The window in hand, or None at the end; and about how many rows it should have."""

    def question(self) -> Question | None:
        """Return the question for the next window, to be asked in the round trip of a batch that is certain to run."""
        if not self._loop.unlimited:
            return None
        self._asked = self._room()
        return self._path.question(self.window, self._asked)

    def ahead(self) -> Window | None:
        """Ask for the next window now; None: the path ends, or the batch in hand must be over first."""
        if not self._loop.unlimited:
            return None
        self._ahead = self._ahead or self._following(self.window)
        return self._ahead[0]

    def move(self, answer: tuple[Any, ...] | None = None) -> None:
        """Go on to the next window.

        Args:
            answer: The answer to :meth:`question`, where a batch has asked it.
        """
        if self._ahead:
            following = self._ahead
        elif self._asked is not None:
            following = self._path.following(self.window, answer, self._asked), self._asked
        else:
            following = self._following(self.window)
        self.window, self.rows = following
        self._asked = self._ahead = None

    def _following(self, window: Window | None) -> tuple[Window | None, int]:
        rows = self._room()
        return self._path.following(window, self._loop.ask(self._path.question(window, rows)), rows), rows

    def _room(self) -> int:
        return self._loop.room(self._worker.rows)
