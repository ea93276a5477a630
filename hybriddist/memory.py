"""A transport inside one process: for tests of everything above it, and for a process that talks to itself.

What this module does not know: sockets of the network, shared memory, messages.

How it works. Each direction is a `_Pipe`: a queue of byte pieces that holds at most so many bytes. Frames pass through
it as real bytes (`core/frames.py`), so that framing is exercised and received buffers are the receiver's own::

    send -> outbox -> [ pipe: bounded ] -> decoder -> receive
                             |
                             +--- a byte into the receiver's socket pair, if the receiver is armed

One lock for the pair guards both pipes and both doorbells. An end that closes marks its pipe behind the last byte; an
end that is aborted, or is cut by a `FaultPlan`, leaves a broken pipe.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from time import sleep
from typing import Any, Final, NoReturn

from hybriddist import limits
from hybriddist.core.frames import FrameDecoder, encode_start
from hybriddist.deadline import Deadline
from hybriddist.errors import (
    HybridDistError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportBroken,
    TransportClosed,
)
from hybriddist.transport import Buffer, Frame, Transport

PIPE_BYTES: Final = 64 * limits.KIB
"""Default bound of one direction: small, so that a `send` without room is an everyday event."""

_PIECE_BYTES: Final = 16 * limits.KIB
_ROOM_POLL_SECONDS: Final = 0.001

_End = tuple[type[HybridDistError], str]


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """What goes wrong in one direction of a memory pair. Counts are bytes of the stream since its beginning.

    Attributes:
        cut_after_bytes: the connection breaks behind so many bytes.
        flip_bit: the number of one bit (bit 0 is the lowest of byte 0) that arrives inverted.
        stall_after_bytes: bytes behind these are accepted and never delivered, the end neither, as in a network that
            was cut silently.
        refuse_room: nothing is ever accepted, as by a peer that has stopped reading.
    """

    cut_after_bytes: int | None = None
    flip_bit: int | None = None
    stall_after_bytes: int | None = None
    refuse_room: bool = False


class _Pipe:
    """One direction. The pair's lock is held around every call."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.pieces: deque[bytes] = deque()
        self.used_bytes = 0
        # Set by the writer: nothing comes any more, in good order or not.
        self.is_closed = False
        self.is_broken = False
        # Set by the reader.
        self.is_deserted = False

    @property
    def is_over(self) -> bool:
        return self.is_closed or self.is_broken

    def room(self) -> int:
        return self.capacity_bytes - self.used_bytes

    def put(self, piece: bytes) -> None:
        self.pieces.append(piece)
        self.used_bytes += len(piece)

    def take(self) -> list[bytes]:
        pieces = list(self.pieces)
        self.pieces.clear()
        self.used_bytes = 0
        return pieces

    def end(self, in_good_order: bool) -> None:
        if in_good_order:
            self.is_closed = True
        else:
            self.is_broken = True


class _FaultyPipe(_Pipe):
    """A direction that follows a plan."""

    def __init__(self, capacity_bytes: int, plan: FaultPlan) -> None:
        super().__init__(capacity_bytes)
        self._plan = plan
        self._seen_bytes = 0

    def room(self) -> int:
        if self._plan.refuse_room:
            return 0
        return self.capacity_bytes if self._is_stalled(self._seen_bytes) else super().room()

    def put(self, piece: bytes) -> None:
        plan, begin = self._plan, self._seen_bytes
        self._seen_bytes = end = begin + len(piece)
        if plan.flip_bit is not None and begin * 8 <= plan.flip_bit < end * 8:
            changed = bytearray(piece)
            changed[plan.flip_bit // 8 - begin] ^= 1 << plan.flip_bit % 8
            piece = bytes(changed)
        if plan.cut_after_bytes is not None and end >= plan.cut_after_bytes:
            piece = piece[: max(0, plan.cut_after_bytes - begin)]
            self.is_broken = True
        elif self._is_stalled(end):
            piece = piece[: max(0, (plan.stall_after_bytes or 0) - begin)]
        if piece:
            super().put(piece)

    def end(self, in_good_order: bool) -> None:
        if not self._is_stalled(self._seen_bytes):
            super().end(in_good_order)

    def _is_stalled(self, position: int) -> bool:
        return self._plan.stall_after_bytes is not None and position >= self._plan.stall_after_bytes


class MemoryTransport(Transport):
    """One end of a pair made by `memory_pair`. See `Transport` for the promises."""

    scheme = "memory"
    rings_doorbell = True

    def __init__(self, outgoing: _Pipe, incoming: _Pipe, lock: Lock, allocate: Callable[[int], Any]) -> None:
        self._lock = lock
        self._outgoing = outgoing
        self._incoming = incoming
        self._peer = self  # The other end, as soon as memory_pair has made it.
        self._bell, self._clapper = socket.socketpair()
        self._bell.setblocking(False)
        self._clapper.setblocking(False)
        self._is_armed = False
        self._has_ended = False
        # The sending side.
        self._outbox: deque[memoryview] = deque()
        self._pending = 0
        self._send_end: _End | None = None
        # The receiving side.
        self._decoder = FrameDecoder(allocate=allocate)
        self._receive_end: _End | None = None

    # ---- the sending side -------------------------------------------------------------------------------------------

    def send(self, head: bytes, buffers: Sequence[Buffer] = ()) -> bool:
        if self._send_end is not None:
            self._raise_send_end()
        if not head:
            raise LocalProtocolError("a frame needs a head")
        start = encode_start(head, [len(buffer) for buffer in buffers])
        pieces = [memoryview(piece) for piece in (start, head, *buffers) if len(piece)]
        self._outbox.extend(pieces)
        self._pending += sum([len(piece) for piece in pieces])
        return self.flush()

    def flush(self) -> bool:
        outbox, pipe = self._outbox, self._outgoing
        with self._lock:
            if self._send_end is None and (pipe.is_deserted or pipe.is_broken):
                # As a socket would, this end learns by sending that nobody reads any more; whether the peer went in
                # good order stands at the end of what it sent.
                kind = TransportClosed if self._incoming.is_closed else TransportBroken
                self._send_end = (kind, "the peer has ended the connection")
            if self._send_end is not None:
                self._raise_send_end()
            while outbox and not pipe.is_broken:
                room = min(pipe.room(), _PIECE_BYTES)
                if room <= 0:
                    return False
                piece = outbox[0]
                count = min(room, len(piece))
                pipe.put(bytes(piece[:count]))
                self._pending -= count
                if count < len(piece):
                    outbox[0] = piece[count:]
                else:
                    outbox.popleft()
                self._peer._ring()
        return not outbox

    def pending_bytes(self) -> int:
        return self._pending

    def snapshot(self) -> None:
        self._outbox = deque([memoryview(bytes(piece)) for piece in self._outbox])

    def wants_write(self) -> bool:
        return False

    def _raise_send_end(self) -> NoReturn:
        self._outbox.clear()
        self._pending = 0
        assert self._send_end is not None
        kind, text = self._send_end
        raise kind(text)

    # ---- the receiving side -----------------------------------------------------------------------------------------

    def receive(self) -> list[Frame]:
        frames: list[Frame] = []
        if self._receive_end is None:
            pipe, decoder = self._incoming, self._decoder
            with self._lock:
                pieces = pipe.take()
                is_over, is_closed = pipe.is_over, pipe.is_closed
                if pieces:
                    self._peer._ring()  # There is room again.
            try:
                for piece in pieces:
                    _decode(decoder, piece, frames)
                if is_over:
                    decoder.eof()
                    raise TransportClosed("the peer closed") if is_closed else TransportBroken("the peer is gone")
            except (TransportClosed, TransportBroken, RemoteProtocolError) as error:
                self._end_both_sides((type(error), str(error)))
        if not frames and self._receive_end is not None:
            kind, text = self._receive_end
            raise kind(text)
        return frames

    def arm(self) -> bool:
        with self._lock:
            self._is_armed = not self._has_ended
            has_room = self._pending > 0 and (self._outgoing.room() > 0 or self._outgoing.is_deserted)
            return bool(self._incoming.pieces) or self._incoming.is_over or has_room or self._has_ended

    def disarm(self) -> None:
        self._is_armed = False

    def acknowledge(self) -> None:
        try:
            self._bell.recv(4096)
        except OSError:  # There is nothing, or this end is over; `receive` tells which.
            return

    def _ring(self) -> None:
        """Wake whoever waits on this end. The lock is held."""
        if self._is_armed:
            self._is_armed = False
            try:
                self._clapper.send(b"\0")
            except BlockingIOError:
                return  # So many bytes are unread that it is readable anyhow.

    # ---- both -------------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self._has_ended else self._bell.fileno()

    def close(self, timeout: float) -> None:
        if self._has_ended:
            return
        deadline = Deadline(timeout)
        try:
            while not self.flush() and not deadline.expired():
                with self._lock:
                    self._incoming.take()  # The peer may be closing too, and be waiting for room as we are.
                    self._peer._ring()
                sleep(_ROOM_POLL_SECONDS)
        except (TransportClosed, TransportBroken):
            pass  # The peer went first.
        self._finish(in_good_order=not self._outbox)

    def abort(self) -> None:
        self._finish(in_good_order=False)

    def _finish(self, in_good_order: bool) -> None:
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = True
            self._end_both_sides((TransportClosed, "this end of the connection was ended"))
            self._incoming.is_deserted = True
            self._incoming.take()
            self._outgoing.end(in_good_order)
            if self._outgoing.is_over:
                self._peer._ring()
            self._is_armed = False
            self._clapper.close()  # This wakes a thread that waits on the other socket.
            self._bell.close()
            self._decoder = FrameDecoder()  # A frame that will never be complete is let go.

    def _end_both_sides(self, end: _End) -> None:
        if self._receive_end is None:
            self._receive_end = end
        if self._send_end is None:
            self._send_end = end


def _decode(decoder: FrameDecoder, piece: bytes, frames: list[Frame]) -> None:
    """Add to ``frames``; by the way that sockets take, too, where the decoder offers it."""
    place = decoder.destination()
    if place is not None:
        count = min(len(place), len(piece))
        place[:count] = piece[:count]
        del place  # The decoder may want to turn this memory into bytes.
        frames += decoder.advance(count)
        piece = piece[count:]
    frames += decoder.feed(piece)


def memory_pair(
    *,
    capacity_bytes: int = PIPE_BYTES,
    faults: tuple[FaultPlan | None, FaultPlan | None] = (None, None),
    allocate: Callable[[int], Any] = bytearray,
) -> tuple[MemoryTransport, MemoryTransport]:
    """Two connected transports.

    Args:
        capacity_bytes: what each direction holds before `send` returns False.
        faults: what goes wrong with what the first, and what the second, end sends.
        allocate: makes the memory for a large received buffer.

    Example:
        >>> here, there = memory_pair()
        >>> here.send(b"hello")
        True
        >>> there.receive()
        [Frame(head=b'hello', buffers=())]
        >>> here.close(1.0); there.close(1.0)
    """
    forth, back = [_Pipe(capacity_bytes) if plan is None else _FaultyPipe(capacity_bytes, plan) for plan in faults]
    lock = Lock()
    first = MemoryTransport(forth, back, lock, allocate)
    second = MemoryTransport(back, forth, lock, allocate)
    first._peer, second._peer = second, first
    return first, second
