"""Refuse a run that would delete more than its caps allow, before the first row goes; caps are on by default."""

from __future__ import annotations

from datetime import datetime

from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.engine.survey import Survey
from scripts.lifecycle.jobs import runs
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.periods import Period
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.policy_file import parse_policies
from scripts.lifecycle.policy.rules import Rule
from scripts.lifecycle.purge import row_period_caps
from scripts.utils.db_utils import Connection
from scripts.utils.errors import OpsError

UNUSUAL_FACTOR = 20
UNUSUAL_MINIMUM_ROWS = 10_000


def refusal(run: Run, connection: Connection, selection: Selection, found: Survey) -> str | None:
    """Return why the rows must not be deleted without ``--confirm-cap``; None: they may. Dependants count like rows.

    Args:
        run: The run, with ``--limit`` and ``--confirm-cap``.
        connection: A connection.
        selection: What the policy selects; the policy has its caps.
        found: The rows past their date.
    """
    policy = selection.policy
    if found.unfit > policy.max_poison:
        return (
            f"{found.unfit} due rows name no blob that the policy may delete, max_poison is {policy.max_poison}:"
            " is it the right store and prefix?"
        )
    rows = found.removable if run.options.limit is None else min(found.removable, run.options.limit)
    due = f"{rows} rows are due"
    if found.dependants:
        due += f" and {found.dependants} dependants would go along or be cut off, {rows + found.dependants} in all"
        rows += found.dependants
    confirmed = run.options.confirm_cap
    if confirmed is not None:
        return f"{due}, --confirm-cap allows {confirmed}" if rows > confirmed else None
    cure = f"look at a dry run, then allow it once with --confirm-cap {rows}, or some more"
    if rows > policy.max_rows:
        return f"{due}, the policy's max_rows is {policy.max_rows}: {cure}"
    scripts = {run.script, run.job}
    usual = runs.usual_rows(connection, list(scripts), policy.name)
    if usual is not None and rows > UNUSUAL_MINIMUM_ROWS and rows > UNUSUAL_FACTOR * usual:
        return f"{due}, more than {UNUSUAL_FACTOR} times the usual {usual:.0f}: {cure}"
    document = runs.last_policy_document(connection, list(scripts), policy.name, run.policies.hash)
    shorter = _shortened(document, policy, run.cutoff, rules=rows > 0) if document else []
    return _of_shorter_periods(connection, selection, shorter, cure, rules=rows > 0)


def _of_shorter_periods(
    connection: Connection, selection: Selection, shorter: list[str], cure: str, *, rules: bool
) -> str | None:
    """Return why rows must not go that would have stayed the last time: the file, or another table's rows, say so."""
    if shorter:
        return f"the period of {', '.join(shorter)} became shorter since the last completed run: {cure}"
    saved = row_period_caps.shortened(connection, selection) if rules else {}
    told = [f"{number} rows by the period of {rule}" for rule, number in saved.items()]
    if told:
        return (
            f"{', '.join(told)} would stay by what the last completed run found: rows of another table say a shorter"
            f" period since; {cure}"
        )
    return None


def _shortened(document: str, policy: Policy, at: datetime, *, rules: bool) -> list[str]:
    try:
        former = parse_policies(document, "of the last completed run").policies.get(policy.name)
    except OpsError:
        return []  # this version of the suite cannot read the older file, so there is nothing to compare
    if former is None:
        return []
    shortened = [
        name
        for name, rule in policy.rules.items()
        if rules and name in former.rules and _may_be_shorter(rule, former.rules[name], at)
    ]
    if policy.archive and former.archive and policy.archive.keep.is_shorter_than(former.archive.keep, at):
        shortened.append("archive")
    return shortened


def _may_be_shorter(rule: Rule, former: Rule, at: datetime) -> bool:
    """Tell whether a change of the file may have made a row's period shorter.

    Where each row says its period, the file has the bounds, the period of rows that say none, and what is read how.
    """
    forever = Period("forever", None)
    if isinstance(rule.keep, Period) and isinstance(former.keep, Period):
        return rule.keep.is_shorter_than(former.keep, at)
    if isinstance(rule.keep, Period):
        return rule.keep.is_shorter_than(former.ceiling or forever, at)
    if isinstance(former.keep, Period):
        return rule.least.is_shorter_than(former.keep, at)
    lower = rule.least.is_shorter_than(former.least, at)
    capped = rule.ceiling is not None and rule.ceiling.is_shorter_than(former.ceiling or forever, at)
    otherwise = rule.keep.otherwise.is_shorter_than(former.keep.otherwise, at)
    read = rule.keep.model_copy(update={"otherwise": former.keep.otherwise})
    return lower or capped or otherwise or read != former.keep
