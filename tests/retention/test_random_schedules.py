"""Crash, rerun, hold, release, archive, restore, rows written meanwhile, in any order: the sums hold at every step."""

import os
import time
from collections import Counter
from contextlib import suppress

import pytest
import yaml
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from backend import migrate
from scripts.lifecycle.archives.catalogue import entries
from scripts.lifecycle.archives.keys import ArchiveKeys
from scripts.lifecycle.archives.restore import Wish, restore
from scripts.lifecycle.audit import audit
from scripts.lifecycle.engine import holds
from scripts.retention.archive_before_delete import JOB as ARCHIVE
from scripts.retention.enforce_retention_policies import JOB as ENFORCE
from scripts.utils.archive_store import store_of
from scripts.utils.db_utils import Database
from scripts.utils.errors import GateBusy, Misconfigured
from scripts.utils.settings import load_settings
from scripts.utils.test_fixtures import TEMPLATE
from tests.lifecycle.archives.payments import MASTER_KEY
from tests.lifecycle.support import read_lines
from tests.retention.enforcement.conftest import KEY, LOCK, policy
from tests.retention.forked import Child

PEOPLE = [f"person{number}@example.com" for number in range(3)]
TABLES = {"things": "archive_then_delete", "notes": "delete"}
BATCH = {"rows": 3, "lock_timeout": "200 milliseconds", "statement_timeout": "60 seconds"}
POLICIES = {
    "things": policy(
        "public.things",
        action="archive_then_delete",
        person="person",
        archive={"personal": ["person"], "keep": "1 year", "rows": 4},
    ),
    "notes": policy("public.notes", person="person", batch=BATCH),
}
JOBS = {"archive_before_delete": ["things"], "enforce_retention_policies": ["notes"]}
# A run makes about as many calls.
CALLS = st.integers(1, 1200)
FAULTS = st.sampled_from(["kill", "kill", "cut", None])
MEANWHILE = st.sampled_from(["insert", "rewrite", "hold row", "hold person", "nothing"])


class Stage:
    """One example's database, folder and scripts."""

    def __init__(self, database, redis_url, folder):
        self.url = database.superuser_url
        self.link = database.superuser()
        for table in TABLES:
            self.link.execute(
                f"CREATE TABLE {table} (id bigint PRIMARY KEY, made_at timestamptz, person text, kind text);"
                f" CREATE INDEX ON {table} (made_at)"
            )
        self.link.execute("CREATE TABLE back (LIKE things)")
        (folder / "cold").mkdir()
        self.cold = folder / "cold"
        self.output = folder / "lines"
        self.policies = folder / "policies.yaml"
        jobs = {
            job: {"schedule": "30 0 * * *", "budget": "600 seconds", "lock": f"lock:test:{job}", "policies": own}
            for job, own in JOBS.items()
        }
        jobs["enforce_retention_policies"]["lock"] = LOCK
        self.policies.write_text(yaml.safe_dump({"policies": POLICIES, "jobs": jobs}, sort_keys=False))
        migrate.grant(self.url, self.policies)
        # A restore into another table: no policy names it, so a person gives the rights.
        self.link.execute("GRANT SELECT, INSERT ON back, things TO lifecycle_jobs")
        os.environ |= {
            "DATABASE_URL": database.url,
            "REDIS_URL": redis_url,
            "AUDIT_PSEUDONYM_KEY": KEY,
            "ARCHIVE_URL": self.cold.as_uri(),
            "ARCHIVE_MASTER_KEY": MASTER_KEY,
            "OPERATOR": "olga",
            "REDIS_LOCK_TIMEOUT": "30",
        }
        self.settings = load_settings()
        self.database = Database(database.url, application_name="the test", max_size=4)
        self.database.open()

    def start(self, job, *arguments, fault=None, at=0):
        return Child(
            job, [*arguments, "--policy-file", str(self.policies)], output=self.output, url=self.url, fault=fault, at=at
        )

    def settled(self):
        """Wait for what servers do for a client that is dead."""
        deadline = time.monotonic() + 10
        while self.link.execute(
            "SELECT FROM pg_stat_activity WHERE usename = 'lifecycle_jobs' AND datname = current_database()"
            " AND application_name <> 'the test'"
        ).fetchone():
            assert time.monotonic() < deadline, "a dead run's session goes on"
            time.sleep(0.01)

    def close(self):
        self.database.close()


class Schedules(RuleBasedStateMachine):
    """Every table's rows by id, as the last writer left them, and the holds that are in force."""

    make_stage = None  # by the test

    def __init__(self):
        super().__init__()
        self.stage = self.make_stage()
        self.rows = {table: {} for table in TABLES}
        self.due = {table: set() for table in TABLES}
        self.held = {}
        self.ids = Counter()
        self.insert("things", 9, True)
        self.insert("notes", 9, True)

    # What happens.

    @rule(table=st.sampled_from([*TABLES]), rows=st.integers(1, 9), due=st.sampled_from([True, True, False]))
    def insert(self, table, rows, due):
        first = self.ids[table] + 1
        self.ids[table] += rows
        made = self.stage.link.execute(
            f"INSERT INTO {table} AS t SELECT n, now() - make_interval(days => %s, secs => n),"
            " (%s::text[])[1 + n %% 3], E'tab\\t\"\\\\' || n FROM generate_series(%s::int, %s) n RETURNING id, t::text",
            (90 if due else 1, PEOPLE, first, self.ids[table]),
        ).fetchall()
        self.rows[table] |= dict(made)
        if due:
            self.due[table] |= {key for key, _ in made}

    @rule(table=st.sampled_from([*TABLES]), which=st.integers(0, 4))
    def rewrite(self, table, which):
        changed = self.stage.link.execute(
            f"UPDATE {table} t SET kind = kind || 'x' WHERE id %% 5 = %s RETURNING id, t::text", (which,)
        ).fetchall()
        self.rows[table] |= dict(changed)

    @rule(table=st.sampled_from([*TABLES]), choice=st.integers(0, 30))
    def hold_row(self, table, choice):
        live = sorted(self.live(table))
        if live:
            key = live[choice % len(live)]
            self.place(lambda: {(table, key)}, table=f"public.{table}", resource_id=str(key), key=("id",))

    @rule(person=st.sampled_from(PEOPLE))
    def hold_person(self, person):
        self.place(lambda: {(table, key) for table in TABLES for key in self.live(table, person)}, person=person)

    def place(self, under, **what):
        # Gone in the meantime, or not to be had while batches are under way: then nothing is held.
        with suppress(GateBusy, Misconfigured):
            hold = holds.place(self.stage.database, operator="olga", reason="a case", **what)
            self.held[hold] = under()

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 30))
    def release(self, choice):
        hold = [*self.held][choice % len(self.held)]
        del self.held[hold]
        holds.release(self.stage.database, hold, operator="olga")

    @rule(fault=FAULTS, at=CALLS, meanwhile=MEANWHILE, choice=CALLS)
    def archive(self, fault, at, meanwhile, choice):
        self.child(self.stage.start(ARCHIVE, fault=fault, at=at), fault, meanwhile, choice)

    @rule(fault=FAULTS, at=CALLS, meanwhile=MEANWHILE, choice=CALLS)
    def enforce(self, fault, at, meanwhile, choice):
        self.child(self.stage.start(ENFORCE, "--all", fault=fault, at=at), fault, meanwhile, choice)

    @rule(fault=FAULTS, at=CALLS)
    def restore(self, fault, at):
        self.child(self.stage.start(ARCHIVE, "restore", "--policy", "things", fault=fault, at=at), fault, "nothing", 0)

    def child(self, child, fault, meanwhile, choice):
        before = self.removed()
        child.struck()
        if meanwhile == "insert":
            self.insert("things", 3, True)
        elif meanwhile == "rewrite":
            self.rewrite("things", choice % 5)
        elif meanwhile == "hold row":
            self.hold_row("things", choice)
        elif meanwhile == "hold person":
            self.hold_person(PEOPLE[choice % 3])
        code = child.wait()
        self.stage.settled()
        allowed = {"kill": {-9, 0, 3, 4}, "cut": {0, 1, 3, 4}, None: {0, 3, 4}}[fault]
        assert code in allowed, (code, self.stage.output.read_text()[-3000:])
        if code in (0, 3, 4):
            said = read_lines(self.stage.output.read_text())[-1].get("records_deleted", 0)
            assert self.removed() - before == said, "a run says that it deleted what it did not, or the other way round"

    def removed(self):
        counted = "SELECT count(*) FROM ops.audit_log WHERE action = ANY(%s)"
        return self.stage.link.execute(counted, ([*TABLES.values()],)).fetchone()[0]

    # What must be true.

    def live(self, table, person=None):
        rows = self.stage.link.execute(
            f"SELECT id, t::text FROM {table} t WHERE person = coalesce(%s, person)", (person,)
        ).fetchall()
        return dict(rows)

    @invariant()
    def nothing_is_lost_doubled_or_gone_unseen(self):
        for table, action in TABLES.items():
            live = self.live(table)
            assert live.items() <= self.rows[table].items(), "a row is not as its last writer left it"
            gone = self.rows[table].keys() - live.keys()
            assert gone <= self.due[table], "what was not due is gone"
            balance = Counter()
            for key, kind in self.stage.link.execute(
                "SELECT resource_id::bigint, action FROM ops.audit_log WHERE resource_type = %s", (f"public.{table}",)
            ):
                balance[key] += {action: 1, "restore": -1}[kind]
            assert {key for key, times in balance.items() if times} == gone, "gone and audited differ"
            assert set(balance.values()) <= {0, 1}, "audited twice"

    @invariant()
    def nothing_that_is_held_is_gone(self):
        live = {(table, key) for table in TABLES for key in self.live(table)}
        for hold, under in self.held.items():
            assert under <= live, (hold, under - live)

    @invariant()
    def what_is_archived_is_what_was_deleted(self):
        archived = self.stage.link.execute(
            "SELECT a.row_count, (SELECT sum(cardinality(b.resource_ids)) FROM ops.audit_batches b"
            "  WHERE b.action = 'archive_then_delete' AND b.metadata ->> 'archive' = a.id::text)"
            " FROM ops.archives a WHERE status = 'sealed'"
        ).fetchall()
        assert all(rows == audited for rows, audited in archived), archived

    def teardown(self):
        try:
            self.the_end()
        finally:
            self.stage.close()

    def the_end(self):
        """One run that nothing disturbs takes all that is due; then every object is read back."""
        for job, arguments in ((ARCHIVE, []), (ENFORCE, ["--all"])):
            self.child(self.stage.start(job, *arguments), None, "nothing", 0)
        under = set().union(*self.held.values())
        for table in TABLES:
            held = {key for name, key in under if name == table}
            live = self.live(table).keys()
            people = self.stage.link.execute(
                f"SELECT id FROM {table} t WHERE person IN (SELECT person FROM ops.legal_holds"
                " WHERE released_at IS NULL AND scope = 'person')"
            ).fetchall()
            assert live & self.due[table] <= held | {key for (key,) in people}, "what is due and not held is left"
        self.nothing_is_lost_doubled_or_gone_unseen()
        self.nothing_that_is_held_is_gone()
        self.read_back()
        assert audit.verify(self.stage.database).intact

    def read_back(self):
        stage = self.stage
        store, keys = store_of(stage.settings), ArchiveKeys(stage.database, stage.settings)
        keys.lookup()
        catalogue = stage.database.read(entries)
        assert {entry.status for entry in catalogue} <= {"sealed"}, "a crash's leftovers were not removed"
        objects = {str(path.relative_to(stage.cold)) for path in stage.cold.rglob("*") if path.is_file()}
        assert objects == {entry.object for entry in catalogue}
        newest = set()
        for entry in catalogue:  # the newest first: an older archive may hold a former version of a restored row
            restore(
                stage.database,
                store,
                keys,
                entry,
                Wish("public.back"),
                operator="olga",
                pseudonym_of=str,
                between=lambda: None,
            )
            (audited,) = stage.link.execute(
                "SELECT array_agg(r.key::bigint) FROM ops.audit_batches, unnest(resource_ids) AS r (key)"
                " WHERE action = 'archive_then_delete' AND metadata ->> 'archive' = %s",
                (str(entry.id),),
            ).fetchone()
            found = dict(stage.link.execute("SELECT id, t::text FROM back t").fetchall())
            assert sorted(found) == sorted(audited), "an object does not hold what was deleted with it"
            unchanged = {key: row for key, row in found.items() if key not in newest and key not in self.live("things")}
            assert unchanged.items() <= self.rows["things"].items(), "an archived row is not as it was"
            newest |= found.keys()
            stage.link.execute("TRUNCATE back")


@pytest.fixture
def schedules(new_database, redis_url, tmp_path_factory, monkeypatch):
    """The machine's class; each example has a database of its own."""
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.setenv(name, "set by the stage")  # and taken away with the test

    def make_stage():
        return Stage(new_database(TEMPLATE), redis_url, tmp_path_factory.mktemp("schedule"))

    before = dict(os.environ)
    yield type("TheseSchedules", (Schedules,), {"make_stage": staticmethod(make_stage)})
    os.environ.clear()
    os.environ |= before


# A schedule that fails is shown as it was: to make it smaller would take longer than to read it.
PROFILE = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
    "phases": [Phase.generate],
}


@pytest.mark.timeout(120)
def test_the_sums_hold_through_a_few_schedules(schedules):
    """The same ones each time: a change that breaks one is to be found where it was made."""
    run_state_machine_as_test(
        schedules, settings=settings(**PROFILE, max_examples=3, stateful_step_count=10, derandomize=True)
    )


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_sums_hold_through_any_schedule(schedules):
    run_state_machine_as_test(schedules, settings=settings(**PROFILE, max_examples=15, stateful_step_count=20))
