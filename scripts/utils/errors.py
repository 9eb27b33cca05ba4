"""Every error that an operator can meet, named after what happened.

A leaf says which exit code it leads to (see :class:`ExitCode`); nothing else in the suite decides on one.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class ExitCode(IntEnum):
    """The exit codes of the scripts; :func:`worst` has their order of precedence."""

    DONE = 0
    FAILED = 1
    MISCONFIGURED = 2
    STOPPED_EARLY = 3
    NEEDS_A_PERSON = 4
    NOT_RUN = 75
    SIGINT = 130
    SIGTERM = 143


_PRECEDENCE = (
    ExitCode.MISCONFIGURED,
    ExitCode.FAILED,
    ExitCode.SIGTERM,
    ExitCode.SIGINT,
    ExitCode.STOPPED_EARLY,
    ExitCode.NEEDS_A_PERSON,
    ExitCode.NOT_RUN,
    ExitCode.DONE,
)


def worst(codes: list[ExitCode]) -> ExitCode:
    """Return the code that stands for all of them: 2, 1, 143/130, 3, 4, 75, 0."""
    return min(codes, key=_PRECEDENCE.index, default=ExitCode.DONE)


class OpsError(Exception):
    """Something went wrong that the message explains; no traceback is shown for it."""

    exit_code = ExitCode.FAILED
    stop_reason = "failed"
    """Stable code for logs and the run record."""


class Misconfigured(OpsError):
    """A setting, an argument or the policy file is wrong."""

    exit_code = ExitCode.MISCONFIGURED
    stop_reason = "misconfigured"


class NotRun(OpsError):
    """This job must not run now, and did not."""

    exit_code = ExitCode.NOT_RUN
    stop_reason = "not_run"


class LockHeld(NotRun):
    """Another run holds the lock."""

    stop_reason = "lock_held"


class SwitchedOff(NotRun):
    """The stop switch is on."""

    stop_reason = "stop_switch"


class StoppedEarly(OpsError):
    """The run ended between two batches with work left.

    Args:
        stop_reason: Stable code for logs and the run record, such as ``time_budget``.
        message: What happened, for a person.
        exit_code: 3 unless a signal asked for the stop.
    """

    exit_code = ExitCode.STOPPED_EARLY

    def __init__(self, stop_reason: str, message: str, exit_code: ExitCode = ExitCode.STOPPED_EARLY) -> None:
        super().__init__(message)
        self.stop_reason = stop_reason
        self.exit_code = exit_code


class PolicyFailed(OpsError):
    """One policy could not be carried out; the others go on.

    Args:
        stop_reason: Stable code, such as ``preflight_failed`` or ``cap_exceeded``.
        message: What is wrong, where, and what to do.
    """

    def __init__(self, stop_reason: str, message: str) -> None:
        super().__init__(message)
        self.stop_reason = stop_reason


class PlanDrifted(OpsError):
    """What a plan was made of is no longer so; nothing was done."""

    stop_reason = "plan_drifted"


class AuditBroken(OpsError):
    """The audit chain does not verify."""

    stop_reason = "audit_broken"


class Unwell(OpsError):
    """The health check found something.

    Args:
        message: How much, for a person.
        exit_code: 4 for warnings, 1 for failures.
    """

    stop_reason = "unwell"

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class DatabaseUnavailable(OpsError):
    """PostgreSQL did not answer within the bounds of the retries."""

    stop_reason = "database_unavailable"


class DatabaseFailed(OpsError):
    """PostgreSQL refused a statement outside the batches."""

    stop_reason = "database_error"


class GateBusy(OpsError):
    """The batches under way, or another session at the gate, did not let this one close it in time."""

    stop_reason = "gate_closed"


class DatabaseRefused(Misconfigured):
    """PostgreSQL answered and refused: password, role, database or missing schema."""

    stop_reason = "database_refused"


# PostgreSQL's own functions that refuse a statement and name nothing but objects of the catalogue in their message.
_NAMING_OBJECTS = frozenset(
    {"aclcheck_error", "aclcheck_error_col", "aclcheck_error_type", "nextval_internal"}
    | {"CheckCmdReplicaIdentity", "CheckValidResultRel"}
)
# So do all errors of these classes, where no function of the application built the statement.
_CLASSES_NAMING_OBJECTS = ("0A", "25", "3F", "42", "55")
# Such as: PL/pgSQL function log_it() line 3 at SQL statement. The words around the name follow lc_messages.
_CALLED = re.compile(r"([\w.$\"]+)\([^()]*\)")


def functions_of(error: psycopg.Error) -> list[str]:
    """Return the functions of the database in which an error was raised, the innermost first, without schema."""
    lines = (error.diag.context or "").splitlines()
    named = [_CALLED.search(line) for line in lines if "pl/" in line.lower()]
    return list(dict.fromkeys(match[1].rpartition(".")[2].strip('"') for match in named if match))


def describe_database_error(error: psycopg.Error) -> str:
    """Name a driver error without any value of a row.

    PostgreSQL's message and DETAIL may quote values, which may be personal. SQLSTATE, the names of objects and of
    the functions that were running are safe to log; the message is, where it can name nothing else.
    """
    diag = error.diag
    functions = functions_of(error)
    facts = {
        "SQLSTATE": error.sqlstate,
        "schema": diag.schema_name,
        "table": diag.table_name,
        "column": diag.column_name,
        "constraint": diag.constraint_name,
        "in function": " called by ".join(functions),
    }
    named = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    said = f"{type(error).__name__}" + (f" ({named})" if named else "")
    harmless = not diag.context and (error.sqlstate or "").startswith(_CLASSES_NAMING_OBJECTS)
    if diag.message_primary and (harmless or diag.source_function in _NAMING_OBJECTS):
        said += f": {diag.message_primary}"
    return said


def pydantic_message(detail: ErrorDetails, **instead: str) -> str:
    """Return what pydantic found wrong with one value.

    Args:
        detail: The error.
        instead: Our own words for some of pydantic's types of error, such as ``missing``.
    """
    return instead.get(detail["type"], detail["msg"].removeprefix("Value error, "))
