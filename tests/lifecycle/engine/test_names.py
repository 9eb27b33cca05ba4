"""Names that need quotation marks are served like any other: blanks, capitals, dots, quotation marks, percent signs."""

from __future__ import annotations

import pytest
import yaml
from psycopg import sql

from backend import migrate
from backend.grants import Given
from scripts.lifecycle.policy.policy_file import parse_policies
from scripts.lifecycle.policy.tables import parts_of, table_identifier
from scripts.utils.errors import Misconfigured
from tests.lifecycle.support import POLICY_TEXT, ago, audited, policy

TABLES = [
    '"My Schema"."order items"',
    "My Schema.order items",
    '"My Schema"."dotted.name"',
    '"odd""schema"."quoted""name"',
    '"50% %s"."100%(x)s %"',
    "50%.%s",
]
ANCHOR, KEY, KIND, GONE = "made % at", "Key %s", 'a "kind" %(x)s', "gone % at"


@pytest.mark.parametrize(
    ("written", "known_as", "quoted"),
    [
        ("public.things", "public.things", '"public"."things"'),
        ("My Schema.order items", "My Schema.order items", '"My Schema"."order items"'),
        ('"My Schema"."order items"', "My Schema.order items", '"My Schema"."order items"'),
        ('"public"."a.b"', "public.a.b", '"public"."a.b"'),
        ('"public"."say ""hello"""', 'public.say "hello"', '"public"."say ""hello"""'),
    ],
)
def test_a_table_is_known_by_one_name(written, known_as, quoted):
    text = POLICY_TEXT.replace("table: public.things", f"table: {written!r}")

    table = parse_policies(text, "a test").policies["things"].table

    assert table == known_as
    assert table_identifier(table).as_string(None) == quoted


@pytest.mark.parametrize("written", ['"a.b"."c"', "a.b.c", 'public."things"', '"things"', "public. things"])
def test_what_could_be_read_as_two_tables_is_refused(written):
    with pytest.raises(Misconfigured, match="is not a table with its schema"):
        parse_policies(POLICY_TEXT.replace("table: public.things", f"table: {written!r}"), "a test")


@pytest.fixture(params=TABLES)
def odd(request, admin):
    """A table with odd names: rows 1 and 2 are due, 2 is excepted, 3 is of today; children refer to it."""
    (table,) = parse_policies(POLICY_TEXT.replace("public.things", repr(request.param)), "a test").policies.values()
    name, schema = sql.Identifier(*parts_of(table.table)), sql.Identifier(table.table.partition(".")[0])
    anchor, key, kind, gone = map(sql.Identifier, (ANCHOR, KEY, KIND, GONE))
    for statement in (
        "CREATE SCHEMA {schema}",
        "CREATE TABLE {name} ({key} bigint PRIMARY KEY, {anchor} timestamptz NOT NULL, {kind} text, {gone} timestamptz)",
        "CREATE INDEX ON {name} ({anchor})",
        "CREATE TABLE {schema}.{kind} ({gone} bigint PRIMARY KEY, {key} bigint REFERENCES {name} ON DELETE CASCADE)",
        "CREATE INDEX ON {schema}.{kind} ({key})",
        "INSERT INTO {name} VALUES (1, now() - interval '9 years', 'red', NULL)",
        "INSERT INTO {name} VALUES (2, now() - interval '9 years', '50%', NULL), (3, now(), 'red', NULL)",
        "INSERT INTO {schema}.{kind} VALUES (11, 1), (12, 2)",
    ):
        names = {"name": name, "schema": schema, "anchor": anchor, "key": key, "kind": kind, "gone": gone}
        admin.execute(sql.SQL(statement).format(**names))
    return request.param, table.table, name, admin


def rules_of(written, **changes):
    return policy(
        table=written,
        key=KEY,
        rules={"old": {"anchor": ANCHOR, "keep": "30 days"}},
        exceptions={"spared": {"when": {KIND: "50%"}}},
        **changes,
    )


def keys(admin, name, where="true"):
    query = sql.SQL("SELECT {} FROM {} t WHERE " + where + " ORDER BY 1").format(sql.Identifier(KEY), name)
    return [key for (key,) in admin.execute(query)]


def test_rows_go_with_their_dependants_and_a_hold_keeps_one(apply, odd):
    written, table, name, admin = odd
    admin.execute(sql.SQL("ALTER TABLE {} RENAME TO children").format(sql.Identifier(table.partition(".")[0], KIND)))
    schema = table.partition(".")[0].replace('"', '""')
    dependant = {"table": f'"{schema}"."children"', "column": KEY, "action": "delete", "key": GONE}
    rules = rules_of(written, dependants=[dependant])

    predicted = apply({"odd": rules}, "--dry-run")
    run = apply({"odd": rules})

    assert (predicted.code, predicted.closing["records_to_delete"]) == (0, 1)
    assert (run.code, run.closing["records_deleted"]) == (0, 1)
    assert keys(admin, name) == [2, 3]
    assert audited(admin, table) == ["1"]
    assert audited(admin, f"{table.partition('.')[0]}.children") == ["11"]


def test_a_hold_on_a_row_is_heeded(apply, odd):
    written, table, name, admin = odd
    admin.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, placed_by, reason)"
        " VALUES ('row', %s, '1', 'operator:olga', 'a court asks')",
        (table,),
    )
    rules = rules_of(written, action="soft_delete", soft_delete={"deleted_at": GONE})

    run = apply({"odd": rules})

    assert (run.code, run.closing["records_deleted"], run.closing["records_remaining"]) == (0, 0, 0)
    assert keys(admin, name, f't."{GONE}" IS NULL') == [1, 2, 3]


@pytest.mark.parametrize("treatment", [{"constant": "100%"}, None, "pseudonym"])
def test_columns_are_marked_and_anonymised(apply, odd, monkeypatch, treatment):
    monkeypatch.setenv("AUDIT_PSEUDONYM_KEY", f"k1:{'a' * 64}")
    written, _, name, admin = odd
    rules = rules_of(written, action="anonymize", anonymize={"marker": GONE, "columns": {KIND: treatment}})

    run = apply({"odd": rules})

    assert (run.code, run.closing["records_deleted"]) == (0, 1)
    assert keys(admin, name, f't."{GONE}" IS NOT NULL') == [1]


def test_the_check_and_the_grants_know_them(odd, database, tmp_path):
    written, _, _, _ = odd
    rules = rules_of(written, action="soft_delete", soft_delete={"deleted_at": GONE})
    path = tmp_path / "policies.yaml"
    path.write_text(yaml.safe_dump({"policies": {"odd": rules}, "jobs": {}}, allow_unicode=True))

    assert any("GRANT" in statement for statement in migrate.grant(database.superuser_url, path).statements)
    assert migrate.grant(database.superuser_url, path) == Given([], [])


def test_a_partition_of_such_a_table_is_dropped_whole(apply, admin):
    admin.execute(
        'CREATE SCHEMA "My Schema"; CREATE TABLE "My Schema"."order items" ("Key %s" bigint, "made % at" timestamptz,'
        ' PRIMARY KEY ("Key %s", "made % at")) PARTITION BY RANGE ("made % at");'
        ' CREATE TABLE "My Schema"."old items" PARTITION OF "My Schema"."order items"'
        " FOR VALUES FROM ('2000-01-01') TO ('2001-01-01');"
        ' CREATE TABLE "My Schema"."new items" PARTITION OF "My Schema"."order items" DEFAULT;'
        ' CREATE UNIQUE INDEX ON "My Schema"."old items" ("Key %s");'
        ' CREATE UNIQUE INDEX ON "My Schema"."new items" ("Key %s")'
    )
    insert = sql.SQL('INSERT INTO "My Schema"."order items" VALUES ({}, {})')
    for number, moment in ((1, "2000-05-05"), (2, "2000-06-06"), (3, ago(hours=1))):
        admin.execute(insert.format(sql.Literal(number), sql.Literal(moment)))

    run = apply(
        {
            "odd": policy(
                table='"My Schema"."order items"', key=KEY, rules={"old": {"anchor": ANCHOR, "keep": "30 days"}}
            )
        }
    )

    assert (run.code, run.closing["records_deleted"]) == (0, 2)
    assert keys(admin, sql.Identifier("My Schema", "order items")) == [3]
