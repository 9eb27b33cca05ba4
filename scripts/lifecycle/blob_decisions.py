"""Decisions about a blob that a job could not delete; they go by the same ledger as the job's own deletions.

The store is asked between two transactions. The item is closed in the one that confirms the blob's end; whoever is
killed before leaves the item as it was, and an open intent that the next run of the job carries out.
"""

from __future__ import annotations

from collections.abc import Callable

from scripts.lifecycle.batches import BatchWriter
from scripts.lifecycle.blob_intents import Intent, Intents, Resolution
from scripts.lifecycle.blobs import refused, why_not_ours
from scripts.lifecycle.gated import require_may_run
from scripts.lifecycle.matter import ROW_GONE, DecisionFailed, Matter
from scripts.lifecycle.resources import row_state
from scripts.lifecycle.windows import chosen_keys
from scripts.utils.blob_client import BlobCallFailed, BlobClient
from scripts.utils.db_utils import Connection
from scripts.utils.retry_utils import CircuitOpen


class BlobDecision:
    """What was decided about the blob that one row names."""

    def __init__(self, matter: Matter, client: BlobClient) -> None:
        self._matter = matter
        self._client = client
        self._key = matter.item.resource_id
        self._selection = matter.selection()
        self._intents = Intents(matter.run.database, self._selection, matter.context, only=self._key)

    def delete(self) -> str:
        """Ask the store once more to delete it."""

        def ask(pathname: str | None) -> str | None:
            blob = self._matter.policy.blob
            why_not = why_not_ours(blob, pathname) if blob else None
            if pathname and not why_not:
                self._client.delete([pathname])
            return why_not

        return self._carry_out(ask)

    def mark_as_gone(self) -> str:
        """Look whether it is gone; nobody can look into another store: there the operator vouches for it."""
        return self._carry_out(
            lambda pathname: "it is still there" if pathname and self._client.exists(pathname) else None
        )

    def _carry_out(self, ask: Callable[[str | None], str | None]) -> str:
        """Write an intent, ask the store, finalise the row and close the item.

        Args:
            ask: Given the pathname in our store, or None; returns why the blob is not gone, or None: it is.
        """
        if settled := self._matter.behind_the_gate(self._intend):
            return settled
        claim = self._intents.claim(0, 1)
        if not claim.intents:
            raise DecisionFailed(
                f"the blob was left alone: {', '.join(claim.cancelled) or 'its row is being written to'}"
            )
        (intent,) = claim.intents
        pathname = self._client.pathname(intent.blob)
        if why_not := self._answer(intent, ask, pathname):
            self._intents.fail(intent, why_not.replace(" ", "_"))
            raise DecisionFailed(f"the blob was left alone: {why_not}")
        matter = self._matter
        note = matter.work.note(matter.decision.name, matter.justification)
        seen = {} if pathname else {"seen": "not_visible"}
        self._intents.confirm([intent.id], Resolution(matter.decision.name, matter.justification, note | seen))
        return "the blob is gone, and its row says so"

    def _intend(self, connection: Connection) -> str:
        """Write the intent, unless there is nothing to be done any more; then close the item and say so."""
        state = row_state(connection, self._selection, self._key)
        if state is None or not state.names_blob:
            self._matter.close(connection)
            return ROW_GONE if state is None else "the row names no blob any more: it was deleted meanwhile"
        writer = BatchWriter(self._matter.run.database, self._selection, self._matter.context)
        written = writer.within(connection, chosen_keys(self._selection, [self._key]))
        require_may_run(owned=written.owned, stopped=written.stopped)
        if not written.deleted and state.why_kept:
            raise DecisionFailed(f"the blob was left alone: {state.why_kept}")
        return ""

    def _answer(self, intent: Intent, ask: Callable[[str | None], str | None], pathname: str | None) -> str | None:
        try:
            return ask(pathname)
        except BlobCallFailed as error:
            if error.fatal:
                self._intents.fail(intent, error.code)
                raise refused(error) from None
            return error.code
        except CircuitOpen:
            return "too many calls to the store failed"
