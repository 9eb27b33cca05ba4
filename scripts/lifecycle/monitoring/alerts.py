"""Alerts: a problem is raised once, repeated after a pause, and reported as recovered when it has ended.

The state is in ``ops.alerts``, so several monitor processes at once still raise one problem once. ``alert_delivery``
tells the sinks after the transaction that changed the state.

INFO goes to the log; WARNING to the log, Sentry and Slack; CRITICAL to the log, Sentry, Slack and PagerDuty.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, get_args
from uuid import UUID, uuid4

from psycopg.rows import dict_row

from scripts.lifecycle.audit import audit
from scripts.lifecycle.monitoring.alert_delivery import Delivery
from scripts.utils.alert_sinks import SEVERITIES, News, Severity, sinks_of
from scripts.utils.db_utils import Connection, Database, ReadOnlyDatabase
from scripts.utils.logging_utils import get_logger
from scripts.utils.redaction import redact
from scripts.utils.settings import Settings

RUNBOOK = "scripts/sla-monitoring/README.md"

_OPEN = """
INSERT INTO ops.alerts (id, key, severity, what, how_bad, what_to_do, runbook, raised_by, since, waiting)
VALUES (%(id)s, %(key)s, %(severity)s, %(what)s, %(how_bad)s, %(what_to_do)s, %(runbook)s, %(script)s,
        coalesce(%(since)s::timestamptz, now()), %(sinks)s::text[])
ON CONFLICT (key) WHERE resolved_at IS NULL DO NOTHING RETURNING id
"""

# The row is locked before it is compared: of two monitors the second sees what the first one told.
_SEEN_AGAIN = """
WITH seen AS (
    SELECT id, CASE
               WHEN severity <> %(severity)s THEN
                   CASE WHEN array_position(%(severities)s, severity) < array_position(%(severities)s, %(severity)s)
                        THEN 'worsened' ELSE 'eased' END
               WHEN severity <> 'info' AND news_at <= clock_timestamp() - make_interval(hours => %(pause)s)
                    THEN 'reminder'
               END AS news
      FROM ops.alerts WHERE key = %(key)s AND resolved_at IS NULL FOR UPDATE
)
UPDATE ops.alerts a
   SET severity = %(severity)s, what = %(what)s, how_bad = %(how_bad)s, what_to_do = %(what_to_do)s,
       runbook = %(runbook)s, since = least(a.since, %(since)s::timestamptz), last_seen_at = clock_timestamp(),
       occurrences = a.occurrences + 1, version = a.version + (s.news IS NOT NULL)::int,
       news = coalesce(s.news, a.news),
       news_at = CASE WHEN s.news IS NULL THEN a.news_at ELSE clock_timestamp() END,
       reminded_at = CASE WHEN s.news = 'reminder' THEN clock_timestamp() ELSE a.reminded_at END,
       -- The monitor that raised it may have had fewer sinks, such as one run by hand: the others are added.
       waiting = CASE WHEN s.news IS NULL
                           THEN ARRAY(SELECT unnest(a.waiting)
                                       UNION SELECT sink FROM unnest(%(sinks)s::text[]) AS n (sink)
                                              WHERE NOT a.told ? sink)
                      WHEN s.news = 'eased' THEN ARRAY(SELECT unnest(%(sinks)s::text[])
                                                        UNION SELECT jsonb_object_keys(a.told))
                      ELSE %(sinks)s::text[] END
  FROM seen s WHERE a.id = s.id
RETURNING a.id, s.news
"""

# Every sink that was told of the problem, or may have been, is told that it has ended.
_RECOVER = """
UPDATE ops.alerts
   SET resolved_at = clock_timestamp(), resolved_by = %(operator)s,
       version = version + 1, news = 'recovered', news_at = clock_timestamp(),
       waiting = ARRAY(SELECT jsonb_object_keys(told))
 WHERE resolved_at IS NULL AND CASE WHEN %(exactly)s THEN key = %(scope)s ELSE starts_with(key, %(scope)s) END
   AND NOT key = ANY(%(still)s)
   AND NOT EXISTS (SELECT FROM unnest(%(unknown)s::text[]) AS u (scope) WHERE starts_with(key, u.scope))
   AND (%(measured_at)s::timestamptz IS NULL OR last_seen_at <= %(measured_at)s)
RETURNING id, key, severity, what, how_bad, what_to_do, runbook, since
"""


class AlertKind(StrEnum):
    """What the monitors raise alerts for; the runbook has a heading of the same name for each."""

    OVERDUE = "overdue"
    UNCOUNTED = "uncounted"
    DELETES_NOTHING = "deletes_nothing"
    BACKLOG = "backlog"
    HOLD_ENDS = "hold-ends"
    UNCLAIMED = "unclaimed"
    MISSED = "missed"
    SWITCHED_OFF = "switched_off"
    KILLED = "killed"
    STUCK = "stuck"
    FAILURES = "failures"
    SUCCESS_RATE = "success_rate"
    BUDGET = "budget"
    THROUGHPUT = "throughput"
    LOCK = "lock"
    ERASURE_DEADLINE = "erasure_deadline"
    QUEUE_DEPTH = "queue_depth"
    QUEUE_MEAN_AGE = "queue_mean_age"
    QUEUE_OLDEST = "queue_oldest"
    QUEUE_RESOLUTION_RATE = "queue_resolution_rate"
    TEST = "test"

    @property
    def runbook(self) -> str:
        """The page that the alert names, with its heading."""
        return f"{RUNBOOK}#{self}"


@dataclass(frozen=True)
class Alert:
    """A problem, as the person on call reads it; no field holds personal data.

    Args:
        key: Identifies the problem: the same problem always has the same key, such as ``sla:cleanup_pdfs:missed``.
        severity: ``info``, ``warning`` or ``critical``.
        what: What is wrong, in one line.
        how_bad: Figures: how much, how long, against which threshold.
        what_to_do: The first thing to do.
        runbook: A page of this repository with its anchor, or an address.
        since: When the problem began; None: when it was first seen.
    """

    key: str
    severity: Severity
    what: str
    how_bad: str
    what_to_do: str
    runbook: str
    since: datetime | None = None

    def __post_init__(self) -> None:
        """Refuse an alert that no sink could be told of.

        Raises:
            ValueError: The key is empty or could hold an address, or the severity is none of the three.
        """
        if not self.key or "@" in self.key or self.severity not in get_args(Severity):
            raise ValueError(f"no alert: key {self.key!r}, severity {self.severity!r}")


@dataclass(frozen=True)
class Settled:
    """What changed when a monitor's view was written: the keys of new alerts, and of alerts that ended."""

    raised: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)


class Alerts:
    """Reads and changes the alerts of this installation.

    No method may be called inside a transaction: each opens its own, and makes HTTP calls after it. In a dry run each
    method logs what it would raise or end, and writes and sends nothing.

    Args:
        database: Holds ``ops.alerts``; one that cannot write makes this a dry run.
        settings: The sinks, the pause between reminders (hours) and the addresses.
        script: The script that looks, for ``raised_by``.
    """

    def __init__(self, database: ReadOnlyDatabase, settings: Settings, script: str) -> None:
        self._settings = settings
        self._script = script
        self._sinks = sinks_of(settings)
        self._writer = database if isinstance(database, Database) else None
        self._delivery = Delivery(self._writer, self._sinks, settings.alert_source) if self._writer else None

    def raise_(self, alert: Alert) -> bool:
        """Raise a problem; called each time that a monitor sees it.

        Returns:
            Whether the alert is new. An open one is updated. It is told again if its severity changed, or if the pause
            between reminders is over.
        """
        new = self._note(alert)
        self.deliver()
        return new

    def close(self, key: str, *, operator: str, action: str) -> bool:
        """End one alert because an operator says so; its audit entry is written in the same transaction.

        Args:
            key: The alert's key.
            operator: The operator's handle.
            action: What the audit calls it: ``alert_closed`` or ``alert_tested``.

        Returns:
            Whether it was open.
        """
        over = self._end(key, operator=operator, action=action)
        self.deliver()
        return bool(over)

    def settle(
        self,
        scope: str,
        alerts: Sequence[Alert],
        *,
        unknown: Collection[str] = (),
        measured_at: datetime | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> Settled:
        """Write a monitor's whole view: the given problems exist, and no others within the scope.

        Args:
            scope: The prefix of the keys that the view covers. An open alert under it that is not among ``alerts``
                has ended.
            alerts: Every problem that the monitor found.
            unknown: Prefixes of keys that could not be looked at; no alert under them ends.
            measured_at: When the view was taken, by the database's clock. An alert that another monitor has seen since
                then does not end.
            between: Called before each alert; may raise to stop.

        Raises:
            ValueError: An alert's key is not under the scope: its recovery would never come.
        """
        if outside := [alert.key for alert in alerts if not alert.key.startswith(scope)]:
            raise ValueError(f"not under {scope}: {', '.join(outside)}")
        raised = []
        for alert in alerts:
            between()
            raised += [alert.key] if self._note(alert) else []
        over = self._end(scope, still=[alert.key for alert in alerts], unknown=unknown, measured_at=measured_at)
        self.deliver()
        return Settled(raised, over)

    def deliver(self) -> None:
        """Tell each sink of the changes that it has not been told of; a sink that is down is asked by the next run."""
        if self._delivery:
            self._delivery.deliver()

    def _note(self, alert: Alert) -> bool:
        if self._writer is None:
            get_logger().warning("alert_would_be_raised", dry_run=True, alert=alert.key, what=alert.what)
            return False
        mine = uuid4()
        # The key stays as it is: another one would be another problem.
        texts = {name: str(redact(getattr(alert, name))) for name in ("what", "how_bad", "what_to_do")}
        texts["key"] = alert.key
        facts: dict[str, Any] = {
            "id": mine,
            **texts,
            "severity": alert.severity,
            "severities": list(SEVERITIES),
            "runbook": self._address(alert.runbook),
            "script": self._script,
            "since": alert.since,
            "sinks": self._told_of(alert.severity),
            "pause": self._settings.alert_reminder_hours,
        }

        def work(connection: Connection) -> tuple[UUID, News | None]:
            while True:
                opened = connection.execute(_OPEN, facts).fetchone()
                if opened:
                    return mine, "raised"
                # Neither new nor open: another monitor ended it between the two statements, so try again.
                if again := connection.execute(_SEEN_AGAIN, facts).fetchone():
                    return again[0], again[1]

        row, news = self._writer.write(work)
        # After a COMMIT whose answer was lost, the second attempt finds the row of the first.
        new = row == mine
        if new or news:
            _log("raised" if new else str(news), {**texts, "severity": alert.severity, "runbook": facts["runbook"]})
        return new

    def _end(
        self,
        scope: str,
        *,
        operator: str | None = None,
        action: str = "",
        still: Collection[str] = (),
        unknown: Collection[str] = (),
        measured_at: datetime | None = None,
    ) -> list[str]:
        """End the alerts under a scope; with an operator the one whose key the scope is, with its audit entry."""
        facts = {
            "scope": scope,
            "exactly": operator is not None,
            "operator": operator,
            "still": list(still),
            "unknown": list(unknown),
            "measured_at": measured_at,
        }
        if self._writer is None:
            get_logger().info("alerts_would_be_settled", dry_run=True, scope=scope, still_open=sorted(still))
            return []

        def work(connection: Connection) -> list[dict[str, Any]]:
            with connection.cursor(row_factory=dict_row) as cursor:
                over = cursor.execute(_RECOVER, facts).fetchall()
            if operator and over:
                audit.append(
                    connection,
                    actor=f"operator:{operator}",
                    action=action,
                    resource_type="ops.alerts",
                    resource_ids=[str(row["id"]) for row in over],
                    reason="alert",
                )
            return over

        over = self._writer.write(work)
        for row in over:
            _log("recovered", row)
        return sorted(row["key"] for row in over)

    def _told_of(self, severity: Severity) -> list[str]:
        return [sink.name for sink in self._sinks if SEVERITIES.index(severity) >= SEVERITIES.index(sink.least)]

    def _address(self, runbook: str) -> str:
        base = self._settings.alert_runbook_url
        return f"{base.rstrip('/')}/{runbook}" if base and "://" not in runbook else runbook


def _log(news: str, facts: dict[str, Any]) -> None:
    log = get_logger()
    write = {"info": log.info, "warning": log.warning, "critical": log.error}[facts["severity"]]
    kept = ("what", "how_bad", "what_to_do", "runbook")
    (log.info if news in ("recovered", "eased") else write)(
        f"alert_{news}", alert=facts["key"], severity=facts["severity"], **{name: facts[name] for name in kept}
    )
