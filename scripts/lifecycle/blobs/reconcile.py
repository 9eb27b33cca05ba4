"""The store compared with the rows: blobs that no row names, and rows whose blob is gone.

Both sides are streamed in the order of their pathnames, so memory does not grow with either. The rows are copied to a
file first: no transaction stays open while a network is waited for. What the comparison finds are candidates only; each
is looked at again, a blob in the claim that comes before every call, a row by asking the store for its blob.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby, islice
from typing import IO, Any, TypeVar
from uuid import UUID, uuid4

from scripts.lifecycle.blobs.blob_intents import ORPHANED, changes
from scripts.lifecycle.blobs.blobs import BlobRemoval, breaker_open, client_for, refused
from scripts.lifecycle.engine.gated import MAY_RUN, Context, GatedTransaction
from scripts.lifecycle.engine.policy_run import SURVEY_SECONDS, Ending, PolicyRun, first_look
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.jobs.results import PolicyResult
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.policy.policies import Blob, Policy
from scripts.utils import composing as sql
from scripts.utils.blob_client import BlobCallFailed, BlobClient, ListedBlob
from scripts.utils.errors import ExitCode, PolicyFailed
from scripts.utils.pseudonyms import pseudonym
from scripts.utils.retry_utils import CircuitOpen

Answer = TypeVar("Answer")

_PAGE = 1000
# So many rows without their blob are an accident; more of them, and more than a share, are another store.
_GONE_MINIMUM, _GONE_SHARE = 100, 0.05

_ROWS = sql.SQL("""
COPY (SELECT {id}, t.{blob} FROM {table} t WHERE {names}
       ORDER BY ops.blob_pathname(t.{blob}) COLLATE "C", {key}) TO STDOUT
""")

_INTEND = sql.SQL("""
WITH {may_run} INSERT INTO ops.blob_deletions (policy, rule, table_name, resource_id, blob, run_id)
SELECT %(policy)s, %(rule)s, %(table_name)s, o.id, o.blob, %(run_id)s
  FROM unnest(%(ids)s::text[], %(blobs)s::text[]) AS o (id, blob)
 WHERE (SELECT owned AND NOT stopped FROM may_run)
   AND NOT EXISTS (SELECT FROM ops.holds_in_force h WHERE h.scope = 'table' AND h.table_name = %(table_name)s)
    ON CONFLICT (table_name, resource_id) WHERE closed_at IS NULL DO NOTHING
""")

_FINALISE = sql.SQL("""
WITH {may_run}, gone AS (
    UPDATE {table} t SET {changes} FROM unnest(%(ids)s::text[], %(blobs)s::text[]) AS g (id, blob)
     WHERE {is_it} AND t.{blob} = g.blob AND NOT {held} AND {nameable}
       AND (SELECT owned AND NOT stopped FROM may_run)
    RETURNING g.id
)
SELECT count(*), ops.note_audit(%(entry_id)s, %(actor)s, 'blob_gone', %(table_name)s, %(reason_prefix)s || 'gone',
                                  %(run_id)s, array_agg(id), '{{}}')
  FROM gone HAVING count(*) > 0
""")


@dataclass
class Comparison:
    """What a comparison found; the candidates themselves are in files."""

    rows: int = 0
    blobs: int = 0
    orphans: int = 0
    gone: int = 0
    files: dict[str, IO[str]] = field(default_factory=dict)

    def candidates(self, kind: str) -> Iterator[list[tuple[str, str]]]:
        """Read candidates back, a page at a time."""
        self.files[kind].seek(0)
        while page := [tuple(json.loads(line)) for line in islice(self.files[kind], _PAGE)]:
            yield page


def reconcile(run: Run, policy: str) -> None:
    """Compare the store with the rows, and put right what differs; in a dry run only count.

    Raises:
        StoppedEarly: The run must stop.
        Misconfigured: A token or a key is missing.
    """
    rules = run.policies.policies[policy]
    pseudonym(run.settings, "")
    try:
        if run.options.dry_run:
            run.results.append(_predict(run, rules))
        else:
            _Reconciliation(run, rules).carry_out()
    except PolicyFailed as error:
        run.fail(policy, error)


def _predict(run: Run, policy: Policy) -> PolicyResult:
    with ExitStack() as stack:
        selection, found = _compare(run, policy, stack)
    why = _refusal(run, selection.policy, found)
    return PolicyResult(
        policy=f"{policy.name}/reconcile",
        status="failed" if why else "completed",
        stop_reason="would_be_refused" if why else "dry_run",
        exit_code=ExitCode.FAILED if why else ExitCode.DONE,
        records_deleted=found.orphans + found.gone,
        records_held=0,
        records_remaining=0,
        oldest_overdue_seconds=0.0,
        by_rule={ORPHANED: found.orphans, "gone": found.gone},
        error=why,
    )


class _Reconciliation(PolicyRun):
    """One comparison in one real run."""

    def __init__(self, run: Run, policy: Policy) -> None:
        super().__init__(run, policy)
        self._name = f"{policy.name}/reconcile"

    def work(self, run_id: UUID) -> Ending:
        """Compare, then act on what is still true."""
        run = self._run
        token, policy_hash = run.lock.fencing_token, run.policies.hash
        context = Context(run.lock.name, token, run.script, run_id, policy_hash=policy_hash)
        with ExitStack() as stack:
            self._selection, found = _compare(run, self._policy, stack)
            self._log.info(
                "store_compared",
                rows=found.rows,
                blobs=found.blobs,
                orphans=found.orphans,
                rows_without_blob=found.gone,
            )
            if why := _refusal(run, self._policy, found):
                raise PolicyFailed("cap_exceeded", f"policy {self._policy.name} changed nothing: {why}")
            run.expect(self._policy.name, found.orphans + found.gone)
            act = _Act(run, self._selection, context)
            for page in found.candidates("gone"):
                run.checkpoint()
                self._deleted += act.finalise(self._really_gone(page))
            for page in found.candidates("orphans"):
                run.checkpoint()
                act.intend(page)
        with closing(BlobRemoval(run, self._selection, context)) as removal:
            try:
                removal.drain()
            finally:
                self._deleted += removal.removed
                self._batches += removal.rounds
                self._queued += removal.queued
        if removal.unknown:
            message = f"the store did not say what became of {removal.unknown} blobs: the next run asks for them again"
            return Ending("partial", "blobs_unknown", ExitCode.STOPPED_EARLY, message)
        return Ending("completed", "done", ExitCode.NEEDS_A_PERSON if self._queued else ExitCode.DONE)

    def _really_gone(self, page: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Ask the store once more: a listing may be older than a blob."""
        with closing(client_for(self._run)) as client:
            # By pathname, like every call: a URL of the other kind, public or private, would be refused.
            return _asking(
                lambda: [(key, blob) for key, blob in page if not client.exists(client.pathname(blob) or blob)]
            )


class _Act:
    """Writes what a comparison found, under the gate."""

    def __init__(self, run: Run, selection: Selection, context: Context) -> None:
        policy = selection.policy
        blob = _blob_of(policy)
        self._run = run
        self._gated = GatedTransaction(policy.batch)
        self._parameters: dict[str, Any] = {
            **selection.parameters,
            **context.parameters(),
            "policy": policy.name,
            "rule": ORPHANED,
            "reason_prefix": policy.reason(""),
        }
        self._intend = _INTEND.format(may_run=MAY_RUN)
        self._finalise = _FINALISE.format(
            may_run=MAY_RUN,
            table=selection.table,
            changes=changes(selection, blob),
            is_it=selection.record.is_("t", sql.Identifier("g", "id")),
            blob=sql.Identifier(blob.column),
            held=selection.held,
            nameable=selection.nameable,
        )

    def intend(self, page: list[tuple[str, str]]) -> None:
        """Write intents for blobs that no row names."""
        named = [(pseudonym(self._run.settings, pathname), pathname) for pathname, _ in page]
        self._send(self._intend, named)

    def finalise(self, page: list[tuple[str, str]]) -> int:
        """Let rows forget blobs that are gone; return how many did."""
        row = self._send(self._finalise, page) if page else None
        return int(row[0]) if row else 0

    def _send(self, statement: sql.Composed, page: list[tuple[str, str]]) -> tuple[Any, ...] | None:
        parameters = self._parameters | {"ids": [one for one, _ in page], "blobs": [other for _, other in page]}
        with self._run.writer.connection() as connection:
            cursor = self._gated.send(connection, [(statement, parameters | {"entry_id": uuid4()})])[0]
            return cursor.fetchone() if cursor.description else None


def _compare(run: Run, policy: Policy, stack: ExitStack) -> tuple[Selection, Comparison]:
    blob = _blob_of(policy)
    client = stack.enter_context(closing(client_for(run)))
    found = Comparison(files={kind: stack.enter_context(_file()) for kind in ("rows", "gone", "orphans")})
    cleared, _ = run.database.read(
        lambda connection: first_look(run, connection, policy), statement_timeout=SURVEY_SECONDS
    )
    _copy_rows(run, cleared.selection, client, blob, found)
    listed = _listed(run, client, blob.prefix)
    _merge(_rows_of(found), listed, found, blob.orphans.before(run.cutoff))
    return cleared.selection, found


def _file() -> IO[str]:
    # Unlinked as soon as it is made: what a killed run leaves behind is nothing.
    return tempfile.TemporaryFile("w+", encoding="utf-8", prefix="reconcile-")


def _copy_rows(run: Run, selection: Selection, client: BlobClient, blob: Blob, found: Comparison) -> None:
    statement = _ROWS.format(
        id=selection.record.id("t"),
        key=selection.record.columns("t"),
        blob=sql.Identifier(blob.column),
        table=selection.table,
        names=selection.names_blob("t"),
    )
    with (
        run.database.snapshot(statement_timeout=SURVEY_SECONDS) as connection,
        connection.cursor() as cursor,
        cursor.copy(statement, sql.NO_PARAMETERS) as copy,
    ):
        for key, name in copy.rows():
            pathname = client.pathname(name)
            if pathname is not None and pathname.startswith(blob.prefix):
                found.rows += 1
                found.files["rows"].write(json.dumps([pathname, key, name]) + "\n")


def _rows_of(found: Comparison) -> Iterator[tuple[str, list[list[str]]]]:
    found.files["rows"].seek(0)
    lines = (json.loads(line) for line in found.files["rows"])
    for pathname, group in groupby(lines, key=lambda line: str(line[0])):
        yield pathname, list(group)


def _listed(run: Run, client: BlobClient, prefix: str) -> Iterator[ListedBlob]:
    cursor: str | None = None
    last = b""
    while True:
        run.checkpoint()
        page = _asking(lambda at=cursor: client.page(prefix, at))  # type: ignore[misc]
        for blob in page.blobs:
            name = blob.pathname.encode()
            if name <= last:
                raise PolicyFailed(
                    "unordered_listing", "Vercel Blob does not list in the order of pathnames: nothing was changed"
                )
            last = name
            yield blob
        cursor = page.cursor
        if cursor is None:
            return


def _merge(
    rows: Iterator[tuple[str, list[list[str]]]],
    blobs: Iterator[ListedBlob],
    found: Comparison,
    uploaded_before: datetime | None,
) -> None:
    """Walk along both, in the order of their pathnames' bytes."""
    row, blob = next(rows, None), next(blobs, None)
    while row or blob:
        if blob is None or (row and row[0].encode() < blob.pathname.encode()):
            for _, key, name in row[1] if row else ():
                found.gone += 1
                found.files["gone"].write(json.dumps([key, name]) + "\n")
            row = next(rows, None)
            continue
        found.blobs += 1
        if row and row[0] == blob.pathname:
            row = next(rows, None)
        elif uploaded_before is not None and blob.uploaded_at < uploaded_before:
            found.orphans += 1
            found.files["orphans"].write(json.dumps([blob.pathname, ""]) + "\n")
        blob = next(blobs, None)


def _refusal(run: Run, policy: Policy, found: Comparison) -> str | None:
    """Return why so much must not be put right without being asked for."""
    rows = found.orphans + found.gone
    confirmed = run.options.confirm_cap
    if confirmed is not None:
        return f"{rows} differences, --confirm-cap allows {confirmed}" if rows > confirmed else None
    cure = f"is it the right store and prefix? If so, allow it once with --confirm-cap {rows}"
    if found.gone > max(_GONE_MINIMUM, _GONE_SHARE * found.rows):
        return f"{found.gone} of {found.rows} rows seem to have lost their blob: {cure}"
    if rows > policy.max_rows:
        return f"{rows} differences, the policy's max_rows is {policy.max_rows}: {cure}"
    return None


def _asking(ask: Callable[[], Answer]) -> Answer:
    try:
        return ask()
    except BlobCallFailed as error:
        raise refused(error) from error
    except CircuitOpen:
        raise breaker_open() from None


def _blob_of(policy: Policy) -> Blob:
    if policy.blob is None:
        raise PolicyFailed("no_blobs", f"policy {policy.name} has no blobs to reconcile")
    return policy.blob
