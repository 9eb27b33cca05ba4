"""A check, what it finds, and how it is carried out: one that raises fails by itself, the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psycopg

from scripts.lifecycle.jobs.run import Run
from scripts.utils import error_reporting
from scripts.utils.db_utils import explained
from scripts.utils.errors import DatabaseRefused, DatabaseUnavailable, ExitCode, OpsError, StoppedEarly, Unwell
from scripts.utils.redaction import redact
from scripts.utils.tracing import span

Status = Literal["PASS", "WARN", "FAIL"]
CONNECTION = "database"
"""The check that connects; without it no other one looks at the database."""
_REPORT = "report it; the other checks are not affected"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    status: Status
    subject: str
    message: str
    cure: str | None = None
    check: str = ""

    def as_dict(self) -> dict[str, str | None]:
        """Return it for JSON."""
        return {"check": self.check} | {key: value for key, value in asdict(self).items() if key != "check"}


def passed(subject: str, message: str) -> Finding:
    """Return a line that says that something is well."""
    return Finding("PASS", subject, message)


def warned(subject: str, message: str, cure: str) -> Finding:
    """Return a line that asks for attention, with what to do."""
    return Finding("WARN", subject, message, cure)


def failed(subject: str, message: str, cure: str) -> Finding:
    """Return a line that says what does not work, with what to do."""
    return Finding("FAIL", subject, message, cure)


@dataclass
class Context:
    """What the checks look at, and by which clock."""

    run: Run
    blueprint: Path
    """``render.yaml``."""
    policy_file: Path
    fix_zombies: bool = False
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    database_is_away: bool = False


@dataclass(frozen=True)
class Check:
    """One check: its name, what it does, and whether it needs a connection to the database."""

    name: str
    look: Callable[[Context], Iterable[Finding]]
    needs_database: bool = True


def examine(context: Context, checks: Iterable[Check]) -> Iterator[Finding]:
    """Carry out checks one after the other.

    Raises:
        StoppedEarly: A signal came, or the time budget is used up.
    """
    for check in checks:
        context.run.checkpoint()
        with span("check", check.name):
            findings = _findings_of(context, check)
        yield from (Finding(**redact(asdict(finding) | {"check": check.name})) for finding in findings)


def _findings_of(context: Context, check: Check) -> list[Finding]:
    if check.needs_database and context.database_is_away:
        return [failed(check.name, "not looked at: there is no connection to PostgreSQL", f"see the line {CONNECTION}")]
    found: list[Finding] = []
    try:
        found.extend(check.look(context))  # what was found before it raised is kept
    except StoppedEarly:
        raise
    except Exception as error:  # noqa: BLE001 - a bug in one check must not hide what the others find
        found.append(_failure_of(context, check, error))
    # A check that found nothing to look at says so itself: silence is not health.
    return found or [failed(check.name, "looked at nothing", _REPORT)]


def _failure_of(context: Context, check: Check, error: Exception) -> Finding:
    known = explained(error) if isinstance(error, psycopg.Error) else error
    if isinstance(known, DatabaseUnavailable | DatabaseRefused):
        context.database_is_away = True
        message, _, cure = str(known).partition(": ")
        return failed("PostgreSQL", message, cure)
    if isinstance(known, OpsError):
        return failed(check.name, f"could not look: {known}", "see the runbook, scripts/sla-monitoring/README.md")
    error_reporting.report(error)
    return failed(check.name, error_reporting.describe(error), _REPORT)


def verdict(findings: Iterable[Finding]) -> Status:
    """Return the worst status of all."""
    statuses = {finding.status for finding in findings}
    return "FAIL" if "FAIL" in statuses else "WARN" if "WARN" in statuses else "PASS"


def require_well(findings: list[Finding]) -> None:
    """Turn findings into the script's exit code.

    Raises:
        Unwell: Something failed (exit 1) or asks for attention (exit 4).
    """
    counts = {status: sum(finding.status == status for finding in findings) for status in ("FAIL", "WARN")}
    if counts["FAIL"]:
        raise Unwell(f"{counts['FAIL']} failures, {counts['WARN']} warnings", ExitCode.FAILED)
    if counts["WARN"]:
        raise Unwell(f"{counts['WARN']} warnings", ExitCode.NEEDS_A_PERSON)
