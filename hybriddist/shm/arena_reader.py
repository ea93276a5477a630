"""The receiver's side of an arena: its segments mapped, and the buffers in their slots lent (see `arena.py`).

What this module does not know: frames, and when a token comes.
"""

from __future__ import annotations

from functools import partial
from threading import RLock

from hybriddist import limits
from hybriddist.core.lease import Lessor
from hybriddist.errors import RemoteProtocolError, TransportClosed
from hybriddist.shm import segment
from hybriddist.shm.segment import Segment
from hybriddist.shm.slots import (
    ATTACHED,
    FILLING,
    FREE,
    LEASED,
    MAX_GENERATION,
    MAX_SLOTS,
    PAGE_BYTES,
    RETIREMENTS,
    SENT,
    STATES,
    Slab,
    entry_name,
    entry_word,
)


class ArenaReader:
    """The receiver's side. For one thread at a time; `end` may be called from any.

    Args:
        table: the sender's table of segments.
        lessor: makes the leases; default: an own one.

    Attributes:
        filling: the slot of a buffer that is not all there yet: the states of its segment, and its number; or None.
    """

    def __init__(self, table: memoryview, lessor: Lessor | None = None) -> None:
        self._table = table
        self._words = table.cast("Q")
        self._lessor = lessor or Lessor()
        self.filling: tuple[memoryview, int] | None = None
        self._slabs: dict[int, Slab] = {}
        self._retirements = 0
        self._ended = False
        self._lock = RLock()

    def resolve(self, place: int, length: int) -> memoryview:
        """The buffer of ``length`` bytes that a token names, lent until its last view dies.

        It may be in the middle of being filled: then ``filling`` is set, and nobody may look at it before `is_filled`.

        Raises:
            RemoteProtocolError: the token does not name a buffer that was sent to us.
            TransportBroken: the segment cannot be attached (any more).
        """
        index, number = place >> 24 & 0xFF, place & 0xFFFFFF
        with self._lock:
            if self._words[RETIREMENTS] != self._retirements:
                self.forget_retired()
            slab = self._slabs.get(index)
            if slab is None:
                slab = self._attach(index, place >> 32 & MAX_GENERATION)
        if place != slab.first_token + number or number >= slab.slots or not 0 < length <= slab.slot_bytes:
            raise RemoteProtocolError(f"no buffer of {length} bytes can lie at place {place:#x} of the arena")
        states = slab.states
        state = states[number]  # once: it may change from FILLING to SENT at any moment
        if state == FILLING and self.filling is None:
            self.filling = states, number
        elif state == SENT:
            states[number] = LEASED
        else:
            raise RemoteProtocolError(f"slot {number} of the arena's segment {index} holds no buffer for us")
        address = slab.address + slab.first + number * slab.slot_bytes
        return self._lessor.lease_at(address, length, slab.memory, partial(states.__setitem__, number, FREE))

    def is_filled(self) -> bool:
        """Whether the last buffer that was resolved is all there.

        Raises:
            RemoteProtocolError: it was given up.
        """
        if self.filling is not None:
            states, number = self.filling
            state = states[number]
            if state == FILLING:
                return False
            if state != SENT:
                raise RemoteProtocolError(f"slot {number} of the arena was given up while it was filled for us")
            states[number] = LEASED
            self.filling = None
        return True

    def forget_retired(self) -> None:
        """Unmap the segments that the sender has given back. Cheap if there are none."""
        if self._words[RETIREMENTS] == self._retirements:
            return
        with self._lock:
            self._retirements = self._words[RETIREMENTS]
            for index, slab in list(self._slabs.items()):
                if self._words[entry_word(index)] != slab.generation:
                    del self._slabs[index]

    def end(self) -> None:
        """Let all memory go, except what is leased, and remove the names that we did not get to attach. Idempotent."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._slabs.clear()
            for index in range(limits.MAX_SLOT_SEGMENTS):
                name = self._name(index)
                if segment.is_name(name):
                    segment.unlink(name)

    def _attach(self, index: int, generation: int) -> Slab:
        if self._ended:
            raise TransportClosed("the connection is closed")
        if index >= limits.MAX_SLOT_SEGMENTS or generation != self._words[entry_word(index)] or not generation:
            raise RemoteProtocolError(f"the arena has no segment {index} of generation {generation}")
        mapped = Segment.attach(self._name(index))
        mapped.unlink()
        size = len(mapped.memory)
        slab = Slab(mapped, index, generation) if size >= PAGE_BYTES else None
        if (
            slab is None
            or not 0 < slab.slots < MAX_SLOTS
            or not slab.slot_bytes
            or 8 * (STATES + slab.slots) > slab.first
            or (slab.slot_bytes | slab.first) % 64
            or slab.offset(slab.slots) > size
        ):
            raise RemoteProtocolError(f"segment {index} of the arena, {size} bytes, is not laid out as it must be")
        slab.address = self._lessor.address(slab.memory)
        slab.words[ATTACHED] = 1
        self._slabs[index] = slab
        return slab

    def _name(self, index: int) -> str:
        return bytes(self._table[entry_name(index)]).rstrip(b"\0").decode("ascii", "replace")
