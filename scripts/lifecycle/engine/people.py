"""Whether the columns that name a person hold addresses, which is what legal holds and erasures compare them with.

A column of user numbers or names would make both succeed and find nobody.
"""

from __future__ import annotations

import psycopg

from scripts.lifecycle.engine.catalogue import columns_of
from scripts.lifecycle.engine.rights import oid_of
from scripts.lifecycle.policy.policy_set import PolicySet
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection

CURE = (
    "name the column that holds the e-mail address; or write person: null, and let a foreign key refer to a table that"
    " has one; or correct the rows"
)
_LOOKED_AT_ROWS = 1000
# What stands in the place of an address that was anonymised: the id of a key, and a digest.
_PSEUDONYM = "^[^:]+:[0-9a-f]{64}$"


def person_columns(policies: PolicySet) -> dict[tuple[str, str], str]:
    """Return table and column of each column that names a person, with its place in the policy file."""
    found: dict[tuple[str, str], str] = {}
    for name, policy in policies.policies.items():
        named = [(policy.table, policy.person, policy.at("policies", name, "person"))]
        named += [
            (each.table, each.person, policy.at("policies", name, "dependants", number))
            for number, each in enumerate(policy.dependants)
        ]
        for table, column, place in named:
            if column:
                found.setdefault((table, column), place)
    for name, step in policies.erasure.items():
        if step.person:
            found.setdefault((step.table, step.person), step.at("erasure", name, "person"))
    return found


def nameless(connection: Connection, policies: PolicySet) -> list[str]:
    """Say which columns that name a person hold no address in any of the rows looked at, a thousand at most.

    Columns that do not exist or cannot be read are left out: that is another problem. No value is told.
    """
    problems = []
    for (table, column), place in person_columns(policies).items():
        oid = oid_of(connection, table)
        if oid is None or column not in columns_of(connection, oid):
            continue
        others = _others_than_addresses(connection, table, column)
        if others:
            problems.append(
                f"{place}: {table}.{column} holds no address in any of the {others:,} rows looked at, so a legal hold"
                " and an erasure find nobody there"
            )
    return problems


def _others_than_addresses(connection: Connection, table: str, column: str) -> int:
    """Return how many values are neither an address nor what stands for one; 0 if any of them is an address."""
    ask = sql.SQL(
        "SELECT count(*) FILTER (WHERE value ~ '@'), count(*) FILTER (WHERE value !~ {pseudonym} AND value <> '')"
        " FROM (SELECT {column}::text AS value FROM {table} t WHERE {column} IS NOT NULL LIMIT {rows}) looked_at"
    ).format(
        pseudonym=sql.Literal(_PSEUDONYM),
        column=sql.Identifier("t", column),
        table=table_identifier(table),
        rows=sql.Literal(_LOOKED_AT_ROWS),
    )
    try:
        with connection.transaction():
            row = connection.execute(ask, {}).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return 0
    addresses, others = row or (0, 0)
    return 0 if addresses else int(others)
