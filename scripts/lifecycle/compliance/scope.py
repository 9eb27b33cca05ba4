"""What every part of the report works on: the run, the period, the snapshot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row

from scripts.lifecycle.compliance.document import Section
from scripts.lifecycle.compliance.looks import Look
from scripts.lifecycle.jobs.run import Run
from scripts.utils.db_utils import Connection, connection_lost
from scripts.utils.errors import Misconfigured, OpsError, StoppedEarly, describe_database_error


@dataclass(frozen=True)
class Scope:
    """The subject of one report.

    Args:
        run: The run.
        connection: In a READ ONLY transaction of one snapshot.
        since: The period's first moment, time-zone aware.
        until: The moment after its last.
        now: The database's clock at the beginning of the snapshot.
        quick: Whether the long verifications are left out.
        looks: The present counts of each policy.
    """

    run: Run
    connection: Connection
    since: datetime
    until: datetime
    now: datetime
    quick: bool
    looks: dict[str, Look] = field(default_factory=dict)

    def rows(self, query: str, **parameters: Any) -> list[dict[str, Any]]:
        """Return a query's rows as dicts; the query may use the parameters ``since``, ``until`` and ``now``."""
        with self.connection.cursor(row_factory=dict_row) as cursor:
            known = {"since": self.since, "until": self.until, "now": self.now}
            return cursor.execute(query.encode(), known | parameters).fetchall()


def part(scope: Scope, key: str, title: str, fill: Callable[[Scope, Section], None]) -> Section:
    """Return a section. If it cannot be made, it says why under what was not counted, and the report goes on.

    Args:
        scope: The subject.
        key: The section's key in JSON.
        title: The section's heading.
        fill: Adds the content.

    Raises:
        StoppedEarly: The run must stop.
        Misconfigured: The flags do not fit.
        psycopg.Error: The connection is lost.
    """
    section = Section(key, title)
    try:
        with scope.connection.transaction():  # a savepoint: a failed statement must not abort the other parts
            fill(scope, section)
    except (StoppedEarly, Misconfigured):
        raise
    except psycopg.Error as error:
        if connection_lost(error):
            raise
        section.uncounted.append(f"{title}: {describe_database_error(error)}")
    except OpsError as error:
        section.uncounted.append(f"{title}: {error}")
    except (ValueError, ArithmeticError) as error:  # a row holds a value that Python cannot handle
        section.uncounted.append(f"{title}: a value could not be read ({type(error).__name__})")
    return section
