"""A table with a partition a month: October to December 2025 lie wholly past their date, January is the boundary."""

from __future__ import annotations

from tests.lifecycle.support import policy

MONTHS = {
    "2025_10": ("2025-10-01", "2025-11-01"),
    "2025_11": ("2025-11-01", "2025-12-01"),
    "2025_12": ("2025-12-01", "2026-01-01"),
    "2026_01": ("2026-01-01", "2026-02-01"),
    "2026_02": ("2026-02-01", "2026-03-01"),
}
EXPIRED = ["2025_10", "2025_11", "2025_12"]
ROWS = 20


def make(admin, *, rows=ROWS, anchor="timestamptz", table="things", extra=""):
    """Make the table; of each month there are so many rows, four minutes apart from its midnight on."""
    stride = 1000 if rows <= 1000 else 1_000_000
    admin.execute(
        f"CREATE TABLE {table} (id bigint NOT NULL, made_at {anchor}, person text, kind text, {extra}"
        " UNIQUE (id, made_at)) PARTITION BY RANGE (made_at)"
    )
    for number, (name, (first, last)) in enumerate(MONTHS.items()):
        admin.execute(f"CREATE TABLE {table}_{name} PARTITION OF {table} FOR VALUES FROM ('{first}') TO ('{last}')")
        admin.execute(
            f"INSERT INTO {table} (id, made_at) SELECT {number * stride} + n, timestamptz '{first} 00:00Z'"
            f" + n * least(interval '4 minutes', interval '20 days' / {rows}) FROM generate_series(0, {rows - 1}) n"
        )
    admin.execute(f"CREATE INDEX ON {table} (made_at); ANALYZE {table}")


def partitions(admin, table="things"):
    """Return the months of which the table has a partition, and what else hangs on it."""
    rows = admin.execute(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = %s::regclass"
        " ORDER BY 1",
        (f"public.{table}",),
    )
    return [name.removeprefix(f"{table}_") for (name,) in rows]


def marks(admin, columns="partition_name, state, row_count"):
    """Return what ops says of partitions that were detached, in their order."""
    return admin.execute(f"SELECT {columns} FROM ops.detached_partitions ORDER BY ends_at, detached_at").fetchall()


def policies(**changes):
    """Return the policy on the table."""
    return {"things": policy(**changes)}
