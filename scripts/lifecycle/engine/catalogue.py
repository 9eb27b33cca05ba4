"""What PostgreSQL's catalogue says of a table: its size, columns, keys, and every foreign key that points at it.

A statement on a table reaches its partitions and its inheritance children, to any depth. :func:`tree_of` is that tree
in SQL; every question here is asked of all of it.
"""

from __future__ import annotations

from typing import Any

from psycopg.rows import dict_row

from scripts.lifecycle.engine.selection import ForeignKey
from scripts.lifecycle.policy.tables import parts_of
from scripts.utils.db_utils import Connection


def tree_of(oid: str) -> str:
    """Return a subquery with one column, ``relid``: a table, its partitions and its children, to any depth.

    Args:
        oid: SQL for the table's oid; a constant of the code, never a value.
    """
    return f"""(
    WITH RECURSIVE tree (relid) AS (
        SELECT {oid}::oid UNION SELECT i.inhrelid FROM pg_inherits i JOIN tree t ON t.relid = i.inhparent
    ) SELECT relid FROM tree)"""  # noqa: S608 - see above


# A member of lifecycle_reader may only read. The rights of lifecycle_jobs are checked in its place, so that its dry
# run reports what the real run would meet.
DOER = """
WITH doer (role) AS (
    SELECT CASE WHEN bool_or(rolname = 'lifecycle_reader') AND NOT bool_or(rolname = 'lifecycle_jobs')
                THEN 'lifecycle_jobs' ELSE current_user END
      FROM pg_roles WHERE rolname IN ('lifecycle_reader', 'lifecycle_jobs') AND pg_has_role(oid, 'USAGE')
)
"""

# PostgreSQL checks rights on the table that a statement names, never on its partitions or children. Row-level security
# of a partition counts: a detached partition is read by its own name.
TABLE = f"""
SELECT c.oid, c.relkind, pg_relation_size(c.oid) AS heap_bytes, tree.members > 1 AS has_children,
       tree.bytes, current_setting('block_size')::int AS block_bytes, c.reltuples, c.relpages,
       tree.row_security, has_schema_privilege(n.oid, 'USAGE') AS may_use_schema,
       current_setting('server_version_num')::int AS server_version
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  CROSS JOIN LATERAL (
      SELECT count(*) AS members, sum(pg_table_size(m.oid))::bigint AS bytes,
             coalesce(array_agg(mn.nspname || '.' || m.relname ORDER BY m.oid <> c.oid, m.relname)
                      FILTER (WHERE row_security_active(m.oid)), '{{}}') AS row_security
        FROM {tree_of("c.oid")} t JOIN pg_class m ON m.oid = t.relid JOIN pg_namespace mn ON mn.oid = m.relnamespace
  ) tree
 WHERE n.nspname = %s AND c.relname = %s
"""  # noqa: S608 - constants

# An index finds every row of a value only if it is valid, over all rows, and in the column's own collation. A partial
# index on "column IS NOT NULL" counts: no comparison finds a null.
_USABLE = """
    i.indisvalid AND i.indisready AND i.indislive AND i.indcollation[0] IN (0, k.attcollation)
AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid) IN
     (format('(%%I IS NOT NULL)', k.attname), format('(%%s IS NOT NULL)', k.attname)))
"""

# With a modifier of -1 char(36) is named bpchar; without one it is character, which in a cast keeps one letter.
# A column is indexed if every table of the tree that stores rows has an index that begins with it.
_COLUMNS = f"""
WITH stored AS MATERIALIZED (
    SELECT c.oid FROM {tree_of("%(oid)s")} t JOIN pg_class c ON c.oid = t.relid WHERE c.relkind <> 'p'
), led AS (
    SELECT k.attname, count(DISTINCT i.indrelid) AS tables
      FROM stored s JOIN pg_index i ON i.indrelid = s.oid
      JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam AND m.amname = 'btree'
      JOIN pg_attribute k ON k.attrelid = i.indrelid AND k.attnum = i.indkey[0]
     WHERE {_USABLE} GROUP BY k.attname
)
SELECT a.attname, format_type(a.atttypid, -1) AS type, a.attnotnull,
       CASE WHEN a.atttypid IN ('varchar'::regtype, 'bpchar'::regtype) AND a.atttypmod > 4
            THEN a.atttypmod - 4 END AS length,
       coalesce(led.tables, 0) = (SELECT count(*) FROM stored) AS indexed
  FROM pg_attribute a LEFT JOIN led ON led.attname = a.attname
 WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
"""  # noqa: S608 - constants

UNIQUE = """
SELECT (SELECT array_agg(a.attname::text) FROM unnest(i.indkey[0:i.indnkeyatts - 1]) AS p (attnum)
          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = p.attnum) AS columns
  FROM pg_index i
 WHERE i.indrelid = %(oid)s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
"""

# A partitioned table can have no unique index without the columns that it is partitioned by. Such an index will do
# where rows are only looked for in order to delete them: of two rows with one key, each goes by its own date. Or each
# partition has an index of its own, as pg_partman makes them from a template.
PARTITIONED_KEY = """
SELECT EXISTS (
        SELECT FROM pg_index i JOIN pg_partitioned_table p ON p.partrelid = i.indrelid
         WHERE i.indrelid = %(oid)s AND i.indisvalid AND i.indisunique AND i.indpred IS NULL
           AND (SELECT bool_and(k = a.attnum OR k = ANY (p.partattrs::int2[])) AND bool_or(k = a.attnum)
                  FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) k))
    OR NOT EXISTS (
        SELECT FROM pg_partition_tree(%(oid)s) l
         WHERE l.isleaf AND l.relid <> %(oid)s AND NOT EXISTS (
               SELECT FROM pg_index i JOIN pg_attribute c ON c.attrelid = i.indrelid AND c.attnum = i.indkey[0]
                WHERE i.indrelid = l.relid AND i.indisvalid AND i.indisunique AND i.indnkeyatts = 1
                  AND i.indpred IS NULL AND c.attname = a.attname)) AS unique
  FROM pg_attribute a WHERE a.attrelid = %(oid)s AND a.attname = %(column)s
"""

# A foreign key refers to the rows of the one table that it names: of a partitioned table to those of its partitions, of
# any other table to its own and not to its children's. ``homes`` are the tables that hold those rows, where they are
# not all that a statement on the policy's table reaches.
_FOREIGN_KEYS = f"""
WITH tree AS MATERIALIZED (
    SELECT relid FROM {tree_of("%(oid)s")} members
), stored AS MATERIALIZED (
    SELECT c.oid FROM tree JOIN pg_class c ON c.oid = tree.relid WHERE c.relkind <> 'p'
)
SELECT c.oid, k.conname AS name, n.nspname || '.' || c.relname AS "table", k.confdeltype::text AS on_delete,
       child.bytes AS table_bytes, child.row_security AS may_hide,
       (SELECT array_agg(a.attname::text ORDER BY p.place) FROM unnest(k.conkey) WITH ORDINALITY AS p (attnum, place)
          JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = p.attnum) AS columns,
       (SELECT array_agg(a.attname::text ORDER BY p.place) FROM unnest(k.confkey) WITH ORDINALITY AS p (attnum, place)
          JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = p.attnum) AS referenced,
       child.indexed,
       -- By way of JSON: before PostgreSQL 15 there is no such column.
       (SELECT coalesce(array_agg(a.attname::text), '{{}}')
          FROM jsonb_array_elements_text(coalesce(nullif(to_jsonb(k) -> 'confdelsetcols', 'null'), '[]')) AS p (attnum)
          JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = p.attnum::int) AS set_columns,
       CASE WHEN own.homes @> (SELECT coalesce(array_agg(stored.oid), '{{}}') FROM stored) THEN '{{}}'
            ELSE own.homes END::bigint[] AS homes
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  CROSS JOIN LATERAL (
      SELECT sum(pg_table_size(m.oid))::bigint AS bytes, bool_or(row_security_active(m.oid)) AS row_security,
             bool_and(m.relkind = 'p' OR EXISTS (
                 SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                   JOIN pg_am am ON am.oid = x.relam AND am.amname IN ('btree', 'hash')
                   JOIN pg_attribute k ON k.attrelid = i.indrelid AND k.attnum = i.indkey[0]
                  WHERE i.indrelid = m.oid AND k.attname = ANY (fk.columns) AND {_USABLE})) AS indexed
        FROM (SELECT array_agg(a.attname) AS columns FROM pg_attribute a
               WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)) fk,
             LATERAL {tree_of("c.oid")} t JOIN pg_class m ON m.oid = t.relid
  ) child
  CROSS JOIN LATERAL (
      SELECT coalesce(array_agg(m.oid), '{{0}}') AS homes FROM pg_class r
       CROSS JOIN LATERAL {tree_of("r.oid")} t JOIN pg_class m ON m.oid = t.relid
       WHERE r.oid = k.confrelid AND m.relkind <> 'p' AND (r.relkind = 'p' OR m.oid = r.oid)
  ) own
 WHERE k.contype = 'f' AND k.confrelid IN (SELECT relid FROM tree)
       -- PostgreSQL repeats a constraint for each partition on either side: the one at the top of each tree stands for
       -- all. A foreign key on the table above the policy's own points here too.
   AND NOT EXISTS (SELECT FROM pg_constraint p WHERE p.oid = k.conparentid AND p.confrelid IN (SELECT relid FROM tree))
   AND NOT EXISTS (SELECT FROM pg_constraint p
                    WHERE k.conparentid <> 0 AND p.contype = 'f' AND p.confrelid = k.confrelid
                      AND p.conrelid <> k.conrelid
                      AND p.conrelid IN (SELECT relid FROM pg_partition_ancestors(k.conrelid)))
 ORDER BY 2, 1
"""  # noqa: S608 - constants

# Most tables have none, and to plan the question above takes longer than to answer it.
_ANY_FOREIGN_KEY = f"""
SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid IN (SELECT relid FROM {tree_of("%(oid)s")} t) LIMIT 1
"""  # noqa: S608 - constants

PRIMARY_KEY = """
SELECT a.attname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
 CROSS JOIN unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS p (attnum, place)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = p.attnum
 WHERE n.nspname || '.' || c.relname = %(table)s ORDER BY p.place
"""


def rows_of(connection: Connection, query: str, parameters: Any) -> list[dict[str, Any]]:
    """Return the answer to one of the questions of this module, each row by the names of its columns."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, parameters).fetchall()


def columns_of(connection: Connection, oid: int) -> dict[str, dict[str, Any]]:
    """Return what the catalogue says of a table's columns, by their names."""
    return {row["attname"]: row for row in rows_of(connection, _COLUMNS, {"oid": oid})}


def catalogue_of(connection: Connection, table: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return what the catalogue says of a table and of its columns; both are empty if there is no such table."""
    found = rows_of(connection, TABLE, parts_of(table))
    return (found[0], columns_of(connection, found[0]["oid"])) if found else ({}, {})


def pointing_at(connection: Connection, oid: int) -> list[ForeignKey]:
    """Return every foreign key that points at a table, or at one of its partitions or children."""
    return [foreign_key(row) for row in rows_pointing_at(connection, oid)]


def rows_pointing_at(connection: Connection, oid: int) -> list[dict[str, Any]]:
    """Return the same as rows, with the referring table's oid, and whether row-level security may hide its rows."""
    any_at_all = connection.execute(_ANY_FOREIGN_KEY, {"oid": oid}).fetchone()
    return rows_of(connection, _FOREIGN_KEYS, {"oid": oid}) if any_at_all is not None else []


def foreign_key(row: dict[str, Any]) -> ForeignKey:
    """Return one row of :func:`rows_pointing_at` as an object."""
    facts = {name: value for name, value in row.items() if name != "oid" and not name.startswith("may_")}
    return ForeignKey(**facts | {name: tuple(row[name]) for name in ("columns", "referenced", "set_columns", "homes")})
