"""Migrations and grants on a real server."""

import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from backend import migrate
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from scripts.utils.errors import Misconfigured, OpsError
from tests.forked import run_script

SCRIPT = migrate.__file__
ALL_OPS = [str(migration) for migration in migrate.files("ops")]
ALL_SAMPLE = [str(migration) for migration in migrate.files("sample_app")]


@pytest.fixture
def copied(tmp_path):
    root = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS, root)
    return root


def run(*args, url=None, **env):
    if url:
        env["MIGRATION_DATABASE_URL"] = url
    return run_script(SCRIPT, *args, env=env)


@pytest.mark.parametrize("name", ["ops", "sample_app"])
def test_files_are_numbered_without_gaps(name):
    paths = sorted((migrate.MIGRATIONS / name).iterdir())
    assert all(re.fullmatch(r"\d{4}_[a-z][a-z0-9_]*\.sql", path.name) for path in paths)
    assert [int(path.name[:4]) for path in paths] == list(range(1, len(paths) + 1))


def test_applies_everything_once(empty_database):
    url = empty_database.superuser_url
    assert migrate.apply(url) == ALL_OPS
    assert migrate.apply(url) == []
    assert migrate.apply(url, sample_app=True) == ALL_SAMPLE
    assert migrate.check(url) == []


def test_applies_everything_through_a_transaction_pooler_too(empty_database, pooler):
    url = pooler.through(empty_database.superuser_url)
    assert migrate.apply(url, sample_app=True) == ALL_OPS + ALL_SAMPLE
    assert migrate.grant(url, DEFAULT_POLICY_FILE)
    assert migrate.check(url) == []


def test_the_owner_s_url_comes_first_then_the_host_without_a_pooler(database):
    nowhere = "postgresql://nobody@127.0.0.1:1/app"
    direct = {"DATABASE_URL_UNPOOLED": database.superuser_url, "DATABASE_URL": nowhere}
    assert run("--check", **direct).returncode == 0
    assert run("--check", url=nowhere, **direct).returncode == 1
    assert run("--check", DATABASE_URL=database.superuser_url).returncode == 0


def test_two_at_once_apply_everything_once(empty_database):
    url = empty_database.superuser_url
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: migrate.apply(url, sample_app=True), range(4)))
    assert sorted(results) == [[], [], [], ALL_OPS + ALL_SAMPLE]


def test_two_databases_at_once_share_the_role(new_database):
    databases = [new_database() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda database: migrate.apply(database.superuser_url), databases))
    assert results == [ALL_OPS] * 3


def test_a_failing_file_leaves_nothing_behind(empty_database, copied):
    number = len(ALL_OPS) + 1
    (copied / "ops" / f"{number:04}_broken.sql").write_text("CREATE TABLE ops.half (id int); SELECT nonsense;")
    with pytest.raises(OpsError, match=r"broken\.sql failed, nothing was applied: .*nonsense"):
        migrate.apply(empty_database.superuser_url, root=copied)
    connection = empty_database.superuser()
    assert connection.execute("SELECT to_regnamespace('ops')").fetchone() == (None,)


def test_a_row_value_never_shows_in_an_error(empty_database, copied):
    (copied / "ops" / f"{len(ALL_OPS) + 1:04}_broken.sql").write_text("SELECT 'ann@example.com'::int;")
    with pytest.raises(OpsError, match="22P02") as caught:
        migrate.apply(empty_database.superuser_url, root=copied)
    assert "ann@" not in str(caught.value)


def test_a_changed_file_is_found_and_refused(empty_database, copied):
    url = empty_database.superuser_url
    migrate.apply(url, root=copied)
    with (copied / "ops" / "0002_audit.sql").open("a") as file:
        file.write("-- changed\n")
    assert migrate.check(url, root=copied) == ["changed: ops/0002_audit"]
    with pytest.raises(OpsError, match="ops/0002_audit"):
        migrate.apply(url, root=copied)


def test_a_file_of_another_name_is_refused(copied):
    (copied / "ops" / "6_short.sql").touch()
    with pytest.raises(Misconfigured, match=r"6_short\.sql is not named"):
        migrate.files("ops", copied)
    with pytest.raises(Misconfigured, match="no migrations"):
        migrate.files("nowhere", copied)


def test_the_sample_app_never_touches_a_real_one(empty_database):
    empty_database.superuser().execute("CREATE TABLE public.meal_plans (id bigint)")
    done = run("--sample-app", url=empty_database.superuser_url)
    assert done.returncode == 1
    assert "public.meal_plans exists" in done.stderr
    assert empty_database.superuser().execute("SELECT to_regnamespace('ops')").fetchone() == (None,)


def test_check_and_status_write_nothing(empty_database):
    done = run("--check", url=empty_database.superuser_url)
    assert (done.returncode, done.stdout.splitlines()) == (1, [f"pending: {name}" for name in ALL_OPS])
    done = run("--status", url=empty_database.superuser_url)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"pending  {ALL_OPS[0]}")
    assert empty_database.superuser().execute("SELECT to_regnamespace('ops')").fetchone() == (None,)


def test_the_jobs_can_check_too(database):
    done = run("--check", DATABASE_URL=database.url)
    assert (done.returncode, done.stdout) == (0, "up to date\n")


def test_applies_from_a_terminal(empty_database):
    assert run(url=empty_database.superuser_url).stdout.splitlines() == ALL_OPS
    assert run(url=empty_database.superuser_url).stdout == "nothing to do\n"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"url": ""}, 2, "MIGRATION_DATABASE_URL"),
        ({"url": "postgresql//root:hidden@nowhere"}, 2, "not a valid connection string"),
        ({"password": "hidden"}, 2, "the user or the password is wrong"),
        ({"database": "missing"}, 2, "does not exist"),
        ({"port": "1"}, 1, "nothing listens"),
        ({"host": "hid@den.invalid"}, 1, "cannot be reached"),
    ],
)
def test_what_an_operator_gets_wrong(stack, change, code, words):
    parts = {"password": stack.superuser_password, "database": "postgres", "port": stack.postgres_port}
    parts |= {"host": "127.0.0.1"} | change
    url = parts.get("url", "postgresql://postgres:{password}@{host}:{port}/{database}".format(**parts))
    done = run(url=url)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "hidden" not in done.stderr
    assert "hid@" not in done.stderr


def test_an_existing_lock_is_waited_for_within_bounds(empty_database, monkeypatch):
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "100ms")
    with empty_database.superuser().transaction() as _, empty_database.superuser() as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", (migrate.LOCK_KEY,))
        with pytest.raises(OpsError, match="lock timeout"):
            migrate.apply(empty_database.superuser_url)


def test_once_there_is_a_ledger_it_is_what_migrations_lock(database, monkeypatch):
    """Any login may take an advisory lock, and none but the owner's this one."""
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "100ms")
    with database.superuser() as stranger:
        stranger.execute("SELECT pg_advisory_lock(%s)", (migrate.LOCK_KEY,))
        assert migrate.apply(database.superuser_url) == []
    with database.superuser() as other:
        other.execute("BEGIN; LOCK TABLE ops.schema_migrations IN EXCLUSIVE MODE")
        with pytest.raises(OpsError, match="lock timeout"):
            migrate.apply(database.superuser_url)


def test_grants_from_a_terminal(database, tmp_path):
    done = run("--grants", str(DEFAULT_POLICY_FILE), url=database.superuser_url)
    assert done.returncode == 0
    assert done.stdout == "nothing to do\n"
    path = tmp_path / "p.yaml"
    path.write_text(DEFAULT_POLICY_FILE.read_text().replace("anchor: pdf_delivered_at", "anchor: given_at"))
    done = run("--grants", str(path), url=database.superuser_url)
    assert done.returncode == 1
    assert "rules.delivered.anchor (line 32): column public.quiz_responses.given_at does not exist" in done.stdout
    done = run("--grants", str(tmp_path / "missing.yaml"), url=database.superuser_url)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_a_policy_for_a_missing_table_is_named(empty_database):
    migrate.apply(empty_database.superuser_url)
    done = run("--grants", str(DEFAULT_POLICY_FILE), url=empty_database.superuser_url)
    assert done.returncode == 1
    for place in ("policies.quiz_responses.key (line 14): table public.quiz_responses does not exist", "public.users"):
        assert place in done.stderr


def test_the_jobs_may_lock_and_delete_what_a_policy_names(database):
    connection = database.connect()
    connection.execute("SELECT id FROM public.quiz_responses FOR UPDATE SKIP LOCKED")
    connection.execute("DELETE FROM public.quiz_responses WHERE id = 'x'")


def test_the_jobs_may_put_back_what_a_policy_archives(database):
    connection = database.connect()
    connection.execute("DELETE FROM public.payment_transactions WHERE id = 'x'")
    connection.execute("INSERT INTO public.payment_transactions SELECT * FROM public.payment_transactions")


@pytest.mark.parametrize(
    "forbidden",
    [
        "UPDATE public.users SET email = ''",
        "UPDATE public.payment_transactions SET amount = 0",
        "UPDATE public.quiz_responses SET email = ''",
        "INSERT INTO public.quiz_responses DEFAULT VALUES",
        "TRUNCATE public.quiz_responses",
        "UPDATE ops.audit_batches SET actor = 'system:x'",
        "INSERT INTO ops.audit_batches DEFAULT VALUES",
        "DELETE FROM ops.audit_batches",
        "TRUNCATE ops.audit_batches",
        "UPDATE ops.audit_head SET seq = 0",
        "DELETE FROM ops.leases",
        "DELETE FROM ops.policy_versions",
        "UPDATE ops.schema_migrations SET checksum = ''",
        "CREATE TABLE ops.mine (id int)",
        "CREATE TABLE public.mine (id int)",
        "CREATE ROLE other",
    ],
)
def test_the_jobs_may_not(database, forbidden):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.connect().execute(forbidden)


@pytest.mark.parametrize(
    "forbidden", ["UPDATE ops.audit_batches SET seq = 1", "DELETE FROM ops.audit_batches", "TRUNCATE ops.audit_batches"]
)
def test_even_the_owner_may_not_change_the_audit(database, forbidden):
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        database.superuser().execute(forbidden)


CHILDREN = """
CREATE TABLE {name} (id bigint PRIMARY KEY, answer varchar(36) REFERENCES quiz_responses, secret text);
"""


def test_dependants_get_what_their_action_needs(database, tmp_path):
    actions = {"cut": "set_null", "gone": "delete", "seen": "refuse"}
    database.superuser().execute("".join(CHILDREN.format(name=name) for name in [*actions, "undeclared"]))
    lines = [f"      - {{table: public.{name}, column: answer, action: {action}}}" for name, action in actions.items()]
    text = re.sub(
        r"(?<=table: public.quiz_responses\n)",
        "\n".join(["    dependants:", *lines, ""]),
        DEFAULT_POLICY_FILE.read_text(),
        count=1,
    )
    path = tmp_path / "policies.yaml"
    path.write_text(text)
    granted = migrate.grant(database.superuser_url, path).statements
    assert len(granted) == len(set(granted))
    assert migrate.grant(database.superuser_url, path).statements == []
    jobs = database.connect()
    jobs.execute("UPDATE cut c SET answer = NULL WHERE answer = 'x' RETURNING c.id, c.ctid")
    jobs.execute("DELETE FROM gone c WHERE answer = 'x' RETURNING c.id, c.tableoid")
    jobs.execute("SELECT FROM seen c WHERE c.answer = 'x'")
    jobs.execute("SELECT FROM undeclared c WHERE c.answer = 'x'")
    for forbidden in (
        *(f"SELECT secret FROM {name}" for name in [*actions, "undeclared"]),
        "SELECT id FROM undeclared",
        "SELECT id FROM seen",
        "UPDATE cut SET id = 1",
        "DELETE FROM cut",
        "UPDATE gone SET answer = NULL",
        "DELETE FROM seen",
        "UPDATE seen SET answer = NULL",
        "DELETE FROM undeclared",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            jobs.execute(forbidden)


def test_help_needs_no_environment():
    done = run("--help")
    assert done.returncode == 0
    assert "--grants" in done.stdout
    assert sys.executable not in done.stdout
