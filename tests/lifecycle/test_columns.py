"""Tables of other applications: keys, anchors and conditions of every type, by YAML alone."""

from __future__ import annotations

import pytest
from psycopg import sql

from tests.lifecycle.support import ago, audited, left, policy, queue_items

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


@pytest.mark.parametrize("key_type", KEYS)
@pytest.mark.parametrize("batch", ["1", "1000"])
def test_keys_of_many_types(apply, admin, key_type, batch):
    keys = KEYS[key_type]
    admin.execute(f'CREATE TABLE odd ("Key" {key_type} PRIMARY KEY, "made at" timestamp)')
    admin.execute('CREATE INDEX ON odd ("made at")')
    for key in keys[:5]:
        # All at one moment: the walk goes on by the key alone.
        admin.execute("INSERT INTO odd VALUES (%s, %s)", (key, ago(days=31).replace(tzinfo=None)))
    admin.execute("INSERT INTO odd VALUES (%s, %s)", (keys[5], ago(days=29).replace(tzinfo=None)))
    admin.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
        " VALUES ('row', 'public.odd', %s, 'lawsuit', 'ops')",
        (keys[4],),
    )
    rules = {"old": {"anchor": "made at", "keep": "30 days"}}

    run = apply({"odd": policy(table="public.odd", key="Key", rules=rules)}, "--batch-size", batch)

    assert (run.code, run.closing["records_deleted"], run.closing["records_held"]) == (0, 4, 1)
    assert sorted(str(key) for key in left(admin, "odd", "Key")) == sorted(keys[4:])
    assert audited(admin, "public.odd") == sorted(keys[:4])


@pytest.mark.parametrize("key_type", ["bigint", "uuid", "char(36)"])
def test_a_refused_row_is_found_by_keys_of_many_types(apply, admin, key_type):
    keys = KEYS[key_type]
    admin.execute(f"CREATE TABLE odd (id {key_type} PRIMARY KEY, made_at timestamptz); CREATE INDEX ON odd (made_at)")
    for number, key in enumerate(keys):
        admin.execute("INSERT INTO odd VALUES (%s, %s)", (key, ago(days=31, seconds=number)))
    refuse = sql.SQL(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON odd FOR EACH ROW WHEN (OLD.id = {}) EXECUTE FUNCTION refuse()"
    )
    admin.execute(refuse.format(sql.Literal(keys[2])))

    run = apply({"odd": policy(table="public.odd")})

    assert (run.code, run.closing["records_deleted"]) == (4, 5)
    assert [str(key) for key in left(admin, "odd")] == [keys[2]]
    assert queue_items(admin, "resource_id, occurrences") == [(keys[2], 1)]


PERSONAL = [
    ("text", "anna@example.com"),
    ("varchar(80)", "anna@example.com"),
    ("char(36)", "anna@example.com"),
    ("mailbox", "anna@example.com"),
    # Eight, four, four, four and twelve characters, and an address all the same.
    ("text", "marie@ab-cdef-ghij-klmn-longname.com"),
]


@pytest.mark.parametrize(("key_type", "key"), PERSONAL)
def test_a_key_that_may_be_personal_is_never_audited_and_never_deleted(apply, admin, key_type, key):
    admin.execute("CREATE DOMAIN mailbox AS text")
    admin.execute(f"CREATE TABLE odd (id {key_type} PRIMARY KEY, made_at timestamptz); CREATE INDEX ON odd (made_at)")
    admin.execute("INSERT INTO odd VALUES (%s, %s)", (key, ago(days=31)))
    admin.execute("INSERT INTO odd VALUES (%s, %s)", (UUIDS[0], ago(days=31)))

    run = apply({"odd": policy(table="public.odd")})

    assert (run.code, run.closing["records_deleted"], run.closing["stop_reason"]) == (1, 0, "preflight_failed")
    assert "1 due rows of public.odd have a text key that is no UUID" in run.closing["error"]
    assert len(left(admin, "odd")) == 2
    assert "@" not in run.closing["error"]


def test_a_key_that_may_be_personal_stops_nothing_before_its_row_is_due(apply, admin):
    admin.execute("CREATE TABLE odd (id text PRIMARY KEY, made_at timestamptz); CREATE INDEX ON odd (made_at)")
    admin.execute("INSERT INTO odd VALUES ('anna@example.com', %s), (%s, %s)", (ago(days=1), UUIDS[0], ago(days=31)))

    assert apply({"odd": policy(table="public.odd")}).code == 0
    assert left(admin, "odd") == ["anna@example.com"]


def test_an_upper_case_uuid_is_a_uuid(apply, admin):
    admin.execute("CREATE TABLE odd (id text PRIMARY KEY, made_at timestamptz); CREATE INDEX ON odd (made_at)")
    admin.execute("INSERT INTO odd VALUES ('ABCDEF01-0000-4000-8000-00000000ABCD', %s)", (ago(days=31),))

    assert apply({"odd": policy(table="public.odd")}).closing["records_deleted"] == 1


@pytest.mark.parametrize("precision", ["timestamp(0)", "timestamptz(3)"])
def test_anchors_with_a_precision(apply, admin, precision):
    admin.execute(f"CREATE TABLE odd (id int PRIMARY KEY, made_at {precision}); CREATE INDEX ON odd (made_at)")
    admin.execute("INSERT INTO odd VALUES (1, '2025-01-01'), (2, '2025-01-01'), (3, '2026-01-30')")

    assert apply({"odd": policy(table="public.odd")}, "--batch-size", "1").code == 0
    assert left(admin, "odd") == [3]
