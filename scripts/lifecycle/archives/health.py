"""Findings about archives for the health check: above all, whether they can still be decrypted."""

from __future__ import annotations

from scripts.lifecycle.archives.keys import ArchiveKeys, keys_by_master
from scripts.utils.db_utils import Connection, ReadOnlyDatabase
from scripts.utils.errors import Misconfigured
from scripts.utils.settings import Settings

_UNFINISHED = """
SELECT count(*) FROM ops.archives WHERE status NOT IN ('sealed', 'expired') AND created_at < now() - interval '1 day'
"""


def warnings(database: ReadOnlyDatabase, settings: Settings) -> list[str]:
    """Return what is wrong with keys and catalogue, as sentences; it reads the database, and no object.

    The list is empty where nothing was ever archived.
    """

    def look(connection: Connection) -> tuple[dict[str, int], int]:
        row = connection.execute(_UNFINISHED).fetchone()
        return keys_by_master(connection), row[0] if row else 0

    by_master, unfinished = database.read(look)
    if not by_master:
        return []
    found = []
    try:
        keys = ArchiveKeys(database, settings)
        keys.check()
    except Misconfigured as error:
        found.append(f"no archive can be read: {error}. A lost master key loses every archive")
    else:
        former = sum(count for key_id, count in by_master.items() if key_id != keys.master.current)
        if former:
            found.append(f"{former} keys of archives are wrapped by a former master key: run rotate-keys")
    if unfinished:
        found.append(f"{unfinished} archives are unfinished for more than a day: run archive_before_delete")
    return found
