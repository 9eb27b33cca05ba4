"""Sentry Crons: a scheduled run checks in when it begins its work and when it ends.

Each check-in carries schedule, margin and longest run time from the policy file, so that Sentry makes and keeps the
monitor by itself. A run that did not begin (exit 75) and a dry run send nothing: Sentry must report the run as missed.
"""

from __future__ import annotations

import math
from typing import Any

from scripts.lifecycle.policy.job_specs import JobSpec
from scripts.utils import error_reporting
from scripts.utils.errors import ExitCode
from scripts.utils.logging_utils import get_logger

# After its budget a run may still count what is left, close its record and give the lock back.
CLOSING_MINUTES = 5


class CheckIn:
    """One run's check-ins.

    Args:
        script: The script's name.
        spec: Its schedule; None: the run is not to be watched.
        budget_seconds: How long this run may take.
        grace_minutes: How late it may begin before it counts as missed.
    """

    def __init__(self, script: str, spec: JobSpec | None, budget_seconds: float, grace_minutes: int) -> None:
        self._slug = script.replace("_", "-")
        self._spec = spec
        self._grace_minutes = grace_minutes
        self._minutes = 0
        if spec:
            longest = max(spec.budget.total_seconds(), budget_seconds)
            self._minutes = math.ceil(longest / 60) + CLOSING_MINUTES
        self._id: str | None = None

    def begin(self) -> None:
        """Check in as `in_progress`."""
        self._id = self._send("in_progress")

    def end(self, code: ExitCode, duration_seconds: float) -> None:
        """Check in as `ok` or `error`; also for a run that failed before it could begin."""
        if code is ExitCode.NOT_RUN and self._id is None:
            return
        well = code in (ExitCode.DONE, ExitCode.NEEDS_A_PERSON)
        self._send("ok" if well else "error", duration_seconds)

    def _send(self, status: str, duration_seconds: float | None = None) -> str | None:
        if self._spec is None or not error_reporting.is_active():
            return None
        from sentry_sdk.crons import capture_checkin

        config: Any = {
            "schedule": {"type": "crontab", "value": self._spec.schedule},
            "timezone": "UTC",
            "checkin_margin": self._grace_minutes,
            "max_runtime": self._minutes,
        }
        try:
            return capture_checkin(
                monitor_slug=self._slug,
                check_in_id=self._id,
                status=status,
                duration=duration_seconds,
                monitor_config=config,
            )
        except Exception as error:  # noqa: BLE001 - whatever Sentry does wrong, the job's work comes first
            get_logger().warning("check_in_lost", error=type(error).__name__)
            return None
