"""What the two roles may do: the jobs their work, the reader nothing but look; the audit is out of reach for both."""

from pathlib import Path

import psycopg
import pytest

from backend import migrate
from scripts.lifecycle.engine import rights
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE, load_policies
from tests.inside import run_inside

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
DRY = ["--dry-run"]
LOOKING = {
    "cleanup/cleanup_blacklist": [DRY],
    "cleanup/cleanup_magic_links": [DRY],
    "cleanup/cleanup_pdfs": [DRY],
    "cleanup/cleanup_quiz_responses": [DRY],
    "cleanup/stop_switch": [["status"]],
    "manual-resolution/add_to_queue": [],
    "manual-resolution/escalate_breaches": [DRY],
    "manual-resolution/process_queue": [["list"]],
    "manual-resolution/report_metrics": [[], ["--format", "html", "--output", "{folder}/page.html"]],
    "retention/archive_before_delete": [DRY, ["list"], ["verify"]],
    "retention/enforce_gdpr_deletion": [DRY, ["list"]],
    "retention/enforce_retention_policies": [["--all", "--dry-run"]],
    "retention/explain_deletion": [],
    "retention/generate_compliance_report": [["--format", "json"]],
    "retention/legal_holds": [["list"]],
    "retention/verify_audit": [[]],
    "sla-monitoring/alerts": [["list"]],
    "sla-monitoring/check_cleanup_health": [],
    "sla-monitoring/monitor_cleanup_sla": [],
    "sla-monitoring/monitor_manual_resolution_queue": [],
}
"""Each script with its ways of only looking; a monitor keeps what it saw, and a health check tells of it."""

CASES = [(script, arguments) for script, ways in LOOKING.items() for arguments in ways]


@pytest.fixture
def reader_url(database):
    return database.straight_url.replace(migrate.ROLE, migrate.READER)


@pytest.fixture
def roles(database, reader_url):
    """A connection as each of the two roles."""
    return {"jobs": database.connect(), "reader": database._open(reader_url)}


@pytest.fixture
def environment(reader_url, redis_url, tmp_path):
    return {
        "DATABASE_URL": reader_url,
        "REDIS_URL": redis_url,
        "BLOB_READ_WRITE_TOKEN": "vercel_blob_rw_store_" + "x" * 20,
        "AUDIT_PSEUDONYM_KEY": "k1:" + "ab" * 32,
        "SUPPRESSION_KEY": "s1:" + "ab" * 32,
        "ARCHIVE_URL": tmp_path.as_uri(),
        "ARCHIVE_MASTER_KEY": "m1:" + "cd" * 32,
        "OPERATOR": "olga",
    }


def test_every_script_is_here():
    found = {str(path.relative_to(SCRIPTS).with_suffix("")) for path in SCRIPTS.glob("*/*.py")}
    found = {name for name in found if name.split("/")[0] not in ("lifecycle", "utils") and "__init__" not in name}
    assert found == set(LOOKING)


@pytest.mark.parametrize(("script", "arguments"), CASES, ids=[" ".join([s, *a]) for s, a in CASES])
def test_who_may_only_look_can_look(script, arguments, environment, database, capsys, monkeypatch, tmp_path):
    database.superuser().execute(
        "INSERT INTO quiz_responses (id, email, normalized_email, quiz_data, calorie_target, created_at)"
        " VALUES (gen_random_uuid(), 'a', 'a@example.com', '{}', 2000, now() - interval '9 days')"
    )
    given = [argument.replace("{folder}", str(tmp_path)) for argument in arguments]
    done = run_inside(SCRIPTS / f"{script}.py", given, env=environment, capsys=capsys, monkeypatch=monkeypatch)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preflight_failed" not in done.stdout
    if script == "cleanup/cleanup_quiz_responses":
        assert '"records_to_delete":1' in done.stdout.replace(" ", "")


def test_who_may_only_look_starts_no_run(environment, database, capsys, monkeypatch):
    path = SCRIPTS / "cleanup" / "cleanup_quiz_responses.py"
    done = run_inside(path, [], env=environment, capsys=capsys, monkeypatch=monkeypatch)
    assert done.returncode == 1
    assert "42501" in done.stdout
    assert database.superuser().execute("SELECT count(*) FROM ops.job_runs").fetchone() == (0,)


AUDIT = [
    "UPDATE ops.audit_batches SET actor = 'system:x'",
    "DELETE FROM ops.audit_batches",
    "TRUNCATE ops.audit_batches",
    "INSERT INTO ops.audit_batches DEFAULT VALUES",
    "UPDATE ops.audit_head SET seq = 0",
    "DELETE FROM ops.audit_head",
    "TRUNCATE ops.audit_head",
    "INSERT INTO ops.audit_head DEFAULT VALUES",
    "ALTER TABLE ops.audit_batches DISABLE TRIGGER ALL",
    "ALTER TABLE ops.audit_batches ADD COLUMN x int",
    "DROP TRIGGER audit_batches_append_only ON ops.audit_batches",
    "DROP TABLE ops.audit_batches CASCADE",
    "DROP SCHEMA ops CASCADE",
    "CREATE OR REPLACE FUNCTION ops.refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "CREATE OR REPLACE VIEW ops.audit_log AS SELECT 1",
    "SET session_replication_role = replica",
    "SET ROLE postgres",
]


def refused(connection, statement):
    with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.WrongObjectType)):
        connection.execute(statement)


@pytest.mark.parametrize("role", ["jobs", "reader"])
def test_neither_can_rewrite_the_audit(roles, role, database):
    database.connect().execute(
        "SELECT ops.append_audit(gen_random_uuid(), 'system:x', 'delete', 't', 'r', NULL, ARRAY['1'], '{}')"
    )
    for statement in AUDIT:
        refused(roles[role], statement)
    assert roles[role].execute("SELECT actor FROM ops.audit_batches").fetchall() == [("system:x",)]


def test_the_reader_cannot_write_anything_anywhere(roles, database):
    tables = database.superuser().execute(
        "SELECT format('%I.%I', n.nspname, c.relname), c.relname FROM pg_class c JOIN pg_namespace n ON n.oid ="
        " c.relnamespace WHERE n.nspname IN ('ops', 'public') AND c.relkind IN ('r', 'v', 'p')"
    )
    for table, name in tables.fetchall():
        may = (
            roles["reader"]
            .execute(
                "SELECT string_agg(r, ' ') FROM unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES',"
                " 'TRIGGER']) AS r WHERE has_table_privilege(%(t)s, r) OR (r IN ('INSERT', 'UPDATE', 'REFERENCES')"
                " AND has_any_column_privilege(%(t)s, r))",
                {"t": table},
            )
            .fetchone()
        )
        assert may == (None,), (table, name)
    refused(
        roles["reader"],
        "SELECT ops.append_audit(gen_random_uuid(), 'system:x', 'delete', 't', 'r', NULL, ARRAY['1'], '{}')",
    )
    refused(roles["reader"], "CREATE TABLE public.mine (id int)")


@pytest.mark.parametrize("role", ["jobs", "reader"])
def test_a_table_that_no_policy_names_is_out_of_reach(roles, role, database):
    database.superuser().execute("CREATE TABLE public.unnamed (id int, email text)")
    for statement in (
        "SELECT FROM public.unnamed",
        "SELECT email FROM public.unnamed",
        "INSERT INTO public.unnamed VALUES (1)",
        "UPDATE public.unnamed SET email = ''",
        "DELETE FROM public.unnamed",
        "TRUNCATE public.unnamed",
        "DROP TABLE public.unnamed",
    ):
        refused(roles[role], statement)
    assert roles[role].execute(
        "SELECT count(*) FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'"
        " AND c.relname <> ALL (%s) AND (has_table_privilege(c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')"
        " OR has_any_column_privilege(c.oid, 'SELECT, INSERT, UPDATE'))",
        (sorted(named()),),
    ).fetchone() == (0,)


def named():
    """The tables of the schema public that the policy file names, in whichever place."""
    policies = load_policies(DEFAULT_POLICY_FILE)
    found = [right for policy in policies.policies.values() for right in rights.of_policy(policy)]
    found += [right for name, step in policies.erasure.items() for right in rights.of_step(name, step)]
    return {right.table.removeprefix("public.") for right in found if right.table.startswith("public.")}


@pytest.mark.parametrize(
    ("table", "row"),
    [
        (
            "manual_resolution_queue",
            (
                "(item_type, resource_type, resource_id, priority, reason, raised_by, deadline_at)"
                " VALUES ('poison', 't', '1', 'low', 'r', 'x', now())"
            ),
        ),
        (
            "blob_deletions",
            "(policy, rule, table_name, resource_id, blob, run_id) VALUES ('p', 'r', 't', '1', 'b', gen_random_uuid())",
        ),
    ],
)
def test_what_is_open_is_kept_from_members_too_and_the_owner_may_mend(database, table, row):
    superuser = database.superuser()
    superuser.execute(f"INSERT INTO ops.{table} {row}")
    delete = f"DELETE FROM ops.{table}"
    role = f"member_{database.name}"
    superuser.execute(f"CREATE ROLE {role} IN ROLE lifecycle_jobs")
    try:
        superuser.execute(f"SET ROLE {role}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="is still open"):
            superuser.execute(delete)
        superuser.execute("RESET ROLE")
        assert superuser.execute(delete).rowcount == 1
    finally:
        superuser.execute("RESET ROLE")
        superuser.execute(f"DROP ROLE {role}")
