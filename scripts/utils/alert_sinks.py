"""The receivers of alerts: Slack, PagerDuty and Sentry. Each is used only if its setting is there.

A sink raises an error if it did not take a message; the alert then stays open and is sent again later. Anybody who has
a sink's address can post to it, so no error holds an address.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import httpx

from scripts.utils import error_reporting
from scripts.utils.retry_utils import retry
from scripts.utils.settings import Settings

Severity = Literal["info", "warning", "critical"]
News = Literal["raised", "worsened", "eased", "reminder", "recovered"]

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
ATTEMPTS = 3
RETRY_SECONDS = 8.0
TIMEOUT_SECONDS = 5.0
_TOO_MANY, _SERVER_ERROR = 429, 500
# PagerDuty, Events API v2: longest summary and longest deduplication key, in characters.
_SUMMARY, _DEDUP_KEY = 1024, 255
_LEAD = {
    "raised": "",
    "worsened": "worse than before: ",
    "eased": "less bad than before: ",
    "reminder": "still so: ",
    "recovered": "over: ",
}


@dataclass(frozen=True)
class Message:
    """A message about one problem; a sink needs nothing besides."""

    key: str
    news: News
    severity: Severity
    what: str
    how_bad: str
    what_to_do: str
    runbook: str
    since: datetime
    resolved_at: datetime | None
    script: str
    source: str

    @property
    def headline(self) -> str:
        """The problem, and what is new about it."""
        return f"{_LEAD[self.news]}{self.what}"

    @property
    def period(self) -> str:
        """When the problem began and, if it is over, when it ended (UTC)."""
        until = f" until {_text(self.resolved_at)}" if self.resolved_at else ""
        return f"since {_text(self.since)}{until}"


class NotDelivered(Exception):
    """A sink did not take a message.

    Args:
        reason: A code for logs, such as ``http_500``; never an address or a body.
        down: Whether the next message would fail too.
        again: Whether the same message may succeed after a pause.
        retry_after: Seconds to wait, as the sink asked; None: it did not ask.
    """

    def __init__(
        self, reason: str, *, down: bool = True, again: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.down = down
        self.again = again and (retry_after or 0) <= RETRY_SECONDS
        self.retry_after = retry_after


class Sink(Protocol):
    """A receiver of alerts."""

    @property
    def name(self) -> str:
        """Its name in ``ops.alerts``."""

    @property
    def least(self) -> Severity:
        """The lowest severity that is sent to it."""

    def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            NotDelivered: The sink did not take it.
        """


class Slack:
    """An incoming webhook of Slack. It gets warnings and critical alerts, so the channel shows the whole course."""

    name = "slack"
    least: Severity = "warning"

    def __init__(self, webhook: str) -> None:
        self._webhook = webhook

    def send(self, message: Message) -> None:
        """Post one message."""
        sign = "recovered" if message.resolved_at else message.severity.upper()
        lines = [f"*[{sign}]* {_slack(message.headline)}", f"{message.period} · {_slack(message.source)}"]
        lines += [f"*How bad:* {_slack(message.how_bad)}"]
        if not message.resolved_at:
            lines += [f"*What to do:* {_slack(message.what_to_do)}"]
        lines += [f"*Runbook:* {_slack(message.runbook)}", f"`{_slack(message.key)}`"]
        _post(self._webhook, {"text": "\n".join(lines), "unfurl_links": False})


class PagerDuty:
    """PagerDuty, Events API v2. Only a critical alert pages somebody; once it is less than critical it is resolved."""

    name = "pagerduty"
    least: Severity = "critical"

    def __init__(self, url: str, routing_key: str) -> None:
        self._url = url
        self._routing_key = routing_key

    def send(self, message: Message) -> None:
        """Trigger or resolve the incident of the problem's key."""
        event: dict[str, Any] = {
            "routing_key": self._routing_key,
            "event_action": "resolve",
            "dedup_key": _dedup_key(f"{message.source}:{message.key}"),
        }
        if not message.resolved_at and message.severity == "critical":
            event |= {
                "event_action": "trigger",
                "payload": {
                    "summary": f"{message.what}: {message.how_bad}"[:_SUMMARY],
                    "source": message.source,
                    "severity": "critical",
                    "timestamp": message.since.astimezone(UTC).isoformat(),
                    "component": message.script,
                    "class": message.key,
                    "custom_details": {
                        "what": message.what,
                        "how_bad": message.how_bad,
                        "since": _text(message.since),
                        "what_to_do": message.what_to_do,
                        "runbook": message.runbook,
                    },
                },
            }
            if message.runbook.startswith("https://"):
                event["links"] = [{"href": message.runbook, "text": "runbook"}]
        _post(self._url, event)


class Sentry:
    """Sentry: one issue for each problem, with the problem's key as its fingerprint."""

    name = "sentry"
    least: Severity = "warning"

    def send(self, message: Message) -> None:
        """Send one message and wait until Sentry has taken it.

        Raises:
            NotDelivered: Sentry did not take it.
        """
        level: Literal["info", "warning", "fatal"] = "fatal" if message.severity == "critical" else "warning"
        taken = error_reporting.notify(
            message.headline,
            level="info" if message.resolved_at or message.severity == "info" else level,
            fingerprint=message.key,
            tags={"alert": message.key, "alert_news": message.news, "alert_severity": message.severity},
            details={
                "how_bad": message.how_bad,
                "period": message.period,
                "what_to_do": message.what_to_do,
                "runbook": message.runbook,
            },
        )
        if not taken:
            raise NotDelivered("not_sent")


def sinks_of(settings: Settings) -> list[Sink]:
    """Return a sink for each one that the settings name."""
    sinks: list[Sink] = []
    if settings.sentry_dsn:
        sinks.append(Sentry())
    if settings.mrq_alert_slack_webhook:
        sinks.append(Slack(settings.mrq_alert_slack_webhook.get_secret_value()))
    if settings.pagerduty_routing_key:
        sinks.append(PagerDuty(settings.pagerduty_events_url, settings.pagerduty_routing_key.get_secret_value()))
    return sinks


def _post(url: str, body: dict[str, Any]) -> None:
    retry(
        lambda: _post_once(url, body),
        on=lambda error: isinstance(error, NotDelivered) and error.again,
        attempts=ATTEMPTS,
        seconds=RETRY_SECONDS,
        longest_wait=2.0,
        asked_wait=lambda error: error.retry_after if isinstance(error, NotDelivered) else None,
    )


def _post_once(url: str, body: dict[str, Any]) -> None:
    try:
        # Redirects are not followed: the body goes to the configured address alone.
        # The answer's body is not read: the status is enough, and a slow body would delay the run.
        with httpx.stream("POST", url, json=body, timeout=TIMEOUT_SECONDS) as answer:
            pass
    except (httpx.HTTPError, httpx.InvalidURL) as error:  # the error's text may quote the address
        raise NotDelivered(type(error).__name__, again=True) from None
    if answer.is_success:
        return
    later = answer.status_code == _TOO_MANY or answer.status_code >= _SERVER_ERROR
    raise NotDelivered(
        f"http_{answer.status_code}",
        # 400 is about this message; 403, 404 and 410 are about the address.
        down=answer.status_code != httpx.codes.BAD_REQUEST,
        again=later,
        retry_after=_seconds(answer.headers.get("retry-after")),
    )


def _seconds(header: str | None) -> float | None:
    return float(header) if header and header.isdecimal() else None


def _dedup_key(key: str) -> str:
    if len(key) <= _DEDUP_KEY:
        return key
    return f"{key[: _DEDUP_KEY - 65]}:{hashlib.sha256(key.encode()).hexdigest()}"


def _slack(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
