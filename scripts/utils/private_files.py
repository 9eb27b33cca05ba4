"""Files that their owner alone may read: 0600 from the first byte, in folders of 0700, never through a symbolic link.

Everything is opened relative to a folder that is open already (``dir_fd``), so nobody can put a link in its way between
a check and the use. A file appears under its name when it is complete and on the disk.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

FILE_MODE = 0o600
FOLDER_MODE = 0o700
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_EITHER = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def folder(root: Path, parts: Sequence[str] = (), *, make: bool = False) -> Iterator[int]:
    """Open a folder below a place that an operator named, and lend its descriptor.

    Args:
        root: The place; it must be there, and may itself be a symbolic link.
        parts: The names of the folders on the way; none of them may be a symbolic link.
        make: Make those that are missing.

    Raises:
        OSError: A part is missing, is no folder, or is a symbolic link (``NotADirectoryError``).
    """
    descriptor = os.open(root, _FOLDER)
    try:
        for part in parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, FOLDER_MODE, dir_fd=descriptor)
                    os.fsync(descriptor)  # the new folder's name
            below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder, and those on the way that are missing; a folder that is there keeps its rights.

    Raises:
        OSError: The folder, or one that seems to be missing, is a symbolic link, or the file system refused.
    """
    whole = path.absolute()
    there = next(each for each in whole.parents if each.exists())
    with folder(there, whole.relative_to(there).parts, make=True):
        pass


def create(within: int, name: str) -> None:
    """Make an empty file for a library that opens it by its name; a file that is there stays as it is.

    Raises:
        OSError: It is a symbolic link, or the file system refused.
    """
    os.close(os.open(name, _EITHER, FILE_MODE, dir_fd=within))


@contextmanager
def replacing(
    within: int, name: str, hidden: str | None = None, *, durable: bool = True, mode: int = FILE_MODE
) -> Iterator[BinaryIO]:
    """Write a file; it has its name when the block ends, and what was there before stays if the block fails.

    A file that was there keeps the rights that it lacked: nobody gets to read or write what they could not.

    Args:
        within: The descriptor of its folder.
        name: Its name there.
        hidden: Its name until it is complete; what an interrupted process left under it is removed.
        durable: Wait until it is on the disk, so that it survives a power cut.
        mode: The rights of a file that others are to read; those that the umask takes away are not given.

    Raises:
        OSError: The file system refused.
    """
    unfinished = hidden or f".{name[:100]}.{secrets.token_hex(6)}.new"
    with suppress(FileNotFoundError):
        os.unlink(unfinished, dir_fd=within)
    descriptor = os.open(unfinished, _NEW, mode, dir_fd=within)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with suppress(FileNotFoundError):
                before = os.stat(name, dir_fd=within, follow_symlinks=False)
                if stat.S_ISREG(before.st_mode):
                    os.fchmod(descriptor, mode & before.st_mode)
            yield file
            file.flush()
            if durable:
                os.fsync(descriptor)
        os.rename(unfinished, name, src_dir_fd=within, dst_dir_fd=within)
        if durable:
            os.fsync(within)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished, dir_fd=within)
        raise


@contextmanager
def reading(within: int, name: str) -> Iterator[BinaryIO]:
    """Open a file for reading.

    Args:
        within: The descriptor of its folder.
        name: Its name there.

    Raises:
        OSError: It is missing, or it is a symbolic link or no regular file.
    """
    descriptor = os.open(name, _OLD, dir_fd=within)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise IsADirectoryError(f"{name} is no regular file")
        yield file


def write(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all, in a folder that is there.

    Raises:
        OSError: The file system refused.
    """
    with folder(path.parent) as within, replacing(within, path.name) as file:
        file.write(content)
