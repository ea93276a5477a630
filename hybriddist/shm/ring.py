"""A ring of bytes in shared memory: one producer, one consumer, no lock.

What this module does not know: frames, processes, how to wake anybody. It tells *whether* the other side asked to be
woken.

Layout of the memory (numbers are bytes; every word is alone on its cache line, so that the sides do not steal each
other's lines)::

      0   written            bytes the producer has published, ever     stored by the producer
     64   read               bytes the consumer has taken, ever         stored by the consumer
    128   consumer_waiting   1: ring the bell when bytes come           set by the consumer, cleared by both
    192   producer_waiting   1: ring the bell when there is room        set by the producer, cleared by both
    256   closed             1: the producer ended in good order        stored by the producer
    320   (unused)
    512   the bytes: capacity, a power of two

                  read                 written
                   v                      v
        [ . . . . | x x x x x x x x x x x | . . . . . ]      room = capacity - (written - read)

The cursors count up and never wrap in practice (2**64 bytes are 58 years at 10 GB/s; they would wrap correctly). So
written == read means empty, and a difference of capacity means full, without a byte kept free.

*Atomic.* A word is written by assignment through `memoryview.cast("Q")`: one aligned 8-byte store. `struct.pack_into`
clears its target first: readers saw a transient zero in 15-28 % of reads.

*Order.* The payload is stored first, the cursor second. x86 shows stores to other cores in their order, so nothing more
is needed there. Elsewhere a fence stands between the two.

*The fence.* Going to sleep needs more, on x86 too: the sleeper stores "waiting" and then looks at the cursor, the other
side stores the cursor and then looks at "waiting". A processor may let a load overtake an older store, so that each
misses the other's store, and the sleeper sleeps for ever. Python has no fence; but acquiring and releasing a lock,
uncontended, contains locked instructions, which are full fences on x86 (0.1 µs). On ARM one pair orders in one
direction only; two in a row (release, then acquire of the same lock) order in both.
"""

from __future__ import annotations

import os
from threading import Lock
from typing import Final

from hybriddist.errors import RemoteProtocolError, TransportBroken

HEADER_BYTES: Final = 512
_WRITTEN: Final = 0
_READ: Final = 8
_CONSUMER_WAITING: Final = 16
_PRODUCER_WAITING: Final = 24
_CLOSED: Final = 32
_CURSOR_MASK: Final = 2**64 - 1


def stores_are_ordered(machine: str | None = None) -> bool:
    """Whether other cores see this machine's stores in program order (x86), so that publishing needs no fence."""
    return (os.uname().machine if machine is None else machine).lower() in {"x86_64", "amd64", "i386", "i586", "i686"}


class Fence:
    """A full memory fence: what is stored before it is visible before anything after it is loaded or stored.

    For one thread at a time.
    """

    __slots__ = ("_acquire", "_release", "_twice")

    def __init__(self, *, twice: bool | None = None) -> None:
        lock = Lock()
        self._acquire = lock.acquire
        self._release = lock.release
        self._twice = not stores_are_ordered() if twice is None else twice

    def __call__(self) -> None:
        # Not `with`: if a signal handler raises between the two calls, the lock stays taken, and a blocking acquire
        # would hang next time. This way the release, a locked instruction in any case, mends it.
        self._acquire(False)
        self._release()
        if self._twice:
            self._acquire(False)
            self._release()


class _Side:
    """What both sides need: views of the words and of the bytes."""

    __slots__ = ("_acquire", "_bytes", "_capacity", "_fence", "_mask", "_ordered", "_release", "_words")

    def __init__(self, memory: memoryview) -> None:
        """Take a side of the ring in ``memory``: ``HEADER_BYTES`` and a power of two, aligned to 64 bytes, once zero.

        Raises:
            ValueError: the size is not of that kind.
        """
        capacity = len(memory) - HEADER_BYTES
        if capacity <= 0 or capacity & (capacity - 1):
            raise ValueError(f"a ring has {HEADER_BYTES} bytes and a power of two, not {len(memory)}")
        self._words = memory[:HEADER_BYTES].cast("Q")
        self._bytes = memory[HEADER_BYTES:]
        self._capacity = capacity
        self._mask = capacity - 1
        self._fence = Fence()
        self._ordered = stores_are_ordered()
        lock = Lock()
        self._acquire, self._release = lock.acquire, lock.release


class Producer(_Side):
    """The writing side. For one thread at a time."""

    __slots__ = ("_read", "_written")

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory)
        self._written = self._words[_WRITTEN]
        self._read = self._words[_READ]

    def position(self, ahead: int = 0) -> int:
        """Where the next byte, or one ``ahead`` of it, stands in all that was ever written."""
        return self._written + ahead & _CURSOR_MASK

    def written_since(self, position: int) -> int:
        """How many bytes were written since the next one stood at ``position``."""
        return self._written - position & _CURSOR_MASK

    def missing_until(self, position: int) -> int:
        """How many bytes are to be written until the next one stands at ``position``."""
        return position - self._written & _CURSOR_MASK

    def write(self, data: bytes | memoryview, *, whole: bool = False) -> int:
        """Publish as many bytes of ``data``, from its beginning, as there is room for.

        Args:
            data: the bytes.
            whole: write all of it or nothing.

        Returns:
            How many. After the last of several writes call `consumer_waits`.

        Raises:
            TransportBroken: the consumer's cursor is impossible.
        """
        count = len(data)
        written = self._written
        # The consumer's cursor is cached: its cache line is fetched from the other core only if the cached one does
        # not show enough room.
        if self._capacity - (written - self._read & _CURSOR_MASK) < count:
            room = self.room()
            if room < count:
                if whole or not room:
                    return 0
                data = memoryview(data)[:room]
                count = room
        start = written & self._mask
        end = start + count
        if end <= self._capacity:
            self._bytes[start:end] = data
        else:
            first = self._capacity - start
            data = memoryview(data)
            self._bytes[start:] = data[:first]
            self._bytes[: count - first] = data[first:]
        if not self._ordered:
            self._fence()
        # Nothing can come between the two stores, no signal handler either: both are true, or none.
        self._written = self._words[_WRITTEN] = written + count & _CURSOR_MASK
        return count

    def room(self) -> int:
        """How many bytes can be written now. Raises as `write` does."""
        self._read = read = self._words[_READ]
        used = self._written - read & _CURSOR_MASK
        if used > self._capacity:
            raise TransportBroken(f"impossible cursors in a ring: {self._written} written and {read} read")
        return self._capacity - used

    def consumer_waits(self) -> bool:
        """Whether the consumer asked to be woken since the last time; call it after writing, and wake it if so."""
        # A fence, spelled out: every send passes here. Where one pair is not enough a whole one follows.
        self._acquire(False)
        self._release()
        if not self._ordered:
            self._fence()
        if self._words[_CONSUMER_WAITING]:
            # Cleared before the bell rings, so that whoever asked anew meanwhile is woken by this very bell.
            self._words[_CONSUMER_WAITING] = 0
            return True
        return False

    def wait_for_room(self) -> bool:
        """Ask to be woken when there is room. True: there is some already. Raises as `write` does."""
        self._words[_PRODUCER_WAITING] = 1
        self._fence()
        return self.room() > 0

    def stop_waiting(self) -> None:
        """Do not wake us for room any more."""
        self._words[_PRODUCER_WAITING] = 0

    def close(self) -> None:
        """Tell that all is written and nothing more will come."""
        if not self._ordered:
            self._fence()
        self._words[_CLOSED] = 1


class Consumer(_Side):
    """The reading side. For one thread at a time."""

    __slots__ = ("_read",)

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory)
        self._read = self._words[_READ]

    def available(self) -> int:
        """How many bytes can be read now.

        Raises:
            RemoteProtocolError: the producer's cursor is impossible.
        """
        written = self._words[_WRITTEN]
        count = written - self._read & _CURSOR_MASK
        if count > self._capacity:
            raise RemoteProtocolError(f"impossible cursors in a ring: {written} written and {self._read} read")
        if count and not self._ordered:
            self._fence()
        return count

    def read(self) -> bytes:
        """Take what is there, at most one ring full, as a copy; ``b""`` if there is nothing.

        After it call `producer_waits`. Raises as `available` does.
        """
        read = self._read
        # The commonest answer first: nothing has come. This is what a spinning process runs.
        if self._words[_WRITTEN] == read:
            return b""
        count = self.available()
        start = read & self._mask
        end = start + count
        if end <= self._capacity:
            data = bytes(self._bytes[start:end])
        else:
            data = bytes(self._bytes[start:]) + self._bytes[: end - self._capacity]
        self._took(count)
        return data

    def read_into(self, memory: memoryview) -> int:
        """Take as many bytes as are there and fit into ``memory``, without a copy between. Returns how many.

        After it call `producer_waits`. Raises as `available` does.
        """
        count = min(self.available(), len(memory))
        start = self._read & self._mask
        first = min(count, self._capacity - start)
        memory[:first] = self._bytes[start : start + first]
        memory[first:count] = self._bytes[: count - first]
        self._took(count)
        return count

    def _took(self, count: int) -> None:
        if not self._ordered:
            self._fence()  # The bytes must be read before the producer may overwrite them.
        self._read = self._words[_READ] = self._read + count & _CURSOR_MASK

    def producer_waits(self) -> bool:
        """Whether the producer asked to be woken since the last time; call it after reading, and wake it if so.

        Without a fence an answer may be out of date by nanoseconds: ask again after `wait_for_bytes`, which has one,
        before blocking. So reading costs no fence, and a waiting producer still is never slept through.
        """
        if self._words[_PRODUCER_WAITING]:
            self._words[_PRODUCER_WAITING] = 0
            return True
        return False

    def wait_for_bytes(self) -> bool:
        """Ask to be woken when bytes come. True: some are here already. Raises as `available` does."""
        self._words[_CONSUMER_WAITING] = 1
        self._fence()
        return self.available() > 0

    def stop_waiting(self) -> None:
        """Do not wake us any more: we are looking."""
        self._words[_CONSUMER_WAITING] = 0

    def closed(self) -> bool:
        """Whether the producer ended in good order. What it wrote before can be read after this is True."""
        return bool(self._words[_CLOSED])
