"""The outbox table of blob deletions, ``ops.blob_deletions``: one row, called an intent, for each blob to be deleted.

An intent is ``pending`` when the batch that chose the row has written it. A claim makes it ``sending`` (the store may
now be asked) or ``cancelled`` (a legal hold, the row's period or another row keeps the blob). The store's answer makes
it ``confirmed`` (the blob is gone) or ``failed`` (a person has it now). The next run takes up every intent that a crash
left ``pending`` or ``sending``: deleting a blob twice does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from psycopg.types.json import Jsonb

from scripts.lifecycle.engine.gated import MAY_RUN, Context, GatedTransaction, Statement, repeated, require_may_run
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.policy.sections import Blob
from scripts.utils import composing as sql
from scripts.utils.db_utils import Database

ORPHANED = "orphaned"

# The resource_id of an orphan's intent is a pseudonym, not the key of a row.
_OPEN_ROWS = sql.SQL("ARRAY(SELECT resource_id FROM open WHERE rule <> %(orphaned)s)")
_ROW_OF = sql.SQL("(CASE WHEN {0}.rule <> %(orphaned)s THEN {0}.resource_id END)")

_CLAIM = sql.SQL("""
WITH {may_run}, open AS MATERIALIZED (
    SELECT d.id, d.blob, d.resource_id, d.said, d.home, d.rule, n.key, n.pathname
      FROM ops.blob_deletions d CROSS JOIN LATERAL ops.blob_parts(d.blob) n
     WHERE d.policy = %(policy)s AND d.closed_at IS NULL AND d.id > %(after)s
       AND (%(rule)s::text IS NULL OR d.rule = %(rule)s)
       AND (%(only)s::text[] IS NULL OR d.resource_id = ANY(%(only)s)) AND (SELECT owned AND NOT stopped FROM may_run)
     ORDER BY d.id LIMIT %(rows)s FOR UPDATE OF d
), free AS MATERIALIZED (
    SELECT {named} FROM {table} t
     WHERE {among_open}
       FOR UPDATE SKIP LOCKED
), naming AS MATERIALIZED (
    SELECT t.{blob} AS blob, {id} AS resource_id, {home} AS home,
           ({due} AND NOT {held}) IS TRUE AS going FROM {table} t
     WHERE {names_blob} AND ops.blob_key(t.{blob}) = ANY(ARRAY(SELECT unnest(ops.blob_lookups(blob)) FROM open))
), meant AS MATERIALIZED (
    SELECT r.*, m.key FROM naming r CROSS JOIN LATERAL ops.blob_parts(r.blob) n
     CROSS JOIN LATERAL ops.blob_meanings(r.blob, n.key) m
), needed AS MATERIALIZED (
    SELECT DISTINCT o.id FROM open o JOIN meant r ON r.key = o.key
                            AND (r.resource_id, r.home) <> (o.resource_id, o.home)
     WHERE ops.may_name_blob(r.blob, %(blob_store)s, o.pathname)
       AND NOT (r.going AND EXISTS (SELECT FROM ops.blob_deletions d WHERE d.table_name = %(table_name)s
                                       AND d.resource_id = r.resource_id AND d.home IN (0, r.home)
                                       AND d.blob = r.blob AND d.closed_at IS NULL))
), judged AS MATERIALIZED (
    SELECT o.id, o.blob, o.resource_id, o.said,
           {there} AND NOT EXISTS (SELECT FROM free f WHERE {is_free}) AS locked,
           CASE WHEN EXISTS (SELECT FROM needed n WHERE n.id = o.id) THEN 'named_by_a_row'
                WHEN o.rule = %(orphaned)s THEN NULL
                WHEN NOT {there} THEN 'row_changed'
                WHEN {held} THEN 'held'
                WHEN ({due}) IS NOT TRUE THEN 'not_due' END AS kept
      FROM open o LEFT JOIN {table} t
        ON t.{blob} = o.blob AND {is_opened} AND (o.home = 0 OR t.tableoid = o.home)
), claimed AS (
    UPDATE ops.blob_deletions d
       SET status = CASE WHEN j.kept IS NULL THEN 'sending' ELSE 'cancelled' END, reason = j.kept, run_id = %(run_id)s,
           sending_at = CASE WHEN j.kept IS NULL THEN clock_timestamp() ELSE d.sending_at END,
           closed_at = CASE WHEN j.kept IS NOT NULL THEN clock_timestamp() END,
           blob = CASE WHEN j.kept IS NULL THEN d.blob END, person = CASE WHEN j.kept IS NULL THEN d.person END
      FROM judged j WHERE d.id = j.id AND NOT j.locked
)
SELECT m.owned, m.stopped, j.id, j.blob, j.resource_id, j.said, j.locked, j.kept
  FROM may_run m LEFT JOIN judged j ON true ORDER BY j.id
""")

# Last in the transaction that claims: what a row looks up in another table may have changed while the claim waited.
_CLAIMED_AGAIN = sql.SQL("""
SELECT ops.none_rescued(count(*)) FROM ops.blob_deletions d JOIN {table} t
    ON t.{blob} = d.blob AND {is_claimed} AND (d.home = 0 OR t.tableoid = d.home)
 WHERE d.policy = %(policy)s AND d.status = 'sending' AND d.closed_at IS NULL AND d.xmin = pg_current_xact_id()::xid
   AND ({due}) IS NOT TRUE
""")

# Recorded even if another run has taken the lease over, or a stop or a hold has come meanwhile: the store has deleted
# the blob already. A second confirmation finds no intent that is 'sending', so nothing is audited twice.
_CONFIRM = sql.SQL("""
WITH sent AS MATERIALIZED (
    SELECT d.id, d.blob, d.resource_id, d.said, d.home, d.rule FROM ops.blob_deletions d
     WHERE d.id = ANY(%(ids)s) AND d.status = 'sending' ORDER BY d.id FOR UPDATE
), closed AS (
    UPDATE ops.blob_deletions d
       SET status = 'confirmed', closed_at = clock_timestamp(), run_id = %(run_id)s, blob = NULL, person = NULL
      FROM sent s WHERE d.id = s.id
), cleared AS (
    UPDATE {table} t SET {changes} FROM sent s
     WHERE t.{blob} = s.blob AND {is_sent} AND (s.home = 0 OR t.tableoid = s.home)
), audited AS (
    SELECT count(*) AS rows,
           ops.note_audit((%(entry_ids)s::jsonb ->> rule)::uuid, %(actor)s, 'delete_blob', %(table_name)s,
                            %(reason_prefix)s || rule, %(run_id)s, array_agg(coalesce(said, resource_id)),
                            coalesce(%(facts)s::jsonb -> rule, '{{}}')) AS entry
      FROM sent GROUP BY rule
), resolved AS (
    UPDATE ops.manual_resolution_queue q
       SET status = 'resolved', resolved_at = clock_timestamp(), resolved_by = %(actor)s, decision = %(decision)s,
           justification = %(justification)s, context = '{{}}', assigned_to = coalesce(%(operator)s, q.assigned_to),
           claim_expires_at = NULL, deferred_until = NULL, before_last = NULL
      FROM sent s
     WHERE q.item_type = %(item_type)s AND q.resource_type = %(table_name)s AND q.resource_id = s.resource_id
       AND q.status <> 'resolved'
    RETURNING q.id::text
), noted AS (
    SELECT ops.note_audit(%(note_id)s, %(actor)s, 'queue_item_resolved', 'ops.manual_resolution_queue',
                            %(item_type)s, %(run_id)s, array_agg(id), %(note)s::jsonb) AS entry
      FROM resolved HAVING count(*) > 0
)
SELECT coalesce(sum(rows) FILTER (WHERE entry IS NOT NULL), 0)::bigint, (SELECT count(entry) FROM noted) FROM audited
""")

_FAIL = sql.SQL("""
UPDATE ops.blob_deletions
   SET status = 'failed', reason = %(reason)s, closed_at = clock_timestamp(), blob = NULL, person = NULL
 WHERE id = %(id)s AND status = 'sending'
""")


@dataclass(frozen=True)
class Intent:
    """An intent that was claimed: the store may be asked to delete its blob."""

    id: int
    blob: str
    resource_id: str
    said: str | None = None
    """The keyed pseudonym of a key that may be personal; None: the key is none."""


@dataclass(frozen=True)
class Claim:
    """What one claim found."""

    intents: list[Intent]
    last_id: int | None
    """The id of the last intent that was looked at; None: no further intent is open."""
    locked: int = 0
    """Intents left as they are because another session has their row locked."""
    cancelled: tuple[str, ...] = ()
    """For each cancelled intent the reason, as a code: held, not due, changed, or named by another row."""


@dataclass(frozen=True)
class Resolution:
    """How the queue items of deleted blobs are closed."""

    decision: str
    justification: str
    note: dict[str, str] = field(default_factory=dict)
    """What the audit keeps: codes and digests, no free text."""


GONE_MEANWHILE = Resolution("gone_meanwhile", "a later run deleted the blob")


class Intents:
    """One policy's open intents, in one run or in one decision of an operator.

    Args:
        database: The database.
        selection: What the policy selects.
        context: The lease and the run, or the operator who decided.
        only: Claim the intents of these rows alone, by key; None: of all rows.
        rule: Claim the intents of this rule alone; None: of all rules.

    Raises:
        ValueError: The policy is not about blobs.
    """

    def __init__(
        self,
        database: Database,
        selection: Selection,
        context: Context,
        *,
        only: list[str] | None = None,
        rule: str | None = None,
    ) -> None:
        policy = selection.policy
        if policy.blob is None:
            raise ValueError(f"policy {policy.name} has no blobs")
        self._database = database
        self._gated = GatedTransaction(policy.batch)
        self._rules = list(dict.fromkeys([*policy.rules, *selection.causes, ORPHANED]))
        self._parameters: dict[str, Any] = {
            **selection.parameters,
            **context.parameters(),
            "policy": policy.name,
            "orphaned": ORPHANED,
            "item_type": policy.blob.item_type,
            "reason_prefix": selection.reason_prefix,
            "facts": Jsonb(context.noted(selection.facts)),
            "only": only,
            "rule": rule,
            "operator": context.operator,
        }
        names = {
            "table": selection.table,
            "blob": sql.Identifier(policy.blob.column),
        }
        record = selection.record
        self._claim = _CLAIM.format(
            may_run=MAY_RUN,
            held=selection.held,
            due=selection.due,
            named=record.named("t"),
            among_open=record.among("t", _OPEN_ROWS),
            there=sql.SQL("t.{} IS NOT NULL").format(sql.Identifier(record.names[0])),
            is_free=record.same("t", "f"),
            id=record.id("t"),
            home=selection.home("t"),
            names_blob=selection.names_blob("t"),
            is_opened=record.is_("t", _ROW_OF.format(sql.SQL("o"))),
            **names,
        )
        self._claimed_again: list[sql.Composed] = []
        if selection.policy.lookups and not selection.cause:
            is_claimed = record.is_("t", _ROW_OF.format(sql.SQL("d")))
            self._claimed_again = [_CLAIMED_AGAIN.format(is_claimed=is_claimed, due=selection.due, **names)]
        self._confirm = _CONFIRM.format(
            changes=changes(selection, policy.blob), is_sent=record.is_("t", _ROW_OF.format(sql.SQL("s"))), **names
        )

    def claim(self, after: int, rows: int, heartbeat: Statement | None = None) -> Claim:
        """Look at open intents again, behind the gate, and make those ``sending`` whose blob may be deleted.

        Args:
            after: Look at intents with a larger id alone.
            rows: Most intents to look at.
            heartbeat: A statement to send in the same transaction.

        Raises:
            StoppedEarly: The lock was lost, the stop switch is on, or the gate stays closed.
        """
        claim: Statement = (self._claim, self._parameters | {"after": after, "rows": rows})
        again: list[Statement] = [(statement, self._parameters) for statement in self._claimed_again]
        found = self._send([claim, *([heartbeat] if heartbeat else []), *again])
        owned, stopped = found[0][:2] if found else (False, False)
        require_may_run(owned=owned, stopped=stopped)
        opened = [row[2:] for row in found if row[2] is not None]
        return Claim(
            intents=[Intent(*row[:4]) for row in opened if not row[4] and row[5] is None],
            last_id=opened[-1][0] if opened else None,
            locked=sum(row[4] for row in opened),
            cancelled=tuple(row[5] for row in opened if row[5] is not None and not row[4]),
        )

    def confirm(self, ids: list[int], resolution: Resolution = GONE_MEANWHILE) -> int:
        """Close intents whose blobs are gone: clear the row, write the audit, close the item, in one transaction.

        Args:
            ids: The intents' ids.
            resolution: How their queue items are closed.

        Returns:
            How many intents this call closed.
        """
        entries = {rule: str(uuid4()) for rule in self._rules}
        parameters = self._parameters | {
            "ids": ids,
            "entry_ids": Jsonb(entries),
            "note_id": uuid4(),
            "decision": resolution.decision,
            "justification": resolution.justification,
            "note": Jsonb(resolution.note),
        }
        return int(self._send([(self._confirm, parameters)])[0][0])

    def fail(self, intent: Intent, reason: str) -> None:
        """Close an intent whose blob could not be deleted; the next run writes a new one.

        Args:
            intent: The intent.
            reason: Why, as a code.
        """
        self._send([(_FAIL.format(), {"id": intent.id, "reason": reason})])

    def _send(self, statements: list[Statement]) -> list[tuple[Any, ...]]:
        """Send a transaction, again after a lost connection, a lock or a deadlock: each statement may be repeated."""

        def once() -> list[tuple[Any, ...]]:
            with self._database.connection() as connection:
                first = self._gated.send(connection, statements)[0]
                return first.fetchall() if first.description else []

        return repeated(once, attempts=6)


def changes(selection: Selection, blob: Blob) -> sql.Composed:
    """Return the assignments that an UPDATE makes to a row whose blob is gone."""
    cleared = sql.SQL("{} = {}").format(sql.Identifier(blob.column), sql.Literal(blob.cleared))
    if blob.deleted_at is None:
        return cleared
    moment = sql.SQL("{} = {}").format(sql.Identifier(blob.deleted_at), selection.now(blob.deleted_at))
    return sql.SQL("{}, {}").format(cleared, moment)
