"""A shop's tables, served by YAML alone: keys of several columns, a partitioned table, enums, timestamptz, other names.

Every script that the suite has for data is run on them: cleanup, orchestrator, archive and restore, holds, monitor.
"""

import json
import re
from pathlib import Path

import pytest
import yaml

from backend import migrate
from tests.inside import run_inside
from tests.lifecycle.archives.payments import MASTER_KEY
from tests.lifecycle.support import JobRun, read_lines
from tests.retention.enforcement.conftest import KEY, LOCK, policy

TENANT = "00000000-0000-4000-8000-00000000000a"

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"

SCHEMA = """
CREATE SCHEMA shop;
CREATE TYPE shop.state AS ENUM ('open', 'paid', 'void');
CREATE TABLE shop."Order" (tenant integer, "No" bigint, state shop.state NOT NULL, placed timestamptz NOT NULL,
    PRIMARY KEY (tenant, "No"));
CREATE INDEX ON shop."Order" (placed);
CREATE TABLE shop.lines (tenant integer, order_no bigint, line smallint, PRIMARY KEY (tenant, order_no, line),
    FOREIGN KEY (tenant, order_no) REFERENCES shop."Order");
CREATE TABLE shop.parcels (id bigint PRIMARY KEY, tenant integer NOT NULL, order_no bigint,
    FOREIGN KEY (tenant, order_no) REFERENCES shop."Order");
CREATE INDEX ON shop.parcels (tenant, order_no);
CREATE TABLE shop.carts (owner uuid, no bigint, mail text, touched timestamptz NOT NULL, removed timestamptz,
    PRIMARY KEY (no, owner));
CREATE INDEX ON shop.carts (touched);
CREATE TABLE shop.events (id bigint, at timestamptz, who text, what text, state shop.state NOT NULL,
    PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE shop.events_old PARTITION OF shop.events FOR VALUES FROM ('2020-01-01') TO (%(edge)s);
CREATE TABLE shop.events_new PARTITION OF shop.events FOR VALUES FROM (%(edge)s) TO ('2100-01-01');
CREATE INDEX ON shop.events (at);
CREATE TABLE shop.events_back (LIKE shop.events);
"""

ROWS = """
-- Orders 1 to 40 of two tenants are due, but for those still open; 41 is fresh.
INSERT INTO shop."Order" SELECT t, n, (CASE WHEN n %% 10 = 0 THEN 'open' WHEN n %% 2 = 0 THEN 'paid' ELSE 'void' END)::shop.state,
       now() - CASE WHEN n = 41 THEN interval '1 day' ELSE interval '90 days' END - n * interval '1 second'
  FROM generate_series(1, 2) t, generate_series(1, 41) n;
INSERT INTO shop.lines SELECT tenant, "No", l FROM shop."Order", generate_series(1, 2) l;
INSERT INTO shop.parcels SELECT row_number() OVER (ORDER BY tenant, "No"), tenant, "No" FROM shop."Order" WHERE "No" %% 3 = 0;
INSERT INTO shop.carts SELECT %(tenant)s, n, 'anna@example.com', now() - interval '200 days', NULL
  FROM generate_series(1, 12) n;
-- The same id more than once: only with its moment does it name a row.
INSERT INTO shop.events SELECT n %% 20, now() - interval '100 days' - n * interval '1.5 seconds',
       'person' || n %% 3 || '@example.com', E'tab\\tback\\\\slash "q" ' || n, 'void' FROM generate_series(1, 60) n;
INSERT INTO shop.events SELECT n, now() - interval '1 day', 'anna@example.com', 'fresh', 'open' FROM generate_series(1, 5) n;
ANALYZE shop."Order"; ANALYZE shop.events; ANALYZE shop.carts;
"""

POLICIES = {
    # The name is the job's; what it stands for is the file's affair.
    "magic_link_tokens": policy(
        "shop.Order",
        key=["tenant", "No"],
        rules={"closed": {"when": {"state": {"in": ["paid", "void"]}}, "anchor": "placed", "keep": "30 days"}},
        dependants=[
            {
                "table": "shop.lines",
                "column": ["tenant", "order_no"],
                "action": "delete",
                "key": ["tenant", "order_no", "line"],
            },
            {"table": "shop.parcels", "column": ["tenant", "order_no"], "action": "set_null"},
        ],
        batch={"rows": 7, "lock_timeout": "200 milliseconds", "statement_timeout": "60 seconds"},
    ),
    "carts_forgotten": policy(
        "shop.carts",
        key=["owner", "no"],
        action="anonymize",
        rules={"left": {"anchor": "touched", "keep": "1 month"}},
        anonymize={"marker": None, "columns": {"mail": "pseudonym"}},
        batch={"rows": 5, "lock_timeout": "200 milliseconds", "statement_timeout": "60 seconds"},
    ),
    "carts_marked": policy(
        "shop.carts",
        key=["owner", "no"],
        action="soft_delete",
        rules={"left": {"anchor": "touched", "keep": "6 months"}},
        soft_delete={"deleted_at": "removed"},
        batch={"rows": 5, "lock_timeout": "200 milliseconds", "statement_timeout": "60 seconds"},
    ),
    "events": policy(
        "shop.events",
        key=["id", "at"],
        person="who",
        action="archive_then_delete",
        archive={"personal": ["who"], "keep": "1 year", "rows": 25},
        rules={"old": {"anchor": "at", "keep": "60 days"}},
    ),
}
JOBS = {
    "cleanup_magic_links": ["magic_link_tokens"],
    "enforce_retention_policies": ["carts_forgotten", "carts_marked"],
    "archive_before_delete": ["events"],
    "monitor_cleanup_sla": [],
}


class Shop:
    """The tables, and the scripts run on them."""

    def __init__(self, database, environment, path, capsys, monkeypatch):
        self.admin = database.superuser()
        self._environment = environment
        self._path = path
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def run(self, script, *arguments, code=0):
        done = run_inside(
            SCRIPTS / f"{script}.py",
            [*arguments, "--policy-file", self._path],
            env=self._environment,
            capsys=self._capsys,
            monkeypatch=self._monkeypatch,
        )
        assert done.returncode == code, done.stdout
        assert "@example.com" not in done.stdout
        return JobRun(done.returncode, read_lines(done.stdout))

    def rows(self, query):
        return self.admin.execute(query).fetchall()

    def ids(self, query):
        return {key for (key,) in self.rows(query)}

    def audited(self, table, action):
        entries = self.rows(
            f"SELECT resource_id FROM ops.audit_log WHERE resource_type = '{table}' AND action = '{action}'"
        )
        assert len(entries) == len(set(entries)), "audited twice"
        return {key for (key,) in entries}


@pytest.fixture
def shop(database, redis_url, tmp_path, capsys, monkeypatch):
    admin = database.superuser()
    (edge,) = admin.execute("SELECT (now() - interval '100 days' - interval '30 seconds')::text").fetchone()
    admin.execute(SCHEMA.replace("%(edge)s", f"'{edge}'"))
    admin.execute(ROWS.replace("%(tenant)s", f"'{TENANT}'").replace("%%", "%"))
    cold = tmp_path / "cold"
    cold.mkdir()
    path = tmp_path / "policies.yaml"
    jobs = {
        job: {"schedule": "30 0 * * *", "budget": "3600 seconds", "lock": f"lock:shop:{job}", "policies": own}
        for job, own in JOBS.items()
    }
    jobs["enforce_retention_policies"]["lock"] = LOCK
    path.write_text(yaml.safe_dump({"policies": POLICIES, "jobs": jobs}, sort_keys=False))
    migrate.grant(database.superuser_url, path)
    admin.execute("GRANT SELECT, INSERT ON shop.events, shop.events_back TO lifecycle_jobs")
    environment = {
        "DATABASE_URL": database.url,
        "REDIS_URL": redis_url,
        "AUDIT_PSEUDONYM_KEY": KEY,
        "ARCHIVE_URL": cold.as_uri(),
        "ARCHIVE_MASTER_KEY": MASTER_KEY,
        "OPERATOR": "olga",
    }
    return Shop(database, environment, path, capsys, monkeypatch)


ORDERS = """SELECT jsonb_build_array(tenant, "No")::text FROM shop."Order" """
EVENTS = "SELECT jsonb_build_array(id, at)::text FROM shop.events"
DUE = " WHERE state <> 'open' AND placed < now() - interval '30 days'"


def test_a_cleanup_s_keys_of_several_columns(shop):
    """Holds on a row and on a dependant, dry run, batches, a row that is refused, foreign keys over two columns."""
    due = shop.ids(ORDERS + DUE)
    assert len(due) == 72
    held = "place", "--reason", "a case", "--table"
    refused = shop.run("retention/legal_holds", *held, "shop.Order", "--id", "[1,7]", code=2)
    assert "[1, 7]" in refused.closing["error"], "the id is shown as it must be written"
    for nothing in ("[1, 700]", "7", "nonsense"):
        shop.run("retention/legal_holds", *held, "shop.Order", "--id", nothing, code=2)
    shop.run("retention/legal_holds", *held, "shop.Order", "--id", "[1, 7]")
    shop.run("retention/legal_holds", *held, "shop.lines", "--id", "[2, 9, 1]")
    shop.admin.execute(
        "CREATE FUNCTION shop.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;"
        'CREATE TRIGGER refuse BEFORE DELETE ON shop."Order" FOR EACH ROW WHEN (OLD."No" = 5 AND OLD.tenant = 2)'
        " EXECUTE FUNCTION shop.refuse()"
    )

    predicted = shop.run("cleanup/cleanup_magic_links", "--dry-run").closing
    assert (predicted["records_to_delete"], len(shop.ids(ORDERS + DUE))) == (70, 72)
    run = shop.run("cleanup/cleanup_magic_links", code=4)

    kept = {"[1, 7]", "[2, 9]", "[2, 5]"}
    assert shop.ids(ORDERS + DUE) == kept
    assert len(shop.ids(ORDERS)) == 13, "open and fresh ones are where they were"
    assert shop.audited("shop.Order", "delete") == due - kept
    assert run.closing["records_deleted"] == 69
    assert shop.rows("SELECT item_type, resource_id FROM ops.manual_resolution_queue") == [
        ("row_deletion_failed", "[2, 5]")
    ]
    gone = {tuple(json.loads(key)) for key in due - kept}
    assert shop.audited("shop.lines", "delete") == {f"[{t}, {n}, {line}]" for t, n in gone for line in (1, 2)}
    assert shop.rows("SELECT count(*) FROM shop.lines") == [(26,)]
    cut_off = shop.rows("SELECT count(*), count(tenant) FROM shop.parcels WHERE order_no IS NULL")
    assert cut_off == [(len(shop.audited("shop.parcels", "set_null")),) * 2], "the tenant may not be null, and stays"
    shop.run("retention/verify_audit")

    # The row is put right by hand, and decided on by its id.
    shop.admin.execute('DROP TRIGGER refuse ON shop."Order"')
    ((item,),) = shop.rows("SELECT id FROM ops.manual_resolution_queue")
    shop.run("manual-resolution/process_queue", "resolve", str(item), "--decision", "retry", "--reason", "put right")
    assert shop.ids(ORDERS + DUE) == kept - {"[2, 5]"}
    assert "[2, 5]" in shop.audited("shop.Order", "delete")

    residue = shop.run("sla-monitoring/monitor_cleanup_sla")
    assert not [
        alert
        for (alert,) in shop.rows("SELECT key FROM ops.alerts")
        if "magic_link_tokens" in alert and "overdue" in alert
    ]
    assert residue.lines


def test_anonymised_and_marked_by_keys_of_several_columns(shop, tmp_path):
    plan = tmp_path / "plan.json"
    shop.run("retention/enforce_retention_policies", "--plan", plan)
    planned = {each["policy"]: each for each in json.loads(plan.read_text())["policies"]}
    assert planned["carts_marked"]["records"] == 12
    assert planned["carts_marked"]["sample_keys"][0] == f'["{TENANT}", 10]', "the first by their text"

    shop.run("retention/enforce_retention_policies", "--apply", plan, "--tolerance", "0")

    carts = {f'["{TENANT}", {n}]' for n in range(1, 13)}
    assert shop.audited("shop.carts", "anonymize") == shop.audited("shop.carts", "soft_delete") == carts
    assert all(
        re.fullmatch("k1:[0-9a-f]{64}", mail) and removed
        for mail, removed in shop.rows("SELECT mail, removed FROM shop.carts")
    )


def test_a_partitioned_table_is_archived_and_comes_back(shop):
    before = dict(shop.rows("SELECT jsonb_build_array(id, at)::text, e::text FROM shop.events e"))
    due = shop.ids(EVENTS + " WHERE at < now() - interval '60 days'")
    one, other = sorted(due)[3:5]
    shop.run("retention/legal_holds", "place", "--reason", "a case", "--table", "shop.events", "--id", one)

    run = shop.run("retention/archive_before_delete")

    assert run.closing["records_deleted"] == 59
    assert shop.audited("shop.events", "archive_then_delete") == due - {one}
    assert shop.ids(EVENTS) == before.keys() - due | {one}
    shop.run("retention/archive_before_delete", "verify")

    restore = "retention/archive_before_delete", "restore", "--policy", "events"
    some = shop.run(*restore, "--into", "shop.events_back", "--id", other).event("records_restored")
    back = "SELECT jsonb_build_array(id, at)::text, e::text FROM shop.events_back e"
    assert (some["records_restored"], dict(shop.rows(back))) == (1, {other: before[other]})
    assert shop.run(*restore, "--into", "shop.events_back").event("records_restored")["records_restored"] == 58
    assert dict(shop.rows(back)) == {key: before[key] for key in due - {one}}
    assert shop.run(*restore).event("records_restored")["records_restored"] == 59
    assert dict(shop.rows(back.replace("events_back", "events"))) == before
    assert shop.run(*restore).event("records_restored")["records_present"] == 59, "again, and nothing happens"
    assert shop.audited("shop.events", "restore") == due - {one}
    shop.run("retention/verify_audit")
