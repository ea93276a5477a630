"""The arena: large buffers, copied once into recycled slots of shared memory, and lent to the receiver there.

Each direction of a connection has an arena. The sender owns it: `Arena` creates segments, chooses slots and copies
buffers in. The receiver's `ArenaReader` maps the segments and makes leases. What this module does not know: rings,
frames, when a token travels. It needs the ring for one thing only: that a token is published after what it refers to.

How segments, their table and tokens are laid out: `slots.py`.

A slot's life. Nobody sends a message to free it, and nothing can be lost::

    FREE --sender: copy in--> SENT --receiver: token resolved--> LEASED --receiver: last view dies--> FREE
     |                       ^   ^
     +--sender: lent--> RESERVED |   user code computes in the slot itself; `reserved.py` has the rest
     |                           |
     +--sender: begin--> FILLING-+   the token travels while the bytes are copied in

Each state is stored by one side only, in one 8-byte store; the last one by a finaliser (see `core/lease.py`). A token
that is replayed, made up or out of date finds another state or generation: `RemoteProtocolError`.

Names. The sender writes a name into the table *before* it creates the segment; the receiver unlinks it as soon as it
has attached. So whichever side survives knows every name that may still exist, and removes it. Only if both are killed
at once can one stay, and `segment.sweep` mends that.

Giving back. A segment without a slot in use goes when it has been idle for `IDLE_SECONDS`, or when its bytes are needed
for another size; this is looked at when a buffer is sent, and by `trim`. The receiver learns of it by ``retirements``.
"""

from __future__ import annotations

import struct
from collections import deque
from threading import RLock
from time import monotonic
from typing import Final

from hybriddist import limits
from hybriddist.core.lease import Lessor, block_bytes
from hybriddist.errors import SharedMemoryFull
from hybriddist.shm import segment
from hybriddist.shm.reserved import Reservations
from hybriddist.shm.ring import Fence, stores_are_ordered
from hybriddist.shm.segment import Budget, Segment
from hybriddist.shm.slots import (
    ATTACHED,
    FILLING,
    FREE,
    MAX_GENERATION,
    PAGE_BYTES,
    RESERVED,
    RETIREMENTS,
    SENT,
    STATES,
    Slab,
    entry_name,
    entry_word,
)
from hybriddist.transport import Buffer

TABLE_BYTES: Final = 128 * (1 + limits.MAX_SLOT_SEGMENTS)
IDLE_SECONDS: Final = 10.0
"""A segment not used for so long is given back: long for a loop that sends arrays, short for other users of memory."""

RETRY_SECONDS: Final = 0.5
"""After the file system was found full, buffers go inline for so long: asking costs 50 µs each time."""

LARGE_BYTES: Final = limits.MIB
"""From this size up a buffer has a segment of its own: rounding up to a power of two would waste too much."""

_SLAB_BYTES: Final = limits.MIB
_LARGEST_SLAB_BYTES: Final = 16 * limits.MIB
"""The first segment of a size class, and the largest: each further one is twice as large, so that they stay few."""

_COPY_BYTES: Final = limits.MIB
"""Copied at a time: between two pieces other threads get their turn (1 MiB: 0.1 ms)."""

_LOOK_AT_SLOTS: Final = 64
"""Slots in use that one allocation looks at in search of a free one."""

Slot = tuple[Slab, int]
"""A segment, and the number of a slot in it."""


class _SizeClass:
    """The slots of one size."""

    __slots__ = ("free", "slabs", "used")

    def __init__(self) -> None:
        self.free: list[Slot] = []
        self.used: deque[Slot] = deque()  # Those that were not free when last looked at; the oldest first.
        self.slabs = 0


class Arena:
    """The sender's side. For one thread at a time; `end` may be called from any.

    Args:
        table: the table of segments, `TABLE_BYTES` of shared memory, all zero.
        budget: shared by the arenas of this process; default: an own one.
        lessor: lends reserved slots to user code; default: an own one.

    Attributes:
        reserved: the slots in which user code computes.
    """

    def __init__(self, table: memoryview, budget: Budget | None = None, lessor: Lessor | None = None) -> None:
        self._table = table
        self._words = table.cast("Q")
        self._budget = budget or Budget()
        self.reserved = Reservations(lessor or Lessor())
        self._slabs: dict[int, Slab] = {}
        self._classes: dict[int, _SizeClass] = {}
        self._last: tuple[int, Slot | None] = 0, None
        """The slot that was taken last, and for how many bytes."""
        self._generation = 0
        self._no_room_until = 0.0
        self._next_look = 0.0
        self._ended = False
        self._lock = RLock()
        self._fence = Fence()
        self._ordered = stores_are_ordered()

    def put(self, buffer: Buffer) -> int | None:
        """Copy a buffer into a slot; unless it lies in one that is ours alone to give.

        Returns:
            The token for the receiver; None if there is no room: send it another way. A token that is not sent must be
            given to `cancel`.
        """
        length = len(buffer)
        with self._lock:
            if self.reserved.by_address and not self._ended:
                token = self.reserved.give(buffer)
                if token is not None:
                    return token
            slot = None if self._ended or not length else self._take(length)
        if slot is None:
            return None
        try:
            self.fill(slot, buffer)
        except BaseException:
            slot[0].states[slot[1]] = FREE
            raise
        return slot[0].first_token + slot[1]

    def begin(self, length: int) -> Slot | None:
        """Take a slot whose token may be sent at once, to be filled then (`fill`); None if there is none."""
        with self._lock:
            # What lies in a slot already may be given away instead of being copied (`put`).
            return None if self._ended or self.reserved.by_address else self._take(length, FILLING)

    def fill(self, slot: Slot, buffer: Buffer) -> None:
        """Copy a buffer into a slot. The receiver may use it from now on."""
        slab, number = slot
        length = len(buffer)
        offset = slab.first + number * slab.slot_bytes
        if length <= _COPY_BYTES:
            slab.memory[offset : offset + length] = buffer
        else:
            _copy_in_pieces(slab.memory, offset, memoryview(buffer))
        if not self._ordered:
            self._fence()
        slab.states[number] = SENT

    def reserve(self, length: int) -> memoryview | None:
        """Lend a slot of at least ``length`` bytes to user code: writable memory with arbitrary content.

        Returns:
            A view; the slot is free again when the last view of it is gone, unless it was sent meanwhile. None: there
            is no room.
        """
        with self._lock:
            taken = None if self._ended or not length else self._take(length, RESERVED)
        return None if taken is None else self.reserved.lend(*taken, length)

    def cancel(self, token: int) -> None:
        """Free the slot of a token that was not sent."""
        with self._lock:
            slab = self._slabs.get(token >> 24 & 0xFF)
            if slab is not None:
                slab.states[token & 0xFFFFFF] = FREE

    def trim(self) -> tuple[bool, bool]:
        """Give idle segments back: whether there were any, and whether others are left. Callable from any thread."""
        with self._lock:
            held = len(self._slabs)
            self._retire_idle(monotonic())
            return len(self._slabs) < held, bool(self._slabs)

    def awaits_receiver(self) -> bool:
        """Whether buffers lie in segments that the receiver has not attached yet, so that their names exist."""
        with self._lock:
            return any(not slab.words[ATTACHED] and SENT in slab.states for slab in self._slabs.values())

    def end(self, *, keep_names: bool = False) -> None:
        """Let all memory go. The receiver keeps what it has attached. Idempotent.

        Args:
            keep_names: the receiver is alive and will attach (and unlink) the segments in which buffers were sent.
        """
        with self._lock:
            self._ended = True
            for slab in list(self._slabs.values()):
                self._retire(slab, keep_name=keep_names and SENT in slab.states)

    # ---- finding a slot ---------------------------------------------------------------------------------------------

    def _take(self, length: int, state: int = SENT) -> Slot | None:
        now = monotonic()
        if now >= self._next_look:
            self._next_look = now + IDLE_SECONDS / 4
            self._retire_idle(now)
        last_length, taken = self._last
        # Question and answer: the slot of the last question is free again, and still in the processor's cache.
        if last_length != length or taken is None or taken[0].states[taken[1]] != FREE:
            taken = self._take_large(length) if length >= LARGE_BYTES else self._take_small(length)
            self._last = length, taken
        if taken is not None:
            slab, number = taken
            slab.states[number] = state
            slab.last_used = now
        return taken

    def _take_large(self, length: int) -> Slot | None:
        best = None
        for slab in self._slabs.values():
            if (
                slab.slots == 1
                and length <= slab.slot_bytes <= 2 * length
                and slab.states[0] == FREE
                and (best is None or slab.slot_bytes < best.slot_bytes)
            ):
                best = slab
        best = best or self._new_slab(block_bytes(length), 1)
        return None if best is None else (best, 0)

    def _take_small(self, length: int) -> Slot | None:
        slot_bytes = max(limits.OUT_OF_BAND_BYTES, 1 << (length - 1).bit_length())
        slots = self._classes.get(slot_bytes)
        if slots is None:
            slots = self._classes[slot_bytes] = _SizeClass()
        used = slots.used
        if used and used[-1][0].states[used[-1][1]] == FREE:
            return used[-1]
        if not slots.free:
            for _ in range(min(len(used), _LOOK_AT_SLOTS)):
                slab, number = slot = used.popleft()
                (slots.free if slab.states[number] == FREE else used).append(slot)
        if not slots.free:
            slab_bytes = min(_SLAB_BYTES << slots.slabs, _LARGEST_SLAB_BYTES)
            new = self._new_slab(slot_bytes, max(4, slab_bytes // slot_bytes))
            if new is None:
                return None
            slots.slabs += 1
            slots.free = [(new, number) for number in reversed(range(new.slots))]
        slot = slots.free.pop()
        used.append(slot)
        return slot

    # ---- segments ---------------------------------------------------------------------------------------------------

    def _new_slab(self, slot_bytes: int, slots: int) -> Slab | None:
        first = -(-8 * (STATES + slots) // PAGE_BYTES) * PAGE_BYTES
        size = first + slot_bytes * slots
        now = monotonic()
        if now < self._no_room_until:
            return None
        while True:
            index = next((index for index in range(limits.MAX_SLOT_SEGMENTS) if index not in self._slabs), None)
            refused = index is not None and not self._budget.take(size)
            if index is not None and not refused:
                created = self._create(index, size)
                if created is not None:
                    break
                self._budget.give(size)
            if not self._retire_oldest():
                if refused:
                    self._budget.refuse(size)
                self._no_room_until = now + RETRY_SECONDS
                return None
        created.memory[8:32] = struct.pack("=QQQ", slot_bytes, slots, first)
        self._generation = self._generation % MAX_GENERATION + 1
        slab = self._slabs[index] = Slab(created, index, self._generation)
        self._words[entry_word(index)] = slab.generation
        return slab

    def _create(self, index: int, size: int) -> Segment | None:
        name = segment.new_name()
        self._table[entry_name(index)] = name.encode().ljust(segment.MAX_NAME_BYTES, b"\0")
        try:
            return Segment.create(size, name)
        except SharedMemoryFull as error:
            self._budget.tell(error)
            return None

    def _retire_idle(self, now: float) -> None:
        while self._retire_oldest(before=now - IDLE_SECONDS):
            pass

    def _retire_oldest(self, before: float = float("inf")) -> bool:
        """Give back the segment without a slot in use that was used least lately; False if there is none."""
        idle = [slab for slab in self._slabs.values() if slab.last_used < before and not any(slab.states)]
        if idle:
            self._retire(min(idle, key=lambda slab: slab.last_used))
        return bool(idle)

    def _retire(self, slab: Slab, *, keep_name: bool = False) -> None:
        del self._slabs[slab.index]
        self._last = 0, None
        slots = self._classes.get(slab.slot_bytes)
        if slots is not None and slab.slots > 1:
            slots.free = [slot for slot in slots.free if slot[0] is not slab]
            slots.used = deque(slot for slot in slots.used if slot[0] is not slab)
            slots.slabs -= 1
        if not keep_name:
            # The receiver must not look for it any more; with the name kept, it will attach it when it gets there.
            self._words[entry_word(slab.index)] = 0
            self._words[RETIREMENTS] += 1
            if not slab.words[ATTACHED]:
                slab.segment.unlink()
        self._budget.give(len(slab.memory))


def _copy_in_pieces(memory: memoryview, offset: int, buffer: memoryview) -> None:
    length = len(buffer)
    for start in range(0, length, _COPY_BYTES):
        end = min(start + _COPY_BYTES, length)
        memory[offset + start : offset + end] = buffer[start:end]
