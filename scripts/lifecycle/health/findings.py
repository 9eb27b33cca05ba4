"""What a check and a finding are, and how checks are carried out: one that raises fails by itself, the rest go on."""

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
"""The name of the check that connects; if it fails, no other check looks at the database."""
_REPORT = "report it; the other checks are not affected"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    status: Status
    subject: str
    message: str
    cure: str | None = None
    check: str = ""
    advice: bool = False
    """Whether everything works without the cure as long as the table is small: an index is missing."""

    def as_dict(self) -> dict[str, str | None]:
        """Return it for JSON."""
        own = {key: value for key, value in asdict(self).items() if key not in ("check", "advice")}
        return {"check": self.check} | own


def passed(subject: str, message: str) -> Finding:
    """Return a finding that says that something is well."""
    return Finding("PASS", subject, message)


def warned(subject: str, message: str, cure: str) -> Finding:
    """Return a finding that asks for attention, with its cure."""
    return Finding("WARN", subject, message, cure)


def advised(subject: str, message: str, cure: str) -> Finding:
    """Return a warning about a missing index: see :attr:`Finding.advice`."""
    return Finding("WARN", subject, message, cure, advice=True)


def failed(subject: str, message: str, cure: str) -> Finding:
    """Return a finding that says what does not work, with its cure."""
    return Finding("FAIL", subject, message, cure)


@dataclass
class Context:
    """What every check is given: the run, the files to look at, and this machine's clock."""

    run: Run
    blueprint: Path
    """``render.yaml``."""
    policy_file: Path
    fix_zombies: bool = False
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    database_is_away: bool = False


@dataclass(frozen=True)
class Check:
    """One check: its name, its function, and whether it needs a connection to the database."""

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
        found.extend(check.look(context))  # findings from before an error are kept
    except StoppedEarly:
        raise
    except Exception as error:  # noqa: BLE001 - a bug in one check must not hide what the others find
        found.append(_failure_of(context, check, error))
    # A check that has nothing to look at yields a PASS that says so. No finding at all is a fault of the check.
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
    """Raise if a finding is not PASS, with the script's exit code.

    Raises:
        Unwell: Something failed (exit 1) or asks for attention (exit 4).
    """
    counts = {status: sum(finding.status == status for finding in findings) for status in ("FAIL", "WARN")}
    if counts["FAIL"]:
        raise Unwell(f"{counts['FAIL']} failures, {counts['WARN']} warnings", ExitCode.FAILED)
    if counts["WARN"]:
        raise Unwell(f"{counts['WARN']} warnings", ExitCode.NEEDS_A_PERSON)
