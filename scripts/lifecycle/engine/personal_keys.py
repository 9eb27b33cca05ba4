"""Keys that may be personal, such as an address: the audit names such a row by the key's pseudonym.

A pseudonym is computed in Python, because its key must not reach the server's logs. So the keys of a batch are read
first, one statement for each table whose keys are texts; the batch itself changes only rows whose pseudonym it was
given. A row that becomes due in between stays for a later batch. A key that is a UUID stands in the audit as it is:
where every key is one, nothing is read.
"""

from __future__ import annotations

from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.policy.tables import table_identifier
from scripts.utils import composing as sql

OWN = "names"
"""The parameter with the pseudonyms of the policy's rows: a JSON object by the keys' texts."""


def of_dependant(number: int) -> str:
    """Return the parameter with the pseudonyms of one declared dependant's rows."""
    return f"names_{number}"


def parameters(selection: Selection) -> list[str]:
    """Return the parameters that want pseudonyms: of the policy's table and of each dependant with a text key."""
    own = [] if selection.record.impersonal else [OWN]
    reached = [of_dependant(number) for number, reach in enumerate(selection.reaches) if not reach.record.impersonal]
    return own + reached


def questions(selection: Selection, rows: sql.Composable) -> dict[str, sql.Composed]:
    """Return, by the parameter that wants their pseudonyms, the query for keys that may be personal.

    Args:
        selection: What is to go.
        rows: The condition for the rows of ``t`` that the batch removes.
    """
    asked = {}
    if not selection.record.impersonal:
        asked[OWN] = sql.SQL("SELECT {} FROM {} t WHERE {} AND NOT ({})").format(
            selection.record.id("t"), selection.table, rows, selection.record.nameable("t")
        )
    for number, reach in enumerate(selection.reaches):
        if not reach.record.impersonal:
            asked[of_dependant(number)] = sql.SQL(
                "SELECT DISTINCT {} FROM {} t JOIN {} c ON {} WHERE {} AND NOT ({})"
            ).format(
                reach.record.id("c"),
                selection.table,
                table_identifier(reach.foreign_key.table),
                reach.foreign_key.joins("c"),
                rows,
                reach.record.nameable("c"),
            )
    return asked
