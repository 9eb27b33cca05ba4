"""The result of one policy in one run, for the run record, the closing line, the table and the metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from scripts.utils.errors import ExitCode

SlaStatus = Literal["within_sla", "warning", "breached"]
SLA_ORDER: tuple[SlaStatus, ...] = ("within_sla", "warning", "breached")


@dataclass(frozen=True)
class PolicyResult:
    """The result of one policy in one run."""

    policy: str
    status: str
    stop_reason: str
    exit_code: ExitCode
    records_deleted: int = 0
    dependants_deleted: int = 0
    """Rows of other tables that went along, or were cut off (``set_null``)."""
    records_held: int | None = None
    records_queued: int = 0
    records_remaining: int | None = None
    """None: could not be counted."""
    oldest_overdue_seconds: float | None = None
    batches: int = 0
    partitions: tuple[str, ...] = ()
    """Partitions that were dropped whole, or in a dry run would be."""
    pauses: dict[str, dict[str, float]] = field(default_factory=dict)
    """Pauses by reason: their count and their seconds."""
    by_rule: dict[str, int] = field(default_factory=dict)
    sla_status: SlaStatus = "within_sla"
    error: str | None = None


def total_pauses(results: Iterable[PolicyResult]) -> dict[str, dict[str, float]]:
    """Add up the pauses of a run's policies, by reason."""
    total: dict[str, dict[str, float]] = {}
    for result in results:
        for reason, pause in result.pauses.items():
            sums = total.setdefault(reason, {"count": 0, "seconds": 0.0})
            sums["count"] += pause["count"]
            sums["seconds"] = round(sums["seconds"] + pause["seconds"], 4)
    return total


def seconds_paused(results: Iterable[PolicyResult]) -> float:
    """Return how long the policies of a run paused, in seconds."""
    return sum(pause["seconds"] for pause in total_pauses(results).values())
