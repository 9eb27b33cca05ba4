"""Checks that PostgreSQL can clean up after the deletions: autovacuum, dead rows, and sessions with old snapshots."""

from __future__ import annotations

from collections.abc import Iterator

from scripts.lifecycle.engine.catalogue import tree_of
from scripts.lifecycle.health.findings import Context, Finding, failed, passed, warned

DEAD_SHARE, DEAD_ROWS = 0.2, 10_000
LONG_SECONDS = 900.0

# Autovacuum works on the tables that store rows: of a partitioned table on its partitions.
_TABLES = f"""
SELECT n.nspname || '.' || c.relname,
       coalesce(c.reloptions::text ~ 'autovacuum_enabled=(false|off|0|no)', false),
       coalesce(s.n_dead_tup, 0), coalesce(s.n_live_tup, 0)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
 WHERE c.relkind <> 'p' AND (n.nspname = 'ops' AND c.relkind = 'r' OR c.oid IN (
       SELECT t.relid FROM pg_class p JOIN pg_namespace s ON s.oid = p.relnamespace
        CROSS JOIN LATERAL {tree_of("p.oid")} t WHERE s.nspname || '.' || p.relname = ANY (%s))) ORDER BY 1
"""  # noqa: S608 - constants
_SESSIONS = """
SELECT pid, usename::text, state, extract(epoch FROM clock_timestamp() - xact_start)::float, backend_xmin IS NOT NULL
  FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
   AND clock_timestamp() - xact_start > make_interval(secs => %s) ORDER BY xact_start
"""
_PREPARED = """
SELECT transaction::text, extract(epoch FROM clock_timestamp() - prepared)::float FROM pg_prepared_xacts
 WHERE database = current_database() AND clock_timestamp() - prepared > make_interval(secs => %s)
"""
_SLOTS = (
    "SELECT slot_name::text FROM pg_replication_slots WHERE NOT active AND coalesce(xmin, catalog_xmin) IS NOT NULL"
)


def autovacuum(context: Context) -> Iterator[Finding]:
    """Look for tables, and parts of tables, that autovacuum does not keep up with."""
    names = sorted({policy.table for policy in context.run.policies.policies.values()})
    running, rows = context.run.database.read(
        lambda link: (
            (link.execute("SELECT current_setting('autovacuum') = 'on'").fetchone() or (False,))[0],
            link.execute(_TABLES, (names,)).fetchall(),
        )
    )
    found = []
    if not running:
        found.append(warned("autovacuum", "is off for the whole server", "ALTER SYSTEM SET autovacuum = on; reload"))
    for table, disabled, dead, live in rows:
        if disabled:
            found.append(
                warned(table, "autovacuum is disabled for it", f"ALTER TABLE {table} RESET (autovacuum_enabled)")
            )
        if dead > DEAD_ROWS and dead > DEAD_SHARE * (dead + live):
            share = f"{100 * dead / (dead + live):.0f} % of its rows are dead ({dead:,})"
            found.append(warned(table, share, f"VACUUM (ANALYZE) {table}; see the line snapshots if it stays so"))
    if not rows:
        found.append(failed("autovacuum", "no table was found", "does this role see the right database?"))
    yield from found or [passed("autovacuum", f"{len(rows)} tables are being cleaned")]


def snapshots(context: Context) -> Iterator[Finding]:
    """Look for old transactions: rows deleted since one began cannot be cleaned up."""
    visible, sessions, prepared, slots = context.run.database.read(
        lambda link: (
            (link.execute("SELECT pg_has_role('pg_read_all_stats', 'USAGE')").fetchone() or (False,))[0],
            link.execute(_SESSIONS, (LONG_SECONDS,)).fetchall(),
            link.execute(_PREPARED, (LONG_SECONDS,)).fetchall(),
            link.execute(_SLOTS).fetchall(),
        )
    )
    found = [
        warned(
            f"pid {pid}",
            f"a transaction of {user} has been open for {seconds:.0f} s ({state or 'state unknown'})"
            + (" and holds a snapshot" if snapshot else ""),
            f"have its program end it; else SELECT pg_terminate_backend({pid}), as the owner",
        )
        for pid, user, state, seconds, snapshot in sessions
    ]
    found += [
        warned(
            f"prepared transaction {number}",
            f"has been open for {seconds:.0f} s",
            "COMMIT PREPARED or ROLLBACK PREPARED: SELECT gid FROM pg_prepared_xacts tells its name",
        )
        for number, seconds in prepared
    ]
    found += [
        warned(f"replication slot {name}", "is not in use and holds a snapshot", "use it, or pg_drop_replication_slot")
        for (name,) in slots
    ]
    if not visible:
        found.append(
            warned(
                "pg_stat_activity",
                "not visible: transactions of other roles",
                "GRANT pg_read_all_stats TO lifecycle_jobs, as an administrator",
            )
        )
    yield from found or [passed("snapshots", f"no transaction is older than {LONG_SECONDS:.0f} s")]
