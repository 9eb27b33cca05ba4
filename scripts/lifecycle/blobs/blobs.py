"""Deletes the blobs of claimed intents: asks the store, then confirms what it has deleted.

No transaction is open while the store is asked. A call that keeps failing is halved until the blob is known that the
store will not delete. That blob goes to a person, and this run does not ask for it again.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from uuid import uuid4

from scripts.lifecycle.blobs.blob_intents import Claim, Intent, Intents
from scripts.lifecycle.engine.gated import Context, Statement
from scripts.lifecycle.engine.loop import PROGRESS_SECONDS, Every
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.jobs import runs
from scripts.lifecycle.jobs.handover import Item, raise_item
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.sections import Blob
from scripts.utils.blob_client import BlobCallFailed, BlobClient
from scripts.utils.blob_names import blob_name
from scripts.utils.blob_token import store_of
from scripts.utils.errors import PolicyFailed, StoppedEarly
from scripts.utils.logging_utils import get_logger
from scripts.utils.rate_limit import SharedRateLimit
from scripts.utils.retry_utils import CircuitBreaker, CircuitOpen

# The share of the last 50 calls that may fail before the circuit breaker opens.
_FAILURE_LIMIT = Fraction(27, 50)

# For each name: None, the blob is gone; a text, the store's error code. A name that is missing: not known.
Outcomes = dict[str, str | None]


def client_for(run: Run) -> BlobClient:
    """Return a client of the store; its waits end when the run must stop.

    Raises:
        Misconfigured: There is no token.
    """
    return BlobClient(
        run.settings,
        breaker=CircuitBreaker(
            "Vercel Blob",
            failure_limit=_FAILURE_LIMIT,
            counts=lambda error: isinstance(error, BlobCallFailed) and error.retryable,
        ),
        limit=SharedRateLimit(
            run.settings.redis_url.get_secret_value(),
            name=f"blob:{store_of(run.settings)}",
            per_minute=run.settings.blob_rate_limit_per_minute,
        ),
        pause=run.pause,
    )


def refused(error: BlobCallFailed) -> PolicyFailed:
    """Return the error that tells an operator that the store refuses every call: token or store is wrong."""
    return PolicyFailed(
        "blob_store_refused",
        f"Vercel Blob refuses every call ({error.code}): check BLOB_READ_WRITE_TOKEN and the store, then run again",
    )


def breaker_open() -> StoppedEarly:
    """Return the error that tells an operator that too many calls failed."""
    return StoppedEarly("breaker_open", "more than half of the last 50 calls to Vercel Blob failed: run again later")


class BlobRemoval:
    """Deletes one policy's blobs in one run.

    Args:
        run: The run; it holds the job's lock.
        selection: What the policy selects.
        context: The lease and the run record.
        rule: Carry out the intents of this rule alone; None: of all rules.

    Raises:
        ValueError: The policy is not about blobs.
    """

    def __init__(self, run: Run, selection: Selection, context: Context, *, rule: str | None = None) -> None:
        policy = selection.policy
        if policy.blob is None:
            raise ValueError(f"policy {policy.name} has no blobs")
        self._run = run
        self._policy = policy
        self._blob: Blob = policy.blob
        self._context = context
        self._log = get_logger().bind(policy=policy.name)
        self._intents = Intents(run.writer, selection, context, rule=rule)
        self._client = client_for(run)
        self._call_size = min(run.settings.blob_batch_size, run.settings.blob_rate_limit_per_minute)
        self._progress = Every(PROGRESS_SECONDS)
        self.removed = 0
        self.rounds = 0
        self.queued = 0
        self.failed: list[str] = []
        """Keys of the rows whose blob the store will not delete."""
        self.unknown = 0
        """Blobs that may or may not be gone: the store did not answer."""
        self.locked = 0

    def close(self) -> None:
        """Close the connections to the store."""
        self._client.close()

    def drain(self) -> None:
        """Delete every blob that has an open intent, those of earlier runs first.

        Raises:
            StoppedEarly: The run must stop, or too many calls fail.
            PolicyFailed: The store refuses token or store, or refuses to delete more blobs than ``max_poison``.
        """
        after: int | None = 0
        with ThreadPoolExecutor(self._run.settings.blob_concurrency, thread_name_prefix="blob") as pool:
            while after is not None and self._room():
                self._run.checkpoint()
                started = time.monotonic()
                claim = self._intents.claim(after, self._room(), self._heartbeat())
                after = claim.last_id
                self.locked += claim.locked
                if claim.intents:
                    self._carry_out(pool, claim.intents)
                self.rounds += 1
                self._tell(claim, time.monotonic() - started)

    def _tell(self, claim: Claim, seconds: float) -> None:
        self._run.advance(self._policy.name, self.removed)
        say = self._log.info if self._progress.passed() or not claim.intents else self._log.debug
        say(
            "blobs_removed",
            records_deleted=self.removed,
            cancelled=len(claim.cancelled),
            locked=claim.locked,
            duration_seconds=round(seconds, 4),
        )

    def _room(self) -> int:
        rows = self._call_size * self._run.settings.blob_concurrency
        limit = self._run.options.limit
        return rows if limit is None else min(rows, limit - self.removed - len(self.failed))

    def _heartbeat(self) -> Statement:
        return runs.heartbeat(
            self._context.run_id,
            self._run.lock,
            records=self.removed,
            batches=self.rounds,
            pauses={},
        )

    def _carry_out(self, pool: ThreadPoolExecutor, intents: list[Intent]) -> None:
        outcomes: Outcomes = {}
        stops: list[BaseException] = []
        pathnames = self._pathnames(intents, outcomes)
        names = list(dict.fromkeys(pathnames.values()))
        calls = [names[start : start + self._call_size] for start in range(0, len(names), self._call_size)]
        # Each worker gets a copy of the context, so that its log lines carry the correlation id.
        futures: list[Future[Outcomes]] = [
            pool.submit(contextvars.copy_context().run, self._remove, call) for call in calls
        ]
        answers: Outcomes = {}
        for future in futures:
            try:
                answers |= future.result()
            except (BlobCallFailed, CircuitOpen, StoppedEarly) as stop:
                stops.append(stop)
        outcomes |= {blob: answers[pathname] for blob, pathname in pathnames.items() if pathname in answers}
        self._settle(intents, outcomes)
        for why in stops:
            if isinstance(why, BlobCallFailed):
                raise refused(why) from None
            raise breaker_open() if isinstance(why, CircuitOpen) else why

    def _pathnames(self, intents: list[Intent], outcomes: Outcomes) -> dict[str, str]:
        """Return the pathname of each blob that the store may be asked to delete; note the others as failed.

        The store gets pathnames only. It refuses a whole call that holds a URL of the other kind, public or private.
        """
        pathnames: dict[str, str] = {}
        for intent in intents:
            name = blob_name(intent.blob)
            trouble = name.trouble(self._client.store, self._blob.prefix)
            if name.pathname is None or trouble:
                outcomes[intent.blob] = trouble
            else:
                pathnames[intent.blob] = name.pathname
        return pathnames

    def _settle(self, intents: list[Intent], outcomes: Outcomes) -> None:
        gone = [intent.id for intent in intents if outcomes.get(intent.blob, "unknown") is None]
        if gone:
            self.removed += self._intents.confirm(gone)
        for intent in intents:
            if intent.blob not in outcomes:
                self.unknown += 1
            elif (code := outcomes[intent.blob]) is not None:
                self._hand_over(intent, code)
        if len(self.failed) > self._policy.max_poison:
            raise PolicyFailed(
                "too_many_poison_rows",
                f"policy {self._policy.name} stopped: {len(self.failed)} blobs could not be deleted, max_poison is"
                f" {self._policy.max_poison}; look at their items on the queue",
            )

    def _hand_over(self, intent: Intent, code: str) -> None:
        self.failed.append(intent.resource_id)
        self._log.warning("blob_not_deleted", resource_id=intent.said or intent.resource_id, error=code)
        item = Item(
            item_type=self._blob.item_type,
            resource_type=self._policy.table,
            priority=self._blob.priority,
            reason="the store does not delete this blob",
            raised_by=f"system:{self._run.script}",
            context={"policy": self._policy.name, "error": code},
        )
        self.queued += raise_item(self._run.writer, self._run.settings, item, intent.resource_id)
        self._intents.fail(intent, code)

    def _remove(self, names: Sequence[str]) -> Outcomes:
        """Delete the blobs of one call, in a worker thread.

        Raises:
            BlobCallFailed: The store refuses every call: token or store is wrong.
        """
        try:
            self._client.delete(names)
        except BlobCallFailed as error:
            if error.fatal:
                raise
            return self._isolate(names, error)
        return dict.fromkeys(names)

    def _isolate(self, names: Sequence[str], error: BlobCallFailed) -> Outcomes:
        """Repeat the halves of a call that failed, down to the blobs for which it fails.

        Raises:
            BlobCallFailed: The store refuses every call: token or store is wrong.
        """
        if not self._store_deletes():
            return {}
        if len(names) == 1:
            return {names[0]: None if error.code == "not_found" else error.code}
        middle = len(names) // 2
        outcomes: Outcomes = {}
        for half in (names[:middle], names[middle:]):
            try:
                # Not counted by the circuit breaker: these calls fail because of a blob, and again at each level.
                self._client.delete(half, attempts=2 if len(half) == 1 else 1, counted=False)
                outcomes |= dict.fromkeys(half)
            except BlobCallFailed as failure:
                if failure.fatal:
                    raise
                outcomes |= self._isolate(half, failure)
        return outcomes

    def _store_deletes(self) -> bool:
        """Ask the store to delete a blob that never existed: if that fails too, the store is at fault and no blob.

        Raises:
            BlobCallFailed: The store refuses every call: token or store is wrong.
        """
        try:
            self._client.delete([f"{self._blob.prefix}never-there-{uuid4()}"])
        except BlobCallFailed as error:
            if error.fatal:
                raise
            return False
        return True
