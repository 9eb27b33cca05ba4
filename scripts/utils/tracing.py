"""One trace a run: its id in every log line and in the run record, its spans in Sentry where that is set.

A caller's trace is taken up from TRACEPARENT and passed on with every HTTP call (W3C "Trace Context", level 1). Ids are
there without Sentry too; :func:`span` then costs next to nothing and does nothing.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from scripts.utils import error_reporting
from scripts.utils.logging_utils import get_logger

# A trace holds 1,000 spans at most: of each kind the first 100, then every hundredth.
WHOLE = 100
SAMPLED = 100

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

# A context variable, not Sentry's scope: the threads that call the store share that scope, so one thread's span would
# become the parent of another's.
_current: ContextVar[Any] = ContextVar("span", default=None)
_counts: defaultdict[str, itertools.count[int]] = defaultdict(lambda: itertools.count(1))


@dataclass(frozen=True)
class Trace:
    """The trace that a run is part of."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """The run's own span, 16 hexadecimal digits."""
    parent_span_id: str | None = None
    sampled: bool | None = None
    """Whether the caller records the trace; None: there is no caller."""

    @classmethod
    def taken_up(cls, traceparent: str | None) -> Trace:
        """Continue a caller's trace, or begin one; what is malformed is no trace, as the standard says."""
        span_id = secrets.token_hex(8)
        match = _TRACEPARENT.fullmatch(traceparent or "")
        if match:
            version, trace_id, parent, flags, more = match.groups()
            known = version != "ff" and not (version == "00" and more)
            if known and int(trace_id, 16) and int(parent, 16):
                return cls(trace_id, span_id, parent, bool(int(flags, 16) & 1))
        if traceparent:
            get_logger().warning("traceparent_ignored", effect="TRACEPARENT is malformed: the run has its own trace")
        return cls(secrets.token_hex(16), span_id)


@contextmanager
def run_traced(trace: Trace, script: str, *, recorded: bool = True) -> Iterator[dict[str, Any]]:
    """Record the run as one transaction; facts put into what is yielded (numbers and codes) go with it.

    Args:
        trace: The run's.
        script: Its script.
        recorded: False: of a dry run only errors leave the process; they name their trace all the same.
    """
    facts: dict[str, Any] = {}
    _counts.clear()
    transaction = _begin(trace, script, recorded=recorded)
    token = _current.set(transaction or trace)
    try:
        yield facts
    finally:
        _current.reset(token)
        if transaction:
            _end(transaction, facts)


def _begin(trace: Trace, script: str, *, recorded: bool) -> Any:
    if not error_reporting.is_active():
        return None
    import sentry_sdk

    caller: Any = {"parent_span_id": trace.parent_span_id, "parent_sampled": trace.sampled}
    try:
        # Errors belong to the trace also where no spans are recorded.
        sentry_sdk.continue_trace({"sentry-trace": f"{trace.trace_id}-{trace.parent_span_id or trace.span_id}"})
        if not recorded:
            return None
        return sentry_sdk.start_transaction(
            op="job",
            name=script,
            source="task",
            trace_id=trace.trace_id,
            span_id=trace.span_id,
            **(caller if trace.parent_span_id else {}),
        )
    except Exception as error:  # noqa: BLE001 - whatever Sentry does wrong, the job's work comes first
        get_logger().warning("tracing_off", error=type(error).__name__)
        return None


@contextmanager
def span(op: str, name: str) -> Iterator[dict[str, Any]]:
    """Record a part of the run; facts put into what is yielded (numbers and codes, nothing of a row) go with it.

    Args:
        op: Its kind, such as ``batch``; of each kind only a sample is recorded.
        name: Which one: a policy, a lock, a call. Never a row or a blob.
    """
    facts: dict[str, Any] = {}
    parent = _current.get()
    if parent is None or isinstance(parent, Trace):
        yield facts
        return
    number = next(_counts[op])
    if number > WHOLE and number % SAMPLED:
        yield facts
        return
    recorded = _child(parent, op, name)
    if recorded is None:
        yield facts
        return
    token = _current.set(recorded)
    try:
        yield facts
    except BaseException as error:
        facts.setdefault("error", type(error).__name__)
        raise
    finally:
        _current.reset(token)
        facts["number"] = number
        _end(recorded, facts)


def _child(parent: Any, op: str, name: str) -> Any:
    try:
        return parent.start_child(op=op, name=name)
    except Exception as error:  # noqa: BLE001 - as in _begin
        get_logger().warning("span_lost", error=type(error).__name__)
        return None


def _end(recorded: Any, facts: dict[str, Any]) -> None:
    try:
        if "error" in facts:
            recorded.set_status("internal_error")
        for name, value in facts.items():
            recorded.set_data(name, value)
        recorded.finish()
    except Exception as error:  # noqa: BLE001 - as in _begin
        get_logger().warning("span_lost", error=type(error).__name__)


def traceparent() -> str | None:
    """Return the traceparent header for the run's HTTP calls; None outside a run."""
    here = _current.get()
    return f"00-{here.trace_id}-{here.span_id}-{'01' if here.sampled else '00'}" if here else None
