"""The part on archives: how many there are, and whether each is what was written, read from the store again."""

from __future__ import annotations

from dataclasses import dataclass, field

from scripts.lifecycle.archives.catalogue import Entry, entries
from scripts.lifecycle.archives.keys import ArchiveKeys
from scripts.lifecycle.archives.verify import Finding, strangers, verify
from scripts.lifecycle.compliance.document import Column, Section, Statement, Table
from scripts.lifecycle.compliance.scope import Scope
from scripts.utils.archive_store import store_of
from scripts.utils.errors import OpsError

# The share of the run's time for reading archives; the other parts need the rest.
TIME_SHARE = 0.6
SHOWN = 20
_INVENTORY = """
SELECT policy, table_name,
       count(*) FILTER (WHERE status IN ('sealed', 'expiring')) AS objects,
       coalesce(sum(row_count) FILTER (WHERE status IN ('sealed', 'expiring')), 0)::bigint AS rows,
       coalesce(sum(bytes) FILTER (WHERE status IN ('sealed', 'expiring')), 0)::bigint AS bytes,
       min(oldest) FILTER (WHERE status IN ('sealed', 'expiring')) AS oldest,
       max(newest) FILTER (WHERE status IN ('sealed', 'expiring')) AS newest,
       count(*) FILTER (WHERE sealed_at >= %(since)s AND sealed_at < %(until)s) AS sealed,
       coalesce(sum(row_count) FILTER (WHERE sealed_at >= %(since)s AND sealed_at < %(until)s), 0)::bigint
           AS sealed_rows,
       count(*) FILTER (WHERE closed_at >= %(since)s AND closed_at < %(until)s) AS expired
  FROM ops.archives WHERE status NOT IN ('writing', 'discarded') GROUP BY 1, 2 ORDER BY 1, 2
"""


@dataclass
class _Checked:
    whole: int = 0
    rows: int = 0
    erased: int = 0
    findings: list[Finding] = field(default_factory=list)
    left: int = 0
    because: str | None = None


def fill(scope: Scope, section: Section) -> None:
    """Add the archives by policy, and the result of reading them again, as far as time allows."""
    keys = ("objects", "rows", "bytes", "oldest", "newest", "sealed", "sealed_rows", "expired")
    section.tables.append(
        Table(
            "inventory",
            "Archives by policy",
            (
                Column("policy", "policy", weight=1.7),
                Column("objects", "objects now", "number", weight=0.8),
                Column("rows", "rows", "number", weight=0.8),
                Column("bytes", "size", "bytes", weight=0.9),
                Column("oldest", "oldest row (UTC)", "moment", weight=1.5),
                Column("newest", "newest row (UTC)", "moment", weight=1.5),
                Column("sealed", "sealed in the period", "number", weight=0.8),
                Column("sealed_rows", "with rows", "number", weight=0.8),
                Column("expired", "ended in the period", "number", weight=0.8),
            ),
            [(row["policy"], *(row[key] for key in keys)) for row in scope.rows(_INVENTORY)],
        )
    )
    present = entries(scope.connection, statuses=["sealed", "expiring"])
    new = [each for each in present if each.sealed_at and scope.since <= each.sealed_at < scope.until]
    # Archives of the period come first: they are the report's subject, in case the time ends.
    chosen = new if scope.quick else [*new, *(each for each in present if each not in new)]
    checked = _check(scope, chosen, all_of_them=not scope.quick)
    section.lead = [
        "Verified means: read from the store, unsealed frame by frame, its rows counted, its hash compared with the"
        " catalogue's." + (" With --quick only archives of the period are read." if scope.quick else "")
    ]
    section.tables.append(
        Table(
            "verification",
            "Verified now",
            (Column("figure", "figure", weight=3), Column("value", "value", "number")),
            [
                ("archives in the catalogue", len(present)),
                ("read and found whole", checked.whole),
                ("rows in these", checked.rows),
                ("of these, rows of erased people, whose personal columns nobody can read", checked.erased),
                ("broken, missing or without a key", sum(each.kind != "unknown" for each in checked.findings)),
                ("in the store and not in the catalogue", sum(each.kind == "unknown" for each in checked.findings)),
                ("not read", len(present) - checked.whole - sum(each.kind != "unknown" for each in checked.findings)),
            ],
        )
    )
    broken = [each for each in checked.findings if each.kind != "unknown"]
    section.statements += [Statement("broken", f"archive: {each.error}") for each in broken[:SHOWN]]
    if len(broken) > SHOWN:
        section.statements.append(
            Statement("broken", f"and {len(broken) - SHOWN:,} archives more", len(broken) - SHOWN)
        )
    strange = len(checked.findings) - len(broken)
    if strange:
        section.statements.append(
            Statement("finding", f"{strange:,} objects lie in the archives' store that the catalogue does not know")
        )
    if checked.left:
        section.uncounted.append(f"archives: {checked.left:,} of {len(chosen):,} were not read ({checked.because})")


def _check(scope: Scope, chosen: list[Entry], *, all_of_them: bool) -> _Checked:
    checked = _Checked()
    if not chosen:
        return checked
    run = scope.run

    def whole(entry: Entry, erased: int) -> None:
        checked.whole += 1
        checked.rows += entry.row_count or 0
        checked.erased += erased

    try:
        store, keys = store_of(run.settings), ArchiveKeys(run.database, run.settings)
        keys.check()
        for number, entry in enumerate(chosen):
            run.stop_on_signal()
            if run.duration() > TIME_SHARE * run.budget_seconds:
                checked.left, checked.because = len(chosen) - number, "no time left; archive_before_delete.py verify"
                return checked
            checked.left = len(chosen) - number
            checked.findings += verify(run.database, store, keys, [entry], between=run.stop_on_signal, tell=whole)
        checked.left = 0
        if all_of_them:
            checked.findings += strangers(run.database, store)
    except OpsError as error:
        run.stop_on_signal()
        checked.left, checked.because = checked.left or len(chosen), str(error)
    return checked
