"""What the catalogue and the statistics say of the application's tables, as far as a policy file needs it.

No value of a row is read but two: the earliest of an indexed date, and whether texts have the form of a blob's URL,
which is counted. The statistics of a column hold its most common values, which may be personal: they are not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date

import psycopg

from scripts.lifecycle.engine.catalogue import columns_of, pointing_at
from scripts.lifecycle.engine.record_keys import problem_of
from scripts.lifecycle.engine.selection import ANCHOR_TYPES, ForeignKey
from scripts.lifecycle.health.ownership import row_keys
from scripts.lifecycle.health.personal_data import BIRTH, looks_personal
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection

_TEXTS = """
SELECT a.attname::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_type b ON b.oid = t.typbasetype
 WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped AND coalesce(b.typcategory, t.typcategory) = 'S'
 ORDER BY a.attnum
"""
_LOOKED_AT_ROWS = 10_000

_TABLES = """
SELECT n.nspname || '.' || c.relname, c.oid::bigint,
       coalesce((SELECT sum(s.n_live_tup) FROM pg_stat_user_tables s
                  WHERE s.relid IN (SELECT relid FROM pg_partition_tree(c.oid) UNION SELECT c.oid)), 0)::bigint
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
   AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
   AND n.nspname NOT IN ('ops', 'information_schema') AND n.nspname !~ '^pg_'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                      AND d.deptype = 'e')
 ORDER BY 1
"""

# Where an age begins, by the words of a column's name; the first that fits is suggested.
_ANCHORS = (
    *("expires", "expired", "expiry", "expire", "until", "deleted", "removed", "archived", "ended", "finished"),
    *("closed", "resolved", "completed", "delivered", "sent", "last", "updated", "modified", "changed"),
    *("created", "inserted", "occurred", "recorded", "received", "registered", "joined", "added", "at", "on", "date"),
)
_WORDS_OF_A_ROW = 2
# A person column holds addresses. Normal forms come first: that is what holds and erasures compare.
_PEOPLE = ("normalized_email", "email_normalized", "email", "email_address", "e_mail", "mail")
_MAIL_OF_SOMEBODY = ("email", "_mail", "email_address")
# Addresses that the application writes from are nobody's who could be erased.
_OF_NOBODY = ("from", "reply", "sender", "support", "notif", "bcc", "cc_")


@dataclass
class Table:
    """One table, as far as a policy file needs to know it."""

    name: str
    """With its schema."""
    oid: int
    rows: int
    """As the statistics have them; 0 where they have none."""
    columns: dict[str, str]
    """The type of each column, by name."""
    texts: list[str]
    """The columns that hold text, by the type that a domain is made of."""
    key: tuple[str, ...]
    """The columns that name a row; empty: nothing does."""
    not_a_key: str | None
    """Why they cannot name a row to the audit; None: they can."""
    indexed: frozenset[str]
    incoming: list[ForeignKey]
    """The foreign keys that point at it."""
    readable: bool = True
    oldest: date | None = None
    """The earliest value of the suggested anchor; None: not looked at."""
    blobs: dict[str, int] = field(default_factory=dict)
    """Columns with values that have the form of a blob's URL, and how many of the rows looked at have one."""

    @property
    def anchors(self) -> list[str]:
        """The columns that an age may be counted from, the most fitting first; an indexed one before others."""
        dates = [name for name, kind in self.columns.items() if kind in ANCHOR_TYPES and not BIRTH.search(name.lower())]
        return sorted(dates, key=lambda name: (name not in self.indexed, _rank(name), name))

    @property
    def person(self) -> str | None:
        """The column that seems to hold a person's address."""
        texts = {re.sub("[^a-z0-9]+", "_", name.lower()): name for name in self.columns if name in self.texts}
        likely = [texts[name] for name in _PEOPLE if name in texts]
        likely += [n for low, n in texts.items() if low.endswith(_MAIL_OF_SOMEBODY) and not low.startswith(_OF_NOBODY)]
        return likely[0] if likely else None

    @property
    def personal(self) -> list[str]:
        """The columns that read like personal data."""
        return [name for name, kind in self.columns.items() if looks_personal(name, kind)]


def _rank(column: str) -> int:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column).lower().replace("-", "_").split("_")
    # A row with an access_token_expires_at does not expire with its token.
    meant = words if len(words) <= _WORDS_OF_A_ROW else words[:1]
    return next((n for n, word in enumerate(_ANCHORS) if word in meant), len(_ANCHORS))


def tables(connection: Connection) -> dict[str, Table]:
    """Return every table of the application, by name; one that the role may not read is told as far as it can be."""
    keys = row_keys(connection)
    found = {}
    for name, oid, rows in connection.execute(_TABLES).fetchall():
        facts = columns_of(connection, oid)
        columns = {column: fact["type"] for column, fact in facts.items()}
        key = keys.get(name, ())
        found[name] = Table(
            name=name,
            oid=oid,
            rows=rows,
            columns=columns,
            texts=[column for (column,) in connection.execute(_TEXTS, (oid,))],
            key=key,
            not_a_key=problem_of(key, columns),
            indexed=frozenset(column for column, fact in facts.items() if fact["indexed"]),
            incoming=pointing_at(connection, oid),
        )
    return found


def look_at_rows(connection: Connection, table: Table) -> None:
    """Find the age of the oldest row, and count blobs; of a table that the role may not read, note that.

    Args:
        connection: In a transaction that may be rolled back to here.
        table: Is added to.
    """
    try:
        with connection.transaction():
            anchor = next((name for name in table.anchors if name in table.indexed), None)
            if anchor:
                table.oldest = _oldest(connection, table.name, anchor)
            if table.texts:
                table.blobs = _blobs(connection, table.name, table.texts)
    except psycopg.errors.InsufficientPrivilege:
        table.readable = False


def _oldest(connection: Connection, table: str, anchor: str) -> date | None:
    ask = sql.SQL(
        "SELECT min({anchor})::date FROM {table} WHERE {anchor} > '-infinity' AND {anchor} >= '0001-01-01'"
    ).format(anchor=sql.Identifier(anchor), table=table_identifier(table))
    try:
        row = connection.execute(ask, {}).fetchone()
    except psycopg.DataError:  # a date that Python cannot hold
        return None
    return row[0] if row else None


def _blobs(connection: Connection, table: str, texts: list[str]) -> dict[str, int]:
    counts = sql.SQL(", ").join(
        sql.SQL("count(*) FILTER (WHERE {}::text ~ '^https://[^/]+[.]blob[.]vercel-storage[.]com/')").format(
            sql.Identifier(name)
        )
        for name in texts
    )
    columns = sql.SQL(", ").join(map(sql.Identifier, texts))
    sample = sql.SQL("(SELECT {columns} FROM {table} LIMIT {rows}) sample").format(
        columns=columns, table=table_identifier(table), rows=sql.Literal(_LOOKED_AT_ROWS)
    )
    row = connection.execute(sql.SQL("SELECT {} FROM {}").format(counts, sample), {}).fetchone()
    return {name: count for name, count in zip(texts, row or (), strict=False) if count}
