"""The stop switch: a row in ops.stop_switches that stops a job wherever it runs, and keeps it from starting.

Turning the switch on or off closes the gate (a trigger on the table): the change waits for the batches under way, and
every batch that begins afterwards sees the row. Once :func:`turn_on` has returned, no batch of the job commits any
more. Dry runs and operators' commands are not stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from scripts.lifecycle.audit import audit
from scripts.utils.db_utils import Connection, Database, ReadOnlyDatabase
from scripts.utils.errors import Misconfigured, SwitchedOff

ALL = "*"
"""Stands for a job's name and means every job."""


@dataclass(frozen=True)
class Switch:
    """A stop switch that is on."""

    job: str
    stopped_by: str
    reason: str
    stopped_at: datetime

    def stops(self, job: str) -> bool:
        """Tell whether this switch stops a job; ``*`` asks about any."""
        return job == ALL or self.job in (ALL, job)

    def __str__(self) -> str:
        """Describe the switch to an operator."""
        which = "all jobs" if self.job == ALL else self.job
        since = f"{self.stopped_at:%Y-%m-%dT%H:%M:%SZ}"
        return f"the stop switch for {which} is on since {since} (by {self.stopped_by}: {self.reason})"


@dataclass(frozen=True)
class RunningRun:
    """A run whose record is open.

    The record of a run that was killed stays open until the job's next run closes it; its heartbeat gets old meanwhile.
    """

    script: str
    policy: str
    correlation_id: str
    host: str
    pid: int
    started_at: datetime
    silent_seconds: int
    """Seconds since the last heartbeat, by the database's clock."""


@dataclass(frozen=True)
class Status:
    """The switches that are on and the runs whose records are open, in one snapshot."""

    switches: list[Switch]
    running: list[RunningRun]

    def running_under(self, switch: Switch) -> list[RunningRun]:
        """Return the open runs of the jobs that a switch stops."""
        return [run for run in self.running if switch.stops(run.script)]


def refuse_if_on(database: ReadOnlyDatabase, job: str) -> None:
    """Keep a job from starting.

    Raises:
        SwitchedOff: A switch for this job, or for all, is on.
    """
    switches = [switch for switch in database.read(_switches) if switch.stops(job)]
    if switches:
        raise SwitchedOff(str(switches[0]))


def turn_on(database: Database, job: str, *, operator: str, reason: str) -> tuple[Switch, bool]:
    """Stop a job, or all jobs with ``*``.

    Args:
        database: The database.
        job: The job's name, or ``*``.
        operator: The handle of the operator, for the audit.
        reason: Why the job is stopped; kept while the switch is on.

    Returns:
        The switch, and whether it was turned on now: a switch that is on already is not changed.

    Raises:
        Misconfigured: The reason is empty.
        GateBusy: The batches under way did not end in time; the switch is not on.
    """
    if not reason.strip():
        raise Misconfigured("--reason is empty: a person who finds the jobs stopped must be able to read why")
    already = _look(database, job)  # looks without closing the gate, because that would delay the batches of every job
    if already:
        return already, False
    with database.closing_gate() as connection:
        already = _switch(connection, job)
        if already:
            return already, False
        connection.execute(
            "INSERT INTO ops.stop_switches (job, stopped_by, reason) VALUES (%s, %s, %s)", (job, operator, reason)
        )
        switch = _switch(connection, job)
        _audit(connection, "stop_switch_on", job, operator)
    if switch is None:
        raise AssertionError("the row was inserted in this very transaction")
    return switch, True


def turn_off(database: Database, job: str, *, operator: str) -> Switch | None:
    """Let a job, or with ``*`` all that have no switch of their own, start again.

    Returns:
        The switch that was on, or None if none was.

    Raises:
        GateBusy: The batches under way did not end in time; nothing was switched.
    """
    if not _look(database, job):
        return None
    with database.closing_gate() as connection:
        switch = _switch(connection, job)
        if switch:
            connection.execute("DELETE FROM ops.stop_switches WHERE job = %s", (job,))
            _audit(connection, "stop_switch_off", job, operator)
    return switch


def status(database: ReadOnlyDatabase) -> Status:
    """Return what is on and what runs."""
    with database.snapshot() as connection:
        switches = _switches(connection)
        with connection.cursor(row_factory=class_row(RunningRun)) as cursor:
            running = cursor.execute(
                "SELECT script, policy, correlation_id, host, pid, started_at,"
                " greatest(0, extract(epoch FROM now() - heartbeat_at))::int AS silent_seconds"
                " FROM ops.job_runs WHERE status = 'running' ORDER BY started_at, id"
            ).fetchall()
    return Status(switches, running)


def _look(database: ReadOnlyDatabase, job: str) -> Switch | None:
    return database.read(lambda connection: _switch(connection, job))


def _switches(connection: Connection) -> list[Switch]:
    with connection.cursor(row_factory=class_row(Switch)) as cursor:
        return cursor.execute(
            "SELECT job, stopped_by, reason, stopped_at FROM ops.stop_switches ORDER BY stopped_at, job"
        ).fetchall()


def _switch(connection: Connection, job: str) -> Switch | None:
    return next((switch for switch in _switches(connection) if switch.job == job), None)


def _audit(connection: Connection, action: str, job: str, operator: str) -> None:
    audit.append(
        connection,
        actor=f"operator:{operator}",
        action=action,
        resource_type="ops.stop_switches",
        resource_ids=[job],
        reason="stop_switch",
    )
