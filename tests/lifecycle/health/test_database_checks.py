"""The database broken on purpose: each time one line names it, with its cure."""

import time
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.health import database as database_checks
from scripts.lifecycle.health.findings import Context
from scripts.utils.db_utils import Database


@pytest.fixture
def admin(database):
    return database.superuser()


def test_a_dropped_index(check, admin):
    admin.execute("DROP INDEX quiz_responses_pdf_delivered_at_idx")
    health = check()
    line = health.only()
    assert (health.code, line["status"], line["check"], line["subject"]) == (4, "WARN", "policies", "quiz_responses")
    statement = 'CREATE INDEX CONCURRENTLY ON "public"."quiz_responses" ("pdf_delivered_at")'
    assert line["message"] == f"public.quiz_responses.pdf_delivered_at has no index: {statement}"
    assert "migrate.py --indexes" in line["cure"]


def test_an_invalid_index(check, admin):
    admin.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'email_blacklist_expires_at_idx'::regclass"
    )
    health = check()
    assert health.code == 1
    (invalid,) = health.of("indexes")
    assert (invalid["status"], invalid["subject"]) == ("FAIL", "email_blacklist_expires_at_idx")
    assert "REINDEX INDEX CONCURRENTLY email_blacklist_expires_at_idx" in invalid["cure"]
    assert [finding["subject"] for finding in health.unwell] == ["email_blacklist", "email_blacklist_expires_at_idx"]


def test_a_dropped_index_of_the_suite_s_own(check, admin):
    admin.execute("DROP INDEX ops.job_runs_history_idx")
    line = check().only()
    assert (line["status"], line["check"], line["subject"]) == ("FAIL", "suite", "ops.job_runs_history_idx")
    assert "backend/migrations/ops" in line["cure"]


def test_a_renamed_column(check, admin):
    admin.execute("ALTER TABLE magic_link_tokens RENAME COLUMN expires_at TO valid_until")
    health = check()
    assert health.code == 1
    line = health.only()
    assert (line["status"], line["check"], line["subject"]) == ("FAIL", "policies", "magic_link_tokens")
    assert line["message"] == "column public.magic_link_tokens.expires_at does not exist"
    assert "policy file" in line["cure"]


def test_a_table_that_is_gone(check, admin):
    admin.execute("DROP TABLE email_blacklist")
    line, erasure = check().unwell
    assert (line["status"], line["subject"]) == ("FAIL", "email_blacklist")
    assert line["message"] == "table public.email_blacklist does not exist"
    assert (erasure["status"], erasure["subject"]) == ("FAIL", "erasure")
    assert "table public.email_blacklist does not exist" in erasure["message"]


def test_a_foreign_key_that_no_policy_declares(check, admin):
    admin.execute(
        "CREATE TABLE notes (id int PRIMARY KEY, quiz varchar REFERENCES quiz_responses (id) ON DELETE CASCADE)"
    )
    admin.execute("GRANT SELECT ON notes TO lifecycle_jobs")
    health = check()
    failed, warned = sorted(
        (each for each in health.unwell if each["check"] == "policies"), key=lambda finding: finding["status"]
    )
    (too_many, missing) = [each for each in health.unwell if each["check"] == "rights"]
    assert 'REVOKE SELECT ON "public"."notes" FROM "lifecycle_jobs"' in too_many["message"]
    assert '"quiz"' in missing["message"]
    assert (failed["status"], failed["subject"]) == ("FAIL", "quiz_responses")
    assert "notes_quiz_fkey deletes rows of public.notes" in failed["message"]
    assert "dependants" in failed["cure"]
    assert (
        warned["message"]
        == "foreign key notes_quiz_fkey on public.notes has no index over all rows that begins with quiz:"
        ' CREATE INDEX CONCURRENTLY ON "public"."notes" ("quiz")'
    )


def test_a_revoked_right(check, admin):
    admin.execute("REVOKE DELETE ON quiz_responses FROM lifecycle_jobs")
    health = check()
    line, erasure = health.unwell
    assert (health.code, line["status"], line["subject"]) == (1, "FAIL", "quiz_responses")
    assert "no right to DELETE on public.quiz_responses" in erasure["message"]
    assert "no right to DELETE on public.quiz_responses" in line["message"]
    assert "--grants" in line["cure"]


def test_a_revoked_right_on_the_suite_s_own(check, admin):
    admin.execute("REVOKE INSERT ON ops.job_runs FROM lifecycle_jobs")
    line = check().only()
    assert (line["status"], line["check"], line["subject"]) == ("FAIL", "suite", "INSERT on ops.job_runs")
    assert line["cure"] == "GRANT INSERT on ops.job_runs TO lifecycle_jobs, as its owner"


def test_a_superuser_is_no_job(check, database):
    health = check(DATABASE_URL=database.superuser_url)
    line = health.only()
    assert (health.code, line["status"], line["check"]) == (4, "WARN", "role")
    assert "lifecycle_jobs" in line["cure"]


def test_a_role_that_owns_what_it_deletes_from(check, admin):
    admin.execute("ALTER TABLE email_blacklist OWNER TO lifecycle_jobs")
    line = check().only()
    assert (line["status"], line["check"]) == ("WARN", "role")
    assert "owns public.email_blacklist" in line["message"]


PARAMETERS_LOGGED = {
    "log_min_duration_statement": "250",
    "log_statement": "mod",
    "log_transaction_sample_rate": "0.1",
    "log_min_duration_sample": "100",
}


@pytest.mark.parametrize("name", PARAMETERS_LOGGED)
def test_a_server_that_logs_parameters(check, admin, database, name):
    default = f"ALTER DATABASE {database.name} SET"
    admin.execute(f"{default} {name} = '{PARAMETERS_LOGGED[name]}'")
    line = check().only()
    assert (line["status"], line["check"], line["subject"]) == ("WARN", "session", "log_parameter_max_length")
    assert f"{name} = {PARAMETERS_LOGGED[name]}" in line["message"]
    admin.execute(f"{default} log_parameter_max_length = 0")
    assert check().code == 0


def test_a_pending_migration(check, admin):
    admin.execute("DELETE FROM ops.schema_migrations WHERE set = 'ops' AND version = '0007'")
    line = check().only()
    assert (line["status"], line["check"], line["subject"]) == ("FAIL", "schema", "ops/0007_queue_workflow")
    assert (line["message"], line["cure"]) == ("is pending", "run backend/migrate.py")


def test_a_migration_that_was_changed_and_one_of_a_newer_release(check, admin):
    admin.execute("UPDATE ops.schema_migrations SET checksum = 'x' WHERE set = 'ops' AND version = '0001'")
    admin.execute("INSERT INTO ops.schema_migrations VALUES ('ops', '9999', 'later', 'x', now())")
    changed, newer = check().unwell
    assert (changed["status"], changed["subject"]) == ("FAIL", "ops/0001_schema_and_role")
    assert (newer["status"], newer["subject"]) == ("WARN", "ops/9999")


def test_a_new_table_with_an_email_column(check, admin):
    admin.execute("CREATE TABLE newsletter (id int PRIMARY KEY, subscriber_email text, product_name text)")
    health = check()
    line = health.only()
    assert (health.code, line["status"], line["check"], line["subject"]) == (
        4,
        "WARN",
        "personal_data",
        "public.newsletter",
    )
    assert line["message"] == "looks personal (subscriber_email) and has no policy"
    assert "policy" in line["cure"]


def test_a_table_without_a_policy_is_seen_where_the_role_may_see_nothing(check, admin):
    admin.execute("CREATE SCHEMA crm; CREATE TABLE crm.people (id int, birth_date date)")
    assert check().only()["subject"] == "crm.people"


def test_a_policy_that_only_takes_the_pdf_does_not_cover_the_row(check, policy_file):
    document = yaml.safe_load(policy_file.read_text())
    del document["policies"]["meal_plans"]
    del document["kept"]["public.meal_plans"]
    document["jobs"]["enforce_retention_policies"]["policies"].remove("meal_plans")
    policy_file.write_text(yaml.safe_dump(document, sort_keys=False))
    line = check().only()
    assert line["subject"] == "public.meal_plans"
    assert "its policy keeps the row for ever" in line["message"]


def test_a_table_that_is_kept_and_not_there(check, policy_file):
    policy_file.write_text(policy_file.read_text().replace("kept:\n", "kept:\n  public.gone: for the test\n"))
    findings = check().unwell
    assert {(finding["check"], finding["subject"]) for finding in findings} == {
        ("personal_data", "public.gone"),
        ("erasure", "public.gone"),
    }


def test_a_database_without_a_table_was_not_looked_at(check, admin):
    admin.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    health = check()
    (line,) = health.of("personal_data")
    assert (health.code, line["status"], line["message"]) == (1, "FAIL", "no table was looked at")


def test_disabled_autovacuum_and_dead_rows(check, admin):
    admin.execute("ALTER TABLE email_blacklist SET (autovacuum_enabled = false)")
    admin.execute(
        "INSERT INTO email_blacklist SELECT n, n || '@example.com', 'abuse', now(), now() FROM generate_series(1, 12000) n"
    )
    admin.execute("UPDATE email_blacklist SET reason = 'chargeback'")
    admin.execute("SELECT pg_stat_force_next_flush()")
    disabled, dead = check().unwell
    assert (disabled["check"], disabled["subject"], disabled["status"]) == (
        "autovacuum",
        "public.email_blacklist",
        "WARN",
    )
    assert disabled["cure"] == "ALTER TABLE public.email_blacklist RESET (autovacuum_enabled)"
    assert dead["message"] == "50 % of its rows are dead (12,000)"
    assert dead["cure"].startswith("VACUUM (ANALYZE) public.email_blacklist")


def test_a_long_transaction(jobs_url, database, monkeypatch):
    from scripts.lifecycle.health import vacuum

    monkeypatch.setattr(vacuum, "LONG_SECONDS", 0.2)
    other = database.superuser()
    pid = other.info.backend_pid
    with other.transaction():
        other.execute("SELECT 1")
        time.sleep(0.3)
        lines = look(jobs_url, vacuum.snapshots)
    (line,) = [each for each in lines if each.subject == f"pid {pid}"]
    assert line.status == "WARN"
    assert f"pg_terminate_backend({pid})" in line.cure


def test_what_the_role_cannot_see_is_not_taken_for_well(check, database):
    line = check(DATABASE_URL=database.url).only()
    assert (line["status"], line["check"], line["subject"]) == ("WARN", "snapshots", "pg_stat_activity")
    assert "GRANT pg_read_all_stats" in line["cure"]


class _Run:
    def __init__(self, url):
        self.database = Database(url, application_name="health test", max_size=2)


def look(url, check, **more):
    run = _Run(url)
    run.database.open()
    try:
        return list(check(Context(run, None, None, **more)))
    finally:
        run.database.close()


@pytest.mark.parametrize(
    ("off", "status", "said"),
    [(600, "FAIL", "600.0 s ahead of"), (-600, "FAIL", "behind"), (30, "WARN", "30.0 s ahead of"), (1, "PASS", "")],
)
def test_a_clock_that_is_off(database, off, status, said):
    (line,) = look(database.url, database_checks.clock, clock=lambda: datetime.now(UTC) + timedelta(seconds=off))
    assert (line.status, line.subject) == (status, "clock")
    assert said in line.message
    assert (line.cure is None) == (status == "PASS")


def test_a_slow_or_old_server(database, monkeypatch):
    monkeypatch.setattr(database_checks, "SLOW_SECONDS", 0)
    (line,) = look(database.url, database_checks.connection)
    assert (line.status, line.subject) == ("WARN", "PostgreSQL")
    monkeypatch.setattr(database_checks, "OLDEST_VERSION", 990_000)
    (line,) = look(database.url, database_checks.connection)
    assert (line.status, line.cure) == ("FAIL", "upgrade to PostgreSQL 14 or later")


def add_plans(admin, *names):
    admin.cursor().executemany(
        "INSERT INTO meal_plans (id, payment_id, email, normalized_email, pdf_blob_path, calorie_target,"
        " preferences_summary, ai_model, status, created_at)"
        " VALUES (%s, %s, 'a@example.com', 'a@example.com', %s, 1800, '{}', 'm', 'completed', now())",
        [(f"p{number}", f"pay{number}", name) for number, name in enumerate(names)],
    )


def test_blobs_that_a_run_would_hand_to_a_person_are_counted(check, admin):
    foreign = "https://another1234.public.blob.vercel-storage.com/keto-meal-plan-a.pdf"
    add_plans(admin, "keto-meal-plan-a.pdf", foreign, "elsewhere/a.pdf", "elsewhere/b.pdf", "keto-meal-plan-x/../b.pdf")

    found = {finding["message"] for finding in check().unwell if finding["subject"] == "meal_plan_pdfs"}

    assert "1 rows of public.meal_plans name blobs of another store: each that is due goes to a person" in found
    assert any(said.startswith("3 rows of public.meal_plans name blobs outside blob.prefix") for said in found), found


def test_a_prefix_that_fits_no_blob_at_all_is_a_finding(check, admin):
    add_plans(admin, "plans/a.pdf", "plans/b.pdf")

    line = check().only()

    assert (line["status"], line["check"], line["subject"]) == ("WARN", "policies", "meal_plan_pdfs")
    assert line["message"] == "blob.prefix keto-meal-plan- fits none of the 2 blobs that public.meal_plans names"


def test_blobs_that_are_the_policy_s_own_are_no_finding(check, admin):
    add_plans(admin, "keto-meal-plan-a.pdf", "keto-meal-plan-b%20c.pdf")

    assert [finding for finding in check().unwell if finding["subject"] == "meal_plan_pdfs"] == []


def test_what_is_asked_of_a_table_is_asked_of_its_parts(check, admin):
    admin.execute("CREATE TABLE tokens_2020 (UNIQUE (token_hash)) INHERITS (magic_link_tokens)")
    admin.execute("CREATE INDEX ON tokens_2020 (expires_at); CREATE INDEX broken ON tokens_2020 (expires_at)")
    admin.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'broken'::regclass")
    admin.execute(
        "ALTER TABLE tokens_2020 SET (autovacuum_enabled = off); ALTER TABLE tokens_2020 OWNER TO lifecycle_jobs"
    )

    found = {(finding["check"], finding["subject"]) for finding in check().unwell}

    assert {("indexes", "broken"), ("autovacuum", "public.tokens_2020")} <= found
    assert "role" in {name for name, _ in found}


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("calorie_target", "many", "calorie_target"), ("created_at", "sometime", "created_at")],
)
def test_a_value_that_is_none_of_its_column_s_type(check, database, policy_file, column, value, said):
    document = yaml.safe_load(policy_file.read_text())
    document["policies"]["quiz_responses"]["exceptions"]["typed"] = {"when": {column: value}}
    policy_file.write_text(yaml.safe_dump(document, sort_keys=False))
    migrate.grant(database.superuser_url, policy_file)

    health = check()

    (line,) = [each for each in health.of("policies") if each["subject"] == "quiz_responses"]
    assert (health.code, line["status"]) == (1, "FAIL")
    assert f"exceptions.typed.when.{said}" in line["message"]
