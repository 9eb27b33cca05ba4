"""A job stands in many places: policy file, render.yaml, handbook, runbook. What is not the same everywhere."""

import re
from datetime import UTC, datetime, timedelta

from cronsim import CronSim

from scripts.lifecycle.health.blueprint import Reference, Secret, Value
from scripts.lifecycle.monitoring import alerts
from scripts.utils.settings import Settings
from tests.project.conftest import ROOT, SCRIPTS, load_script

CRON = re.compile(r"`((?:[\d*/,-]+ ){4}[\d*/,-]+)`")
BUDGET = re.compile(r"[Tt]ime budget(?: \|)? (\d+) s")
HANDBOOK = "scripts/README.md"
# It changes rows of the manual-resolution queue, which no application writes, each for an instant and without waiting.
# That it needs no right on the application's tables is proved in test_render.py; decision 0015.
BOOKKEEPING = frozenset({"escalate_breaches"})
RENDER_S_LONGEST_RUN = timedelta(hours=12)
SENTRY_S_LONGEST_SLUG = 50
# Who needs which variables; a job that needs none of these has the three that all have.
ALL = frozenset({"DATABASE_URL", "REDIS_URL", "SENTRY_DSN"})
BLOB = frozenset({"BLOB_READ_WRITE_TOKEN"})
ARCHIVE = frozenset({"ARCHIVE_URL", "ARCHIVE_MASTER_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})
ALERTS = frozenset({"MRQ_ALERT_SLACK_WEBHOOK", "PAGERDUTY_ROUTING_KEY"})
NOT_OURS = frozenset({"PYTHON_VERSION"})

FIELDS = {field.alias: field for field in Settings.model_fields.values()}


def is_secret(name):
    """Whether a setting never stands in a file."""
    return "SecretStr" in str(FIELDS[name].annotation)


def documents():
    """The handbook and the runbooks, by their place in the repository."""
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "scripts").rglob("README.md"))}


def script_of(job):
    """The script of a job; None: there is none."""
    return next((path for path in SCRIPTS if path.stem == job), None)


def section(text, name):
    """What stands under the first heading with this name, up to the next one of its rank; None: no such heading."""
    found, level, inside_code = [], 0, False
    for line in text.splitlines():
        inside_code ^= line.lstrip().startswith("```")
        rank = 0 if inside_code else len(line) - len(line.lstrip("#"))
        if level and 0 < rank <= level:
            break
        if not level and rank and re.search(rf"\b{name}(?:\.py)?\b", line):
            level = rank
        elif level:
            found.append(line)
    return "\n".join(found) if level else None


def broken(policies, blueprint, texts):
    """One line for each link between the parts that does not hold, naming the job and the places."""
    found = []
    for name, job in policies.jobs.items():
        found += [f"{name}: {problem}" for problem in _of_job(name, job, policies, blueprint, texts)]
    scripts = {path.stem for path in SCRIPTS}
    for cron in blueprint.crons:
        job = cron.name.replace("-", "_")
        if job not in policies.jobs:
            known = "which is no script" if job not in scripts else "which the policy file's jobs: do not name"
            found.append(f"{cron.name}: render.yaml starts {job}, {known}")
        found += [f"{cron.name}: {problem}" for problem in _of_variables(blueprint, cron)]
    for group in blueprint.env_var_groups:
        for variable in group.env_vars:
            if variable.key in FIELDS and is_secret(variable.key):
                found.append(f"group {group.name}: {variable.key} is a secret, and a group holds none")
    return found + collisions(policies)


def _of_job(name, job, policies, blueprint, texts):
    script = script_of(name)
    if script is None:
        return ["the policy file names it, and no script does"]
    found = []
    if job.budget >= RENDER_S_LONGEST_RUN:
        found.append(f"its budget of {job.budget} is as long as Render lets a run be")
    if len(name) > SENTRY_S_LONGEST_SLUG:
        found.append("its name is too long for a monitor in Sentry Crons")
    service = next((cron for cron in blueprint.crons if cron.name == name.replace("_", "-")), None)
    if service is None:
        found.append(f"render.yaml has no cron service {name.replace('_', '-')}")
    else:
        command = f"python {script.relative_to(ROOT)}"
        if service.schedule != job.schedule:
            found.append(f"render.yaml starts it at {service.schedule}, the policy file says {job.schedule}")
        if service.start_command.partition(" --")[0] != command:
            found.append(f"render.yaml starts it by {service.start_command}, and it is {command}")
        lacking = needed(name, script, policies) - blueprint.variables(service).keys()
        found += [f"render.yaml does not give it {variable}" for variable in sorted(lacking)]
    return found + _of_documents(name, job, script, texts)


def _of_documents(name, job, script, texts):
    found = []
    seconds = f"{job.budget.total_seconds():.0f}"
    place = f"{script.parent.relative_to(ROOT)}/README.md"
    text = section(texts.get(place, ""), name)
    if text is None:
        found.append(f"{place} has no heading for it")
    else:
        schedules, budgets = set(CRON.findall(text)), set(BUDGET.findall(text))
        if schedules != {job.schedule}:
            said = " and ".join(sorted(schedules)) or "nothing"
            found.append(f"{place} says {said} of its schedule, the policy file says {job.schedule}")
        if budgets != {seconds}:
            said = " and ".join(sorted(budgets)) or "nothing"
            found.append(f"{place} says {said} of its time budget, the policy file says {seconds} s")
    row = re.search(rf"^\| `{name}` \|(.*)$", texts[HANDBOOK], re.MULTILINE)
    wanted = [f"`{job.schedule}`", f"{seconds} s", f"`{job.lock}`" if job.lock else "-"]
    there = [cell.strip() for cell in row[1].split("|")][:3] if row else None
    if there != wanted:
        found.append(f"{HANDBOOK}: its row in the table of jobs is {there}, the policy file says {wanted}")
    return found


def needed(name, script, policies):
    """The variables without which a job cannot do its work."""
    own = [policies.policies[policy] for policy in policies.jobs[name].policies]
    health = name == "check_cleanup_health"
    wanted = set(ALL)
    if health or any(policy.blob for policy in own):
        wanted |= BLOB
    if health or any(policy.archive for policy in own):
        wanted |= ARCHIVE
    if any(getattr(each, "__module__", None) == alerts.__name__ for each in vars(load_script(script)).values()):
        wanted |= ALERTS
    return wanted


def _of_variables(blueprint, cron):
    found = []
    for name, variable in blueprint.variables(cron).items():
        if name not in FIELDS and name not in NOT_OURS:
            found.append(f"{name} is no setting of the suite")
        elif name.startswith("CLEANUP_"):
            found.append(f"{name} would override every policy: leave it commented out")
        elif name in FIELDS and is_secret(name) and not isinstance(variable, Secret | Reference):
            found.append(f"{name} is a secret: sync: false, without a value")
        elif isinstance(variable, Value) and name == "DATABASE_URL":
            found.append("DATABASE_URL stands in the file")
    return found


def changes_data(name):
    """Whether a job changes data that others work with: it takes a lock, and not for the queue's bookkeeping alone."""
    script = script_of(name)
    return script is not None and load_script(script).JOB.changes_data and name not in BOOKKEEPING


def collisions(policies, days=400):
    """Pairs of jobs that change data and start in one minute, with the first such minute."""
    begin = datetime(2027, 1, 1, tzinfo=UTC)
    starts, found = {}, []
    for name, job in policies.jobs.items():
        if not changes_data(name):
            continue
        for moment in CronSim(job.schedule, begin - timedelta(minutes=1)):
            if moment > begin + timedelta(days=days):
                break
            other = starts.setdefault(moment, name)
            if other != name:
                found.append(
                    f"{name}: starts in the same minute as {other} ({job.schedule} and"
                    f" {policies.jobs[other].schedule}, first on {moment:%Y-%m-%d at %H:%M} UTC); both change data"
                )
                break
    return found
