"""The flags that every script knows, and what beats what: flags, environment, policy file."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from scripts.lifecycle.jobs.run import Job, Options
from scripts.lifecycle.policy.job_specs import JobSpec
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from scripts.utils.settings import Settings

# An operator's command has no line under jobs: in the policy file.
COMMAND_SECONDS = 3600.0
MAX_BATCH_ROWS = 100_000
_JOB_DEFAULTS = {
    "dry_run": False,
    "limit": None,
    "rollout": False,
    "batch_size": None,
    "max_duration": None,
    "confirm_cap": None,
    "as_of": None,
}


def options_of(job: Job, flags: argparse.Namespace, settings: Settings, spec: JobSpec | None) -> Options:
    """Return a run's options: a flag takes precedence over the environment, the environment over the policy file.

    Args:
        job: The job; one that changes no data has no options of a run that deletes.
        flags: The parsed command line.
        settings: The settings from the environment.
        spec: The job's entry in the policy file; None: it has none.
    """
    budget = settings.cleanup_max_duration_seconds or (spec.budget.total_seconds() if spec else COMMAND_SECONDS)
    if not job.changes_data:
        return Options(flags.dry_run or settings.cleanup_dry_run, None, None, budget, None, None, False, flags)
    return Options(
        dry_run=flags.dry_run or settings.cleanup_dry_run,
        limit=flags.limit,
        batch_size=flags.batch_size or settings.cleanup_batch_size,
        max_duration=flags.max_duration or budget,
        confirm_cap=flags.confirm_cap,
        as_of=flags.as_of,
        rollout=flags.rollout,
        flags=flags,
    )


def parser_of(job: Job) -> argparse.ArgumentParser:
    """Return the job's command line."""
    parser = argparse.ArgumentParser(
        prog=f"{job.name}.py",
        description=job.description,
        epilog="This help needs no environment. Settings, exit codes and runbooks: README.md.",
    )
    parser.set_defaults(**_JOB_DEFAULTS)
    if job.changes_data:
        add_job_flags(parser, purges=job.purges)
    parser.set_defaults(policy_file=DEFAULT_POLICY_FILE, log_format=None, verbose=False, operator=None)
    add_common_flags(parser)
    if job.arguments:
        job.arguments(parser)
    return parser


def add_job_flags(parser: argparse.ArgumentParser, *, purges: bool = True) -> None:
    """Add what every job knows that changes data; a job with verbs adds it to the one that is its work too.

    Args:
        parser: The script's, or the verb's.
        purges: Whether it deletes by policy, and so knows the caps.
    """
    absent = argparse.SUPPRESS
    parser.add_argument("--dry-run", action="store_true", default=absent, help="say what would happen, write nothing")
    parser.add_argument("--max-duration", type=positive, default=absent, metavar="SECONDS", help="stop after this time")
    if not purges:
        return
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--limit", type=positive, default=absent, metavar="N", help="delete at most N rows a policy, then stop"
    )
    amount.add_argument(
        "--rollout", action="store_true", default=absent, help="10 rows, 100, 1000, the rest, each step checked"
    )
    parser.add_argument("--batch-size", type=_batch_rows, default=absent, metavar="N", help="rows a batch")
    parser.add_argument(
        "--confirm-cap", type=positive, default=absent, metavar="N", help="allow N rows once, beyond the caps"
    )
    parser.add_argument(
        "--as-of", type=moment, default=absent, metavar="T", help="cut-off, such as 2026-01-31T02:00:00Z"
    )


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Add what every script knows; a command with verbs adds it to each verb too."""
    absent = argparse.SUPPRESS
    parser.add_argument("--policy-file", type=Path, default=absent, metavar="PATH", help="the policies")
    parser.add_argument(
        "--log-format", choices=["json", "console"], default=absent, help="default: console on a terminal"
    )
    parser.add_argument("--verbose", action="store_true", default=absent, help="every batch and detail")


def add_operator_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--operator``; a command with verbs adds it to each verb. :attr:`Run.operator` checks the handle."""
    parser.add_argument(
        "--operator", default=argparse.SUPPRESS, help="your handle, for the audit; else OPERATOR, else the login name"
    )


def _batch_rows(text: str) -> int:
    rows = positive(text)
    if rows > MAX_BATCH_ROWS:
        raise argparse.ArgumentTypeError(f"{rows} is more than {MAX_BATCH_ROWS}")
    return rows


def positive(text: str) -> int:
    """Read a whole number above 0 from the command line.

    Raises:
        argparse.ArgumentTypeError: The text is no such number.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def moment(text: str) -> datetime:
    """Read a time with its zone from the command line.

    Raises:
        argparse.ArgumentTypeError: The text is no time, or has no time zone.
    """
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-01-31T02:00:00Z") from None
    if parsed.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone: add Z or an offset")
    return parsed.astimezone(UTC)
