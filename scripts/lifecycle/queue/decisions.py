"""Which decisions an item of the manual-resolution queue allows, by its type.

The policy file (``decisions:``) lists the decisions about the application's rows. The suite itself has those about
blobs, foreign keys and legal holds. Every item can be escalated and deferred.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.lifecycle.policy.remedies import Remedy
from scripts.lifecycle.queue.work import QueueItem
from scripts.utils.errors import Misconfigured


class Effect(Enum):
    """What a decision does besides closing the item."""

    ESCALATE = auto()
    DEFER = auto()
    NOTE = auto()
    REMEDY = auto()
    """The row is deleted or changed, as the policy file says."""
    PURGE_ROW = auto()
    PURGE_WITH_DEPENDANTS = auto()
    COUNT_AGAIN = auto()
    DELETE_BLOB = auto()
    BLOB_GONE = auto()
    BLOB_NOT_OURS = auto()
    HOLD = auto()
    RELEASE_HOLD = auto()


@dataclass(frozen=True)
class Decision:
    """One decision that a person may take."""

    name: str
    """The code, for the audit and for ``--decision``."""
    label: str
    effect: Effect
    remedy: Remedy | None = None

    @property
    def closes(self) -> bool:
        """Whether the decision closes the item; it needs a justification then."""
        return self.effect not in (Effect.ESCALATE, Effect.DEFER)

    @property
    def needs_until(self) -> bool:
        """Whether the decision needs a moment (``--until``)."""
        return self.effect in (Effect.DEFER, Effect.HOLD)


ESCALATE = Decision("escalate", "ask for somebody else's decision", Effect.ESCALATE)
DEFER = Decision("defer", "put it off until a day", Effect.DEFER)

_SETTLED = Decision("settled", "it is settled: only note that", Effect.NOTE)
_COUNT_AGAIN = Decision("retry", "look again whether anything is still in the way", Effect.COUNT_AGAIN)
_PURGE = Decision("retry", "delete the row now", Effect.PURGE_ROW)
_OF_BLOBS = (
    Decision("retry", "delete the blob now", Effect.DELETE_BLOB),
    Decision("gone", "it is gone: look, and mark it so", Effect.BLOB_GONE),
    Decision("not_ours", "it is not this policy's to delete: leave it, and clear the row", Effect.BLOB_NOT_OURS),
)
_OF_ROWS = {
    "foreign_key_violation": (
        _PURGE,
        Decision("delete_dependants", "delete the rows that refer to it, and then it", Effect.PURGE_WITH_DEPENDANTS),
    ),
    "row_deletion_failed": (_PURGE,),
    "retention_exception": (
        Decision("keep", "keep the row under a legal hold until a day", Effect.HOLD),
        Decision("release", "let its period rule again, and end the holds on the row", Effect.RELEASE_HOLD),
    ),
}
_MAKING_ROWS_GO = ("foreign_key_violation", "row_deletion_failed")


def policy_of(policies: PolicySet, item: QueueItem) -> Policy | None:
    """Return the policy of an item's resource: the one that its context names, or the one that raises its type."""
    mine = [policy for policy in policies.policies.values() if policy.table == item.resource_type]
    named = item.context.get("policy")

    def distance(policy: Policy) -> int:
        knows = item.item_type in policy.decisions or bool(policy.blob and policy.blob.item_type == item.item_type)
        return 0 if policy.name == named else 1 if knows else 2

    return min(mine, key=distance, default=None)


def offered(policies: PolicySet, item: QueueItem) -> list[Decision]:
    """Return the decisions that an item allows, in the order in which they are shown."""
    policy = policy_of(policies, item)
    named = policy.decisions.get(item.item_type, {}) if policy else {}
    found = [Decision(name, remedy.label, Effect.REMEDY, remedy) for name, remedy in named.items()]
    if policy and item.resource_id == policy.name:
        found.append(_COUNT_AGAIN)
    elif policy and policy.blob and policy.blob.item_type == item.item_type:
        found += _OF_BLOBS
    elif policy and policy.archive and item.item_type in _MAKING_ROWS_GO:
        pass  # only the job may delete a row that must be archived first
    elif policy:
        found += _OF_ROWS.get(item.item_type, ())
    always = [DEFER] if item.status == "escalated" else [DEFER, ESCALATE]
    return [*(found or [_SETTLED]), *always]


def require_offered(policies: PolicySet, item: QueueItem, name: str) -> Decision:
    """Return the decision of this name.

    Raises:
        Misconfigured: An item of this type does not allow it.
    """
    found = offered(policies, item)
    for decision in found:
        if decision.name == name:
            return decision
    raise Misconfigured(f"--decision {name}: for {item.item_type} it is one of {', '.join(d.name for d in found)}")
