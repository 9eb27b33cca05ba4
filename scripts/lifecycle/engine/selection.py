"""Compose the one predicate that counting, dry run and deletion share, so that they cannot differ.

The table's alias is ``t`` throughout. Identifiers come from the policy file and from the catalogue and are always
quoted. Every value is a parameter, and each predicate carries the values of its parameters (``fragments.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any

from scripts.lifecycle.engine import anonymisation
from scripts.lifecycle.engine.fragments import Fragment, fragment, joined, together
from scripts.lifecycle.engine.lookups import Found, joined_value
from scripts.lifecycle.engine.record_keys import RecordKey
from scripts.lifecycle.engine.row_periods import RowMoments
from scripts.lifecycle.engine.values import Readings
from scripts.lifecycle.policy.conditions import Condition, LookedUp, lookups_of, own_columns
from scripts.lifecycle.policy.lookups import Lookup
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.row_periods import RowPeriod
from scripts.lifecycle.policy.sections import Blob
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils.blob_token import store_of
from scripts.utils.settings import Settings

_CASTS = {
    "timestamp without time zone": "({}::timestamptz AT TIME ZONE 'UTC')",
    "timestamp with time zone": "{}::timestamptz",
    "date": "({}::timestamptz AT TIME ZONE 'UTC')::date",
}
ANCHOR_TYPES = frozenset(_CASTS)

# A naive moment that holds UTC, for a comparison with an anchor of each type.
_NAIVE = {
    "timestamp without time zone": "{}",
    "timestamp with time zone": "({} AT TIME ZONE 'UTC')",
    "date": "({})::date",
}

_INSTANTS = {
    "timestamp without time zone": "({} AT TIME ZONE 'UTC')",
    "timestamp with time zone": "{}",
    "date": "({}::timestamp AT TIME ZONE 'UTC')",
}


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key constraint that points at the policy's table, as the catalogue describes it."""

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
        """Tell whether a dependant of the policy file names this constraint: by all columns, or by the first one."""
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
    """A dependant that the policy declares, with its foreign key constraint."""

    foreign_key: ForeignKey
    action: str
    record: RecordKey
    """The key of the table that holds the foreign key."""
    nulled: tuple[str, ...] = ()
    """The columns that ``set_null`` sets to null."""
    person: str | None = None
    """The column that names the person a row is about; None: the policy file names none."""


@dataclass(frozen=True)
class Cause:
    """The reason for which rows go that no rule chose: a person decided about them, or asked for erasure."""

    name: str
    """Stands in the audit's reason code in place of a rule's name."""
    reason_prefix: str
    """Stands before the name in the audit's reason code."""
    facts: dict[str, Any]
    """Metadata of the audit entry."""
    condition: Fragment
    """Chooses the rows. Rows on which the action was already carried out are left out besides."""


@dataclass(frozen=True)
class Selection:
    """The rows that a policy selects at one cut-off. It never changes; each predicate carries its own parameters."""

    policy: Policy
    cutoff: datetime
    """The run's cut-off, time-zone aware, from the database's clock."""
    types: Mapping[str, str]
    """The type of each column of the table, as ``format_type`` writes it."""
    reaches: tuple[Reach, ...] = ()
    """Declared dependants that are deleted or set to null."""
    refusing: tuple[ForeignKey, ...] = ()
    """Constraints whose referring rows keep the row that they refer to."""
    partitioned: bool = False
    """Whether the table has partitions or inheritance children: a ctid then names a row in each of them."""
    blob_store: str = ""
    """The id of the blob store, in lower case: a URL and a pathname may name the same blob."""
    readings: Readings = field(default_factory=Readings)
    """The values of the policy file, as PostgreSQL read them."""
    pseudonymous: bool = False
    """Whether some due rows, or their dependants, have keys that may be personal. The audit holds their pseudonyms."""
    left_out: tuple[str, ...] | None = None
    """The due rows (:attr:`place_of_row`) that stay because of their blob, once a run has asked for
    them; None: each batch asks."""
    cause: Cause | None = None
    """Chooses the rows in place of the policy's rules; None: the rules choose."""
    place: str = ""
    """The table to search if it is not the policy's own, such as a partition that was detached from it."""
    found: Mapping[Lookup, Found] = field(default_factory=dict)
    """What the catalogue says of the values that are looked up in other tables."""
    joins: frozenset[Lookup] = frozenset()
    """The lookups whose other table is joined, which is for a pass over the whole table; the others are probed."""

    def at(self, table: str) -> Selection:
        """Return the same selection on another table of the same columns: a partition that was detached."""
        return replace(self, place=table, partitioned=False)

    def because(self, cause: Cause) -> Selection:
        """Return the selection of the rows that a cause chooses in place of the rules. Legal holds still keep rows."""
        return replace(self, cause=cause)

    def joined(self) -> Selection:
        """Return the same selection for a pass over the whole table: :attr:`source` joins what is looked up."""
        return replace(self, joins=frozenset(self.found))

    @property
    def table(self) -> sql.Composable:
        """The table, quoted for SQL."""
        return table_identifier(self.place or self.policy.table)

    @property
    def source(self) -> Fragment:
        """The FROM clause of a query whose WHERE is one of the predicates: the table ``t`` with what it looks up."""
        return fragment("{} t{}", self.table, self.joined_to(lambda _: None))

    def joined_to(self, source: Callable[[Found], Fragment | None]) -> Fragment:
        """Return the joins of :attr:`source`.

        Args:
            source: Returns what to read in place of the other table of a lookup; None: the table.
        """
        return joined("", [self._join(*each, source) for each in self._joined])

    @cached_property
    def _joined(self) -> tuple[tuple[Lookup, str | None], ...]:
        """The values that are joined: each lookup once, and of a period by row each rule's moment."""
        if self.cause:
            return ()
        policy = self.policy
        named: list[tuple[Lookup, str | None]] = []
        for name, rule in policy.rules.items():
            named += [(each, None) for each in rule.lookups if each is not self._period_of(name)]
            period = self._period_of(name)
            named += [(period, name)] if period else []
        named += [(each, None) for exception in policy.exceptions.values() for each in exception.lookups]
        return tuple(each for each in dict.fromkeys(named) if each[0] in self.joins)

    def _period_of(self, rule: str) -> Lookup | None:
        keep = self.policy.rules[rule].keep
        return keep.lookup if isinstance(keep, RowPeriod) else None

    def _join(self, lookup: Lookup, rule: str | None, source: Callable[[Found], Fragment | None]) -> Fragment:
        found = self.found[lookup]
        return found.joined(self._alias((lookup, rule)), self._moments(rule).of if rule else None, source(found))

    def _alias(self, value: tuple[Lookup, str | None]) -> str:
        return f"l{self._joined.index(value)}"

    def _moments(self, rule: str) -> RowMoments:
        keep = self.policy.rules[rule].keep
        if not isinstance(keep, RowPeriod):
            raise TypeError(f"rule {rule} has one period for all rows")
        return RowMoments(rule, self.policy.rules[rule], keep, self.cutoff)

    def value(self, of: str | Lookup, rule: str | None = None) -> Fragment:
        """Return SQL for a value of the row ``t``.

        Args:
            of: One of its columns, or a value of another table.
            rule: The rule whose moment is made of a value that says a period; None: the value as it is.
        """
        shape = self._moments(rule).of if rule else None
        if isinstance(of, str):
            column = fragment("{}", sql.Identifier("t", of))
            return shape(column) if shape else column
        if of in self.joins:
            return fragment("{}", joined_value(self._alias((of, rule))))
        return self.found[of].probed(shape)

    def type_of(self, value: str | Lookup) -> str:
        """Return the type of a column, or of a value of another table."""
        return self.types[value] if isinstance(value, str) else self.found[value].kind.read_as

    def begins(self, rule: str) -> Fragment:
        """Return SQL for the moment before which an anchor must lie where each row says it: naive, in UTC."""
        moments, period = self._moments(rule), self._period_of(rule)
        if period is None:
            return self.value(moments.keep.take, rule)
        return fragment("coalesce({}, {})", self.value(period, rule), moments.of_none)

    @cached_property
    def record(self) -> RecordKey:
        """The table's key."""
        return RecordKey(self.policy.key, self.types)

    def home(self, alias: str) -> sql.Composed:
        """Return SQL for the child or partition (oid) that holds a row; 0 if the table has none."""
        return sql.SQL("{}.tableoid").format(sql.SQL(alias)) if self.partitioned else sql.SQL("0::oid").format()

    @property
    def place_of_row(self) -> sql.Composed:
        """SQL for a text that tells a row also from one of another child that has the same key."""
        name = self.record.id("t")
        return sql.SQL("t.tableoid::text || ' ' || {}").format(name) if self.partitioned else name

    @cached_property
    def due_before(self) -> dict[str, datetime]:
        """For each rule whose period can end, the moment before which its anchor must lie."""
        moments = {name: rule.due_before(self.cutoff) for name, rule in self.policy.rules.items()}
        return {name: moment for name, moment in moments.items() if moment is not None}

    @property
    def causes(self) -> tuple[str, ...]:
        """The names that may stand in the audit's reason codes: those of the rules, or that of the cause."""
        return (self.cause.name,) if self.cause else tuple(self.due_before)

    @property
    def reason_prefix(self) -> str:
        """The beginning of the audit's reason codes, before the name."""
        return self.cause.reason_prefix if self.cause else self.policy.reason("")

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """The audit's metadata by name; of a rule, the moment before which its anchor had to lie, and its period."""
        if self.cause:
            return {self.cause.name: self.cause.facts}
        return {
            rule: {"due_before": moment.isoformat()} | self._period(rule) for rule, moment in self.due_before.items()
        }

    def _period(self, rule: str) -> dict[str, str]:
        """Return where each row says its own period; the moment beside it is then the latest that any row may have."""
        keep = self.policy.rules[rule].keep
        return {"period": keep.text} if isinstance(keep, RowPeriod) else {}

    @cached_property
    def parameters(self) -> MappingProxyType[str, Any]:
        """The values of all parameters that the predicates and the action's SQL name."""
        own = {"table_name": self.policy.table, "blob_store": self.blob_store, **self._constants}
        return MappingProxyType(own | together(self.removable, self.rule_name, self.source))

    @property
    def moments(self) -> list[str]:
        """The columns that the policy names and that hold dates or timestamps."""
        policy = self.policy
        named = [rule.anchor for rule in policy.rules.values() if isinstance(rule.anchor, str)]
        named += [column for rule in policy.rules.values() for column in own_columns(rule.when)]
        named += [column for exception in policy.exceptions.values() for column in own_columns(exception.when)]
        return [name for name in dict.fromkeys(named) if self.types[name] in ANCHOR_TYPES]

    def moment(self, value: str | Lookup, parameter: str) -> sql.Composed:
        """Return SQL that casts a time-zone aware parameter to the value's type. Naive columns hold UTC."""
        return sql.SQL(_CASTS[self.type_of(value)]).format(sql.Placeholder(parameter))

    def now(self, column: str) -> sql.Composed:
        """Return SQL for the database's current time as a value of the column's type."""
        return sql.SQL(_CASTS[self.types[column]]).format(sql.SQL("now()"))

    def instant(self, value: str | Lookup) -> sql.Composed:
        """Return SQL for a value as a ``timestamptz``."""
        return sql.SQL(_INSTANTS[self.type_of(value)]).format(self.value(value))

    def column_type(self, column: str) -> sql.SQL:
        """Return the column's type for a cast."""
        return sql.SQL(self.types[column])

    def before(self, value: str | Lookup, moment: datetime | str, parameter: str) -> Fragment:
        """Return the condition that a value lies before a moment. Every comparison of an anchor is composed here.

        Args:
            value: A column, or a value of another table, whose type is one of :data:`ANCHOR_TYPES`.
            moment: A time-zone aware moment, or ``-infinity``.
            parameter: The name of the parameter that holds the moment.
        """
        parts = self.value(value), self.moment(value, parameter)
        return fragment("{} < {}", *parts, parameters={parameter: moment})

    def not_before(self, column: str, moment: datetime, parameter: str) -> Fragment:
        """Return the condition that a column lies at or after a moment; the arguments are those of :meth:`before`."""
        parts = sql.Identifier(column), self.moment(column, parameter)
        return fragment("t.{} >= {}", *parts, parameters={parameter: moment})

    def latest(self, rule: str) -> Fragment:
        """Return the condition that a rule's anchor lies before the moment after which no row is due."""
        return self.before(self.policy.rules[rule].anchor, self.due_before[rule], f"due_{rule}")

    def expired(self, rule: str) -> Fragment:
        """Return the condition that a rule's anchor lies before the moment that ends its period."""
        anchor = self.policy.rules[rule].anchor
        latest = self.latest(rule)
        if not isinstance(self.policy.rules[rule].keep, RowPeriod):
            return latest
        # The first condition is implied by the second one, but PostgreSQL finds its rows by the anchor's index.
        own = sql.SQL(_NAIVE[self.type_of(anchor)]).format(self.begins(rule))
        return fragment("({} AND {} < {})", latest, self.value(anchor), _kept(own, self.begins(rule)))

    def overdue(self, rule: str) -> Fragment:
        """Return SQL for the interval since a row's period ended by this rule; null if its anchor is infinite."""
        anchor = self.policy.rules[rule].anchor
        due: sql.Composable
        parameters: dict[str, Any] = {}
        if isinstance(self.policy.rules[rule].keep, RowPeriod):
            begins = self.begins(rule)
            due = _kept(sql.SQL("({} AT TIME ZONE 'UTC')").format(begins), begins)
        else:
            due = sql.SQL("{}::timestamptz").format(sql.Placeholder(f"due_{rule}"))
            parameters = {f"due_{rule}": self.due_before[rule]}
        return fragment(
            "CASE WHEN isfinite({value}) THEN {due} - {instant} END",
            value=self.value(anchor),
            due=due,
            instant=_kept(self.instant(anchor), self.value(anchor)),
            parameters=parameters,
        )

    def rule(self, name: str) -> Fragment:
        """Return SQL that is true where this rule's period has ended."""
        return fragment("({} AND {})", self._met(self.policy.rules[name].when, f"when_{name}"), self.expired(name))

    def excepted(self, name: str) -> Fragment:
        """Return SQL that is true where this exception keeps a row."""
        return self._met(self.policy.exceptions[name].when, f"except_{name}")

    def _met(self, when: Mapping[str, Condition | LookedUp], prefix: str) -> Fragment:
        """Return SQL that is true, never null, where a row meets all the conditions; those on its own columns first."""
        parts = [self.readings.met(own_columns(when), prefix)]
        parts += [
            self.found[each.lookup].readings.is_met(
                self.value(each.lookup), each.take, each.what, f"{prefix}_lookup_{number}"
            )
            for number, each in enumerate(lookups_of(when).values())
        ]
        return joined(" AND ", parts)

    @property
    def due(self) -> Fragment:
        """Rows whose period has ended and that no exception keeps; with a cause, the rows that it chooses."""
        if self.cause:
            return joined(" AND ", [self.cause.condition, *self._not_done])
        return joined(" AND ", [*self._not_done, self.wanted])

    @property
    def wanted(self) -> Fragment:
        """Rows whose period has ended by a rule and that no exception keeps, done with or not."""
        rules = [self.rule(name) for name in self.due_before]
        excepted = [fragment("NOT ({})", self.excepted(name)) for name in self.policy.exceptions]
        either = joined(" OR ", rules) if rules else fragment("false")
        return joined(" AND ", [fragment("({})", either), *excepted])

    @property
    def _not_done(self) -> list[sql.Composed]:
        """Conditions that leave out rows on which the action was already carried out."""
        policy = self.policy
        if policy.soft_delete:
            return [sql.SQL("t.{} IS NULL").format(sql.Identifier(policy.soft_delete.deleted_at))]
        if policy.blob:
            return [self.names_blob("t")]
        if policy.anonymize:
            return [Fragment(anonymisation.not_done(policy.anonymize, self.types), self._constants)]
        return []

    @property
    def _constants(self) -> dict[str, str]:
        section = self.policy.anonymize
        return anonymisation.constants(section, self.readings.texts) if section else {}

    def names_blob(self, alias: str) -> sql.Composed:
        """Return SQL that is true where a row still names a blob.

        Raises:
            ValueError: The policy has no blobs.
        """
        if self.policy.blob is None:
            raise ValueError(f"policy {self.policy.name} has no blobs")
        return names_blob(self.policy.blob, alias)

    @property
    def rule_name(self) -> Fragment:
        """SQL for the name of the first rule, in the file's order, by which a row is due; with a cause, its name."""
        if self.cause:
            return fragment("{}::text", sql.Literal(self.cause.name))
        cases = [fragment("WHEN {} THEN {}", self.rule(name), sql.Literal(name)) for name in self.due_before]
        return fragment("CASE {} END", joined(" ", cases)) if cases else fragment("NULL::text")

    @property
    def rule_of_due(self) -> Fragment:
        """The same for rows that are due: the last rule needs no look, if no other one takes the row."""
        if self.cause or not self.due_before:
            return self.rule_name
        *others, last = self.due_before
        otherwise = fragment("{}::text", sql.Literal(last))
        cases = [fragment("WHEN {} THEN {}", self.rule(name), sql.Literal(name)) for name in others]
        return fragment("CASE {} ELSE {} END", joined(" ", cases), otherwise) if cases else otherwise

    @property
    def held(self) -> Fragment:
        """Rows under a legal hold: on the row, its person, its table, or on a dependant row or that row's person."""
        # IN, not EXISTS: PostgreSQL then hashes the holds once a statement instead of looking them up for each row.
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
            holds.append(held_person("t", self.policy.person))
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
            sql.SQL("EXISTS (SELECT FROM {table} c WHERE {joins} AND {held})").format(
                table=table_identifier(reach.foreign_key.table),
                joins=reach.foreign_key.joins("c"),
                held=held_person("c", reach.person),
            )
            for reach in self.reaches
            if reach.person
        ]
        parameters = {"table_name": self.policy.table}
        return fragment("({})", joined(" OR ", holds), parameters=parameters)

    @property
    def own_keys(self) -> tuple[ForeignKey, ...]:
        """Constraints by which rows of the table refer to rows of the same table: children go before their parents."""
        return tuple(key for key in self.refusing if key.table == self.policy.table)

    @property
    def referenced(self) -> Fragment:
        """Rows that another row still needs: by a foreign key, or because both name the same blob."""
        return self._needed(self.refusing, [])

    @property
    def referenced_for_good(self) -> Fragment:
        """Of those, the rows that will still be needed when everything has gone that may go.

        A row that only rows of its own table refer to goes after them, if all of them go and all that refer to those.
        """
        others = [key for key in self.refusing if key not in self.own_keys]
        return self._needed(others, [self._above_what_stays(key) for key in self.own_keys])

    def _needed(self, keys: Iterable[ForeignKey], more: list[Fragment]) -> Fragment:
        needs = [
            fragment("EXISTS (SELECT FROM {} c WHERE {})", table_identifier(key.table), key.joins("c")) for key in keys
        ]
        needs += more
        if self.policy.blob:
            needs.append(self._shared(self.policy.blob))
        return fragment("({})", joined(" OR ", needs)) if needs else fragment("false")

    def _above_what_stays(self, key: ForeignKey) -> Fragment:
        """Rows to which a row refers by this constraint that stays, or whose descendant by any own key stays.

        A row stays that is not due, held, or needed by another table.
        """
        others = self._needed([each for each in self.refusing if each not in self.own_keys], [])
        names = dict.fromkeys(name for each in self.own_keys for name in each.columns)
        columns = sql.SQL(", ").join(sql.Identifier("t", name) for name in names)
        parents = [
            sql.SQL("SELECT {} FROM {} t WHERE {}").format(columns, self.table, each.joins("a"))
            for each in self.own_keys
        ]
        child = [
            sql.SQL("({}) IS NOT NULL").format(sql.SQL(", ").join(sql.Identifier("t", name) for name in each.columns))
            for each in self.own_keys
        ]
        return fragment(
            "({home} AND ({mine}) IN (WITH RECURSIVE above AS ("
            "SELECT {columns} FROM {source} WHERE ({due} AND NOT {held} AND NOT {others}) IS NOT TRUE AND ({child})"
            " UNION SELECT {columns} FROM above a CROSS JOIN LATERAL ({parents}) t WHERE {child}"
            ") SELECT {known} FROM above a WHERE ({known}) IS NOT NULL)) IS TRUE",
            home=sql.SQL(" AND ").join(key.at_home("t") or [sql.SQL("true").format()]),
            mine=sql.SQL(", ").join(sql.Identifier("t", name) for name in key.referenced),
            columns=columns,
            child=sql.SQL(" OR ").join(child),
            parents=sql.SQL(" UNION ALL ").join(parents),
            known=sql.SQL(", ").join(sql.Identifier("a", name) for name in key.columns),
            source=self.source,
            due=self.due,
            held=self.held,
            others=others,
        )

    def _shared(self, blob: Blob) -> Fragment:
        """Rows whose blob is also named, in any spelling, by a row that is not due or that a legal hold keeps."""
        if self.left_out is not None:
            needed = {"left_out": list(self.left_out)}
            return fragment("{} = ANY(%(left_out)s::text[])", self.place_of_row, parameters=needed)
        column = sql.Identifier("t", blob.column)
        return fragment(
            "EXISTS (SELECT FROM (SELECT {column} AS blob FROM {source} WHERE {names}"
            " AND (({due}) AND NOT {held}) IS NOT TRUE)"
            " other WHERE ops.blob_key(other.blob) = ANY(ops.blob_lookups({column}))"
            " AND (ops.blob_parts({column})).key IN (SELECT m.key FROM ops.blob_parts(other.blob) n,"
            " ops.blob_meanings(other.blob, n.key) m)"
            " AND ops.may_name_blob(other.blob, %(blob_store)s, ops.blob_pathname({column})))",
            column=column,
            source=self.source,
            names=self.names_blob("t"),
            due=self.due,
            held=self.held,
            parameters={"blob_store": self.blob_store},
        )

    @property
    def nameable(self) -> sql.Composed:
        """Rows whose key, and whose dependants' keys, may stand in the audit as they are."""
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
    def removable_in_the_end(self) -> Fragment:
        """Rows on which a run carries out the action sooner or later: some go only after rows that refer to them."""
        return fragment("{} AND NOT {} AND NOT {}", self.due, self.held, self.referenced_for_good)

    @property
    def removable(self) -> Fragment:
        """Rows on which a run carries out the action."""
        return fragment("{} AND NOT {} AND NOT {}", self.due, self.held, self.referenced)

    @property
    def droppable(self) -> Fragment:
        """Removable rows whose keys may stand in the audit as they are: SQL writes a dropped partition's keys."""
        return fragment("{} AND {}", self.removable, self.nameable)


def _kept(composed: sql.Composed, of: Fragment) -> Fragment:
    """Return composed SQL as a fragment, with the parameters of the fragment that it was composed of."""
    return Fragment(composed, of.parameters)


def store_for(policy: Policy, settings: Settings) -> str:
    """Return the id of the blob store in the spelling that SQL compares; empty if the policy is not about blobs.

    Raises:
        Misconfigured: The policy is about blobs, and there is no token.
    """
    return store_of(settings).lower() if policy.blob else ""


def held_person(alias: str, column: str) -> sql.Composed:
    """Return SQL that is true where a person under a hold in force is, or may be, the one whom the column names.

    Holds are looked up by a hash once a statement; the second part reads values that are no plain address, and only
    while there is a hold on a person.
    """
    return sql.SQL(
        "(({person} IN (SELECT h.person FROM ops.holds_in_force h WHERE h.scope = 'person')) IS TRUE"
        " OR (SELECT count(*) > 0 FROM ops.holds_in_force h WHERE h.scope = 'person')"
        " AND EXISTS (SELECT FROM ops.holds_in_force h WHERE h.scope = 'person'"
        " AND ops.may_name({text}::text, h.person)))"
    ).format(person=normal_address(alias, column), text=sql.Identifier(alias, column))


def normal_address(alias: str, column: str) -> sql.Composed:
    """Return SQL for a person column as holds, requests and archive keys spell people, however the table does."""
    return sql.SQL("ops.normal_address({}::text)").format(sql.Identifier(alias, column))


def names_blob(blob: Blob, alias: str) -> sql.Composed:
    """Return SQL that is true, never null, where a row still names a blob."""
    column = sql.Identifier(alias, blob.column)
    if blob.cleared is None:
        return sql.SQL("{} IS NOT NULL").format(column)
    return sql.SQL("coalesce({} <> {}, false)").format(column, sql.Literal(blob.cleared))
