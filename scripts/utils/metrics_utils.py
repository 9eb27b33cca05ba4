"""Sends a run's figures to the sinks that are set; losing a sink never fails a job.

Names follow Prometheus' conventions for batch jobs ("Instrumentation", Batch jobs): gauges, base units, timestamps
rather than ages. The most important one is the time of the last success: a job that does not run pushes nothing, so
only the age of that time shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from scripts.utils.logging_utils import get_logger
from scripts.utils.settings import Settings

METRICS = {
    "lifecycle_job_last_success_timestamp_seconds": "When the job last did its work.",
    "lifecycle_job_last_completion_timestamp_seconds": "When the job last ended, well or not.",
    "lifecycle_job_last_run_duration_seconds": "How long its last run took.",
    "lifecycle_job_last_exit_code": "Its last exit code, before EXIT_ZERO_FOR.",
    "lifecycle_job_budget_seconds": "How long a run may take.",
    "lifecycle_job_interval_seconds": "Longest time between two runs of its schedule.",
    "lifecycle_job_sla_utilization_ratio": "Share of the time budget that its last run used; 1 is all of it.",
    "lifecycle_job_last_run_records_deleted": "Records that its last run deleted.",
    "lifecycle_job_last_run_records_queued": "Records that its last run put on the manual-resolution queue.",
    "lifecycle_job_records_remaining": "Records past their date after its last run; NaN: could not be counted.",
    "lifecycle_job_oldest_overdue_seconds": "How far the oldest of them is past its date; NaN: could not be counted.",
    "lifecycle_policy_overdue_warning_seconds": "From where on that warns.",
    "lifecycle_policy_overdue_critical_seconds": "From where on that breaks the promise.",
    "lifecycle_queue_depth": "Unresolved items on the manual-resolution queue.",
    "lifecycle_queue_past_deadline": "Of these, items past their deadline.",
    "lifecycle_queue_oldest_age_seconds": "Age of the oldest open item that is not deferred; 0: there is none.",
    "lifecycle_queue_mean_age_seconds": "Mean age of open items that are not deferred; 0: there are none.",
}
"""Every metric and its meaning; the dashboard and the alert rules may use no other."""


@dataclass(frozen=True)
class Figure:
    """One gauge; ``None``: could not be counted, which is not 0 and is not what an earlier run counted either."""

    name: str
    value: float | None
    labels: dict[str, str] = field(default_factory=dict)


class Sink(Protocol):
    """A place that figures are sent to."""

    def send(self, script: str, figures: Sequence[Figure]) -> None:
        """Send a script's figures.

        Raises:
            Exception: The sink did not take them; :func:`emit` logs it.
        """


class LogSink:
    """One log line with all the figures, so that a log store alone is enough."""

    def send(self, script: str, figures: Sequence[Figure]) -> None:  # noqa: ARG002 - every line names it anyway
        """Write the line."""
        get_logger().info(
            "run_figures",
            figures=[
                {"name": figure.name, "value": figure.value, **figure.labels}
                for figure in figures
                if figure.value is not None
            ],
        )


def sinks_of(settings: Settings) -> list[Sink]:
    """Return the sinks that are set; the client library is imported only for them."""
    sinks: list[Sink] = [LogSink()]
    if settings.pushgateway_url or settings.metrics_textfile_dir:
        from scripts.utils.prometheus_sinks import PushgatewaySink, TextfileSink

        if settings.pushgateway_url:
            sinks.append(PushgatewaySink(settings.pushgateway_url.get_secret_value()))
        if settings.metrics_textfile_dir:
            sinks.append(TextfileSink(settings.metrics_textfile_dir))
    return sinks


def emit(settings: Settings, script: str, figures: Sequence[Figure]) -> None:
    """Send a script's figures to every sink; a sink that fails is logged and forgotten."""
    if not figures:
        return
    try:
        sinks = sinks_of(settings)
    except Exception as error:  # noqa: BLE001 - a client library that does not load fails no job either
        get_logger().warning("metrics_lost", sink="all", error=type(error).__name__)
        return
    for sink in sinks:
        try:
            sink.send(script, figures)
        except Exception as error:  # noqa: BLE001 - whatever a sink does wrong, the job's work is done
            get_logger().warning("metrics_lost", sink=type(sink).__name__, error=type(error).__name__)
