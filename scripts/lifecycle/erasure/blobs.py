"""A person's blobs: deleted before the rows that name them, through the same outbox table as every other blob.

The outbox is ops.blob_deletions (docs/decisions/0008): a crash between the database and the store loses nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scripts.lifecycle.blobs.blob_intents import Intent, Intents
from scripts.lifecycle.blobs.blobs import client_for, refused
from scripts.lifecycle.engine.batches import BatchWriter
from scripts.lifecycle.engine.fragments import fragment
from scripts.lifecycle.engine.gated import Context, GatedTransaction, repeated, require_may_run
from scripts.lifecycle.engine.preflight import preflight
from scripts.lifecycle.engine.selection import Cause, Selection, store_for
from scripts.lifecycle.engine.windows import chosen_keys
from scripts.lifecycle.erasure.plan import ErasurePlan, Target
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils.blob_client import BlobCallFailed, BlobClient
from scripts.utils.blob_names import blob_name
from scripts.utils.errors import PolicyFailed
from scripts.utils.logging_utils import get_logger
from scripts.utils.pseudonyms import pseudonym
from scripts.utils.retry_utils import CircuitOpen

_RULE = "blob"


def _of_person(target: Target, parameters: dict[str, Any]) -> Cause:
    """Return the cause that selects a person's rows that name a blob, at any age; the audit keeps a pseudonym."""
    condition = fragment("({} AND {})", target.free, target.names_blob, parameters=parameters)
    return Cause(_RULE, "erasure_request:", parameters["facts"].obj, condition)


class BlobsOfPeople:
    """Deletes people's blobs in one run.

    Args:
        run: The run; it holds the job's lock.
        plan: Finds the rows of a person.
    """

    def __init__(self, run: Run, plan: ErasurePlan) -> None:
        self._run = run
        self._plan = plan
        self._client: BlobClient | None = None
        self._selections: dict[str, Selection] = {}
        self.refused: PolicyFailed | None = None
        """Set once the store has refused a call that no retry helps: this run makes no further call."""

    def close(self) -> None:
        """Close the connections to the store."""
        if self._client:
            self._client.close()

    def erase(self, policy: Policy, context: Context, parameters: dict[str, Any]) -> None:
        """Delete the blobs that a person's rows name in the policy's table; one that cannot be deleted keeps its row.

        Raises:
            PolicyFailed: The database contradicts the policy.
            StoppedEarly: The run must stop.
        """
        if self.refused:
            return
        target = self._plan.targets[policy.table]
        keys = self._keys(target, parameters)
        if not keys:
            return
        selection = self._selection(policy).because(_of_person(target, parameters))
        self._intend(selection, policy, context, keys)
        intents = Intents(self._run.writer, selection, context, only=keys)
        after: int | None = 0
        while after is not None:
            self._run.checkpoint()
            claim = intents.claim(after, len(keys))
            gone = [intent.id for intent in claim.intents if self._ask(policy, intents, intent)]
            if gone:
                intents.confirm(gone)
            after = claim.last_id

    def _selection(self, policy: Policy) -> Selection:
        if policy.name not in self._selections:
            store = store_for(policy, self._run.settings)
            self._selections[policy.name] = self._run.database.read(
                lambda connection: preflight(connection, policy, self._run.cutoff, blob_store=store)
            ).selection
        return self._selections[policy.name]

    def _keys(self, target: Target, parameters: dict[str, Any]) -> list[str]:
        """Return the keys of the person's rows that name a blob and that nothing keeps."""
        query = sql.SQL("SELECT {} FROM {} t WHERE {} AND {}").format(
            target.record.id("t"), table_identifier(target.table), target.free, target.names_blob
        )
        return [key for (key,) in self._run.database.read(lambda c: c.execute(query, parameters).fetchall())]

    def _intend(self, selection: Selection, policy: Policy, context: Context, keys: list[str]) -> None:
        """Write the intents; an intent that a killed run left is used again."""
        database, settings = self._run.writer, self._run.settings
        selection = replace(selection, pseudonymous=not selection.record.impersonal)

        def once() -> None:
            with GatedTransaction(policy.batch).opened(database) as connection:
                writer = BatchWriter(database, selection, context, pseudonym=lambda text: pseudonym(settings, text))
                written = writer.within(connection, chosen_keys(selection, keys))
                require_may_run(owned=written.owned, stopped=written.stopped)

        repeated(once, attempts=4)

    def _ask(self, policy: Policy, intents: Intents, intent: Intent) -> bool:
        """Ask the store to delete one blob.

        Returns:
            Whether the blob is gone. Without an answer the intent stays open: the store may have deleted it.
        """
        if policy.blob is None or self.refused:
            return False
        if self._client is None:
            self._client = client_for(self._run)
        name = blob_name(intent.blob)
        trouble = name.trouble(self._client.store, policy.blob.prefix)
        if name.pathname is None or trouble:
            intents.fail(intent, trouble or "bad_name")
            return False
        try:
            self._client.delete([name.pathname])
        except BlobCallFailed as error:
            if error.code == "not_found":
                return True
            get_logger().warning("blob_not_deleted", policy=policy.name, error=error.code)
            if error.fatal:
                self.refused = refused(error)
            elif not error.retryable:
                intents.fail(intent, error.code)
            return False
        except CircuitOpen:
            get_logger().warning("blob_not_deleted", policy=policy.name, error="too many calls failed")
            return False
        return True
