"""A row that is rescued in another table while its batch is at work: what it looks up changes, and it stays."""

import pytest
import yaml

from backend import migrate
from tests.faults.stage import SCRIPT as CLEANUP
from tests.faults.stage import wait_until
from tests.lifecycle.support import audited, left, policy

SCRIPT = CLEANUP.parents[1] / "retention" / "enforce_retention_policies.py"
LOCK = "lock:retention:enforce_retention_policies"

pytestmark = pytest.mark.pooled

ORDER = {"take": "sent_at", "from": "public.orders", "same": {"id": "thing"}}
TENANT = {"take": "keeps", "unit": "days", "from": "public.tenants", "same": {"kind": "name"}, "else": "1 day"}
RULES = {
    "anchor": {"old": {"anchor": ORDER, "keep": "1 day"}},
    "period": {"old": {"anchor": "made_at", "keep": TENANT}},
    "condition": {
        "old": {"when": {"sent": ORDER | {"is": "set"}}, "anchor": "made_at", "keep": "1 day"},
    },
}
# What rescues thing 7, and whether others are rescued with it.
RESCUES = [
    ("anchor", "UPDATE orders SET sent_at = NULL WHERE thing = 7", {7}),
    ("anchor", "UPDATE orders SET sent_at = now() WHERE thing = 7", {7}),
    ("anchor", "DELETE FROM orders WHERE thing = 7", {7}),
    ("anchor", "INSERT INTO orders (thing, sent_at) VALUES (7, now())", {7}),
    ("condition", "UPDATE orders SET sent_at = NULL WHERE thing = 7", {7}),
    ("period", "UPDATE tenants SET keeps = 400 WHERE name = 'b'", {7}),
    ("period", "INSERT INTO tenants VALUES ('c', 400)", {8}),
    ("period", "DELETE FROM tenants WHERE name = 'b'; INSERT INTO tenants VALUES ('b', 400)", {7}),
]
HEAD = "SELECT FROM ops.audit_head FOR UPDATE"


@pytest.fixture
def admin(database):
    """Ten things that are due by every rule, their orders, and two tenants: thing 7 is b's, thing 8 is nobody's."""
    admin = database.superuser()
    admin.execute(
        "CREATE TABLE things (id bigint PRIMARY KEY, made_at timestamptz, kind text); CREATE INDEX ON things (made_at);"
        "CREATE TABLE orders (id bigserial PRIMARY KEY, thing bigint, sent_at timestamptz);"
        "CREATE INDEX ON orders (thing); CREATE TABLE tenants (name text PRIMARY KEY, keeps int);"
        "INSERT INTO tenants VALUES ('a', 2), ('b', 2);"
        "INSERT INTO things SELECT n, now() - interval '9 days', CASE n WHEN 7 THEN 'b' WHEN 8 THEN 'c' ELSE 'a' END"
        "  FROM generate_series(1, 10) n;"
        "INSERT INTO orders (thing, sent_at) SELECT id, made_at FROM things"
    )
    return admin


@pytest.fixture
def purging(database, start, tmp_path):
    """Carry a policy out in a process of its own."""

    def purge(**changes):
        path = tmp_path / "policies.yaml"
        batch = {"rows": 1000, "lock_timeout": "50 seconds", "statement_timeout": "100 seconds"}
        job = {"schedule": "0 2 * * *", "budget": "3600 seconds", "policies": ["things"], "lock": LOCK}
        path.write_text(
            yaml.safe_dump(
                {
                    "policies": {"things": policy(batch=batch, **changes)},
                    "jobs": {"enforce_retention_policies": job},
                }
            )
        )
        migrate.grant(database.superuser_url, path)
        return start("--policy-file", str(path), "--batch-size", "1000", script=SCRIPT)

    return purge


def waits(admin, locktype):
    """Whether a session waits for such a lock."""
    query = (
        "SELECT count(*) > 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted"
        " AND l.locktype = %s AND a.datname = current_database()"
    )
    return lambda: admin.execute(query, (locktype,)).fetchone()[0]


@pytest.mark.parametrize(("rule", "rescue", "stay"), RESCUES)
@pytest.mark.parametrize("frozen", ["at a row", "at the end"])
def test_a_row_is_rescued_in_another_table_while_its_batch_is_frozen(
    admin, database, purging, rule, rescue, stay, frozen
):
    # At a row: the DELETE has its snapshot and waits for a lock on thing 3; it never looks at the other table again.
    # At the end: every row is deleted, and the transaction waits for the audit's head before its COMMIT.
    other = database.superuser()
    other.execute("BEGIN")
    other.execute("SELECT FROM things WHERE id = 3 FOR UPDATE" if frozen == "at a row" else HEAD)
    running = purging(rules=RULES[rule])
    wait_until(waits(admin, "transactionid"), what="the batch at the lock")

    admin.execute(rescue)
    other.execute("ROLLBACK")
    running.finish(0)

    assert left(admin) == sorted(stay)
    assert set(audited(admin)) == {str(n) for n in range(1, 11)} - {str(n) for n in stay}
    assert [line["error"] for line in running.events if line["event"] == "batch_retry"] == ["Rescued"]


@pytest.mark.parametrize(
    "change", ["UPDATE orders SET sent_at = sent_at - interval '1 day'", "VACUUM orders", "SELECT 1"]
)
def test_a_change_that_rescues_no_row_costs_no_batch(admin, database, purging, change):
    other = database.superuser()
    other.execute("BEGIN")
    other.execute(HEAD)
    running = purging(rules=RULES["anchor"])
    wait_until(waits(admin, "transactionid"), what="the batch at the lock")

    admin.execute(change)
    other.execute("ROLLBACK")
    running.finish(0)

    assert left(admin) == []
    assert not running.find("batch_retry")


def test_a_row_that_becomes_due_in_another_table_meanwhile_goes_at_the_latest_with_the_next_run(
    admin, database, purging
):
    admin.execute("UPDATE orders SET sent_at = NULL WHERE thing = 7")
    other = database.superuser()
    other.execute("BEGIN")
    other.execute("SELECT FROM things WHERE id = 3 FOR UPDATE")
    running = purging(rules=RULES["anchor"])
    wait_until(waits(admin, "transactionid"), what="the batch at the lock")

    admin.execute("UPDATE orders SET sent_at = now() - interval '9 days' WHERE thing = 7")
    other.execute("ROLLBACK")

    running.finish(0)
    assert left(admin) == []  # the closing pass


def test_a_row_stays_that_is_rescued_in_its_own_table_and_in_another_one_at_once(admin, database, purging):
    # The batch waits for thing 7 itself. Its new version looks up another order, which was sent long ago when the
    # DELETE began, and no longer is when the row is free.
    admin.execute("ALTER TABLE things ADD wanted bigint; UPDATE things SET wanted = id")
    admin.execute("INSERT INTO orders (thing, sent_at) VALUES (99, now() - interval '9 days')")
    other = database.superuser()
    other.execute("BEGIN")
    other.execute("UPDATE things SET wanted = 99 WHERE id = 7")
    other.execute("UPDATE orders SET sent_at = now() WHERE thing = 99")
    running = purging(rules={"old": {"anchor": ORDER | {"same": {"wanted": "thing"}}, "keep": "1 day"}})
    wait_until(waits(admin, "transactionid"), what="the batch at the row")

    other.execute("COMMIT")

    running.finish(0)
    assert left(admin) == [7]
