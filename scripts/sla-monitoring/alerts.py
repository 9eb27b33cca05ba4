#!/usr/bin/env python3
"""List open alerts, silence them for a maintenance, end a silence, close a leftover alert, and send a test alert.

Runbook: scripts/sla-monitoring/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse
from datetime import timedelta
from uuid import UUID

from scripts.lifecycle.jobs.arguments import add_common_flags, add_operator_flag
from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main
from scripts.lifecycle.monitoring import alert_silences
from scripts.lifecycle.monitoring.alerts import Alert, AlertKind, Alerts
from scripts.utils import durations
from scripts.utils.alert_sinks import SEVERITIES, sinks_of
from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.free_text import impersonal
from scripts.utils.logging_utils import get_logger

_UNITS = frozenset({"minute", "hour", "day"})
_MOST = 9999


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    listing = verbs.add_parser("list", help="show open alerts, who has yet to be told, and silences")
    silence = verbs.add_parser("silence", help="tell nobody for a while; what is still open afterwards is told then")
    silence.add_argument("scope", help="beginning of the keys, such as sla:cleanup_pdfs: or sla: or '' for all")
    silence.add_argument("--for", dest="length", type=_length, required=True, metavar="2h", help="such as 30m or 1d")
    silence.add_argument("--reason", required=True, type=impersonal, help="kept on the silence; name no person in it")
    unsilence = verbs.add_parser("unsilence", help="end a silence now")
    unsilence.add_argument("silence", type=UUID, help="the silence's id")
    close = verbs.add_parser("close", help="close an alert whose monitor is gone; any other comes back")
    close.add_argument("key", help="the alert's key")
    test = verbs.add_parser("test", help="raise and end a test alert, to see whether it reaches the person on call")
    test.add_argument("--severity", choices=SEVERITIES, default="warning", help="critical wakes somebody up")
    for verb in (listing, silence, unsilence, close, test):
        add_common_flags(verb)
        add_operator_flag(verb)


def _length(text: str) -> timedelta:
    length = durations.number_and_unit(text, _UNITS)
    if length is None or length[0] > _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 30m, 2 hours or 1d")
    return timedelta(**{f"{length[1]}s": length[0]})


def work(run: Run) -> None:
    """Carry out one verb."""
    verbs = {"list": _list, "silence": _silence, "unsilence": _unsilence, "close": _close, "test": _test}
    verbs[run.options.flags.verb](run)


def _list(run: Run) -> None:
    alerts, silences = run.database.read(
        lambda connection: (alert_silences.open_alerts(connection), alert_silences.in_force(connection))
    )
    if not run.display.enabled:
        for row in alerts:
            get_logger().info("alert_open", alert=row.pop("key"), **row)
        for each in silences:
            facts = {"id": each.id, "scope": each.scope, "until": each.until, "by": each.silenced_by}
            get_logger().info("silence_in_force", **facts, reason=each.reason)
        return
    rows = []
    for row in alerts:
        untold = "silenced" if row["silenced"] else ", ".join(row["waiting"]) or "-"
        since = f"{row['since']:%Y-%m-%d %H:%M}"
        rows.append((row["severity"], row["key"], row["what"], row["how_bad"], since, untold))
    headings = ("severity", "key", "what", "how bad", "since (UTC)", "not told yet")
    run.display.listing("open alerts" if alerts else "open alerts: none", headings, rows)
    in_force = [
        (str(each.id), each.scope or "everything", f"{each.until:%Y-%m-%d %H:%M}", each.silenced_by, each.reason)
        for each in silences
    ]
    title = "silences" if silences else "silences: none"
    run.display.listing(title, ("id", "scope", "until (UTC)", "by", "reason"), in_force, whole=("id",))


def _silence(run: Run) -> None:
    flags = run.options.flags
    alert_silences.check(flags.scope, flags.length, flags.reason)
    operator = run.operator
    if run.options.dry_run:
        get_logger().warning("alerts_would_be_silenced", dry_run=True, scope=flags.scope)
        return
    made = alert_silences.silence(run.writer, flags.scope, length=flags.length, reason=flags.reason, operator=operator)
    get_logger().info("alerts_silenced", silence=str(made.id), scope=made.scope, until=made.until.isoformat())


def _unsilence(run: Run) -> None:
    flags = run.options.flags
    if run.options.dry_run:
        get_logger().warning("alerts_would_be_unsilenced", dry_run=True, silence=str(flags.silence))
        return
    if not alert_silences.end(run.writer, flags.silence, operator=run.operator):
        raise Misconfigured(f"no silence {flags.silence} is in force: see the list")
    get_logger().info("alerts_unsilenced", silence=str(flags.silence))
    Alerts(run.database, run.settings, run.script).deliver()


def _close(run: Run) -> None:
    key = run.options.flags.key
    closed = Alerts(run.database, run.settings, run.script).close(key, operator=run.operator, action="alert_closed")
    if not closed and not run.options.dry_run:
        raise Misconfigured(f"no alert {key} is open: see the list")


def _test(run: Run) -> None:
    alerts, operator = Alerts(run.database, run.settings, run.script), run.operator
    severity = run.options.flags.severity
    key = f"test:{run.correlation_id}"
    sinks = [sink.name for sink in sinks_of(run.settings) if SEVERITIES.index(sink.least) <= SEVERITIES.index(severity)]
    if not sinks:
        get_logger().warning("no_sink_is_set", severity=severity, effect="an alert like this goes to the log alone")
    alerts.raise_(
        Alert(key, severity, "this is a test", "not at all", "nothing: it ends by itself", AlertKind.TEST.runbook)
    )
    waiting = [row["waiting"] for row in run.database.read(alert_silences.open_alerts) if row["key"] == key]
    alerts.close(key, operator=operator, action="alert_tested")
    if run.options.dry_run:
        return
    untold = waiting[0] if waiting else []
    get_logger().info("alert_test", told=sorted(set(sinks) - set(untold)), not_told=untold)
    if untold:
        raise SinkDown(f"not told: {', '.join(untold)}; see alert_not_delivered above, or a silence in force")


class SinkDown(OpsError):
    """A configured sink did not take the test alert."""

    stop_reason = "alert_not_delivered"


JOB = Job(
    "alerts",
    work,
    "Show, silence and test alerts.",
    kind=Kind.TAKES_NO_LOCK,
    events="alerts",
    arguments=arguments,
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
