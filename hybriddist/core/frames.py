"""Frames as bytes: how heads and out-of-band buffers are delimited on a stream.

A frame carries one message: its head, and large buffers beside it that were kept out of the pickle. A ring and a TCP
stream both hand over bytes cut anywhere; this module turns frames into bytes and bytes into frames::

    byte   0      1       2               4            8               12              16
           +------+-------+---------------+------------+---------------+---------------+
           | 0xD1 | flags | buffer count  | head bytes | crc32 of the  | crc32 of the  |   header
           |      | 0     |               |            | bytes before  | rest + before |
           +------+-------+---------------+------------+---------------+---------------+
           | length (8)            place (8)           |  once for each buffer             table
           +-------------------------------------------+
           | head                                      |
           +-------------------------------------------+
           | buffers whose place is 0, in order        |
           +-------------------------------------------+

All numbers are unsigned and little-endian. A buffer's *place* is 0 when its bytes follow inline, else a token that only
the skin understands (shared memory: the slot in which the bytes lie).

What this module does not know: sockets, rings, arenas, what heads mean. It does no I/O.

How it works. Two checksums, because a corrupt length must be found *before* it is believed: the header's own is checked
as soon as its 16 bytes are here; that of table and head, which goes on from the header's, before a buffer is allocated
or a place is resolved. Where the whole head is here already the second one is enough, for it covers both. Buffers carry
none: crc32 runs at a third of the speed of a warm copy, TCP and TLS have theirs, and memory is memory.

Small frames that are here as a whole take a loop without any state. Everything else is a generator that reads like the
picture above: it yields the memory that wants bytes next, and is resumed when that memory is full. A skin may fill this
memory itself (`FrameDecoder.destination`, `FrameDecoder.advance`), so that a large array is copied once: from the
kernel, or from the ring, to where it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from io import BytesIO
from struct import Struct
from typing import Any, Final
from zlib import crc32

from hybriddist import limits
from hybriddist.errors import (
    FrameCorruptError,
    FrameTooLargeError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportBroken,
)
from hybriddist.transport import Buffer, Frame

HEADER_BYTES: Final = 16
ENTRY_BYTES: Final = 16

DIRECT_BYTES: Final = 16 * limits.KIB
"""From so many missing bytes up, `FrameDecoder.destination` names their place. Below, a read into a general buffer is
better: it takes the frames that follow along, and copying 16 KiB costs about as much as one system call."""

# First byte: no letter, no control character and no TLS record type, so that other protocols fail at once; its low
# half counts the formats. Second byte: flags, of which there are none yet.
_MAGIC: Final = 0x00D1
_HEADER: Final = Struct("<HHIII")
_CHECKED: Final = Struct("<HHI")
_CHECKED_BYTES: Final = _CHECKED.size
_CHECKSUMS: Final = Struct("<II")
_pack_checked: Final = _CHECKED.pack
_pack_checksums: Final = _CHECKSUMS.pack
_ENTRY: Final = Struct("<QQ")
_unpack_header: Final = _HEADER.unpack_from
_new_frame: Final = tuple.__new__
_NOTHING: Final = memoryview(b"")
_LARGEST_PLACE: Final = 2**64 - 1


def encode(
    head: bytes,
    lengths: Sequence[int] = (),
    places: Sequence[int] = (),
    *,
    max_head_bytes: int = limits.MAX_HEAD_BYTES,
    max_buffers: int = limits.MAX_BUFFERS,
    max_buffer_bytes: int = limits.MAX_BUFFER_BYTES,
) -> bytes:
    """Header, table and head of one frame. The caller sends the buffers whose place is 0 right after it, in order.

    Args:
        head: the head.
        lengths: the lengths of the buffers in bytes.
        places: for each buffer 0 (inline) or the skin's token; empty if all are inline.
        max_head_bytes: the largest head.
        max_buffers: the largest number of buffers.
        max_buffer_bytes: the largest buffer; all of a frame together may not take more either.

    Raises:
        LocalProtocolError: the frame is over a limit; the text names the size and the limit.
        ValueError: the places do not fit the lengths, or a place is no 64-bit token.
    """
    if not lengths and not places and len(head) <= max_head_bytes:
        checked = _pack_checked(_MAGIC, 0, len(head))
        own_checksum = crc32(checked)
        return checked + _pack_checksums(own_checksum, crc32(head, own_checksum)) + head
    start = encode_start(
        head, lengths, places, max_head_bytes=max_head_bytes, max_buffers=max_buffers, max_buffer_bytes=max_buffer_bytes
    )
    return start + head


def encode_start(
    head: bytes,
    lengths: Sequence[int] = (),
    places: Sequence[int] = (),
    *,
    max_head_bytes: int = limits.MAX_HEAD_BYTES,
    max_buffers: int = limits.MAX_BUFFERS,
    max_buffer_bytes: int = limits.MAX_BUFFER_BYTES,
) -> bytes:
    """Header and table alone, for a large head that is to be sent from where it lies. Else as `encode`."""
    if len(head) > max_head_bytes:
        raise LocalProtocolError(f"a frame's head of {len(head)} bytes is over the limit of {max_head_bytes}")
    if len(lengths) > max_buffers:
        raise LocalProtocolError(f"{len(lengths)} buffers in one frame are over the limit of {max_buffers}")
    if places and len(places) != len(lengths):
        raise ValueError(f"{len(places)} places for {len(lengths)} buffers")
    table = b""
    if len(lengths) == len(places) == 1 and 0 <= lengths[0] <= max_buffer_bytes and 0 <= places[0] <= _LARGEST_PLACE:
        table = _ENTRY.pack(lengths[0], places[0])  # 0.6 µs less
    elif lengths:
        if min(lengths) < 0 or sum(lengths) > max_buffer_bytes:
            raise LocalProtocolError(
                f"buffers of {sum(lengths)} bytes in one frame, the largest of {max(lengths)}, the smallest of "
                f"{min(lengths)}, are over the limit of {max_buffer_bytes}"
            )
        places = places or [0] * len(lengths)
        if min(places) < 0 or max(places) > _LARGEST_PLACE:
            raise ValueError(f"a place is a number from 0 to {_LARGEST_PLACE}, not {min(places)} or {max(places)}")
        table = b"".join(map(_ENTRY.pack, lengths, places))
    checked = _pack_checked(_MAGIC, len(lengths), len(head))
    own_checksum = crc32(checked)
    return checked + _pack_checksums(own_checksum, crc32(head, crc32(table, own_checksum))) + table


class FrameDecoder:
    """Makes frames of bytes that come in pieces. Not safe for several threads at once.

    Once the peer broke a rule, the decoder stays failed: where the next frame begins is not known any more. Frames that
    were completed by the very call that raises are lost with the connection.

    Args:
        allocate: makes writable memory of a number of bytes for an inline buffer; it becomes the frame's buffer.
        resolve: makes a buffer of (place, length); may raise `RemoteProtocolError`. None: all buffers must be inline.
        max_head_bytes: the largest head.
        max_buffers: the largest number of buffers of one frame.
        max_buffer_bytes: the largest buffer; all of a frame together may not take more either.
    """

    __slots__ = (
        "_allocate", "_failure", "_filled", "_max_buffer_bytes", "_max_buffers", "_max_head_bytes", "_resolve",
        "_sections", "_target",
    )  # fmt: skip

    def __init__(
        self,
        *,
        allocate: Callable[[int], Any] = bytearray,
        resolve: Callable[[int, int], Buffer] | None = None,
        max_head_bytes: int = limits.MAX_HEAD_BYTES,
        max_buffers: int = limits.MAX_BUFFERS,
        max_buffer_bytes: int = limits.MAX_BUFFER_BYTES,
    ) -> None:
        self._allocate = allocate
        self._resolve = resolve
        self._max_head_bytes = max_head_bytes
        self._max_buffers = max_buffers
        self._max_buffer_bytes = max_buffer_bytes
        # Of the frame that is begun: its generator, the memory that it wants filled, and how much of that is filled.
        self._sections: Generator[memoryview, None, Frame] | None = None
        self._target = _NOTHING
        self._filled = 0
        # The class and the text of what ended us, not the exception: its traceback would keep received bytes alive.
        self._failure: tuple[type[RemoteProtocolError], str] | None = None

    @property
    def mid_frame(self) -> bool:
        """Whether a frame is begun and not complete."""
        return self._sections is not None

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """Take all of ``data`` and return the frames that are complete now, in order.

        Args:
            data: bytes as they came, cut anywhere; a memoryview must be contiguous and of format "B". Nothing of it
                is referred to afterwards.

        Raises:
            FrameTooLargeError: a frame declares more than a limit, or more than there is memory for.
            FrameCorruptError: a checksum does not match.
            RemoteProtocolError: the bytes are no frame, a place cannot be resolved, or a call before this one failed.
        """
        if self._failure is not None:
            raise self._failure[0](self._failure[1])
        frames: list[Frame] = []
        position = 0
        end = len(data)
        if end >= HEADER_BYTES and self._sections is None:
            # By far the commonest: one small frame, and nothing else.
            magic, count, head_bytes, own_checksum, checksum = _unpack_header(data)
            if head_bytes + HEADER_BYTES == end and magic == _MAGIC and not count and end <= DIRECT_BYTES:
                head = bytes(data[HEADER_BYTES:])
                if crc32(head, own_checksum) == checksum and head_bytes <= self._max_head_bytes:
                    frames.append(_new_frame(Frame, (head, ())))
                    return frames
        try:
            while position < end:
                if self._sections is None:
                    position = self._take_whole_frames(data, position, frames)
                    if position < end and self._sections is None:
                        self._sections = self._receive_frame()
                        self._next_section(frames)
                    continue
                target, filled = self._target, self._filled
                count = min(end - position, len(target) - filled)
                target[filled : filled + count] = data[position : position + count]
                position += count
                self._filled = filled + count
                if self._filled == len(target):
                    self._next_section(frames)
        except BaseException as error:
            self._fail(error)
            raise
        return frames

    def destination(self) -> memoryview | None:
        """Where the next bytes of the stream belong, if many bytes in a row belong there.

        Fill a part of it from its beginning and tell how much by `advance`, instead of calling `feed`. Do not keep it:
        a head is immutable once it is handed out. None: there is no such place now; call `feed`.
        """
        if self._failure is not None:
            raise self._failure[0](self._failure[1])
        if len(self._target) - self._filled < DIRECT_BYTES:
            return None
        return self._target[self._filled :]

    def advance(self, count: int) -> list[Frame]:
        """Tell that the first ``count`` bytes of `destination` are filled. Returns and raises as `feed` does.

        Raises:
            ValueError: there is no destination, or it is smaller than ``count``.
        """
        if self._failure is not None:
            raise self._failure[0](self._failure[1])
        missing = len(self._target) - self._filled
        if not 0 <= count <= missing:
            raise ValueError(f"{count} bytes cannot have been written to a destination of {missing}")
        frames: list[Frame] = []
        self._filled += count
        if self._sections is not None and count == missing:
            try:
                self._next_section(frames)
            except BaseException as error:
                self._fail(error)
                raise
        return frames

    def eof(self) -> None:
        """The stream has ended.

        Raises:
            TransportBroken: it ended within a frame.
            RemoteProtocolError: a call before this one failed.
        """
        if self._failure is not None:
            raise self._failure[0](self._failure[1])
        if self._sections is not None:
            raise TransportBroken("the stream ended in the middle of a frame")

    # ---- frames that are here as a whole ----------------------------------------------------------------------------

    def _take_whole_frames(self, data: bytes | memoryview, position: int, frames: list[Frame]) -> int:
        """The hot loop. Stops, at the returned position, at a frame that is not here up to the end of its head or not
        in order (`_receive_frame` tells what is wrong with it), and after a head whose inline buffers follow.
        `bytes()` of exact bytes is the same object: it copies only out of a memoryview. A head is copied before it is
        checked, because the memory behind a view may be shared with the peer. `_new_frame` takes half the time of a
        named tuple's own constructor.
        """
        end = len(data)
        max_head_bytes = self._max_head_bytes
        while end - position >= HEADER_BYTES:
            magic, count, head_bytes, own_checksum, checksum = _unpack_header(data, position)
            head_begin = position + HEADER_BYTES + count * ENTRY_BYTES
            head_end = head_begin + head_bytes
            if head_end > end or magic != _MAGIC or head_bytes > max_head_bytes or count > self._max_buffers:
                break
            head = bytes(data[head_begin:head_end])
            if not count:
                if crc32(head, own_checksum) != checksum:
                    break
                frames.append(_new_frame(Frame, (head, ())))
                position = head_end
                continue
            table = bytes(data[position + HEADER_BYTES : head_begin])
            if crc32(head, crc32(table, own_checksum)) != checksum:
                break
            position = head_end
            resolve = self._resolve
            if count == 1 and resolve is not None:  # 0.8 µs less
                length, place = _ENTRY.unpack(table)
                if place and length <= self._max_buffer_bytes:
                    frames.append(_new_frame(Frame, (head, [resolve(place, length)])))
                    continue
            entries = self._checked_entries(table)
            if resolve is None or not all([place for _, place in entries]):
                self._sections = self._receive_buffers(entries, head)
                self._next_section(frames)
                break
            buffers = [resolve(place, length) for length, place in entries]
            frames.append(_new_frame(Frame, (head, buffers)))
        return position

    # ---- one frame, section by section ------------------------------------------------------------------------------

    def _next_section(self, frames: list[Frame]) -> None:
        try:
            self._target = next(self._sections)  # type: ignore[arg-type]  # Only called while there is a generator.
        except StopIteration as stop:
            self._sections = None
            self._target = _NOTHING
            frames.append(stop.value)
        self._filled = 0

    def _receive_frame(self) -> Generator[memoryview, None, Frame]:
        """Yield the memory that the next bytes fill, never empty; return the frame."""
        header = bytearray(HEADER_BYTES)
        yield memoryview(header)
        magic, count, head_bytes, own_checksum, checksum = _unpack_header(header)
        if crc32(header[:_CHECKED_BYTES]) != own_checksum:
            raise FrameCorruptError(f"no frame begins with the bytes {header.hex(' ')}: the checksum does not match")
        if magic != _MAGIC:
            raise RemoteProtocolError(f"no frame of this format begins with the bytes {header.hex(' ')}")
        if head_bytes > self._max_head_bytes:
            raise FrameTooLargeError(f"a head of {head_bytes} bytes is over the limit of {self._max_head_bytes}")
        if count > self._max_buffers:
            raise FrameTooLargeError(f"{count} buffers in one frame are over the limit of {self._max_buffers}")

        table = bytearray(count * ENTRY_BYTES)
        if count:
            yield memoryview(table)
        entries = self._checked_entries(table)

        head = b""
        if head_bytes:
            # Filled in place, then taken as bytes, without a copy between: BytesIO adopts the bytes object that it is
            # given while nobody else refers to it, and hands it out again.
            store = BytesIO(_memory(bytes, head_bytes))
            view = store.getbuffer()
            yield view
            view.release()
            head = store.getvalue()
        if crc32(head, crc32(table, own_checksum)) != checksum:
            raise FrameCorruptError("the checksum of a frame's table and head does not match")
        return (yield from self._receive_buffers(entries, head))

    def _receive_buffers(self, entries: list[tuple[int, int]], head: bytes) -> Generator[memoryview, None, Frame]:
        """The end of `_receive_frame`."""
        buffers: list[Buffer] = []
        for length, place in entries:
            if not place:
                # One at a time: the memory for a buffer is asked for when the bytes before it have come.
                buffer = _memory(self._allocate, length)
                if length:
                    yield memoryview(buffer).cast("B")
                buffers.append(buffer)
            elif self._resolve is None:
                raise RemoteProtocolError(f"a buffer of {length} bytes lies at place {place}, but this path has none")
            else:
                buffers.append(self._resolve(place, length))
        return Frame(head, buffers)

    def _checked_entries(self, table: bytes | bytearray) -> list[tuple[int, int]]:
        entries: list[tuple[int, int]] = list(_ENTRY.iter_unpack(table))
        declared = sum([length for length, _ in entries])
        if declared > self._max_buffer_bytes:
            raise FrameTooLargeError(
                f"buffers of {declared} bytes in one frame are over the limit of {self._max_buffer_bytes}"
            )
        return entries

    def _fail(self, error: BaseException) -> None:
        kind = type(error) if isinstance(error, RemoteProtocolError) else RemoteProtocolError
        self._failure = (kind, str(error) or type(error).__name__)
        self._sections = None
        self._target = _NOTHING


def _memory(allocate: Callable[[int], Any], length: int) -> Any:
    """Memory that the peer asked for. That there is none is the end of this connection, not of the process."""
    try:
        return allocate(length)
    except MemoryError as error:
        raise FrameTooLargeError(f"there is no memory for {length} bytes of a frame") from error
