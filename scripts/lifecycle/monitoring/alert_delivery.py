"""Tells each sink the newest state of an alert, under a claim and outside any transaction.

What a sink did not take stays in ``ops.alerts.waiting``, and the next run of any monitor sends the newest state. A
process that is killed between telling a sink and noting it tells the sink twice; PagerDuty and Sentry join the two by
their key.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from scripts.utils import error_reporting
from scripts.utils.alert_sinks import Message, NotDelivered, Sink
from scripts.utils.db_utils import Connection, Database
from scripts.utils.logging_utils import get_logger

DELIVERY_SECONDS = 60.0
# Longer than a sink may take with all its retries.
_CLAIM_SECONDS = 120
# A change that could not be delivered for so long is dropped: it describes the past.
_STALE_DAYS = 7

_SILENT = sql.SQL(
    "a.news <> 'recovered' AND EXISTS (SELECT FROM ops.alert_silences s"
    " WHERE s.ended_at IS NULL AND s.until > clock_timestamp() AND starts_with(a.key, s.scope))"
)

_WAITING = sql.SQL("""
SELECT a.id, sink FROM ops.alerts a CROSS JOIN LATERAL unnest(a.waiting) AS w (sink)
 WHERE a.waiting <> '{{}}' AND sink = ANY(%(sinks)s) AND a.news_at > now() - make_interval(days => {stale_days})
   AND NOT ({silent})
 ORDER BY a.severity <> 'critical', a.news_at, a.id
""").format(stale_days=sql.Literal(_STALE_DAYS), silent=_SILENT)

_CLAIM = sql.SQL("""
UPDATE ops.alerts a
   SET told = a.told || jsonb_build_object(%(sink)s::text, coalesce(a.told -> %(sink)s, '{{}}') || jsonb_build_object(
           'claim', %(claim)s::text, 'claimed_until', extract(epoch FROM clock_timestamp()) + {seconds},
           'attempts', coalesce((a.told -> %(sink)s ->> 'attempts')::int, 0) + 1))
 WHERE a.id = %(id)s AND %(sink)s = ANY(a.waiting) AND NOT ({silent})
   AND coalesce((a.told -> %(sink)s ->> 'claimed_until')::float, 0) < extract(epoch FROM clock_timestamp())
RETURNING version, key, news, severity, what, how_bad, what_to_do, runbook, since, resolved_at, raised_by AS script
""").format(seconds=sql.Literal(_CLAIM_SECONDS), silent=_SILENT)

_TOLD = """
UPDATE ops.alerts
   SET told = told || jsonb_build_object(%(sink)s::text, CASE WHEN %(taken)s
           THEN %(state)s::jsonb || jsonb_build_object('at', clock_timestamp())
           ELSE ((told -> %(sink)s) - '{claim,claimed_until}'::text[]) || %(state)s::jsonb END),
       waiting = CASE WHEN %(taken)s AND version = %(version)s THEN array_remove(waiting, %(sink)s) ELSE waiting END
 WHERE id = %(id)s AND told -> %(sink)s ->> 'claim' = %(claim)s
"""


class Delivery:
    """Delivers to the sinks the changes that they have not been told of.

    Args:
        database: Holds ``ops.alerts``.
        sinks: The sinks that are configured.
        source: This installation's name.
    """

    def __init__(self, database: Database, sinks: Sequence[Sink], source: str) -> None:
        self._database = database
        self._sinks = {sink.name: sink for sink in sinks}
        self._source = source

    def deliver(self) -> None:
        """Tell each sink, the worst alert first; a sink that is down is not asked again in this run."""
        if not self._sinks:
            return
        until = time.monotonic() + DELIVERY_SECONDS
        down: set[str] = set()
        waiting = self._database.read(
            lambda connection: connection.execute(_WAITING, {"sinks": list(self._sinks)}).fetchall()
        )
        for alert, sink in waiting:
            if sink not in down and time.monotonic() < until and not self._tell(alert, self._sinks[sink]):
                down.add(sink)

    def _tell(self, alert: UUID, sink: Sink) -> bool:
        """Tell one sink of one problem; return whether the sink may be asked again in this run."""
        claim = {"id": alert, "sink": sink.name, "claim": uuid4().hex}

        def take(connection: Connection) -> dict[str, Any] | None:
            with connection.cursor(row_factory=dict_row) as cursor:
                return cursor.execute(_CLAIM, claim).fetchone()

        row = self._database.write(take)
        if row is None:
            return True  # another process is telling the sink or has told it, or the alert was silenced meanwhile
        version = row.pop("version")
        state: dict[str, Any] = {"version": version, "severity": row["severity"]}
        taken = up = True
        try:
            sink.send(Message(**row, source=self._source))
        except NotDelivered as failure:
            taken, up, state = False, not failure.down, {"error": failure.reason}
        except Exception as bug:  # noqa: BLE001 - whatever a sink does wrong, it never stops a job
            error_reporting.report(bug)
            taken, up, state = False, False, {"error": type(bug).__name__}
        if not taken:
            get_logger().warning("alert_not_delivered", alert=row["key"], sink=sink.name, reason=state["error"])
        outcome = {**claim, "state": Jsonb(state), "taken": taken, "version": version}
        self._database.write(lambda connection: connection.execute(_TOLD, outcome))
        return up
