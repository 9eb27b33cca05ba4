"""One item with what was decided about it, on the way to be carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from psycopg.errors import LockNotAvailable

from scripts.lifecycle.engine.gated import Blocked, Context, GatedTransaction
from scripts.lifecycle.engine.preflight import preflight
from scripts.lifecycle.engine.selection import Selection, store_for
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.queue.decisions import Decision
from scripts.lifecycle.queue.work import QueueItem, Work
from scripts.utils.db_utils import Connection, is_deadlock
from scripts.utils.errors import OpsError
from scripts.utils.retry_utils import retry

ROW_GONE = "the row was gone already"


class DecisionFailed(OpsError):
    """The decision could not be carried out; the item is as it was."""

    stop_reason = "decision_failed"


@dataclass(frozen=True)
class Matter:
    """What every decision is made of."""

    run: Run
    work: Work
    item: QueueItem
    decision: Decision
    justification: str
    policy: Policy

    @property
    def context(self) -> Context:
        """Who decided: the audit's entries name the operator, and the item in place of a run."""
        return Context(None, 0, self.run.script, self.item.id, self.run.operator, policy_hash=self.run.policies.hash)

    def selection(self, policy: Policy | None = None) -> Selection:
        """Check the policy against the database, and return what it selects now.

        Raises:
            PolicyFailed: The database contradicts it.
        """
        cutoff, store = self.run.database.now(), store_for(self.policy, self.run.settings)
        return self.run.database.read(
            lambda connection: preflight(connection, policy or self.policy, cutoff, blob_store=store)
        ).selection

    def behind_the_gate(self, effect: Callable[[Connection], str]) -> str:
        """Do something in one transaction, if the item is still this operator's to decide.

        Raises:
            SomebodyWasFirst: It is not.
            Blocked: The gate could not be passed, or the audit's head not be had, in time.
        """

        def once() -> str:
            with GatedTransaction(self.policy.batch).opened(self.run.writer) as connection:
                self.work.require_mine(connection, self.item.id)
                return effect(connection)

        # Undone as a whole, so safe to repeat: a row that is being written to, or many operators at the audit's head.
        return retry(
            once,
            on=lambda error: isinstance(error, Blocked | LockNotAvailable) or is_deadlock(error),
            attempts=6,
            seconds=20.0,
        )

    def close(self, connection: Connection) -> None:
        """Close the item in the transaction that carries the decision out."""
        self.work.resolve(self.item.id, self.decision.name, self.justification, within=connection)
