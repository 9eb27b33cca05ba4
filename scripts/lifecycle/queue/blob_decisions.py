"""Decisions about a blob that a job could not delete. They use the same ledger as the job, ops.blob_deletions.

The store is asked between two transactions. The second one confirms the blob's end and closes the item. A process that
is killed before it leaves the item open, and an open intent that the next run of the job carries out.
"""

from __future__ import annotations

from scripts.lifecycle.blobs.blob_intents import Intent, Intents, Resolution
from scripts.lifecycle.blobs.blobs import refused, why_not_ours
from scripts.lifecycle.engine.batches import BatchWriter
from scripts.lifecycle.engine.gated import require_may_run
from scripts.lifecycle.engine.resources import blob_named_by, row_state
from scripts.lifecycle.engine.windows import chosen_keys
from scripts.lifecycle.queue.matter import ROW_GONE, DecisionFailed, Matter
from scripts.utils.blob_client import BlobCallFailed, BlobClient
from scripts.utils.db_utils import Connection
from scripts.utils.retry_utils import CircuitOpen


class BlobDecision:
    """Carries out a decision about the blob that one row names."""

    def __init__(self, matter: Matter, client: BlobClient) -> None:
        self._matter = matter
        self._client = client
        self._key = matter.item.resource_id
        self._selection = matter.selection()
        self._intents = Intents(matter.run.writer, self._selection, matter.context, only=[self._key])

    def delete(self) -> str:
        """Ask the store again to delete the blob, and close the item when it is gone."""
        intent = self._claimed()
        if isinstance(intent, str):
            return intent
        blob, pathname = self._matter.policy.blob, self._client.pathname(intent.blob)
        why_not = why_not_ours(blob, pathname) if blob else None
        if pathname is None or why_not:
            self._intents.fail(intent, why_not or "foreign_store")
            raise DecisionFailed(f"the blob was left alone: {why_not}")
        self._ask(intent, pathname)
        return self._confirmed(intent, seen=True)

    def mark_as_gone(self) -> str:
        """Close the item if the blob is gone. In another store this token cannot look: the operator's word counts."""
        name = self._matter.run.database.read(lambda connection: blob_named_by(connection, self._selection, self._key))
        pathname = self._client.pathname(name) if name else None
        # Ask before anything is written: a job that works on the same blob must find its intent unchanged.
        if pathname and self._exists(pathname):
            raise DecisionFailed("the blob was left alone: it is still there")
        intent = self._claimed()
        if isinstance(intent, str):
            return intent
        if intent.blob != name:
            raise DecisionFailed("the row names another blob now: look again")
        return self._confirmed(intent, seen=pathname is not None)

    def _claimed(self) -> Intent | str:
        """Write an intent and claim it. A text instead says why nothing was left to do; the item is closed then."""
        if settled := self._matter.behind_the_gate(self._intend):
            return settled
        claim = self._intents.claim(0, 1)
        if not claim.intents:
            why = ", ".join(claim.cancelled) or "its row is being written to"
            raise DecisionFailed(f"the blob was left alone: {why}")
        return claim.intents[0]

    def _confirmed(self, intent: Intent, *, seen: bool) -> str:
        matter = self._matter
        note = matter.work.note(matter.decision.name, matter.justification)
        vouched = {} if seen else {"seen": "not_visible"}
        self._intents.confirm([intent.id], Resolution(matter.decision.name, matter.justification, note | vouched))
        return "the blob is gone, and its row says so"

    def _intend(self, connection: Connection) -> str:
        """Write the intent. If nothing is left to do, close the item instead, and return what happened."""
        state = row_state(connection, self._selection, self._key)
        if state is None or not state.names_blob:
            self._matter.close(connection)
            return ROW_GONE if state is None else "the row names no blob any more: it was deleted meanwhile"
        writer = BatchWriter(self._matter.run.writer, self._selection, self._matter.context)
        written = writer.within(connection, chosen_keys(self._selection, [self._key]))
        require_may_run(owned=written.owned, stopped=written.stopped)
        if not written.deleted and state.why_kept:
            raise DecisionFailed(f"the blob was left alone: {state.why_kept}")
        return ""

    def _ask(self, intent: Intent, pathname: str) -> None:
        """Ask the store to delete the blob. Without an answer the intent stays open: the store may have deleted it.

        Raises:
            DecisionFailed: It is not known whether the blob is gone.
            PolicyFailed: The store refuses every call.
        """
        try:
            self._client.delete([pathname])
        except BlobCallFailed as error:
            if error.code == "not_found":
                return
            if error.retryable:
                raise _unknown(error.code) from None
            self._intents.fail(intent, error.code)
            if error.fatal:
                raise refused(error) from None
            raise DecisionFailed(f"the store refuses to delete it: {error.code}") from None
        except CircuitOpen:
            raise _unknown("too many calls failed") from None

    def _exists(self, pathname: str) -> bool:
        try:
            return self._client.exists(pathname)
        except BlobCallFailed as error:
            if error.fatal:
                raise refused(error) from None
            raise DecisionFailed(f"the store does not say whether it is there: {error.code}") from None
        except CircuitOpen:
            raise DecisionFailed("the store does not say whether it is there: too many calls failed") from None


def _unknown(code: str) -> DecisionFailed:
    return DecisionFailed(
        f"the store did not say what became of the blob ({code}): it may be gone; try again, or the next run of its job"
        " finishes it and closes the item"
    )
