"""Partitions of which every payment is due are archived and dropped whole; every other row goes, or stays, as ever."""

import json
import signal

import psycopg
import pytest

from tests.faults.stage import wait_until
from tests.lifecycle.archives.payments import kill

# Nine and eight years old, in partitions of their own; beside younger ones, some that are due and some that are not.
NINE, EIGHT, BOUNDARY = range(1, 26), range(26, 46), range(46, 51)
WHOLE = ["public.payments_9", "public.payments_8"]
KEPT = ["payments_7", "payments_new"]
EVERY = ["payments_7", "payments_8", "payments_9", "payments_new"]
UPLOADED = ("ops.archives", "UPDATE", "OLD.sha256 IS NULL AND NEW.sha256 IS NOT NULL")
DETACHING = ("ops.detached_partitions", "INSERT", "NEW.partition_name = 'public.payments_8'")
AUDITING = ("ops.audit_batches", "INSERT", "NEW.metadata ->> 'partition' = 'public.payments_8'")
SEALING = ("ops.archives", "UPDATE", "NEW.status = 'sealed' AND NEW.row_count = 10")
DROPPING = ("ops.detached_partitions", "UPDATE", "NEW.partition_name = 'public.payments_8' AND NEW.state = 'dropped'")
ALL_DUE = len(NINE) + len(EIGHT) + len(BOUNDARY)
_PARTITIONED = """
ALTER TABLE payment_transactions RENAME TO former;
CREATE TABLE payment_transactions (LIKE former INCLUDING DEFAULTS, PRIMARY KEY (id, paddle_created_at))
    PARTITION BY RANGE (paddle_created_at);
DROP TABLE former CASCADE;
CREATE INDEX ON payment_transactions (paddle_created_at);
CREATE INDEX ON payment_transactions (normalized_email);
DO $$
DECLARE
    bounds timestamp[] := ARRAY[now() - interval '8.5 years', now() - interval '7.5 years', now() - interval '5 years'];
    n int;
BEGIN
    EXECUTE format('CREATE TABLE payments_9 PARTITION OF payment_transactions FOR VALUES FROM (MINVALUE) TO (%L)', bounds[1]);
    FOR n IN 1..2 LOOP
        EXECUTE format('CREATE TABLE payments_%s PARTITION OF payment_transactions FOR VALUES FROM (%L) TO (%L)',
                       9 - n, bounds[n], bounds[n + 1]);
    END LOOP;
    EXECUTE format('CREATE TABLE payments_new PARTITION OF payment_transactions FOR VALUES FROM (%L) TO (%L)',
                   bounds[3], now() + interval '1 year');
END $$;
"""


class Partitions:
    """The payments, in partitions."""

    def __init__(self, payments):
        self.payments, self.link = payments, payments.link
        self.link.execute("SET TimeZone = 'UTC'")
        self.link.execute(_PARTITIONED)
        for age, numbers in (("9 years", NINE), ("8 years", EIGHT), ("7 years 1 month", BOUNDARY)):
            payments._insert(age, numbers[0], numbers[-1])
        payments.due = payments.rows()
        payments._insert("6 years", 100_001, 100_005)
        payments.survivors = {key: row for key, row in payments.rows().items() if key not in payments.due}
        self.link.execute("ANALYZE")

    def names(self):
        return [
            name
            for (name,) in self.link.execute(
                "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
                " WHERE i.inhparent = 'public.payment_transactions'::regclass ORDER BY 1"
            )
        ]

    def marks(self):
        return self.link.execute(
            "SELECT partition_name, state FROM ops.detached_partitions ORDER BY ends_at"
        ).fetchall()

    def make_room(self):
        """Make a partition for what is restored."""
        (end,) = self.link.execute(
            "SELECT max(ends_at AT TIME ZONE 'UTC')::text FROM ops.detached_partitions"
        ).fetchone()
        self.link.execute(
            f"CREATE TABLE payments_old PARTITION OF payment_transactions FOR VALUES FROM (MINVALUE) TO ('{end}')"
        )


def objects(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def flags(policy_file):
    """The policies, with locks that are waited for longer than any test takes."""
    return policy_file(batch={"rows": 1000, "lock_timeout": "50 seconds", "statement_timeout": "60 seconds"})


@pytest.fixture
def months(payments, flags, grant):
    partitions = Partitions(payments)
    grant(flags)
    return partitions


@pytest.mark.pooled
def test_they_are_archived_and_dropped_and_the_boundary_goes_by_batches(run, months, payments, flags):
    dry, done = run("--dry-run", "--batch-size", "10", *flags), run("--batch-size", "10", *flags)

    assert (dry.closing["records_to_delete"], dry.closing["partitions_to_drop"]) == (ALL_DUE, 2)
    assert (done.code, done.closing["records_deleted"], done.closing["partitions_dropped"]) == (0, ALL_DUE, 2)
    assert [(line["partition"], line["archives"]) for line in done.events("partition_dropped")] == [
        (WHOLE[0], 3),
        (WHOLE[1], 2),
    ]
    assert months.names() == KEPT
    assert months.marks() == [(name, "dropped") for name in WHOLE]
    assert payments.catalogue() == [("sealed", rows) for rows in (10, 10, 5, 10, 10, 5)]
    (record,) = payments.link.execute("SELECT row_to_json(r) FROM ops.job_runs r").fetchone()
    assert (record["records_processed"], record["batches"]) == (ALL_DUE, 6)
    payments.balance()


def test_each_audit_entry_names_its_archive_and_the_policy_file(run, months, payments, flags):
    run("--batch-size", "10", *flags)
    entries = payments.link.execute(
        "SELECT b.action, b.reason, cardinality(b.resource_ids), a.row_count, b.metadata ->> 'partition',"
        "       b.metadata ->> 'policy_hash' = (SELECT policy_hash FROM ops.job_runs)"
        "  FROM ops.audit_batches b LEFT JOIN ops.archives a ON a.id::text = b.metadata ->> 'archive' ORDER BY b.seq"
    ).fetchall()
    what = ("archive_then_delete", "retention_policy:payment_transactions/expired")
    assert entries == [
        *((*what, rows, rows, WHOLE[0], True) for rows in (10, 10, 5)),
        *((*what, 10, 10, WHOLE[1], True) for _ in range(2)),
        (*what, 5, 5, None, True),
    ]


def test_what_comes_back_is_what_went(run, months, payments, flags):
    run("--batch-size", "10", *flags)
    assert run("verify", *flags).code == 0
    months.make_room()
    done = run("restore", "--policy", "payment_transactions", *flags)
    assert (done.code, done.event("records_restored")["records_restored"]) == (0, ALL_DUE)
    assert payments.rows() == payments.due | payments.survivors


def test_one_row_is_found_in_the_archive_that_holds_it(run, months, payments, flags):
    run("--batch-size", "10", *flags)
    months.make_room()
    done = run("restore", "--policy", "payment_transactions", "--id", payments.id(17), *flags)
    assert len(done.events("archive_restored")) == 1
    assert payments.rows() == payments.survivors | {payments.id(17): payments.due[payments.id(17)]}


def test_a_held_row_keeps_its_partition_and_the_others_go_by_batches(run, months, payments, flags):
    payments.hold(30)
    dry, done = run("--dry-run", *flags), run(*flags)
    assert dry.closing["partitions_to_drop"] == done.closing["partitions_dropped"] == 1
    assert (done.closing["records_deleted"], done.closing["records_held"]) == (ALL_DUE - 1, 1)
    assert months.names() == ["payments_7", "payments_8", "payments_new"]
    payments.balance(left=1)


def test_an_empty_partition_is_dropped_without_an_archive(run, months, payments, flags):
    payments.link.execute("DELETE FROM payments_8")
    payments.due = {key: row for key, row in payments.due.items() if key in payments.rows()}
    done = run(*flags)
    assert [line["archives"] for line in done.events("partition_dropped")] == [1, 0]
    payments.balance()


def test_a_limit_takes_what_fits_whole(run, months, payments, flags):
    done = run("--limit", "27", "--batch-size", "10", *flags)
    assert (done.closing["records_deleted"], done.closing["partitions_dropped"]) == (27, 1)
    payments.balance(left=ALL_DUE - 27)


CHANGED = "UPDATE public.payment_transactions SET amount = 4711.42 WHERE id = '{}'"
MOVED = "UPDATE public.payment_transactions SET paddle_created_at = paddle_created_at + interval '2 years 7 days' WHERE id = '{}'"
DELETED = "DELETE FROM public.payment_transactions WHERE id = '{}'"
HELD = (
    "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
    " VALUES ('row', 'public.payment_transactions', '{}', 'test', 'test')"
)


def balance_without(months, payments, folder, number, statement):
    """Assert that the row went as it was in the end, or stayed, and that no object is left over."""
    if statement is DELETED:
        del payments.due[payments.id(number)]
    payments.balance(left=int(statement in (MOVED, HELD)))
    assert (payments.id(number) in payments.audited()) == (statement is CHANGED)
    assert set(payments.statuses()) == {"sealed"}
    assert len(objects(folder)) == len(payments.statuses())


@pytest.mark.parametrize("statement", [CHANGED, MOVED, DELETED, HELD])
def test_what_happens_to_a_row_since_it_was_archived_is_seen(start, months, payments, flags, folder, statement):
    payments.valve(*UPLOADED)
    running = start("--batch-size", "50", *flags)
    wait_until(payments.stopped, what="the run at the valve")
    payments.link.execute(statement.format(payments.id(3)))
    payments.open_valve()
    closing = running.finish(0)

    assert running.find("partition_put_back")["partition"] == WHOLE[0]
    assert (closing["partitions_dropped"], closing["records_remaining"]) == (1, 0)
    balance_without(months, payments, folder, 3, statement)


@pytest.mark.parametrize("statement", [CHANGED, DELETED, HELD])
def test_what_happens_to_a_row_while_it_is_detached_is_seen(run, months, payments, flags, folder, statement):
    payments.link.execute(
        "CREATE FUNCTION meanwhile() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
        f" $$BEGIN {statement.format(payments.id(30))}; RETURN NULL; END$$;"
        " CREATE TRIGGER meanwhile AFTER INSERT ON ops.detached_partitions FOR EACH ROW"
        " WHEN (NEW.partition_name = 'public.payments_8') EXECUTE FUNCTION meanwhile()"
    )
    done = run("--batch-size", "10", *flags)

    assert done.code == 0
    assert done.event("partition_put_back")["partition"] == WHOLE[1]
    assert months.marks() == [(WHOLE[0], "dropped"), (WHOLE[1], "attached")]
    assert (done.closing["partitions_dropped"], done.closing["records_remaining"]) == (1, 0)
    balance_without(months, payments, folder, 30, statement)


@pytest.mark.parametrize(
    ("step", "valve"),
    {
        "uploaded": UPLOADED,
        "detaching": DETACHING,
        "auditing": AUDITING,
        "sealing": SEALING,
        "dropping": DROPPING,
    }.items(),
)
def test_sigkill_at_each_step_loses_and_doubles_nothing(start, months, payments, flags, folder, step, valve):
    payments.valve(*valve)
    killed = start("--batch-size", "10", *flags)
    wait_until(payments.stopped, what="the run at the valve")
    kill(killed)
    rerun = start("--batch-size", "10", *flags)
    rerun.wait_for("lock_owner_dead")
    payments.open_valve()
    closing = rerun.finish(0, 60)

    assert closing["records_remaining"] == 0
    assert months.names() == KEPT
    payments.balance()
    assert set(payments.statuses()) == {"sealed"}
    assert len(objects(folder)) == len(payments.statuses())


def test_a_store_that_fails_leaves_the_partition_where_it_is(run, months, payments, flags, tmp_path):
    (tmp_path / "full").write_text("no folder")
    done = run(*flags, ARCHIVE_URL=(tmp_path / "full").as_uri())
    assert done.code == 1
    assert months.names() == EVERY
    assert months.marks() == []
    payments.balance(left=ALL_DUE)


def test_an_object_that_is_not_what_was_written_is_no_archive(start, months, payments, flags, folder):
    payments.valve("ops.archives", "UPDATE", "OLD.sha256 IS NULL AND NEW.row_count = 5")
    running = start("--batch-size", "10", *flags)
    wait_until(payments.stopped, what="the run at the valve")
    third = max(objects(folder), key=lambda path: path.stat().st_mtime_ns)
    content = bytearray(third.read_bytes())
    content[-20] ^= 1
    third.write_bytes(content)
    payments.open_valve()
    closing = running.finish(1)

    assert closing["stop_reason"] == "archive_broken"
    assert months.names() == EVERY
    assert (payments.statuses(), objects(folder)) == ([], [])
    payments.balance(left=ALL_DUE)


def test_sigterm_in_the_middle_of_archiving_leaves_nothing_behind(start, months, payments, flags, folder):
    payments.valve(*UPLOADED)
    running = start("--batch-size", "10", *flags)
    wait_until(payments.stopped, what="the run at the valve")
    running.send(signal.SIGTERM)
    payments.open_valve()
    running.finish(143)
    assert months.names() == EVERY
    assert (payments.statuses(), objects(folder)) == ([], [])
    payments.balance(left=ALL_DUE)


class TestRights:
    """What the jobs' role can drop with the function alone: nothing of an archived table without its archives."""

    @pytest.fixture
    def drop(self, start, months, payments, flags, database):
        """Stop a run where its partition is detached, and drop with claims of one's own."""
        payments.valve(*AUDITING)
        killed = start("--batch-size", "10", *flags)
        wait_until(payments.stopped, what="the run at the valve")
        payments.link.execute("SELECT pg_terminate_backend(%s, 5000)", (payments.stopped(),))
        kill(killed)
        payments.open_valve()
        mark, run = payments.link.execute(
            "SELECT id, run_id FROM ops.detached_partitions WHERE state = 'detached'"
        ).fetchone()
        link = database.connect()

        def drop(archives):
            claim = None if archives is None else json.dumps(archives)
            return link.execute(
                "SELECT ops.drop_partition(%s, %s, 'system:x', 'r', '{}', %s)", (mark, run, claim)
            ).fetchone()

        return drop

    def test_it_takes_no_partition_without_every_one_of_its_archives(self, drop, months, payments):
        written = payments.link.execute(
            "SELECT id::text FROM ops.archives WHERE status = 'writing' ORDER BY created_at"
        ).fetchall()
        assert len(written) == 2
        payments.link.execute("SET DateStyle = 'ISO, YMD'")
        claims = [
            {"archive": archive, "until_anchor": at, "until_key": payments.id(number), "sha256": digest}
            for (archive,), number in zip(written, (35, 45), strict=True)
            for at, digest in payments.link.execute(
                "SELECT max(paddle_created_at)::text, encode(sha256(convert_to(string_agg(line, E'\n' ORDER BY line COLLATE \"C\"),"
                " 'UTF8')), 'hex') FROM (SELECT paddle_created_at, ctid || ' ' || xmin || ' ' || id AS line FROM payments_8"
                " WHERE id BETWEEN %s AND %s) l",
                (payments.id(number - 9), payments.id(number)),
            )
        ]
        other = [{**claims[0], "archive": "00000000-0000-4000-8000-000000000000"}, claims[1]]
        for wrong in (
            None,
            [],
            claims[:1],
            claims[1:],
            claims[::-1],
            [claims[0], claims[0]],
            [*claims, claims[1]],
            other,
            [{**claims[0], "sha256": claims[1]["sha256"]}, claims[1]],
            [{**claims[0], "until_key": None}, claims[1]],
        ):
            with pytest.raises(psycopg.Error) as refused:
                drop(wrong)
            assert refused.value.sqlstate in ("LP003", "LP004", "LA001"), refused.value
            assert payments.link.execute("SELECT count(*) FROM payments_8").fetchone() == (len(EIGHT),)
        assert drop(claims) == (len(EIGHT),)
