"""Sentry, when SENTRY_DSN is set: bugs, traces and check-ins, scrubbed; losing it never fails a job."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.utils.logging_utils import get_logger
from scripts.utils.redaction import redact
from scripts.utils.settings import Settings

_FLUSH_SECONDS = 2.0
_active = False


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
    """Redact an event or a trace; a driver error's text quotes row values, so it goes whole."""
    if event.get("type") == "check_in":
        return event
    for value in (event.get("exception") or {}).get("values", []):
        if str(value.get("module", "")).startswith("psycopg"):
            value["value"] = "[database message]"
    return redact(event)


def report(error: BaseException) -> None:
    """Send a bug."""
    if _active:
        import sentry_sdk

        sentry_sdk.capture_exception(error)


def flush() -> None:
    """Wait briefly until what was sent has left."""
    if _active:
        import sentry_sdk

        sentry_sdk.flush(_FLUSH_SECONDS)


def describe(error: BaseException) -> str:
    """Name a bug by its type and place; its text may quote data."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return f"unexpected {type(error).__name__}{place}: this is a bug, please report it"
