"""How an archive is written: blocks of rows, compressed as one stream, sealed frame by frame.

    magic · length · header (JSON, readable: table, columns, policy) · frame · frame · … · last frame

A frame is AES-256-GCM under the object's own key. Its nonce is its number and whether it is the last, and the header is
under its seal: what was cut off, put in another order, changed, or taken from another object does not open. One key
seals one object only, so no nonce comes twice. Inside is one zstd stream of blocks. A block holds some rows' impersonal
columns as COPY's text, and each person's columns once more sealed, under her own key: without it the rest stays
readable.
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
"""Owner of a row without a person: its personal columns lie with the others, under the object's key."""

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
    """An object is not what was written."""

    stop_reason = "archive_broken"


@dataclass(frozen=True)
class Sealed:
    """The personal columns of one person's rows in a block, in the rows' order."""

    key_id: int
    content: bytes
    """Nonce and ciphertext."""


@dataclass(frozen=True)
class Block:
    """Some rows."""

    rest: bytes
    """A line of COPY's text for each row: every column that is not personal."""
    own: bytes
    """A line for each row without a person: its personal columns."""
    owners: array[int]
    """For each row whose: a place among the people, or NOBODY."""
    packed: bytes
    """Every person's columns, as :func:`pack` makes them."""

    @cached_property
    def people(self) -> list[Sealed]:
        """The persons whose columns are here."""
        return list(_unpacked(self.packed))


@dataclass(frozen=True)
class Trailer:
    """What the last block says of all of them."""

    rows: int
    sha256: str
    """Of the blocks' bytes, before compression."""


@dataclass(frozen=True)
class Written:
    """An object as it went to the store."""

    rows: int
    bytes: int
    sha256: str
    content_sha256: str


class ObjectWriter:
    """Writes one object.

    Args:
        out: Where to.
        key: The object's own key, never used before.
        header: What anyone may read of it.
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
        """Append trailer and last frame."""
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
    """Reads one object; nothing is handed out that was not authentic.

    Args:
        name: Names the object in errors.
        pieces: Its bytes.

    Raises:
        ArchiveBroken: It does not begin like an archive.
    """

    def __init__(self, name: str, pieces: Iterable[bytes]) -> None:
        self._name = name
        self._pieces = iter(pieces)
        self._buffer = bytearray()
        self._seen = hashlib.sha256()
        self.bytes = 0
        """Bytes read so far."""
        head = self._take(len(MAGIC) + _LENGTH.size)
        (length,) = _LENGTH.unpack(head[len(MAGIC) :])
        if head[: len(MAGIC)] != MAGIC or length > _HEADER_BYTES:
            raise self._broken("it does not begin like an archive")
        self._opening = head + self._take(length)
        self._bound = hashlib.sha256(self._opening).digest()
        self.header: dict[str, Any] = {}
        """What the header says. Empty until the first frame has opened: anyone who may write to the store can write a
        header, only the object's key can seal one."""

    @property
    def sha256(self) -> str:
        """Of the bytes read so far."""
        return self._seen.hexdigest()

    def blocks(self, key: bytes) -> Iterator[Block | Trailer]:
        """Return the blocks and at the end the trailer.

        Raises:
            ArchiveBroken: Something was cut off, changed, moved or added, or the key is another one's.
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
        """Read the header, once the first frame has shown that the object's key sealed it."""
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
    """The one zstd stream, in the pieces that are asked for."""

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
    """Seal each person's lines under her key, bound to the archive that they are in.

    Args:
        people: Id and key of each.
        lots: Her lines, without their ends.
        archive: The archive's id.
        nonces: Random bytes, NONCE_BYTES for each person.
    """
    for place, ((key_id, key), lot) in enumerate(zip(people, lots, strict=True)):
        nonce = nonces[place * NONCE_BYTES : (place + 1) * NONCE_BYTES]
        sealed = AESGCM(key).encrypt(nonce, b"\n".join(lot) + b"\n", archive)
        yield _SEALED.pack(key_id, NONCE_BYTES + len(sealed)) + nonce + sealed


def open_sealed(key: bytes, archive: bytes, sealed: Sealed, name: str) -> list[bytes]:
    """Return a person's lines, without their ends.

    Raises:
        ArchiveBroken: They do not open with this key.
    """
    nonce, content = sealed.content[:NONCE_BYTES], sealed.content[NONCE_BYTES:]
    try:
        return lines_of(AESGCM(key).decrypt(nonce, content, archive))
    except InvalidTag:
        raise ArchiveBroken(f"archive {name} is broken: columns under person key {sealed.key_id} do not open") from None


def lines_of(text: bytes) -> list[bytes]:
    """Return COPY's lines without their ends; bytes.splitlines would break at other characters too."""
    return text.split(b"\n")[:-1]


def unescaped(field: bytes) -> bytes:
    """Return the text that COPY wrote as a field (PostgreSQL documentation, COPY, "Text Format")."""
    if b"\\" not in field:
        return field
    return _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), field)


def values_of(line: bytes) -> list[str | None]:
    """Return the values of one of COPY's lines."""
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
