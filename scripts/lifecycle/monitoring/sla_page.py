"""The status page: each job's last runs, budget, residue over time and next start, and the open alerts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.monitoring import alert_silences
from scripts.lifecycle.monitoring.job_levels import JobView, budget_percent
from scripts.lifecycle.monitoring.observations import Observation
from scripts.lifecycle.monitoring.policy_levels import PolicyView
from scripts.lifecycle.monitoring.run_history import SHOWN_RUNS, RunFacts
from scripts.lifecycle.monitoring.sla_watch import Picture
from scripts.lifecycle.policy.schedules import next_due
from scripts.utils.pages import duration, environment

_WIDTH, _HEIGHT = 300.0, 100.0
_POINTS = 200


@dataclass(frozen=True)
class Chart:
    """The residue over time as lines; where it could not be counted there is a gap."""

    lines: list[str]
    top: int
    first: datetime | None


def page(run: Run, picture: Picture) -> str:
    """Return one self-contained HTML page; it has no script and loads nothing."""
    made = environment(Path(__file__).parent)
    made.filters["utc"] = lambda moment: f"{moment:%Y-%m-%d %H:%M}"
    alerts, silences = run.database.read(
        lambda connection: (alert_silences.open_alerts(connection), alert_silences.in_force(connection))
    )
    return made.get_template("sla_page.html.jinja").render(
        now=picture.now,
        source=run.settings.alert_source,
        alerts=alerts,
        silences=silences,
        jobs=[_job(run, picture, job) for job in picture.jobs],
        loose=[_policy(view, picture) for view in picture.policies if run.policies.job_of(view.policy.name) is None],
    )


def _job(run: Run, picture: Picture, view: JobView) -> dict[str, Any]:
    shown = list(reversed(view.runs[:SHOWN_RUNS]))
    last = next((each for each in view.attempts if each.outcome != "abandoned"), None)
    percent = budget_percent(view, last, run.settings) if last else None
    warning, critical = run.settings.sla_warning_threshold_percent, run.settings.sla_critical_threshold_percent
    return {
        "name": view.name,
        "runs": [(each.outcome, _told(each, view)) for each in shown],
        "last": view.runs[0] if view.runs else None,
        "percent": percent,
        "level": "ok" if percent is None or percent < warning else "warn" if percent < critical else "bad",
        "budget": view.spec.budget.total_seconds(),
        "next": next_due(view.spec.schedule, view.now),
        "switch": view.switch,
        "policies": [_policy(each, picture) for each in picture.policies if each.job == view.name],
    }


def _told(each: RunFacts, view: JobView) -> str:
    return (
        f"{each.started_at:%Y-%m-%d %H:%M} UTC: {each.outcome}, {each.deleted:,} records,"
        f" {duration(each.seconds(view.now))}"
    )


def _policy(view: PolicyView, picture: Picture) -> dict[str, Any]:
    here = next(seen for seen in picture.observations() if seen.subject == view.policy.name)
    return {
        "name": view.policy.name,
        "status": view.status,
        "residue": view.residue,
        "because": view.because,
        "warning": view.policy.overdue.warning.total_seconds(),
        "critical": view.policy.overdue.critical.total_seconds(),
        "forecast": view.forecast,
        "chart": chart([*(seen for seen in view.history if seen.slot < picture.slot), here]),
    }


def chart(seen: list[Observation]) -> Chart:
    """Return the residue over time as polylines in a box of 300 by 100."""
    if len(seen) > _POINTS:
        step = len(seen) / _POINTS
        seen = [seen[int(number * step)] for number in range(_POINTS - 1)] + [seen[-1]]
    counted = [each.items for each in seen if each.items is not None]
    if not counted:
        return Chart([], 0, None)
    top = max(counted)
    begin, end = seen[0].slot, seen[-1].slot
    length = max((end - begin).total_seconds(), 1.0)
    lines: list[list[str]] = [[]]
    for each in seen:
        if each.items is None:
            lines.append([])
            continue
        x = _WIDTH * (each.slot - begin).total_seconds() / length
        lines[-1].append(f"{x:.1f},{_HEIGHT - _HEIGHT * each.items / max(top, 1):.1f}")
    # A single point would be invisible, so it is drawn as a short level line.
    drawn = [line if len(line) > 1 else [line[0], _beside(line[0])] for line in lines if line]
    return Chart([" ".join(line) for line in drawn], top, begin)


def _beside(point: str) -> str:
    x, _, y = point.partition(",")
    return f"{float(x) + 3:.1f},{y}"
