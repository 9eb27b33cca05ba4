"""What one policy came to in one run: for the run record, the closing line, the table and the metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from scripts.utils.errors import ExitCode

SlaStatus = Literal["within_sla", "warning", "breached"]
SLA_ORDER: tuple[SlaStatus, ...] = ("within_sla", "warning", "breached")


@dataclass(frozen=True)
class PolicyResult:
    """What one policy came to in one run."""

    policy: str
    status: str
    stop_reason: str
    exit_code: ExitCode
    records_deleted: int = 0
    records_held: int | None = None
    records_queued: int = 0
    records_remaining: int | None = None
    """None: could not be counted."""
    oldest_overdue_seconds: float | None = None
    batches: int = 0
    by_rule: dict[str, int] = field(default_factory=dict)
    sla_status: SlaStatus = "within_sla"
    error: str | None = None
