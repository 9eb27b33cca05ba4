"""``migrate.py --indexes``: what the application's tables lack is printed, and made only with ``--apply``."""

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE

# Everything that the shipped file needs and production has no index for.
STATEMENTS = [
    'CREATE INDEX CONCURRENTLY ON "public"."meal_plans" (ops.blob_key("pdf_blob_path"))',
    'CREATE INDEX CONCURRENTLY ON "public"."payment_transactions" ("meal_plan_id")',
    'CREATE INDEX CONCURRENTLY ON "public"."refund_counts" ("updated_at")',
    'CREATE INDEX CONCURRENTLY ON "public"."manual_resolution" ("resolved_at")',
    'CREATE INDEX CONCURRENTLY ON "public"."quiz_responses" ("user_id")',
    'CREATE INDEX CONCURRENTLY ON "public"."manual_resolution" ("normalized_email")',
]


@pytest.fixture
def indexes(database, monkeypatch, capsys):
    """A function that runs the command and returns what it printed."""
    monkeypatch.setenv("MIGRATION_DATABASE_URL", database.superuser_url)

    def indexes(*arguments, file=DEFAULT_POLICY_FILE):
        code = migrate.main(["--indexes", str(file), *arguments])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out.splitlines()

    return indexes


@pytest.fixture
def things_file(tmp_path):
    """A function that writes a policy file about the table public.things."""

    def things_file(**changes):
        document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
        things = document["policies"]["job_runs"] | {
            "table": "public.things",
            "rules": {"old": {"anchor": "at", "keep": "30 days"}},
        }
        path = tmp_path / "things.yaml"
        only = {"policies": {"things": things | changes}, "jobs": {}}
        only |= {"defaults": document["defaults"]} if "defaults" in document else {}
        path.write_text(yaml.safe_dump(only))
        return path

    return things_file


def count(link):
    return link.execute("SELECT count(*) FROM pg_index").fetchone()[0]


def test_they_are_printed_with_their_reason_and_nothing_is_made(indexes, database):
    link = database.superuser()
    before = count(link)
    lines = indexes()
    assert [line.removesuffix(";") for line in lines if not line.startswith("--")] == STATEMENTS
    assert lines[0] == "-- policy meal_plan_pdfs: each blob that is about to go is looked for in all rows"
    assert "-- erasure users: foreign key quiz_responses_user_id_fkey" in "\n".join(lines)
    assert count(link) == before


def test_each_statement_works_as_it_is_printed(indexes, database):
    link = database.superuser()
    for line in indexes():
        if not line.startswith("--"):
            link.execute(line)
    assert indexes() == ["nothing is missing"]


def test_apply_makes_them_and_a_second_time_finds_nothing(indexes):
    made = [line for line in indexes("--apply") if line.startswith("made: ")]
    assert made == [f"made: {statement}" for statement in STATEMENTS]
    assert indexes("--apply") == ["nothing is missing"]


def test_what_an_interrupted_attempt_left_is_made_anew(indexes, database):
    link = database.superuser()
    link.execute("CREATE INDEX left_behind ON refund_counts (updated_at)")
    link.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'left_behind'::regclass")
    indexes("--apply")
    assert link.execute("SELECT to_regclass('left_behind')").fetchone() == (None,)
    assert link.execute("SELECT count(*) FROM pg_index WHERE indrelid = 'refund_counts'::regclass").fetchone() == (2,)
    assert indexes() == ["nothing is missing"]


def test_of_a_partitioned_table_each_partition_gets_one_and_the_table_takes_them_over(indexes, database, things_file):
    link = database.superuser()
    link.execute(
        "CREATE TABLE things (id bigint NOT NULL, at timestamptz NOT NULL) PARTITION BY RANGE (id);"
        'CREATE TABLE "Part, one" PARTITION OF things FOR VALUES FROM (0) TO (9);'
        "CREATE TABLE part_two PARTITION OF things FOR VALUES FROM (9) TO (19);"
        "CREATE INDEX ON part_two (at)"
    )
    path = things_file()
    indexes("--apply", file=path)
    assert indexes(file=path) == ["nothing is missing"]
    attached = "SELECT count(*) FROM pg_inherits i JOIN pg_index x ON x.indexrelid = i.inhrelid WHERE indisvalid"
    assert link.execute(attached).fetchone() == (2,)


def test_an_index_that_does_not_find_every_row_is_none(indexes, database, things_file):
    link = database.superuser()
    link.execute(
        "CREATE TABLE things (id bigint PRIMARY KEY, at timestamptz NOT NULL, kind text);"
        "CREATE INDEX ON things (at) WHERE kind = 'red'; CREATE INDEX ON things (kind, at)"
    )
    assert indexes(file=things_file())[-1] == 'CREATE INDEX CONCURRENTLY ON "public"."things" ("at");'


def test_what_is_only_kept_needs_none(indexes, database, things_file):
    database.superuser().execute("CREATE TABLE things (id bigint PRIMARY KEY, at timestamptz NOT NULL)")
    rules = {"old": {"anchor": "at", "keep": "forever"}}
    assert indexes(file=things_file(action="retain", rules=rules)) == ["nothing is missing"]


def test_apply_alone_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        migrate.main(["--apply"])
    assert stopped.value.code == 2
    assert "--apply goes with --indexes" in capsys.readouterr().err
