"""Carries out an operator's decision. Afterwards the item is either unchanged, or decided and closed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime

import psycopg

from scripts.lifecycle.blobs.blobs import client_for
from scripts.lifecycle.engine.batches import BatchTooLarge
from scripts.lifecycle.engine.gated import Blocked
from scripts.lifecycle.engine.poison import is_about_a_row
from scripts.lifecycle.jobs import stop_switch
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.queue.blob_decisions import BlobDecision
from scripts.lifecycle.queue.decisions import Decision, Effect, policy_of
from scripts.lifecycle.queue.matter import DecisionFailed, Matter
from scripts.lifecycle.queue.row_decisions import RowDecision
from scripts.lifecycle.queue.work import QueueItem, Work
from scripts.utils.blob_client import BlobClient
from scripts.utils.errors import GateBusy, Misconfigured, PolicyFailed, describe_database_error


class Desk:
    """The decisions of one operator.

    Args:
        run: The command's run; its operator is the actor.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.work = Work(run.database, run.settings, run.operator)
        self._open = ExitStack()
        self._client: BlobClient | None = None

    def close(self) -> None:
        """Close the connections to the store."""
        self._open.close()

    @property
    def client(self) -> BlobClient:
        """The client of the blob store, made at its first use.

        Raises:
            Misconfigured: BLOB_READ_WRITE_TOKEN is not set.
        """
        if self._client is None:
            self._client = client_for(self._run)
            self._open.callback(self._client.close)
        return self._client

    def decide(self, item: QueueItem, decision: Decision, justification: str, until: datetime | None = None) -> str:
        """Carry a decision out, and close the item if the decision closes it.

        Args:
            item: The item as the operator saw it.
            decision: One of the decisions that the item allows.
            justification: The operator's reason; it is kept on the item.
            until: The end of a deferral or a hold, time-zone aware; None where the decision needs none.

        Returns:
            What happened, as a text for a person.

        Raises:
            DecisionFailed: Something stands in the way; the item is unchanged.
            SomebodyWasFirst: Another operator has the item, or it is resolved.
            Misconfigured: The decision needs something that is missing.
            SwitchedOff: The stop switch is on.
        """
        if decision.needs_until and until is None:
            raise Misconfigured(f"the decision {decision.name} needs a day: --until")
        if decision.effect is Effect.ESCALATE:
            self.work.escalate(item.id)
            return "escalated"
        if decision.effect is Effect.DEFER and until:
            self.work.defer(item.id, until)
            return f"put off until {until:%Y-%m-%d %H:%M} UTC"
        self.work.note(
            decision.name, justification
        )  # check first: a decision without a valid justification must do nothing
        stop_switch.refuse_if_on(self._run.database, self._run.script)
        if decision.effect is Effect.NOTE:
            self.work.resolve(item.id, decision.name, justification)
            return "noted"
        with _naming_what_is_in_the_way():
            return self._carry_out(item, decision, justification, until)

    def _carry_out(self, item: QueueItem, decision: Decision, justification: str, until: datetime | None) -> str:
        policy = policy_of(self._run.policies, item)
        if policy is None:
            raise DecisionFailed(f"no policy knows the table {item.resource_type}")
        matter = Matter(self._run, self.work, item, decision, justification, policy)
        rows = RowDecision(matter)
        effects: dict[Effect, Callable[[], str]] = {
            Effect.REMEDY: rows.remedy,
            Effect.PURGE_ROW: rows.purge,
            Effect.PURGE_WITH_DEPENDANTS: rows.purge_with_dependants,
            Effect.COUNT_AGAIN: rows.count_again,
            Effect.HOLD: lambda: rows.hold(until),
            Effect.RELEASE_HOLD: rows.release_hold,
            Effect.DELETE_BLOB: lambda: BlobDecision(matter, self.client).delete(),
            Effect.BLOB_GONE: lambda: BlobDecision(matter, self.client).mark_as_gone(),
            Effect.BLOB_NOT_OURS: lambda: BlobDecision(matter, self.client).leave_alone(),
        }
        return effects[decision.effect]()


@contextmanager
def _naming_what_is_in_the_way() -> Iterator[None]:
    try:
        yield
    except (PolicyFailed, GateBusy) as error:
        raise DecisionFailed(str(error)) from None
    except BatchTooLarge:
        raise DecisionFailed(
            "more rows refer to it than one batch of its policy may have (batch.rows): delete those first, in batches"
            " of their own, or raise batch.rows"
        ) from None
    except Blocked as blocked:
        raise DecisionFailed(f"{blocked.meaning}; then try again") from None
    except psycopg.errors.LockNotAvailable:
        raise DecisionFailed("somebody else is writing to that row right now: try again") from None
    except (
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.UndefinedColumn,
        psycopg.errors.UndefinedTable,
    ) as error:
        raise DecisionFailed(
            f"this role may not do that, or it is not there ({describe_database_error(error)}): look at decisions: and"
            " dependants: in the policy file, then run backend/migrate.py --grants with it"
        ) from None
    except psycopg.Error as error:
        if not is_about_a_row(error):
            raise
        raise DecisionFailed(f"the database refuses: {describe_database_error(error)}") from None
