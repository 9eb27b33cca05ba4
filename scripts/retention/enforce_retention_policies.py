#!/usr/bin/env python3
"""Carry out the policies that have no script of their own; with --all, every policy of the file.

Children before parents, each with its share of the time, none stopping the others. --plan, --apply and --compare make,
carry out and compare plans; --check is for a developer's CI, --suggest for a database without a policy file.

Policies: those under this job's name · Schedule and budget: retention_policies.yaml, jobs
Runbook: scripts/retention/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from scripts.lifecycle.health import policy_check, suggestion
from scripts.lifecycle.jobs.entry_point import Job, Run, main
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from scripts.lifecycle.purge import orchestrator, plans
from scripts.utils.errors import Misconfigured
from scripts.utils.logging_utils import get_logger

TOLERANCE_PERCENT = 5.0


class _ReadOnly(argparse.Action):
    """A flag that makes the run a dry run: nothing is written to the database."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        setattr(namespace, self.dest, values if self.nargs != 0 else True)
        namespace.dry_run = True
        if self.dest == "suggest":
            namespace.log_format = "console"  # standard output is the policy file's


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags: which policies, and what to do with them."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="every policy of the file, each under its own job's lock")
    which.add_argument("--only", action="append", metavar="POLICY", help="only this one; may be repeated")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--plan",
        type=Path,
        action=_ReadOnly,
        metavar="OUT",
        help="write a plan of what would go to this file, change nothing",
    )
    what.add_argument(
        "--apply", type=Path, metavar="PLAN", help="carry out a plan, if the data are still those of the plan"
    )
    what.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        action=_ReadOnly,
        metavar=("A", "B"),
        help="compare two plans: what B deletes or keeps in comparison with A",
    )
    what.add_argument(
        "--check", nargs=0, default=False, action=_ReadOnly, help="check the policy file against this database; for CI"
    )
    what.add_argument(
        "--suggest",
        nargs=0,
        default=False,
        action=_ReadOnly,
        help="print a policy file for the tables of this database; with --policy-file, only what that does not cover",
    )
    parser.add_argument(
        "--tolerance",
        type=_percent,
        default=TOLERANCE_PERCENT,
        metavar="PERCENT",
        help="by how much a plan's counts may differ; with 0 the rows must be the very same (default 5)",
    )


def spelled(words: list[str]) -> list[str]:
    """Return the command line without the policy file, where ``--suggest`` is given one that says nothing yet."""
    if "--suggest" not in words:
        return words
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    named.add_argument("--policy-file", type=Path)
    given, others = named.parse_known_args(words)
    empty = given.policy_file and given.policy_file.is_file() and not _says_something(given.policy_file)
    return others if empty else words


def _says_something(path: Path) -> bool:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.strip() and not line.lstrip().startswith("#") for line in lines)


def work(run: Run) -> None:
    """Carry out the policies, or make, carry out, compare a plan, or check the file.

    Raises:
        Misconfigured: A flag does not go with what was asked for.
    """
    flags = run.options.flags
    if flags.compare:
        _compare(run, *flags.compare)
    elif flags.check:
        policy_check.check(run)
    elif flags.suggest:
        suggestion.suggest(run, beside=None if flags.policy_file == DEFAULT_POLICY_FILE else run.policies)
    elif flags.plan:
        if run.options.limit or run.options.rollout:
            raise Misconfigured("--plan is about all that would go: --limit and --rollout belong to --apply")
        plan = plans.make(run, orchestrator.ordered(run, _named(run)))
        plans.write(plan, flags.plan)
        get_logger().info("plan_written", plan=plan.digest, cutoff_at=plan.cutoff_at, policies=len(plan.policies))
    elif flags.apply:
        _apply(run, flags.apply)
    else:
        orchestrator.carry_out(run, orchestrator.ordered(run, _named(run)))


def _named(run: Run) -> list[str]:
    flags = run.options.flags
    if flags.all:
        return list(run.policies.policies)
    if flags.only:
        unknown = [name for name in flags.only if name not in run.policies.policies]
        if unknown:
            raise Misconfigured(f"--only {', '.join(unknown)}: the policy file has no such policy")
        return [name for name in run.policies.policies if name in flags.only]
    return orchestrator.own_policies(run)


def _apply(run: Run, path: Path) -> None:
    flags = run.options.flags
    if flags.all or flags.only or run.options.as_of:
        raise Misconfigured("--apply does what its plan says: --all, --only and --as-of belong to --plan")
    plan = plans.read(path)
    plans.require_current(run, plan, flags.tolerance)
    # The other way round: a child or a PDF that goes first would let rows go after it that nobody approved.
    names = orchestrator.ordered(run, [planned.policy for planned in plan.policies])
    try:
        orchestrator.carry_out(run, names[::-1])
    finally:
        plans.tell_differences(plan, run.results)


def _compare(run: Run, first: Path, second: Path) -> None:
    before, after = plans.read(first), plans.read(second)
    if before.cutoff_at != after.cutoff_at:
        get_logger().warning(
            "plans_of_different_days", first=before.cutoff_at, second=after.cutoff_at, effect="time is in the figures"
        )
    changes = plans.compare(before, after)
    for change in changes:
        get_logger().info("plan_compared", **asdict(change))
    if not run.display.enabled:
        return
    rows = []
    for change in changes:
        counts = ("-" if count is None else f"{count:,}" for count in (change.first, change.second))
        by_rule = ", ".join(f"{rule} {count:+,}" for rule, count in change.by_rule.items() if count)
        rows.append((change.policy, *counts, f"{change.frees:,}", f"{change.keeps:,}", by_rule))
    headings = ("policy", "first", "second", "frees", "keeps", "by rule")
    run.display.listing("from the first plan to the second", headings, rows)


def _percent(text: str) -> float:
    try:
        percent = float(text)
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 100")
    return percent


JOB = Job(
    "enforce_retention_policies",
    work,
    "Carry out the policies that have no script of their own; with --all, every policy of the file.",
    events="retention",
    arguments=arguments,
    spelled=spelled,
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
