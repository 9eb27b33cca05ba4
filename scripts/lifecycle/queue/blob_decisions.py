"""Decisions about a blob that a job could not delete. They use the same ledger as the job, ops.blob_deletions.

The store is asked between two transactions. The second one confirms the blob's end and closes the item. A process that
is killed before it leaves the item open, and an open intent that the next run of the job carries out.
"""

from __future__ import annotations

from dataclasses import replace

from scripts.lifecycle.audit import audit
from scripts.lifecycle.blobs.blob_intents import Intent, Intents, Resolution
from scripts.lifecycle.blobs.blobs import refused
from scripts.lifecycle.engine.batches import BatchWriter
from scripts.lifecycle.engine.gated import require_may_run
from scripts.lifecycle.engine.resources import blob_named_by, row_state
from scripts.lifecycle.engine.windows import chosen_keys
from scripts.lifecycle.queue.matter import ROW_GONE, DecisionFailed, Matter
from scripts.utils import composing as sql
from scripts.utils.blob_client import BlobCallFailed, BlobClient
from scripts.utils.blob_names import blob_name
from scripts.utils.db_utils import Connection
from scripts.utils.pseudonyms import pseudonym
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
        """Ask the store again to delete the blob, and close the item when it is gone.

        Raises:
            DecisionFailed: The policy must not delete the blob, or the store did not delete it.
        """
        intent = self._claimed()
        if isinstance(intent, str):
            return intent
        name = blob_name(intent.blob)
        trouble = name.trouble(self._client.store, self._matter.policy.blob.prefix if self._matter.policy.blob else "")
        if name.pathname is None or trouble:
            self._intents.fail(intent, trouble or "bad_name")
            raise DecisionFailed(f"the blob was left alone: {trouble}")
        self._ask(intent, name.pathname)
        return self._confirmed(intent, seen=True)

    def mark_as_gone(self) -> str:
        """Close the item if the blob is gone. In another store this token cannot look: the operator's word counts.

        Raises:
            DecisionFailed: The blob is still there, or the row names another blob now.
        """
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

    def leave_alone(self) -> str:
        """Clear the row and leave the blob where it is: the policy must not delete it, and no run looks at it again.

        The audit says ``blob_left_alone``, never that something was deleted, and no moment of deletion is set.

        Raises:
            DecisionFailed: The blob is one that the policy deletes, or something keeps the row.
        """
        return self._matter.behind_the_gate(self._cleared)

    def _cleared(self, connection: Connection) -> str:
        matter, blob = self._matter, self._matter.policy.blob
        state = row_state(connection, self._selection, self._key)
        name = blob_named_by(connection, self._selection, self._key)
        if blob is None or state is None or name is None:
            matter.close(connection)
            return ROW_GONE if state is None else "the row names no blob any more"
        trouble = blob_name(name).trouble(self._client.store, blob.prefix)
        if trouble is None:
            raise DecisionFailed(
                "the blob lies in this store and below the policy's prefix: delete it, or mark it gone"
            )
        if state.held:
            raise DecisionFailed(f"the row was left alone: {state.why_kept}")
        column = sql.Identifier(blob.column)
        cleared = connection.execute(
            sql.SQL("UPDATE {} t SET {} = {} WHERE {} AND t.{} = %(name)s").format(
                self._selection.table,
                column,
                sql.Literal(blob.cleared),
                self._selection.record.is_("t", sql.Placeholder("row_key")),
                column,
            ),
            {"row_key": self._key, "name": name},
        )
        if not cleared.rowcount:
            raise DecisionFailed("the row names another blob now: look again")
        audit.append(
            connection,
            actor=f"operator:{matter.run.operator}",
            action="blob_left_alone",
            resource_type=matter.policy.table,
            resource_ids=[self._key if state.nameable else pseudonym(matter.run.settings, self._key)],
            reason=f"decision:{matter.item.item_type}/{matter.decision.name}",
            run_id=matter.item.id,
            metadata={"error": trouble},
        )
        matter.close(connection)
        return "the row names no blob any more, and the blob was left where it is"

    def _claimed(self) -> Intent | str:
        """Write an intent and claim it. A text instead says why nothing was left to do; the item is closed then.

        Raises:
            DecisionFailed: Something keeps the blob, or its row is being written to.
        """
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
        """Write the intent. If nothing is left to do, close the item instead, and return what happened.

        Raises:
            DecisionFailed: Something keeps the row.
        """
        state = row_state(connection, self._selection, self._key)
        if state is None or not state.names_blob:
            self._matter.close(connection)
            return ROW_GONE if state is None else "the row names no blob any more: it was deleted meanwhile"
        settings = self._matter.run.settings
        selection = replace(self._selection, pseudonymous=not state.nameable)
        writer = BatchWriter(
            self._matter.run.writer, selection, self._matter.context, pseudonym=lambda text: pseudonym(settings, text)
        )
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
