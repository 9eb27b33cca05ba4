"""Drop partitions of which every row is due; audit the drop, and archive the rows first if the policy says so.

The first transaction detaches the partition and marks it in ops.detached_partitions; it is short. The second one holds
the gate: it looks at every row once more, writes the audit and drops the table. A run that is killed in between leaves
the mark: the partition's rows count as still to go, and the next run drops the partition or attaches it again. The
functions of migration 0011 detach, drop and attach with the rights of the migrations' role, and they check what may be
dropped by themselves. Rows of a partition that cannot be dropped are deleted in batches.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from scripts.lifecycle.engine.fragments import fragment
from scripts.lifecycle.engine.gated import (
    MAY_RUN,
    Blocked,
    Context,
    GatedTransaction,
    require_may_run,
)
from scripts.lifecycle.engine.policy_run import within_budget
from scripts.lifecycle.engine.preflight import Cleared
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.engine.survey import Survey
from scripts.lifecycle.jobs import handover
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.row_periods import RowPeriod
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection, Result, connection_lost, is_deadlock
from scripts.utils.errors import DatabaseUnavailable, StoppedEarly, describe_database_error
from scripts.utils.logging_utils import get_logger
from scripts.utils.retry_utils import retry
from scripts.utils.tracing import span

if TYPE_CHECKING:
    from scripts.lifecycle.archives.batches import Archiver
    from scripts.lifecycle.engine.loop import Worker
    from scripts.lifecycle.purge.partition_archives import Piece

_ATTEMPTS = 6
_SECONDS = 60.0
_BUSY = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)

# A function reads the bounds, because the jobs' session may write dates in another style than the catalogue does.
_EXPIRED = """
SELECT p.partition::bigint AS oid, p.schema_name || '.' || p.partition_name AS name, p.ends_at,
       ops.bound_start(p.bound, (SELECT a.atttypid FROM pg_attribute a
                                  WHERE a.attrelid = %(table)s::oid AND a.attname = %(anchor)s)) AS starts_at,
       CASE WHEN p.partition_name LIKE '%%.%%' THEN 'has a dot in its name' ELSE p.obstacle END AS obstacle
  FROM ops.partitions_of(%(table)s::oid, %(anchor)s, least(%(due_before)s::timestamptz, %(until)s::timestamptz)) p
"""

_RIGHT = """
SELECT %(cutoff)s::timestamptz - r.keep FROM ops.partition_rights r
 WHERE r.policy = %(policy)s AND r.table_name = %(table_name)s AND r.anchor = %(anchor)s AND r.key = %(key)s
   AND r.person IS NOT DISTINCT FROM %(person)s AND r.archives = %(archives)s
   AND has_function_privilege('ops.drop_partition(uuid, uuid, text, text, jsonb, jsonb)', 'EXECUTE')
"""

_MARKED = """
SELECT d.id, d.partition_oid::bigint AS oid, n.nspname || '.' || c.relname AS name, d.partition_name, d.ends_at
  FROM ops.detached_partitions d
  LEFT JOIN pg_class c ON c.oid = d.partition_oid AND c.relkind = 'r' AND NOT c.relispartition
  LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE d.state = 'detached' AND d.policy = %s AND d.table_name = %s ORDER BY d.ends_at
"""


@dataclass(frozen=True)
class Partition:
    """A partition of the policy's table, attached or detached."""

    oid: int
    name: str
    """Schema and table, joined by a dot."""
    rows: int = 0
    mark: UUID | None = None
    """Id of its row in ops.detached_partitions; None: it is attached."""
    starts_at: datetime | None = None
    ends_at: datetime | None = None


@dataclass(frozen=True)
class Look:
    """What a run does with the partitions that have expired."""

    drop: tuple[Partition, ...] = ()
    """Partitions of which every row may go: the detached ones first, then by age, the oldest first."""
    attach: tuple[Partition, ...] = ()
    """Detached partitions that this run must not drop."""
    kept: dict[str, int] = field(default_factory=dict)
    """Number of expired partitions whose rows go in batches, by the reason."""


def look(connection: Connection, cleared: Cleared, cutoff: datetime, *, count: bool = True) -> Look:
    """Find the partitions that can be dropped whole. A dry run predicts by the same list that a run works from.

    Args:
        connection: A connection in a transaction that cannot write.
        cleared: The policy's selection, as the preflight cleared it.
        cutoff: The run's cut-off.
        count: True: look at every row of the partitions. False: the caller has just counted that every row past its
            date may go, so the partitions' bounds decide.
    """
    selection = cleared.selection
    policy, rule = selection.policy, selection.policy.dropping_rule
    if not selection.partitioned:
        return Look()
    marked = _marked(connection, selection)
    if rule is None:
        return Look(attach=tuple(marked))
    anchor = str(policy.rules[rule].anchor)
    names: dict[str, Any] = {"policy": policy.name, "table_name": policy.table, "key": policy.key[0]}
    names |= {"person": policy.person, "archives": policy.archive is not None}
    right = connection.execute(_RIGHT, names | {"anchor": anchor, "cutoff": cutoff}).fetchone()
    until = right[0] if right else None
    where = {"table": cleared.facts.oid, "anchor": anchor, "due_before": selection.due_before[rule], "until": until}
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(_EXPIRED, where).fetchall()
    if right is None:
        return Look(attach=tuple(marked), kept={"need migrate.py --grants": len(found)} if found else {})
    obstacles = Counter(row["obstacle"] for row in found if row["obstacle"])
    free = [row for row in found if not row["obstacle"]]
    counts = _counts_by_partition(connection, selection, anchor, free[-1]["ends_at"]) if free and count else {}
    drop: list[Partition] = []
    attach: list[Partition] = []
    for mark in marked:
        rows, removable = _count(connection, selection.at(mark.name)) if mark.oid else (0, -1)
        # A policy that archives exports rows through the parent table, so its detached partitions are attached first.
        whole = rows == removable and policy.archive is None
        (drop if whole else attach).append(Partition(mark.oid, mark.name, rows, mark.mark))
    for row in free:
        rows, removable = counts.get(row["oid"], (0, 0))
        if rows == removable:
            drop.append(Partition(row["oid"], row["name"], rows, starts_at=row["starts_at"], ends_at=row["ends_at"]))
        else:
            obstacles["hold rows that may not go"] += 1
    return Look(tuple(drop), tuple(attach), dict(obstacles))


def within(partitions: Iterable[Partition], limit: int | None, done: Callable[[], int]) -> Iterator[Partition]:
    """Yield the partitions that fit into what is left of a limit; rows of the others go in batches up to the limit.

    Args:
        partitions: The partitions, in the order in which they are dropped.
        limit: Rows that may go at most; None: no limit.
        done: Returns the number of rows that are gone by now.
    """
    for partition in partitions:
        if limit is not None and done() >= limit:
            return
        if limit is None or partition.rows <= limit - done():
            yield partition


def predicted(found: Look, limit: int | None) -> tuple[str, ...]:
    """Return the names of the partitions that a run would drop."""
    gone: list[Partition] = []
    for partition in within(found.drop, limit, lambda: sum(partition.rows for partition in gone)):
        gone.append(partition)  # noqa: PERF402 - within() asks for the sum before each step
    return tuple(partition.name for partition in gone)


class _Kept(Exception):
    """A row of the partition may not go, or the table is no longer the one that was marked."""


class PartitionDrops:
    """Drops the partitions that have expired whole, in one run of one policy.

    Args:
        run: The run; it holds the job's lock.
        cleared: The policy's selection, as the preflight cleared it.
        context: The lease's fencing token and the id of the run's record.
        worker: Deletes the rows that are left in batches; it counts rows and batches for the whole run.
    """

    def __init__(self, run: Run, cleared: Cleared, context: Context, worker: Worker) -> None:
        self._run = run
        self._cleared = cleared
        self._selection = cleared.selection
        self._policy = cleared.selection.policy
        self._context = context
        self._worker = worker
        self._loop = worker.loop
        self._gated = GatedTransaction(self._policy.batch)
        self._log = get_logger().bind(policy=self._policy.name)
        self.dropped: list[str] = []
        """Names of the partitions that were dropped."""
        self.stuck: list[str] = []
        """Names of the partitions that stay detached until a person has looked at them."""
        self.queued = 0

    def carry_out(self, survey: Survey) -> None:
        """Finish the partitions that an earlier run left detached, then drop the expired ones, one by one.

        Args:
            survey: The rows past their date, counted just before.

        Raises:
            StoppedEarly: The run must stop.
            DatabaseUnavailable: PostgreSQL went away.
        """
        if not self._selection.partitioned:
            return
        policy = self._policy
        # If nothing is kept, every row of an expired partition may go, and no count is needed here: _drop_now looks at
        # every row again before it drops.
        nothing_kept = survey.due == survey.removable and not policy.exceptions
        nothing_kept &= not any(rule.when or isinstance(rule.keep, RowPeriod) for rule in policy.rules.values())
        count = not nothing_kept or self._run.options.limit is not None
        found = self._look(count=count)
        for partition in found.attach:
            self._attach(partition, "not to be dropped by this run")
        if found.attach and policy.archive:
            found = self._look(count=count)  # what was attached may be dropped now
        if found.kept:
            self._log.info("partitions_by_batches", because=found.kept)
        room = within(found.drop, self._run.options.limit, lambda: self._loop.deleted)
        taken: set[Partition] = set()
        for partition in room:
            taken.add(partition)
            self._run.checkpoint()
            with span("partition", self._policy.name) as facts, self._archived(partition) as pieces:
                facts["records_deleted"] = self._drop(partition, pieces)
        for partition in found.drop:
            if partition.mark and partition not in taken:
                self._attach(partition, "larger than what the limit leaves")

    def put_back(self) -> None:
        """Attach the partitions that an earlier run left detached; drop none."""
        found = self._look(count=False)
        for partition in (*found.attach, *found.drop):
            if partition.mark:
                self._attach(partition, "this run drops nothing")

    def _look(self, *, count: bool) -> Look:
        return within_budget(
            self._run, lambda connection: look(connection, self._cleared, self._run.cutoff, count=count)
        )

    def _archived(self, partition: Partition) -> AbstractContextManager[list[Piece] | None]:
        """Archive a partition's rows if the policy archives; the context's value is None if it does not."""
        if self._policy.archive is None or partition.ends_at is None:
            return nullcontext()
        from scripts.lifecycle.purge.partition_archives import (  # imports cryptography; other policies do without
            archived,
            walk_through,
        )

        anchor = str(self._policy.rules[str(self._policy.dropping_rule)].anchor)
        walk = walk_through(self._selection, anchor, partition.oid, partition.starts_at, partition.ends_at)
        return archived(cast("Archiver", self._worker), walk)

    def _drop(self, partition: Partition, pieces: list[Piece] | None) -> int:
        """Detach and drop a partition; return the number of its rows, or 0 if it stays.

        Raises:
            StoppedEarly: The run must stop.
            DatabaseUnavailable: PostgreSQL went away.
        """
        started = time.monotonic()
        detached = partition if partition.mark else self._detach(partition)
        if detached is None:
            return 0
        try:
            rows = self._surely(
                lambda connection: self._drop_now(connection, detached, pieces), lambda: self._gone(detached)
            )
        except _Kept:
            return self._attach(detached, "a row of it may not go")
        except _BUSY:
            return self._attach(detached, "it was locked, or took too long")
        except StoppedEarly as stop:
            if stop.stop_reason != "lock_lost":  # the run that has the lock now finishes the partition
                self._attach(detached, stop.stop_reason)
            raise
        except psycopg.Error as error:
            if connection_lost(error):
                raise _broken() from error
            return self._attach(detached, describe_database_error(error))
        self._loop.deleted += rows
        self._loop.batches += len(pieces or ()) or 1
        self.dropped.append(partition.name)
        self._run.advance(self._policy.name, self._loop.deleted)
        seconds = round(time.monotonic() - started, 4)
        archives = {} if pieces is None else {"archives": len(pieces)}
        self._log.info(
            "partition_dropped", partition=partition.name, records_deleted=rows, duration_seconds=seconds, **archives
        )
        return rows

    def _detach(self, partition: Partition) -> Partition | None:
        mark = uuid4()
        detached = Partition(partition.oid, partition.name, partition.rows, mark)

        def step(connection: Connection) -> Partition:
            # DETACH locks the table, the partition and the default partition. lock_timeout counts for each lock, so
            # statement_timeout limits the three together to the time of one.
            milliseconds = max(1, int(self._policy.batch.lock_timeout.total_seconds() * 1000))
            connection.execute("SELECT set_config('statement_timeout', %s, true)", (str(milliseconds),))
            connection.execute(
                "SELECT ops.detach_partition(%s, %s, %s::bigint::oid)", (mark, self._context.run_id, partition.oid)
            )
            return detached

        try:
            return self._surely(step, lambda: detached if self._state(mark) else None)
        except _BUSY:
            self._log.info("partition_locked", partition=partition.name, effect="left to the batches")
        except psycopg.Error as error:
            if connection_lost(error):
                raise _broken() from error
            self._log.warning(
                "partition_refused", partition=partition.name, error=describe_database_error(error), effect="batches"
            )
        return None

    def _drop_now(self, connection: Connection, partition: Partition, pieces: list[Piece] | None) -> int:
        """Look at every row once more, write the audit, seal the archives and drop, in one gated transaction.

        Raises:
            _Kept: The partition must stay.
        """
        row = connection.execute("SELECT ops.lock_partition(%s)", (partition.mark,)).fetchone()
        if row is None or row[0] is None:
            raise _Kept
        rows, removable = _count(connection, self._selection.at(partition.name))
        if rows != removable:
            raise _Kept
        rule = str(self._policy.dropping_rule)
        dropped = connection.execute(
            "SELECT ops.drop_partition(%s, %s, %s, %s, %s, %s)",
            (
                *(partition.mark, self._context.run_id, self._context.parameters()["actor"]),
                *(self._selection.reason_prefix + rule, Jsonb(self._context.noted(self._selection.facts)[rule])),
                None if pieces is None else Jsonb([piece.claim for piece in pieces]),
            ),
        ).fetchone()
        connection.execute(*self._loop.beat(records=rows, batches=len(pieces or ()) or 1))
        return int(dropped[0]) if dropped else 0

    def _gone(self, partition: Partition) -> int | None:
        state = self._state(partition.mark)
        return int(state[1]) if state and state[0] == "dropped" else None

    def _state(self, mark: UUID | None) -> tuple[str, Any] | None:
        """Return the state of a mark. The gate is closed first, so that no transaction still works on the mark."""
        with self._run.writer.closing_gate() as connection:
            row = connection.execute(
                "SELECT state, row_count FROM ops.detached_partitions WHERE id = %s", (mark,)
            ).fetchone()
        return (row[0], row[1]) if row else None

    def _surely(self, step: Callable[[Connection], Result], settled: Callable[[], Result | None]) -> Result:
        """Do a step in a gated transaction and return its result.

        Args:
            step: The work; it gets the transaction's connection.
            settled: Reads from the mark whether a step was committed when its COMMIT got no answer; None: it was not.

        Raises:
            StoppedEarly: The gate stays closed, the lease is lost, or the stop switch is on.
            psycopg.Error: The database refuses the step, or the connection broke in every attempt.
        """

        def once() -> Result:
            try:
                with self._gated.opened(self._run.writer) as connection:
                    self._require_may_run(connection)
                    return step(connection)
            except psycopg.OperationalError as error:
                if not connection_lost(error):
                    raise
                done = retry(settled, on=connection_lost, attempts=_ATTEMPTS, seconds=_SECONDS)
                if done is None:
                    raise
                self._log.info("commit_settled")
                return done

        try:
            return retry(
                once,
                on=lambda error: isinstance(error, Blocked) or is_deadlock(error) or connection_lost(error),
                attempts=_ATTEMPTS,
                seconds=_SECONDS,
                before_wait=lambda attempt, error: self._log.warning(
                    "partition_retry", attempt=attempt, error=type(error).__name__
                ),
            )
        except Blocked as blocked:
            raise blocked.stop() from None

    def _require_may_run(self, connection: Connection) -> None:
        statement = sql.SQL("WITH {} SELECT owned, stopped FROM may_run").format(MAY_RUN)
        owned, stopped = connection.execute(statement, self._context.parameters()).fetchone() or (False, False)
        require_may_run(owned=owned, stopped=stopped)

    def _attach(self, partition: Partition, why: str) -> int:
        """Attach a detached partition again; return 0, the number of its rows that are gone.

        Raises:
            DatabaseUnavailable: The connection broke in every attempt.
        """
        batch = self._policy.batch

        def once() -> str:
            with self._run.writer.transaction(
                lock_timeout=batch.lock_timeout.total_seconds(),
                statement_timeout=batch.statement_timeout.total_seconds(),
            ) as connection:
                row = connection.execute(
                    "SELECT state FROM ops.detached_partitions WHERE id = %s", (partition.mark,)
                ).fetchone()
                if row and row[0] == "detached":
                    row = connection.execute(
                        "SELECT ops.attach_partition(%s, %s)", (partition.mark, self._context.run_id)
                    ).fetchone()
                return str(row[0]) if row else "gone"

        try:
            state = retry(
                once,
                on=lambda error: connection_lost(error) or is_deadlock(error),
                attempts=_ATTEMPTS,
                seconds=_SECONDS,
            )
        except _BUSY:
            self._loop.locked = True
            self._log.warning("partition_left_detached", partition=partition.name, effect="the next run tries again")
            return 0
        except psycopg.Error as error:
            if connection_lost(error):
                raise _broken() from error
            self._hand_over(partition, error)
            return 0
        say = self._log.warning if state == "gone" else self._log.info
        say(
            "partition_put_back" if state == "attached" else f"partition_{state}", partition=partition.name, because=why
        )
        return 0

    def _hand_over(self, partition: Partition, error: psycopg.Error) -> None:
        """Raise a queue item for a partition that can be neither dropped nor attached.

        Its range has rows in another partition by now, or its table was changed.
        """
        self.stuck.append(partition.name)
        problem = describe_database_error(error)
        self._log.error("partition_stuck", partition=partition.name, error=problem)
        item = handover.Item(
            item_type="retention_exception",
            resource_type=self._policy.table,
            priority="high",
            reason="a partition was detached and can be neither dropped nor attached again",
            raised_by=f"system:{self._run.script}",
            context={"policy": self._policy.name, "partition": partition.name, "error": problem},
        )
        self.queued += handover.raise_item(self._run.writer, self._run.settings, item, partition.name)


def _broken() -> DatabaseUnavailable:
    return DatabaseUnavailable("the connection to PostgreSQL broke in every attempt at a partition")


def _marked(connection: Connection, selection: Selection) -> list[Partition]:
    """Return the partitions that a run left detached; oid 0: no detached table of that oid is there any more."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_MARKED, (selection.policy.name, selection.policy.table)).fetchall()
    return [
        Partition(row["oid"] if row["name"] else 0, row["name"] or row["partition_name"], mark=row["id"])
        for row in rows
    ]


def _count(connection: Connection, selection: Selection) -> tuple[int, int]:
    """Return the number of a table's rows, and the number of those that may go."""
    selection = selection.joined()
    statement = sql.SQL("SELECT count(*), count(*) FILTER (WHERE {removable}) FROM {source}").format(
        removable=selection.droppable, source=selection.source
    )
    row = connection.execute(statement, selection.parameters).fetchone()
    return (row[0], row[1]) if row else (0, 0)


def _counts_by_partition(
    connection: Connection, selection: Selection, anchor: str, ends_at: datetime
) -> dict[int, tuple[int, int]]:
    """Return the two numbers of :func:`_count` for each partition, by oid, in one pass over the table.

    Args:
        connection: A connection.
        selection: The selection on the partitioned table.
        anchor: The column that the table is partitioned by.
        ends_at: Rows before this moment are counted: the end of the newest partition that could be dropped.
    """
    selection = selection.joined()
    query = fragment(
        "SELECT t.tableoid::bigint, count(*), count(*) FILTER (WHERE {removable}) FROM {source}"
        " WHERE {ended} GROUP BY 1",
        removable=selection.droppable,
        source=selection.source,
        ended=selection.before(anchor, ends_at, "partitions_end"),
    )
    rows = connection.execute(query, query.parameters).fetchall()
    return {oid: (count, removable) for oid, count, removable in rows}
