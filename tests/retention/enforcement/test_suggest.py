"""A policy file for tables that nobody described: it loads once its periods are decided, and its dry run is right."""

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.jobs.entry_point import main
from scripts.lifecycle.policy.policy_file import load_policies
from scripts.retention.enforce_retention_policies import JOB
from scripts.utils.errors import Misconfigured
from tests.lifecycle.support import ago
from tests.retention.enforcement.conftest import done

ODD = """
CREATE SCHEMA odd;
CREATE TABLE odd."People" ("personNo" bigint PRIMARY KEY, "eMail" text, born date, "lastSeen" timestamptz);
CREATE TABLE odd."Messages" (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), sender bigint REFERENCES odd."People",
    receiver bigint REFERENCES odd."People", sent_at timestamptz);
CREATE INDEX ON odd."Messages" (sent_at); CREATE INDEX ON odd."Messages" (sender);
CREATE INDEX ON odd."Messages" (receiver);
CREATE TABLE odd."the, parts" (message uuid REFERENCES odd."Messages" ON DELETE CASCADE, "no.: #1" int, made_at date,
    PRIMARY KEY (message, "no.: #1"));
CREATE TABLE odd."order.items" (id bigint PRIMARY KEY, closed_at timestamp, created_at timestamp);
CREATE INDEX ON odd."order.items" (created_at);
CREATE TABLE odd.events (id bigint, at timestamptz, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE odd.events_1 PARTITION OF odd.events DEFAULT;
CREATE TABLE odd.log (line text, at timestamptz);
CREATE TABLE odd.countries (code text PRIMARY KEY, label text);
CREATE TABLE odd."no" (id bigint PRIMARY KEY, phone text);
CREATE TABLE odd.files (id bigint PRIMARY KEY, url text, made_at timestamptz);
CREATE INDEX ON odd.files (made_at);
CREATE TABLE odd.old_files (fax text) INHERITS (odd.files);
CREATE INDEX ON odd.old_files (made_at);
CREATE DOMAIN odd.mail AS text;
CREATE TABLE odd."true" (id bigint PRIMARY KEY, "e-mail" odd.mail, "two
lines: # x" timestamptz);
"""


@pytest.fixture
def odd(admin):
    """Tables of odd names and shapes, with rows of 10, 80 and 100 days."""
    admin.execute(ODD)
    ages = [ago(days=days) for days in (10, 80, 100)]
    for number, at in enumerate(ages):
        admin.execute('INSERT INTO odd."People" VALUES (%s, %s, %s, %s)', (number, f"p{number}@example.com", at, at))
        admin.execute('INSERT INTO odd."Messages" VALUES (DEFAULT, %s, 0, %s)', (number, at))
        admin.execute('INSERT INTO odd."order.items" VALUES (%s, %s, %s)', (number, None, at))
        admin.execute("INSERT INTO odd.events VALUES (%s, %s)", (number, at))
        admin.execute(
            "INSERT INTO odd.files VALUES (%s, 'https://x1.public.blob.vercel-storage.com/f.pdf', %s)", (number, at)
        )
    return admin


@pytest.fixture
def suggest(settings, database, monkeypatch, capsys):
    """A function that runs --suggest as the tables' owner, who has a right to read them, and returns what is printed."""

    def run(*arguments, url=None):
        monkeypatch.setenv("DATABASE_URL", url or database.superuser_url)
        capsys.readouterr()
        code = main(JOB, ["--suggest", *arguments])
        printed = capsys.readouterr()
        monkeypatch.setenv("DATABASE_URL", database.url)
        assert code == 0, printed.err
        return printed.out

    return run


@pytest.fixture
def decide(tmp_path, database):
    """A function that decides every period and gives the rights; returns the file."""

    def write(text, period="90 days"):
        path = tmp_path / "decided.yaml"
        path.write_text(text.replace("keep: ???", f"keep: {period}"))
        migrate.grant(database.superuser_url, path)
        return path

    return write


def test_what_is_suggested_does_not_load_before_its_periods_are_decided(odd, suggest, tmp_path):
    path = tmp_path / "suggested.yaml"
    path.write_text(suggest())

    with pytest.raises(Misconfigured) as refused:
        load_policies(path)

    assert str(refused.value).count("is yours to decide: how long is a row kept") > 3
    assert "policies.order_items.rules.expired.keep (line " in str(refused.value)


def test_the_sample_application_is_suggested_whole(suggest, decide, enforce):
    path = decide(suggest())

    run = enforce(path, "--check")

    bad = [line for line in run.events("policy_check") if line["status"] != "PASS"]
    assert run.code == 0, bad
    assert all("has no index" in line["message"] for line in bad)
    policies = load_policies(path)
    assert policies.policies["users"].person == "normalized_email"
    assert policies.policies["job_runs"].table == "ops.job_runs"
    assert policies.erasure.keys() == {
        *("users", "quiz_responses", "meal_plans", "payment_transactions"),
        *("magic_link_tokens", "email_blacklist", "manual_resolution", "refund_counts"),
    }
    assert policies.jobs["enforce_gdpr_deletion"].lock == "lock:retention:enforce_gdpr_deletion"


def test_odd_tables_are_suggested_and_the_dry_run_is_right(odd, suggest, decide, enforce):
    text = suggest()
    path = decide(text)

    check = enforce(path, "--check")
    dry = enforce(path, "--all", "--dry-run")

    bad = [line for line in check.events("policy_check") if line["status"] != "PASS"]
    assert {line["subject"] for line in bad if "index" not in line["message"]} == {"odd.no"}, bad
    assert {reason for _, reason in done(dry)} == {"dry_run"}
    # Of the people number 2 is due, and her message keeps her. In the real run that goes before her.
    deleted = {line["policy"]: line["records_deleted"] for line in dry.events("policy_done") if line["records_deleted"]}
    assert deleted == {"messages": 1, "order_items": 1, "events": 1, "files": 1}
    policies = load_policies(path)
    assert policies.policies["people"].table == "odd.People"
    assert policies.policies["order_items"].table == "odd.order.items"
    assert policies.policies["order_items"].rules["expired"].anchor == "created_at", "the indexed one comes first"
    assert policies.policies["people"].rules["expired"].anchor == "lastSeen", "nobody's age begins with her birth"
    assert policies.policies["the_parts"].key == ("message", "no.: #1")
    assert policies.policies["messages"].dependants[0].action == "delete"
    assert policies.erasure["messages"].by == ("receiver", "sender")
    assert policies.erasure["people"].person == "eMail"
    assert policies.policies["true"].person == "e-mail", "also of a domain, and where YAML would read a truth"
    assert policies.policies["true"].rules["expired"].anchor == "two\nlines: # x"
    assert policies.kept["odd.no"].startswith("not decided: no date")
    assert "log" not in policies.policies
    assert "# Without a primary key no policy can name a row, so there is none for: odd.log.\n" in text
    assert "# url names blobs (3 of the rows looked at)" in text
    assert "countries" not in text.split("policies:")[1]
    for personal in ("p1@example.com", "f.pdf"):
        assert personal not in text


def test_beside_a_policy_file_only_what_it_lacks_is_suggested(odd, suggest, decide, tmp_path):
    document = yaml.safe_load(suggest())
    for name in ("messages", "people"):
        del document["policies"][name]
        del document["erasure"][name]
    document["jobs"]["enforce_retention_policies"]["policies"] = ["files"]
    del document["erasure"]["the_parts"]
    path = decide(yaml.safe_dump(document, sort_keys=False).replace("???", "90 days"))

    part = suggest("--policy-file", str(path))

    entries = yaml.safe_load(part)
    assert entries.keys() == {"policies", "erasure"}
    assert entries["policies"].keys() == {"messages", "people"}
    assert entries["erasure"].keys() == {"messages", "people"}

    for section, added in entries.items():
        document[section] |= added
    path.write_text(yaml.safe_dump(document, sort_keys=False).replace("???", "90 days"))
    assert suggest("--policy-file", str(path)).startswith("# Nothing to suggest")


@pytest.mark.parametrize("content", ["", "\n# to be written\n"])
@pytest.mark.parametrize("spelling", ["--policy-file {}", "--policy-file={}"])
def test_beside_a_file_that_says_nothing_yet_everything_is_suggested(odd, suggest, tmp_path, content, spelling):
    path = tmp_path / "new.yaml"
    path.write_text(content)

    assert suggest(*spelling.format(path).split()) == suggest()


def test_steps_come_children_before_parents(odd, suggest):
    steps = list(yaml.safe_load(suggest())["erasure"])

    assert steps.index("the_parts") < steps.index("messages") < steps.index("people")
    assert steps.index("quiz_responses") < steps.index("users")


def test_a_role_that_may_not_read_the_rows_is_told_so(odd, suggest, database):
    text = suggest(url=database.url)

    assert "# Rows of these tables could not be counted and dated, for lack of rights: odd." in text
    assert "table: odd.files  # about" in text


def test_nothing_is_written(odd, suggest):
    before = odd.execute("SELECT count(*) FROM ops.job_runs").fetchone()

    suggest()

    assert odd.execute("SELECT count(*) FROM ops.job_runs").fetchone() == before


def test_the_suggestion_names_ages_and_never_a_day_of_birth(odd, suggest):
    text = suggest()

    assert f"table: odd.files  # about 0 rows, the oldest of {ago(days=100).date()}" in text
    assert "born" not in text
