"""A fixed moment, a cast of people, and the small things that the tests of the domain are written with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_OID, uuid4, uuid5

from psycopg import sql

from scripts.lifecycle.audit import audit

# Every run is asked about this moment, so that an edge is an edge and not a race with the clock.
AS_OF = datetime(2026, 1, 31, 2, 0, 0, tzinfo=UTC)
ANNA, BEN, CLEO = "anna@example.com", "ben@example.com", "cleo@example.com"

THING_COLUMNS = "id bigint PRIMARY KEY, made_at timestamptz, person text, kind text"


@dataclass(frozen=True)
class JobRun:
    """What an operator sees of a run."""

    code: int
    lines: list[dict[str, Any]]

    @property
    def closing(self) -> dict[str, Any]:
        return self.lines[-1]

    def event(self, name: str) -> dict[str, Any]:
        """Return the one line of this event."""
        (line,) = self.events(name)
        return line

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == name]


def read_lines(text: str) -> list[dict[str, Any]]:
    """Parse JSON lines as strictly as a log store does: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def ago(**period: float) -> datetime:
    """Return a moment that lies so long before AS_OF."""
    return AS_OF - timedelta(**period)


def key_of(name: str) -> str:
    """Return the id of the row with this name."""
    return str(uuid5(NAMESPACE_OID, name))


def add_quiz(admin, name, *, delivered=None, created=None, paid=False, person=ANNA, user=None):
    """Insert quiz answers that go by a name; the moments are aware, the columns hold naive UTC."""
    admin.execute(
        "INSERT INTO quiz_responses (id, user_id, email, normalized_email, quiz_data, calorie_target, created_at,"
        " payment_id, pdf_delivered_at) VALUES (%s, %s, %s, %s, jsonb_build_object('name', %s::text), 1800,"
        " %s::timestamptz AT TIME ZONE 'UTC', %s, %s::timestamptz AT TIME ZONE 'UTC')",
        (
            *(key_of(name), user, person, person, name, created or ago(days=9)),
            *(f"pay_{name}" if paid else None, delivered),
        ),
    )
    return key_of(name)


def quiz_left(admin) -> set[str]:
    return {name for (name,) in admin.execute("SELECT quiz_data ->> 'name' FROM quiz_responses")}


def add_things(admin, first, last, *, days=90.0, table="things"):
    """Insert things with consecutive ids, so many days old."""
    admin.execute(
        sql.SQL(
            "INSERT INTO {} (id, made_at) SELECT n, %s::timestamptz - make_interval(secs => n)"
            " FROM generate_series(%s::bigint, %s::bigint) n"
        ).format(sql.Identifier(table)),
        (ago(days=days), first, last),
    )


def left(admin, table="things", column="id") -> list[Any]:
    """Return the ids that are still there, in order."""
    query = sql.SQL("SELECT {column} FROM {table} ORDER BY {column}")
    names = {"column": sql.Identifier(column), "table": sql.Identifier(table)}
    return [key for (key,) in admin.execute(query.format(**names))]


def audited(admin, resource_type="public.things", action="delete") -> list[str]:
    """Return the ids that the audit names, in order."""
    return [
        key
        for (key,) in admin.execute(
            "SELECT resource_id FROM ops.audit_log WHERE resource_type = %s AND action = %s ORDER BY resource_id",
            (resource_type, action),
        )
    ]


def record(admin, policy="things") -> dict[str, Any]:
    """Return the newest run record of a policy, by column."""
    cursor = admin.execute(
        "SELECT * FROM ops.job_runs WHERE policy = %s ORDER BY started_at DESC, id LIMIT 1", (policy,)
    )
    return dict(zip((column.name for column in cursor.description), cursor.fetchone(), strict=True))


def queue_items(admin, columns="item_type, resource_id, occurrences") -> list[tuple[Any, ...]]:
    query = sql.SQL("SELECT {} FROM ops.manual_resolution_queue ORDER BY item_type, resource_id")
    return admin.execute(query.format(sql.SQL(columns))).fetchall()


ENTRY = {"actor": "system:tests", "action": "delete", "resource_type": "public.things", "reason": "a_test"}


def append_batches(db, number, ids=("1", "2")):
    """Append so many batches to the audit, each in a transaction of its own."""
    for _ in range(number):
        with db.transaction() as connection:
            audit.append(connection, **ENTRY, resource_ids=list(ids), run_id=uuid4(), metadata={"a": 1})


def seal_anew(admin):
    """Seal the chain as it stands, as ops.append_audit would have; for tests that set its times."""
    admin.execute("SET session_replication_role = replica")
    admin.execute("""
        DO $$ DECLARE b record; s bytea := ''; BEGIN
          FOR b IN SELECT * FROM ops.audit_batches ORDER BY seq LOOP
            s := sha256(s || record_send(ROW(b.seq, b.id, b.occurred_at, b.actor, b.action, b.resource_type, b.reason,
                                             b.run_id, b.resource_ids, b.metadata)));
            UPDATE ops.audit_batches SET seal = s WHERE seq = b.seq;
          END LOOP;
          UPDATE ops.audit_head SET seal = s;
        END $$""")


def policy(**changes: Any) -> dict[str, Any]:
    """Return a policy on public.things that keeps 30 days, with changes."""
    return {
        "description": "Things that a test made",
        "table": "public.things",
        "key": "id",
        "person": None,
        "action": "delete",
        "rules": {"old": {"anchor": "made_at", "keep": "30 days"}},
        "dependants": [],
        "legal_basis": "none",
        "owner": "tests",
        "decision": "none",
        "max_rows": 100_000,
        "max_poison": 20,
        "batch": {"rows": 1000, "lock_timeout": "500 milliseconds", "statement_timeout": "60 seconds"},
        "overdue": {"warning": "25 hours", "critical": "48 hours"},
    } | changes


POLICY_TEXT = """\
# A comment.
policies:
  things:
    description: Things
    table: public.things
    key: id
    person: null
    action: delete
    rules:
      old: {when: {kind: red}, anchor: made_at, keep: 30 days}
    exceptions:
      odd:
        when: {kind: set}
        queue: {item_type: odd_thing, priority: low, anchor: made_at, after: 1 day, reason: is odd}
    dependants:
      - {table: public.notes, column: thing_id, action: delete}
    legal_basis: none
    owner: me
    decision: page
    max_rows: 10
    max_poison: 0
    batch: {rows: 10, lock_timeout: 1 second, statement_timeout: 1 minute}
    overdue: {warning: 1 hour, critical: 2 hours}
jobs:
  cleanup_things: {schedule: "0 2 * * *", budget: 60 seconds, lock: "lock:cleanup:things"}
"""
