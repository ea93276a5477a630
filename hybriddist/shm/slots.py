"""How the arena's segments, their table and its tokens are laid out, for both sides of it.

A token (the *place* of a buffer in a frame's table)::

    bit 63   62 ... 32      31 ... 24         23 ... 0
       1     generation     segment's index   slot

The table of segments, in the connection's own segment, stored by the sender, read by the receiver::

       0   retirements      how often a segment has been given back
     128   entry of index 0:  generation (8 bytes) | name, padded with zeros (96 bytes) | unused
     256   entry of index 1 ...

A segment of the arena::

       0   attached         1: the receiver has mapped it and unlinked its name
       8   slot bytes
      16   slots
      24   where the slots begin (a multiple of the page)
      64   state of slot 0, 8 bytes each
     ...   the slots: a power of two of bytes each, many to a segment; or a single large one of whole pages

What this module does not know: who stores which word when (`arena.py`).
"""

from __future__ import annotations

from typing import Final

from hybriddist import limits
from hybriddist.shm import segment
from hybriddist.shm.segment import Segment

PAGE_BYTES: Final = 4 * limits.KIB
FREE: Final = 0
SENT: Final = 1
LEASED: Final = 2
RESERVED: Final = 3
FILLING: Final = 4
"""The states of a slot."""

# Words of the table and of a segment, in units of 8 bytes.
RETIREMENTS: Final = 0
ATTACHED: Final = 0
STATES: Final = 8
_ENTRY_WORDS: Final = 16
_HEADER: Final = slice(1, 4)
_NAME_OFFSET: Final = 8
MAX_SLOTS: Final = 1 << 24
MAX_GENERATION: Final = 2**31 - 1


class Slab:
    """A segment of slots, as either side sees it."""

    def __init__(self, mapped: Segment, index: int, generation: int) -> None:
        self.segment = mapped
        self.index = index
        self.generation = generation
        self.memory = mapped.memory
        self.words = self.memory[: len(self.memory) // 8 * 8].cast("Q")
        self.slot_bytes, self.slots, self.first = self.words[_HEADER]
        self.states = self.words[STATES : STATES + self.slots]
        self.last_used = 0.0
        self.address = 0
        """Of the memory in this process, once the receiver has asked for it."""
        self.first_token = 1 << 63 | generation << 32 | index << 24

    def offset(self, number: int) -> int:
        """Where a slot begins in the memory."""
        return self.first + number * self.slot_bytes

    def token(self, number: int) -> int:
        """What names a slot to the other side."""
        return self.first_token + number


def entry_word(index: int) -> int:
    """The first word of a segment's entry in the table."""
    return _ENTRY_WORDS * (1 + index)


def entry_name(index: int) -> slice:
    """The bytes of the name in there."""
    start = 8 * entry_word(index) + _NAME_OFFSET
    return slice(start, start + segment.MAX_NAME_BYTES)
