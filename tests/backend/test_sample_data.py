"""Sample data: the same rows for the same seed, and every rule and edge of the retention table among them."""

import re
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from backend import sample_data

AS_OF = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)  # the clocks of Europe change here: UTC must not notice
TABLES = (
    *("users", "quiz_responses", "meal_plans", "payment_transactions", "magic_link_tokens", "email_blacklist"),
    *("manual_resolution", "refund_counts"),
)


def _checksums(connection):
    rows = "SELECT md5(string_agg(t::text, E'\n' ORDER BY t::text)) FROM public.{} AS t"
    with connection.transaction():
        connection.execute("SET LOCAL timezone TO 'UTC'")  # one column has a time zone
        return [connection.execute(rows.format(table)).fetchone()[0] for table in TABLES]


def _clear(connection):
    connection.execute(f"TRUNCATE {', '.join(TABLES)}")


def _count(connection, table, condition, as_of=AS_OF):
    utc = as_of.astimezone(UTC).replace(tzinfo=None)
    return connection.execute(f"SELECT count(*) FROM public.{table} WHERE {condition}", {"as_of": utc}).fetchone()[0]


def _quiz_counts(connection, as_of=AS_OF):
    """The kinds of quiz rows, as DOMAIN's retention rules tell them apart."""
    ended = "+ interval '24 hours' < %(as_of)s"
    sent = "(SELECT max(email_sent_at) FROM public.meal_plans AS m WHERE m.payment_id = quiz_responses.payment_id)"
    at = f"coalesce(pdf_delivered_at, {sent})"
    delivered = f"{at} IS NOT NULL"
    abandoned = f"{at} IS NULL AND payment_id IS NULL"
    undelivered = f"{at} IS NULL AND payment_id IS NOT NULL"
    conditions = {
        "total": "true",
        "delivered_due": f"{delivered} AND {at} {ended}",
        "delivered_kept": f"{delivered} AND NOT {at} {ended}",
        "abandoned_due": f"{abandoned} AND created_at {ended}",
        "abandoned_kept": f"{abandoned} AND NOT created_at {ended}",
        "undelivered_due": f"{undelivered} AND created_at {ended}",
        "undelivered_fresh": f"{undelivered} AND NOT created_at {ended}",
    }
    return {name: _count(connection, "quiz_responses", condition, as_of) for name, condition in conditions.items()}


@pytest.fixture
def connection(database):
    """A superuser's connection to empty application tables."""
    return database.superuser()


@pytest.fixture
def loaded(connection):
    """The same, with 1,000 quiz rows and what goes with them."""
    sample_data.load(connection, rows=1_000, as_of=AS_OF)
    return connection


def test_same_seed_gives_the_same_rows_and_another_seed_others(connection):
    """Every table's content is a function of seed, rows and as_of."""
    checksums = []
    for seed in (7, 7, 8):
        _clear(connection)
        sample_data.load(connection, rows=500, seed=seed, as_of=AS_OF)
        checksums.append(_checksums(connection))
    first, again, other = checksums

    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("time_zone", ["Pacific/Chatham", "America/St_Johns"])
def test_an_odd_time_zone_of_the_server_changes_nothing(database, loaded, time_zone):
    """Timestamps hold UTC, whatever the server thinks the time is."""
    expected = _checksums(loaded)
    _clear(loaded)
    loaded.execute(f"ALTER DATABASE {database.name} SET timezone TO '{time_zone}'")

    elsewhere = database.superuser()
    sample_data.load(elsewhere, rows=1_000, as_of=AS_OF)

    assert elsewhere.execute("SHOW timezone").fetchone() == (time_zone,)
    assert expected == _checksums(elsewhere)


def test_chunks_leave_no_seam(connection, monkeypatch):
    """Several statements make the rows that one would, but for the sets of answers that a chunk makes for itself."""
    sample_data.load(connection, rows=1_000, as_of=AS_OF)
    ids = "SELECT md5(string_agg(concat(id, email, created_at, payment_id), '' ORDER BY id)) FROM quiz_responses"
    expected = connection.execute(ids).fetchone()
    _clear(connection)

    monkeypatch.setattr(sample_data, "CHUNK", 300)
    counts = sample_data.load(connection, rows=1_000, as_of=AS_OF)

    assert expected == connection.execute(ids).fetchone()
    assert counts.total == 1_000


@pytest.mark.parametrize("rows", [20, 21, 999, 1_000, 3_456])
def test_stated_counts_are_the_counts_found(connection, rows):
    """The generator knows its counts by construction; SQL that it never saw agrees."""
    stated = sample_data.load(connection, rows=rows, as_of=AS_OF)

    found = _quiz_counts(connection)
    assert {name: getattr(stated, name) for name in found} == found
    assert min(found.values()) >= 1
    for table in set(TABLES) - {"quiz_responses"}:
        assert getattr(stated, table) == _count(connection, table, "true")


def test_without_as_of_ages_count_from_the_databases_now(database, connection):
    """By default the rows are due today, on a server of any time zone."""
    connection.execute("SET timezone TO 'Pacific/Kiritimati'")
    stated = sample_data.load(connection, rows=1_000)

    found = _quiz_counts(connection, stated.as_of)
    assert abs(datetime.now(UTC) - stated.as_of) < timedelta(minutes=5)
    assert stated.as_of.microsecond == 0
    assert {name: getattr(stated, name) for name in found} == found


def test_shares_are_those_of_a_table_with_a_backlog(connection):
    """Nine rows of ten are due, two of a thousand are an order still owed."""
    counts = sample_data.load(connection, rows=10_000, as_of=AS_OF)

    assert 0.54 < counts.delivered_due / counts.total < 0.56
    assert 0.34 < counts.abandoned_due / counts.total < 0.36
    assert 20 <= counts.undelivered_due <= 22


@pytest.mark.parametrize("past", [1, 0, -1])
@pytest.mark.parametrize(
    ("table", "boundary", "condition"),
    [
        ("quiz_responses", "pdf_delivered_at + interval '24 hours'", "true"),
        ("quiz_responses", "created_at + interval '24 hours'", "pdf_delivered_at IS NULL AND payment_id IS NULL"),
        ("quiz_responses", "created_at + interval '24 hours'", "pdf_delivered_at IS NULL AND payment_id IS NOT NULL"),
        ("meal_plans", "created_at + interval '90 days'", "pdf_blob_path <> ''"),
        ("meal_plans", "created_at + interval '1 year'", "pdf_blob_path = '' AND email_sent_at IS NOT NULL"),
        ("payment_transactions", "paddle_created_at + interval '7 years'", "meal_plan_id IS NULL"),
        ("magic_link_tokens", "expires_at", "true"),
        ("email_blacklist", "expires_at", "true"),
        ("manual_resolution", "resolved_at + interval '1 year'", "true"),
        ("refund_counts", "updated_at AT TIME ZONE 'UTC' + interval '1 year'", "true"),
    ],
)
def test_every_rule_has_rows_at_its_edge(loaded, table, boundary, condition, past):
    """One second past the date, exactly on it, one second before it."""
    found = _count(loaded, table, f"{condition} AND {boundary} = %(as_of)s - interval '{past} seconds'")

    assert found >= 1


@pytest.mark.parametrize(
    ("table", "condition"),
    [
        (
            "quiz_responses",
            "pdf_delivered_at >= %(as_of)s - interval '24 h' AND created_at < %(as_of)s - interval '24 h'",
        ),
        ("quiz_responses", "user_id IS NOT NULL"),
        (
            "quiz_responses AS q JOIN public.meal_plans AS m USING (payment_id)",
            "q.pdf_delivered_at IS NULL AND m.email_sent_at < %(as_of)s - interval '24 h'",
        ),
        (
            "quiz_responses AS q JOIN public.meal_plans AS m USING (payment_id)",
            "q.pdf_delivered_at IS NULL AND m.email_sent_at > %(as_of)s - interval '24 h'",
        ),
        (
            "meal_plans",
            "created_at < %(as_of)s - interval '90 days' AND pdf_blob_path LIKE 'https://%%/keto-meal-plan-%%.pdf'",
        ),
        (
            "meal_plans",
            "created_at < %(as_of)s - interval '90 days' AND pdf_blob_path = '' AND email_sent_at IS NOT NULL",
        ),
        ("meal_plans", "status = 'processing' AND pdf_blob_path = ''"),
        ("meal_plans", "created_at < %(as_of)s - interval '1 year' AND pdf_blob_path <> ''"),
        ("meal_plans", "created_at < %(as_of)s - interval '1 year' AND pdf_blob_path = ''"),
        ("meal_plans", "status = 'processing'"),
        ("meal_plans", "status = 'failed'"),
        ("meal_plans", "status = 'refunded' AND refund_count = 1"),
        (
            "meal_plans AS m JOIN public.payment_transactions AS p ON p.meal_plan_id = m.id",
            "m.created_at < %(as_of)s - interval '1 year' AND m.pdf_blob_path = ''",
        ),
        (
            "quiz_responses AS q JOIN public.payment_transactions AS p USING (payment_id)",
            "q.pdf_delivered_at IS NULL AND q.created_at < %(as_of)s - interval '24 h' AND p.payment_status = 'succeeded'",
        ),
        ("payment_transactions", "paddle_created_at < %(as_of)s - interval '7 years'"),
        ("payment_transactions", "payment_status = 'refunded'"),
        ("magic_link_tokens", "expires_at < %(as_of)s AND used_at IS NULL"),
        ("magic_link_tokens", "expires_at < %(as_of)s AND used_at IS NOT NULL AND usage_ip IS NOT NULL"),
        ("magic_link_tokens", "expires_at > %(as_of)s"),
        ("email_blacklist", "expires_at = 'infinity'"),
        ("email_blacklist", "isfinite(expires_at) AND expires_at >= '9000-01-01'"),
        ("manual_resolution", "resolved_at IS NULL AND created_at < %(as_of)s - interval '1 year'"),
        ("manual_resolution", "resolved_at < %(as_of)s - interval '1 year'"),
        ("refund_counts", "updated_at < (%(as_of)s - interval '1 year') AT TIME ZONE 'UTC'"),
    ],
)
def test_every_rule_and_exception_occurs(loaded, table, condition):
    """A thousand quiz rows bring at least one row for each line of the retention table."""
    assert _count(loaded, table, condition) >= 1


@pytest.mark.parametrize(
    ("table", "condition"),
    [
        (
            "quiz_responses",
            "greatest(created_at, updated_at, pdf_delivered_at) > %(as_of)s OR pdf_delivered_at < created_at",
        ),
        ("meal_plans", "greatest(created_at, email_sent_at) > %(as_of)s OR email_sent_at < created_at"),
        ("meal_plans", "pdf_blob_path <> '' AND email_sent_at IS NULL"),
        (
            "payment_transactions",
            "greatest(created_at, updated_at, webhook_received_at, paddle_created_at) > %(as_of)s",
        ),
        (
            "magic_link_tokens",
            "greatest(created_at, used_at) > %(as_of)s OR used_at NOT BETWEEN created_at AND expires_at",
        ),
        ("email_blacklist", "created_at > %(as_of)s"),
        ("manual_resolution", "greatest(created_at, resolved_at) > %(as_of)s OR resolved_at < created_at"),
        ("refund_counts", "updated_at > %(as_of)s::timestamp AT TIME ZONE 'UTC'"),
        ("users", "greatest(created_at, updated_at) > %(as_of)s"),
    ],
)
def test_no_row_contradicts_itself(loaded, table, condition):
    """Nothing happened in the future, nor before what it follows from."""
    assert _count(loaded, table, condition) == 0


def test_rows_are_not_in_the_order_of_their_dates(loaded):
    """A table with updates has no physical order; a cleanup must not look better than it is."""
    query = "SELECT correlation FROM pg_stats WHERE tablename = 'quiz_responses' AND attname = 'created_at'"
    (correlation,) = loaded.execute(query).fetchone()  # there at all because load ends with ANALYZE

    assert abs(correlation) < 0.2


def test_every_quiz_has_its_twenty_steps(loaded):
    """Steps 1 to 20, the last with the health data, in a size like the product's."""
    answers = [row[0] for row in loaded.execute("SELECT quiz_data FROM quiz_responses")]
    sizes = [row[0] for row in loaded.execute("SELECT length(quiz_data::text) FROM quiz_responses")]

    assert all(set(quiz) == {f"step_{step}" for step in range(1, 21)} for quiz in answers)
    assert all(set(quiz["step_20"]) == {"age", "weight_kg", "height_cm", "goal"} for quiz in answers)
    assert all(quiz[f"step_{step}"] for quiz in answers for step in range(1, 21))
    assert len({str(quiz) for quiz in answers}) > 800
    assert 700 < sum(sizes) / len(sizes) < 900


@pytest.mark.parametrize(
    ("table", "email"),
    [
        ("users", "email"),
        ("quiz_responses", "email"),
        ("meal_plans", "email"),
        ("payment_transactions", "customer_email"),
        ("magic_link_tokens", "email"),
        ("manual_resolution", "user_email"),
    ],
)
def test_normalized_email_follows_the_rule(loaded, table, email):
    """Lower case; for Gmail no dots, no tag, and googlemail.com folded in; elsewhere the tag stays."""
    pairs = loaded.execute(f"SELECT {email}, normalized_email FROM {table}").fetchall()

    assert [_normalized(address) for address, _ in pairs] == [normalized for _, normalized in pairs]
    assert any("googlemail" in address.lower() for address, _ in pairs)
    assert any(re.search(r"\+.*@example", normalized) for _, normalized in pairs)


def _normalized(address):
    name, _, domain = address.lower().partition("@")
    if domain in {"gmail.com", "googlemail.com"}:
        name, domain = name.partition("+")[0].replace(".", ""), "gmail.com"
    return f"{name}@{domain}"


@pytest.mark.parametrize("table", sorted(set(TABLES) - {"quiz_responses"}))
def test_a_person_is_found_in_more_than_one_table(loaded, table):
    """Most rows belong to a person by normalized_email alone, so it recurs."""
    assert _count(loaded, table, "normalized_email IN (SELECT normalized_email FROM quiz_responses)") >= 1


def test_too_few_rows_and_a_naive_date_are_refused(connection):
    """Both would give something else than asked for."""
    with pytest.raises(ValueError, match="at least 20"):
        sample_data.load(connection, rows=19)
    with pytest.raises(ValueError, match="time zone"):
        sample_data.load(connection, rows=20, as_of=AS_OF.replace(tzinfo=None))


def test_the_command_loads_once_and_then_refuses(database, monkeypatch, capsys):
    """A second run would mix two samples: exit 1 and one line."""
    monkeypatch.setenv("MIGRATION_DATABASE_URL", database.superuser_url)

    assert sample_data.main(["--rows", "1000", "--as-of", "2026-03-29T01:30:00"]) == 0
    assert "1,000" in capsys.readouterr().out
    assert sample_data.main(["--rows", "1000"]) == 1
    assert capsys.readouterr().err == "sample_data: quiz_responses has rows already: refused\n"


def test_the_command_names_what_is_missing(monkeypatch, capsys, database):
    """No address, or a database without the application's tables."""
    assert sample_data.main([]) == 1
    assert capsys.readouterr().err == "sample_data: set MIGRATION_DATABASE_URL or DATABASE_URL\n"

    with psycopg.connect(database.superuser_url) as connection:
        connection.execute("DROP TABLE quiz_responses")
    monkeypatch.setenv("ELSEWHERE", database.superuser_url)
    assert sample_data.main(["--database-url-from", "ELSEWHERE"]) == 1
    assert "--sample-app" in capsys.readouterr().err


@pytest.mark.parametrize("rows", ["999", "10000001", "many"])
def test_the_command_keeps_to_its_bounds(rows, capsys):
    """A typing error does not fill a disk."""
    with pytest.raises(SystemExit) as stopped:
        sample_data.main(["--rows", rows])

    assert stopped.value.code == 2
    assert "--rows" in capsys.readouterr().err


def test_indexes_are_back_after_the_load_and_after_a_failed_one(connection, monkeypatch):
    """They are put aside for speed; a load that fails leaves the tables as they were: empty, and indexed."""
    query = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexdef"
    expected = connection.execute(query).fetchall()
    with monkeypatch.context() as broken:
        broken.setattr(sample_data, "INSERT_BLACKLIST", "SELECT 1 / 0")
        with pytest.raises(psycopg.errors.DivisionByZero):
            sample_data.load(connection, rows=20, as_of=AS_OF)

    assert expected == connection.execute(query).fetchall()
    assert _quiz_counts(connection)["total"] == 0

    sample_data.load(connection, rows=20, as_of=AS_OF)

    assert expected == connection.execute(query).fetchall()
