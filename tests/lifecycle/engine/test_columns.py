"""Tables of other applications: keys, anchors and conditions of every type, by YAML alone."""

from __future__ import annotations

import pytest
from psycopg import sql

from tests.lifecycle.support import ago, audited, left, policy, queue_items, record

UUIDS = [f"00000000-0000-4000-8000-{n:012d}" for n in range(6)]
NUMBERS = ["-3", "7", "9", "10", "100", "20000"]
KEYS = {
    "bigint": NUMBERS,
    "integer": NUMBERS,
    "smallint": NUMBERS,
    "numeric": NUMBERS,
    "uuid": UUIDS,
    "text": UUIDS,
    "varchar(36)": UUIDS,
    "char(36)": UUIDS,
    'text COLLATE "C"': UUIDS,
}


def make(admin, name, key_type):
    """Create a table with names that need quotes."""
    admin.execute(f'CREATE TABLE {name} ("The Key" {key_type} PRIMARY KEY, "made at" timestamp)')
    admin.execute(f'CREATE INDEX ON {name} ("made at")')


def insert(admin, name, key, days):
    admin.execute(f"INSERT INTO {name} VALUES (%s, %s)", (key, ago(days=days).replace(tzinfo=None)))


def on(name):
    rules = {"old": {"anchor": "made at", "keep": "30 days"}}
    return policy(table=f"public.{name}", key="The Key", rules=rules)


@pytest.fixture
def tables(admin):
    """A table for each type of key: five due rows of one moment, the fifth of them held, and a fresh one."""
    names = {f"odd_{number}": key_type for number, key_type in enumerate(KEYS)}
    for name, key_type in names.items():
        make(admin, name, key_type)
        for key in KEYS[key_type][:5]:
            insert(admin, name, key, 31)
        insert(admin, name, KEYS[key_type][5], 29)
        admin.execute(
            "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
            " VALUES ('row', %s, %s, 'lawsuit', 'ops')",
            (f"public.{name}", KEYS[key_type][4]),
        )
    return names


@pytest.mark.parametrize("batch", ["1", "1000"])
def test_keys_of_many_types(apply, admin, tables, batch):
    run = apply({name: on(name) for name in tables}, "--batch-size", batch)

    assert (run.code, run.closing["records_held"]) == (0, len(tables))
    for name, key_type in tables.items():
        keys = KEYS[key_type]
        assert sorted(str(key) for key in left(admin, name, "The Key")) == sorted(keys[4:]), key_type
        assert audited(admin, f"public.{name}") == sorted(keys[:4]), key_type


def test_a_refused_row_is_found_by_keys_of_many_types(apply, admin, tables):
    admin.execute("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$")
    for name, key_type in tables.items():
        statement = sql.SQL(
            'CREATE TRIGGER refuse BEFORE DELETE ON {} FOR EACH ROW WHEN (OLD."The Key" = {}) EXECUTE FUNCTION refuse()'
        )
        admin.execute(statement.format(sql.Identifier(name), sql.Literal(KEYS[key_type][2])))

    run = apply({name: on(name) for name in tables})

    assert (run.code, run.closing["records_deleted"]) == (4, 3 * len(tables))
    assert sorted(queue_items(admin, "resource_type, resource_id, occurrences")) == [
        (f"public.{name}", KEYS[key_type][2], 1) for name, key_type in tables.items()
    ]


PERSONAL = [
    ("text", "anna@example.com"),
    ("varchar(80)", "anna@example.com"),
    ("char(36)", "anna@example.com"),
    ("mailbox", "anna@example.com"),
    # Eight, four, four, four and twelve characters, and an address all the same.
    ("text", "marie@ab-cdef-ghij-klmn-longname.com"),
]


def test_a_key_that_may_be_personal_is_never_audited_and_never_deleted(apply, admin):
    admin.execute("CREATE DOMAIN mailbox AS text")
    names = [f"odd_{number}" for number, _ in enumerate(PERSONAL)]
    for name, (key_type, key) in zip(names, PERSONAL, strict=True):
        make(admin, name, key_type)
        insert(admin, name, key, 31)
        insert(admin, name, UUIDS[0], 31)

    run = apply({name: on(name) for name in names})

    assert (run.code, run.closing["records_deleted"], run.closing["stop_reason"]) == (1, 0, "preflight_failed")
    for name in names:
        assert f"1 due rows of public.{name} have a text key that is no UUID" in record(admin, name)["error"]
        assert len(left(admin, name, "The Key")) == 2
    assert admin.execute("SELECT count(*) FROM ops.audit_log").fetchone() == (0,)
    assert "@" not in str(run.lines)


def test_a_key_that_may_be_personal_stops_nothing_before_its_row_is_due(apply, admin):
    admin.execute("CREATE TABLE odd (id text PRIMARY KEY, made_at timestamptz); CREATE INDEX ON odd (made_at)")
    admin.execute("INSERT INTO odd VALUES ('anna@example.com', %s), (%s, %s)", (ago(days=1), UUIDS[0], ago(days=31)))

    assert apply({"odd": policy(table="public.odd")}).code == 0
    assert left(admin, "odd") == ["anna@example.com"]


def test_an_upper_case_uuid_is_a_uuid(apply, admin):
    admin.execute("CREATE TABLE odd (id text PRIMARY KEY, made_at timestamptz); CREATE INDEX ON odd (made_at)")
    admin.execute("INSERT INTO odd VALUES ('ABCDEF01-0000-4000-8000-00000000ABCD', %s)", (ago(days=31),))

    assert apply({"odd": policy(table="public.odd")}).closing["records_deleted"] == 1


def test_anchors_with_a_precision(apply, admin):
    policies = {}
    for name, precision in {"whole": "timestamp(0)", "thousandths": "timestamptz(3)"}.items():
        admin.execute(
            f"CREATE TABLE {name} (id int PRIMARY KEY, made_at {precision}); CREATE INDEX ON {name} (made_at)"
        )
        admin.execute(f"INSERT INTO {name} VALUES (1, '2025-01-01'), (2, '2025-01-01'), (3, '2026-01-30')")
        policies[name] = policy(table=f"public.{name}")

    assert apply(policies, "--batch-size", "1").code == 0
    assert (left(admin, "whole"), left(admin, "thousandths")) == ([3], [3])
