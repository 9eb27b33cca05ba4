"""What ``migrate.py --grants`` gives: columns, no more; and what it takes back, also what a person granted."""

import psycopg
import pytest
import yaml

from backend import grants, migrate
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from tests.lifecycle.support import policy

SECRETS = {"users": "password_hash", "quiz_responses": "quiz_data", "magic_link_tokens": "token_hash"}
OTHERS = [("users", "email"), ("meal_plans", "preferences_summary"), ("email_blacklist", "reason")]
ROLES = (grants.ROLE, grants.READER, grants.EXPORT)
UNNEEDED = [*SECRETS.items(), *OTHERS]


@pytest.fixture
def admin(database):
    return database.superuser()


@pytest.fixture
def as_role(database):
    """A function that executes a statement as one of the roles."""
    link = database.superuser()

    def execute(role, statement):
        with link.transaction(force_rollback=True):
            link.execute(f"SET LOCAL ROLE {role}")
            return link.execute(statement).fetchall()

    return execute


@pytest.fixture
def give(database, tmp_path):
    """A function that gives the rights of a policy file; without one, those of the file that is delivered."""

    def run(policies=None, **sections):
        path = DEFAULT_POLICY_FILE
        if policies is not None:
            path = tmp_path / "policies.yaml"
            path.write_text(yaml.safe_dump({"policies": policies, "jobs": {}} | sections, allow_unicode=True))
        return migrate.grant(database.superuser_url, path)

    return run


def refused(as_role, role, statement):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_role(role, statement)


@pytest.mark.parametrize("role", [grants.ROLE, grants.READER])
@pytest.mark.parametrize(("table", "column"), UNNEEDED)
def test_what_no_statement_needs_cannot_be_read(as_role, role, table, column):
    refused(as_role, role, f"SELECT {column} FROM {table}")
    refused(as_role, role, f"SELECT * FROM {table}")
    refused(as_role, role, f"SELECT to_jsonb(t) FROM {table} t")
    as_role(role, f"SELECT id, ctid, tableoid, xmin FROM {table} WHERE id = 'x'")


def test_whole_rows_are_for_an_archive_alone(as_role):
    as_role(grants.ROLE, "SELECT * FROM payment_transactions")
    refused(as_role, grants.READER, "SELECT amount FROM payment_transactions")
    as_role(grants.READER, "SELECT id, paddle_created_at FROM payment_transactions")


def test_an_export_reads_what_the_person_is_given_and_no_secret_and_changes_nothing(as_role):
    as_role(grants.EXPORT, "SELECT quiz_data FROM quiz_responses")
    as_role(grants.EXPORT, "SELECT email, created_at FROM users")
    for table, secret in (("users", "password_hash"), ("magic_link_tokens", "token_hash")):
        refused(as_role, grants.EXPORT, f"SELECT {secret} FROM {table}")
    refused(as_role, grants.EXPORT, "UPDATE users SET email = ''")
    refused(as_role, grants.EXPORT, "DELETE FROM users")
    refused(as_role, grants.EXPORT, "SELECT * FROM ops.archive_keys")


def test_a_second_time_there_is_nothing_to_do(give):
    assert give() == grants.Given([], [])


ONCE_GIVEN = [
    "GRANT SELECT ON users, quiz_responses, magic_link_tokens TO lifecycle_jobs, lifecycle_reader",  # an earlier version
    "GRANT SELECT (password_hash) ON users TO lifecycle_jobs",
    "GRANT ALL ON users TO lifecycle_jobs",
    "GRANT UPDATE ON quiz_responses TO lifecycle_jobs, lifecycle_export",
    "GRANT UPDATE (quiz_data), INSERT (email), REFERENCES (id) ON quiz_responses TO lifecycle_jobs",
    "GRANT DELETE, TRUNCATE ON meal_plans TO lifecycle_reader",
    "CREATE TABLE secrets (id int, token_hash text); GRANT SELECT ON secrets TO lifecycle_jobs, lifecycle_reader",
    "CREATE VIEW people AS SELECT * FROM users; GRANT SELECT ON people TO lifecycle_jobs",
    "CREATE MATERIALIZED VIEW seen AS SELECT * FROM users; GRANT SELECT ON seen TO lifecycle_reader",
    "CREATE TABLE heirs (extra text) INHERITS (users); GRANT SELECT ON heirs TO lifecycle_jobs",
    (
        'CREATE SCHEMA "Odd %s"; CREATE TABLE "Odd %s"."a.b ""c""" (id int, "pass % word" text);'
        ' GRANT USAGE ON SCHEMA "Odd %s" TO lifecycle_jobs;'
        ' GRANT SELECT ("pass % word"), UPDATE ("pass % word") ON "Odd %s"."a.b ""c""" TO lifecycle_jobs'
    ),
    (
        "CREATE TABLE parts (id int) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parts DEFAULT;"
        " GRANT SELECT, DELETE ON part TO lifecycle_jobs"
    ),
    "GRANT UPDATE (policy) ON ops.blob_deletions TO lifecycle_reader; GRANT DELETE ON ops.leases TO lifecycle_jobs",
]
HELD = """
SELECT r.rolname, c.oid::regclass::text, e.privilege_type, k.attname
  FROM pg_class c CROSS JOIN LATERAL (
       SELECT NULL::name AS attname, x.* FROM aclexplode(c.relacl) x UNION ALL
       SELECT a.attname, x.* FROM pg_attribute a CROSS JOIN LATERAL aclexplode(a.attacl) x WHERE a.attrelid = c.oid) k
  JOIN pg_roles r ON r.oid = k.grantee CROSS JOIN LATERAL (SELECT k.privilege_type) e
 WHERE r.rolname LIKE 'lifecycle%'
 UNION ALL SELECT r.rolname, n.nspname, e.privilege_type, NULL FROM pg_namespace n
 CROSS JOIN LATERAL aclexplode(n.nspacl) e JOIN pg_roles r ON r.oid = e.grantee WHERE r.rolname LIKE 'lifecycle%'
 ORDER BY 1, 2, 3, 4
"""


@pytest.mark.parametrize("statement", ONCE_GIVEN)
def test_what_no_policy_needs_is_taken_back_and_the_rest_is_as_before(admin, give, as_role, statement):
    before = admin.execute(HELD).fetchall()
    admin.execute(statement.encode())
    assert admin.execute(HELD).fetchall() != before

    done = give()

    assert done.statements
    assert any(each.startswith("REVOKE") for each in done.statements)
    assert admin.execute(HELD).fetchall() == before
    assert give().statements == []
    refused(as_role, grants.ROLE, "SELECT password_hash FROM users")


RULES = {"old": {"anchor": "made_at", "keep": "30 days"}}
TREE = """
CREATE TABLE things (id bigint PRIMARY KEY, made_at timestamptz, kind text, secret text);
CREATE TABLE heirs (extra text) INHERITS (things);
CREATE TABLE logs (id bigint, made_at timestamptz, secret text, PRIMARY KEY (id, made_at)) PARTITION BY RANGE (made_at);
CREATE TABLE logs_all PARTITION OF logs DEFAULT;
"""


def test_a_policy_that_left_the_file_leaves_no_right_behind(admin, give, as_role):
    admin.execute(TREE)
    give({"things": policy(), "logs": policy(table="public.logs")})
    as_role(grants.ROLE, "SELECT id, made_at, tableoid FROM things")
    as_role(grants.ROLE, "DELETE FROM logs RETURNING id, ctid")
    for table in ("things", "heirs", "logs", "logs_all"):
        refused(as_role, grants.ROLE, f"SELECT secret FROM {table}")
    refused(as_role, grants.ROLE, "SELECT id FROM heirs")
    assert admin.execute("SELECT count(*) FROM ops.partition_rights").fetchone() == (1,)

    done = give({"things": policy()})

    assert 'REVOKE DELETE ON "public"."logs" FROM "lifecycle_jobs"' in done.statements
    refused(as_role, grants.ROLE, "SELECT id FROM logs")
    refused(as_role, grants.READER, "SELECT id FROM logs")
    as_role(grants.ROLE, "SELECT id, made_at FROM things")
    assert admin.execute("SELECT count(*) FROM ops.partition_rights").fetchone() == (0,)
    refused(
        as_role,
        grants.ROLE,
        "SELECT ops.drop_partition(gen_random_uuid(), gen_random_uuid(), 'system:x', 'r', '{}', NULL)",
    )


def test_a_policy_of_ops_that_left_the_file_can_delete_no_more(admin, give, as_role):
    runs = policy(table="ops.job_runs", rules={"done": {"anchor": "finished_at", "keep": "400 days"}}, person=None)
    alerts = policy(table="ops.alerts", rules={"done": {"anchor": "resolved_at", "keep": "400 days"}}, person=None)
    give({"runs": runs, "alerts": alerts})
    as_role(grants.ROLE, "DELETE FROM ops.alerts RETURNING id")

    give({"runs": runs})

    refused(as_role, grants.ROLE, "DELETE FROM ops.alerts")
    as_role(grants.ROLE, "DELETE FROM ops.job_runs RETURNING id")
    as_role(grants.ROLE, "UPDATE ops.alerts SET resolved_at = now() RETURNING id")
    as_role(grants.ROLE, "DELETE FROM ops.stop_switches RETURNING 1")  # of a migration


def test_what_the_function_of_a_trigger_needs_stays(admin, give, as_role):
    admin.execute(
        TREE + "CREATE TABLE trail (id bigint, said text); GRANT INSERT, SELECT ON trail TO lifecycle_jobs;"
        " CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO trail VALUES (OLD.id, ''gone''); RETURN OLD; END';"
        " CREATE TRIGGER note AFTER DELETE ON things FOR EACH ROW EXECUTE FUNCTION note()"
    )

    done = give({"things": policy()})

    assert 'REVOKE SELECT ON "public"."trail" FROM "lifecycle_jobs"' in done.statements
    as_role(grants.ROLE, "INSERT INTO trail VALUES (1, '') RETURNING 1")
    refused(as_role, grants.ROLE, "SELECT said FROM trail")


@pytest.mark.parametrize("table", ["users", "people"])
def test_a_right_of_public_is_reported_and_not_relied_upon(admin, give, as_role, table):
    admin.execute(f"CREATE VIEW people AS SELECT * FROM users; GRANT SELECT ON {table} TO PUBLIC")

    done = give()

    assert [note for note in done.notes if f"lifecycle_jobs may SELECT columns of public.{table} as PUBLIC" in note]
    admin.execute(f"REVOKE SELECT ON {table} FROM PUBLIC")
    assert give() == grants.Given([], [])
    as_role(grants.ROLE, "SELECT id, normalized_email FROM users")


def test_what_another_role_granted_is_named_with_that_role(admin, give, database):
    other = f"other_{database.name}"
    admin.execute(f"CREATE ROLE {other}; GRANT SELECT ON users TO {other} WITH GRANT OPTION")
    try:
        admin.execute(f"SET ROLE {other}")
        admin.execute("GRANT SELECT ON users TO lifecycle_jobs")
        admin.execute("RESET ROLE")

        done = give()

        assert done == grants.Given(
            [],
            [
                f"lifecycle_jobs may still SELECT public.users: {other} granted it, so connect as {other} and REVOKE it",
            ],
        )
    finally:
        admin.execute(f"RESET ROLE; DROP OWNED BY {other}; DROP ROLE {other}")


AS_AN_OWNER = """
CREATE ROLE {0} LOGIN PASSWORD 'secret' CREATEROLE;
CREATE TABLE theirs (id int); GRANT SELECT ON theirs TO lifecycle_jobs;
GRANT SELECT (password_hash) ON users TO lifecycle_jobs;
GRANT CREATE ON SCHEMA public TO {0};
ALTER SCHEMA ops OWNER TO {0};
DO $$ DECLARE v record; BEGIN
    FOR v IN SELECT c.oid::regclass AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE n.nspname IN ('ops', 'public') AND c.relname <> 'theirs' AND c.relkind IN ('r', 'v', 'p') LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO {0}', v.name);
    END LOOP;
END $$;
"""


def test_an_owner_who_is_no_superuser_can_do_it_and_is_told_of_tables_of_others(admin, database, as_role, stack):
    owner = f"owner_{database.name}"
    admin.execute(AS_AN_OWNER.replace("{0}", owner))
    try:
        url = database.superuser_url.partition("@")[2]
        done = migrate.grant(f"postgresql://{owner}:secret@{url}", DEFAULT_POLICY_FILE)

        assert done.statements == ['REVOKE SELECT ("password_hash") ON "public"."users" FROM "lifecycle_jobs"']
        assert done.notes == [
            "lifecycle_jobs may still SELECT public.theirs: postgres granted it, so connect as postgres and REVOKE it"
        ]
        refused(as_role, grants.ROLE, "SELECT password_hash FROM users")
        as_role(grants.ROLE, "SELECT id, ctid FROM users")
    finally:
        admin.execute(f"REASSIGN OWNED BY {owner} TO postgres; DROP OWNED BY {owner}; DROP ROLE {owner}")


def test_a_member_of_another_role_is_reported(admin, give, database):
    other = f"other_{database.name}"
    admin.execute(f"CREATE ROLE {other}; GRANT SELECT ON users TO {other}; GRANT {other} TO lifecycle_reader")
    try:
        assert give().notes == [
            (
                "lifecycle_reader may SELECT columns of public.users as a member of another role, whatever the policy file"
                " says: REVOKE that"
            )
        ]
    finally:
        admin.execute(f"DROP OWNED BY {other}; DROP ROLE {other}")


def test_all_tables_that_do_not_exist_are_named_with_their_lines_and_nothing_is_changed(admin, give):
    before = admin.execute(HELD).fetchall()
    with pytest.raises(migrate.OpsError) as refusal:
        give({"a": policy(table="public.nowhere"), "b": policy(table="public.neither")})
    for place in ("policies.a.key", "table public.nowhere does not exist", "policies.b.key", "public.neither"):
        assert place in str(refusal.value)
    assert admin.execute(HELD).fetchall() == before


def test_all_columns_that_do_not_exist_are_named_with_their_places_and_the_rest_is_given(admin, give, as_role):
    admin.execute(TREE)
    rules = {"old": {"anchor": "made_at", "keep": "30 days", "when": {"colour": "red"}}}

    done = give({"things": policy(person="whose", rules=rules)})

    assert [each.partition(" (line ")[0] for each in done.missing] == [
        "policies.things.person",
        "policies.things.rules.old.when.colour",
    ]
    assert done.missing[0].endswith("): column public.things.whose does not exist")
    as_role(grants.ROLE, "SELECT id, made_at FROM things")


def test_a_partition_that_a_run_has_detached_stays_readable_until_the_run_is_done_with_it(admin, give, as_role):
    admin.execute(TREE)
    admin.execute(
        "ALTER TABLE logs DETACH PARTITION logs_all; GRANT SELECT (id) ON logs_all TO lifecycle_jobs;"
        "INSERT INTO ops.detached_partitions (id, policy, table_name, partition_name, table_oid, partition_oid, bound,"
        " ends_at, run_id, cutoff_at, granted) SELECT gen_random_uuid(), 'logs', 'public.logs', 'public.logs_all',"
        " 'logs'::regclass, 'logs_all'::regclass, 'DEFAULT', now(), gen_random_uuid(), now(), true"
    )

    give({"logs": policy(table="public.logs")})
    as_role(grants.ROLE, "SELECT id FROM logs_all")

    admin.execute("UPDATE ops.detached_partitions SET state = 'gone', closed_at = now()")
    give({"logs": policy(table="public.logs")})
    refused(as_role, grants.ROLE, "SELECT id FROM logs_all")
