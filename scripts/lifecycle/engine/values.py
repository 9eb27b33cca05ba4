"""Values of a policy file, read by PostgreSQL as values of the column's own type before anything is looked at.

``70`` and a ``numeric(10,2)`` that holds ``70.00`` are equal as numbers and differ as texts; ``Open`` is no label of an
enum whose label is ``open``. So no condition compares texts: a value that PostgreSQL cannot read as the column's type,
or that the column could never hold, is a problem of the policy, named with its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg.rows import dict_row

from scripts.lifecycle.engine.fragments import Fragment, fragment, joined
from scripts.lifecycle.policy.conditions import Condition, LookedUp, lookups_of, own_columns, written
from scripts.lifecycle.policy.erasure_steps import ErasureStep
from scripts.lifecycle.policy.lookups import Lookup
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.remedies import NOW
from scripts.lifecycle.policy.treatments import Treatment
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection

# What text means depends on these. The forms that come out are read alike under any other setting.
_PINNED = (
    "SELECT set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO, YMD', true),"
    " set_config('IntervalStyle', 'iso_8601', true), set_config('bytea_output', 'hex', true),"
    " set_config('extra_float_digits', '1', true)"
)

# Of a domain, the type below it: reading a value as the domain would round it to the domain's scale.
_KINDS = """
WITH RECURSIVE below (attname, stored_as, type, domain) AS (
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.atttypid, false FROM pg_attribute a
      JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND a.attname = ANY(%(columns)s::text[])
       AND a.attnum > 0 AND NOT a.attisdropped
     UNION ALL
    SELECT b.attname, b.stored_as, t.typbasetype, true FROM below b JOIN pg_type t ON t.oid = b.type
     WHERE t.typtype = 'd'
)
SELECT b.attname AS name, b.stored_as, format_type(b.type, -1) AS read_as, b.domain,
       (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder)
          FROM pg_enum e WHERE e.enumtypid IN (t.oid, t.typelem)) AS labels
  FROM below b JOIN pg_type t ON t.oid = b.type WHERE t.typtype <> 'd'
"""

# PostgreSQL reads these as the moment of the statement, so the value would be another one in each run.
_RELATIVE = re.compile(r"\b(now|today|tomorrow|yesterday)\b", re.IGNORECASE)

_ORDERED = {"before": "<", "not_before": ">="}

# What a type's input drops without a word: an offset, a time of day, all but the first characters.
_WHOLE = {
    "timestamp without time zone": "({v}::timestamptz AT TIME ZONE 'UTC') = {v}::timestamp",
    "date": "({v}::timestamptz AT TIME ZONE 'UTC') = {v}::date::timestamp",
    "name": "{v}::name::text = {v}::text",
    '"char"': '{v}::"char"::text = {v}::text',
}


@dataclass(frozen=True)
class Written:
    """A value as it stands in the policy file."""

    place: str
    """Where, such as ``exceptions.kept.when.amount``."""
    column: str
    text: str
    compared: bool = True
    """Whether the column is compared with it; otherwise the column is only set to it."""
    ordered: bool = False
    """Whether it is compared by the type's order, not only for equality."""


@dataclass(frozen=True)
class Kind:
    """What a column can hold."""

    name: str
    stored_as: str
    """Its type with length or scale, as ``format_type`` writes it."""
    read_as: str
    """The type below every domain, without length or scale."""
    domain: bool
    labels: tuple[str, ...] | None = None
    """The labels of an enum, or of an array of enums, in the enum's order."""

    @property
    def is_cast(self) -> bool:
        """Whether the column itself must be cast: a domain over an enum has no equality, nor has json."""
        return self.domain or self.read_as == "json"

    @property
    def compared_as(self) -> str:
        """The type that has an equality."""
        return "jsonb" if self.read_as == "json" else self.read_as

    def is_relative(self, text: str) -> bool:
        """Tell whether the text names a moment that is another one in each run, such as ``now``."""
        moment = self.read_as.startswith(("date", "time", "tsrange", "tstzrange", "tsmultirange", "tstzmultirange"))
        return moment and _RELATIVE.search(text) is not None

    def problem(self, table: str, value: Written) -> str:
        """Say that a value is none of this column's."""
        labels = f"; its labels are {', '.join(self.labels)}" if self.labels is not None else ""
        order = "; before and not_before need a type that has an order" if value.ordered else ""
        stored_as = self.stored_as
        return f"{value.place}: {value.text!r} is no value of {table}.{self.name}, which is {stored_as}{labels}{order}"


@dataclass(frozen=True)
class Readings:
    """What the values of one table's conditions mean there."""

    kinds: Mapping[str, Kind] = field(default_factory=dict)
    """By the column's name."""
    texts: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """By column and text in the file: the value as PostgreSQL writes it."""

    def met(self, conditions: Mapping[str, Condition], prefix: str) -> Fragment:
        """Return SQL that is true, never null, where a row of ``t`` meets all the conditions.

        Args:
            conditions: What each column must be.
            prefix: Begins the names of the parameters.
        """
        parts = [
            self.is_met(sql.Identifier("t", column), column, condition, f"{prefix}_{number}")
            for number, (column, condition) in enumerate(conditions.items())
        ]
        return joined(" AND ", parts) if parts else fragment("true")

    def is_met(self, name: sql.Composable, column: str, condition: Condition, prefix: str) -> Fragment:
        """Return SQL that is true, never null, where a value is what a condition says.

        Args:
            name: SQL for the value.
            column: The column that it is read from.
            condition: What it must be.
            prefix: Begins the names of the parameters.
        """
        if condition.operator == "set":
            return fragment("{} IS NOT NULL", name)
        if condition.operator == "unset":
            return fragment("{} IS NULL", name)
        kind = self.kinds[column]
        cast = sql.SQL("::{}").format(sql.SQL(kind.compared_as))
        texts = {f"{prefix}_{place}": self.texts[column, text] for place, text in enumerate(condition.values)}
        if condition.operator in _ORDERED:
            return fragment(
                "({}{} {} {}{}) IS TRUE",
                name,
                cast if kind.is_cast else sql.SQL(""),
                sql.SQL(_ORDERED[condition.operator]),
                *[part for each in texts for part in (sql.Placeholder(each), cast)],
                parameters=texts,
            )
        return fragment(
            "({}{} IN ({})) {}",
            name,
            cast if kind.is_cast else sql.SQL(""),
            joined(", ", [fragment("{}{}", sql.Placeholder(each), cast) for each in texts]),
            sql.SQL("IS TRUE" if condition.operator == "in" else "IS NOT TRUE"),
            parameters=texts,
        )


def of_policy(policy: Policy) -> Iterator[Written]:
    """Name every value that a policy compares one of its table's columns with, or sets it to."""
    for name, rule in policy.rules.items():
        yield from _of_conditions(f"rules.{name}.when", own_columns(rule.when))
    for name, exception in policy.exceptions.items():
        yield from _of_conditions(f"exceptions.{name}.when", own_columns(exception.when))
    if policy.anonymize:
        compared = policy.anonymize.marker is None
        yield from _of_treatments("anonymize.columns", policy.anonymize.columns, compared=compared)
    if policy.blob and policy.blob.cleared is not None:
        yield Written("blob.cleared", policy.blob.column, policy.blob.cleared)
    for item_type, remedies in policy.decisions.items():
        for name, remedy in remedies.items():
            for column, value in remedy.set.items():
                if value is not None and value != NOW and not isinstance(value, Lookup):
                    place = f"decisions.{item_type}.{name}.set.{column}"
                    yield Written(place, column, written(value), compared=False)


def of_lookup(
    conditions: Iterable[tuple[str, Mapping[str, Condition | LookedUp]]], lookup: Lookup
) -> Iterator[Written]:
    """Name every value that a value of another table is compared with.

    Args:
        conditions: The conditions that may compare it, each with its place in the policy file.
        lookup: The value of the other table.
    """
    for place, when in conditions:
        for name, each in lookups_of(when).items():
            for text in each.what.values if each.lookup == lookup else ():
                ordered = each.what.operator in _ORDERED
                yield Written(f"{place}.{name}.is", lookup.take, text, ordered=ordered)


def conditions_of(policy: Policy) -> list[tuple[str, Mapping[str, Condition | LookedUp]]]:
    """Return the conditions of a policy's rules and exceptions, each with its place."""
    places: list[tuple[str, Mapping[str, Condition | LookedUp]]] = []
    places += [(f"rules.{name}.when", rule.when) for name, rule in policy.rules.items()]
    places += [(f"exceptions.{name}.when", exception.when) for name, exception in policy.exceptions.items()]
    return places


def of_step(name: str, step: ErasureStep) -> Iterator[Written]:
    """Name every value that a step of an erasure compares one of its table's columns with, or sets it to."""
    yield from _of_conditions(f"erasure.{name}.when", step.when)
    for reason, conditions in step.blocked_by.items():
        yield from _of_conditions(f"erasure.{name}.blocked_by.{reason}", own_columns(conditions))
    yield from _of_treatments(f"erasure.{name}.columns", step.columns, compared=True)


def read(connection: Connection, table: str, named: Iterable[Written]) -> tuple[Readings, list[str]]:
    """Let PostgreSQL read the values, each as its column's type, in a transaction that is undone.

    Args:
        connection: Where.
        table: The columns' table, with its schema.
        named: The values; one whose column does not exist is left out: that is named elsewhere.

    Returns:
        What they mean, and a sentence for each that is no value of its column.
    """
    listed = list(named)
    if not listed:
        return Readings(), []
    kinds = kinds_of(connection, table, [value.column for value in listed])
    known = [value for value in listed if value.column in kinds]
    texts: dict[tuple[str, str], str] = {}
    problems = []
    with connection.transaction(force_rollback=True):
        connection.execute(_PINNED)
        found: Sequence[str | None] | None = _all_at_once(connection, kinds, known)
        if found is None:
            found = [_one(connection, kinds[value.column], value) for value in known]
        for value, text in zip(known, found, strict=True):
            if text is None or kinds[value.column].is_relative(value.text):
                problems.append(kinds[value.column].problem(table, value))
            else:
                texts[value.column, value.text] = text
    return Readings(kinds, texts), problems


def _of_conditions(place: str, conditions: Mapping[str, Condition]) -> Iterator[Written]:
    for column, condition in conditions.items():
        for text in condition.values:
            yield Written(f"{place}.{column}", column, text, ordered=condition.operator in _ORDERED)


def _of_treatments(place: str, columns: Mapping[str, Treatment], *, compared: bool) -> Iterator[Written]:
    for column, treatment in columns.items():
        if treatment.how == "constant" and treatment.constant is not None:
            yield Written(f"{place}.{column}.constant", column, treatment.constant, compared)


def kinds_of(connection: Connection, table: str, columns: Sequence[str]) -> dict[str, Kind]:
    """Return what the columns of a table can hold, by their names; one that does not exist is left out."""
    schema, _, name = table.partition(".")
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_KINDS, {"schema": schema, "table": name, "columns": list(columns)}).fetchall()
    return {row["name"]: Kind(**row | {"labels": row["labels"] and tuple(row["labels"])}) for row in rows}


def _all_at_once(connection: Connection, kinds: Mapping[str, Kind], values: Sequence[Written]) -> list[str] | None:
    """Return every value as PostgreSQL writes it; None: at least one of them is none.

    Raises:
        psycopg.OperationalError: The connection broke, or the server could not answer: that says nothing of the values.
    """
    try:
        with connection.transaction():
            query = joined(
                " UNION ALL ", [_query(kinds[value.column], value, number) for number, value in enumerate(values)]
            )
            rows = connection.execute(fragment("{} ORDER BY 1", query), query.parameters).fetchall()
    except psycopg.OperationalError:
        raise
    except psycopg.Error:
        return None
    return [text for _, text, fits in rows if fits] if all(fits for *_, fits in rows) else None


def _one(connection: Connection, kind: Kind, value: Written) -> str | None:
    found = _all_at_once(connection, {value.column: kind}, [value])
    return found[0] if found else None


def _query(kind: Kind, value: Written, number: int) -> Fragment:
    """Return the question for a value's text, and whether the column could hold exactly that value."""
    # As a text first: a parameter has one type, and it is read as several.
    text = fragment("{}::text", sql.Placeholder(f"value_{number}"), parameters={f"value_{number}": value.text})
    read_as = fragment("{}::{}", text, sql.SQL(kind.compared_as if value.compared else kind.read_as))
    # As JSON: 70 fits numeric(10,2), whose text is 70.00. Of bpchar the text, without the blanks that fill it up.
    plain = sql.SQL("::text" if kind.read_as == "bpchar" else "")
    stored = fragment("{}::{}", text, sql.SQL(kind.stored_as))
    fits = [fragment("to_jsonb({}{plain}) = to_jsonb({}{plain})", stored, read_as, plain=plain)]
    if value.compared:
        # GROUP BY refuses a type that has no equality; = would take two boxes of one area for the same.
        fits.append(fragment("EXISTS (SELECT FROM (VALUES ({})) e (v) GROUP BY v)", read_as))
    if value.ordered:
        fits.append(fragment("{} >= {}", read_as, read_as))
    if kind.read_as in _WHOLE:
        fits.append(fragment(_WHOLE[kind.read_as], v=text))
    return fragment("SELECT {}, {}::text, {}", sql.Literal(number), read_as, joined(" AND ", fits))
