"""The settings of a session that change what a statement means, pinned in every transaction.

``ALTER ROLE … SET``, ``ALTER DATABASE … SET`` and the server's configuration give a session its defaults. With
``datestyle = German`` the driver cannot read a time; with ``synchronous_commit = off`` a hold that was confirmed can be
lost in a crash. So no default is relied on:

- Every transaction sets :data:`PINNED` with ``SET LOCAL``, which a transaction pooler passes on and which leaves
  nothing behind (PgBouncer documentation, "Features").
- The driver reads text by what the server last reported of :data:`_REPORTED`. In a pipeline that report comes after the
  rows. So :func:`pin` also sets these in the session, once for each connection. PgBouncer keeps the date style, the
  time zone and the string syntax for each client; its pools are per role, so no other role's session is changed.
- ``BEGIN`` says isolation level and access mode itself (``db_utils``), so the ``default_transaction_…`` settings do not
  count.

What only a superuser can set cannot be pinned: :func:`unpinned` names it.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

PINNED = {
    # How a value is written as text, and how text is read as a value.
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",  # naive columns hold UTC
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "array_nulls": "on",
    "xmloption": "content",
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    # enable_seqscan = off makes an unavoidable scan cost 1e10, so PostgreSQL would compile statements that run for
    # milliseconds; on Debian's packages, where jit is on, that took most of an erasure's time.
    "jit": "off",
    # Which rows a statement finds. row_security off makes a policy that would hide rows an error.
    "row_security": "off",
    "transform_null_equals": "off",
    "gin_fuzzy_search_limit": "0",
}
"""Settings and their values; any role may set them."""

_REPORTED = ("DateStyle", "IntervalStyle", "TimeZone", "standard_conforming_strings")

_PRIVILEGED = {"session_replication_role": "origin"}
"""Settings that only a superuser can change, with the value that the suite needs: ``replica`` turns triggers off."""

# remote_apply is stronger than on, so it stays. search_path stays as the application knows it (its operators may lie in
# any schema), but no schema comes before pg_catalog.
_STATEMENT = sql.SQL(
    "SELECT {pinned},"
    " set_config('synchronous_commit',"
    " CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true),"
    " CASE WHEN position('pg_catalog' IN current_setting('search_path')) > 1"
    " THEN set_config('search_path', 'pg_catalog, ' || current_setting('search_path'), true) END,"
    " CASE WHEN current_setting('server_version_num')::int >= 170000"
    " THEN set_config('transaction_timeout', '0', true) END,"
    " set_config('lock_timeout', %(lock_ms)s, true), set_config('statement_timeout', %(statement_ms)s, true),"
    " set_config('idle_in_transaction_session_timeout', %(statement_ms)s, true)"
)


def _assigned(names: tuple[str, ...], *, local: bool) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("set_config({}, {}, {})").format(sql.Literal(name), sql.Literal(PINNED[name]), sql.Literal(local))
        for name in names
    )


_LOCAL = _STATEMENT.format(pinned=_assigned(tuple(PINNED), local=True))
_SESSION = sql.SQL("SELECT {}").format(_assigned(_REPORTED, local=False))


def local_settings(*, lock_timeout: float, statement_timeout: float) -> tuple[sql.Composed, dict[str, str]]:
    """Return the statement that gives a transaction its settings, and its parameters.

    Args:
        lock_timeout: Longest wait for one lock, in seconds.
        statement_timeout: Longest run time of one statement, in seconds.
    """
    return _LOCAL, {
        "lock_ms": str(max(1, int(lock_timeout * 1000))),
        "statement_ms": str(max(1, int(statement_timeout * 1000))),
    }


def pin(connection: psycopg.Connection[Any]) -> None:
    """Set in the session what the driver reads text by; it costs nothing where the server reports these values."""
    reported = [connection.info.parameter_status(name) for name in _REPORTED]
    if any(value not in (None, PINNED[name]) for name, value in zip(_REPORTED, reported, strict=True)):
        connection.execute(_SESSION)


def unpinned(connection: psycopg.Connection[Any]) -> dict[str, tuple[str, str]]:
    """Return the settings that a transaction could not be given: name, value, and the value that is needed.

    Args:
        connection: In a transaction with its :func:`local_settings`.
    """
    wanted = PINNED | _PRIVILEGED
    found = dict(
        connection.execute(
            "SELECT name, current_setting(name, true) FROM unnest(%s::text[]) AS s (name)", (list(wanted),)
        ).fetchall()
    )
    return {name: (found[name], value) for name, value in wanted.items() if found[name] not in (None, value)}
