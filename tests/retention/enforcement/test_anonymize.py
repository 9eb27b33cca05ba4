"""Anonymising: what goes, what stays, who is left alone, and that it is done once."""

import hashlib
from uuid import uuid4

import pytest
import yaml

from scripts.lifecycle.engine.batches import BatchWriter
from scripts.lifecycle.engine.gated import Context
from scripts.lifecycle.engine.preflight import preflight
from scripts.lifecycle.engine.survey import survey
from scripts.lifecycle.engine.windows import chosen_keys
from scripts.lifecycle.policy.policy_file import load_policies, parse_policies
from scripts.utils.db_utils import Database
from scripts.utils.errors import Misconfigured
from tests.lifecycle.support import AS_OF
from tests.retention.enforcement.conftest import KEY, policy

COLUMNS = {
    "email": "pseudonym",
    "name": {"constant": "removed"},
    "phone": None,
    "ip": "truncate_ip",
    "address": "truncate_ip",
}


def orders(**changes):
    section = {"marker": "anonymized_at", "columns": COLUMNS} | changes
    return {"orders": policy("public.orders", action="anonymize", person="email", anonymize=section)}


@pytest.fixture
def table(admin):
    """Orders 1 to 4 are due; 5 is young."""
    admin.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY, made_at timestamptz NOT NULL, email text, name varchar(20) NOT NULL,"
        " phone text, ip varchar(45), address inet, amount int NOT NULL DEFAULT 7, anonymized_at timestamp);"
        " CREATE INDEX ON orders (made_at)"
    )
    admin.execute(
        "INSERT INTO orders (id, made_at, email, name, phone, ip, address) SELECT n, %s::timestamptz"
        " - make_interval(days => CASE WHEN n < 5 THEN 90 ELSE 1 END), CASE n WHEN 3 THEN 'ben@example.com'"
        " ELSE 'anna@example.com' END, 'Anna', '0123', CASE n WHEN 2 THEN '2001:db8:85a3:1:2:3:4:5' ELSE '192.0.2.77' END,"
        " '198.51.100.9' FROM generate_series(1, 5) n",
        (AS_OF,),
    )
    return admin


def rows(admin, columns="id, email, name, phone, ip, host(address), amount"):
    return admin.execute(f"SELECT {columns} FROM orders ORDER BY id").fetchall()


UNTOUCHED = ("anna@example.com", "Anna", "0123", "192.0.2.77", "198.51.100.9", 7)


def test_every_treatment_and_the_rows_that_stay_as_they_are(table, write, enforce):
    run = enforce(write(orders()))

    found = {row[0]: row[1:] for row in rows(table)}
    assert (run.code, run.closing["records_deleted"], run.closing["records_remaining"]) == (0, 4, 0)
    assert found[5] == UNTOUCHED
    email, *others = found[1]
    assert email.startswith("k1:")
    assert len(email) == 3 + 64
    assert others == ["removed", None, "192.0.2.0", "198.51.100.0", 7]
    assert found[2][3] == "2001:db8:85a3::"
    assert found[4][0] == email, "the same person has the same pseudonym"
    assert found[3][0] != email
    marked = table.execute("SELECT count(*) FILTER (WHERE anonymized_at IS NOT NULL), count(*) FROM orders").fetchone()
    assert marked == (4, 5)
    audited = table.execute(
        "SELECT action, resource_type, reason, resource_id FROM ops.audit_log ORDER BY 4"
    ).fetchall()
    assert audited == [("anonymize", "public.orders", "retention_policy:orders/old", str(n)) for n in range(1, 5)]
    assert KEY[3:] not in str(run.lines)


@pytest.mark.parametrize("marker", ["anonymized_at", None])
def test_a_row_that_was_anonymised_is_not_due_again(table, write, enforce, marker):
    path = write(orders(marker=marker))
    assert enforce(path).closing["records_deleted"] == 4
    before = rows(table, "*")

    again = enforce(path)

    assert (again.code, again.closing["records_deleted"], again.closing["records_remaining"]) == (0, 0, 0)
    assert rows(table, "*") == before


def test_a_new_value_is_due_again_where_the_values_say_it_and_old_pseudonyms_stay(table, write, enforce):
    path = write(orders(marker=None))
    enforce(path)
    former = rows(table, "email")
    table.execute("UPDATE orders SET phone = '0199' WHERE id = 2")

    again = enforce(path)

    assert again.closing["records_deleted"] == 1
    assert rows(table, "email") == former
    assert rows(table, "phone")[1] == (None,)


def test_holds_keep_row_and_person(table, write, enforce):
    table.execute(
        "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by) VALUES"
        " ('row', 'public.orders', '1', 'a case', 'olga')"
    )
    table.execute(
        "INSERT INTO ops.legal_holds (scope, person, reason, placed_by) VALUES ('person', 'ben@example.com', 'x', 'olga')"
    )
    path = write(orders())

    run = enforce(path)

    assert (run.closing["records_deleted"], run.closing["records_held"]) == (2, 2)
    found = {row[0]: row[1] for row in rows(table)}
    assert (found[1], found[3]) == ("anna@example.com", "ben@example.com")


def test_a_dry_run_says_so_many_and_changes_nothing(table, write, enforce):
    before = rows(table, "*")

    run = enforce(write(orders()), "--dry-run")

    assert (run.code, run.closing["records_to_delete"], rows(table, "*")) == (0, 4, before)


def test_an_address_that_is_none_leaves_nothing(table, write, enforce):
    table.execute("UPDATE orders SET ip = 'unknown, 10.0.0.1' WHERE id = 1")
    path = write(orders(marker=None))

    assert enforce(path).code == 0
    assert rows(table, "ip")[0] == ("0.0.0.0",)
    assert enforce(path).closing["records_deleted"] == 0


def test_a_row_that_is_refused_goes_to_a_person_and_the_others_are_done(table, write, enforce):
    table.execute("ALTER TABLE orders ADD CHECK (id <> 2 OR phone IS NOT NULL)")

    run = enforce(write(orders()))

    assert (run.code, run.closing["records_deleted"], run.closing["records_queued"]) == (4, 3, 1)
    assert rows(table)[1][1:] == (*UNTOUCHED[:3], "2001:db8:85a3:1:2:3:4:5", *UNTOUCHED[4:])


def test_a_value_that_changes_between_reading_and_writing_is_left_for_the_closing_pass(table, write, database):
    """Its pseudonym would be that of a former value. The person writes while the pseudonyms are worked out."""
    (rules,) = load_policies(write(orders())).policies.values()

    def pseudonym(text):
        table.execute("UPDATE orders SET email = 'new@example.com' WHERE id = 2")
        return f"k1:{hashlib.sha256(text.encode()).hexdigest()}"

    pool = Database(database.url, application_name="tests", max_size=2)
    pool.open()
    try:
        selection = pool.read(lambda link: preflight(link, rules, AS_OF)).selection
        assert pool.read(lambda link: survey(link, selection)).removable == 4
        writer = BatchWriter(pool, selection, Context(None, 0, "tests", uuid4()), pseudonym)
        outcome = writer.run(chosen_keys(selection, ["1", "2", "3", "4"]), excluded=[])
        writer.close()
    finally:
        pool.close()

    assert outcome.deleted == 3
    assert rows(table)[1][1:] == ("new@example.com", "Anna", "0123", "2001:db8:85a3:1:2:3:4:5", "198.51.100.9", 7)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"name": None}, "public.orders.name may not be null"),
        ({"name": "pseudonym"}, "name holds 20 characters, a pseudonym up to 81"),
        ({"amount": "pseudonym"}, "amount is integer: a pseudonym is a text"),
        ({"amount": "truncate_ip"}, "amount is integer: no IP address"),
        ({"name": {"constant": "x" * 21}}, "name holds 20 characters, the constant has 21"),
        ({"nobody": None}, "column public.orders.nobody does not exist"),
    ],
)
def test_what_the_table_contradicts_is_found_before_the_first_row(table, write, enforce, columns, said):
    before = rows(table, "*")

    run = enforce(write(orders(columns=columns), grant=False))

    table.execute("GRANT SELECT, UPDATE ON orders TO lifecycle_jobs")
    run = enforce(write(orders(columns=columns), grant=False))

    assert (run.code, rows(table, "*")) == (1, before)
    assert said in run.closing["error"]


def test_without_its_key_nothing_is_done(table, write, enforce, monkeypatch):
    monkeypatch.delenv("AUDIT_PSEUDONYM_KEY")

    run = enforce(write(orders()))

    assert (run.code, rows(table)[0][1]) == (2, "anna@example.com")
    assert "AUDIT_PSEUDONYM_KEY" in run.closing["error"]


def parse(**changes):
    return parse_policies(yaml.safe_dump({"policies": {"orders": policy(**changes)}, "jobs": {}}), "file")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "action anonymize and the section anonymize belong together"),
        ({"anonymize": {"marker": None, "columns": {}}}, "at least 1 item"),
        ({"anonymize": {"columns": {"email": None}}}, "marker"),
        ({"anonymize": {"marker": None, "columns": {"email": "shred"}}}, "is not a treatment"),
        ({"anonymize": {"marker": None, "columns": {"id": None}}}, "must name neither the key"),
        ({"anonymize": {"marker": "email", "columns": {"email": None}}}, "must name neither the key"),
    ],
)
def test_a_mistake_in_the_file_is_named(changes, said):
    with pytest.raises(Misconfigured, match=said):
        parse(action="anonymize", **changes)


def test_what_is_retained_is_counted_and_never_touched(table, write, enforce):
    table.execute("REVOKE ALL ON orders FROM lifecycle_jobs")
    kept = {"rules": {"kept": {"anchor": "made_at", "keep": "forever"}}}
    short = {name: policy("public.orders", action="retain")[name] for name in ("description", "table", "key", "person")}
    short |= dict.fromkeys(("legal_basis", "owner", "decision"), "x") | {"action": "retain"} | kept
    before = rows(table, "*")

    run = enforce(write({"orders": short}))

    assert (run.code, run.closing["records_deleted"], rows(table, "*")) == (0, 0, before)
    told = run.event("policy_retained")
    assert (told["rows"], told["oldest"][:10]) == (5, "2025-11-02")
    assert table.execute("SELECT status, stop_reason FROM ops.job_runs").fetchall() == [("completed", "retained")]
    rights = table.execute(
        "SELECT has_column_privilege('lifecycle_jobs', 'orders', 'made_at', 'SELECT'),"
        " has_any_column_privilege('lifecycle_jobs', 'orders', 'UPDATE')"
    ).fetchone()
    assert rights == (True, False)


def test_what_is_retained_has_no_period():
    with pytest.raises(Misconfigured, match="no period that ends"):
        parse(action="retain")
