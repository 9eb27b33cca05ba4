"""Sentry, where SENTRY_DSN is set: bugs, traces and check-ins, redacted; losing Sentry never fails a job.

The SDK does not tell whether an event was delivered. :func:`notify` needs to know, so it replaces one hook of the
transport for the length of a call; no public interface of the SDK (2.75) reports a dropped event to its caller.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from scripts.utils.logging_utils import get_logger
from scripts.utils.redaction import redact
from scripts.utils.settings import Settings

_FLUSH_SECONDS = 2.0
_active = False

WITHHELD = "[text withheld]"
"""What stands in Sentry where an exception's text would."""


def start(settings: Settings, *, script: str, correlation_id: str) -> None:
    """Set Sentry up; the library is imported only here, and only with a DSN."""
    global _active  # noqa: PLW0603 - sentry_sdk's client is global as well
    if settings.sentry_dsn is None:
        return
    import sentry_sdk

    try:
        sentry_sdk.init(  # noqa: TID251 - this is its one home
            dsn=settings.sentry_dsn.get_secret_value(),
            release=settings.render_git_commit,
            environment=settings.sentry_environment,
            # None, not 0.0: with 0.0 a caller's decision to trace would still be followed.
            traces_sample_rate=settings.sentry_traces_sample_rate or None,
            include_local_variables=False,  # rows that are being deleted stand in them
            default_integrations=False,
            before_send=scrub,
            before_send_transaction=scrub,
        )
    except Exception as error:  # noqa: BLE001 - whatever Sentry does wrong, the job's work comes first
        get_logger().warning("error_reporting_off", error=type(error).__name__)
        return
    sentry_sdk.set_tag("script", script)
    sentry_sdk.set_tag("correlation_id", correlation_id)
    _active = True


def is_active() -> bool:
    """Tell whether Sentry is set up."""
    return _active


@contextmanager
def about(policy: str) -> Iterator[None]:
    """Name the policy in what is reported from here, also of an error on its way out."""
    if not _active:
        yield
        return
    import sentry_sdk

    sentry_sdk.set_tag("policy", policy)
    yield
    # Not where an error passes: it is reported further out.
    sentry_sdk.get_isolation_scope().remove_tag("policy")


def scrub(event: Any, _hint: Any) -> Any:
    """Redact an event or a trace.

    Of an exception its type and its place go out, never its text: any library's may quote a row's value, which no
    pattern can tell from other words (GDPR Art. 5(1)(c)).
    """
    if event.get("type") == "check_in":
        return event
    for value in (event.get("exception") or {}).get("values", []):
        value["value"] = WITHHELD
    return redact(event)


def report(error: BaseException) -> None:
    """Report an unexpected error."""
    if _active:
        import sentry_sdk

        sentry_sdk.capture_exception(error)


def notify(
    message: str,
    *,
    level: Literal["info", "warning", "error", "fatal"],
    fingerprint: str,
    tags: dict[str, str],
    details: dict[str, str],
) -> bool:
    """Send a message that is no bug, and wait until it is sent.

    Args:
        message: The issue's title.
        level: The level in Sentry.
        fingerprint: Messages with the same one are one issue.
        tags: Tags, for searching.
        details: Facts that are shown with the message.

    Returns:
        Whether Sentry took it, as far as can be known: it was neither dropped nor still waiting at the end.
    """
    if not _active:
        return False
    import sentry_sdk

    client = sentry_sdk.get_client()
    dropped: list[object] = []
    # The library sends in the background, and this is where it says that it could not.
    usual = getattr(client.transport, "on_dropped_event", None)
    if usual:
        setattr(client.transport, "on_dropped_event", dropped.append)  # noqa: B010 - mypy refuses to set a method
    try:
        sent = sentry_sdk.capture_event(
            {
                "message": message,
                "level": level,
                "fingerprint": [fingerprint],
                "tags": tags,
                "contexts": {"alert": dict(details)},
            }
        )
        began = time.monotonic()
        sentry_sdk.flush(_FLUSH_SECONDS)
        in_time = time.monotonic() - began < _FLUSH_SECONDS
    except Exception as error:  # noqa: BLE001 - whatever Sentry does wrong, the job's work comes first
        get_logger().warning("error_reporting_failed", error=type(error).__name__)
        return False
    finally:
        if usual:
            setattr(client.transport, "on_dropped_event", usual)  # noqa: B010 - as above
    return sent is not None and in_time and not dropped


def flush() -> None:
    """Wait until the queued events are sent, for two seconds at most."""
    if _active:
        import sentry_sdk

        sentry_sdk.flush(_FLUSH_SECONDS)


def describe(error: BaseException) -> str:
    """Name a bug by its type and place; its text may quote data."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return f"unexpected {type(error).__name__}{place}: this is a bug, please report it"
