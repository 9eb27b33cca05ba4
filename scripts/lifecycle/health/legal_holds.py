"""Checks for legal holds that are about to expire."""

from __future__ import annotations

from collections.abc import Iterator

from scripts.lifecycle.engine import holds
from scripts.lifecycle.health.findings import Context, Finding, passed, warned
from scripts.lifecycle.monitoring.hold_levels import days


def legal_holds(context: Context) -> Iterator[Finding]:
    """Name the holds that end within two weeks."""
    now = context.run.database.now()
    ending = holds.ending(context.run.database)
    for hold in ending:
        yield warned(
            f"hold {hold.id}",
            f"{hold.subject}, ends in {days(hold, now)}; then the next run takes what it keeps",
            "ask who placed it (legal_holds.py list); if the case goes on, place another one that lasts longer",
        )
    if not ending:
        yield passed("legal holds", f"none ends within {holds.WARNING.days} days")
