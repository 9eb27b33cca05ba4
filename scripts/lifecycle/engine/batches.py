"""Compose and run one batch: one transaction, one round trip, and every condition checked inside it.

The pipeline is BEGIN, settings and gate, dependants, the DELETE with its audit entry, COMMIT. The DELETE itself checks
the predicate, the holds, the fencing token and the stop switch, on a snapshot taken after the gate: a hold, a lease
take-over or a stop that was committed before is seen, one that comes later waits until this batch is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.types.json import Jsonb

from scripts.lifecycle.engine import anonymisation, personal_keys
from scripts.lifecycle.engine.decided import Decided
from scripts.lifecycle.engine.gated import MAY_RUN, Context, GatedTransaction, Statement
from scripts.lifecycle.engine.politeness import Look
from scripts.lifecycle.engine.selection import Reach, Selection, normal_address
from scripts.lifecycle.engine.windows import Window
from scripts.lifecycle.policy.sections import Anonymize, SoftDelete
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection, Database, connection_lost

_DELETE = sql.SQL("""gone AS (
    DELETE FROM {table} t
     WHERE {rows} AND {removable} AND (SELECT owned AND NOT stopped FROM may_run)
    RETURNING {said} AS key, {rule} AS rule{decided}
)""")
# The rows were decided on when they were locked, and what they look up may have gone since, with them.
_DELETE_CHOSEN = sql.SQL("""gone AS (
    DELETE FROM {table} t USING {choices}
     WHERE {rows} AND t.tableoid = d.part AND t.ctid = d.place AND {removable}
       AND (SELECT owned AND NOT stopped FROM may_run)
    RETURNING {said} AS key, d.rule
)""")

# The rule is computed before the row changes, because it may depend on the columns that the change marks.
_SOFT_DELETE = sql.SQL("""chosen AS MATERIALIZED (
    SELECT {named}, {said} AS said, {rule} AS rule{decided} FROM {table} t
     WHERE {rows} AND {removable} AND (SELECT owned AND NOT stopped FROM may_run)
       FOR UPDATE
), gone AS (
    UPDATE {table} t SET {marks} FROM chosen c WHERE {same} RETURNING c.said AS key, c.rule{passed_on}
)""")

# As above; a row that changed since its values were read is left for the closing pass.
_ANONYMIZE = sql.SQL("""{fresh}, chosen AS MATERIALIZED (
    SELECT {named}, {id} AS key, {said} AS said, {rule} AS rule{decided} FROM {table} t
     WHERE {rows} AND {removable}{still_fresh} AND (SELECT owned AND NOT stopped FROM may_run)
       FOR UPDATE
), gone AS (
    UPDATE {table} t SET {marks} FROM chosen c
      JOIN fresh f ON f.key = c.key AND f.place = c.key_table::text || c.key_place::text
     WHERE {same} RETURNING c.said AS key, c.rule{passed_on}
)""")

_AUDITED = sql.SQL("""
WITH {may_run}, {gone}, audited AS (
    SELECT rule, count(*) AS rows,
           ops.note_audit((%(entry_ids)s::jsonb ->> rule)::uuid, %(actor)s, %(action)s, %(table_name)s,
                            %(reason_prefix)s || rule, %(run_id)s, array_agg(key), %(facts)s::jsonb -> rule) AS entry
      FROM gone GROUP BY rule
){remembered}
SELECT owned, stopped, (SELECT coalesce(sum(rows) FILTER (WHERE entry IS NOT NULL), 0)::bigint FROM audited)
  FROM may_run{kept}
""")

_FREE = sql.SQL("t.ctid = ANY(ARRAY(SELECT t.ctid FROM {table} t WHERE {rows} AND {removable} FOR UPDATE SKIP LOCKED))")
# A ctid names a row in every partition and child: the row in another one may be the row that a session has locked.
_FREE_IN_PARTITIONS = sql.SQL("""{rows} AND (t.tableoid, t.ctid) IN (
    SELECT t.tableoid, t.ctid FROM {table} t WHERE {rows} AND {removable} FOR UPDATE SKIP LOCKED)""")

# The removal of blobs carries the intents out later. A row that has an open intent gets no second one.
_INTEND = sql.SQL("""
WITH {may_run}, written AS (
    INSERT INTO ops.blob_deletions (policy, rule, table_name, resource_id, said, home, blob, person, run_id)
    SELECT %(policy)s, {rule}, %(table_name)s, {id}, nullif({said}, {id}), {home}, t.{blob}, {person}, %(run_id)s
      FROM {table} t WHERE {rows} AND {removable} AND (SELECT owned AND NOT stopped FROM may_run)
        ON CONFLICT (table_name, resource_id, home) WHERE closed_at IS NULL DO NOTHING
    RETURNING id
)
SELECT owned, stopped, (SELECT ops.at_most(count(*), %(most)s) FROM written) FROM may_run
""")

_NAMES = sql.Placeholder(personal_keys.OWN)

# A child that is being added while its parent goes: the DELETE would wait for it, then not look again, and the foreign
# key would delete it or cut it off unseen. Locked first, no child can be added, and later statements see every child.
_LOCK = sql.SQL("""
SELECT count(*) FROM (SELECT FROM {table} t WHERE {rows} AND {removable} FOR UPDATE {skip_locked}) locked
""")

# Before anything goes: few rows may have very many dependants. All are seen, because their parents are locked.
_WEIGHED = sql.SQL("""
SELECT ops.at_most((SELECT count(*) FROM {table} t WHERE {rows} AND {removable}) + {dependants}, %(most)s)
""")
_SOME_DEPENDANTS = sql.SQL("""
(SELECT count(*) FROM (
    SELECT FROM {child} c JOIN {table} t ON {joins} WHERE {rows} AND {removable} LIMIT %(most)s + 1) s)
""")
# At the end: rows may have come to the window since it was chosen. Only the batch itself sees its notes.
_NOTED = sql.SQL("""
SELECT ops.at_most(coalesce(sum(cardinality(resource_ids)), 0)::bigint, %(most)s) FROM ops.audit_notes
 WHERE id = ANY(%(entries)s::uuid[])
""").format()
_ONLY_ASKED = sql.SQL("WITH {may_run} SELECT owned, stopped, 0 FROM may_run").format(may_run=MAY_RUN)

_DEPENDANTS = sql.SQL("""
WITH {may_run}, parents AS MATERIALIZED (
    SELECT {referenced} FROM {table} t
     WHERE {rows} AND {removable} AND (SELECT owned AND NOT stopped FROM may_run)
       FOR UPDATE {skip_locked}
), reached AS (
    {change} AND {sayable} RETURNING {said} AS key{looked_at}
)
SELECT ops.note_audit(%(entry_{number})s, %(actor)s, {action}, {child_name}, %(reason_prefix)s || 'dependant',
                        %(run_id)s, array_agg(key), '{{}}') FROM reached{kept} HAVING count(*) > 0
""")


# A ctid alone would name a row in each partition; a place may have been given to another row meanwhile.
_THESE = sql.SQL(" AND c.tableoid = %(child_table)s::oid AND c.ctid = ANY(%(child_places)s::tid[])")
_ALL = sql.SQL("")
_TOO_LARGE = "LA003"


@dataclass(frozen=True)
class Outcome:
    """The answer of one batch."""

    owned: bool
    stopped: bool
    deleted: int
    """Rows of the policy's table; of a policy about blobs, intents written."""
    answer: tuple[Any, ...] | None = None
    """The answer to the path's question; None: none was asked, or it found nothing."""
    looked: tuple[Any, ...] | None = None
    """The answer to the look at the server; None: none was taken."""
    dependants: int = 0
    """Rows of other tables that went along, or were cut off."""
    batches: int = 1
    """How many transactions count as batches in the run record."""
    again: bool = False
    """Whether the window may have more rows now, so it is to be carried out once more."""
    seconds: float | None = None
    """How long the batch was in other sessions' way; None: all the time that it took."""


class BatchTooLarge(Exception):
    """The batch would have had more records than it may; nothing of it happened."""


class Ambiguous(Exception):
    """The connection broke before COMMIT was answered.

    Args:
        settle: Closes the gate and finds out how many of the policy's rows the batch deleted; None: nothing of it
            happened.
    """

    def __init__(self, settle: Callable[[], int | None]) -> None:
        super().__init__("the connection broke before the server's answer")
        self.settle = settle


class BatchWriter:
    """Composes a policy's batches once and runs them.

    Args:
        database: The pool.
        selection: The rows that may go.
        context: Lease, script and run record.
        pseudonym: Returns the keyed pseudonym of a text; needed where a key may be personal or a column becomes one.

    Raises:
        ValueError: The policy archives before it deletes.
    """

    def __init__(
        self,
        database: Database,
        selection: Selection,
        context: Context,
        pseudonym: Callable[[str], str] | None = None,
    ) -> None:
        policy = selection.policy
        if policy.archive:
            raise ValueError(f"rows of policy {policy.name} are archived before they are deleted")
        self._database = database
        self._pseudonym = pseudonym
        # One connection for all batches: each lending from the pool costs a round trip for its check.
        self._connection: Connection | None = None
        self._lent = ExitStack()
        self._composed: dict[tuple[bytes, bool], list[bytes]] = {}
        self._selection = selection
        self._decided = Decided(selection)
        self._locks_first = bool(selection.reaches) or any(key.changes_children for key in selection.refusing)
        self._gated = GatedTransaction(policy.batch)
        self._constants: dict[str, Any] = {
            **selection.parameters,
            **context.parameters(),
            **{name: Jsonb({}) for name in personal_keys.parameters(selection)},
            "policy": policy.name,
            "action": policy.action,
            "reason_prefix": selection.reason_prefix,
            "facts": Jsonb(context.noted(selection.facts)),
        }

    def close(self) -> None:
        """Give the connection back to the pool; the next batch takes a checked one."""
        self._connection = None
        self._lent.close()

    def run(
        self,
        window: Window,
        *,
        excluded: list[str],
        most: int | None = None,
        skip_locked: bool = False,
        question: tuple[sql.Composed, dict[str, Any]] | None = None,
        heartbeat: Statement | None = None,
        look: Look | None = None,
    ) -> Outcome:
        """Carry out the policy's action on the rows of a window that may go, and audit it, in one transaction.

        Args:
            window: The part of the table.
            excluded: Keys of rows that the database refuses to delete; they are left out.
            most: Records that the batch may have, its dependants included; None: the policy's ``batch.rows``.
            skip_locked: Leave out rows that another session has locked, instead of waiting for them.
            question: The path's question for the next window, asked in the same round trip.
            heartbeat: The statement that shows the run to be alive, in the same transaction.
            look: The look at the server; asked last, because only while the batch holds its locks does a session wait
                for it.

        Raises:
            Ambiguous: The connection broke.
            BatchTooLarge: The window has more records than the batch may have; nothing of the batch happened.
            Blocked: The gate could not be passed in time, or what a row looks up in another table was changed
                meanwhile; nothing of the batch happened.
            psycopg.Error: Anything else that the server refused; nothing of the batch happened.
        """
        parameters, entry_ids = self._parameters(window, excluded)
        parameters["most"] = most or self._selection.policy.batch.rows
        with self._settled_by(entry_ids) as connection:
            parameters |= self._names(connection, window, parameters)
            parameters |= self._fresh(connection, window, parameters)
            composed = self._statements(connection, window.clause, skip_locked=skip_locked)
            return self._send(connection, composed, parameters, question, heartbeat, look)

    def dependants_of(
        self,
        chosen: Window,
        number: int,
        places: tuple[int, list[str]],
        *,
        heartbeat: Statement | None = None,
        look: Look | None = None,
    ) -> Outcome:
        """Let some of a row's dependants go before it, and audit them: it has more of them than one batch may have.

        Args:
            chosen: The row; it is looked at again, and nothing goes unless it may go itself.
            number: Which of the selection's reaches.
            places: Where some of them are: the table or partition, and the ctids there.
            heartbeat: As for :meth:`run`.
            look: As for :meth:`run`.

        Raises:
            Ambiguous: The connection broke.
            Blocked: The gate could not be passed, or the audit's head not be had, in time; or what the row looks up in
                another table was changed meanwhile.
            psycopg.Error: What else the server refused; nothing of the batch happened.
        """
        parameters, entry_ids = self._parameters(chosen, [])
        parameters |= {"most": len(places[1]), "child_table": places[0], "child_places": places[1]}
        reach = self._selection.reaches[number]
        statements = [
            self._lock(chosen.clause, skip_locked=False),
            self._dependants(number, reach, chosen.clause, skip_locked=False, only=_THESE),
            _ONLY_ASKED,
        ]
        with self._settled_by(entry_ids) as connection:
            parameters |= self._names(connection, chosen, parameters)
            composed = [statement.as_bytes(connection) for statement in statements]
            return self._send(connection, composed, parameters, None, heartbeat, look)

    @contextmanager
    def _settled_by(self, entry_ids: list[UUID]) -> Iterator[Connection]:
        """Lend the connection; say what settles a batch whose answer was lost, and what a batch was too large for.

        Raises:
            Ambiguous: The connection broke; the entries' ids settle whether the batch was committed.
            BatchTooLarge: More would go along than a batch may have; nothing of it happened.
            psycopg.Error: What else the server refused; nothing of the batch happened.
        """
        try:
            if self._connection is None:
                self._connection = self._lent.enter_context(self._database.connection())
            yield self._connection
        except psycopg.Error as error:
            if error.sqlstate == _TOO_LARGE:
                raise BatchTooLarge from error
            if connection_lost(error):
                if self._connection is not None:
                    self._connection.close()  # behind a pooler it may look well
                self.close()
                raise Ambiguous(lambda: self.settle(entry_ids)) from error
            raise

    def within(self, connection: Connection, window: Window) -> Outcome:
        """Do the same in a transaction that the caller has opened behind the gate and will commit.

        Raises:
            BatchTooLarge: More would go along than the policy's batches may have; the transaction must be undone.
            psycopg.Error: What the server refused; the transaction must be undone.
        """
        parameters, _ = self._parameters(window, [])
        parameters |= self._names(connection, window, parameters)
        parameters["most"] = self._selection.policy.batch.rows
        parameters |= self._fresh(connection, window, parameters)
        try:
            for statement in self._statements(connection, window.clause, skip_locked=False):
                cursor = connection.execute(statement, parameters)
            for statement in self._settling(connection):
                connection.execute(statement, parameters)
        except psycopg.Error as error:
            if error.sqlstate == _TOO_LARGE:
                raise BatchTooLarge from error
            raise
        return Outcome(*(cursor.fetchone() or (False, False, 0)))

    def _parameters(self, window: Window, excluded: list[str]) -> tuple[dict[str, Any], list[UUID]]:
        """Return a batch's parameters, and the ids of its audit entries."""
        entries = {rule: uuid4() for rule in self._selection.causes}
        reached = {f"entry_{number}": uuid4() for number, _ in enumerate(self._selection.reaches)}
        named = {"excluded": excluded, "entry_ids": Jsonb({rule: str(entry) for rule, entry in entries.items()})}
        ids = [*entries.values(), *reached.values()]
        return self._constants | window.parameters | reached | named | {"entries": ids}, ids

    def _names(self, connection: Connection, window: Window, parameters: dict[str, Any]) -> dict[str, Any]:
        """Read the keys that may be personal, and compute the pseudonyms by which the audit names them.

        Raises:
            ValueError: The function that makes pseudonyms was not given.
        """
        if not self._selection.pseudonymous:
            return {}
        kept = sql.SQL("{} <> ALL(%(excluded)s::text[])").format(self._selection.record.id("t"))
        rows = sql.SQL(" AND ").join([window.clause, self._selection.removable, kept])
        asked = personal_keys.questions(self._selection, rows)
        if self._pseudonym is None:
            raise ValueError("a policy with keys that may be personal needs the function that makes pseudonyms")
        with self._gated.reading(connection):
            keys = {name: connection.execute(query, parameters).fetchall() for name, query in asked.items()}
        return {name: Jsonb({key: self._pseudonym(key) for (key,) in found}) for name, found in keys.items()}

    def _fresh(self, connection: Connection, window: Window, parameters: dict[str, Any]) -> dict[str, Any]:
        """Read the values that become pseudonyms, and compute the pseudonyms.

        Raises:
            ValueError: The function that makes pseudonyms was not given.
        """
        section = self._selection.policy.anonymize
        if section is None or not section.pseudonymised:
            return {}
        if self._pseudonym is None:
            raise ValueError("a policy with pseudonyms needs the function that makes them")
        where = sql.SQL("{} AND {}").format(window.clause, self._removable)
        query = anonymisation.read(section, self._selection.table, self._selection.record, where)
        with self._gated.reading(connection):
            rows = connection.execute(query, parameters).fetchall()
        return dict(anonymisation.parameters_of(section, rows, self._pseudonym))

    def _send(
        self,
        connection: Connection,
        composed: list[bytes],
        parameters: dict[str, Any],
        question: tuple[sql.Composed, dict[str, Any]] | None,
        heartbeat: Statement | None,
        look: Look | None,
    ) -> Outcome:
        statements: list[Statement] = [*((each, parameters) for each in composed), (_NOTED, parameters)]
        # The look last: it then sees every session that waits for this batch.
        statements += [extra for extra in (question, heartbeat, look) if extra]
        told = len(statements) - 1
        statements += [(each, parameters) for each in self._settling(connection)]
        cursors = self._gated.send(connection, statements)
        owned, stopped, deleted = cursors[len(composed) - 1].fetchone() or (False, False, 0)
        noted = (cursors[len(composed)].fetchone() or (0,))[0]
        answer = cursors[len(composed) + 1].fetchone() if question else None
        looked = cursors[told].fetchone() if look else None
        return Outcome(owned, stopped, deleted, answer, looked, dependants=max(0, noted - deleted))

    def _statements(self, connection: Connection, window: sql.Composable, *, skip_locked: bool) -> list[bytes]:
        """Compose the statements of a batch, the DELETE last; they are cached, because a path's windows share them."""
        kept = (window.as_bytes(connection), skip_locked)
        if kept not in self._composed:
            statements = [self._lock(window, skip_locked=skip_locked)] if self._locks_first else []
            statements += [self._weighed(window)] if self._selection.reaches else []
            statements += [
                self._dependants(number, reach, window, skip_locked=skip_locked)
                for number, reach in enumerate(self._selection.reaches)
            ]
            statements.append(self._delete(window, skip_locked=skip_locked))
            self._composed[kept] = [statement.as_bytes(connection) for statement in statements]
        return self._composed[kept]

    def _settling(self, connection: Connection) -> list[bytes]:
        """Compose what comes last: to wait for everything that is left to wait for, and to decide once more."""
        if self._selection.policy.blob:
            return []  # each row is decided on again when its blob is claimed
        return [statement.as_bytes(connection) for statement in self._decided.settling]

    def _delete(self, rows: sql.Composable, *, skip_locked: bool) -> sql.Composed:
        selection = self._selection
        children_left = [
            sql.SQL("NOT EXISTS (SELECT FROM {} c WHERE {})").format(
                table_identifier(reach.foreign_key.table), reach.foreign_key.joins("c")
            )
            for reach in selection.reaches
        ]
        if self._decided.first:
            gone = _DELETE_CHOSEN.format(
                table=selection.table,
                choices=self._decided.choices,
                rows=rows,
                removable=sql.SQL(" AND ").join(children_left),
                said=selection.record.said("t", _NAMES),
            )
            return _AUDITED.format(may_run=MAY_RUN, gone=gone, remembered=sql.SQL(""), kept=sql.SQL(""))
        removable = sql.SQL(" AND ").join([self._removable, *children_left])
        if skip_locked:
            free = _FREE_IN_PARTITIONS if selection.partitioned else _FREE
            rows = free.format(table=selection.table, rows=rows, removable=removable)
        names: dict[str, sql.Composable] = {
            "table": selection.table,
            "rows": rows,
            "removable": removable,
            "id": selection.record.id("t"),
            "said": selection.record.said("t", _NAMES),
            "named": selection.record.named("t"),
            "same": (selection.record.exactly if selection.partitioned else selection.record.same)("t", "c"),
            "rule": selection.rule_of_due,
        }
        policy = selection.policy
        kept = self._decided.kept_with("c" if policy.soft_delete or policy.anonymize else "")
        names |= {name: kept.pop(name) for name in ("decided", "passed_on")}
        if policy.blob:
            person = normal_address("t", policy.person) if policy.person else sql.SQL("NULL")
            return _INTEND.format(
                may_run=MAY_RUN,
                blob=sql.Identifier(policy.blob.column),
                person=person,
                home=selection.home("t"),
                **names,
            )
        if policy.soft_delete:
            gone = _SOFT_DELETE.format(marks=_marks(selection, policy.soft_delete), **names)
        elif policy.anonymize:
            gone = self._anonymize(policy.anonymize, names)
        else:
            gone = _DELETE.format(**names)
        return _AUDITED.format(may_run=MAY_RUN, gone=gone, **kept)

    def _anonymize(self, section: Anonymize, names: dict[str, sql.Composable]) -> sql.Composed:
        selection = self._selection
        marks = anonymisation.marks(section, selection.column_type, selection.now)
        if not section.pseudonymised:
            return _SOFT_DELETE.format(marks=marks, **names)
        still_fresh = anonymisation.still_fresh(selection.record)
        return _ANONYMIZE.format(fresh=anonymisation.fresh(section), still_fresh=still_fresh, marks=marks, **names)

    @property
    def _removable(self) -> sql.Composed:
        selection = self._selection
        kept = sql.SQL("{} <> ALL(%(excluded)s::text[])").format(selection.record.id("t"))
        sayable = selection.record.sayable("t", _NAMES)
        return sql.SQL("{} AND {} AND {}").format(selection.removable, sayable, kept)

    @property
    def _going(self) -> sql.Composed:
        """The rows of a window whose dependants go, in the statements after the one that locked them."""
        return self._decided.chosen if self._decided.first else self._removable

    def _lock(self, rows: sql.Composable, *, skip_locked: bool) -> sql.Composed:
        if self._decided.first:
            return self._decided.choice(rows, self._removable, skip_locked=skip_locked, may_run=MAY_RUN)
        return _LOCK.format(
            table=self._selection.table,
            rows=rows,
            removable=self._removable,
            skip_locked=sql.SQL("SKIP LOCKED" if skip_locked else ""),
        )

    def _weighed(self, rows: sql.Composable) -> sql.Composed:
        names = {"table": self._selection.table, "rows": rows, "removable": self._going}
        each = [
            _SOME_DEPENDANTS.format(
                child=table_identifier(reach.foreign_key.table), joins=reach.foreign_key.joins("c"), **names
            )
            for reach in self._selection.reaches
        ]
        return _WEIGHED.format(dependants=sql.SQL(" + ").join(each), **names)

    def _dependants(
        self, number: int, reach: Reach, rows: sql.Composable, *, skip_locked: bool, only: sql.SQL = _ALL
    ) -> sql.Composed:
        selection, foreign_key = self._selection, reach.foreign_key
        child = table_identifier(foreign_key.table)
        joins = foreign_key.joins("c")
        if reach.action == "delete":
            change = sql.SQL("DELETE FROM {} c USING parents t WHERE {}{}").format(child, joins, only)
        else:
            nulls = sql.SQL(", ").join(sql.SQL("{} = NULL").format(sql.Identifier(c)) for c in reach.nulled)
            change = sql.SQL("UPDATE {} c SET {} FROM parents t WHERE {}{}").format(child, nulls, joins, only)
        looked_at, kept = self._decided.gone_with(number, reach)
        return _DEPENDANTS.format(
            looked_at=looked_at,
            kept=kept,
            may_run=MAY_RUN,
            referenced=sql.SQL(", ").join(
                sql.SQL("t.{}").format(sql.Identifier(c)) for c in ("tableoid", *foreign_key.referenced)
            ),
            table=selection.table,
            rows=rows,
            removable=self._going,
            skip_locked=sql.SQL("SKIP LOCKED" if skip_locked else ""),
            change=change,
            said=reach.record.said("c", sql.Placeholder(personal_keys.of_dependant(number))),
            sayable=reach.record.sayable("c", sql.Placeholder(personal_keys.of_dependant(number))),
            child_name=sql.Literal(foreign_key.table),
            action=sql.Literal(reach.action),
            number=sql.SQL(str(number)),
        )

    def settle(self, entry_ids: list[UUID]) -> int | None:
        """Find out what became of an ambiguous batch.

        Returns:
            How many of the policy's rows it deleted, or None if nothing of it happened.
        """
        with self._database.closing_gate() as connection:
            row = connection.execute(
                "SELECT sum(cardinality(resource_ids)) FILTER (WHERE resource_type = %s) FROM ops.audit_batches"
                " WHERE id = ANY(%s) HAVING count(*) > 0",
                (self._selection.policy.table, entry_ids),
            ).fetchone()
        return int(row[0] or 0) if row else None


def _marks(selection: Selection, columns: SoftDelete) -> sql.Composed:
    moment = sql.SQL("{} = {}").format(sql.Identifier(columns.deleted_at), selection.now(columns.deleted_at))
    if columns.flag is None:
        return moment
    return sql.SQL("{} = true, {}").format(sql.Identifier(columns.flag), moment)
