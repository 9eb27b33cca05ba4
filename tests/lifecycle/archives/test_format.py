"""The sealed frames: what was cut, moved, doubled or taken from elsewhere does not open."""

import os
import struct
from array import array

import pytest

from scripts.lifecycle.archives.export import _in_time
from scripts.lifecycle.archives.format import (
    FRAME_BYTES,
    NOBODY,
    NONCE_BYTES,
    ArchiveBroken,
    Block,
    ObjectReader,
    ObjectWriter,
    Trailer,
    lines_of,
    open_sealed,
    pack,
)

KEY, OTHER, ARCHIVE = b"k" * 32, b"o" * 32, b"a" * 16


class Sink(bytearray):
    def write(self, data):
        self += data


def written(blocks, key=KEY, header=None):
    out = Sink()
    writer = ObjectWriter(out, key, header or {"archive": "x"})
    for block in blocks:
        writer.add(block)
    facts = writer.finish()
    return bytes(out), facts


def read(data, key=KEY, piece=100_000):
    reader = ObjectReader("x", (data[start : start + piece] for start in range(0, len(data), piece)))
    *blocks, trailer = reader.blocks(key)
    assert isinstance(trailer, Trailer)
    return reader, blocks, trailer


def incompressible(rows):
    return Block(
        b"".join(os.urandom(500).hex().encode() + b"\n" for _ in range(rows)),
        b"mine\n" * rows,
        array("I", [NOBODY] * rows),
        b"",
    )


@pytest.fixture(scope="module")
def large():
    """An object of at least three frames, and where each of them begins."""
    data, _ = written([incompressible(1200) for _ in range(3)])
    (length,) = struct.unpack_from(">I", data, 8)
    starts, position = [], 12 + length
    while position < len(data):
        starts.append(position)
        (size,) = struct.unpack_from(">I", data, position)
        position += 4 + (size & 0x7FFFFFFF)
    assert len(starts) >= 3
    return data, starts


@pytest.mark.parametrize("piece", [1, 7, 4096, 10_000_000])
def test_what_was_written_is_read_in_whatever_pieces_it_comes(piece):
    people = [(7, b"p" * 32), (9, b"q" * 32)]
    lots = [[b"anna\t1", b"anna\t2"], [b"ben\t1"]]
    packed = b"".join(pack(people, lots, ARCHIVE, os.urandom(2 * NONCE_BYTES)))
    block = Block(b"1\n2\n3\n4\n", b"nobody\t1\n", array("I", [0, 1, NOBODY, 0]), packed)
    data, facts = written([block])
    reader, (found,), trailer = read(data, piece=piece)
    assert (found.rest, found.own, found.owners) == (block.rest, block.own, block.owners)
    assert (trailer.rows, reader.sha256, reader.bytes) == (4, facts.sha256, facts.bytes)
    opened = [open_sealed(key, ARCHIVE, each, "x") for (_, key), each in zip(people, found.people, strict=True)]
    assert opened == lots


def test_a_person_s_columns_open_with_her_key_in_this_archive_only():
    (sealed,) = Block(b"", b"", array("I"), next(iter(pack([(7, KEY)], [[b"a"]], ARCHIVE, bytes(12))))).people
    assert open_sealed(KEY, ARCHIVE, sealed, "x") == [b"a"]
    for key, archive in ((OTHER, ARCHIVE), (KEY, b"b" * 16)):
        with pytest.raises(ArchiveBroken, match="person key 7"):
            open_sealed(key, archive, sealed, "x")


def test_another_key_opens_nothing():
    data, _ = written([incompressible(3)])
    with pytest.raises(ArchiveBroken, match="frame 0"):
        read(data, OTHER)


def test_frames_in_another_order_do_not_open(large):
    data, (first, second, third, *_) = large
    with pytest.raises(ArchiveBroken, match="frame 0"):
        read(data[:first] + data[second:third] + data[first:second] + data[third:])


def test_a_frame_that_was_left_out_is_missed(large):
    data, (first, second, third, *_) = large
    with pytest.raises(ArchiveBroken, match="frame 1"):
        read(data[:second] + data[third:])
    with pytest.raises(ArchiveBroken, match="frame 0"):
        read(data[:first] + data[second:])


def test_an_object_that_ends_after_a_whole_frame_was_cut_off(large):
    data, starts = large
    with pytest.raises(ArchiveBroken, match="cut off"):
        read(data[: starts[-1]])


def test_no_frame_can_be_made_the_last_one(large):
    data, (_, second, third, *_) = large
    forged = bytearray(data[:third])
    forged[second] |= 0x80
    with pytest.raises(ArchiveBroken, match="frame 1"):
        read(bytes(forged))


def test_a_header_cannot_be_exchanged():
    one, _ = written([incompressible(3)], header={"table": "public.a"})
    other, _ = written([incompressible(3)], header={"table": "public.b"})
    with pytest.raises(ArchiveBroken, match="frame 0"):
        read(one[: 12 + len('{"table":"public.a"}')] + other[12 + len('{"table":"public.a"}') :])


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_anywhere_is_found(large, seed):
    data, _ = large
    position = (seed * 7919 * len(data) // 40_000) % len(data)
    broken = data[:position] + bytes([data[position] ^ (1 << seed % 8)]) + data[position + 1 :]
    with pytest.raises(ArchiveBroken):
        read(broken)


def test_no_nonce_is_used_twice_under_one_key(large):
    data, starts = large
    assert all(
        struct.unpack_from(">I", data, start)[0] & 0x7FFFFFFF <= FRAME_BYTES + 16 for start in starts
    )  # the nonce is the frame's number: 2**64 of them
    packed = list(pack([(1, KEY)] * 100, [[b"same"]] * 100, ARCHIVE, os.urandom(100 * NONCE_BYTES)))
    assert len({each[12:24] for each in packed}) == 100


def test_lines_break_at_copy_s_line_ends_only():
    assert lines_of("a\u2028b\x0b\x0c\x1c\x85\n\r\n".encode()) == ["a\u2028b\x0b\x0c\x1c\x85".encode(), b"\r"]


def test_the_oldest_moment_is_the_oldest_also_among_odd_ones():
    moments = [b"-infinity", b"4713-01-01 00:00:00+00 BC", b"0044-03-15 00:00:00+00 BC", b"0044-03-16 00:00:00+00 BC"]
    moments += [b"0001-01-01 00:00:00+00", b"2018-11-27 08:04:44.5+00", b"12000-01-01 00:00:00+00", b"infinity"]
    assert sorted(moments, key=_in_time) == moments
