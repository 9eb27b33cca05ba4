"""Back from the archive: every type as it was, tables that have changed since, and nobody who was erased."""

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.archives import health as archive_health
from scripts.lifecycle.archives.keys import ArchiveKeys
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE
from scripts.utils.settings import Settings
from tests.lifecycle.archives.payments import MASTER_KEY, OTHER_KEY

RESTORE = ("restore", "--policy", "payment_transactions")

_TYPES = r"""
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE everything (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, made_at timestamptz NOT NULL, who text, secret text,
    a_text text, a_char char(5), a_varchar varchar(40), an_int integer, a_numeric numeric(20,6), any_numeric numeric,
    a_real real, a_double double precision, a_bool boolean, a_json json, a_jsonb jsonb, a_uuid uuid, some_bytes bytea,
    a_date date, a_time time, a_naive timestamp, a_zoned timestamptz, an_interval interval, an_inet inet, a_mood mood,
    texts text[], numbers integer[], a_range int4range, "odd ""name" text,
    half integer GENERATED ALWAYS AS (an_int / 2) STORED
);
CREATE INDEX ON everything (made_at);
INSERT INTO everything (made_at, who, secret, a_text, a_char, a_varchar, an_int, a_numeric, any_numeric, a_real,
    a_double, a_bool, a_json, a_jsonb, a_uuid, some_bytes, a_date, a_time, a_naive, a_zoned, an_interval, an_inet,
    a_mood, texts, numbers, a_range, "odd ""name")
VALUES
    (now() - interval '9 years', 'anna', E'a\tb', E'line\nline\r\\ \\N \\. \t ümlaut 漢字 "q" ''q''', 'ab', 'v', 1,
     1234567.123456, 'NaN', 1.1, 0.1, true, '{"b": 1,  "a": [1, 2]}', '{"b": 1, "a": null}',
     'c6a1b2b0-0000-4000-8000-000000000000', '\x00ff0a5c', '2001-02-03', '04:05:06.789', '2001-02-03 04:05:06.789012',
     '2001-02-03 04:05:06+07', '1 year 2 mons -3 days 04:05:06', '2001:db8::1/64', 'happy',
     ARRAY['a,b', 'c"d', NULL, E'e\nf', ''], ARRAY[[1, 2], [3, NULL]], '[1,5)', 'x'),
    (now() - interval '9 years', 'ben', NULL, '', '', '', -2147483648, -0.000001, 1e100, 'Infinity', '-Infinity', false,
     'null', 'null', NULL, '', '-infinity', '24:00', 'infinity', '-infinity', '-1 mons', '0.0.0.0', 'sad', '{}', '{}',
     'empty', ''),
    (now() - interval '9 years', 'cleo', '\N', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (now() - interval '9 years', NULL, 'of nobody', '\N', NULL, NULL, NULL, NULL, NULL, 'NaN', 1e-300, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)
"""


@pytest.fixture
def everything(payments, tmp_path, database):
    """A table with a column of every kind, and the flags of its policy."""
    payments.link.execute(_TYPES)
    policy = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    policy["policies"] = {
        "everything": policy["policies"]["payment_transactions"]
        | {
            "table": "public.everything",
            "person": "who",
            "archive": {"personal": ["who", "secret"], "keep": "forever", "rows": 100},
            "rules": {"old": {"anchor": "made_at", "keep": "7 years"}},
        }
    }
    job = policy["jobs"]["archive_before_delete"]
    del policy["erasure"]
    policy["jobs"] = {"archive_before_delete": job | {"policies": ["everything"]}}
    path = tmp_path / "everything.yaml"
    path.write_text(yaml.safe_dump(policy, sort_keys=False))
    migrate.grant(database.superuser_url, path)
    return ("--policy-file", str(path))


def whole(payments):
    return payments.link.execute("SELECT t::text FROM everything t ORDER BY id").fetchall()


def test_every_type_comes_back_as_it_was(run, payments, everything, database):
    before = whole(payments)
    # Whatever the server's settings are, an archive is written in one way.
    payments.link.execute(
        f"ALTER DATABASE {database.name} SET DateStyle = 'ISO, DMY';"
        f"ALTER DATABASE {database.name} SET IntervalStyle = 'iso_8601';"
        f"ALTER DATABASE {database.name} SET extra_float_digits = 0;"
        f"ALTER DATABASE {database.name} SET bytea_output = 'escape';"
        f"ALTER DATABASE {database.name} SET TimeZone = 'Asia/Kathmandu'"
    )
    done = run(*everything)
    assert (done.code, done.closing["records_deleted"]) == (0, 4)
    assert whole(payments) == []
    assert run("restore", "--policy", "everything", *everything).code == 0
    assert whole(payments) == before
    assert run("verify", *everything).code == 0


def destroy_person_key(db, settings, person=b"person.4@example.com"):
    """What an erasure does to the archives, and nothing else of it."""
    (pseudonym,) = ArchiveKeys(db, settings).pseudonyms([person])
    destroyed = (
        "UPDATE ops.archive_keys SET wrapped = NULL, pseudonym = NULL, destroyed_at = now() WHERE pseudonym = %b"
    )
    assert db.write(lambda connection: connection.execute(destroyed, (pseudonym,)).rowcount) == 1


def test_a_person_whose_key_was_destroyed_does_not_come_back(run, payments, db, settings):
    payments.fill(20)
    run()
    destroy_person_key(db, settings)
    hers = {payments.id(number) for number in range(1, 21) if number % 9 == 4}
    done = run(*RESTORE)
    assert (done.code, done.event("records_restored")["records_erased"]) == (0, len(hers))
    assert payments.rows().keys() == (payments.due.keys() | payments.survivors.keys()) - hers
    assert sum(line["rows_of_erased"] for line in run("verify").events("archive_intact")) == len(hers)


def test_only_her_personal_columns_are_unreadable(run, payments, db, settings):
    payments.fill(20)
    amounts = dict(payments.link.execute("SELECT id, amount::text || created_at FROM payment_transactions").fetchall())
    run()
    destroy_person_key(db, settings)
    payments.link.execute(
        "CREATE TABLE public.for_the_tax_office (LIKE public.payment_transactions);"
        "ALTER TABLE for_the_tax_office ALTER customer_email DROP NOT NULL, ALTER normalized_email DROP NOT NULL;"
        " GRANT SELECT, INSERT ON public.for_the_tax_office TO lifecycle_jobs"
    )
    done = run(*RESTORE, "--into", "public.for_the_tax_office", "--include-erased")
    assert done.code == 0
    found = payments.link.execute(
        "SELECT id, amount::text || created_at, normalized_email, customer_email FROM for_the_tax_office"
    ).fetchall()
    assert {key: amount for key, amount, *_ in found} == {key: amounts[key] for key in payments.due}
    for key, _, *personal in found:
        hers = int(key[:8], 16) % 9 == 4
        assert (personal == [None, None]) == hers


def test_into_the_table_itself_the_erased_cannot_be_forced(run, payments, db, settings):
    payments.fill(20)
    run()
    destroy_person_key(db, settings)
    done = run(*RESTORE, "--include-erased")
    assert (done.code, payments.rows()) == (1, payments.survivors)
    assert "not_null" in done.closing["error"].lower().replace("notnull", "not_null")


def test_nothing_in_the_database_opens_what_was_destroyed(run, payments, db, settings):
    payments.fill(20)
    run()
    destroy_person_key(db, settings)
    row = payments.link.execute(
        "SELECT wrapped, pseudonym FROM ops.archive_keys WHERE destroyed_at IS NOT NULL"
    ).fetchall()
    assert row == [(None, None)]


def test_who_comes_back_as_a_customer_gets_a_new_key(run, payments, db, settings):
    payments.fill(10)
    run("--limit", "5")
    destroy_person_key(db, settings)
    payments.link.execute("UPDATE payment_transactions SET normalized_email = 'person.4@example.com'")
    run()
    run(*RESTORE)
    assert payments.id(4) not in payments.rows()
    assert payments.id(8) in payments.rows()


def test_a_column_that_was_dropped_is_named_and_nothing_is_restored(run, payments):
    payments.fill(5)
    run()
    payments.link.execute("ALTER TABLE payment_transactions DROP COLUMN payment_method")
    done = run(*RESTORE)
    assert done.code == 1
    assert "no column payment_method any more" in done.closing["error"]
    assert len(payments.rows()) == len(payments.survivors)
    assert run(*RESTORE, "--drop", "payment_method").code == 0
    assert len(payments.rows()) == len(payments.survivors) + 5


def test_a_column_that_was_renamed_is_mapped(run, payments):
    payments.fill(5)
    run()
    payments.link.execute("ALTER TABLE payment_transactions RENAME COLUMN payment_method TO method")
    assert run(*RESTORE).code == 1
    assert run(*RESTORE, "--map", "payment_method=method").code == 0
    assert payments.rows() == payments.due | payments.survivors


def test_a_new_column_that_must_be_filled_is_named(run, payments):
    payments.fill(5)
    run()
    payments.link.execute("ALTER TABLE payment_transactions ADD COLUMN tax numeric NOT NULL DEFAULT 0")
    payments.link.execute("ALTER TABLE payment_transactions ALTER tax DROP DEFAULT")
    done = run(*RESTORE)
    assert (done.code, "payment_transactions.tax must not be null" in done.closing["error"]) == (1, True)
    payments.link.execute("ALTER TABLE payment_transactions ALTER tax SET DEFAULT 0")
    assert run(*RESTORE).code == 0


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ("ALTER amount TYPE numeric(14,4)", True),
        ("ALTER amount TYPE numeric(10,0)", False),
        ("ALTER payment_method TYPE varchar(3)", False),
        ("ALTER payment_method TYPE text", True),
        ("ALTER id TYPE uuid USING id::uuid", True),
        ("ALTER created_at TYPE timestamptz USING created_at AT TIME ZONE 'UTC'", True),
        ("ALTER created_at TYPE date", False),
    ],
)
def test_a_column_of_another_type_takes_only_what_stays_the_same(run, payments, change, fits):
    payments.fill(10)
    run()
    payments.link.execute("DELETE FROM payment_transactions")
    payments.link.execute(f"ALTER TABLE payment_transactions {change}")
    done = run(*RESTORE)
    assert done.code == (0 if fits else 1)
    assert len(payments.rows()) == (10 if fits else 0)
    if not fits:
        assert "would not be the same" in done.closing["error"]


def test_a_row_that_clashes_with_a_new_one_stops_its_archive(run, payments):
    payments.fill(5)
    run()
    payments.link.execute("UPDATE payment_transactions SET payment_id = 'pay_3' WHERE id = %s", (payments.id(100_001),))
    done = run(*RESTORE)
    assert (done.code, "payment_transactions_payment_id_key" in done.closing["error"]) == (1, True)
    assert len(payments.rows()) == len(payments.survivors)


def test_a_dry_run_of_a_restore_puts_nothing_back(run, payments):
    payments.fill(5)
    run()
    done = run(*RESTORE, "--dry-run")
    assert (done.code, done.event("records_restored")["records_restored"]) == (0, 5)
    assert payments.rows() == payments.survivors
    assert payments.audited("restore") == []
    assert run(*RESTORE, CLEANUP_DRY_RUN="true").code == 0
    assert payments.rows() == payments.survivors


def test_after_a_rotation_everything_opens_with_the_new_key_alone(run, payments, folder):
    payments.fill(20)
    run("--batch-size", "10")
    before = {path: path.read_bytes() for path in folder.rglob("*.archive")}
    both = {"ARCHIVE_MASTER_KEY": OTHER_KEY, "ARCHIVE_PREVIOUS_MASTER_KEYS": MASTER_KEY}
    assert run("rotate-keys", "--dry-run", **both).event("keys_would_be_rotated")["keys"] == 12
    done = run("rotate-keys", **both)
    assert (done.code, done.event("keys_rotated")["by_master_key"]) == (0, {"m2": 12})
    alone = {"ARCHIVE_MASTER_KEY": OTHER_KEY, "ARCHIVE_PREVIOUS_MASTER_KEYS": None}
    assert run("verify", **alone).code == 0
    assert run(*RESTORE, **alone).code == 0
    assert payments.rows() == payments.due | payments.survivors
    assert {path: path.read_bytes() for path in folder.rglob("*.archive")} == before
    assert run("verify", ARCHIVE_MASTER_KEY=MASTER_KEY).code == 2


def test_before_the_rotation_old_and_new_archives_open(run, payments):
    payments.fill(20)
    run("--limit", "10")
    both = {"ARCHIVE_MASTER_KEY": OTHER_KEY, "ARCHIVE_PREVIOUS_MASTER_KEYS": MASTER_KEY}
    assert run(**both).code == 0
    assert run(*RESTORE, **both).code == 0
    assert payments.rows() == payments.due | payments.survivors


def test_a_key_that_is_destroyed_during_a_rotation_stays_destroyed(run, payments, db, settings):
    payments.fill(9)
    run()
    destroy_person_key(db, settings)
    run("rotate-keys", ARCHIVE_MASTER_KEY=OTHER_KEY, ARCHIVE_PREVIOUS_MASTER_KEYS=MASTER_KEY)
    assert payments.link.execute(
        "SELECT count(*) FROM ops.archive_keys WHERE destroyed_at IS NOT NULL AND wrapped IS NULL"
    ).fetchone() == (1,)


def test_a_health_check_is_told_of_keys_that_are_lost_or_old(run, payments, db, settings):
    assert archive_health.warnings(db, settings) == []
    payments.fill(5)
    run()
    assert archive_health.warnings(db, settings) == []
    lost = settings.model_copy(update={"archive_master_key": None})
    (said,) = archive_health.warnings(db, lost)
    assert "A lost master key loses every archive" in said
    both = {"ARCHIVE_MASTER_KEY": OTHER_KEY, "ARCHIVE_PREVIOUS_MASTER_KEYS": MASTER_KEY}
    (said,) = archive_health.warnings(db, Settings(**both))
    assert said.endswith("run rotate-keys")
    payments.link.execute(
        "INSERT INTO ops.archives (id, policy, table_name, object, run_id, created_at)"
        " VALUES (gen_random_uuid(), 'a', 'b', 'c', gen_random_uuid(), now() - interval '2 days')"
    )
    (said,) = archive_health.warnings(db, settings)
    assert "unfinished" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("restore", "--policy", "nothing"), "no policy of that name"),
        (("restore", "--policy", "quiz_responses"), "no policy of that name"),
        ((*RESTORE, "--id", "00000000-0000-4000-8000-00000000ffff"), "knows of no archive"),
        ((*RESTORE, "--archive", "00000000-0000-4000-8000-00000000ffff"), "no sealed archive"),
        ((*RESTORE, "--into", "nowhere"), "with its schema"),
        ((*RESTORE, "--map", "a"), "OLD=NEW"),
    ],
)
def test_what_is_not_there_is_said(run, payments, arguments, said):
    payments.fill(3)
    run()
    done = run(*arguments)
    assert (done.code, said in done.closing["error"]) == (2, True)
