"""Carry out one policy: preflight, cut-off, cap, batches by the cheaper of two paths, a closing walk, the residue.

The residue, the number of rows that are still past their date, is counted by a fresh query. A dry run is the same up to
the first batch, in a transaction that cannot write. The room's docstring has the whole order.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from uuid import UUID

import psycopg

from scripts.lifecycle.engine import exceptions
from scripts.lifecycle.engine.deleter import Deleter
from scripts.lifecycle.engine.fragments import fragment
from scripts.lifecycle.engine.gated import Context
from scripts.lifecycle.engine.loop import BatchLoop, Worker
from scripts.lifecycle.engine.obstacles import require_statements_pass, triggers_behind
from scripts.lifecycle.engine.poison import statement_refused
from scripts.lifecycle.engine.policy_run import SURVEY_SECONDS, Ending, PolicyRun, first_look, within_budget
from scripts.lifecycle.engine.preflight import Cleared, check_access_path
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.engine.survey import Survey, left_out, unfit_rows
from scripts.lifecycle.engine.windows import IndexWalk, Path, Sweep, walk_along
from scripts.lifecycle.jobs import handover, runs
from scripts.lifecycle.jobs.results import PolicyResult
from scripts.lifecycle.jobs.run import Run, sla_status
from scripts.lifecycle.policy.lookups import Lookup
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.row_periods import RowPeriod
from scripts.lifecycle.policy.sections import Blob
from scripts.lifecycle.purge import inventory, partitions, row_period_caps
from scripts.lifecycle.purge.caps import refusal
from scripts.lifecycle.purge.partitions import PartitionDrops
from scripts.lifecycle.purge.rollout import roll_out
from scripts.utils import composing as sql
from scripts.utils import error_reporting
from scripts.utils.blob_names import TROUBLES
from scripts.utils.blob_token import store_of
from scripts.utils.db_utils import Connection
from scripts.utils.errors import (
    ExitCode,
    PolicyFailed,
)
from scripts.utils.logging_utils import get_logger
from scripts.utils.pseudonyms import pseudonym

# If this share of the rows is due, reading every block once is cheaper than walking the index: half the time and a
# quarter of the WAL (benchmarks/README.md).
SWEEP_SHARE = 0.05


def purge(run: Run, policy: str) -> None:
    """Delete what a policy says has expired, or in a dry run say what would be deleted.

    The result is added to ``run.results``. A policy that fails is recorded and does not stop the others.

    Raises:
        StoppedEarly: A signal, the time budget, the stop switch, a lost lock or an open circuit breaker.
        DatabaseUnavailable: PostgreSQL went away for good.
        Misconfigured: The file has no such policy; or the policy is about blobs and there is no token, about pseudonyms
            and there is no key, or about archives and there is no place or not the right key for them.
    """
    rules = run.policies.policy(policy)
    if rules.blob:
        store_of(run.settings)
    if rules.anonymize and rules.anonymize.pseudonymised:
        pseudonym(run.settings, "")
    if rules.archive:
        from scripts.lifecycle.archives.batches import require_place  # its import takes 0.1 s

        require_place(run)
    try:
        if rules.action == "retain":
            with error_reporting.about(policy):
                if run.options.dry_run:
                    run.results.append(inventory.look(run, rules))
                else:
                    inventory.InventoryRun(run, rules).carry_out()
        elif run.options.dry_run:
            with error_reporting.about(policy):
                run.results.append(predict(run, rules))
        elif run.options.rollout:
            roll_out(run, predict=lambda: predict(run, rules), carry_out=lambda: Purge(run, rules).carry_out())
        else:
            Purge(run, rules).carry_out()
    except PolicyFailed as error:
        run.fail(policy, error)


def predict(run: Run, policy: Policy) -> PolicyResult:
    """Return what a run would do, in a transaction that cannot write.

    Raises:
        PolicyFailed: The policy cannot be carried out.
    """

    def look(connection: Connection) -> tuple[Survey, str | None, int, tuple[str, ...]]:
        cleared, found = first_look(run, connection, policy)
        refused = refusal(run, connection, cleared.selection, found)
        to_queue = sum(
            exceptions.count_new(connection, cleared.selection, name)
            for name, exception in policy.exceptions.items()
            if exception.queue
        )
        if policy.blob:
            rows = unfit_rows(cleared.selection)
            to_queue += handover.count_new(connection, policy.blob.item_type, policy.table, rows, rows.parameters)
        if found.referenced and not handover.is_open(connection, _referenced_type(policy), policy.table, policy.name):
            to_queue += 1
        dropped: tuple[str, ...] = ()
        if not refused:
            dropped = partitions.predicted(partitions.look(connection, cleared, run.cutoff), run.options.limit)
            batch_rows = run.options.batch_size or (policy.archive or policy.batch).rows
            # This check comes last, because it changes planner settings for the rest of the transaction.
            _check_plans(connection, cleared, _paths(run, cleared, found, batch_rows), batch_rows)
        return found, refused, to_queue, dropped

    try:
        found, refused, to_queue, dropped = within_budget(run, look)
        fired = run.database.read(lambda connection: triggers_behind(connection, policy)) if found.removable else []
    except psycopg.Error as error:
        raise statement_refused(policy, error) from error
    if fired:
        names = list(dict.fromkeys(map(str, fired)))
        get_logger().info("not_tried", policy=policy.name, triggers=names, effect="only a run can tell what they do")
    limit = run.options.limit
    deleted = found.removable if limit is None else min(limit, found.removable)
    return PolicyResult(
        policy=policy.name,
        status="failed" if refused else "completed",
        stop_reason="would_be_refused" if refused else "dry_run",
        exit_code=ExitCode.FAILED if refused else ExitCode.DONE,
        records_deleted=deleted,
        dependants_deleted=found.dependants,
        records_held=found.held,
        records_queued=to_queue,
        records_remaining=found.remaining - deleted,
        oldest_overdue_seconds=found.oldest_overdue_seconds,
        by_rule=found.by_rule,
        partitions=dropped,
        sla_status=sla_status(run, found.oldest_overdue_seconds, policy.overdue.warning, policy.overdue.critical),
        error=refused,
    )


class Purge(PolicyRun):
    """One policy in one real run."""

    def __init__(self, run: Run, policy: Policy) -> None:
        super().__init__(run, policy)
        self._unknown = 0

    def work(self, run_id: UUID) -> Ending:
        """Delete the rows that have expired, along the cheaper path.

        Raises:
            PolicyFailed: The preflight or the caps refuse the run, or too many rows are refused.
            StoppedEarly: The run must stop.
            DatabaseUnavailable: PostgreSQL went away and did not come back.
        """
        cleared, found, refused = within_budget(self._run, self._first_look)
        context = Context.of(self._run, run_id)
        cleared = replace(cleared, selection=self._going(cleared.selection, found))
        with closing(self._worker(cleared.selection, context)) as worker:
            loop = worker.loop
            drops = PartitionDrops(self._run, cleared, context, worker)
            if refused:
                drops.put_back()
                raise PolicyFailed("cap_exceeded", f"policy {self._policy.name} deleted nothing: {refused}")
            if found.removable:
                require_statements_pass(self._run.writer, cleared.selection)
            self._run.expect(self._policy.name, found.removable)
            if found.referenced:
                self._queued += self._queue_referenced(cleared.selection, found)
            if found.unfit and self._policy.blob:
                self._queued += self._queue_unfit(cleared.selection, self._policy.blob)
            try:
                drops.carry_out(found)
                self._delete(worker, cleared, found)
                if self._policy.blob:
                    self._remove_blobs(loop, cleared, context)
                self._finish(worker, cleared)
            finally:
                if not self._policy.blob:
                    self._deleted = loop.deleted
                self._batches += loop.batches
                self._queued += loop.queued + drops.queued
                self._partitions += drops.dropped
        self._queued += self._queue_excepted(cleared)
        ending = self._judge(loop, drops.stuck, run_id)
        if ending.status == "completed":
            self._remember_periods(cleared.selection)
        return ending

    def _remember_periods(self, selection: Selection) -> None:
        if any(isinstance(rule.keep, RowPeriod) for rule in self._policy.rules.values()):
            with self._run.writer.transaction(statement_timeout=SURVEY_SECONDS) as connection:
                row_period_caps.remember(connection, selection)

    def _going(self, selection: Selection, found: Survey) -> Selection:
        """Return the selection of the batches.

        With blobs, it leaves out the rows that stay because of their blob; one query finds them, once a run.
        """
        if not (self._policy.blob and (found.referenced or found.unfit)):
            return replace(selection, left_out=())
        return replace(selection, left_out=within_budget(self._run, lambda link: left_out(link, selection)))

    def _worker(self, selection: Selection, context: Context) -> Worker:
        if self._policy.archive is None:
            return Deleter(self._run, selection, context, self._politeness)
        from scripts.lifecycle.archives.batches import Archiver

        return Archiver(self._run, selection, context, self._politeness)

    def _first_look(self, connection: Connection) -> tuple[Cleared, Survey, str | None]:
        # This look comes before the count, so that the first batch knows whether other sessions were active meanwhile.
        self._politeness.begin(connection)
        cleared, found = first_look(self._run, connection, self._policy)
        self._selection = cleared.selection
        return cleared, found, refusal(self._run, connection, cleared.selection, found)

    def _delete(self, worker: Worker, cleared: Cleared, found: Survey) -> None:
        batch_rows = worker.loop.batch_rows
        paths = _paths(self._run, cleared, found, batch_rows)
        within_budget(self._run, lambda connection: _check_plans(connection, cleared, paths, batch_rows))
        if self._politeness.not_visible:
            self._log.info(
                "politeness_not_visible",
                what=self._politeness.not_visible,
                effect="not heeded; replica_lag needs the role pg_read_all_stats",
            )
        self._log.info(
            "policy_started",
            due=found.due,
            removable=found.removable,
            held=found.held,
            path=[path.name for path in paths],
            batch_rows=batch_rows,
        )
        for path in paths:
            worker.follow(path)

    def _remove_blobs(self, loop: BatchLoop, cleared: Cleared, context: Context) -> None:
        from scripts.lifecycle.blobs.blobs import BlobRemoval  # imports an HTTP client

        with closing(BlobRemoval(self._run, cleared.selection, context)) as removal:
            try:
                removal.drain()
            finally:
                self._deleted = removal.removed
                self._batches += removal.rounds
                self._queued += removal.queued
                self._unknown = removal.unknown
                loop.poison.extend(removal.failed)
                loop.locked |= removal.locked > 0

    def _finish(self, worker: Worker, cleared: Cleared) -> None:
        loop = worker.loop
        residue = self._counted(cleared.selection)
        # Rows that were locked, or moved behind the sweep, are tried a second time; refused rows are not.
        left = residue.removable > len(loop.poison) and not loop.limit_reached
        while left and not self._policy.blob:
            before = residue.removable
            for path in _walks(cleared.selection):
                worker.follow(path)
            residue = self._counted(cleared.selection)
            # If a row's children lay in a later window, the next pass takes the row, and the pass after it the parent.
            left = bool(cleared.selection.own_keys) and len(loop.poison) < residue.removable < before
            left &= not loop.limit_reached
        self._residue = residue

    def _judge(self, loop: BatchLoop, detached: list[str], run_id: UUID) -> Ending:
        code = ExitCode.NEEDS_A_PERSON if self._queued else ExitCode.DONE
        left = self._residue.removable - len(loop.poison) if self._residue else 0
        if left <= 0:
            return Ending("completed", "done", code)
        if loop.limit_reached:
            return Ending("partial", "limit_reached", code)
        if detached:
            message = f"{', '.join(detached)} was detached and can be neither dropped nor attached again: see the queue"
            return Ending("partial", "partition_detached", ExitCode.STOPPED_EARLY, message)
        if loop.locked:
            message = f"{left} due rows stayed locked by other sessions"
            return Ending("partial", "rows_locked", ExitCode.STOPPED_EARLY, message)
        if self._unknown:
            message = f"the store did not say what became of {self._unknown} blobs: the next run asks for them again"
            return Ending("partial", "blobs_unknown", ExitCode.STOPPED_EARLY, message)
        return self._unexplained(left, run_id)

    def _unexplained(self, left: int, run_id: UUID) -> Ending:
        if lost := self._lost(run_id):
            message = (
                f"{lost} changes that PostgreSQL had confirmed are not there any more: it was restarted without a clean"
                " shutdown, and has synchronous_commit off; run again: the next run makes them anew"
            )
            return Ending("partial", "changes_lost", ExitCode.STOPPED_EARLY, message)
        return Ending("partial", "rows_left", ExitCode.STOPPED_EARLY, self._why_left(left))

    def _why_left(self, left: int) -> str:
        """Return why rows that nothing refused may have stayed; name a trigger only if the catalogue has one."""
        circle = self._run.database.read(self._circle)
        if circle:
            return (
                f"{left} due rows are still there: {circle}, so none can go before the other; set one of the references"
                " to null"
            )
        fired = self._run.database.read(lambda connection: triggers_behind(connection, self._policy))
        keepers = [str(trigger) for trigger in fired if trigger.may_keep_rows]
        what = f"{left} due rows are still there although nothing refused them"
        if keepers:
            return f"{what}: {' or '.join(keepers)} may keep them"
        return f"{what}, and no trigger can keep them: they changed meanwhile, or what they need did; run again"

    def _lost(self, run_id: UUID) -> int:
        """Return the number of rows that were confirmed as done but have no audit entry."""
        audited = self._run.database.read(lambda connection: runs.audited_rows(connection, run_id, self._policy.table))
        return max(0, self._deleted - audited)

    def _circle(self, connection: Connection) -> str | None:
        """Return a message about a cycle of rows that refer to each other; None: some due row is needed by no other."""
        selection = self._selection
        if selection is None or not selection.own_keys:
            return None
        statement = sql.SQL(
            "SELECT {id}, {referenced} FROM {table} t WHERE {going} AND {nameable} ORDER BY 2, 1 LIMIT 10"
        ).format(
            id=selection.record.id("t"),
            referenced=selection.referenced,
            table=selection.table,
            going=selection.removable_in_the_end,
            nameable=selection.nameable,
        )
        rows = connection.execute(statement, selection.parameters).fetchall()
        if not rows or not all(referenced for _, referenced in rows):
            return None
        constraints = ", ".join(key.name for key in selection.own_keys)
        return f"rows {', '.join(key for key, _ in rows)} refer to each other in a circle by {constraints}"

    def _queue_referenced(self, selection: Selection, found: Survey) -> int:
        item = handover.Item(
            item_type=_referenced_type(self._policy),
            resource_type=self._policy.table,
            priority="medium",
            reason="something else still needs what is past its date",
            raised_by=f"system:{self._run.script}",
            context={
                "policy": self._policy.name,
                "rows": found.referenced,
                "constraints": [foreign_key.name for foreign_key in selection.refusing],
                "tables": sorted({foreign_key.table for foreign_key in selection.refusing}),
            },
        )
        return handover.raise_item(self._run.writer, self._run.settings, item, self._policy.name)

    def _queue_unfit(self, selection: Selection, blob: Blob) -> int:
        """Put the rows on the queue that name a blob which the policy must not delete; return the number of new items.

        The run makes no call to the store for them.
        """
        new = 0
        for trouble in TROUBLES:
            item = handover.Item(
                item_type=blob.item_type,
                resource_type=self._policy.table,
                priority=blob.priority,
                reason="the store must not be asked to delete this blob",
                raised_by=f"system:{self._run.script}",
                context={"policy": self._policy.name, "error": trouble},
            )
            rows = unfit_rows(selection, trouble)
            with self._run.writer.transaction(statement_timeout=SURVEY_SECONDS) as connection:
                new += handover.raise_rows(connection, self._run.settings, item, rows, rows.parameters)
        return new

    def _queue_excepted(self, cleared: Cleared) -> int:
        new = 0
        for name, exception in self._policy.exceptions.items():
            if not exception.queue:
                continue
            overdue = exceptions.overdue_exception(cleared.selection, name)
            walk = walk_along(cleared.selection, exception.queue.anchor, overdue)
            new += exceptions.raise_excepted(
                self._run.writer,
                self._run.settings,
                cleared.selection,
                name,
                _sweep(cleared) if cleared.facts.sweepable else walk,
                raised_by=f"system:{self._run.script}",
                between_pages=self._run.checkpoint,
            )
        return new


def _referenced_type(policy: Policy) -> str:
    """Return the type of the queue item for due rows that are still needed: by other tables, or by other rows."""
    return "retention_exception" if policy.blob else "foreign_key_violation"


def _paths(run: Run, cleared: Cleared, found: Survey, batch_rows: int) -> list[Path]:
    facts = cleared.facts
    # Nothing but a pass over the whole table finds rows by a value of another table.
    needed = any(isinstance(rule.anchor, Lookup) for rule in cleared.selection.policy.rules.values())
    suits = (
        facts.sweepable
        and (needed or found.removable >= SWEEP_SHARE * max(facts.rows, found.due))
        # A sweep cannot take less than a block: a smaller batch, or an exact limit, needs the index.
        and batch_rows >= facts.rows_per_block
        and run.options.limit is None
        # An archive covers a span of time, so that it can be found again. Only the index walk goes by time.
        and not cleared.selection.policy.archive
    )
    return [_sweep(cleared)] if suits else _walks(cleared.selection)


def _check_plans(connection: Connection, cleared: Cleared, paths: list[Path], batch_rows: int) -> None:
    if cleared.facts.large:
        # As in a batch: the rows that stay because of their blob are known there, and no sub-query looks for them.
        selection = replace(cleared.selection, left_out=())
        for path in paths:
            check_access_path(connection, selection, path, batch_rows)


def _sweep(cleared: Cleared) -> Sweep:
    return Sweep(cleared.selection.table, blocks=cleared.facts.blocks, rows_per_block=cleared.facts.rows_per_block)


def _walks(selection: Selection) -> list[Path]:
    """Return one index walk along each rule's anchor; along the key alone, where an anchor is another table's."""
    anchors = {name: selection.policy.rules[name].anchor for name in selection.due_before}
    if any(isinstance(anchor, Lookup) for anchor in anchors.values()):
        return [IndexWalk(selection, None, fragment("true"), selection.due)]
    return [
        # A batch carries out every rule on the rows of its window: rows that are due by another rule count as well.
        walk_along(selection, anchor, selection.latest(name), selection.due if varies else None)
        for name, anchor in anchors.items()
        for varies in [isinstance(selection.policy.rules[name].keep, RowPeriod)]
    ]
