"""The whole life of expired data, shown in one terminal: `make demo`.

Everything is real: PostgreSQL, Valkey and a server of Vercel Blob's protocol on 127.0.0.1, the scripts as an operator
runs them, and an attack on the audit log by the superuser. The servers and their data are gone at the end.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from backend import local_stack, migrate

ROOT = Path(__file__).resolve().parents[1]
ROWS = 100_000
CLEANUP = "scripts/cleanup/cleanup_quiz_responses.py"
PDFS = "scripts/cleanup/cleanup_pdfs.py"
HOLDS = "scripts/retention/legal_holds.py"
VERIFY = "scripts/retention/verify_audit.py"
ENFORCE = "scripts/retention/enforce_retention_policies.py"
ARCHIVES = "scripts/retention/archive_before_delete.py"
BESIDE = "public.payments_restored"
# The closing table's title is the last thing on standard error.
TABLE_BEGINS = "enforce_retention_policies: "

console = Console(highlight=False, width=max(100, min(Console().width, 120)))


class Demo:
    """The steps, one method each."""

    def __init__(self, stack: local_stack.Stack) -> None:
        self._stack = stack
        self._step = 0
        self._environment = {
            "PATH": os.environ["PATH"],  # noqa: TID251 - hands its shell's on
            "COLUMNS": str(console.width),
            **stack.exports(),
        }

    def run(self) -> None:
        """Show every step, and fail loudly when one does not do what it should."""
        self.step(f"{ROWS:,} quiz answers of all ages, as production has them")
        local_stack.prepare(self._stack, rows=ROWS, say=lambda line: console.print(f"  [dim]{line}[/dim]"))
        self.step("A legal hold on one person, the address read from standard input")
        person = self.value(
            "SELECT normalized_email FROM quiz_responses WHERE pdf_delivered_at < now() - interval '2 days' LIMIT 1"
        )
        hold = self.script(HOLDS, "place", "--person", "-", "--reason", "case 12/2026", stdin=person)[0]["hold"]
        self.step("Dry run: says what would go, in a transaction that cannot write")
        as_of = self.value("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
        predicted = self.script(CLEANUP, "--dry-run", "--as-of", as_of)[-1]
        self.step("The real run at the same moment; exit code 4: something new needs a person")
        real = self.script(CLEANUP, "--as-of", as_of, expected=4)[-1]
        self.compare(predicted, real)
        self.step("And once more: nothing left, nothing done twice")
        again = self.script(CLEANUP, "--as-of", as_of)[-1]
        require(again["records_deleted"] == 0, "a second run deleted something")
        self.step("The other three jobs: expired tokens, the blacklist, and PDFs that really leave the store")
        self.script("scripts/cleanup/cleanup_magic_links.py", "--as-of", as_of)
        self.script("scripts/cleanup/cleanup_blacklist.py", "--as-of", as_of)
        self.pdfs(as_of)
        self.step("The store is compared with the rows: PDFs that no row names, as a crash years ago may leave them")
        self.script(PDFS, "--reconcile", "--dry-run", "--as-of", as_of)
        found = self.script(PDFS, "--reconcile", "--as-of", as_of)[-1]
        require(found["records_deleted"] == local_stack.FORGOTTEN_PDFS, "the forgotten PDFs were not found")
        self.step("The hold is released; the next run takes what it kept")
        self.script(HOLDS, "release", hold)
        self.script(CLEANUP, "--as-of", as_of)
        self.step("Who deleted what, and why: the audit log, without personal data")
        self.audit()
        self.step("The audit is verified; a superuser alters one entry, and is found out")
        self.script(VERIFY)
        self.tamper()
        self.step("Every policy of the file by one command, as an operator sees it; payments are archived first")
        self.orchestrate(as_of)
        self.step("One archive comes back, into a table beside its own, and is what was deleted")
        self.restore()
        self.finish(real)

    def orchestrate(self, as_of: str) -> None:
        """Remember the payments, and carry out every policy; the operator's table is on standard error."""
        self.change(
            "CREATE TABLE public.payments_before AS TABLE public.payment_transactions",
            f"CREATE TABLE {BESIDE} (LIKE public.payment_transactions)",
            f"GRANT SELECT, INSERT ON {BESIDE} TO {migrate.ROLE}",
        )
        said = self.call(ENFORCE, "--all", "--as-of", as_of, "--log-format", "console").stderr
        console.print(Text(said[said.index(TABLE_BEGINS) :].rstrip()) if TABLE_BEGINS in said else said)
        require("payment_transactions" in said, "the table does not show the payments")

    def restore(self) -> None:
        """Bring the oldest archive back, and compare its rows with those remembered, both ways."""
        archive, rows = self.rows(
            "SELECT id::text, row_count FROM ops.archives WHERE status = 'sealed' ORDER BY created_at LIMIT 1"
        )[0]
        self.script(ARCHIVES, "restore", "--policy", "payment_transactions", "--archive", archive, "--into", BESIDE)
        deleted = (
            "SELECT b.* FROM public.payments_before b JOIN ops.audit_log a ON a.resource_id = b.id::text"
            " WHERE a.action = 'archive_then_delete' AND a.metadata ->> 'archive' ="
            " (SELECT id::text FROM ops.archives WHERE status = 'sealed' ORDER BY created_at LIMIT 1)"
        )
        counts = [
            self.value(f"SELECT count(*) FROM ({query}) q")  # noqa: S608 - constants
            for query in (
                deleted,
                f"TABLE {BESIDE}",
                f"({deleted}) EXCEPT ALL TABLE {BESIDE}",
                f"TABLE {BESIDE} EXCEPT ALL ({deleted})",
            )
        ]
        still_live = self.value(f"SELECT count(*) FROM public.payment_transactions JOIN {BESIDE} USING (id)")  # noqa: S608
        table = Table()
        for heading in ("deleted and audited", "restored beside it", "only deleted", "only restored", "still live"):
            table.add_column(heading, justify="right")
        table.add_row(*(f"{count:,}" for count in (*counts, still_live)))
        console.print(table)
        require(rows > 0 and counts == [rows, rows, 0, 0], "the restored rows are not those that were deleted")
        require(still_live == 0, "an archived row is still in its table")
        self.script(VERIFY)

    def step(self, text: str) -> None:
        """Name the step."""
        self._step += 1
        console.print()
        console.print(Rule(f"[bold]{self._step}. {text}", align="left"))

    def script(self, path: str, *arguments: str, expected: int = 0, stdin: str = "") -> list[dict[str, Any]]:
        """Run a script as an operator does, and return its log lines."""
        done = self.call(path, *arguments, expected=expected, stdin=stdin)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for line in lines:
            if line["event"] != "run_figures":
                facts = {k: v for k, v in line.items() if k in _SHOWN and v is not None}
                said = "  ".join(f"{name}={value}" for name, value in facts.items())
                console.print(f"    [dim]{line['timestamp'][11:19]}[/dim] [bold]{line['event']}[/bold]  {said}")
        return lines

    def call(self, path: str, *arguments: str, expected: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a script."""
        console.print(f"  [cyan]$ python {path} {shlex.join(arguments)}[/cyan]")
        done = local_stack.run_script(path, *arguments, env=self._environment, stdin=stdin)
        require(done.returncode == expected, f"{path} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def change(self, *statements: str) -> None:
        """Change something as the database's superuser."""
        with psycopg.connect(self._stack.superuser_url("app")) as connection:  # noqa: TID251 - what is not the jobs'
            for statement in statements:
                connection.execute(statement)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the database as its superuser."""
        with psycopg.connect(self._stack.superuser_url("app")) as connection:  # noqa: TID251 - looks from outside
            return connection.execute(query).fetchall()

    def value(self, query: str) -> Any:
        """Ask for one value."""
        return self.rows(query)[0][0]

    def compare(self, predicted: dict[str, Any], real: dict[str, Any]) -> None:
        """Put the dry run beside the real run."""
        table = Table()
        for heading in ("", "dry run", "real run"):
            table.add_column(heading, justify="right" if heading else "left")
        pairs = (
            ("deleted", "records_to_delete", "records_deleted"),
            ("kept by a hold", "records_held", "records_held"),
            ("handed to a person", "records_queued", "records_queued"),
            ("past their date afterwards", "records_remaining", "records_remaining"),
        )
        for name, before, after in pairs:
            table.add_row(name, f"{predicted[before]:,}", f"{real[after]:,}")
            require(predicted[before] == real[after], f"the dry run was wrong about: {name}")
        console.print(table)

    def pdfs(self, as_of: str) -> None:
        """Remove PDFs, and compare the store's folder with the audit."""
        before = self.files()
        predicted = self.script(PDFS, "--dry-run", "--as-of", as_of)[-1]
        self.script(PDFS, "--as-of", as_of)
        fewer = before - self.files()
        audited = self.value("SELECT count(*) FROM ops.audit_log WHERE action = 'delete_blob'")
        console.print(f"  {before:,} files in the store's folder, {fewer:,} fewer now; the audit says {audited:,}")
        require(fewer == audited == predicted["records_to_delete"], "the store and the audit do not agree")

    def files(self) -> int:
        """Count the files that are really in the Blob server's folder."""
        return sum(1 for _ in (self._stack.blob_folder / "blobs").iterdir())

    def audit(self) -> None:
        """Show the audit log by reason."""
        table = Table()
        for heading in ("actor", "action", "resource type", "reason", "records"):
            table.add_column(heading, justify="right" if heading == "records" else "left", overflow="fold")
        entries = self.rows(
            "SELECT actor, action, resource_type, reason, count(*) FROM ops.audit_log GROUP BY 1, 2, 3, 4 ORDER BY 4"
        )
        for entry in entries:
            table.add_row(*(str(value) for value in entry[:-1]), f"{entry[-1]:,}")
        console.print(table)
        deleted = sum(entry[-1] for entry in entries if entry[1:3] == ("delete", "public.quiz_responses"))
        left = self.value("SELECT count(*) FROM quiz_responses")
        console.print(f"  {ROWS:,} loaded = {deleted:,} deleted and audited + {left:,} still there")
        require(deleted + left == ROWS, "rows are unaccounted for")

    def tamper(self) -> None:
        """Alter one entry as only a superuser can, show that it is found, and put it back."""
        change = "UPDATE ops.audit_batches SET resource_ids[1] = {} WHERE seq = 5"
        original = self.value("SELECT resource_ids[1] FROM ops.audit_batches WHERE seq = 5")
        for value, expected in (("00000000-0000-0000-0000-000000000000", 1), (original, 0)):
            with psycopg.connect(self._stack.superuser_url("app")) as connection:  # noqa: TID251 - the attacker
                connection.execute("SET LOCAL session_replication_role = replica")
                connection.execute(change.format(f"'{value}'"))
            self.script(VERIFY, expected=expected)

    def finish(self, real: dict[str, Any]) -> None:
        """Close with what was shown, and what to try next."""
        rate = real["records_deleted"] / max(real["duration_seconds"], 0.001)
        waiting = self.value("SELECT count(*) FROM ops.manual_resolution_queue WHERE status = 'pending'")
        table = Table(title="What happened")
        table.add_column("")
        table.add_column("", justify="right")
        table.add_row("records deleted and audited", f"{real['records_deleted']:,}")
        table.add_row("records a second, all checks and the audit included", f"{rate:,.0f}")
        table.add_row("orders waiting for a person", f"{waiting:,}")
        table.add_row("oldest record past its date", f"{real['oldest_overdue_seconds']:.0f} s")
        table.add_row("audit log", "[green]verified")
        console.print()
        console.print(table)
        console.print(
            Panel(
                "make stack            servers that stay, with sample data; prints the settings\n"
                'eval "$(.venv/bin/python backend/local_stack.py exports)"\n'
                f".venv/bin/python {CLEANUP} --dry-run\n"
                f".venv/bin/python {CLEANUP} --limit 10\n"
                f".venv/bin/python {VERIFY}\n"
                "make stack-stop",
                title="Try next, by hand",
            )
        )


_SHOWN = (
    "policy", "path", "records_to_delete", "records_deleted", "records_held", "records_queued", "records_remaining",
    "duration_seconds", "stop_reason", "entries", "records_restored", "finding", "exit_code", "hold",
)  # fmt: skip


def require(condition: bool, message: str) -> None:
    """Stop the demo where it would show something untrue."""
    if not condition:
        console.print(f"[bold red]The demo failed: {message}")
        raise SystemExit(1)


def main() -> int:
    """Run the demo on servers of its own."""
    console.print(Panel("Data that has expired is deleted, and it can be proved.", title="make demo"))
    with tempfile.TemporaryDirectory(prefix="lifecycle-demo-") as directory:
        console.print("  starting PostgreSQL, Valkey and a local Blob store on 127.0.0.1 …")
        with local_stack.running(Path(directory), blob=True) as stack:
            Demo(stack).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
