"""Where archives lie: a folder, or a bucket of any S3-compatible store. Written and read as streams, never as a whole.

A name appears in a folder only when its object is complete and on the disk: the caller deletes rows on the strength of
it. What a killed process leaves behind is a hidden file there; in a bucket it is at most the parts of an upload that
was never completed, which the bucket's own lifecycle rule removes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.settings import Settings

if TYPE_CHECKING:
    from obstore.store import S3Config

READ_BYTES = 1024 * 1024
# Below it an object is one call; above it goes up in parts of this size, so at most two lie in memory.
PART_BYTES = 8 * 1024 * 1024
_PATIENCE = timedelta(seconds=60)
_HIDDEN = ".incomplete-"
_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file grew too large",
}


class ArchiveStoreFailed(OpsError):
    """The store did not do what it was asked for."""

    stop_reason = "archive_store_failed"


class ObjectMissing(ArchiveStoreFailed):
    """There is no object of that name."""

    stop_reason = "archive_missing"


class Writer(Protocol):
    """Takes an object's bytes, one piece after the other."""

    def write(self, data: bytes, /) -> object:
        """Append."""


class ArchiveStore(Protocol):
    """A place for objects; every method raises ArchiveStoreFailed with what is wrong and what to do."""

    @contextmanager
    def writing(self, name: str) -> Iterator[Writer]:
        """Write an object; it is complete and durable when the block ends, and not there if the block fails."""

    def read(self, name: str) -> Iterator[bytes]:
        """Read an object in pieces.

        Raises:
            ObjectMissing: There is none.
        """

    def delete(self, name: str) -> None:
        """Delete an object; one that is not there is no error."""

    def names(self) -> Iterator[str]:
        """List what is there."""


def store_of(settings: Settings) -> ArchiveStore:
    """Return the archives' store; nothing is asked of it yet.

    Raises:
        Misconfigured: Names what is not set.
    """
    if settings.archive_url is None:
        raise Misconfigured("ARCHIVE_URL is not set: archives need a place, file:///folder or s3://bucket/prefix")
    return store_at(settings.archive_url, settings, "ARCHIVE_URL")


def store_at(url: str, settings: Settings, variable: str, *, patience: timedelta = _PATIENCE) -> ArchiveStore:
    """Return the store at a place; nothing is asked of it yet.

    Args:
        url: ``file:///folder`` or ``s3://bucket/prefix``.
        settings: The bucket's login.
        variable: The setting that names the place, for messages.
        patience: Longest time for one call and its repetitions; a folder knows none.

    Raises:
        Misconfigured: Names what is not set.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return FolderStore(Path(unquote(parts.path)), variable)
    missing = [name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if not getattr(settings, name.lower())]
    if missing or not (settings.aws_access_key_id and settings.aws_secret_access_key):
        raise Misconfigured(f"{' and '.join(missing)} not set: {variable} names a bucket")
    place: S3Config = {
        "region": settings.aws_region,
        "access_key_id": settings.aws_access_key_id.get_secret_value(),
        "secret_access_key": settings.aws_secret_access_key.get_secret_value(),
    }
    if settings.aws_endpoint_url:
        place["endpoint"] = settings.aws_endpoint_url
    return BucketStore(
        S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            config=place,
            client_options={
                "allow_http": (settings.aws_endpoint_url or "").startswith("http://"),
                "connect_timeout": timedelta(seconds=5),
                "timeout": patience,
            },
            retry_config={"max_retries": 4, "retry_timeout": patience},
        ),
        variable,
    )


class FolderStore:
    """A folder, such as a mounted disk.

    Args:
        root: It must be there: a disk that is not mounted must not become a folder on another one.
        variable: The setting that names it, for messages.
    """

    def __init__(self, root: Path, variable: str = "ARCHIVE_URL") -> None:
        self._root = root
        self._variable = variable

    @contextmanager
    def writing(self, name: str) -> Iterator[Writer]:
        """Write to a hidden file, and give it its name once the disk has it."""
        path = self._path(name)
        hidden = path.with_name(_HIDDEN + path.name)
        with self._explained("written"):
            self._require_root()
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with hidden.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                hidden.rename(path)
                for folder in (path.parent, *path.parent.parents):
                    _sync_folder(folder)  # a new folder's name is in the folder above
                    if folder == self._root:
                        break
            except BaseException:
                with suppress(OSError):
                    hidden.unlink(missing_ok=True)
                raise

    def read(self, name: str) -> Iterator[bytes]:
        """Read a file in pieces."""
        with self._explained("read"):
            self._require_root()
            try:
                file = self._path(name).open("rb")
            except FileNotFoundError:
                raise ObjectMissing(f"{name} is not in the folder that {self._variable} names") from None
            with file:
                while piece := file.read(READ_BYTES):
                    yield piece

    def delete(self, name: str) -> None:
        """Delete a file, and what an interrupted process left of it."""
        with self._explained("deleted"):
            self._require_root()
            path = self._path(name)
            for each in (path, path.with_name(_HIDDEN + path.name)):
                each.unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        """List the files."""
        with self._explained("listed"):
            self._require_root()
            for path in sorted(self._root.rglob("*")):
                if path.is_file():
                    yield path.relative_to(self._root).as_posix()

    def _path(self, name: str) -> Path:
        return self._root.joinpath(*name.split("/"))

    def _require_root(self) -> None:
        if not self._root.is_dir():
            raise ArchiveStoreFailed(f"the folder that {self._variable} names is not there: is its disk mounted?")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = _NO_ROOM.get(error.errno or 0) or f"{type(error).__name__}, {errno.errorcode.get(error.errno or 0)}"
            raise ArchiveStoreFailed(f"it could not be {what} in the folder of {self._variable}: {why}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class BucketStore:
    """A bucket, or a prefix in one.

    Args:
        store: The client.
        variable: The setting that names it, for messages.
    """

    def __init__(self, store: S3Store, variable: str = "ARCHIVE_URL") -> None:
        self._store = store
        self._variable = variable

    @contextmanager
    def writing(self, name: str) -> Iterator[Writer]:
        """Upload; what is small enough in one call, which is there as a whole or not at all."""
        with _explained("written", name, self._variable):
            file = obstore.open_writer(self._store, name, buffer_size=PART_BYTES, max_concurrency=1)
        # Not closed where the block fails: closing completes the upload.
        yield _BucketWriter(file, name, self._variable)
        with _explained("written", name, self._variable):
            file.close()

    def read(self, name: str) -> Iterator[bytes]:
        """Download in pieces."""
        with _explained("read", name, self._variable):
            for piece in obstore.get(self._store, name).stream(min_chunk_size=READ_BYTES):
                yield bytes(piece)

    def delete(self, name: str) -> None:
        """Delete an object."""
        with suppress(ObjectMissing), _explained("deleted", name, self._variable):
            obstore.delete(self._store, name)

    def names(self) -> Iterator[str]:
        """List the objects."""
        with _explained("listed", "the bucket", self._variable):
            for page in obstore.list(self._store):
                yield from (entry["path"] for entry in page)


class _BucketWriter:
    def __init__(self, file: obstore.WritableFile, name: str, variable: str) -> None:
        self._file = file
        self._name = name
        self._variable = variable

    def write(self, data: bytes, /) -> object:
        with _explained("written", self._name, self._variable):
            return self._file.write(data)


@contextmanager
def _explained(what: str, name: str, variable: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ObjectMissing(f"{name} is not in the bucket that {variable} names, or the bucket is not there") from None
    except (BaseError, OSError) as error:
        # The library's text quotes addresses and requests; its type says enough.
        raise ArchiveStoreFailed(
            f"{name} could not be {what}: the store of {variable} answered {type(error).__name__}; check that it is"
            " up, that the bucket exists and that the login may read, write and delete there"
        ) from error
