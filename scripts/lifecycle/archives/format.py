"""The format of an archive object: blocks of rows, compressed as one stream, encrypted frame by frame.

    magic · length · header (JSON, readable: table, columns, policy) · frame · frame · … · last frame

Each frame is AES-256-GCM under the object's own key. The nonce is the frame's number plus a flag for the last frame,
and the SHA-256 of the header is the additional authenticated data (the STREAM construction of Hoang, Reyhanitabar,
Rogaway and Vizar, 2015). So a frame that was cut off, reordered, changed or taken from another object does not open. A
key encrypts one object only, so no nonce is used twice. The plaintext is one zstd stream of blocks. A block holds the
impersonal columns of some rows as COPY's text, and each person's columns encrypted again under that person's own key:
when that key is destroyed, the other columns stay readable.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from scripts.utils import strict_json
from scripts.utils.archive_store import Writer
from scripts.utils.errors import OpsError

MAGIC = b"LCARCH\x00\x01"
FRAME_BYTES = 512 * 1024
LEVEL = 1
NOBODY = 0xFFFFFFFF
"""Owner of a row without a person. Its personal columns are encrypted under the object's key only."""

_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPED = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_TAG_BYTES = 16
NONCE_BYTES = 12
_LAST = 0x80000000
_HEADER_BYTES = 1024 * 1024
_LENGTH = struct.Struct(">I")
_BLOCK = struct.Struct(">cIIII")
_SEALED = struct.Struct(">QI")
_END = struct.Struct(">cI")


class ArchiveBroken(OpsError):
    """An object in the store, or its line in the catalogue, is not what the suite wrote."""

    stop_reason = "archive_broken"


@dataclass(frozen=True)
class Sealed:
    """The encrypted personal columns of one person's rows in one block, in the order of the rows."""

    key_id: int
    content: bytes
    """Nonce and ciphertext."""


@dataclass(frozen=True)
class Block:
    """The unit in which rows are written and read: at most a few thousand of them."""

    rest: bytes
    """For each row one line of COPY's text with the columns that are not personal."""
    own: bytes
    """For each row without a person one line with its personal columns."""
    owners: array[int]
    """For each row the index of its person in ``people``, or NOBODY."""
    packed: bytes
    """The encrypted columns of every person, as :func:`pack` makes them."""

    @cached_property
    def people(self) -> list[Sealed]:
        """The persons whose columns are in this block."""
        return list(_unpacked(self.packed))


@dataclass(frozen=True)
class Trailer:
    """The end of an object: totals over all its blocks."""

    rows: int
    sha256: str
    """Of the blocks' bytes before compression."""


@dataclass(frozen=True)
class Written:
    """Size and hashes of an object as it was handed to the store."""

    rows: int
    bytes: int
    sha256: str
    content_sha256: str


class ObjectWriter:
    """Writes one object.

    Args:
        out: Takes the object's bytes.
        key: The object's own key (32 bytes). It must never have encrypted anything before.
        header: What stands unencrypted at the beginning: table, columns, policy. It holds no personal data.
    """

    def __init__(self, out: Writer, key: bytes, header: dict[str, Any]) -> None:
        self._out = out
        self._cipher = AESGCM(key)
        self._stream = zstandard.ZstdCompressor(level=LEVEL).compressobj()
        self._pending = bytearray()
        self._frames = 0
        self._rows = 0
        self._bytes = 0
        self._seen = hashlib.sha256()
        self._content = hashlib.sha256()
        opening = _opening(header)
        self._bound = hashlib.sha256(opening).digest()
        self._send(opening)

    def add(self, block: Block) -> None:
        """Append a block."""
        head = _BLOCK.pack(b"B", len(block.owners), len(block.rest), len(block.own), len(block.packed))
        for part in (head, block.rest, block.own, _owners_bytes(block.owners), block.packed):
            self._content.update(part)
            self._pending += self._stream.compress(part)
        self._rows += len(block.owners)
        while len(self._pending) > FRAME_BYTES:
            self._frame(bytes(self._pending[:FRAME_BYTES]), last=False)
            del self._pending[:FRAME_BYTES]

    def finish(self) -> Written:
        """Append the trailer and the last frame, and return the totals."""
        trailer = json.dumps({"rows": self._rows, "sha256": self._content.hexdigest()}).encode()
        self._pending += self._stream.compress(_END.pack(b"E", len(trailer)) + trailer) + self._stream.flush()
        while len(self._pending) > FRAME_BYTES:
            self._frame(bytes(self._pending[:FRAME_BYTES]), last=False)
            del self._pending[:FRAME_BYTES]
        self._frame(bytes(self._pending), last=True)
        return Written(self._rows, self._bytes, self._seen.hexdigest(), self._content.hexdigest())

    def _frame(self, content: bytes, *, last: bool) -> None:
        sealed = self._cipher.encrypt(_nonce(self._frames, last=last), content, self._bound)
        self._frames += 1
        self._send(_LENGTH.pack(len(sealed) | (_LAST if last else 0)) + sealed)

    def _send(self, data: bytes) -> None:
        self._seen.update(data)
        self._bytes += len(data)
        self._out.write(data)


class ObjectReader:
    """Reads one object. It hands out nothing before the object's key has authenticated it.

    Args:
        name: The object's name, for errors.
        pieces: The object's bytes, in pieces of any size.

    Raises:
        ArchiveBroken: The bytes do not begin like an archive.
    """

    def __init__(self, name: str, pieces: Iterable[bytes]) -> None:
        self._name = name
        self._pieces = iter(pieces)
        self._buffer = bytearray()
        self._seen = hashlib.sha256()
        self.bytes = 0
        """Number of bytes that were read so far."""
        head = self._take(len(MAGIC) + _LENGTH.size)
        (length,) = _LENGTH.unpack(head[len(MAGIC) :])
        if head[: len(MAGIC)] != MAGIC or length > _HEADER_BYTES:
            raise self._broken("it does not begin like an archive")
        self._opening = head + self._take(length)
        self._bound = hashlib.sha256(self._opening).digest()
        self.header: dict[str, Any] = {}
        """The header. It is empty until the first frame has opened: anyone who may write to the store can write a
        header, but only the holder of the object's key can authenticate one."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes that were read so far."""
        return self._seen.hexdigest()

    def blocks(self, key: bytes) -> Iterator[Block | Trailer]:
        """Return the blocks, and the trailer as the last item.

        Raises:
            ArchiveBroken: Bytes were cut off, changed, moved or added, or the key belongs to another object.
        """
        plain = _Plain(self._name, self._frames(AESGCM(key)))
        content = hashlib.sha256()
        rows = 0
        while (kind := plain.take(1)) == b"B":
            head = kind + plain.take(_BLOCK.size - 1)
            _, count, *lengths = _BLOCK.unpack(head)
            rest, own = (plain.take(length) for length in lengths[:2])
            owners, people = plain.take(4 * count), plain.take(lengths[2])
            for part in (head, rest, own, owners, people):
                content.update(part)
            block = Block(rest, own, _owners(owners), people)
            if rest.count(b"\n") != count or own.count(b"\n") != block.owners.count(NOBODY):
                raise self._broken("a block has another number of rows than it says")
            rows += count
            yield block
        if kind != b"E":
            raise self._broken("a block is of no known kind")
        (length,) = _LENGTH.unpack(plain.take(_LENGTH.size))
        trailer = self._trailer(plain.take(length))
        plain.require_end()
        if (trailer.rows, trailer.sha256) != (rows, content.hexdigest()):
            raise self._broken("its rows are not those that its end speaks of")
        yield trailer

    def _frames(self, cipher: AESGCM) -> Iterator[bytes]:
        number, last = 0, False
        while not last:
            (length,) = _LENGTH.unpack(self._take(_LENGTH.size))
            last, length = bool(length & _LAST), length & ~_LAST
            if not _TAG_BYTES <= length <= FRAME_BYTES + _TAG_BYTES:
                raise self._broken(f"frame {number} has an impossible length")
            try:
                content = cipher.decrypt(_nonce(number, last=last), self._take(length), self._bound)
            except InvalidTag:
                raise self._broken(f"frame {number} was changed, moved or sealed with another key") from None
            if number == 0:
                self._read_header()
            yield content
            number += 1
        if self._buffer or self._more():
            raise self._broken("something was added behind its end")

    def _read_header(self) -> None:
        """Parse the header. The caller has opened the first frame, so the header is authentic."""
        try:
            header = strict_json.loads(self._opening[len(MAGIC) + _LENGTH.size :])
        except ValueError as error:
            raise self._broken(f"its header cannot be read: {error}") from None
        if not isinstance(header, dict):
            raise self._broken("its header is no object")
        self.header = header

    def _trailer(self, text: bytes) -> Trailer:
        try:
            return Trailer(**strict_json.loads(text))
        except (ValueError, TypeError):
            raise self._broken("its end cannot be read") from None

    def _take(self, length: int) -> bytes:
        while len(self._buffer) < length:
            if not self._more():
                raise self._broken(f"it was cut off after {self.bytes} bytes")
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    def _more(self) -> bool:
        piece = next(self._pieces, b"")
        self._seen.update(piece)
        self.bytes += len(piece)
        self._buffer += piece
        return bool(piece)

    def _broken(self, why: str) -> ArchiveBroken:
        return ArchiveBroken(f"archive {self._name} is broken: {why}")


class _Plain:
    """Decompresses the zstd stream inside the frames, and hands out as many bytes as its reader asks for."""

    def __init__(self, name: str, frames: Iterator[bytes]) -> None:
        self._name = name
        self._frames = frames
        self._stream = zstandard.ZstdDecompressor().decompressobj()
        self._buffer = bytearray()

    def take(self, length: int) -> bytes:
        while len(self._buffer) < length:
            frame = next(self._frames, None)
            if frame is None:
                raise ArchiveBroken(f"archive {self._name} is broken: its content ends too early")
            self._feed(frame)
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    def require_end(self) -> None:
        for frame in self._frames:
            self._feed(frame)
        if self._buffer:
            raise ArchiveBroken(f"archive {self._name} is broken: its content goes on behind its end")

    def _feed(self, frame: bytes) -> None:
        try:
            self._buffer += self._stream.decompress(frame)
        except (zstandard.ZstdError, EOFError):
            raise ArchiveBroken(f"archive {self._name} is broken: its content does not decompress") from None


def pack(
    people: Iterable[tuple[int, bytes]], lots: Iterable[list[bytes]], archive: bytes, nonces: bytes
) -> Iterator[bytes]:
    """Encrypt each person's lines under that person's key, bound to the id of the archive.

    Args:
        people: Id and key (32 bytes) of each person.
        lots: The lines of each person, in the same order, without line ends.
        archive: The 16 bytes of the archive's id, authenticated with the lines.
        nonces: Random bytes, NONCE_BYTES for each person.
    """
    for place, ((key_id, key), lot) in enumerate(zip(people, lots, strict=True)):
        nonce = nonces[place * NONCE_BYTES : (place + 1) * NONCE_BYTES]
        sealed = AESGCM(key).encrypt(nonce, b"\n".join(lot) + b"\n", archive)
        yield _SEALED.pack(key_id, NONCE_BYTES + len(sealed)) + nonce + sealed


def open_sealed(key: bytes, archive: bytes, sealed: Sealed, name: str) -> list[bytes]:
    """Decrypt a person's lines, and return them without line ends.

    Args:
        key: The person's key.
        archive: The 16 bytes of the archive's id.
        sealed: The encrypted lines.
        name: The object's name, for errors.

    Raises:
        ArchiveBroken: The lines do not open with this key.
    """
    nonce, content = sealed.content[:NONCE_BYTES], sealed.content[NONCE_BYTES:]
    try:
        return lines_of(AESGCM(key).decrypt(nonce, content, archive))
    except InvalidTag:
        raise ArchiveBroken(f"archive {name} is broken: columns under person key {sealed.key_id} do not open") from None


def lines_of(text: bytes) -> list[bytes]:
    """Split COPY's text at its line ends only; ``bytes.splitlines`` would split at other characters too."""
    return text.split(b"\n")[:-1]


def unescaped(field: bytes) -> bytes:
    """Undo the escapes of a field in COPY's text (PostgreSQL documentation, COPY, "Text Format")."""
    if b"\\" not in field:
        return field
    return _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), field)


def values_of(line: bytes) -> list[str | None]:
    """Return the values in one line of COPY's text; None stands for NULL."""
    return [None if field == b"\\N" else unescaped(field).decode() for field in line.split(b"\t")]


def _opening(header: dict[str, Any]) -> bytes:
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return MAGIC + _LENGTH.pack(len(text)) + text


def _nonce(number: int, *, last: bool) -> bytes:
    return struct.pack(">IQ", int(last), number)


def _owners_bytes(owners: array[int]) -> bytes:
    return struct.pack(f">{len(owners)}I", *owners)


def _owners(data: bytes) -> array[int]:
    return array("I", struct.unpack(f">{len(data) // 4}I", data))


def _unpacked(data: bytes) -> Iterator[Sealed]:
    position = 0
    while position < len(data):
        key_id, length = _SEALED.unpack_from(data, position)
        position += _SEALED.size
        yield Sealed(key_id, data[position : position + length])
        position += length
