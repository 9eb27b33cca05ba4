"""Values of other tables' rows: what the catalogue must say of them, and the SQL that looks them up.

A lookup has two shapes. A batch *probes*: for each of its few thousand rows a sub-query reads the index of the other
table. A count of the whole table *joins*: the other table is read once. The decision page says why
(``docs/decisions/0024-lookups-and-periods-by-row.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scripts.lifecycle.engine.fragments import Fragment, fragment
from scripts.lifecycle.engine.values import Kind, Readings
from scripts.lifecycle.policy.lookups import Lookup
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql

Shape = Callable[[sql.Composable], Fragment]
"""What is made of a value before it is handed out, such as the moment at which a period of so many days began."""


@dataclass(frozen=True)
class Found:
    """What the catalogue says of a lookup."""

    lookup: Lookup
    kind: Kind
    """Of the value."""
    single: bool
    """Whether a unique index allows no second row that matches."""
    collations: tuple[tuple[str, str] | None, ...] = ()
    """For each pair of columns the collation to compare them in: that of the other table, as for a foreign key. None:
    both have the same."""
    readings: Readings = field(default_factory=Readings)
    """What the conditions on the value mean."""
    types: Mapping[str, str] = field(default_factory=dict)
    """The type of each column of the other table, as ``format_type`` writes it."""

    def matches(self, theirs: str, own: str) -> sql.Composed:
        """Return the condition that the row of one alias is the one that the row of another alias looks up."""
        pairs = [
            sql.SQL("{}.{} = {}.{}{}").format(
                sql.SQL(theirs),
                sql.Identifier(their_column),
                sql.SQL(own),
                sql.Identifier(own_column),
                sql.SQL(" COLLATE {}").format(sql.Identifier(*collation)) if collation else sql.SQL(""),
            )
            for (own_column, their_column), collation in zip(self.lookup.same, self.collations, strict=True)
        ]
        return sql.SQL(" AND ").join(pairs)

    def probed(self, shape: Shape | None = None, *, strictly: bool = False) -> Fragment:
        """Return a sub-query for the value that the row of ``t`` looks up; null if no row matches.

        Args:
            shape: What is made of the value.
            strictly: Several rows that match are an error, unless ``latest`` chooses one.
        """
        value, order = self._of_many(shape, strictly=strictly)
        return fragment(
            "(SELECT {value} FROM {table} o WHERE {matches}{order})",
            value=value,
            table=table_identifier(self.lookup.from_table),
            matches=self.matches("o", "t"),
            order=order,
        )

    def _of_many(self, shape: Shape | None, *, strictly: bool = False) -> tuple[Fragment, sql.Composed]:
        """Return the value of all rows of ``o`` that match, and the order that puts the one that counts first."""
        take = sql.Identifier("o", self.lookup.take)
        if self.lookup.latest:
            first = sql.SQL(" ORDER BY {} LIMIT 1").format(self._latest_first)
            return _shaped(take, shape), first
        if self.single or strictly:
            return _shaped(take, shape), sql.SQL("").format()
        return _shaped(sql.SQL("max({})").format(take), shape), sql.SQL("").format()

    @property
    def _latest_first(self) -> sql.Composed:
        # Of two rows that are equally late, the greater value, so that the same one counts each time.
        return sql.SQL("o.{} DESC NULLS LAST, o.{} DESC").format(
            sql.Identifier(self.lookup.latest or self.lookup.take), sql.Identifier(self.lookup.take)
        )

    def joined(self, name: str, shape: Shape | None = None, source: sql.Composable | None = None) -> Fragment:
        """Return a join that gives each row of ``t`` its value as ``name.value``; null if no row matches.

        Args:
            name: The join's alias.
            shape: What is made of the value.
            source: What to read in place of the other table.
        """
        lookup = self.lookup
        keys = [
            sql.SQL("o.{} AS {}").format(sql.Identifier(column), sql.Identifier(column))
            for column in dict.fromkeys(lookup.theirs)
        ]
        by = sql.SQL(", ").join(sql.Identifier("o", column) for column in dict.fromkeys(lookup.theirs))
        take = sql.Identifier("o", lookup.take)
        order = sql.SQL("").format()
        if lookup.latest:
            chosen, value = sql.SQL("DISTINCT ON ({}) ").format(by), sql.SQL("{}").format(take)
            order = sql.SQL(" ORDER BY {}, {}").format(by, self._latest_first)
        elif self.single:
            chosen, value = sql.SQL("").format(), sql.SQL("{}").format(take)
        else:
            chosen, value = sql.SQL("").format(), sql.SQL("max({})").format(take)
            order = sql.SQL(" GROUP BY {}").format(by)
        return fragment(
            " LEFT JOIN (SELECT {chosen}{keys}, {shaped} AS {value} FROM {table} o{order}) {name} ON {matches}",
            chosen=chosen,
            keys=sql.SQL(", ").join(keys),
            shaped=_shaped(value, shape),
            value=sql.Identifier("(value)"),
            table=source or table_identifier(lookup.from_table),
            order=order,
            name=sql.SQL(name),
            matches=self.matches(name, "t"),
        )


def joined_value(name: str) -> sql.Composed:
    """Return the value of :meth:`Found.joined`."""
    return sql.SQL("{}.{}").format(sql.SQL(name), sql.Identifier("(value)"))


def _shaped(value: sql.Composable, shape: Shape | None) -> Fragment:
    return shape(value) if shape else fragment("{}", value)
