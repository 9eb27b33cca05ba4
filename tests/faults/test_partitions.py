"""A run that is dropping partitions is killed at each step: nobody loses a row, and none is audited twice."""

import json

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.audit import audit
from scripts.utils.test_helpers import Proxy
from tests.faults.stage import SCRIPT, wait_until
from tests.lifecycle.purge.partitioned import EXPIRED, MONTHS, ROWS, make, marks, partitions, policies
from tests.lifecycle.support import AS_OF, audited

ENFORCE = SCRIPT.parents[1] / "retention" / "enforce_retention_policies.py"
ALL = sorted(number * 1000 + n for number in range(5) for n in range(ROWS))
DUE = ALL[:80]
_VALVE = 4713
STEPS = {
    "detaching": ("ops.detached_partitions", "INSERT", "NEW.partition_name = 'public.things_2025_11'"),
    "auditing": ("ops.audit_batches", "INSERT", "NEW.metadata ->> 'partition' = 'public.things_2025_11'"),
    "dropping": (
        "ops.detached_partitions",
        "UPDATE",
        "NEW.partition_name = 'public.things_2025_11' AND NEW.state = 'dropped'",
    ),
    "attaching": ("ops.detached_partitions", "UPDATE", "NEW.state = 'attached'"),
}
HELD = 1005
HOLD = (
    "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
    f" VALUES ('row', 'public.things', '{HELD}', 't', 't')"
)


class Things:
    """The partitioned table, a valve in the way of a run, and the sum that must hold."""

    def __init__(self, database, jobs_database):
        self.link = database.superuser()
        self._jobs = jobs_database
        make(self.link)

    def valve(self, table, event, condition):
        self.link.execute(f"SELECT pg_advisory_lock({_VALVE})")
        self.link.execute(
            "CREATE FUNCTION public.close_valve() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = 0"
            f" AS 'BEGIN PERFORM pg_advisory_xact_lock_shared({_VALVE}); RETURN NEW; END';"
            f"CREATE TRIGGER valve BEFORE {event} ON {table} FOR EACH ROW WHEN ({condition})"
            " EXECUTE FUNCTION public.close_valve()"
        )

    def hold_in_between(self):
        """A hold that is placed between DETACH and DROP."""
        self.link.execute(
            f"CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$BEGIN {HOLD}; RETURN NULL; END"
            "$$; CREATE TRIGGER hold AFTER INSERT ON ops.detached_partitions FOR EACH ROW"
            " WHEN (NEW.partition_name = 'public.things_2025_11') EXECUTE FUNCTION hold()"
        )

    def stopped(self):
        row = self.link.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            (_VALVE,),
        ).fetchone()
        return row[0] if row else None

    def open_valve(self, *, let_go=True):
        """Let what stands there go on, or let the server end it, as after its own crash."""
        if not let_go and (pid := self.stopped()):
            self.link.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        self.link.execute(f"SELECT pg_advisory_unlock({_VALVE})")
        self.link.execute("DROP FUNCTION public.close_valve() CASCADE")

    def rows(self):
        """What is in the table, and in what is detached from it."""
        names = ["things"] + [
            name
            for (name,) in self.link.execute(
                "SELECT partition_name FROM ops.detached_partitions WHERE state = 'detached'"
            )
        ]
        return sorted(key for name in names for (key,) in self.link.execute(f"SELECT id FROM {name}"))

    def balance(self):
        gone = sorted(map(int, audited(self.link)))
        assert sorted([*gone, *self.rows()]) == ALL, "a row is lost, or was audited and is still there, or twice"
        assert set(gone) <= set(DUE)
        assert audit.verify(self._jobs).intact


@pytest.fixture
def things(database, jobs_database):
    return Things(database, jobs_database)


@pytest.fixture
def flags(tmp_path, database, things):
    """Flags of a run over the table; its locks are waited for longer than any test takes."""
    batch = {"rows": 1000, "lock_timeout": "50 seconds", "statement_timeout": "60 seconds"}
    enforce = {"schedule": "0 2 * * *", "budget": "3600 seconds", "lock": "lock:retention:enforce_retention_policies"}
    jobs = {"enforce_retention_policies": enforce | {"policies": ["things"]}}
    path = tmp_path / "policies.yaml"
    path.write_text(yaml.safe_dump({"policies": policies(batch=batch), "jobs": jobs}, sort_keys=False))
    migrate.grant(database.superuser_url, path)
    return ["--policy-file", str(path), "--as-of", AS_OF.isoformat(), "--batch-size", "1000"]


@pytest.mark.parametrize("zombie", ["ended", pytest.param("goes on", marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    "step", [pytest.param("detaching", marks=pytest.mark.soak), "auditing", "dropping", "attaching"]
)
def test_sigkill_at_each_step_loses_and_doubles_nothing(start, things, flags, step, zombie):
    held = step == "attaching"
    if held:
        things.hold_in_between()
    things.valve(*STEPS[step])
    killed = start(*flags, script=ENFORCE)
    wait_until(things.stopped, what="the run at the valve")
    killed.kill()
    things.open_valve(let_go=zombie == "goes on")
    wait_until(lambda: not things.stopped(), what="the end of what the server had of it")
    things.balance()
    closing = start(*flags, script=ENFORCE).finish(0, 60)

    assert (closing["records_remaining"], closing["records_held"]) == (0, int(held))
    assert partitions(things.link) == [m for m in MONTHS if m not in EXPIRED or (held and m == "2025_11")]
    assert {state for _, state, _ in marks(things.link)} == {"dropped", "attached"} if held else {"dropped"}
    things.balance()
    assert things.rows() == sorted([*([HELD] if held else []), *ALL[80:]])


@pytest.mark.parametrize("sent", ["lost", pytest.param("never", marks=pytest.mark.soak)])
@pytest.mark.parametrize("what", [pytest.param(b"detach_partition", marks=pytest.mark.soak), b"drop_partition"])
def test_a_connection_that_breaks_in_a_step_is_settled(start, things, flags, database, what, sent):
    """The statement never arrived, or its COMMIT's answer was lost."""
    with Proxy.before(database.url) as proxy:
        proxy.cut_when(what, before_forward=sent == "never")
        closing = start(*flags, script=ENFORCE, DATABASE_URL=proxy.through(database.url)).finish(0, 60)
        assert proxy.cuts == 1
    assert (closing["records_deleted"], closing["partitions_dropped"]) == (80, 3)
    assert things.rows() == ALL[80:]
    things.balance()


def test_the_residue_counts_what_is_detached(start, things, flags, tmp_path):
    things.valve(*STEPS["auditing"])
    running = start(*flags, script=ENFORCE)
    wait_until(things.stopped, what="the run at the valve")
    running.kill()
    things.open_valve(let_go=False)
    assert marks(things.link)[-1] == ("public.things_2025_11", "detached", None)
    start(*flags, "--plan", str(tmp_path / "plan.json"), script=ENFORCE).finish(0)
    (planned,) = json.loads((tmp_path / "plan.json").read_text())["policies"]
    assert (planned["records"], planned["partitions"]) == (60, ["public.things_2025_11", "public.things_2025_12"])
    closing = start(*flags, script=ENFORCE).finish(0)
    assert (closing["records_deleted"], closing["partitions_dropped"]) == (60, 2)
    things.balance()
