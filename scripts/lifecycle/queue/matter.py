"""An item together with the decision that is being carried out."""

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
    """The decision could not be carried out; the item is unchanged."""

    stop_reason = "decision_failed"


@dataclass(frozen=True)
class Matter:
    """What every decision needs: the run, the item, the decision, the justification."""

    run: Run
    work: Work
    item: QueueItem
    decision: Decision
    justification: str
    policy: Policy

    @property
    def context(self) -> Context:
        """The context of the audit entries: the operator as the actor, and the item's id in place of a run's."""
        return Context(None, 0, self.run.script, self.item.id, self.run.operator, policy_hash=self.run.policies.hash)

    def selection(self, policy: Policy | None = None) -> Selection:
        """Check the policy against the database, and return its selection at the present moment.

        Raises:
            PolicyFailed: The database contradicts the policy.
        """
        cutoff, store = self.run.database.now(), store_for(self.policy, self.run.settings)
        return self.run.database.read(
            lambda connection: preflight(connection, policy or self.policy, cutoff, blob_store=store)
        ).selection

    def behind_the_gate(self, effect: Callable[[Connection], str]) -> str:
        """Run ``effect`` in one transaction behind the gate, if this operator still has the item.

        Raises:
            SomebodyWasFirst: Another operator has the item, or it is resolved.
            Blocked: The gate was closed, or the head of the audit was locked, for too long.
        """

        def once() -> str:
            with GatedTransaction(self.policy.batch).opened(self.run.writer) as connection:
                self.work.require_mine(connection, self.item.id)
                return effect(connection)

        # The transaction rolls back as a whole, so it can be repeated after a lock timeout or a deadlock.
        return retry(
            once,
            on=lambda error: isinstance(error, Blocked | LockNotAvailable) or is_deadlock(error),
            attempts=6,
            seconds=20.0,
        )

    def close(self, connection: Connection) -> None:
        """Close the item in the transaction that carries the decision out."""
        self.work.resolve(self.item.id, self.decision.name, self.justification, within=connection)
