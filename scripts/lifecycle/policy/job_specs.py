"""One job: when a script runs, how long, under which lock, and which policies it carries out."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, WithJsonSchema

from scripts.lifecycle.policy import shapes
from scripts.lifecycle.policy.fields import Model, Name, matching
from scripts.lifecycle.policy.periods import Duration

_LOCK = re.compile(r"lock:[a-z_]+:[a-z_]+")


def _cron(value: str) -> str:
    if not value.isascii():
        raise ValueError("is not a cron expression: its digits and names are ASCII")
    try:
        CronSim(value, datetime(2026, 1, 1))  # noqa: DTZ001 - only the expression is checked
    except CronSimError as error:
        raise ValueError(f"is not a cron expression: {error}") from None
    return value


class JobSpec(Model):
    """When a script runs, how long it may take, its lock, and the policies that it carries out."""

    schedule: Annotated[str, AfterValidator(_cron)]
    """When the script starts: a cron expression, in UTC."""
    budget: Duration
    """How long the script may take; then it stops after a batch, and the next run goes on."""
    policies: tuple[Name, ...] = ()
    """The policies that the script carries out. Each policy belongs to one job."""
    lock: (
        Annotated[
            str,
            matching(_LOCK, "a lock's name, such as lock:cleanup:quiz_responses"),
            WithJsonSchema(shapes.LOCK),
        ]
        | None
    ) = None
    """The name of the lock that keeps a second run from starting. A script that changes data has one."""
