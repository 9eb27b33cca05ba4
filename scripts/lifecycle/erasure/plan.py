"""Compose the statements of an erasure, once a run: which rows are a person's, and what is done with them.

A person's rows are those that name the person in a step's person column, and those that refer to such a row by a
foreign key. Every statement checks holds, the lease and the stop switch itself, behind the gate (docs/decisions/0004).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.lifecycle.engine import anonymisation, lookups, people
from scripts.lifecycle.engine.anonymisation import Described
from scripts.lifecycle.engine.catalogue import catalogue_of, pointing_at
from scripts.lifecycle.engine.fragments import Fragment, joined
from scripts.lifecycle.engine.gated import MAY_RUN
from scripts.lifecycle.engine.lookup_checks import LookupFinder
from scripts.lifecycle.engine.obstacles import refusals
from scripts.lifecycle.engine.preflight import LARGE_TABLE_BYTES
from scripts.lifecycle.engine.record_keys import RecordKey, problem_of
from scripts.lifecycle.engine.rights import Right, lacking, of_reference, of_step
from scripts.lifecycle.engine.selection import ForeignKey, names_blob, normal_address
from scripts.lifecycle.engine.values import Readings, read
from scripts.lifecycle.engine.values import of_step as values_of_step
from scripts.lifecycle.policy.conditions import Condition, LookedUp, lookups_of, own_columns
from scripts.lifecycle.policy.erasure_steps import ErasureStep
from scripts.lifecycle.policy.lookups import Lookup
from scripts.lifecycle.policy.policy_order import foreign_keys, in_order
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.lifecycle.policy.sections import Anonymize, Blob
from scripts.lifecycle.policy.tables import table_identifier
from scripts.lifecycle.policy.treatments import Treatment
from scripts.utils import composing as sql
from scripts.utils.addresses import folded
from scripts.utils.db_utils import Connection
from scripts.utils.errors import Misconfigured, PolicyFailed

BLOB, HELD, REFERENCED, LOCKED = "names_a_blob", "held", "referenced", "being_written_to"
UNCLEAR = "no_plain_address"
"""The person column holds more than an address, and the person's address is in it."""
NO_STEP = "no_step"
HOLDS = "ops.legal_holds"

_HELD = sql.SQL(
    "EXISTS (SELECT FROM ops.holds_in_force h WHERE (h.scope = 'table' AND h.table_name = {name}"
    " OR h.scope = 'row' AND h.table_name = {name} AND h.resource_id = {key}"
    " OR h.scope = 'person' AND h.person IN (%(person)s, {person})))"
)

# The rows are chosen by their place and judged once more: what was changed meanwhile is left for the next pass.
_ROWS = sql.SQL(
    "t.ctid = ANY(ARRAY(SELECT t.ctid FROM {table} t WHERE {which} LIMIT %(rows)s)) AND {which}"
    " AND (SELECT owned AND NOT stopped FROM may_run)"
)
_DELETE = sql.SQL("DELETE FROM {table} t WHERE {rows} RETURNING {key} AS key, {named} AS named")
_ANONYMIZE = sql.SQL("UPDATE {table} t SET {changes} WHERE {rows} RETURNING {key} AS key, {named} AS named")

# Free words and what was on the item's context go; its type and its times stay. Of a row that is gone there is nothing
# to decide any more.
_FORGOTTEN = sql.SQL("reason = 'erased', context = '{}', before_last = NULL,"
                     " justification = CASE WHEN q.justification IS NOT NULL THEN 'erased' END")  # fmt: skip
_SETTLED = sql.SQL(
    ", resource_id = g.named, status = 'resolved', resolved_at = coalesce(q.resolved_at, clock_timestamp()),"
    " claim_expires_at = NULL,"
    " deferred_until = NULL, resolved_by = coalesce(q.resolved_by, %(actor)s),"
    " decision = coalesce(q.decision, 'erased')"
)
_STEP = sql.SQL("""
WITH {may_run}, gone AS ({change}), audited AS (
    SELECT count(*) AS rows, ops.note_audit(gen_random_uuid(), %(actor)s, {action}, {name}, {reason}, %(run_id)s,
                                              array_agg(named), %(facts)s::jsonb) AS entry
      FROM gone HAVING count(*) > 0
), forgotten AS (
    UPDATE ops.manual_resolution_queue q SET {forgotten} FROM gone g
     WHERE q.resource_type = {name} AND q.resource_id = g.key RETURNING q.id::text
), noted AS (
    SELECT ops.note_audit(gen_random_uuid(), %(actor)s, 'queue_item_erased', 'ops.manual_resolution_queue', {reason},
                            %(run_id)s, array_agg(id), %(facts)s::jsonb) AS entry FROM forgotten HAVING count(*) > 0
)
SELECT owned, stopped, coalesce((SELECT rows FROM audited WHERE entry IS NOT NULL), 0)::bigint,
       (SELECT count(entry) FROM noted) FROM may_run
""")

# An address that somebody wrote into an item, whatever it is about.
_WORDS = sql.SQL(
    "position('@' IN ops.queue_item_words(q.reason, q.context, q.justification)) > 0"
    " AND ops.queue_item_words(q.reason, q.context, q.justification) ~ %(addresses)s"
)
_FORGET_WORDS = sql.SQL("""
WITH {may_run}, forgotten AS (
    UPDATE ops.manual_resolution_queue q SET {forgotten}
     WHERE {words} AND NOT {held} AND (SELECT owned AND NOT stopped FROM may_run) RETURNING q.id::text
), noted AS (
    SELECT count(*) AS rows, ops.note_audit(gen_random_uuid(), %(actor)s, 'queue_item_erased',
           'ops.manual_resolution_queue', 'erasure_request:queue', %(run_id)s, array_agg(id), %(facts)s::jsonb) AS entry
      FROM forgotten HAVING count(*) > 0
)
SELECT owned, stopped, coalesce((SELECT rows FROM noted WHERE entry IS NOT NULL), 0)::bigint, 0 FROM may_run
""")

# From here on nobody reads what stands under the key, in any archive.
_DESTROY_KEY = sql.SQL("""
WITH {may_run}, destroyed AS (
    UPDATE ops.archive_keys SET wrapped = NULL, pseudonym = NULL, destroyed_at = now()
     WHERE pseudonym = %(archive_pseudonym)s::bytea AND NOT {held} AND (SELECT owned AND NOT stopped FROM may_run)
    RETURNING id::text
), noted AS (
    SELECT count(*) AS rows, ops.note_audit(gen_random_uuid(), %(actor)s, 'destroy_key', 'ops.archive_keys',
           'erasure_request:archives', %(run_id)s, array_agg(id), %(facts)s::jsonb) AS entry
      FROM destroyed HAVING count(*) > 0
)
SELECT owned, stopped, coalesce((SELECT rows FROM noted WHERE entry IS NOT NULL), 0)::bigint, 0 FROM may_run
""")

# What is archived is under a hold on its table as well.
_ARCHIVES_HELD = sql.SQL(
    "EXISTS (SELECT FROM ops.holds_in_force h WHERE (h.scope = 'person' AND h.person = %(person)s"
    " OR h.scope = 'table' AND h.table_name = ANY(%(archived)s::text[])))"
)

# So is what somebody wrote about a person, and an item by itself.
_WORDS_HELD = sql.SQL(
    "EXISTS (SELECT FROM ops.holds_in_force h WHERE (h.scope = 'person' AND h.person = %(person)s"
    " OR h.table_name = 'ops.manual_resolution_queue' AND (h.scope = 'table' OR h.resource_id = q.id::text)))"
)

# The rows are locked before their DELETE, so that no session adds a child row in between: the foreign key would delete
# the child along, without an audit entry. They are locked before the first audited statement, because `append_audit`
# locks `ops.audit_head` until COMMIT: waiting for a row after it would make every other session wait for the head.
_LOCK = sql.SQL("SELECT true, false, 0, count(*) FROM (SELECT FROM {table} t WHERE {which}{limit} FOR UPDATE) locked")


def addresses(person: str, *spellings: str) -> str:
    """Return a regular expression that finds a person's addresses in a text, and no longer one that contains them.

    The text has its letters A to Z small, as ops.queue_item_words returns it.
    """
    local, _, domain = person.rpartition("@")
    if domain == "gmail.com":  # however it is written, it is the same
        spelt = r"\.?".join(map(_escaped, local))
        hers = rf"{spelt}\.?(\+[^[:space:]@<>]*)?@(gmail|googlemail)\.com"
    else:
        hers = _escaped(person)
    escaped = "|".join([hers, *(_escaped(folded(each)) for each in dict.fromkeys(spellings))])
    return rf"(?<![a-z0-9._%+-])({escaped})(?![a-z0-9-]|\.[a-z0-9])"


def _escaped(text: str) -> str:
    # A quote has a backslash before it where JSON is read as text.
    return re.sub(r"(\W)", r"\\\1", text).replace('\\"', '\\\\?"')


@dataclass(frozen=True)
class Target:
    """One table, and everything that happens to a person's rows in it."""

    table: str
    record: RecordKey
    whose: sql.Composed
    """The person's rows, whatever was done to them."""
    left: sql.Composed
    """Those of them that a step has yet to delete or change."""
    held: sql.Composed
    blocked: dict[str, sql.Composed]
    referenced: sql.Composed
    blob: Blob | None

    @property
    def names_blob(self) -> sql.Composed:
        """Rows that name a blob, which must go before them."""
        return names_blob(self.blob, "t") if self.blob else sql.SQL("false").format()

    @property
    def free(self) -> sql.Composed:
        """The person's rows that nothing keeps; blobs and rows that refer to them are not considered."""
        kept = [self.held, *self.blocked.values()]
        return sql.SQL(" AND ").join([self.left, *(sql.SQL("NOT ({})").format(each) for each in kept)])

    @property
    def unnameable(self) -> sql.Composed:
        """Rows with a key that could itself be personal."""
        return sql.SQL("NOT ({})").format(self.record.nameable("t"))


@dataclass(frozen=True)
class _Ordered:
    name: str
    table: str
    action: str
    removes_rows: bool


@dataclass
class Found:
    """What is left of a person in one table, and what keeps it: rows by reason."""

    table: str
    rows: int
    kept: dict[str, int] = field(default_factory=dict)
    unnameable: int = 0


class ErasurePlan:
    """Everything that the policy file says of an erasure, checked against the database.

    Args:
        connection: Where to look things up.
        policies: Its ``erasure:``.
        reading: For an export, which changes nothing: a table that it cannot read is left out, and named in
            :attr:`left_out`; what only an erasure needs is not asked for.

    Raises:
        Misconfigured: The file has no such section.
        PolicyFailed: The database contradicts it; names everything.
    """

    def __init__(self, connection: Connection, policies: PolicySet, *, reading: bool = False) -> None:
        if not policies.erasure:
            raise Misconfigured("the policy file says nothing about erasure: add erasure: with a step for each table")
        self.steps = policies.erasure
        self.parameters: dict[str, Any] = {
            "archived": [each.table for each in policies.policies.values() if each.archive],
        }
        self._problems: list[str] = []
        self._reading = reading
        self.left_out: dict[str, str] = {}
        """Tables that cannot be read, and why."""
        self._blobs = {each.table: each.blob for each in policies.policies.values() if each.blob}
        self._columns: dict[str, dict[str, dict[str, Any]]] = {}
        self._readings: dict[str, Readings] = {}
        self._found: dict[Lookup, lookups.Found] = {}
        self._incoming: dict[str, list[ForeignKey]] = {}
        for table in dict.fromkeys(step.table for step in self.steps.values()):
            self._look_up(connection, table)
        self._problems += (
            []
            if reading
            else [
                f"erasure.{name}: nothing says whose rows {step.table} has: name a person column, or let a foreign key"
                " refer to another step's table"
                for name, step in self.steps.items()
                if step.person is None and step.table in self._columns and not self._refers_to_a_step(step.table)
            ]
        )
        if not reading:
            self._problems += self._unknown_owners()
            self._problems += lacking(connection, self._rights(connection))
            self._problems += [f"{problem}: {people.CURE}" for problem in people.nameless(connection, policies)]
        if self._problems:
            raise PolicyFailed("preflight_failed", "no erasure was begun: " + "; ".join(self._problems))
        self.targets = {table: self._target(table) for table in self._columns}
        steps = [_Ordered(name, step.table, step.action, step.action == "delete") for name, step in self.steps.items()]
        self.order = in_order(steps, foreign_keys(connection)).names

    def _rights(self, connection: Connection) -> Iterator[Right]:
        for name, step in self.steps.items():
            yield from of_step(name, step)
        for table, keys in self._incoming.items():
            for key in keys:
                yield from of_reference(connection, table, key, [])
            if blob := self._blobs.get(table):
                yield Right(table, "SELECT", blob.column, "the policy of its blobs")

    def _refers_to_a_step(self, table: str) -> bool:
        return any(self._outgoing(table))

    def _outgoing(self, table: str) -> Iterator[tuple[str, ForeignKey]]:
        """Return the tables of other steps that a table refers to, each with its foreign key."""
        for parent, keys in self._incoming.items():
            yield from ((parent, key) for key in keys if parent != table and key.table == table)

    def _unknown_owners(self) -> Iterator[str]:
        for name, step in self.steps.items():
            known = [key.columns for _, key in self._outgoing(step.table)]
            for column in step.by or ():
                if not any(column in columns and set(columns) <= set(step.by or ()) for columns in known):
                    yield (
                        f"erasure.{name}.by: no foreign key of {step.table} that refers to another step's table is made"
                        f" of {column}; there are {', '.join('+'.join(each) for each in known) or 'none'}"
                    )

    def statements(self) -> list[tuple[str, sql.Composed]]:
        """Return what is done to a person, in order, by step; every statement answers with owned, stopped, rows."""
        composed: list[tuple[str, sql.Composed]] = []
        for name in self.order:
            composed += [(name, statement) for statement in self._of_step(name)]
        composed.append(("queue", self._words()))
        # The key is destroyed after the rows are gone: a row that is archived later would make a new key.
        composed.append(("archives", _DESTROY_KEY.format(may_run=MAY_RUN, held=_ARCHIVES_HELD)))
        return composed

    def spellings(self) -> dict[str, sql.Composed]:
        """Return, by table, the query for every value of the person column that is a spelling of the person's address.

        Each query reads its whole table, unless there is an index on ``ops.normal_address`` of the column. So it is
        sent once before the person's rows are looked for, and once in the search that ends the erasure.
        """
        people = {step.table: step.person for step in self.steps.values() if step.person and step.table in self.targets}
        return {
            table: sql.SQL("SELECT DISTINCT {column}::text FROM {table} t WHERE {normal} = %(person)s").format(
                column=sql.Identifier("t", column),
                table=table_identifier(table),
                normal=normal_address("t", column),
            )
            for table, column in people.items()
        }

    def unclear(self) -> sql.Composed:
        """Return the query that counts, by table, the values that are no plain address and may name the person.

        It reads every table with a person column. Such a row may be another person's too, so no step deletes it.
        """
        people = {step.table: step.person for step in self.steps.values() if step.person and step.table in self.targets}
        parts = [
            sql.SQL("SELECT {}, count(*) FROM {} t WHERE ops.may_name({}::text, %(person)s)").format(
                sql.Literal(table), table_identifier(table), sql.Identifier("t", column)
            )
            for table, column in people.items()
        ]
        return sql.SQL(" UNION ALL ").join([*parts, sql.SQL("SELECT NULL, 0")])

    def look(self) -> sql.Composed:
        """Return the query for what is left of a person, table by table."""
        parts = [
            sql.SQL(
                "SELECT {name}, count(*), jsonb_build_object({kept}), count(*) FILTER (WHERE {unnameable})"
                " FROM {table} t WHERE {left}"
            ).format(
                name=sql.Literal(target.table),
                kept=sql.SQL(", ").join(
                    sql.SQL("{}, count(*) FILTER (WHERE {})").format(sql.Literal(reason), condition)
                    for reason, condition in {
                        HELD: target.held,
                        **target.blocked,
                        BLOB: target.names_blob,
                        REFERENCED: target.referenced,
                    }.items()
                ),
                unnameable=target.unnameable,
                table=table_identifier(target.table),
                left=target.left,
            )
            for target in self.targets.values()
        ]
        parts += [
            sql.SQL(
                "SELECT 'ops.blob_deletions', count(*), jsonb_build_object('not_confirmed', count(*)), 0"
                " FROM ops.blob_deletions"
                " WHERE person = %(person)s"
            ).format(),
            sql.SQL(
                "SELECT 'ops.manual_resolution_queue', count(*),"
                " jsonb_build_object('held', count(*) FILTER (WHERE {})), 0 FROM ops.manual_resolution_queue q WHERE {}"
            ).format(_WORDS_HELD, _WORDS),
            # One in force is work that is open; one that ran out by itself has kept its person.
            sql.SQL(
                "SELECT {}, count(*), jsonb_build_object(), 0 FROM ops.legal_holds"
                " WHERE person = %(person)s AND released_at IS NULL AND scope = 'person' AND expires_at <= now()"
            ).format(sql.Literal(HOLDS)),
            sql.SQL(
                "SELECT 'ops.archive_keys', count(*), jsonb_build_object('held', count(*) FILTER (WHERE {})), 0"
                " FROM ops.archive_keys WHERE pseudonym = %(archive_pseudonym)s::bytea"
            ).format(_ARCHIVES_HELD),
            # Its rows are in no table of the policy's until the job that detached it goes on.
            sql.SQL(
                "SELECT 'ops.detached_partitions', count(*), jsonb_build_object({}, count(*)), 0"
                " FROM ops.detached_partitions d JOIN pg_class c ON c.oid = d.partition_oid AND NOT c.relispartition"
                " WHERE d.state = 'detached' AND d.table_name = ANY({})"
            ).format(sql.Literal(LOCKED), sql.Literal([*self.targets])),
        ]
        return sql.SQL(" UNION ALL ").join(parts)

    def _look_up(self, connection: Connection, table: str) -> None:
        facts, columns = catalogue_of(connection, table)
        why = _unreadable(table, facts, columns, [step for step in self.steps.values() if step.table == table])
        if self._reading and why:
            self.left_out[table] = why
            return
        if not facts:
            self._problems.append(why)
            return
        self._columns[table] = columns
        self._incoming[table] = pointing_at(connection, facts["oid"])
        written = [
            value for name, step in self.steps.items() if step.table == table for value in values_of_step(name, step)
        ]
        self._readings[table], unreadable = read(connection, table, written)
        self._problems += unreadable
        for name, step in self.steps.items():
            if step.table != table or not step.lookups:
                continue
            places = [(f"erasure.{name}.blocked_by.{reason}", each) for reason, each in step.blocked_by.items()]
            finder = LookupFinder(connection, table, facts["oid"], places)
            self._found |= finder.find(step.lookups)
            self._problems += [f"erasure.{name}: {problem}" for problem in finder.problems]
        for name, step in self.steps.items():
            if step.table == table and not self._reading:
                found = [*_problems(step, facts, columns)]
                found += refusals(connection, facts["oid"], "DELETE" if step.action == "delete" else "UPDATE")
                self._problems += [f"erasure.{name}: {problem}" for problem in found]

    def _target(self, table: str) -> Target:
        steps = [step for step in self.steps.values() if step.table == table]
        first = steps[0]
        record = RecordKey(first.key, {name: facts["type"] for name, facts in self._columns[table].items()})
        whose = self._whose(table, "t", (table,))
        done = [
            sql.SQL("({} AND {} AND NOT {})").format(self._when(name), self._by(name), self._not_done(name))
            for name, step in self.steps.items()
            if step.table == table and step.columns
        ]
        # A reference that is null is no person's: what it makes of the condition is not true, and not false either.
        left = sql.SQL(" AND ").join([whose, *(sql.SQL("{} IS NOT TRUE").format(each) for each in done)])
        blocked: dict[str, sql.Composed] = {
            reason: self._met(table, conditions, f"blocked_{name}_{reason}")
            for name, step in self.steps.items()
            if step.table == table
            for reason, conditions in step.blocked_by.items()
        }
        if all(step.when for step in steps):
            known = [self._when(name) for name, step in self.steps.items() if step.table == table]
            blocked[NO_STEP] = sql.SQL("NOT ({})").format(sql.SQL(" OR ").join(known))
        referring = [
            sql.SQL("EXISTS (SELECT FROM {} c WHERE {})").format(table_identifier(key.table), key.joins("c"))
            for key in self._incoming[table]
            if any(step.action == "delete" for step in steps)
        ]
        return Target(
            table=table,
            record=record,
            whose=whose,
            left=left,
            held=_HELD.format(
                name=sql.Literal(table),
                key=record.id("t"),
                person=normal_address("t", first.person) if first.person else sql.SQL("NULL"),
            ),
            blocked=blocked,
            referenced=sql.SQL("({})").format(sql.SQL(" OR ").join(referring or [sql.SQL("false").format()])),
            blob=self._blobs.get(table),
        )

    def _whose(self, table: str, alias: str, path: tuple[str, ...], steps: Iterable[str] = ()) -> sql.Composed:
        """Return SQL that is true for the person's rows: by the address, or by the row that they refer to.

        Args:
            table: The table.
            alias: Its alias.
            path: The tables on the way here. One that refers to itself, or a ring of tables, is followed once round.
            steps: The names of the steps that the rows are for; none: all of the table's.
        """
        meant = [step for name, step in self.steps.items() if step.table == table and name in (steps or self.steps)]
        parts: list[sql.Composable] = []
        if meant[0].person:
            parts.append(
                sql.SQL("{}::text = ANY(%(spellings)s::text[])").format(sql.Identifier(alias, meant[0].person))
            )
        parts += [
            self._refers(key, parent, alias, path)
            for parent, key in self._outgoing(table)
            if parent not in path and any(step.by is None or set(key.columns) <= set(step.by) for step in meant)
        ]
        return sql.SQL("({})").format(sql.SQL(" OR ").join(parts or [sql.SQL("false")]))

    def _by(self, name: str) -> sql.Composed:
        """Return SQL that is true for the rows that a step is about, where it does not mean all of the person's."""
        step = self.steps[name]
        return self._whose(step.table, "t", (step.table,), [name]) if step.by else sql.SQL("true").format()

    def _refers(self, key: ForeignKey, parent: str, alias: str, path: tuple[str, ...]) -> sql.Composed:
        above = f"p{len(path)}"
        query = sql.SQL("SELECT {columns} FROM {table} {above} WHERE {whose}").format(
            columns=sql.SQL(", ").join(sql.Identifier(above, each) for each in key.referenced),
            table=table_identifier(parent),
            above=sql.Identifier(above),
            whose=sql.SQL(" AND ").join([self._whose(parent, above, (*path, parent)), *key.at_home(above)]),
        )
        mine = sql.SQL(", ").join(sql.Identifier(alias, each) for each in key.columns)
        # An array is worked out once and then looked up by the index; it cannot hold pairs.
        if len(key.columns) == 1:
            return sql.SQL("{} = ANY(ARRAY({}))").format(mine, query)
        return sql.SQL("({}) IN ({})").format(mine, query)

    def _when(self, name: str) -> sql.Composed:
        step = self.steps[name]
        return sql.SQL("({})").format(self._met(step.table, step.when, f"when_{name}"))

    def _met(self, table: str, conditions: Mapping[str, Condition | LookedUp], prefix: str) -> Fragment:
        """Return the condition, and note its parameters beside those of the other statements."""
        parts = [self._readings[table].met(own_columns(conditions), prefix)]
        for number, each in enumerate(lookups_of(conditions).values()):
            if found := self._found.get(each.lookup):  # else a problem, and the plan is not carried out
                name = f"{prefix}_lookup_{number}"
                parts.append(found.readings.is_met(found.probed(), each.take, each.what, name))
        condition = joined(" AND ", parts)
        self.parameters |= condition.parameters
        return condition

    def _not_done(self, name: str) -> sql.Composed:
        step = self.steps[name]
        done = []
        for column, treatment in step.columns.items():
            constant = f"constant_{name}_{column}"
            if treatment.constant is not None:
                self.parameters[constant] = self._readings[step.table].texts[column, treatment.constant]
            kind = self._columns[step.table][column]["type"]
            done.append(anonymisation.done(column, treatment, kind, sql.Placeholder(constant)))
        return sql.SQL("NOT ({})").format(sql.SQL(" AND ").join(done))

    def locks(self) -> Iterator[tuple[str, sql.Composed]]:
        """Return what comes first in every transaction that deletes from a table, by table."""
        for table, target in self.targets.items():
            # All of them where a foreign key would take children along; elsewhere as many as one transaction changes.
            whole = any(key.changes_children for key in self._incoming[table])
            limit = sql.SQL("" if whole else " LIMIT %(rows)s")
            yield table, _LOCK.format(table=table_identifier(table), which=target.free, limit=limit)

    def _words(self) -> sql.Composed:
        return _FORGET_WORDS.format(may_run=MAY_RUN, forgotten=_FORGOTTEN, words=_WORDS, held=_WORDS_HELD)

    def _of_step(self, name: str) -> Iterator[sql.Composed]:
        step = self.steps[name]
        target = self.targets[step.table]
        which = sql.SQL("{} AND {}").format(target.free, self._when(name))
        which = sql.SQL("{} AND {}").format(which, self._by(name))
        if not target.record.impersonal:
            which = sql.SQL("{} AND {}").format(which, target.record.sayable("t", sql.Placeholder("names")))
        if step.action == "anonymize":
            for column, treatment in step.columns.items():
                if treatment.how == "suppression":
                    # The person was suppressed before and has come back: one pseudonym is enough.
                    known = sql.SQL("EXISTS (SELECT FROM {} o WHERE o.{} = %(suppression)s)").format(
                        table_identifier(step.table), sql.Identifier(column)
                    )
                    yield self._composed(name, _DELETE, sql.SQL("{} AND {}").format(which, known), settle=True)
            yield self._composed(name, _ANONYMIZE, which, settle=False)
            return
        gone_before = sql.SQL("{} AND NOT {} AND NOT {}").format(which, target.names_blob, target.referenced)
        yield self._composed(name, _DELETE, gone_before, settle=True)

    def _composed(self, name: str, template: sql.SQL, which: sql.Composable, *, settle: bool) -> sql.Composed:
        step = self.steps[name]
        target = self.targets[step.table]
        table, key = table_identifier(step.table), target.record.id("t")
        named = target.record.said("t", sql.Placeholder("names"))
        change = template.format(
            table=table,
            rows=_ROWS.format(table=table, which=which),
            key=key,
            named=named,
            **({"changes": self._changes(name, step)} if template is _ANONYMIZE else {}),
        )
        return _STEP.format(
            may_run=MAY_RUN,
            change=change,
            action=sql.Literal("delete" if settle else "anonymize"),
            name=sql.Literal(step.table),
            reason=sql.Literal(f"erasure_request:{name}"),
            forgotten=_FORGOTTEN + _SETTLED if settle else _FORGOTTEN,
        )

    def _changes(self, name: str, step: ErasureStep) -> sql.Composed:
        return sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(column), self._value(name, column, treatment))
            for column, treatment in step.columns.items()
        )

    def _value(self, step: str, column: str, treatment: Treatment) -> sql.Composable:
        name, kind = sql.Identifier("t", column), sql.SQL(self._columns[self.steps[step].table][column]["type"])
        if treatment.how == "null":
            return sql.SQL("NULL")
        if treatment.how == "constant":
            return sql.SQL("{}::{}").format(sql.Placeholder(f"constant_{step}_{column}"), kind)
        if treatment.how == "truncate_ip":
            return sql.SQL("ops.truncate_ip({}::text)::{}").format(name, kind)
        # Worked out here: neither key may reach the server.
        return sql.SQL("CASE WHEN {} IS NOT NULL THEN {}::{} END").format(name, sql.Placeholder(treatment.how), kind)


def _unreadable(table: str, facts: dict[str, Any], columns: dict[str, dict[str, Any]], steps: list[ErasureStep]) -> str:
    """Return why a table's rows cannot even be looked for; empty: they can."""
    if not facts:
        return f"table {table} does not exist"
    named = {*steps[0].key, *([steps[0].person] if steps[0].person else [])}
    named |= {column for step in steps for column in step.columns}
    if missing := sorted(named - columns.keys()):
        return f"column {table}.{missing[0]} does not exist"
    return ""


def _problems(step: ErasureStep, facts: dict[str, Any], columns: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Name what keeps a step from being carried out."""
    blocked = [column for conditions in step.blocked_by.values() for column in own_columns(conditions)]
    named = {*step.key, *([step.person] if step.person else []), *step.when, *step.columns, *blocked}
    named |= {*(step.not_exported or ())}
    for column in sorted(named - columns.keys()):
        yield f"column {step.table}.{column} does not exist"
    if problem := problem_of(step.key, {name: row["type"] for name, row in columns.items()}):
        yield f"{step.table}: {problem}"
    if facts["row_security"]:
        yield f"row-level security on {step.table} hides rows from this role"
    large = facts["bytes"] > LARGE_TABLE_BYTES
    if step.person in columns and not columns[step.person]["indexed"] and large:
        yield f"{step.table}.{step.person} has no index: every request would read the whole table"
    described = {name: Described(row["type"], row["attnotnull"], row["length"]) for name, row in columns.items()}
    section = Anonymize.model_construct(columns=step.columns, marker=None)
    yield from (f"{step.table}.{problem}" for problem in anonymisation.problems(section, described))
