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
    # A batch turns enable_seqscan off, so it needs the other ways to rows and to joined rows. (enable_seqscan itself
    # is the batches' to set, and these settings are set twice in a batch.)
    "enable_indexscan": "on",
    "enable_indexonlyscan": "on",
    "enable_bitmapscan": "on",
    "enable_tidscan": "on",
    "enable_nestloop": "on",
    "enable_hashjoin": "on",
    "enable_mergejoin": "on",
    "enable_sort": "on",
    "enable_hashagg": "on",
    "enable_partition_pruning": "on",
    "plan_cache_mode": "auto",
    # A parameter may be an address. What a statement that succeeds leaves in the server's log, only a superuser decides
    # (logs_parameters).
    "log_parameter_max_length_on_error": "0",
    # Which rows a statement finds. row_security off makes a policy that would hide rows an error.
    "row_security": "off",
    "transform_null_equals": "off",
    "gin_fuzzy_search_limit": "0",
}
"""Settings and their values; any role may set them."""

_REPORTED = ("DateStyle", "IntervalStyle", "TimeZone", "standard_conforming_strings")

_PRIVILEGED = {"session_replication_role": "origin"}
"""Settings that only a superuser can change, with the value that the suite needs: ``replica`` turns triggers off."""

# log_parameter_max_length: 0 logs no parameters, -1 all of them whole. A duration of -1 logs no statement.
_LOGGED = """
SELECT s.name || ' = ' || current_setting(s.name) FROM (VALUES
       ('log_statement', current_setting('log_statement') IN ('mod', 'all')),
       ('log_min_duration_statement', current_setting('log_min_duration_statement') <> '-1'),
       ('log_min_duration_sample', current_setting('log_min_duration_sample') <> '-1'
                                   AND current_setting('log_statement_sample_rate')::float > 0),
       ('log_transaction_sample_rate', current_setting('log_transaction_sample_rate')::float > 0)) AS s (name, logs)
 WHERE s.logs AND current_setting('log_parameter_max_length') <> '0'
"""

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


def logs_parameters(connection: psycopg.Connection[Any]) -> list[str]:
    """Return the settings by which the server writes statements with their parameters into its log.

    Parameters of the suite's statements are e-mail addresses and keys of rows, among others.
    """
    return [text for (text,) in connection.execute(_LOGGED).fetchall()]
