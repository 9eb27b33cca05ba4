"""Rows that an exception keeps beyond its time: counted, and put on the manual-resolution queue."""

from __future__ import annotations

from collections.abc import Callable

from psycopg import sql

from scripts.lifecycle.engine.selection import Selection
from scripts.lifecycle.engine.windows import Path, Window
from scripts.lifecycle.jobs.handover import Item, raise_rows
from scripts.lifecycle.policy.policies import QueueRule
from scripts.utils.db_utils import Connection, Database
from scripts.utils.settings import Settings

# Rows that are looked at in one transaction; few of them are put on the queue.
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
    """Put every row that an exception keeps beyond its time on the queue, a window a transaction.

    Args:
        database: The database.
        settings: Gives the deadlines.
        selection: The policy's selection.
        exception: The exception's name; it must have a queue rule.
        path: The way through the table.
        raised_by: The actor, such as ``system:cleanup_quiz_responses``.
        between_pages: Called before each window; may raise to stop.

    Returns:
        How many items are new.
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
            new += raise_rows(connection, settings, item, rows, selection.parameters | window.parameters)


def queue_rule(selection: Selection, exception: str) -> QueueRule:
    """Return the exception's queue rule."""
    rule = selection.policy.exceptions[exception].queue
    if rule is None:
        raise ValueError(f"exception {exception} has no queue rule")
    return rule


def overdue_exception(selection: Selection, exception: str) -> sql.Composed:
    """Return SQL that is true where the exception keeps a row beyond its time."""
    rule = queue_rule(selection, exception)
    return sql.SQL("{} AND t.{} < {}").format(
        selection.met(selection.policy.exceptions[exception].when, f"except_{exception}"),
        sql.Identifier(rule.anchor),
        selection.moment(rule.anchor, f"queue_{exception}"),
    )


def count_new(connection: Connection, selection: Selection, exception: str) -> int:
    """Return how many rows :func:`raise_excepted` would put on the queue now that are not there yet."""
    row = connection.execute(
        sql.SQL(
            "SELECT count(*) FROM {} t WHERE {} AND NOT EXISTS (SELECT FROM ops.manual_resolution_queue q"
            " WHERE q.status <> 'resolved' AND q.item_type = %(item_type)s AND q.resource_type = %(table_name)s"
            " AND q.resource_id = {})"
        ).format(selection.table, overdue_exception(selection, exception), selection.record.id("t")),
        selection.parameters | {"item_type": queue_rule(selection, exception).item_type},
    ).fetchone()
    return int(row[0]) if row else 0
