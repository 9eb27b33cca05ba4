"""The service level of erasures: every request is fulfilled within its deadline (GDPR Art. 12(3)).

Every open request counts, whether it waits for an identity, for a person's decision, or for the next run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row

from scripts.lifecycle.monitoring.alerts import Alert, AlertKind
from scripts.utils.db_utils import Connection
from scripts.utils.settings import Settings

SCOPE = "gdpr:"

_LOOK = """
SELECT count(*) AS open, count(*) FILTER (WHERE deadline < now()) AS late,
       count(*) FILTER (WHERE near < now()) AS near,
       count(*) FILTER (WHERE status = 'blocked') AS blocked,
       count(*) FILTER (WHERE identity_verified_at IS NULL) AS without_identity,
       min(deadline) AS first_deadline, min(near) AS first_near,
       (array_agg(id ORDER BY deadline, id))[1] AS first
  FROM (SELECT r.*, d.deadline, requested_at + (d.deadline - requested_at) * (%(percent)s / 100.0) AS near
          FROM ops.erasure_requests r
         CROSS JOIN LATERAL (
               SELECT coalesce(r.deadline_at, r.requested_at + make_interval(days => %(days)s))) d (deadline)
         WHERE r.closed_at IS NULL) requests
"""


@dataclass(frozen=True)
class ErasureView:
    """What is known of the open requests at one moment."""

    open: int
    late: int
    near: int
    """Requests whose deadline is near or past."""
    blocked: int
    without_identity: int
    first_deadline: datetime | None
    first_near: datetime | None
    first: UUID | None
    """The request whose deadline comes first."""


def look(connection: Connection, settings: Settings) -> ErasureView:
    """Measure the open requests."""
    parameters = {"percent": settings.sla_warning_threshold_percent, "days": settings.gdpr_deletion_deadline_days}
    with connection.cursor(row_factory=class_row(ErasureView)) as cursor:
        view = cursor.execute(_LOOK, parameters).fetchone()
    if view is None:
        raise AssertionError("an aggregate gives one row")
    return view


def erasure_alerts(view: ErasureView) -> Iterator[Alert]:
    """Return an alert if a request is past its deadline or near it."""
    why = f"{view.blocked} of {view.open} open requests are blocked, {view.without_identity} wait for an identity"
    first = f"the first is {view.first}, due {view.first_deadline:%Y-%m-%d %H:%M} UTC" if view.first_deadline else ""
    if view.late:
        yield Alert(
            f"{SCOPE}deadline",
            "critical",
            "requests to be erased were not honoured within their deadline",
            f"{view.late} are past it; {first}; {why}",
            "see enforce_gdpr_deletion.py list and the items erasure_blocked; tell the data protection officer",
            AlertKind.ERASURE_DEADLINE.runbook,
            view.first_deadline,
        )
    elif view.near:
        yield Alert(
            f"{SCOPE}deadline",
            "warning",
            "the deadline of requests to be erased is near",
            f"{view.near} are near it; {first}; {why}",
            "see enforce_gdpr_deletion.py list: verify the identity, or decide what is in the way",
            AlertKind.ERASURE_DEADLINE.runbook,
            view.first_near,
        )
