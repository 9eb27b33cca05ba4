"""Another application's tables, of another shape, served by YAML and its rights alone; and the gate for its CI."""

import pytest
import yaml

from backend import migrate
from tests.lifecycle.support import AS_OF
from tests.retention.enforcement.conftest import SCRIPT, count, done, policy


@pytest.fixture
def clinic(admin):
    """Bigint and uuid keys, timestamptz and date, enums and booleans, other names, another schema, mixed case."""
    admin.execute(
        """
        CREATE SCHEMA clinic;
        CREATE TYPE clinic.state AS ENUM ('open', 'closed', 'disputed');
        CREATE TABLE clinic."Patients" ("patientNo" bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "eMail" text NOT NULL,
            "lastSeen" date NOT NULL, "vip" boolean NOT NULL DEFAULT false);
        CREATE INDEX ON clinic."Patients" ("lastSeen");
        CREATE TABLE clinic.visits (ref uuid PRIMARY KEY DEFAULT gen_random_uuid(), patient bigint NOT NULL
            REFERENCES clinic."Patients", state clinic.state NOT NULL, ended timestamptz, ip inet, notes text);
        CREATE INDEX ON clinic.visits (ended); CREATE INDEX ON clinic.visits (patient);
        """
    )
    admin.execute(
        'INSERT INTO clinic."Patients" ("eMail", "lastSeen", vip) VALUES'
        " ('anna@example.com', %(d)s::date - 400, false), ('anna@example.com', %(d)s::date - 400, true),"
        " ('ben@example.com', %(d)s::date - 10, false), ('cleo@example.com', %(d)s::date - 400, false)",
        {"d": AS_OF},
    )
    admin.execute(
        "INSERT INTO clinic.visits (patient, state, ended, ip, notes) VALUES"
        " (1, 'closed', %(d)s::timestamptz - interval '100 days', '192.0.2.9', 'x'),"
        " (4, 'disputed', %(d)s::timestamptz - interval '100 days', '192.0.2.9', 'x'),"
        " (3, 'closed', %(d)s::timestamptz - interval '40 days', '192.0.2.9', 'x'),"
        " (3, 'open', NULL, '192.0.2.9', 'x')",
        {"d": AS_OF},
    )
    return admin


POLICIES = {
    "patients": policy(
        "clinic.Patients",
        key="patientNo",
        person="eMail",
        rules={"gone": {"anchor": "lastSeen", "keep": "1 year"}},
        exceptions={"vips": {"when": {"vip": True}}},
    ),
    "visits": policy(
        "clinic.visits",
        key="ref",
        rules={"closed": {"when": {"state": "closed"}, "anchor": "ended", "keep": "3 months"}},
    ),
    "visitors": policy(
        "clinic.visits",
        key="ref",
        action="anonymize",
        rules={"closed": {"when": {"state": {"not_in": ["open", "disputed"]}}, "anchor": "ended", "keep": "1 month"}},
        anonymize={"marker": None, "columns": {"ip": "truncate_ip", "notes": None}},
    ),
}


def test_another_application_needs_no_code(clinic, write, enforce):
    run = enforce(write(POLICIES))

    assert run.code == 4, "cleo's visit is disputed: she is still needed, and a person is told"
    assert [name for name, _ in done(run)] == ["visitors", "visits", "patients"]
    left = clinic.execute("SELECT state::text, host(ip), notes FROM clinic.visits ORDER BY 1").fetchall()
    assert left == [("closed", "192.0.2.0", None), ("disputed", "192.0.2.9", "x"), ("open", "192.0.2.9", "x")]
    assert [no for (no,) in clinic.execute('SELECT "patientNo" FROM clinic."Patients" ORDER BY 1')] == [2, 3, 4]
    assert clinic.execute("SELECT item_type FROM ops.manual_resolution_queue").fetchall() == [
        ("foreign_key_violation",)
    ]
    assert enforce(write(POLICIES)).closing["records_deleted"] == 0


def findings(run, status="FAIL"):
    return {(line["check"], line["subject"]): line for line in run.events("policy_check") if line["status"] == status}


def test_the_gate_passes_a_file_that_would_work(clinic, write, enforce):
    kept = {
        f"public.{name}": "not this file's"
        for name in (
            "users",
            "quiz_responses",
            "meal_plans",
            "payment_transactions",
            "magic_link_tokens",
            "email_blacklist",
            "manual_resolution",
            "refund_counts",
        )
    }
    path = write(POLICIES)
    document = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(document | {"kept": kept}, sort_keys=False))

    run = enforce(path, "--check")

    assert (run.code, findings(run), findings(run, "WARN")) == (0, {}, {}), run.lines
    assert len(findings(run, "PASS")) == 6
    assert count(clinic, "ops.job_runs") == 0


def test_the_gate_fails_loudly_for_everything_that_would_not(clinic, write, enforce):
    policies = {
        "visits": POLICIES["visits"],
        "renamed": policy("clinic.renamed"),
        "unindexed": policy(
            "clinic.Patients", key="patientNo", rules={"old": {"anchor": "lastSeen", "keep": "1 year"}}
        ),
    }
    path = write(policies, grant=False)
    clinic.execute('DROP INDEX clinic."Patients_lastSeen_idx"')
    clinic.execute('GRANT USAGE ON SCHEMA clinic TO lifecycle_jobs; GRANT ALL ON clinic."Patients" TO lifecycle_jobs')

    run = enforce(path, "--check")

    assert run.code == 1
    failed = findings(run)
    assert "does not exist" in failed["policies", "renamed"]["message"]
    assert ("policies", "visits") in failed, "no right to read it"
    warned = findings(run, "WARN")
    assert "has no index" in warned["policies", "unindexed"]["message"]
    assert "email" in warned["personal_data", "public.users"]["message"]
    assert warned.pop(("policies", "unindexed"))["level"] == "WARNING"
    assert all(line["level"] == "ERROR" for line in (*failed.values(), *warned.values()))
    assert "must be cured" in run.closing["error"]


def test_the_gate_fails_where_no_job_carries_a_policy_out(clinic, write, enforce):
    path = write({"visits": POLICIES["visits"]})
    document = yaml.safe_load(path.read_text())
    del document["jobs"][SCRIPT]["policies"]
    path.write_text(yaml.safe_dump(document, sort_keys=False))

    run = enforce(path, "--check")

    assert run.code == 1
    assert "no job carries it out" in findings(run)["order", "visits"]["message"]
    done_anyway = enforce(path)
    assert done_anyway.event("policies_unclaimed")["policies"] == ["visits"]
    assert dict(done(done_anyway)) == {"visits": "done"}


def test_the_gate_fails_where_it_looked_at_no_table(new_database, enforce, write, settings, monkeypatch):
    empty = new_database()
    migrate.apply(empty.superuser_url)
    path = write({"visits": POLICIES["visits"]}, grant=False)
    monkeypatch.setenv("DATABASE_URL", empty.url)

    run = enforce(path, "--check")

    assert run.code == 1
    assert findings(run)["personal_data", "tables"]["message"] == "no table was looked at"
