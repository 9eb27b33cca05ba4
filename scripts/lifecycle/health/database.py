"""Checks the database: connection, clock, role, schema, rights, policies and indexes."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator
from datetime import datetime

import psycopg
from psycopg import sql

from backend import grants, migrate
from scripts.lifecycle.engine import preflight
from scripts.lifecycle.engine.catalogue import tree_of
from scripts.lifecycle.engine.obstacles import known_triggers
from scripts.lifecycle.engine.selection import names_blob, store_for
from scripts.lifecycle.health.findings import Context, Finding, advised, failed, passed, warned
from scripts.lifecycle.policy.policies import Policy
from scripts.lifecycle.policy.sections import Blob
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils.db_utils import Connection, connection_lost
from scripts.utils.errors import OpsError, describe_database_error
from scripts.utils.session_settings import logs_parameters, unpinned

SLOW_SECONDS = 0.25
SKEW_WARNS_SECONDS, SKEW_FAILS_SECONDS = 5.0, 60.0
OLDEST_VERSION = 140_000
_LOOKS = 3
# What is found in a problem (^: at its beginning), and its cure; the first one counts.
_CURES = {
    ("blob.prefix", "goes to a person"): (
        "correct blob.prefix or the rows, or decide the items on the queue: not_ours settles a row for good"
    ),
    ("add to dependants",): (
        "add that line to the policy's dependants, with the action that you mean, or change the foreign key"
    ),
    (
        "SECURITY DEFINER",
        "replica identity",
        "raises an error each time",
    ): "as the line says, as the owner of the table or the function",
    ("--grants", "^no right"): "backend/migrate.py --grants POLICY_FILE, as the owner",
    ("no index",): (
        "that statement, as the owner, or backend/migrate.py --indexes POLICY_FILE --apply; slow until then, refused"
        " once the table is large"
    ),
    ("^foreign key",): "give the table a policy of its own, or change the foreign key in the database",
    ("does not exist",): (
        "correct the name in the policy file; if the application renamed it, that is a change of policy"
    ),
}
# The named tables with their partitions and children.
_PARTS = f"""
    SELECT t.relid FROM pg_class p JOIN pg_namespace s ON s.oid = p.relnamespace
     CROSS JOIN LATERAL {tree_of("p.oid")} t WHERE s.nspname || '.' || p.relname = ANY (%s)
"""  # noqa: S608 - constants
_ROLE = f"""
SELECT current_user::text, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
       (SELECT coalesce(array_agg(n.nspname || '.' || c.relname ORDER BY 1), '{{}}')
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid IN ({_PARTS}) AND pg_has_role(c.relowner, 'USAGE'))
"""  # noqa: S608 - constants
_INDEXES = f"""
SELECT i.indexrelid::regclass::text, n.nspname || '.' || c.relname, i.indisvalid
  FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid IN ({_PARTS}) OR n.nspname = 'ops' ORDER BY 1
"""  # noqa: S608 - constants
_INDEX = re.compile(r"\bCREATE\s+(?:UNIQUE\s+)?INDEX\s+(?:IF\s+NOT\s+EXISTS\s+)?(\w+)\s+ON\s+ops\.")
_DROPPED_INDEX = re.compile(r"\bDROP\s+INDEX\s+(?:IF\s+EXISTS\s+)?(?:ops\.)?(\w+)")


def connection(context: Context) -> Iterator[Finding]:
    """Connect, measure the latency, and check the server's version."""
    database = context.run.database
    database.open()
    with database.snapshot() as link:
        times = []
        for _ in range(_LOOKS):
            began = time.perf_counter()
            link.execute("SELECT 1")
            times.append(time.perf_counter() - began)
        version = link.info.server_version
        standby = link.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
    latency = statistics.median(times)
    said = f"PostgreSQL {version // 10_000}.{version % 10_000} answers in {1000 * latency:.0f} ms"
    if version < OLDEST_VERSION:
        yield failed("PostgreSQL", f"{said}: it is too old", "upgrade to PostgreSQL 14 or later")
    elif standby:
        yield failed(
            "PostgreSQL", f"{said}, and is a standby: no job can write there", "name the primary in DATABASE_URL"
        )
    elif latency > SLOW_SECONDS:
        yield warned("PostgreSQL", said, "run the jobs in the database's region; look at its load")
    else:
        yield passed("PostgreSQL", said)


def clock(context: Context) -> Iterator[Finding]:
    """Compare this machine's clock with the database's, which decides what is due."""

    def ask(link: Connection) -> tuple[datetime, datetime, datetime]:
        before = context.clock()
        row = link.execute("SELECT clock_timestamp()").fetchone()
        if row is None:
            raise AssertionError("a SELECT without FROM has one row")
        return before, row[0], context.clock()

    before, theirs, after = context.run.database.read(ask)
    skew = (before + (after - before) / 2 - theirs).total_seconds()
    said = f"this machine's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the database's"
    cure = "set both by NTP; what is due follows the database's clock, logs and metrics this machine's"
    if abs(skew) > SKEW_FAILS_SECONDS:
        yield failed("clock", said, cure)
    elif abs(skew) > SKEW_WARNS_SECONDS:
        yield warned("clock", said, cure)
    else:
        yield passed("clock", said)


def session(context: Context) -> Iterator[Finding]:
    """Look for settings that a transaction cannot be given: those with a meaning, and what the server logs."""
    odd = context.run.database.read(unpinned)
    for name, (value, wanted) in odd.items():
        yield failed(
            name,
            f"is {value}, and only a superuser can change it: it must be {wanted}",
            f"ALTER ROLE … RESET {name}, or take it out of the database's and the server's configuration",
        )
    logging = context.run.database.read(logs_parameters)
    if logging:
        yield warned(
            "log_parameter_max_length",
            f"the server's log gets statements with their parameters, addresses among them: {', '.join(logging)}",
            "as a superuser: ALTER ROLE lifecycle_jobs SET log_parameter_max_length = 0",
        )
    if not odd and not logging:
        yield passed("session", "every setting that changes what a statement means is pinned in each transaction")


def role(context: Context) -> Iterator[Finding]:
    """Check that the role is no superuser and owns no table, or part of a table, that a policy names."""
    tables = [policy.table for policy in context.run.policies.policies.values()]
    name, superuser, owned = context.run.database.read(
        lambda link: (
            link.execute(
                _ROLE,
                (tables,),
            ).fetchone()
            or ("", False, [])
        )
    )
    cure = f"connect as {migrate.ROLE} (DATABASE_URL), which backend/migrate.py makes"
    if superuser:
        yield warned(name, "is a superuser: no right and no append-only table stops it", cure)
    elif owned:
        yield warned(name, f"owns {', '.join(owned)}: it may change or drop them", cure)
    else:
        yield passed(name, "is no superuser and owns no table that a policy names")


def schema(context: Context) -> Iterator[Finding]:
    """Compare the migrations that were applied with the files."""
    ledger = context.run.database.read(_ledger)
    if ledger is None:
        yield failed("ops", "the schema is missing, or hidden from this role", "run backend/migrate.py")
        return
    wanted = migrate.files("ops")
    found = []
    for migration in wanted:
        if migration.version not in ledger:
            found.append(failed(str(migration), "is pending", "run backend/migrate.py"))
        elif ledger[migration.version] != migration.checksum:
            found.append(
                failed(str(migration), "was changed after it was applied", "restore the file, add a new migration")
            )
    newer = sorted(ledger.keys() - {migration.version for migration in wanted})
    found += [warned(f"ops/{version}", "was applied by a newer release", "deploy that release") for version in newer]
    yield from found or [passed("ops", f"at {wanted[-1]}")]


def _ledger(link: Connection) -> dict[str, str] | None:
    row = link.execute(
        "SELECT CASE WHEN to_regnamespace('ops') IS NULL OR NOT has_schema_privilege('ops', 'USAGE') THEN false"
        " ELSE to_regclass('ops.schema_migrations') IS NOT NULL END"
    ).fetchone()
    if not row or not row[0]:
        return None
    return dict(link.execute("SELECT version, checksum FROM ops.schema_migrations WHERE set = 'ops'").fetchall())


def suite(context: Context) -> Iterator[Finding]:
    """Check that the suite's own rights and indexes are as the migrations made them."""

    def look(link: Connection) -> tuple[list[str], list[str]]:
        applied = _ledger(link) or {}
        texts = [m.path.read_text() for m in migrate.files("ops") if m.version in applied]
        rights = grants.given_by_migrations(texts)
        lacking = link.execute(
            'SELECT w.right || \' on \' || w.table FROM unnest(%s::text[], %s::text[]) AS w ("right", "table")'
            " WHERE to_regclass(w.table) IS NOT NULL AND NOT has_table_privilege(w.table, w.right) ORDER BY 1",
            ([right for right, _ in rights], [table for _, table in rights]),
        ).fetchall()
        missing = link.execute(
            "SELECT w.name FROM unnest(%s::text[]) AS w (name) WHERE to_regclass('ops.' || w.name) IS NULL ORDER BY 1",
            (_indexes(texts),),
        ).fetchall()
        return [name for (name,) in lacking], [name for (name,) in missing]

    lacking, missing = context.run.database.read(look)
    for right in lacking:
        yield failed(right, "was taken from the jobs' role", f"GRANT {right} TO {migrate.ROLE}, as its owner")
    for name in missing:
        yield failed(f"ops.{name}", "this index was dropped", f"make it again as backend/migrations/ops says ({name})")
    if not lacking and not missing:
        yield passed("ops", "rights and indexes are as the migrations made them")


def rights(context: Context) -> Iterator[Finding]:
    """Compare the roles' rights, column by column, with what the policy file needs: none is missing, none too many."""

    def look(link: Connection) -> tuple[list[str], list[str]]:
        applied = _ledger(link) or {}
        texts = [m.path.read_text() for m in migrate.files("ops") if m.version in applied]
        return grants.pending(link, context.run.policies, migrations=texts), grants.otherwise(link)

    cure = "backend/migrate.py --grants POLICY_FILE, as the owner"
    try:
        pending, others = context.run.database.read(look)
    except OpsError:
        # The check of the policies names what is missing, once.
        yield passed("rights", "not compared: the policy file names what does not exist")
        return
    too_many = [statement for statement in pending if statement.startswith("REVOKE")]
    # What the jobs lack is named by the checks of policies and erasure, with the places that need it.
    missing = [each for each in pending if each.startswith("GRANT") and not each.endswith(f'TO "{grants.ROLE}"')]
    if too_many:
        yield warned("too many", f"no policy needs them any more: {'; '.join(too_many)}", cure)
    if missing:
        yield warned("missing", f"the policy file needs them: {'; '.join(missing)}", cure)
    for other in others:
        yield warned("another way", other, "as the line says, as the owner of the tables")
    if not too_many and not missing and not others:
        yield passed("rights", "the roles may read and change what the policy file names, and no other column")


def _indexes(texts: list[str]) -> list[str]:
    wanted: dict[str, None] = {}
    for text in texts:
        for name in _DROPPED_INDEX.findall(text):
            wanted.pop(name, None)
        wanted |= dict.fromkeys(_INDEX.findall(text))
    return list(wanted)


def policies(context: Context) -> Iterator[Finding]:
    """Run the purge's own preflight for each policy: tables, columns, rights, foreign keys, indexes, triggers.

    Raises:
        psycopg.Error: The connection broke.
    """
    now = context.run.database.now()
    for name, policy in context.run.policies.policies.items():
        try:
            problems, warnings, missing = context.run.database.read(
                lambda link, policy=policy: preflight.inspect(link, policy, now)  # type: ignore[misc]
            )
            if policy.blob and not problems and context.run.database.read(_ledger) is not None:
                warnings += _unfit_blobs(context, policy, policy.blob)
        except psycopg.Error as error:
            if connection_lost(error):
                raise
            problems, warnings, missing = [describe_database_error(error)], [], []
        for problem in problems:
            yield failed(name, problem, _cure(problem))
        for warning in warnings:
            yield warned(name, warning, _cure(warning))
        for index in missing:
            yield advised(name, index, _cure(index))
        if not problems and not warnings:
            yield passed(name, f"would start: {policy.table}{_not_tried(context, policy)}")


def _not_tried(context: Context, policy: Policy) -> str:
    """Name the triggers that a run fires: what they do with a row, no check can try that writes nothing."""
    fired = known_triggers(context.run.database, policy)
    names = list(dict.fromkeys(map(str, fired)))
    return f"; only a run can tell what {' and '.join(names)} does to it" if names else ""


def _unfit_blobs(context: Context, policy: Policy, blob: Blob) -> list[str]:
    """Say which rows name a blob that the store must not be asked to delete: a run hands each due one to a person."""
    statement = sql.SQL(
        "SELECT ops.blob_trouble(n.store, n.pathname, %(store)s, %(prefix)s), count(*)"
        " FROM {table} t CROSS JOIN LATERAL ops.blob_parts(t.{column}) n WHERE {names} GROUP BY 1"
    ).format(table=table_identifier(policy.table), column=sql.Identifier(blob.column), names=names_blob(blob, "t"))
    settings = context.run.settings
    # Without a token the store is not known, so no blob counts as another store's.
    store = store_for(policy, settings) if settings.blob_read_write_token else ""
    parameters = {"store": store, "prefix": blob.prefix}
    found = dict(context.run.database.read(lambda link: link.execute(statement, parameters).fetchall()))
    rows = sum(found.values())
    if rows and found.get("outside_prefix") == rows:
        return [f"blob.prefix {blob.prefix} fits none of the {rows:,} blobs that {policy.table} names"]
    what = {
        "foreign_store": "blobs of another store",
        "bad_name": "blobs by a name that the store would not take",
        "outside_prefix": f"blobs outside blob.prefix {blob.prefix}",
    }
    return [
        f"{found[code]:,} rows of {policy.table} name {text}: each that is due goes to a person"
        for code, text in what.items()
        if code in found
    ]


def _cure(problem: str) -> str:
    for words, cure in _CURES.items():
        if any(problem.startswith(each[1:]) if each.startswith("^") else each in problem for each in words):
            return cure
    return "correct the policy file or the table; then try the job with --dry-run"


def indexes(context: Context) -> Iterator[Finding]:
    """Look for invalid indexes on the policies' tables, on their partitions and children, and on the suite's own."""
    tables = _tables(context)
    rows = context.run.database.read(
        lambda link: link.execute(
            _INDEXES,
            (tables,),
        ).fetchall()
    )
    if not rows:
        yield failed("indexes", "no index was found on any table", "does this role see the right database?")
    invalid = [(index, table) for index, table, valid in rows if not valid]
    for index, table in invalid:
        yield failed(
            index,
            f"is invalid, so PostgreSQL does not use it on {table}",
            f"if none is being built just now: REINDEX INDEX CONCURRENTLY {index}, as the owner",
        )
    if rows and not invalid:
        yield passed("indexes", f"{len(rows)} indexes, all valid")


def _tables(context: Context) -> list[str]:
    policies = context.run.policies.policies.values()
    return sorted({p.table for p in policies} | {d.table for p in policies for d in p.dependants})
