"""The run's figures, handed to whatever sinks there are; losing a sink never fails a job.

Names follow Prometheus' conventions for batch jobs: gauges, base units, timestamps rather than ages.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from scripts.lifecycle.results import PolicyResult
from scripts.utils.logging_utils import get_logger


@dataclass(frozen=True)
class Figure:
    """One gauge."""

    name: str
    value: float
    labels: dict[str, str] = field(default_factory=dict)


class Sink(Protocol):
    """Where figures go."""

    def send(self, figures: Sequence[Figure]) -> None:
        """Deliver them, or raise."""


class LogSink:
    """One log line with all the figures, so that a log store alone is enough."""

    def send(self, figures: Sequence[Figure]) -> None:
        """Write the line."""
        get_logger().info(
            "run_figures",
            figures=[{"name": figure.name, "value": figure.value, **figure.labels} for figure in figures],
        )


SINKS: list[Sink] = [LogSink()]


def figures_of(
    script: str, results: Iterable[PolicyResult], *, duration_seconds: float, exit_code: int
) -> list[Figure]:
    """Return a run's figures; what could not be counted has none."""
    job = {"job": script}
    figures = [
        Figure("lifecycle_job_last_completion_timestamp_seconds", time.time(), job),
        Figure("lifecycle_job_last_run_duration_seconds", round(duration_seconds, 3), job),
        Figure("lifecycle_job_last_exit_code", exit_code, job),
    ]
    if exit_code in (0, 4):
        figures.append(Figure("lifecycle_job_last_success_timestamp_seconds", time.time(), job))
    for result in results:
        labels = {**job, "policy": result.policy}
        figures.append(Figure("lifecycle_job_last_run_records_deleted", result.records_deleted, labels))
        if result.records_remaining is not None:
            figures.append(Figure("lifecycle_job_records_remaining", result.records_remaining, labels))
        if result.oldest_overdue_seconds is not None:
            figures.append(Figure("lifecycle_job_oldest_overdue_seconds", result.oldest_overdue_seconds, labels))
    return figures


def emit(script: str, results: Iterable[PolicyResult], *, duration_seconds: float, exit_code: int) -> None:
    """Send a run's figures to every sink; a sink that fails is logged and forgotten."""
    figures = figures_of(script, results, duration_seconds=duration_seconds, exit_code=exit_code)
    for sink in SINKS:
        try:
            sink.send(figures)
        except Exception as error:  # noqa: BLE001 - whatever a sink does wrong, the job's work is done
            get_logger().warning("metrics_lost", sink=type(sink).__name__, error=type(error).__name__)
