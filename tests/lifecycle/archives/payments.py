"""Payments of all ages, and what must be true of them after every run: start = live + archived, each audited once."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.lifecycle.audit import audit
from tests.lifecycle.archives.valve import Valve

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "retention" / "archive_before_delete.py"
MASTER_KEY = "m1:" + "5a" * 32
OTHER_KEY = "m2:" + "a5" * 32

# Whatever COPY has to escape, and what only looks like it.
ODD = "tab\tnewline\nreturn\rback\\slash \\N \\. 'quote' \"double\" ümlaut 漢字"

_INSERT = """
INSERT INTO public.payment_transactions (id, payment_id, amount, currency, payment_method, payment_status,
    paddle_created_at, webhook_received_at, customer_email, normalized_email, created_at, updated_at)
SELECT lpad(to_hex(n), 8, '0') || '-0000-4000-8000-000000000000', 'pay_' || n, n + 0.05, 'EUR',
       CASE WHEN n %% 7 = 0 THEN left(%(odd)s, 32) ELSE 'card' END, 'succeeded', at, at,
       CASE WHEN n %% 5 = 0 THEN 'Odd' || %(odd)s ELSE 'Person.' || n %% 9 || '@Example.com' END,
       'person.' || n %% 9 || '@example.com', at, at
  FROM (SELECT n, timezone('UTC', now()) - %(age)s::interval + n * interval '1 second' AS at
          FROM generate_series(%(first)s::int, %(last)s::int) n) x
"""


@dataclass(frozen=True)
class Archived:
    """What an operator sees of a run."""

    code: int
    lines: list[dict[str, Any]]

    @property
    def closing(self):
        return self.lines[-1]

    def events(self, name):
        return [line for line in self.lines if line["event"] == name]

    def event(self, name):
        (line,) = self.events(name)
        return line


class Payments(Valve):
    """The table under test; row ``n`` is the n-th oldest."""

    def __init__(self, database, jobs_database):
        self.link = database.superuser()
        self._database = database
        self._jobs_database = jobs_database
        self.due = {}
        self.survivors = {}

    @staticmethod
    def id(number):
        return f"{number:08x}-0000-4000-8000-000000000000"

    def fill(self, due):
        """Add rows that are due, and some that must survive."""
        self._insert("8 years", 1, due)
        self.due = self.rows()
        self._insert("6 years", 100_001, 100_005)
        self.survivors = {key: row for key, row in self.rows().items() if key not in self.due}
        return self

    def _insert(self, age, first, last):
        self.link.execute(_INSERT, {"odd": ODD, "age": age, "first": first, "last": last})

    def rows(self, table="public.payment_transactions"):
        """Every row as PostgreSQL writes it."""
        return dict(self.link.execute(f"SELECT id, t::text FROM {table} t").fetchall())

    def audited(self, action="archive_then_delete"):
        return [
            key
            for (key,) in self.link.execute(
                "SELECT resource_id FROM ops.audit_log WHERE action = %s"
                " AND resource_type = 'public.payment_transactions' ORDER BY seq",
                (action,),
            )
        ]

    def catalogue(self, columns="status, row_count"):
        return self.link.execute(f"SELECT {columns} FROM ops.archives ORDER BY created_at").fetchall()

    def statuses(self):
        return [status for (status,) in self.catalogue("status")]

    def another_session(self):
        return self._database.superuser()

    def hold(self, number):
        self.link.execute(
            "INSERT INTO ops.legal_holds (scope, table_name, resource_id, reason, placed_by)"
            " VALUES ('row', 'public.payment_transactions', %s, 'test', 'test')",
            (self.id(number),),
        )

    def balance(self, *, left=0, archived=None):
        """Assert that what is gone is archived and audited, exactly once, and the rest is as it was."""
        live, audited = self.rows(), self.audited()
        assert len(audited) == len(set(audited)), "a row was audited twice"
        assert set(audited) == self.due.keys() - live.keys(), "gone and audited differ"
        sealed = sum(rows for status, rows in self.catalogue() if status == "sealed")
        assert sealed == len(audited), "archived and audited differ"
        assert self.survivors.items() <= live.items(), "something that must survive is gone or was changed"
        assert len(live.keys() & self.due.keys()) == left
        assert audit.verify(self._jobs_database).intact


def kill(running):
    """SIGKILL, and wait until it is gone."""
    running.send(signal.SIGKILL)
    running.finish(-signal.SIGKILL)
