"""Blobs in a folder: one file a blob, and an index from which a page of names costs the same at any size.

The index decides which blobs exist. A file's name is made from a digest, so no pathname can lead out of the folder, and
blobs ``a`` and ``a/b``, or ``A`` and ``a``, can exist together, as in the real store.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import mimetypes
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.utils import private_files

MAX_PATHNAME = 950
MAX_PAGE = 1000
DEFAULT_MAX_AGE = 30 * 24 * 3600
_INDEX = "index.sqlite3"
SAMPLE_BODY = b"%PDF-1.4\n% a sample\n%%EOF\n"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (
    pathname BLOB PRIMARY KEY, size INTEGER NOT NULL, etag TEXT NOT NULL, uploaded_ms INTEGER NOT NULL,
    content_type TEXT NOT NULL, max_age INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_SELECT = "SELECT pathname, size, etag, uploaded_ms, content_type, max_age FROM blobs WHERE "
_GET = _SELECT + "pathname = ?"
_RANGE = _SELECT + "pathname >= ? AND pathname < ? ORDER BY pathname"
_INSERT = "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?, ?)"
# No pathname holds a zero byte and UTF-8 never has 0xff: the first key after a name, and after all names with a prefix.
_NEXT, _PAST = b"\x00", b"\xff"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_POPULATE_CHUNK = 10_000  # also below the number of links that a file may have


class BlobRefused(Exception):
    """The service answers with an error."""

    def __init__(self, status: int, code: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


def bad_request(message: str) -> BlobRefused:
    """Return the refusal of a malformed call."""
    return BlobRefused(400, "bad_request", message)


def not_found() -> BlobRefused:
    """Return the refusal of a call about a blob that is not there."""
    return BlobRefused(404, "not_found", "The requested blob does not exist")


def precondition_failed() -> BlobRefused:
    """Return the refusal of a call whose ``x-if-match`` names another version."""
    return BlobRefused(412, "precondition_failed", "Precondition failed: ETag mismatch.")


def checked_pathname(text: str, *, upload: bool = False) -> str:
    """Return a pathname without its leading slash.

    Raises:
        BlobRefused: The real service refuses this pathname.
    """
    pathname = text.removeprefix("/")
    try:
        units = len(text.encode("utf-16-le")) // 2
    except UnicodeEncodeError:
        raise bad_request("pathname must be valid Unicode") from None
    if not pathname:
        raise bad_request("pathname cannot be empty")
    if _CONTROL.search(pathname):
        raise bad_request("pathname cannot contain control characters")
    if "//" in text:
        raise bad_request('pathname cannot contain "//"')
    if not {".", ".."}.isdisjoint(pathname.split("/")):
        raise bad_request('pathname cannot contain the segments "." and ".."')
    if upload and units > MAX_PATHNAME:
        raise bad_request(f"pathname is too long, maximum length is {MAX_PATHNAME}")
    return pathname


def with_random_suffix(pathname: str) -> str:
    """Put a random suffix before the extension, as ``x-add-random-suffix`` asks."""
    folder, slash, name = pathname.rpartition("/")
    stem, dot, extension = name.rpartition(".")
    suffix = secrets.token_hex(15)
    name = f"{stem}-{suffix}.{extension}" if dot and stem else f"{name}-{suffix}"
    return f"{folder}{slash}{name}"


@dataclass(frozen=True, slots=True)
class Blob:
    """What the store knows of a blob besides its content."""

    pathname: str
    size: int
    etag: str
    uploaded_ms: int
    content_type: str
    max_age: int


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing; ``cursor`` is None on the last one."""

    blobs: list[Blob]
    folders: list[str]
    cursor: str | None


class BlobStore:
    """Blobs in a folder; safe to use from many threads of one process."""

    def __init__(self, directory: Path) -> None:
        self.files = directory / "blobs"
        private_files.make_folder(self.files)
        with private_files.folder(directory) as within:
            private_files.create(within, _INDEX)  # SQLite gives its other files the same rights
        self._lock = threading.RLock()
        self._index = sqlite3.connect(directory / _INDEX, isolation_level=None, check_same_thread=False)
        # Survives a killed server, not a power cut: it is a toy store.
        self._index.executescript(f"PRAGMA synchronous = off; PRAGMA journal_mode = wal; {_SCHEMA}")

    def close(self) -> None:
        """Close the index; the blobs stay."""
        with self._lock:
            self._index.close()

    def remember(self, name: str, value: str) -> str:
        """Return the fact kept under a name, which is the given one if there was none."""
        with self._lock:
            self._index.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, value))
            return str(self._index.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()[0])

    def put(
        self,
        pathname: str,
        body: bytes,
        *,
        content_type: str | None = None,
        max_age: int | None = None,
        overwrite: bool = False,
        if_match: str | None = None,
        uploaded_at: float | None = None,
    ) -> Blob:
        """Keep a blob.

        Raises:
            BlobRefused: There is one already and it may not be overwritten, or it is not the version that was meant.
        """
        blob = _described(pathname, body, content_type, max_age, uploaded_at)
        path = self._path(pathname)
        with self._transaction():
            present = self.get(pathname)
            if if_match is not None and (present is None or present.etag != if_match):
                raise precondition_failed()
            if present is not None and not overwrite and if_match is None:
                raise bad_request(
                    "This blob already exists, use `allowOverwrite: true` if you want to overwrite it. "
                    "Or `addRandomSuffix: true` to generate a unique filename."
                )
            self._write(path.name, body)
            self._insert([blob])
        return blob

    def get(self, pathname: str) -> Blob | None:
        """Return what is known of a blob."""
        with self._lock:
            found = self._index.execute(_GET, (pathname.encode(),))
            row = found.fetchone()
        return _blob(row) if row else None

    def read(self, pathname: str) -> bytes:
        """Return a blob's content.

        Raises:
            BlobRefused: There is none.
        """
        with self._lock:
            if self.get(pathname) is None:
                raise not_found()
            try:
                with (
                    private_files.folder(self.files) as within,
                    private_files.reading(within, self._path(pathname).name) as file,
                ):
                    return file.read()
            except FileNotFoundError:
                raise not_found() from None

    def delete(self, pathnames: Iterable[str], *, if_match: str | None = None) -> int:
        """Delete blobs and return how many were there.

        Raises:
            BlobRefused: A blob is there, but is not the version that was meant; nothing is deleted.
        """
        deleted = 0
        with self._transaction():
            for pathname in pathnames:
                present = self.get(pathname) if if_match is not None else None
                if present is not None and present.etag != if_match:
                    raise precondition_failed()
                done = self._index.execute("DELETE FROM blobs WHERE pathname = ?", (pathname.encode(),))
                deleted += done.rowcount
                if done.rowcount:
                    self._path(pathname).unlink(missing_ok=True)
        return deleted

    def page(self, *, prefix: str = "", cursor: str | None = None, limit: int = MAX_PAGE, folded: bool = False) -> Page:
        """List names in order from a cursor on; folded, what lies below a further slash shows as its folder once.

        A cursor holds the next key, not a position: it stays true whatever is deleted between two pages.

        Raises:
            BlobRefused: The cursor is none of ours.
        """
        start = prefix.encode()
        lower, past = (_key(cursor) if cursor else start), start + _PAST
        lower = max(lower, start)
        page = Page([], [], None)
        with self._lock:
            while True:
                for row in self._index.execute(_RANGE, (lower, past)):
                    if len(page.blobs) + len(page.folders) == limit:
                        return Page(page.blobs, page.folders, base64.urlsafe_b64encode(lower).decode())
                    name: bytes = row[0]
                    slash = name.find(b"/", len(start)) if folded else -1
                    if slash >= 0:  # jump over the folder: its blobs, perhaps a million, are never read
                        page.folders.append(name[: slash + 1].decode())
                        lower = name[: slash + 1] + _PAST
                        break
                    page.blobs.append(_blob(row))
                    lower = name + _NEXT
                else:
                    return page

    def count(self, prefix: str = "") -> int:
        """Count the blobs below a prefix."""
        start = prefix.encode()
        with self._lock:
            found = self._index.execute(
                "SELECT count(*) FROM blobs WHERE pathname >= ? AND pathname < ?", (start, start + _PAST)
            )
            return int(found.fetchone()[0])

    def count_files(self) -> int:
        """Count the files on disk, which is slow at a million."""
        return sum(1 for _ in self.files.iterdir())

    def populate(
        self, count: int, prefix: str, *, on_disk: bool = True, uploaded_at: float | None = None
    ) -> Iterator[str]:
        """Create many blobs of one content; the iterator returned only names them: they exist already.

        Args:
            count: How many.
            prefix: What their pathnames start with; a number and ``.pdf`` follow.
            on_disk: False makes them in the index only, 10 times as fast; they can be listed and deleted, not read.
            uploaded_at: Unix time of their upload; by default now.
        """
        checked_pathname(numbered(prefix, count), upload=True)
        model = _described(numbered(prefix, 0), SAMPLE_BODY, None, None, uploaded_at)
        for start in range(0, count, _POPULATE_CHUNK):
            names = [numbered(prefix, number) for number in range(start, min(start + _POPULATE_CHUNK, count))]
            with self._transaction():
                if on_disk:
                    self._link(names)
                self._insert(replace(model, pathname=name) for name in names)
        return (numbered(prefix, number) for number in range(count))

    def _write(self, name: str, body: bytes) -> None:
        """Write a new file, never into the old one: it may be shared with the other blobs of :meth:`populate`."""
        with (
            private_files.folder(self.files) as within,
            private_files.replacing(within, name, f"{name}~", durable=False) as file,
        ):
            file.write(body)

    def _link(self, pathnames: list[str]) -> None:
        seed, *others = (self._path(pathname) for pathname in pathnames)
        self._write(seed.name, SAMPLE_BODY)
        for path in others:
            try:
                path.hardlink_to(seed)
            except FileExistsError:
                path.unlink()
                path.hardlink_to(seed)

    def _path(self, pathname: str) -> Path:
        digest = hashlib.sha256(pathname.encode()).hexdigest()
        readable = re.sub(r"[^A-Za-z0-9._-]", "_", pathname.rpartition("/")[2])[-60:]
        return self.files / f"{digest[:40]}-{readable}"

    def _insert(self, blobs: Iterable[Blob]) -> None:
        self._index.executemany(
            _INSERT,
            ((b.pathname.encode(), b.size, b.etag, b.uploaded_ms, b.content_type, b.max_age) for b in blobs),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._index.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._index.execute("ROLLBACK")
                raise
            self._index.execute("COMMIT")


def numbered(prefix: str, number: int) -> str:
    """Return the pathname that ``populate`` gives its blob of that number."""
    return f"{prefix}{number:07d}.pdf"


def guessed_type(pathname: str) -> str:
    """Return the content type that a pathname's extension says."""
    return mimetypes.guess_type(pathname)[0] or "application/octet-stream"


def _described(
    pathname: str, body: bytes, content_type: str | None, max_age: int | None, uploaded_at: float | None
) -> Blob:
    return Blob(
        pathname,
        len(body),
        f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"',
        int((time.time() if uploaded_at is None else uploaded_at) * 1000),
        content_type or guessed_type(pathname),
        DEFAULT_MAX_AGE if max_age is None else max_age,
    )


def _blob(row: tuple[Any, ...]) -> Blob:
    return Blob(row[0].decode(), *row[1:])


def _key(cursor: str) -> bytes:
    try:
        return base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise bad_request("Invalid cursor") from None
