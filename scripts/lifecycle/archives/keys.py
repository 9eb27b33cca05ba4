"""The keys of the archives: the table ops.archive_keys. Each key is random and wrapped by ARCHIVE_MASTER_KEY.

There is one key for each object, one for each person, and one lookup key. The lookup key makes the pseudonym by which a
person's key is found, so that the table alone names nobody. The master key wraps these keys and encrypts nothing else:
exchanging it rewrites the rows of this table and no object. Without the master key no archive can ever be read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from scripts.lifecycle.audit import audit
from scripts.utils.db_utils import Connection, ReadOnlyDatabase, writable
from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.pseudonyms import short_digest
from scripts.utils.settings import Settings

KEY_BYTES = 32
_NONCE_BYTES = 12
_ROTATION_ROWS = 5000
_WRAPPED_BYTES = _NONCE_BYTES + KEY_BYTES + 16
_FOUND_BYTES = 8 + 16 + _WRAPPED_BYTES
_LOOK_UP = b"""
SELECT string_agg(int8send(id) || pseudonym || wrapped, ''::bytea), string_agg(master_key_id, ','),
       bool_or(last_used_on < current_date)
  FROM ops.archive_keys
 WHERE pseudonym = ANY(ARRAY(SELECT substr(%(packed)b, 1 + 16 * n, 16) FROM generate_series(0, %(last)s::int) n))
"""
_USED_TODAY = b"""
UPDATE ops.archive_keys SET last_used_on = current_date WHERE last_used_on < current_date
   AND pseudonym = ANY(ARRAY(SELECT substr(%(packed)b, 1 + 16 * n, 16) FROM generate_series(0, %(last)s::int) n))
"""
_NEW_PEOPLE = b"""
WITH new AS (
    INSERT INTO ops.archive_keys (kind, pseudonym, master_key_id, wrapped)
    SELECT 'person', substr(%(packed)b, 1 + 16 * n, 16), %(master)s, substr(%(wrapped)b, 1 + 60 * n, 60)
      FROM generate_series(0, %(last)s::int) n
        ON CONFLICT (pseudonym) WHERE pseudonym IS NOT NULL DO NOTHING
    RETURNING id, pseudonym
)
SELECT string_agg(int8send(id) || pseudonym, ''::bytea) FROM new
"""
_OPENED = b"SELECT id, pseudonym, master_key_id, wrapped FROM ops.archive_keys WHERE kind = 'person' AND id = ANY(%s)"


class KeyLost(OpsError):
    """A key that an object needs is not in ops.archive_keys. It was lost: a destroyed key leaves its row there."""

    stop_reason = "archive_key_lost"


class MasterKeys:
    """ARCHIVE_MASTER_KEY and ARCHIVE_PREVIOUS_MASTER_KEYS.

    Raises:
        Misconfigured: ARCHIVE_MASTER_KEY is not set.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.archive_master_key is None:
            raise Misconfigured("ARCHIVE_MASTER_KEY is not set: archives are encrypted, m1:$(openssl rand -hex 32)")
        written = [settings.archive_master_key.get_secret_value()]
        if settings.archive_previous_master_keys:
            written += settings.archive_previous_master_keys.get_secret_value().split(",")
        self.current = written[0].partition(":")[0]
        self._ciphers = {
            key_id: AESGCM(HKDF(SHA256(), KEY_BYTES, None, b"archive key wrapping 1").derive(bytes.fromhex(key)))
            for key_id, _, key in (each.partition(":") for each in written)
        }

    def wrap(self, key: bytes, bound_to: bytes) -> bytes:
        """Encrypt a key under the current master key. ``bound_to`` is authenticated with it (AES-GCM)."""
        nonce = os.urandom(_NONCE_BYTES)  # a random one is sound for 2**32 keys (NIST SP 800-38D, 8.3)
        return nonce + self._ciphers[self.current].encrypt(nonce, key, bound_to)

    def unwrap(self, master_key_id: str, wrapped: bytes, bound_to: bytes) -> bytes:
        """Decrypt a key.

        Raises:
            Misconfigured: The master key of that id is not set, or is another key than the one that wrapped this one.
        """
        cipher = self._ciphers.get(master_key_id)
        if cipher is None:
            raise Misconfigured(
                f"the archives' keys are wrapped by the master key {master_key_id}, which is neither ARCHIVE_MASTER_KEY"
                " nor among ARCHIVE_PREVIOUS_MASTER_KEYS: without it no archive can be read"
            )
        try:
            return cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], bound_to)
        except InvalidTag:
            raise Misconfigured(
                f"the master key {master_key_id} is not the one that wrapped the archives' keys, although it has its"
                " id: without that one no archive can be read"
            ) from None


def _bound(kind: str, what: bytes = b"") -> bytes:
    return kind.encode() + b":" + what


class ArchiveKeys:
    """Opens and makes keys for one run or command.

    Args:
        database: The database with ops.archive_keys.
        settings: Have the master keys.

    Raises:
        Misconfigured: ARCHIVE_MASTER_KEY is not set.
    """

    def __init__(self, database: ReadOnlyDatabase, settings: Settings) -> None:
        self._database = database
        self.master = MasterKeys(settings)
        self._lookup: bytes | None = None

    def check(self) -> None:
        """Check that the master key opens the lookup key, before anything is done; it writes nothing.

        Raises:
            Misconfigured: The master key is missing or is another one.
        """
        self._lookup = self._database.read(lambda connection: _lookup_key(connection, self.master))

    def lookup(self) -> bytes:
        """Return the lookup key; the first run makes it.

        Raises:
            Misconfigured: The master key is not the right one.
        """
        if self._lookup is None:
            writable(self._database).write(
                lambda connection: connection.execute(
                    "INSERT INTO ops.archive_keys (kind, master_key_id, wrapped) VALUES ('lookup', %s, %b)"
                    " ON CONFLICT (kind) WHERE kind = 'lookup' AND destroyed_at IS NULL DO NOTHING",
                    (self.master.current, self.master.wrap(os.urandom(KEY_BYTES), _bound("lookup"))),
                )
            )
            self.check()
        if self._lookup is None:
            raise AssertionError("the lookup key was just made")
        return self._lookup

    def new_object_key(self, connection: Connection, archive: UUID) -> bytes:
        """Make an object's key, in the transaction that inserts the archive."""
        key = os.urandom(KEY_BYTES)
        connection.execute(
            "INSERT INTO ops.archive_keys (kind, archive_id, master_key_id, wrapped) VALUES ('object', %s, %s, %b)",
            (archive, self.master.current, self.master.wrap(key, _bound("object", archive.bytes))),
        )
        return key

    def object_key(self, archive: UUID) -> bytes:
        """Return an object's key from the database.

        Raises:
            KeyLost: There is none, or the archive has expired.
            Misconfigured: The master key does not open it.
        """
        row = self._database.read(
            lambda connection: connection.execute(
                "SELECT master_key_id, wrapped FROM ops.archive_keys WHERE archive_id = %s AND wrapped IS NOT NULL",
                (archive,),
            ).fetchone()
        )
        if row is None:
            raise KeyLost(f"archive {archive} has no key in ops.archive_keys: it has expired, or the row was lost")
        return self.master.unwrap(row[0], bytes(row[1]), _bound("object", archive.bytes))

    def pseudonyms(self, people: Iterable[bytes]) -> list[bytes]:
        """Return the pseudonym of each person; ``people`` are the values of the person column, as bytes."""
        key = self.lookup()
        return [short_digest(key, person) for person in people]

    def people(self, connection: Connection, pseudonyms: list[bytes]) -> dict[bytes, tuple[int, bytes]]:
        """Return id and key of each person, by pseudonym, and make the missing keys. It takes one round trip, or two.

        Args:
            connection: Autocommits: a key must be committed before anything is encrypted under it.
            pseudonyms: Without duplicates.
        """
        found = self._people(connection, pseudonyms)
        missing = [each for each in pseudonyms if each not in found]
        if missing:
            found |= self._new_people(connection, missing)
            # Another run has inserted the rest first.
            missing = [each for each in missing if each not in found]
            found |= self._people(connection, missing) if missing else {}
        return found

    def _people(self, connection: Connection, pseudonyms: list[bytes]) -> dict[bytes, tuple[int, bytes]]:
        # One value in each direction: thousands of parameters and rows would cost more than all the cryptography.
        parameters = {"packed": b"".join(pseudonyms), "last": len(pseudonyms) - 1}
        row = connection.cursor(binary=True).execute(_LOOK_UP, parameters).fetchone()
        if row is None or row[0] is None:
            return {}
        packed, masters, stale = row
        if stale:
            connection.execute(_USED_TODAY, parameters)
        found = {}
        for start, master in zip(range(0, len(packed), _FOUND_BYTES), masters.split(","), strict=True):
            whose = packed[start + 8 : start + 24]
            wrapped = packed[start + 24 : start + _FOUND_BYTES]
            key_id = int.from_bytes(packed[start : start + 8], "big")
            found[whose] = (key_id, self.master.unwrap(master, wrapped, b"person:" + whose))
        return found

    def _new_people(self, connection: Connection, pseudonyms: list[bytes]) -> dict[bytes, tuple[int, bytes]]:
        random = os.urandom(KEY_BYTES * len(pseudonyms))
        keys = [random[start : start + KEY_BYTES] for start in range(0, len(random), KEY_BYTES)]
        wrapped = [self.master.wrap(key, b"person:" + whose) for key, whose in zip(keys, pseudonyms, strict=True)]
        parameters = {
            "packed": b"".join(pseudonyms),
            "wrapped": b"".join(wrapped),
            "master": self.master.current,
            "last": len(pseudonyms) - 1,
        }
        row = connection.cursor(binary=True).execute(_NEW_PEOPLE, parameters).fetchone()
        packed = row[0] if row and row[0] else b""
        made = dict(zip(pseudonyms, keys, strict=True))
        return {
            (whose := packed[start + 8 : start + 24]): (int.from_bytes(packed[start : start + 8], "big"), made[whose])
            for start in range(0, len(packed), 24)
        }

    def opened(self, connection: Connection, ids: Iterable[int], *, keep: bool = False) -> dict[int, bytes | None]:
        """Return people's keys by id; None stands for a key that was destroyed.

        Args:
            connection: Where to read.
            ids: Ids in ops.archive_keys.
            keep: Lock the rows FOR SHARE, so that no erasure destroys a key before the transaction ends.

        Raises:
            KeyLost: An id is not in the table at all.
            Misconfigured: The master key does not open one of them.
        """
        wanted = list(ids)
        rows = connection.cursor(binary=True).execute(
            _OPENED + b" ORDER BY id FOR SHARE" if keep else _OPENED, (wanted,)
        )
        found = {
            key_id: None if wrapped is None else self.master.unwrap(master, wrapped, _bound("person", whose))
            for key_id, whose, master, wrapped in rows
        }
        if lost := set(wanted) - found.keys():
            raise KeyLost(
                f"{len(lost)} person keys are not in ops.archive_keys, the first is {min(lost)}: they were not"
                " destroyed, which leaves a row, but lost; restore that table from a backup"
            )
        return found

    def rotate(self, between: Callable[[], None], *, operator: str) -> int:
        """Wrap every key that a former master key wraps with the current one. No object is touched.

        It can be repeated and interrupted. A key that is destroyed meanwhile stays destroyed.

        Args:
            between: Called between batches of keys; may raise to stop.
            operator: The handle of the person who rotates; each batch is audited with its update.

        Returns:
            How many keys were wrapped again.

        Raises:
            Misconfigured: A former master key is not set.
        """
        after = total = 0
        while True:
            between()
            rows = self._database.read(
                lambda connection, after=after: (
                    connection.cursor(binary=True)  # type: ignore[misc]
                    .execute(
                        "SELECT id, kind, coalesce(pseudonym, uuid_send(archive_id), ''::bytea), master_key_id, wrapped"
                        " FROM ops.archive_keys WHERE id > %s AND wrapped IS NOT NULL AND master_key_id <> %s"
                        " ORDER BY id LIMIT %s",
                        (after, self.master.current, _ROTATION_ROWS),
                    )
                    .fetchall()
                )
            )
            if not rows:
                return total
            after = rows[-1][0]
            total += self._wrap_anew(rows, operator)

    def _wrap_anew(self, rows: list[tuple[int, str, bytes, str, bytes]], operator: str) -> int:
        anew = [
            self.master.wrap(self.master.unwrap(master, wrapped, _bound(kind, what)), _bound(kind, what))
            for _, kind, what, master, wrapped in rows
        ]

        def work(connection: Connection) -> int:
            changed = connection.execute(
                "UPDATE ops.archive_keys k SET master_key_id = %s, wrapped = n.wrapped"
                " FROM unnest(%b::bigint[], %b::bytea[], %b::bytea[]) AS n (id, former, wrapped)"
                " WHERE k.id = n.id AND k.wrapped = n.former RETURNING k.id::text",
                (self.master.current, [row[0] for row in rows], [row[4] for row in rows], anew),
            ).fetchall()
            if changed:
                audit.append(
                    connection,
                    actor=f"operator:{operator}",
                    action="archive_keys_rotated",
                    resource_type="ops.archive_keys",
                    resource_ids=[key for (key,) in changed],
                    reason="key_rotation",
                    metadata={"master_key": self.master.current},
                )
            return len(changed)

        return writable(self._database).write(work)


def _lookup_key(connection: Connection, master: MasterKeys) -> bytes | None:
    row = connection.execute(
        "SELECT master_key_id, wrapped FROM ops.archive_keys WHERE kind = 'lookup' AND destroyed_at IS NULL"
    ).fetchone()
    return master.unwrap(row[0], bytes(row[1]), _bound("lookup")) if row else None


def key_of_person(connection: Connection, keys: ArchiveKeys, person: str) -> tuple[int, bytes] | None:
    """Return id and key of a person.

    Args:
        connection: Where to read.
        keys: The keys.
        person: The value of the policy's person column.

    Returns:
        None: there is no key, so no archive holds readable columns of this person.
    """
    (pseudonym,) = keys.pseudonyms([person.encode()])
    row = connection.execute("SELECT id FROM ops.archive_keys WHERE pseudonym = %b", (pseudonym,)).fetchone()
    key = keys.opened(connection, [row[0]])[row[0]] if row else None
    return (row[0], key) if row and key else None


def keys_by_master(connection: Connection) -> dict[str, int]:
    """Return how many keys each master key wraps, by its id."""
    rows = connection.execute(
        "SELECT master_key_id, count(*) FROM ops.archive_keys WHERE wrapped IS NOT NULL GROUP BY 1 ORDER BY 1"
    )
    return dict(rows.fetchall())
