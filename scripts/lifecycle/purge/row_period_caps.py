"""Notice that a period which the rows of another table say became shorter since the last completed run.

``ops.row_periods`` holds the periods that a completed run found, by a hash of what identifies the other table's row. A
run compares them with those of now, and asks before it deletes a row that would not be due by the former one. A period
in the row's own column is like its anchor: who changes it changes that row, and nothing is remembered of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scripts.lifecycle.engine.fragments import Fragment, fragment
from scripts.lifecycle.engine.row_periods import RowMoments
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.policy.lookups import Lookup
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.row_periods import RowPeriod
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection

_STORED = sql.SQL(
    "stored AS MATERIALIZED (SELECT key, period FROM ops.row_periods WHERE policy = %(policy)s AND rule = %(rule)s)"
)


@dataclass(frozen=True)
class _Said:
    """One rule whose period stands in another table."""

    moments: RowMoments
    lookup: Lookup

    @property
    def rule(self) -> str:
        return self.moments.name

    @property
    def source(self) -> str:
        """What is read, and how. If the file changed it, the file is what is asked about (``caps.py``)."""
        keep = self.moments.keep
        return f"{keep.lookup}, latest {keep.latest}, {keep.unit or 'interval'}, forever {list(keep.forever)}"

    def known(self, connection: Connection, policy: Policy) -> dict[str, Any] | None:
        """Return the parameters of what was remembered of this rule; None: nothing, or of another source."""
        row = connection.execute(
            "SELECT source, seed FROM ops.period_sources WHERE policy = %s AND rule = %s", (policy.name, self.rule)
        ).fetchone()
        if row is None or row[0] != self.source:
            return None
        return {"policy": policy.name, "rule": self.rule, "seed": row[1]}

    def now(self) -> Fragment:
        """Return a CTE with what the rows of the other table say; one that says nothing is left out."""
        keys = sql.SQL(", ").join(sql.Identifier("o", name) for name in self.lookup.theirs)
        take = sql.Identifier("o", self.lookup.take)
        first, order = sql.SQL("").format(), sql.SQL("").format()
        if self.lookup.latest:
            first = sql.SQL("DISTINCT ON ({})").format(keys)
            latest = sql.Identifier("o", self.lookup.latest)
            order = sql.SQL(" ORDER BY {}, {} DESC NULLS LAST, {} DESC").format(keys, latest, take)
        value = sql.SQL("e.value").format()
        return fragment(
            "now_said AS MATERIALIZED (SELECT e.key, {said} AS period FROM (SELECT {first} {key} AS key,"
            " {take} AS value FROM {table} o WHERE ({keys}) IS NOT NULL{order}) e WHERE {says})",
            said=self.moments.said(value),
            first=first,
            key=_hash(keys),
            take=take,
            table=table_identifier(self.lookup.from_table),
            keys=keys,
            order=order,
            says=self.moments.says(value),
        )

    def moment(self, alias: str) -> Fragment:
        """Return the moment before which an anchor must lie by a row of ``now_said`` or ``stored``, or by none."""
        key, period = (sql.SQL("{}.{}").format(sql.SQL(alias), sql.SQL(name)) for name in ("key", "period"))
        return fragment(
            "CASE WHEN {} IS NULL THEN {} ELSE {} END", key, self.moments.of_none, self.moments.of_said(period)
        )


def shortened(connection: Connection, selection: Selection) -> dict[str, int]:
    """Return, by rule, how many rows would go that would stay by the period that the last completed run found.

    Args:
        connection: In a transaction.
        selection: What the policy selects.
    """
    rows: dict[str, int] = {}
    for said in _rules(selection):
        known = said.known(connection, selection.policy)
        if known is None:
            continue
        differs = fragment(
            "WITH {now}, {stored} SELECT count(*) FROM now_said n FULL JOIN stored s USING (key) WHERE {new} > {old}",
            now=said.now(),
            stored=_STORED,
            new=said.moment("n"),
            old=said.moment("s"),
        )
        row = connection.execute(differs, differs.parameters | known).fetchone()
        if row and row[0] and (count := _going(connection, selection.joined(), said, known)):
            rows[said.rule] = count
    return rows


def _going(connection: Connection, selection: Selection, said: _Said, known: dict[str, Any]) -> int:
    """Count the rows that would go by this rule and that the period of the last completed run would keep."""
    anchor = said.moments.rule.anchor
    query = fragment(
        "WITH {stored} SELECT count(*) FROM {source}"
        " LEFT JOIN stored s ON s.key = {key} WHERE {removable} AND {name} = %(rule)s"
        " AND ({instant} < ({old} AT TIME ZONE 'UTC')) IS NOT TRUE",
        stored=_STORED,
        source=selection.source,
        key=_hash(sql.SQL(", ").join(sql.Identifier("t", name) for name in said.lookup.own)),
        removable=selection.removable_in_the_end,
        name=selection.rule_of_due,
        instant=selection.instant(anchor),
        old=said.moment("s"),
    )
    row = connection.execute(query, {**selection.parameters, **query.parameters, **known}).fetchone()
    return row[0] if row else 0


def remember(connection: Connection, selection: Selection) -> None:
    """Write down the periods of now, for the next run; only what changed is written.

    Args:
        connection: In a transaction that may write.
        selection: What the policy selects.
    """
    policy = selection.policy
    for said in _rules(selection):
        if said.known(connection, policy) is None:
            connection.execute(
                "DELETE FROM ops.period_sources WHERE policy = %s AND rule = %s", (policy.name, said.rule)
            )
            connection.execute(
                "INSERT INTO ops.period_sources (policy, rule, source, seed) VALUES (%s, %s, %s, %s)",
                (policy.name, said.rule, said.source, secrets.randbits(63)),
            )
        known = said.known(connection, policy)
        write = fragment(
            "WITH {now}, gone AS (DELETE FROM ops.row_periods s WHERE policy = %(policy)s AND rule = %(rule)s"
            " AND NOT EXISTS (SELECT FROM now_said n WHERE n.key = s.key)),"
            " seen AS (UPDATE ops.period_sources SET seen_at = now() WHERE policy = %(policy)s AND rule = %(rule)s)"
            " INSERT INTO ops.row_periods AS s (policy, rule, key, period)"
            " SELECT DISTINCT ON (n.key) %(policy)s, %(rule)s, n.key, n.period FROM now_said n"
            " ON CONFLICT (policy, rule, key) DO UPDATE SET period = excluded.period"
            " WHERE s.period IS DISTINCT FROM excluded.period",
            now=said.now(),
        )
        connection.execute(write, {**write.parameters, **(known or {})})


def _rules(selection: Selection) -> Iterator[_Said]:
    for name, rule in selection.policy.rules.items():
        if isinstance(rule.keep, RowPeriod) and rule.keep.lookup:
            yield _Said(RowMoments(name, rule, rule.keep, selection.cutoff), rule.keep.lookup)


def _hash(columns: sql.Composable) -> sql.Composed:
    return sql.SQL("hashtextextended(jsonb_build_array({})::text, %(seed)s)").format(columns)
