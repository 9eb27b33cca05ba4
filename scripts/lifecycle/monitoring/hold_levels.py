"""Warns of legal holds that are about to expire: once a hold has ended, the next run deletes what it kept."""

from __future__ import annotations

from datetime import datetime

from scripts.lifecycle.engine import holds
from scripts.lifecycle.monitoring.alerts import Alert, AlertKind

SCOPE = "hold:"
"""The beginning of every key that the monitor's view of holds covers."""


def hold_alerts(ending: list[holds.Hold], now: datetime) -> list[Alert]:
    """Return a warning for each hold that ends soon; it names neither the reason, the person nor the row.

    Args:
        ending: What :func:`holds.ending` found.
        now: The database's now.
    """
    return [
        Alert(
            f"{SCOPE}{hold.id}:ends",
            "warning",
            f"a legal hold {hold.subject} ends on {hold.expires_at:%Y-%m-%d %H:%M} UTC",
            f"in {days(hold, now)}; then the next run deletes what it keeps and is past its date",
            f"ask {hold.placed_by} whether the case is over; if not, place another one that lasts longer",
            AlertKind.HOLD_ENDS.runbook,
        )
        for hold in ending
        if hold.expires_at is not None
    ]


def days(hold: holds.Hold, now: datetime) -> str:
    """Return how long a hold still lasts, in whole days, as text."""
    if hold.expires_at is None:
        return "no end"
    left = (hold.expires_at - now).days
    return "less than a day" if left < 1 else "1 day" if left == 1 else f"{left} days"
