"""core/frames.py: every cut, every flipped bit, every limit."""

from __future__ import annotations

import mmap
import pickle
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import count, pairwise
from struct import Struct
from zlib import crc32

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hybriddist import limits
from hybriddist.core import frames as frames_module
from hybriddist.core.frames import DIRECT_BYTES, HEADER_BYTES, FrameDecoder, encode, encode_start
from hybriddist.errors import (
    FrameCorruptError,
    FrameTooLargeError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportBroken,
)
from hybriddist.transport import Buffer, Frame

Placed = tuple[bytes, int]
"""A buffer's bytes and its place."""


def wire(head: bytes, buffers: Sequence[Placed] = ()) -> bytes:
    """All of a frame's bytes on the stream."""
    start = encode(head, [len(data) for data, _ in buffers], [place for _, place in buffers])
    return start + b"".join([data for data, place in buffers if not place])


def comparable(frames: Sequence[Frame]) -> list[tuple[bytes, list[bytes]]]:
    return [(bytes(frame.head), [bytes(buffer) for buffer in frame.buffers]) for frame in frames]


class Slots:
    """Stands for a skin's slots: places are indices."""

    def __init__(self) -> None:
        self.contents: dict[int, bytes] = {}

    def resolve(self, place: int, length: int) -> Buffer:
        data = self.contents.get(place)
        if data is None or len(data) != length:
            raise RemoteProtocolError(f"no slot of {length} bytes at place {place}")
        return memoryview(data)


def forged(
    head: bytes, *, magic: int = 0x00D1, count: int = 0, head_bytes: int | None = None, table: bytes = b""
) -> bytes:
    """A frame with correct checksums that `encode` would not make."""
    size = len(head) if head_bytes is None else head_bytes
    checked = Struct("<HHI").pack(magic, count, size)
    own_checksum = crc32(checked)
    return checked + Struct("<II").pack(own_checksum, crc32(table + head, own_checksum)) + table + head


def entry(length: int, place: int = 0) -> bytes:
    return Struct("<QQ").pack(length, place)


def refuse_to_allocate(length: int) -> bytearray:
    raise AssertionError(f"{length} bytes were asked for")


SAMPLES: list[tuple[bytes, list[Placed]]] = [
    (b"", []),
    (b"head", []),
    (b"", [(b"inline", 0)]),
    (b"one", [(b"placed", 7)]),
    (b"mixed", [(b"placed", 7), (b"inline", 0), (b"", 0), (b"", 9), (b"last", 0)]),
    (b"h" * 300, [(b"b" * 300, 0)]),
    (b"after", []),
]


def sample_decoder() -> FrameDecoder:
    slots = Slots()
    slots.contents = {7: b"placed", 9: b""}
    return FrameDecoder(resolve=slots.resolve)


SAMPLE_STREAM = b"".join([wire(head, buffers) for head, buffers in SAMPLES])
SAMPLE_FRAMES = [(head, [data for data, _ in buffers]) for head, buffers in SAMPLES]


# ---- the same frames, however they come ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_glued_frames(kind: Callable[[bytes], bytes]) -> None:
    decoder = sample_decoder()
    assert comparable(decoder.feed(kind(SAMPLE_STREAM))) == SAMPLE_FRAMES
    assert not decoder.mid_frame
    decoder.eof()


def test_one_byte_at_a_time() -> None:
    decoder = sample_decoder()
    received: list[Frame] = []
    for i in range(len(SAMPLE_STREAM)):
        received += decoder.feed(SAMPLE_STREAM[i : i + 1])
    assert comparable(received) == SAMPLE_FRAMES
    assert not decoder.mid_frame


def test_cut_at_every_offset() -> None:
    for cut in range(len(SAMPLE_STREAM) + 1):
        decoder = sample_decoder()
        received = decoder.feed(SAMPLE_STREAM[:cut]) + decoder.feed(memoryview(SAMPLE_STREAM)[cut:])
        assert comparable(received) == SAMPLE_FRAMES, cut
        assert not decoder.mid_frame


def test_eof_after_every_offset() -> None:
    ends = {0}
    for head, buffers in SAMPLES:
        ends.add(max(ends) + len(wire(head, buffers)))
    for cut in range(len(SAMPLE_STREAM) + 1):
        decoder = sample_decoder()
        decoder.feed(SAMPLE_STREAM[:cut])
        assert decoder.mid_frame is (cut not in ends)
        if cut in ends:
            decoder.eof()
        else:
            with pytest.raises(TransportBroken, match="middle of a frame"):
                decoder.eof()


def test_a_frame_is_delivered_with_its_last_byte() -> None:
    for head, buffers in SAMPLES:
        decoder = sample_decoder()
        data = wire(head, buffers)
        assert decoder.feed(data[:-1]) == []
        assert len(decoder.feed(data[-1:])) == 1


CONTENTS = st.binary(max_size=80) | st.integers(0, 3 * DIRECT_BYTES).map(lambda size: NUMBERS[:size])
NUMBERS = b"".join([number.to_bytes(4, "little") for number in range(DIRECT_BYTES)])


@given(
    sent=st.lists(st.tuples(CONTENTS, st.lists(st.tuples(CONTENTS, st.booleans()), max_size=4)), max_size=5),
    cuts=st.lists(st.integers(0, 2**20), max_size=12),
    through_destination=st.booleans(),
)
@settings(max_examples=150, deadline=None)
@example(sent=[(b"x" * 2 * DIRECT_BYTES, [(b"y" * DIRECT_BYTES, False)])], cuts=[1000, 30000], through_destination=True)
def test_round_trip(
    sent: list[tuple[bytes, list[tuple[bytes, bool]]]], cuts: list[int], through_destination: bool
) -> None:
    slots = Slots()
    places = count(1)
    stream = b""
    for head, buffers in sent:
        placed = [(data, next(places) if is_placed else 0) for data, is_placed in buffers]
        slots.contents |= {place: data for data, place in placed if place}
        stream += wire(head, placed)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    decoder = FrameDecoder(resolve=slots.resolve)
    received: list[Frame] = []
    for begin, end in pairwise(edges):
        piece = memoryview(stream)[begin:end]
        while through_destination and (place := decoder.destination()) is not None and piece:
            size = min(len(place), len(piece))
            place[:size] = piece[:size]
            received += decoder.advance(size)
            piece = piece[size:]
        received += decoder.feed(piece)
    assert comparable(received) == [(head, [data for data, _ in buffers]) for head, buffers in sent]
    assert not decoder.mid_frame


def test_what_is_handed_out_does_not_alias_what_was_fed() -> None:
    data = bytearray(wire(b"head", [(b"buffer", 0)]) + wire(b"next"))
    received = FrameDecoder().feed(memoryview(data))
    data[:] = bytes(len(data))
    assert comparable(received) == [(b"head", [b"buffer"]), (b"next", [])]


def test_heads_are_bytes() -> None:
    stream = wire(b"small") + wire(b"l" * 100_000) + wire(b"with", [(b"buffer", 0)])
    decoder = FrameDecoder()
    received = decoder.feed(memoryview(stream)[:50_000]) + decoder.feed(memoryview(stream)[50_000:])
    assert [type(frame.head) for frame in received] == [bytes, bytes, bytes]


def test_encode_is_encode_start_and_head() -> None:
    for head, buffers in SAMPLES:
        lengths, places = [len(data) for data, _ in buffers], [place for _, place in buffers]
        assert encode_start(head, lengths, places) + head == encode(head, lengths, places)


def test_without_places_all_is_inline() -> None:
    assert encode(b"head", [3, 4]) == encode(b"head", [3, 4], [0, 0])


def test_the_wire_format_stays_as_it_is() -> None:
    assert encode(b"head") == bytes.fromhex("d1000000 04000000 bc3ef720 969831be 68656164")
    assert encode(b"", [1], [2]) == bytes.fromhex(
        "d1000100 00000000 4e7ac964 c92d8fcd 0100000000000000 0200000000000000"
    )


# ---- destinations -------------------------------------------------------------------------------------------------


def test_no_destination_between_frames_and_for_small_sections() -> None:
    decoder = FrameDecoder()
    assert decoder.destination() is None
    data = wire(b"h" * (DIRECT_BYTES - 1), [(bytes(DIRECT_BYTES - 1), 0)])
    for begin in range(0, len(data), 1000):
        decoder.feed(data[begin : begin + 1000])
        assert decoder.destination() is None


def test_a_large_buffer_is_filled_where_it_stays() -> None:
    allocated: list[bytearray] = []

    def allocate(length: int) -> bytearray:
        allocated.append(bytearray(length))
        return allocated[-1]

    decoder = FrameDecoder(allocate=allocate)
    assert decoder.feed(encode(b"head", [DIRECT_BYTES])) == []
    place = decoder.destination()
    assert place is not None
    assert place.obj is allocated[0]
    assert len(place) == DIRECT_BYTES
    place[:] = b"q" * DIRECT_BYTES
    [frame] = decoder.advance(DIRECT_BYTES)
    assert frame.buffers[0] is allocated[0]
    assert allocated == [b"q" * DIRECT_BYTES]


def test_a_large_head_is_not_copied() -> None:
    size = 8 * limits.MIB
    head = bytes(range(256)) * (size // 256)
    start = encode_start(head)
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        decoder.feed(start)
        for begin in range(0, size, limits.MIB):
            place = decoder.destination()
            assert place is not None
            place[: limits.MIB] = memoryview(head)[begin : begin + limits.MIB]
            del place
            frames = decoder.advance(limits.MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert frames[0].head == head
    assert peak < size + limits.MIB


def test_memory_of_other_formats_can_be_allocated() -> None:
    decoder = FrameDecoder(allocate=lambda length: memoryview(bytearray(length)).cast("I") if length else b"")
    [frame] = decoder.feed(wire(b"head", [(b"abcdefgh", 0), (b"", 0)]))
    assert [bytes(buffer) for buffer in frame.buffers] == [b"abcdefgh", b""]


def test_advance_refuses_more_than_was_offered() -> None:
    decoder = FrameDecoder()
    assert decoder.advance(0) == []
    with pytest.raises(ValueError, match="destination of 0"):
        decoder.advance(1)
    decoder.feed(encode(b"head", [DIRECT_BYTES]))
    for size in (-1, DIRECT_BYTES + 1):
        with pytest.raises(ValueError, match=f"destination of {DIRECT_BYTES}"):
            decoder.advance(size)
    assert decoder.advance(0) == []
    assert decoder.feed(bytes(DIRECT_BYTES)) != []


def test_a_buffer_is_allocated_when_its_turn_comes() -> None:
    asked: list[int] = []

    def allocate(length: int) -> bytearray:
        asked.append(length)
        return bytearray(length)

    decoder = FrameDecoder(allocate=allocate)
    decoder.feed(encode(b"head", [5, 6]))
    assert asked == [5]
    decoder.feed(b"12345")
    assert asked == [5, 6]


# ---- corrupt bytes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("glued", [True, False])
@pytest.mark.parametrize("buffers", [[], [(b"placed", 7)], [(b"inline", 0), (b"placed", 7)]])
def test_every_flipped_bit_is_detected(buffers: list[Placed], glued: bool) -> None:
    head = b"some head"
    covered = len(encode(head, [len(data) for data, _ in buffers], [place for _, place in buffers]))
    # What follows lets a frame whose length grew by the flip be complete.
    stream = wire(head, buffers) + bytes(70_000)
    for bit in range(covered * 8):
        data = bytearray(stream)
        data[bit // 8] ^= 1 << bit % 8
        slots = Slots()
        slots.contents = {7: b"placed"}
        decoder = FrameDecoder(resolve=slots.resolve, allocate=refuse_to_allocate)
        with pytest.raises(RemoteProtocolError):  # noqa: PT012  # The error comes at one of the pieces.
            if glued:
                decoder.feed(bytes(data))
            for byte in data[: covered + 1]:
                decoder.feed(bytes([byte]))


@pytest.mark.parametrize("offset", [0, 1, 5, 15, 16, 19])
def test_corruption_has_its_own_class(offset: int) -> None:
    data = bytearray(encode(b"head"))
    data[offset] ^= 0x10
    with pytest.raises(FrameCorruptError, match="checksum"):
        FrameDecoder().feed(bytes(data))


def test_nothing_is_resolved_or_allocated_for_a_corrupt_head() -> None:
    def resolve(place: int, length: int) -> Buffer:
        raise AssertionError(f"place {place} was resolved")

    for places in ([5], [0]):
        data = bytearray(encode(b"head", [4], places))
        data[-1] ^= 1
        with pytest.raises(FrameCorruptError):
            FrameDecoder(resolve=resolve, allocate=refuse_to_allocate).feed(bytes(data))


@pytest.mark.parametrize("magic", [0x00D2, 0x0054, 0x01D1, 0x80D1])
def test_other_formats_and_unknown_flags_are_refused(magic: int) -> None:
    with pytest.raises(RemoteProtocolError, match="no frame of this format"):
        FrameDecoder().feed(forged(b"head", magic=magic))


@given(st.binary(min_size=HEADER_BYTES, max_size=200))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        FrameDecoder(allocate=refuse_to_allocate).feed(noise)


@given(st.binary(max_size=64), st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.lists(st.binary(max_size=64)))
@settings(max_examples=200, deadline=None)
def test_lies_with_correct_checksums_end_in_frames_or_a_remote_error(
    table: bytes, count: int, head_bytes: int, pieces: list[bytes]
) -> None:
    decoder = FrameDecoder(max_head_bytes=100, max_buffers=3, max_buffer_bytes=1000)
    try:
        for piece in [forged(b"", count=count, head_bytes=head_bytes, table=table), *pieces]:
            for frame in decoder.feed(piece):
                assert len(frame.head) <= 100
                assert sum(map(len, frame.buffers)) <= 1000
    except RemoteProtocolError:
        pass


def test_a_failed_decoder_stays_failed() -> None:
    decoder = FrameDecoder()
    with pytest.raises(FrameTooLargeError) as first:
        decoder.feed(forged(b"", count=1, table=entry(2**63)))
    actions: list[Callable[[], object]] = [
        lambda: decoder.feed(encode(b"a correct frame")),
        lambda: decoder.feed(b""),
        lambda: decoder.advance(0),
        decoder.destination,
        decoder.eof,
    ]
    for action in actions:
        with pytest.raises(FrameTooLargeError) as again:
            action()
        assert str(again.value) == str(first.value)
    assert not decoder.mid_frame


def test_an_error_of_a_callback_is_the_end_too() -> None:
    class Trouble(Exception):
        pass

    def resolve(place: int, length: int) -> Buffer:
        raise Trouble("no such slot")

    decoder = FrameDecoder(resolve=resolve)
    with pytest.raises(Trouble):
        decoder.feed(encode(b"head", [1], [1]))
    with pytest.raises(RemoteProtocolError, match="no such slot"):
        decoder.feed(encode(b"head"))


def test_a_failure_in_advance_is_the_end_too() -> None:
    decoder = FrameDecoder()
    head = bytes(DIRECT_BYTES)
    decoder.feed(encode_start(head))
    place = decoder.destination()
    assert place is not None
    place[:] = b"x" * DIRECT_BYTES
    with pytest.raises(FrameCorruptError):
        decoder.advance(DIRECT_BYTES)
    with pytest.raises(FrameCorruptError):
        decoder.advance(0)


# ---- places -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 3, 20])
def test_a_place_that_cannot_be_resolved(cut: int) -> None:
    data = encode(b"head", [6], [8])
    decoder = sample_decoder()
    decoder.feed(data[:cut])
    with pytest.raises(RemoteProtocolError, match="no slot of 6 bytes at place 8"):
        decoder.feed(data[cut:])


@pytest.mark.parametrize("cut", [0, 3, 20])
def test_a_place_on_a_path_without_places(cut: int) -> None:
    data = encode(b"head", [6], [8])
    decoder = FrameDecoder()
    decoder.feed(data[:cut])
    with pytest.raises(RemoteProtocolError, match="place 8"):
        decoder.feed(data[cut:])


def test_the_largest_place_travels() -> None:
    seen: list[tuple[int, int]] = []

    def resolve(place: int, length: int) -> Buffer:
        seen.append((place, length))
        return b"resolved"

    [frame] = FrameDecoder(resolve=resolve).feed(encode(b"head", [8, 8], [2**64 - 1, 1]))
    assert seen == [(2**64 - 1, 8), (1, 8)]
    assert list(frame.buffers) == [b"resolved", b"resolved"]


# ---- limits -------------------------------------------------------------------------------------------------------


def test_encode_names_size_and_limit() -> None:
    with pytest.raises(LocalProtocolError, match="5 bytes is over the limit of 4"):
        encode(b"12345", max_head_bytes=4)
    with pytest.raises(LocalProtocolError, match="3 buffers in one frame are over the limit of 2"):
        encode(b"", [1, 1, 1], max_buffers=2)
    with pytest.raises(LocalProtocolError, match=r"11 bytes.* over the limit of 10"):
        encode(b"", [11], max_buffer_bytes=10)
    with pytest.raises(LocalProtocolError, match=r"12 bytes in one frame, the largest of 6.* limit of 10"):
        encode(b"", [6, 6], max_buffer_bytes=10)
    with pytest.raises(LocalProtocolError, match="smallest of -1"):
        encode(b"", [5, -1])
    with pytest.raises(LocalProtocolError, match=str(limits.MAX_BUFFER_BYTES)):
        encode(b"", [limits.MAX_BUFFER_BYTES + 1])
    with pytest.raises(LocalProtocolError, match=str(limits.MAX_BUFFERS)):
        encode(b"", [1] * (limits.MAX_BUFFERS + 1))


def test_encode_refuses_places_that_do_not_fit() -> None:
    for places in ([1], [1, 2, 3]):
        with pytest.raises(ValueError, match="places for 2 buffers"):
            encode(b"", [1, 1], places)
    with pytest.raises(ValueError, match="1 places for 0 buffers"):
        encode(b"", [], [1])
    for place in (-1, 2**64):
        with pytest.raises(ValueError, match="a place is a number"):
            encode(b"", [1], [place])


@given(
    head_bytes=st.integers(0, 12),
    lengths=st.lists(st.integers(0, 12), max_size=5),
    max_head_bytes=st.integers(0, 12),
    max_buffers=st.integers(0, 5),
    max_buffer_bytes=st.integers(0, 30),
    cut=st.integers(0, 200),
)
@settings(max_examples=300, deadline=None)
def test_both_sides_draw_the_same_line(
    head_bytes: int, lengths: list[int], max_head_bytes: int, max_buffers: int, max_buffer_bytes: int, cut: int
) -> None:
    ceilings = {"max_head_bytes": max_head_bytes, "max_buffers": max_buffers, "max_buffer_bytes": max_buffer_bytes}
    head = bytes(head_bytes)
    stream = encode(head, lengths) + bytes(sum(lengths))
    try:
        assert encode(head, lengths, **ceilings) == encode(head, lengths)
        refused = False
    except LocalProtocolError:
        refused = True
    decoder = FrameDecoder(**ceilings)
    try:
        assert len(decoder.feed(stream[:cut]) + decoder.feed(stream[cut:])) == 1
        assert not refused
    except FrameTooLargeError:
        assert refused


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "data",
    [
        forged(b"", head_bytes=limits.MAX_HEAD_BYTES + 1),
        forged(b"", head_bytes=2**32 - 1),
        forged(b"", count=limits.MAX_BUFFERS + 1),
        forged(b"", count=2**16 - 1, table=entry(1) * (2**16 - 1)),
        forged(b"", count=1, table=entry(2**63)),
        forged(b"", count=1, table=entry(2**64 - 1)),
        forged(b"", count=1, head_bytes=limits.GIB, table=entry(limits.MAX_BUFFER_BYTES + 1)),
        forged(b"", count=2, table=entry(2**39) + entry(2**39 + 1)),
        forged(b"", count=2, table=entry(2**39) + entry(2**39 + 1, 5)),
    ],
)
def test_limits_are_checked_before_anything_is_allocated(data: bytes, whole: bool) -> None:
    decoder = FrameDecoder(allocate=refuse_to_allocate)
    tracemalloc.start()
    try:
        with pytest.raises(FrameTooLargeError, match="over the limit"):  # noqa: PT012  # At one of the pieces.
            if whole:
                decoder.feed(memoryview(data))
            for byte in memoryview(data)[: HEADER_BYTES * 3]:
                decoder.feed(bytes([byte]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limits.MIB


def test_the_largest_number_of_buffers() -> None:
    [frame] = FrameDecoder().feed(wire(b"head", [(b"x", 0)] * limits.MAX_BUFFERS))
    assert [bytes(buffer) for buffer in frame.buffers] == [b"x"] * limits.MAX_BUFFERS


def test_no_memory_for_a_declared_buffer_ends_the_connection_only() -> None:
    def allocate(length: int) -> bytearray:
        raise MemoryError

    decoder = FrameDecoder(allocate=allocate)
    with pytest.raises(FrameTooLargeError, match="no memory for 1099511627776 bytes"):
        decoder.feed(encode(b"head", [limits.MAX_BUFFER_BYTES]))
    with pytest.raises(FrameTooLargeError):
        decoder.eof()


def test_failures_survive_pickling() -> None:
    with pytest.raises(FrameTooLargeError) as caught:
        FrameDecoder().feed(forged(b"", head_bytes=2**32 - 1))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_no_pickle_and_no_io_in_the_module() -> None:
    assert frames_module.__file__ is not None
    with open(frames_module.__file__, encoding="utf-8") as file:
        source = file.read()
    for word in ("import pickle", "import socket", "import os", "monotonic"):
        assert word not in source


# ---- more than 32 bits --------------------------------------------------------------------------------------------


def test_a_buffer_of_more_than_4_gib_between_others() -> None:
    """Received in large pieces, of which only the ends are looked at: the memory in between is never touched."""
    size = 4 * limits.GIB + 12_345
    decoder = FrameDecoder(allocate=lambda length: memoryview(mmap.mmap(-1, length)))
    frames = decoder.feed(encode(b"head", [DIRECT_BYTES, size, DIRECT_BYTES], [0, 0, 0]))
    left = 2 * DIRECT_BYTES + size
    while left:
        place = decoder.destination()
        assert place is not None
        count = min(len(place), 3 * limits.GIB)
        place[0], place[count - 1] = left & 0xFF, 7
        del place
        frames += decoder.advance(count)
        left -= count
    (frame,) = frames
    assert [len(buffer) for buffer in frame.buffers] == [DIRECT_BYTES, size, DIRECT_BYTES]
    begins = [size + 2 * DIRECT_BYTES, size + DIRECT_BYTES, DIRECT_BYTES]
    assert [buffer[0] for buffer in frame.buffers] == [left & 0xFF for left in begins]
    assert [buffer[-1] for buffer in frame.buffers] == [7] * 3
    assert not decoder.mid_frame
