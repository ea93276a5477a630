"""Frames through shared memory: two rings, two arenas, a doorbell.

::

      process A                     one segment                         process B
    send    --> Producer --> [ ring A to B | table of A's arena ] --> Consumer --> receive
    receive <-- Consumer <-- [ ring B to A | table of B's arena ] <-- Producer <-- send
            --> Arena    --> [ slots, segments of their own     ] --> ArenaReader
    fileno  <-------------------- doorbell (socket) -------------------> fileno

The promises are those of `Transport`. What this module does not know: how the two sides found each other
(`rendezvous.py`), and what frames mean.

How it works. A frame's bytes (`core/frames.py`) go through the ring, cut anywhere; large buffers go to the arena, and
the frame names their places. A frame with one buffer of medium size travels while the buffer is still being copied, so
that the other side wakes up, reads and decodes meanwhile; for it the frame is complete when the buffer is. When the
arena is full, buffers follow the frame through the ring. What does not fit into the ring waits in the outbox. The bell
is rung only for a side that said it waits: the receiver in `arm`, the sender whenever something stays in its outbox.

*The end.* A process that closes flushes, sets the ring's closed flag and closes the doorbell. A process that dies only
does the last, through the kernel. So whoever finds the doorbell closed reads the ring to its end, and then the flag
tells which it was. Memory is never unmapped under a thread that still reads: it goes with the last object that refers
to it.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from os import getpid
from typing import Any, Final, NoReturn

from hybriddist import limits
from hybriddist.core.frames import FrameDecoder, encode, encode_start
from hybriddist.core.lease import Lessor
from hybriddist.deadline import Deadline
from hybriddist.errors import LocalProtocolError, RemoteProtocolError, TransportBroken, TransportClosed
from hybriddist.records import Record
from hybriddist.shm.arena import Arena
from hybriddist.shm.arena_reader import ArenaReader
from hybriddist.shm.doorbell import Doorbell
from hybriddist.shm.ring import Consumer, Producer
from hybriddist.shm.segment import Budget
from hybriddist.transport import Buffer, Frame, Transport

_LARGE_HEAD_BYTES: Final = 64 * limits.KIB
"""From this size up a head is written from where it lies; below, one write with its header is cheaper."""

_EARLY_BYTES: Final = range(limits.OUT_OF_BAND_BYTES, 8 * limits.MIB)
"""A frame with one buffer of so many bytes is sent before the buffer is copied. A call with 64 KB takes 23 µs so,
instead of 25; with 256 KiB 28 instead of 31; with 1 MB 48 instead of 51. Longer copies hide nothing more."""

_CLOSING_LOOK_SECONDS: Final = 0.01
"""`close` looks again so often: another thread may take the bell's byte off before it."""

_ATTACH_SECONDS: Final = 0.25
"""So long `close` waits for the peer to attach the segments of the last frames. Then no name is left to anybody's care;
a peer that does not read has to take care of them itself, when it reads or ends."""


class Direction(Record):
    """The memory of one direction of a connection."""

    ring: memoryview
    table: memoryview


class ShmTransport(Transport):
    """One end of a connection through shared memory.

    Args:
        sock: the connected socket; nothing else travels on it any more. Taken over.
        outgoing: where this side writes.
        incoming: where this side reads.
        budget: what the arenas of this process may take together; default: an own one.
        allocate: memory for buffers that come through the ring.
    """

    scheme = "shm"
    rings_doorbell = True

    def __init__(
        self,
        sock: socket.socket,
        outgoing: Direction,
        incoming: Direction,
        *,
        budget: Budget | None = None,
        allocate: Callable[[int], Any] = bytearray,
    ) -> None:
        self._doorbell = Doorbell(sock)
        self._producer = Producer(outgoing.ring)
        lessor = Lessor()
        self._arena = Arena(outgoing.table, budget, lessor)
        self._consumer = Consumer(incoming.ring)
        self._reader = ArenaReader(incoming.table, lessor)
        self._decoder = FrameDecoder(allocate=allocate, resolve=self._reader.resolve)
        self._held: Frame | None = None  # Complete but for its buffer, which is still being copied. Nothing follows it.
        # What is not written yet, in order, each part with its position in the stream. How much of the first part is
        # written the ring's own cursor tells: a Ctrl-C at any moment leaves no byte lost or repeated.
        self._outbox: deque[tuple[int, memoryview]] = deque()
        self._ospid = getpid()
        self._over = False  # This side has ended.
        self._failure: str | None = None  # What the peer did wrong, once it did.

    # ---- the sending side -------------------------------------------------------------------------------------------

    def send(self, head: bytes, buffers: Sequence[Buffer] = ()) -> bool:
        """See `Transport.send`. Buffers that find room in the arena are copied at once and not borrowed."""
        if self._over or self._doorbell.peer_gone:
            self._raise_end()
        if not head:
            raise LocalProtocolError("a frame needs a head")
        if buffers or self._outbox or len(head) >= _LARGE_HEAD_BYTES:
            if len(buffers) == 1 and len(buffers[0]) in _EARLY_BYTES and self._send_early(head, buffers[0]):
                return True
            data = self._place(head, buffers)
            if data is None:
                return self.flush()
        else:
            data = encode(head)
        producer = self._producer
        if not producer.write(data, whole=True):
            self._queue([data])
            return self.flush()
        if producer.consumer_waits():
            self._doorbell.ring()
        return True

    def _send_early(self, head: bytes, buffer: Buffer) -> bool:
        """Send a frame while its buffer is copied to the arena; False: nothing was sent, it has to go otherwise."""
        length = len(buffer)
        slot = None if self._outbox or len(head) >= _LARGE_HEAD_BYTES else self._arena.begin(length)
        if slot is None:
            return False
        token = slot[0].token(slot[1])
        producer = self._producer
        sent = False
        try:
            sent = producer.write(encode_start(head, (length,), (token,)) + head, whole=True) > 0
        finally:
            if not sent:
                self._arena.cancel(token)
        if not sent:
            return False
        try:
            if producer.consumer_waits():
                self._doorbell.ring()
            self._arena.fill(slot, buffer)
        except BaseException:
            self._arena.cancel(token)  # The peer, who has the frame, sees that and ends the connection.
            raise
        if producer.consumer_waits():
            self._doorbell.ring()
        return True

    def _place(self, head: bytes, buffers: Sequence[Buffer]) -> bytes | None:
        """Copy large buffers to the arena.

        Returns:
            What is to be written then, if that is little; else None: it is queued.
        """
        lengths: list[int] = []
        places: list[int] = []
        put = self._arena.put
        try:
            for buffer in buffers:
                length = len(buffer)
                lengths.append(length)
                places.append((length >= limits.OUT_OF_BAND_BYTES and put(buffer)) or 0)
            start = encode_start(head, lengths, places)
        except BaseException:
            for token in places:
                if token:
                    self._arena.cancel(token)
            raise
        if len(head) >= _LARGE_HEAD_BYTES:
            parts: list[Buffer] = [start, head]
        elif 0 in places or self._outbox:
            parts = [start + head]
        else:
            return start + head
        self._queue([*parts, *(buffer for buffer, place in zip(buffers, places, strict=True) if not place)])
        return None

    def _queue(self, parts: Sequence[Buffer]) -> None:
        ahead = self.pending_bytes()
        queued = []
        for part in parts:
            queued.append((self._producer.position(ahead), memoryview(part)))
            ahead += len(part)
        self._outbox.extend(queued)

    def flush(self) -> bool:
        """See `Transport.flush`."""
        if self._over or self._doorbell.peer_gone:
            self._raise_end()
        outbox, producer = self._outbox, self._producer
        if not outbox:
            return True
        while outbox:
            position, part = outbox[0]
            written = producer.written_since(position)
            if written == len(part):
                outbox.popleft()
            elif not producer.write(part[written:]):
                # Wake the reader first, then ask to be woken: it makes the room.
                if producer.consumer_waits():
                    self._doorbell.ring()
                if not producer.wait_for_room():
                    return False
        producer.stop_waiting()
        if producer.consumer_waits():
            self._doorbell.ring()
        return True

    def pending_bytes(self) -> int:
        """See `Transport.pending_bytes`."""
        if not self._outbox:
            return 0
        position, part = self._outbox[-1]
        return self._producer.missing_until(position + len(part))

    def snapshot(self) -> None:
        """See `Transport.snapshot`."""
        outbox = self._outbox
        for index, (position, part) in enumerate(outbox):
            if type(part.obj) is not bytes:  # Bytes cannot change.
                outbox[index] = (position, memoryview(bytes(part)))

    def wants_write(self) -> bool:
        """False: the doorbell tells of room."""
        return False

    def reserve(self, length: int) -> memoryview | None:
        """See `Transport.reserve`. A slot of the arena."""
        if self._over or self._doorbell.peer_gone or self._ospid != getpid():
            return None
        return self._arena.reserve(length)

    def settle(self, buffers: list[Buffer]) -> None:
        """See `Transport.settle`."""
        if self._arena.reserved.by_address:
            self._arena.reserved.settle(buffers)

    def forking(self) -> None:
        """See `Transport.forking`."""
        self._arena.reserved.distrust()

    def trim(self) -> bool:
        """See `Transport.trim`."""
        if self._over or self._ospid != getpid():
            return False
        given, left = self._arena.trim()
        if given:
            self._doorbell.ring()  # the peer, who has mapped it too, looks what it can unmap before it waits again
        return left

    # ---- the receiving side -----------------------------------------------------------------------------------------

    def receive(self) -> list[Frame]:
        """See `Transport.receive`. Takes at most one ring full at a time."""
        if self._failure is not None:
            raise RemoteProtocolError(self._failure)
        if self._over:
            self._raise_end()
        consumer, decoder = self._consumer, self._decoder
        try:
            held = self._held
            if held is not None:
                if not self._reader.is_filled():
                    return self._look_for_end() if self._doorbell.peer_gone else []
                self._held = None
                return [held]
            destination = decoder.destination() if decoder.mid_frame else None
            if destination is None:
                data = consumer.read()
                if not data:
                    return self._look_for_end() if self._doorbell.peer_gone else []
                if consumer.producer_waits():
                    self._doorbell.ring()
                frames = decoder.feed(data)
                if self._reader.filling is not None:
                    self._held = frames.pop()
                return frames
            # The middle of something large: from the ring straight to where it stays.
            count = consumer.read_into(destination)
            if not count:
                return self._look_for_end() if self._doorbell.peer_gone else []
            if consumer.producer_waits():
                self._doorbell.ring()
            return decoder.advance(count)
        except RemoteProtocolError as error:
            self._failure = str(error)
            raise

    def _look_for_end(self) -> list[Frame]:
        """The peer is gone, and a moment ago the ring was empty."""
        # Between that look and its end the peer may have written its last frame, or filled its last buffer.
        if self._consumer.available() or (self._held is not None and self._reader.is_filled()):
            return []
        mid_frame = self._decoder.mid_frame or self._held is not None
        if not mid_frame and self._consumer.closed():
            raise TransportClosed("the peer has closed the connection")
        raise TransportBroken("the peer is gone" + (", in the middle of a frame" if mid_frame else " without closing"))

    def arm(self) -> bool:
        """See `Transport.arm`."""
        if self._over:
            return True
        self._reader.forget_retired()
        # `available` may raise on impossible cursors: `receive` is the place for that.
        if self._failure is not None or self._doorbell.peer_gone:
            return True
        try:
            came = self._consumer.wait_for_bytes()
            if self._consumer.producer_waits():
                self._doorbell.ring()
            if came or (self._held is not None and self._reader.is_filled()):
                return True
            return bool(self._outbox) and self._producer.room() > 0
        except (RemoteProtocolError, TransportBroken):
            return True  # Impossible cursors: looking again raises it where it belongs.

    def disarm(self) -> None:
        """See `Transport.disarm`."""
        self._consumer.stop_waiting()

    def acknowledge(self) -> None:
        """See `Transport.acknowledge`."""
        self._doorbell.drain()

    # ---- both -------------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """See `Transport.fileno`. Readable when the bell has rung or the peer is gone."""
        return self._doorbell.fileno()

    def close(self, timeout: float) -> None:
        """See `Transport.close`. If not everything could be written in time, the peer sees the connection broken."""
        if self._over:
            return
        if self._ospid != getpid():
            return self.abort()
        deadline = Deadline(timeout)
        try:
            while not self.flush() and self._wait_for_bell(deadline):
                pass
            if not self._outbox:
                self._producer.close()
                deadline = deadline.sooner(_ATTACH_SECONDS)
                while self._arena.awaits_receiver() and not self._doorbell.peer_gone and self._wait_for_bell(deadline):
                    pass
        except (TransportBroken, TransportClosed):
            # The peer was first; there is nobody to tell.
            self._doorbell.peer_gone = True
        self._end(keep_names=not self._doorbell.peer_gone and not self._outbox)

    def _wait_for_bell(self, deadline: Deadline) -> bool:
        """Wait a little for the peer to make room. False: the time is over."""
        remaining = deadline.remaining()
        descriptor = self.fileno()
        if descriptor < 0 or remaining == 0:
            return False
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(1000 * (_CLOSING_LOOK_SECONDS if remaining is None else min(remaining, _CLOSING_LOOK_SECONDS)))
        self._doorbell.drain()
        return True

    def abort(self) -> None:
        """See `Transport.abort`."""
        if not self._over:
            self._end(keep_names=False)

    def _end(self, *, keep_names: bool) -> None:
        self._over = True
        if self._ospid != getpid():
            # A forked child lets go of what it inherited. The connection is its parent's.
            self._doorbell.close(shutdown=False)
            return
        # A new outbox, instead of an empty one: another thread may be writing from it.
        self._outbox = deque()
        self._doorbell.close()
        self._arena.end(keep_names=keep_names)
        self._reader.end()

    def _raise_end(self) -> NoReturn:
        if self._over:
            raise TransportClosed("this side has closed the connection")
        if self._consumer.closed():
            raise TransportClosed("the peer has closed the connection")
        raise TransportBroken("the peer is gone")
