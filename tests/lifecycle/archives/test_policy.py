"""What a policy must say before it archives, and what the table must be like."""

import pytest
import yaml

from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE, parse_policies
from scripts.utils.errors import Misconfigured

ARCHIVE = {"personal": ["customer_email", "normalized_email"], "keep": "3 years", "rows": 20000}
CHILDREN = {"table": "public.refunds", "column": "payment", "action": "delete"}


def refusal(**changes):
    document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    policy = document["policies"]["payment_transactions"] | changes
    document["policies"]["payment_transactions"] = {name: value for name, value in policy.items() if value != "gone"}
    with pytest.raises(Misconfigured) as refused:
        parse_policies(yaml.safe_dump(document), "file")
    return str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"archive": "gone"}, "action archive_then_delete and the section archive belong together"),
        ({"action": "delete"}, "action archive_then_delete and the section archive belong together"),
        ({"archive": ARCHIVE | {"personal": ["customer_email"]}}, "must name the person column"),
        ({"archive": ARCHIVE, "person": None}, "needs the person column"),
        (
            {"archive": ARCHIVE | {"personal": ["normalized_email", "id", "paddle_created_at"]}},
            "must leave out an anchor",
        ),
        ({"archive": ARCHIVE | {"personal": ["normalized_email"] * 2}}, "names a column twice"),
        ({"archive": ARCHIVE | {"rows": 50_001}}, "less than or equal to 50000"),
        ({"archive": ARCHIVE | {"rows": 0}}, "greater than or equal to 1"),
        ({"archive": ARCHIVE | {"keep": "a while"}}, "is not a period"),
        ({"archive": ARCHIVE | {"zip": True}}, "is not a known key"),
        ({"dependants": [CHILDREN]}, "archived without its dependants"),
    ],
)
def test_a_mistake_is_named_before_anything_happens(changes, said):
    assert said in refusal(**changes)


def test_a_column_that_is_not_there_stops_the_policy(run, payments, policy_file):
    payments.fill(3)
    done = run(*policy_file(archive=ARCHIVE | {"personal": ["normalized_email", "full_name"]}))
    assert (done.code, done.closing["stop_reason"]) == (1, "preflight_failed")
    assert "payment_transactions.full_name does not exist" in done.closing["error"]
    payments.balance(left=3)


def test_a_row_that_something_still_refers_to_stays(run, payments):
    payments.fill(3)
    payments.link.execute(
        "CREATE TABLE refunds (id bigint PRIMARY KEY, payment varchar(36) REFERENCES payment_transactions);"
        "CREATE INDEX ON refunds (payment); GRANT SELECT ON refunds TO lifecycle_jobs;"
        f"INSERT INTO refunds VALUES (1, '{payments.id(2)}')"
    )
    done = run()
    assert (done.code, done.closing["records_deleted"]) == (4, 2)
    payments.balance(left=1)


def test_what_a_cascade_would_take_is_refused(run, payments):
    payments.fill(3)
    payments.link.execute(
        "CREATE TABLE refunds (id bigint PRIMARY KEY,"
        " payment varchar(36) REFERENCES payment_transactions ON DELETE CASCADE);"
        "GRANT SELECT ON refunds TO lifecycle_jobs"
    )
    done = run()
    assert (done.code, done.closing["stop_reason"]) == (1, "preflight_failed")
    payments.balance(left=3)


def test_a_cascade_that_is_declared_keeps_the_rows_that_have_children(run, payments, policy_file, grant):
    payments.fill(3)
    payments.link.execute(
        "CREATE TABLE refunds (id bigint PRIMARY KEY,"
        " payment varchar(36) REFERENCES payment_transactions ON DELETE CASCADE);"
        f"CREATE INDEX ON refunds (payment); INSERT INTO refunds VALUES (1, '{payments.id(2)}')"
    )
    flags = policy_file(dependants=[CHILDREN | {"action": "refuse"}])
    grant(flags)
    done = run(*flags)
    assert (done.code, done.closing["records_deleted"]) == (4, 2)
    assert payments.link.execute("SELECT count(*) FROM refunds").fetchone() == (1,)
    payments.balance(left=1)


def test_a_partitioned_table_is_archived_and_restored(run, payments, policy_file, grant):
    payments.fill(10)
    payments.link.execute(
        "ALTER TABLE payment_transactions RENAME TO old_payments;"
        "CREATE TABLE payment_transactions (LIKE old_payments) PARTITION BY HASH (id);"
        "CREATE TABLE payments_0 PARTITION OF payment_transactions FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE payments_1 PARTITION OF payment_transactions FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
        "ALTER TABLE payment_transactions ADD PRIMARY KEY (id);"
        "CREATE INDEX ON payment_transactions (paddle_created_at);"
        "INSERT INTO payment_transactions SELECT * FROM old_payments"
    )
    grant(policy_file())
    done = run("--batch-size", "4")
    assert (done.code, done.closing["records_deleted"]) == (0, 10)
    payments.balance()
    assert run("restore", "--policy", "payment_transactions").code == 0
    assert payments.rows() == payments.due | payments.survivors


def test_a_person_column_that_is_generated_is_worked_out_again(run, payments, grant, policy_file):
    payments.fill(10)
    payments.link.execute(
        "ALTER TABLE payment_transactions DROP COLUMN normalized_email;"
        "ALTER TABLE payment_transactions ADD normalized_email text GENERATED ALWAYS AS (lower(customer_email)) STORED"
    )
    before = payments.rows()
    assert run().code == 0
    assert run("restore", "--policy", "payment_transactions").code == 0
    assert payments.rows() == before


def test_a_policy_without_a_person_needs_no_keys_of_people(run, payments, policy_file):
    payments.fill(10)
    assert run(*policy_file(person=None, archive=ARCHIVE | {"personal": []})).code == 0
    assert payments.link.execute("SELECT count(*) FROM ops.archive_keys WHERE kind = 'person'").fetchone() == (0,)
    assert run("verify").code == 0
    assert run("restore", "--policy", "payment_transactions").code == 0
    assert payments.rows() == payments.due | payments.survivors
