"""A job that can be frozen in the middle of a batch, and the sum that must hold after every fault.

A trigger stops the DELETE at one chosen row until the test thaws it, so a fault hits the instant that is meant: no test
here waits for time to pass, only for something to have happened.
"""

import json
import signal
import threading
import time
from pathlib import Path

from scripts.lifecycle.audit import audit

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "cleanup" / "cleanup_quiz_responses.py"
STOP_SWITCH = SCRIPT.with_name("stop_switch.py")
NAME = "cleanup_quiz_responses"
LOCK = "lock:cleanup:quiz_responses"
CLOSED_PORT = 1
# As a batch's pipeline sends it; the other transactions' COMMIT is a simple query. The server answers after the Sync.
COMMIT = b"\0COMMIT\0"
COMMIT_AND_SYNC = COMMIT + b"\0\0B\0\0\0\x0e\0\0\0\0\0\0\0\1\0\0D\0\0\0\6P\0E\0\0\0\t\0\0\0\0\0S\0\0\0\4"
_VALVE = 4711
HANGS_SECONDS = 300.0
"""What has not happened by then never will; a busy machine is slow, and no test asserts how slow."""


def wait_until(condition, seconds=HANGS_SECONDS, what="the condition"):
    """Poll until the condition returns something true, and return it."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"{what} did not come true within {seconds} s"
        time.sleep(0.01)
    return found


def in_background(call, *args, **keywords):
    """Call in a thread; the returned function waits for it and hands the result or the exception over."""
    outcome = []

    def work():
        try:
            outcome.append((call(*args, **keywords), None))
        except BaseException as error:  # noqa: BLE001 - result() raises it in the thread that waits
            outcome.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def result(seconds=HANGS_SECONDS):
        thread.join(seconds)
        assert outcome, "the background call did not end"
        value, error = outcome[0]
        if error:
            raise error
        return value

    result.done = lambda: not thread.is_alive()
    return result


class Quiz:
    """The table under test: row ``n`` is the n-th oldest; the survivors are nobody's to delete."""

    def __init__(self, database, jobs_database):
        self.link = database.superuser()
        # What a test looks for again and again would count as somebody's work in the test's own database.
        self._watcher = database.beside()
        self._database = database
        self._jobs_database = jobs_database
        self.due = set()
        self.survivors = set()

    @staticmethod
    def id(number):
        return f"{number:08x}-0000-4000-8000-000000000000"

    def fill(self, due, first=0):
        """Add rows that are due; the first time also those that must survive."""
        self._insert("10 days", first, due)
        self.due |= {self.id(first + number) for number in range(due)}
        if first:
            return
        self._insert("5 hours", 0x10000, 3)  # abandoned, within its 24 hours
        self._insert("10 days", 0x20000, 3, payment="p", delivered="5 hours")  # delivered, within its 24 hours
        self._insert("5 hours", 0x30000, 3, payment="p")  # paid, not delivered
        self._insert("10 days", 0x40000, 1)  # due, but held
        self.link.execute(
            "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
            " VALUES ('row', 'public.quiz_responses', %s, 'test', 'test')",
            (self.id(0x40000),),
        )
        self.survivors = self.present() - self.due

    def _insert(self, age, first, rows, *, payment=None, delivered=None):
        self.link.execute(
            "INSERT INTO public.quiz_responses (id, email, normalized_email, quiz_data, calorie_target, created_at,"
            " payment_id, pdf_delivered_at) SELECT lpad(to_hex(n), 8, '0') || '-0000-4000-8000-000000000000', 'a', 'a',"
            " '{}', 1, timezone('UTC', now()) - %s::interval + n * interval '1 second', %s, timezone('UTC', now()) - %s"
            "::interval FROM generate_series(%s::int, %s::int) n",
            (age, payment, delivered, first, first + rows - 1),
        )

    def present(self):
        return {key for (key,) in self.link.execute("SELECT id FROM public.quiz_responses")}

    def audited(self):
        return [
            key
            for (key,) in self.link.execute(
                "SELECT resource_id FROM ops.audit_log WHERE action = 'delete' AND resource_type ="
                " 'public.quiz_responses' ORDER BY seq"
            )
        ]

    def runs(self):
        """The run records, oldest first."""
        rows = self.link.execute("SELECT row_to_json(r) FROM ops.job_runs r ORDER BY started_at")
        return [row for (row,) in rows]

    def lease(self):
        row = self.link.execute("SELECT row_to_json(l) FROM ops.leases l WHERE name = %s", (LOCK,)).fetchone()
        return row[0] if row else None

    def another_session(self):
        return self._database.superuser()

    def freeze_at(self, number):
        """Let no DELETE get past this row until :meth:`thaw`."""
        self.link.execute("SELECT pg_advisory_lock(%s)", (_VALVE,))
        self.link.execute(
            "CREATE FUNCTION public.close_valve() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = 0"
            f" AS 'BEGIN PERFORM pg_advisory_xact_lock_shared({_VALVE}); RETURN OLD; END'"
        )
        self.link.execute(
            "CREATE TRIGGER valve BEFORE DELETE ON public.quiz_responses FOR EACH ROW"
            f" WHEN (OLD.id = '{self.id(number)}') EXECUTE FUNCTION public.close_valve()"
        )

    def frozen(self):
        """The server process that stands in the trigger, or None."""
        row = self._watcher.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = %s)",
            (_VALVE, self._database.name),
        ).fetchone()
        return row[0] if row else None

    def wait_frozen(self):
        return wait_until(self.frozen, what="a DELETE in the trigger")

    def thaw(self):
        self.link.execute("SELECT pg_advisory_unlock(%s)", (_VALVE,))

    def waiting(self, locktype, count=1):
        """Whether so many sessions of this database wait for such a lock, or at the gate."""
        row = self.link.execute(
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted"
            " AND CASE WHEN %s = 'gate' THEN l.relation = 'ops.gate'::regclass ELSE l.locktype = %s END"
            " AND l.objid IS DISTINCT FROM %s AND a.datname = current_database()",
            (locktype, locktype, _VALVE),
        ).fetchone()
        return row[0] >= count

    def balance(self, *, remaining=None):
        """Assert the sum: what is gone is audited, once; what must stay is there; the chain and the records agree."""
        present, audited = self.present(), self.audited()
        assert len(audited) == len(set(audited)), "a row was audited twice"
        assert set(audited) == self.due - present, "gone and audited differ"
        assert self.survivors <= present, "something that must survive is gone"
        if remaining is not None:
            assert len(present & self.due) == remaining
        assert audit.verify(self._jobs_database).intact
        for run in self.runs():
            if run["status"] in ("completed", "partial", "interrupted", "failed"):
                (rows,) = self.link.execute(
                    "SELECT count(*) FROM ops.audit_log WHERE run_id = %s", (run["id"],)
                ).fetchone()
                assert run["records_processed"] == rows


class Running:
    """A script that was started; its lines are read while it runs."""

    def __init__(self, process):
        self.process = process
        self.events = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def wait_for(self, event, seconds=HANGS_SECONDS):
        return wait_until(lambda: self.find(event), seconds, f"event {event}")

    def find(self, event):
        return next((line for line in self.events if line["event"] == event), None)

    def send(self, number):
        self.process.send_signal(number)

    def finish(self, code, seconds=HANGS_SECONDS):
        """Wait for the end, and return the closing line."""
        self.process.wait(seconds)
        self._reader.join(300)
        with self.process.stdout, self.process.stderr as stderr:
            assert stderr.read() == ""
        assert self.process.returncode == code, self.events
        return self.events[-1]

    def bury(self):
        """Leave nothing behind, also after a test that failed half-way."""
        self.process.kill()
        self.process.wait()
        self._reader.join(300)
        self.process.stdout.close()
        self.process.stderr.close()

    def kill(self):
        """SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.finish(-signal.SIGKILL)
