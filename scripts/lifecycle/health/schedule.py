"""Checks that render.yaml starts each job at the time that the policy file says."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from scripts.lifecycle.health.blueprint import Cron, load_blueprint
from scripts.lifecycle.health.findings import Context, Finding, failed, passed, warned
from scripts.utils.errors import Misconfigured

_SCRIPT = re.compile(r"(\w+)\.py\b")


def schedule(context: Context) -> Iterator[Finding]:
    """Compare the cron services of render.yaml with the jobs of the policy file."""
    path = context.blueprint
    if not path.exists():
        yield warned(
            path.name, "is not there: schedules could not be compared", f"put it at {path}, or name it: --render-yaml"
        )
        return
    try:
        crons = _schedules(load_blueprint(path).crons)
    except Misconfigured as error:
        yield failed(path.name, str(error), "correct it; then render blueprints validate")
        return
    jobs = context.run.policies.jobs
    found = []
    for name, job in jobs.items():
        if name not in crons:
            cure = f"add a service of type cron that starts {name}.py at {job.schedule}"
            found.append(failed(name, f"no cron service of {path.name} starts it", cure))
        elif job.schedule not in crons[name]:
            there = " and ".join(crons[name])
            cure = f"make them the same: jobs.{name}.schedule in the policy file, schedule in {path.name}"
            found.append(failed(name, f"starts at {there}, and the policy file says {job.schedule}", cure))
    found += [
        warned(name, f"{path.name} starts it, and the policy file does not know it", f"add jobs.{name}, or take it out")
        for name in sorted(crons.keys() - jobs.keys())
    ]
    yield from found or [passed(path.name, f"{len(jobs)} jobs start when the policy file says")]


def _schedules(crons: list[Cron]) -> dict[str, list[str]]:
    """Return the schedules of each script that a cron service starts."""
    found = defaultdict(list)
    for cron in crons:
        for script in _SCRIPT.findall(cron.start_command or cron.docker_command or ""):
            found[script].append(" ".join(cron.schedule.split()))
    return dict(found)
