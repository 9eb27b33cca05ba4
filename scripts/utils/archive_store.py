"""Where archives lie: a folder, or a bucket of any S3-compatible store. Objects are streamed, never held as a whole.

In a folder an object has its name only when it is complete and on the disk, because the caller deletes rows once it is
there. Its files are private (``private_files.py``). A killed process leaves a hidden file in a folder, and in a bucket
at most the parts of an incomplete upload, which the bucket's own lifecycle rule removes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from scripts.utils import private_files
from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.settings import Settings

if TYPE_CHECKING:
    from obstore.store import S3Config

READ_BYTES = 1024 * 1024
# A smaller object is uploaded in one call, a larger one in parts of this size, of which two at most are in memory.
PART_BYTES = 8 * 1024 * 1024
_PATIENCE = timedelta(seconds=60)
_HIDDEN = ".incomplete-"
_NOT_IN_NAMES = frozenset(map(chr, (*range(32), 127))) | {"\\"}
_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file grew too large",
}


class ArchiveStoreFailed(OpsError):
    """The store refused or failed; the message says what is wrong and what to do."""

    stop_reason = "archive_store_failed"


class ObjectMissing(ArchiveStoreFailed):
    """There is no object of that name."""

    stop_reason = "archive_missing"


class Writer(Protocol):
    """What an object's bytes are written to."""

    def write(self, data: bytes, /) -> object:
        """Append bytes."""


class ArchiveStore(Protocol):
    """A place for objects. Every method raises ArchiveStoreFailed, also for a name that could lead out of the place."""

    @contextmanager
    def writing(self, name: str) -> Iterator[Writer]:
        """Write an object: complete and durable when the block ends, absent if the block fails."""

    def read(self, name: str) -> Iterator[bytes]:
        """Read an object in pieces.

        Raises:
            ObjectMissing: There is no object of that name.
        """

    def delete(self, name: str) -> None:
        """Delete an object; a missing object is no error."""

    def names(self) -> Iterator[str]:
        """List the objects' names."""


def store_of(settings: Settings) -> ArchiveStore:
    """Return the store of the archives, without a call to it.

    Raises:
        Misconfigured: Names what is not set.
    """
    if settings.archive_url is None:
        raise Misconfigured("ARCHIVE_URL is not set: archives need a place, file:///folder or s3://bucket/prefix")
    return store_at(settings.archive_url, settings, "ARCHIVE_URL")


def store_at(url: str, settings: Settings, variable: str, *, patience: timedelta = _PATIENCE) -> ArchiveStore:
    """Return the store at a place, without a call to it.

    Args:
        url: ``file:///folder`` or ``s3://bucket/prefix``.
        settings: The bucket's login.
        variable: The setting that names the place, for messages.
        patience: Longest time for one call with its repetitions; a folder has no such limit.

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
        root: The folder. It must exist: where a disk is not mounted, its folder must not be made on another disk.
        variable: The setting that names it, for messages.
    """

    def __init__(self, root: Path, variable: str = "ARCHIVE_URL") -> None:
        self._root = root
        self._variable = variable

    @contextmanager
    def writing(self, name: str) -> Iterator[Writer]:
        """Write to a hidden file, and rename it once it is on the disk."""
        *folders, last = checked_name(name)
        with (
            self._explained("written"),
            self._folder(folders, make=True) as within,
            private_files.replacing(within, last, hidden=_HIDDEN + last) as file,
        ):
            yield file

    def read(self, name: str) -> Iterator[bytes]:
        """Read a file in pieces.

        Raises:
            ObjectMissing: There is no such file.
            ArchiveStoreFailed: The file system refused.
        """
        *folders, last = checked_name(name)
        with self._explained("read"), ExitStack() as stack:
            try:
                file = stack.enter_context(private_files.reading(stack.enter_context(self._folder(folders)), last))
            except FileNotFoundError:
                raise ObjectMissing(f"{name} is not in the folder that {self._variable} names") from None
            while piece := file.read(READ_BYTES):
                yield piece

    def delete(self, name: str) -> None:
        """Delete a file, and the hidden file of an interrupted process."""
        *folders, last = checked_name(name)
        with self._explained("deleted"), suppress(FileNotFoundError), self._folder(folders) as within:
            for each in (last, _HIDDEN + last):
                with suppress(FileNotFoundError):
                    os.unlink(each, dir_fd=within)

    def names(self) -> Iterator[str]:
        """List the regular files; symbolic links are neither listed nor followed."""
        with self._explained("listed"):
            self._require_root()
            for path in sorted(self._root.rglob("*")):
                if path.is_file() and not path.is_symlink():
                    yield path.relative_to(self._root).as_posix()

    @contextmanager
    def _folder(self, folders: list[str], *, make: bool = False) -> Iterator[int]:
        self._require_root()
        with private_files.folder(self._root, folders, make=make) as within:
            yield within

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


def checked_name(name: str) -> list[str]:
    """Return the parts of an object's name.

    The same rule stands as a CHECK in ops.archives (migration 0023): a name that was written into the database by
    somebody else must lead nowhere but into the store.

    Raises:
        ArchiveStoreFailed: The name could lead out of the store, or names no object.
    """
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or any(character in _NOT_IN_NAMES for character in name):
        raise ArchiveStoreFailed("the name of an object is refused: it is empty, absolute, or holds '..', '\\' or NUL")
    return parts


class BucketStore:
    """A bucket, or a prefix in a bucket.

    Args:
        store: The client.
        variable: The setting that names it, for messages.
    """

    def __init__(self, store: S3Store, variable: str = "ARCHIVE_URL") -> None:
        self._store = store
        self._variable = variable

    @contextmanager
    def writing(self, name: str) -> Iterator[Writer]:
        """Upload an object; a small one in a single call, which makes it complete or not at all."""
        checked_name(name)
        with _explained("written", name, self._variable):
            file = obstore.open_writer(self._store, name, buffer_size=PART_BYTES, max_concurrency=1)
        # Left open if the block fails, because closing completes the upload.
        yield _BucketWriter(file, name, self._variable)
        with _explained("written", name, self._variable):
            file.close()

    def read(self, name: str) -> Iterator[bytes]:
        """Download in pieces."""
        checked_name(name)
        with _explained("read", name, self._variable):
            for piece in obstore.get(self._store, name).stream(min_chunk_size=READ_BYTES):
                yield bytes(piece)

    def delete(self, name: str) -> None:
        """Delete an object."""
        checked_name(name)
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
        # Only the error's type: its text quotes addresses and requests.
        raise ArchiveStoreFailed(
            f"{name} could not be {what}: the store of {variable} answered {type(error).__name__}; check that it is"
            " up, that the bucket exists and that the login may read, write and delete there"
        ) from error
