"""Whether the suite's functions, views, triggers and rules are still those that the migrations made.

A replaced ``ops.append_audit`` could seal what nobody did, a replaced ``ops.audit_log`` could hide what somebody did,
and neither breaks the chain. ``migrate.py`` records the digest of each definition in ``ops.definitions`` after it has
applied migrations; :func:`replaced` reads the catalogue itself and compares. The owner of the schema can write to
``ops.definitions`` too, so ``verify_audit`` logs the digest of the whole list: a log store keeps it where the owner
cannot reach it.
"""

from __future__ import annotations

import hashlib
import json

from psycopg.types.json import Jsonb

from scripts.utils.db_utils import Connection

_OBJECTS = """
SELECT 'function ' || p.oid::regprocedure::text, pg_get_functiondef(p.oid)
  FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'ops'::regnamespace AND p.prokind IN ('f', 'p')
UNION ALL
SELECT 'view ' || c.oid::regclass::text, pg_get_viewdef(c.oid)
  FROM pg_catalog.pg_class c WHERE c.relnamespace = 'ops'::regnamespace AND c.relkind IN ('v', 'm')
UNION ALL
SELECT 'trigger ' || t.tgname || ' on ' || c.oid::regclass::text, t.tgenabled::text || ' ' || pg_get_triggerdef(t.oid)
  FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
 WHERE c.relnamespace = 'ops'::regnamespace AND NOT t.tgisinternal
UNION ALL
SELECT 'rule ' || r.rulename || ' on ' || c.oid::regclass::text, r.ev_enabled::text || ' ' || pg_get_ruledef(r.oid)
  FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
 WHERE c.relnamespace = 'ops'::regnamespace AND r.rulename <> '_RETURN'
"""
_SERVER = "SELECT current_setting('server_version_num')::int / 10000"
_LAST = "SELECT objects, server FROM ops.definitions ORDER BY id DESC LIMIT 1"


def record(connection: Connection, version: str) -> str:
    """Record what the migrations have made, in the transaction that made it; nothing where that is recorded already.

    Returns:
        The digest of the whole list.
    """
    objects = _now(connection)
    if _recorded(connection) != (objects, _server(connection)):
        connection.execute(
            "INSERT INTO ops.definitions (version, server, objects) VALUES (%s, %s, %s)",
            (version, _server(connection), Jsonb(objects)),
        )
    return digest(objects)


def replaced(connection: Connection) -> tuple[list[str], str]:
    """Compare the catalogue with what the last migration recorded.

    Returns:
        Each object that differs, with what happened to it, and the digest of the recorded list. Where the server has
        been upgraded since, its major version prints definitions otherwise: ``migrate.py`` has to record them anew, and
        this is the one finding.
    """
    known, server = _recorded(connection)
    if known is None:
        return ["no migration has recorded the definitions: run backend/migrate.py"], ""
    if server != _server(connection):
        return [f"recorded under PostgreSQL {server}, now {_server(connection)}: run backend/migrate.py"], digest(known)
    found = _now(connection)
    told = dict.fromkeys(known.keys() - found.keys(), "was removed")
    told |= dict.fromkeys(found.keys() - known.keys(), "was added")
    told |= {name: "was replaced" for name in found.keys() & known.keys() if found[name] != known[name]}
    return [f"{name} {what}" for name, what in sorted(told.items())], digest(known)


def digest(objects: dict[str, str]) -> str:
    """Return the SHA-256 of a list of definitions, over its names in order."""
    return hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()


def _now(connection: Connection) -> dict[str, str]:
    # regprocedure and regclass leave the schema out where the search path has it.
    connection.execute("SELECT set_config('search_path', 'pg_catalog', true)")
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in connection.execute(_OBJECTS)}


def _recorded(connection: Connection) -> tuple[dict[str, str] | None, int]:
    row = connection.execute(_LAST).fetchone()
    return (row[0], row[1]) if row else (None, 0)


def _server(connection: Connection) -> int:
    row = connection.execute(_SERVER).fetchone()
    return int(row[0]) if row else 0
