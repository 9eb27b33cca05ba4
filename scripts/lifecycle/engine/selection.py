"""The one predicate that counting, dry run and delete share, so that they cannot drift.

The table's alias is ``t`` throughout. Identifiers come from the policy and from the catalogue, always quoted;
every value is a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from psycopg import sql

from scripts.lifecycle.engine import anonymisation
from scripts.lifecycle.engine.record_keys import RecordKey
from scripts.lifecycle.policy.policies import Blob, Condition, Policy, table_identifier

_CASTS = {
    "timestamp without time zone": "({}::timestamptz AT TIME ZONE 'UTC')",
    "timestamp with time zone": "{}::timestamptz",
    "date": "({}::timestamptz AT TIME ZONE 'UTC')::date",
}
ANCHOR_TYPES = frozenset(_CASTS)

_INSTANTS = {
    "timestamp without time zone": "({} AT TIME ZONE 'UTC')",
    "timestamp with time zone": "{}",
    "date": "({}::timestamp AT TIME ZONE 'UTC')",
}


@dataclass(frozen=True)
class ForeignKey:
    """A constraint that points at the policy's table, as the catalogue has it."""

    name: str
    table: str
    columns: tuple[str, ...]
    referenced: tuple[str, ...]
    on_delete: str
    """The catalogue's letter: a no action, r restrict, c cascade, n set null, d set default."""
    indexed: bool
    table_bytes: int
    set_columns: tuple[str, ...] = ()
    """The columns that ON DELETE SET NULL names, where it names any (PostgreSQL 15)."""
    homes: tuple[int, ...] = ()
    """The tables (oids) that hold the rows it can refer to, where it points at a part of the policy's table only: at
    one partition, at one inheritance child, or at a parent whose children it does not know. Empty: it can refer to any
    row."""

    @property
    def changes_children(self) -> bool:
        """Whether PostgreSQL itself deletes or changes the referring rows: cascade, set null or set default."""
        return self.on_delete in ("c", "n", "d")

    def is_named(self, table: str, columns: tuple[str, ...]) -> bool:
        """Tell whether a dependant of the policy file means this constraint: by all its columns, or by the first."""
        return table == self.table and columns in (self.columns, self.columns[:1])

    def joins(self, alias: str) -> sql.Composed:
        """Return the condition that a row of ``alias`` refers to the row of ``t``."""
        pairs = [
            sql.SQL("{}.{} = t.{}").format(sql.SQL(alias), sql.Identifier(child), sql.Identifier(parent))
            for child, parent in zip(self.columns, self.referenced, strict=True)
        ]
        return sql.SQL(" AND ").join([*pairs, *self.at_home("t")])

    def at_home(self, alias: str) -> list[sql.Composed]:
        """Return the condition, if one is needed, that a row of the policy's table is one that it can refer to."""
        if not self.homes:
            return []
        oids = sql.SQL(", ").join(map(sql.Literal, self.homes))
        return [sql.SQL("{}.tableoid IN ({})").format(sql.Identifier(alias), oids)]


@dataclass(frozen=True)
class Reach:
    """A declared dependant with the constraint it stands for."""

    foreign_key: ForeignKey
    action: str
    record: RecordKey
    """The key of the dependant's own table."""
    nulled: tuple[str, ...] = ()
    """The columns that ``set_null`` sets to null."""
    person: str | None = None
    """The column that says whom its rows are about."""


class Selection:
    """What a policy selects at one cut-off.

    Args:
        policy: The policy.
        cutoff: The run's cut-off, time-zone aware.
        column_types: Type of each column that the policy names, as ``format_type`` writes it.
        reaches: Declared dependants that are deleted or set to null.
        refusing: Constraints whose referring rows keep a row from being deleted.
        partitioned: Whether the table has partitions or inheritance children: a ctid then names a row in each of them.
    """

    def __init__(
        self,
        policy: Policy,
        cutoff: datetime,
        column_types: dict[str, str],
        reaches: Iterable[Reach] = (),
        refusing: Iterable[ForeignKey] = (),
        *,
        partitioned: bool = False,
    ) -> None:
        self.policy = policy
        self.table = table_identifier(policy.table)
        self.record = RecordKey(policy.key, column_types)
        self.reaches = tuple(reaches)
        self.refusing = tuple(refusing)
        self.partitioned = partitioned
        self._types = column_types
        # blob_store is the store's id: a URL and a pathname may name the same blob.
        self.parameters: dict[str, Any] = {"table_name": policy.table, "blob_store": ""}
        if policy.anonymize:
            self.parameters |= anonymisation.constants(policy.anonymize)
        self.due_before: dict[str, datetime] = {}
        for name, rule in policy.rules.items():
            moment = rule.keep.before(cutoff)
            if moment is not None:
                self.due_before[name] = moment
                self.parameters[f"due_{name}"] = moment
        for name, exception in policy.exceptions.items():
            if exception.queue:
                # forever: no row is older than the beginning of time
                self.parameters[f"queue_{name}"] = exception.queue.after.before(cutoff) or "-infinity"

    def at(self, table: str) -> Selection:
        """Return the same selection on another table of the same columns: a partition that was detached."""
        other = copy(self)
        other.table = table_identifier(table)
        other.partitioned = False
        return other

    @property
    def reason_prefix(self) -> str:
        """What stands before the rule in the audit's reason code."""
        return self.policy.reason("")

    @property
    def facts(self) -> dict[str, dict[str, str]]:
        """What the audit keeps of each rule: the moment before which its anchor had to lie."""
        return {rule: {"due_before": moment.isoformat()} for rule, moment in self.due_before.items()}

    @property
    def moments(self) -> list[str]:
        """The columns that hold the moments that the policy looks at."""
        policy = self.policy
        named = [rule.anchor for rule in policy.rules.values()]
        named += [column for rule in policy.rules.values() for column in rule.when]
        named += [column for exception in policy.exceptions.values() for column in exception.when]
        return [name for name in dict.fromkeys(named) if self._types[name] in ANCHOR_TYPES]

    def moment(self, column: str, parameter: str) -> sql.Composed:
        """Return a time-zone aware parameter as a value of the column's type; naive columns hold UTC."""
        return sql.SQL(_CASTS[self._types[column]]).format(sql.Placeholder(parameter))

    def now(self, column: str) -> sql.Composed:
        """Return the database's now as a value of the column's type."""
        return sql.SQL(_CASTS[self._types[column]]).format(sql.SQL("now()"))

    def instant(self, column: str) -> sql.Composed:
        """Return a column of the table as a moment in time."""
        return sql.SQL(_INSTANTS[self._types[column]]).format(sql.Identifier("t", column))

    def column_type(self, column: str) -> sql.SQL:
        """Return the column's type for a cast."""
        return sql.SQL(self._types[column])

    def met(self, conditions: dict[str, Condition], prefix: str) -> sql.Composed:
        """Return SQL that is true, never null-dependent, where all the conditions are met."""
        return met(conditions, prefix, self.parameters)

    def rule(self, name: str) -> sql.Composed:
        """Return SQL that is true where this rule's period has ended."""
        rule = self.policy.rules[name]
        return sql.SQL("({} AND t.{} < {})").format(
            self.met(rule.when, f"when_{name}"), sql.Identifier(rule.anchor), self.moment(rule.anchor, f"due_{name}")
        )

    @property
    def due(self) -> sql.Composed:
        """Rows whose period has ended and that no exception keeps."""
        rules = [self.rule(name) for name in self.due_before]
        excepted = [
            sql.SQL("NOT ({})").format(self.met(exception.when, f"except_{name}"))
            for name, exception in self.policy.exceptions.items()
        ]
        either = sql.SQL(" OR ").join(rules) if rules else sql.SQL("false")
        return sql.SQL(" AND ").join([sql.SQL("({})").format(either), *self._not_done, *excepted])

    @property
    def _not_done(self) -> list[sql.Composed]:
        """What tells a row that the action has yet to change from one that it has changed."""
        policy = self.policy
        if policy.soft_delete:
            return [sql.SQL("t.{} IS NULL").format(sql.Identifier(policy.soft_delete.deleted_at))]
        if policy.blob:
            return [self.names_blob("t")]
        if policy.anonymize:
            return [anonymisation.not_done(policy.anonymize, self._types)]
        return []

    def names_blob(self, alias: str) -> sql.Composed:
        """Return SQL that is true where a row still names a blob."""
        if self.policy.blob is None:
            raise ValueError(f"policy {self.policy.name} has no blobs")
        return names_blob(self.policy.blob, alias)

    @property
    def rule_name(self) -> sql.Composed:
        """The first rule, in the file's order, that makes a due row due."""
        cases = [sql.SQL("WHEN {} THEN {}").format(self.rule(name), sql.Literal(name)) for name in self.due_before]
        return sql.SQL("CASE {} END").format(sql.SQL(" ").join(cases)) if cases else sql.SQL("NULL::text").format()

    @property
    def held(self) -> sql.Composed:
        """Rows under a legal hold: on the row, its person, the table, or a row that would go along or its person."""
        # IN, not EXISTS: the holds are hashed once a statement instead of being looked up for every row.
        holds = [
            sql.SQL(
                "EXISTS (SELECT FROM ops.holds_in_force h WHERE h.scope = 'table' AND h.table_name = %(table_name)s)"
            ).format(),
            sql.SQL(
                "({id} IN (SELECT h.resource_id FROM ops.holds_in_force h WHERE h.scope = 'row'"
                " AND h.table_name = %(table_name)s)) IS TRUE"
            ).format(id=self.record.id("t")),
        ]
        if self.policy.person:
            holds.append(
                sql.SQL(
                    "({person} IN (SELECT h.person FROM ops.holds_in_force h WHERE h.scope = 'person')) IS TRUE"
                ).format(person=normal_address("t", self.policy.person))
            )
        holds += [
            sql.SQL(
                "EXISTS (SELECT FROM {table} c JOIN ops.holds_in_force h ON h.table_name = {name}"
                " AND (h.scope = 'table' OR h.scope = 'row' AND h.resource_id = {id}) WHERE {joins})"
            ).format(
                table=table_identifier(reach.foreign_key.table),
                name=sql.Literal(reach.foreign_key.table),
                id=reach.record.id("c"),
                joins=reach.foreign_key.joins("c"),
            )
            for reach in self.reaches
        ]
        holds += [
            sql.SQL(
                "EXISTS (SELECT FROM {table} c WHERE {joins} AND ({person} IN (SELECT h.person"
                " FROM ops.holds_in_force h WHERE h.scope = 'person')) IS TRUE)"
            ).format(
                table=table_identifier(reach.foreign_key.table),
                joins=reach.foreign_key.joins("c"),
                person=normal_address("c", reach.person),
            )
            for reach in self.reaches
            if reach.person
        ]
        return sql.SQL("({})").format(sql.SQL(" OR ").join(holds))

    @property
    def referenced(self) -> sql.Composed:
        """Rows that something else still needs."""
        needs = [
            sql.SQL("EXISTS (SELECT FROM {} c WHERE {})").format(
                table_identifier(foreign_key.table), foreign_key.joins("c")
            )
            for foreign_key in self.refusing
        ]
        if self.policy.blob:
            needs.append(self._shared(self.policy.blob.column))
        return sql.SQL("({})").format(sql.SQL(" OR ").join(needs)) if needs else sql.SQL("false").format()

    def _shared(self, column: str) -> sql.Composed:
        """Rows whose blob is also named by a row that is not due, or is held."""
        return sql.SQL(
            "EXISTS (SELECT FROM (SELECT t.{column} AS blob FROM {table} t WHERE {names}"
            " AND NOT ({due} AND NOT {held})) other WHERE other.blob = ANY(ops.blob_names(t.{column}, %(blob_store)s)))"
        ).format(
            column=sql.Identifier(column), table=self.table, names=self.names_blob("t"), due=self.due, held=self.held
        )

    @property
    def nameable(self) -> sql.Composed:
        """Rows whose key may stand in the audit, with the keys of those that go along."""
        parts = [self.record.nameable("t")]
        parts += [
            sql.SQL("NOT EXISTS (SELECT FROM {} c WHERE {} AND NOT {})").format(
                table_identifier(reach.foreign_key.table),
                reach.foreign_key.joins("c"),
                reach.record.nameable("c"),
            )
            for reach in self.reaches
            if not reach.record.impersonal
        ]
        return sql.SQL("({})").format(sql.SQL(" AND ").join(parts))

    @property
    def removable(self) -> sql.Composed:
        """What a run deletes."""
        return sql.SQL("{} AND NOT {} AND NOT {} AND {}").format(self.due, self.held, self.referenced, self.nameable)


class Chosen(Selection):
    """Rows that a person decided on, whatever their age; a hold and what else needs them still keep them.

    Args:
        selection: What the policy selects.
        decision: What was decided; stands where a rule's name would stand.
        item_type: The type of the queue item that it was decided on.
    """

    def __init__(self, selection: Selection, decision: str, item_type: str) -> None:
        self.__dict__.update(selection.__dict__)
        self.due_before = {decision: datetime.max.replace(tzinfo=UTC)}
        self._decision = decision
        self._item_type = item_type

    @property
    def reason_prefix(self) -> str:
        """What stands before the decision in the audit's reason code."""
        return f"decision:{self._item_type}/"

    @property
    def facts(self) -> dict[str, dict[str, str]]:
        """What the audit keeps: the reason says it all."""
        return {self._decision: {}}

    @property
    def due(self) -> sql.Composed:
        """Every row that the action has yet to change."""
        return sql.SQL(" AND ").join([sql.SQL("true"), *self._not_done])

    @property
    def rule_name(self) -> sql.Composed:
        """What was decided."""
        return sql.SQL("{}::text").format(sql.Literal(self._decision))


def normal_address(alias: str, column: str) -> sql.Composed:
    """Return SQL for a person column as holds, requests and archive keys spell people, however the table does."""
    return sql.SQL("ops.normal_address({}::text)").format(sql.Identifier(alias, column))


def names_blob(blob: Blob, alias: str) -> sql.Composed:
    """Return SQL that is true, never null, where a row still names a blob."""
    column = sql.Identifier(alias, blob.column)
    if blob.cleared is None:
        return sql.SQL("{} IS NOT NULL").format(column)
    return sql.SQL("coalesce({} <> {}, false)").format(column, sql.Literal(blob.cleared))


def met(conditions: dict[str, Condition], prefix: str, parameters: dict[str, Any]) -> sql.Composed:
    """Return SQL that is true, never null-dependent, where a row of ``t`` meets all the conditions.

    Args:
        conditions: What each column must be.
        prefix: Begins the names of the parameters.
        parameters: Gets the values to compare with.
    """
    parts: list[sql.Composable] = []
    for number, (column, condition) in enumerate(conditions.items()):
        name = sql.Identifier(column)
        if condition.operator in ("set", "unset"):
            parts.append(sql.SQL("t.{} IS {}NULL").format(name, sql.SQL("NOT " if condition.operator == "set" else "")))
            continue
        parameter = f"{prefix}_{number}"
        parameters[parameter] = list(condition.values)
        parts.append(
            sql.SQL("(t.{}::text = ANY({}::text[])) {}").format(
                name,
                sql.Placeholder(parameter),
                sql.SQL("IS TRUE" if condition.operator == "in" else "IS NOT TRUE"),
            )
        )
    return sql.SQL(" AND ").join(parts) if parts else sql.SQL("true").format()
