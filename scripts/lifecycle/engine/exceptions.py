"""Count the rows that an exception keeps longer than its queue rule allows, and put them on the queue."""

from __future__ import annotations

from collections.abc import Callable

from scripts.lifecycle.engine.fragments import Fragment, fragment
from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.engine.windows import Path, Window
from scripts.lifecycle.jobs.handover import Item, raise_rows
from scripts.lifecycle.policy.rules import QueueRule
from scripts.utils import composing as sql
from scripts.utils.db_utils import Connection, Database
from scripts.utils.settings import Settings

# Rows that one transaction reads; few of them are put on the queue.
_WINDOW_ROWS = 50_000


def raise_excepted(
    database: Database,
    settings: Settings,
    selection: Selection,
    exception: str,
    path: Path,
    *,
    raised_by: str,
    between_pages: Callable[[], None],
) -> int:
    """Put every row that an exception keeps too long on the manual-resolution queue, one transaction a window.

    Args:
        database: The database.
        settings: Hold the deadlines of queue items, in hours.
        selection: The policy's selection.
        exception: The exception's name; it must have a queue rule.
        path: The windows that cover the table.
        raised_by: The actor, such as ``system:cleanup_quiz_responses``.
        between_pages: Called before each window; it may raise an error to stop.

    Returns:
        How many items are new.

    Raises:
        ValueError: The exception has no queue rule.
    """
    rule = queue_rule(selection, exception)
    overdue = overdue_exception(selection, exception)
    item = Item(
        rule.item_type, selection.policy.table, rule.priority, rule.reason, raised_by, {"policy": selection.policy.name}
    )
    window: Window | None = None
    new = 0
    while True:
        between_pages()
        with database.transaction() as connection:
            question = path.question(window, _WINDOW_ROWS)
            answer = connection.execute(*question).fetchone() if question else None
            window = path.following(window, answer, _WINDOW_ROWS)
            if window is None:
                return new
            rows = sql.SQL("(SELECT {} AS resource_id FROM {} t WHERE {} AND {})").format(
                selection.record.id("t"), selection.table, window.clause, overdue
            )
            new += raise_rows(connection, settings, item, rows, overdue.parameters | window.parameters)


def queue_rule(selection: Selection, exception: str) -> QueueRule:
    """Return the exception's queue rule.

    Raises:
        ValueError: The exception has none.
    """
    rule = selection.policy.exceptions[exception].queue
    if rule is None:
        raise ValueError(f"exception {exception} has no queue rule")
    return rule


def overdue_exception(selection: Selection, exception: str) -> Fragment:
    """Return SQL that is true for a row that the exception keeps and that is older than its queue rule allows."""
    rule = queue_rule(selection, exception)
    # With `forever` no row is old enough: nothing lies before -infinity.
    moment = rule.after.before(selection.cutoff) or "-infinity"
    older = selection.before(rule.anchor, moment, f"queue_{exception}")
    return fragment("{} AND {}", selection.excepted(exception), older)


def count_new(connection: Connection, selection: Selection, exception: str) -> int:
    """Return how many items :func:`raise_excepted` would add to the queue now."""
    selection = selection.joined()
    query = fragment(
        "SELECT count(*) FROM {} WHERE {} AND NOT EXISTS (SELECT FROM ops.manual_resolution_queue q"
        " WHERE q.status <> 'resolved' AND q.item_type = %(item_type)s AND q.resource_type = %(table_name)s"
        " AND q.resource_id = {})",
        selection.source,
        overdue_exception(selection, exception),
        selection.record.id("t"),
        parameters={"item_type": queue_rule(selection, exception).item_type, "table_name": selection.policy.table},
    )
    row = connection.execute(query, query.parameters).fetchone()
    return int(row[0]) if row else 0
