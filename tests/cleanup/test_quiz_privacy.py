"""Nobody's address, hash or token leaves the application's tables: not in a log, not on a screen, not in schema ops."""

import pytest
from psycopg import sql

from backend import sample_data

APPLICATION_TABLES = (
    "users",
    "quiz_responses",
    "meal_plans",
    "payment_transactions",
    "magic_link_tokens",
    "email_blacklist",
    "manual_resolution",
    "refund_counts",
)
PERSONAL = (
    "email",
    "normalized_email",
    "customer_email",
    "user_email",
    "token_hash",
    "password_hash",
    "generation_ip",
    "usage_ip",
)


@pytest.fixture
def link(database):
    """The sample data, and one due row that a trigger refuses to let go, quoting it."""
    connection = database.superuser()
    counts = sample_data.load(connection, rows=1000)
    (stubborn,) = connection.execute(
        "SELECT id FROM quiz_responses WHERE payment_id IS NULL AND created_at < %s::timestamp - interval '2 days' LIMIT 1",
        (counts.as_of.replace(tzinfo=None),),
    ).fetchone()
    connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'cannot delete % of %', OLD.id, OLD.email USING ERRCODE = 'integrity_constraint_violation',"
        " DETAIL = OLD.normalized_email, HINT = OLD.quiz_data::text; END $$"
    )
    connection.execute(
        sql.SQL(
            "CREATE TRIGGER refuse BEFORE DELETE ON quiz_responses FOR EACH ROW WHEN (OLD.id = {}) EXECUTE FUNCTION refuse()"
        ).format(sql.Literal(stubborn))
    )
    return connection


def tables_of(link, schema):
    return [name for (name,) in link.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,))]


def dump(link, schema):
    """Everything that the tables of a schema hold, as text."""
    texts = []
    for table in tables_of(link, schema):
        rows = link.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(schema, table)))
        texts += [text for (text,) in rows]
    return "\n".join(texts).lower()


def personal_values(link):
    """Every address, hash and network address that the sample data holds, in lower case."""
    found = set()
    columns = link.execute(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND column_name = ANY(%s)",
        (list(PERSONAL),),
    ).fetchall()
    assert {column for _, column in columns} == set(PERSONAL)
    for table, column in columns:
        query = sql.SQL("SELECT DISTINCT lower({c}) FROM {t} WHERE {c} IS NOT NULL")
        found |= {value for (value,) in link.execute(query.format(c=sql.Identifier(column), t=sql.Identifier(table)))}
    return found


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_nothing_personal_is_said_or_kept(run, link, log_format):
    values = personal_values(link)
    assert len(values) > 1000
    assert all(value in dump(link, "public") for value in list(values)[:20]), "else the search would find nothing"
    assert set(APPLICATION_TABLES) == set(tables_of(link, "public"))

    output = ""
    for arguments in (["--dry-run", "--verbose"], ["--verbose"], []):
        done = run(*arguments, "--log-format", log_format, COLUMNS="200", LOG_LEVEL="DEBUG")
        output += (done.out + done.err).lower()
    assert "batch_refused" in output, "the row that quotes itself was met"
    assert "row_deletion_failed" in dump(link, "ops")

    for place in (output, dump(link, "ops")):
        assert "quiz_responses" in place
        assert [value for value in values if value in place] == []
        assert "step_20" not in place, "nobody's answers either"
        assert "cannot delete" not in place


def test_the_passwords_of_the_servers_are_nowhere(run, link, stack):
    done = run("--verbose", LOG_LEVEL="DEBUG", REDIS_URL=f"redis://:{stack.redis_password}@127.0.0.1:1/0")
    assert "redis_unavailable" in done.out, "the line that names what is wrong with Redis"
    for place in (done.out, done.err, dump(link, "ops")):
        for password in (stack.jobs_password, stack.redis_password):
            assert password not in place
