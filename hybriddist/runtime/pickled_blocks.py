"""A value's pickle in a block: written once, and unpickled by any number of processes over the same memory.

::

    ┌────────────────────┬──────┬───┬──────────┬───┬──────────┐
    │ table: n, lengths  │ body │ ░ │ buffer 1 │ ░ │ buffer 2 │      each part begins at a multiple of 64 bytes
    └────────────────────┴──────┴───┴──────────┴───┴──────────┘
         caller: dumps, one copy into the block                  receiver: loads over the mapping, no copy

*Shared*: the arrays of the value are read-only views of the one memory. *Own*: they are writable, and belong to the
process: a page is copied when it is first written to, and nobody else sees that.

Where there is no room in shared memory the pickle stays in the memory of the process that made it. Each receiver then
reads it by a call, and has a copy of its own. The handle travels as ever.

What this module does not know: what the values are for (``broadcasts.py``, ``placing.py``).
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from hybriddist import limits
from hybriddist.core import payload
from hybriddist.errors import DeserializeError, HybridDistError, RemoteException, SharedMemoryFull
from hybriddist.runtime.block_handle import BlockHandle
from hybriddist.runtime.block_owners import read_block
from hybriddist.shm.block import Block

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process

_ALIGNED: Final = 64
"""What vector instructions like, and a cache line."""

_COUNT: Final = struct.Struct("<Q")


class PickledBlock(BlockHandle):
    """A handle to a block with a pickle in it."""

    __slots__ = ("_by_value", "_source")

    _by_value: bool
    """There was no room for it in shared memory: each process reads it for itself."""
    _source: int
    """The process to be asked first, if it has to be read from another node; 0: the owner."""

    @classmethod
    def _with(cls, process: Process, body: bytes, buffers: Sequence[memoryview], what: str) -> Self:
        """Write a pickle into a new block. Takes one copy's time.

        Args:
            what: for the warning: what is sent by value if there is no room.
        """
        parts = [memoryview(body), *buffers]
        table = struct.pack(f"<{len(parts) + 1}Q", len(parts), *[part.nbytes for part in parts])
        places, length = _places(len(table), [part.nbytes for part in parts])
        try:
            block, by_value = Block.create(length), False
        except SharedMemoryFull as error:
            _warn(what, length, error)
            block, by_value = OwnMemory.of_size(length), True
        block.write(0, memoryview(table))
        for part, place in zip(parts, places, strict=True):
            block.write(place.start, part)
        handle = cls._of(process, block)
        handle._adopt((by_value,))
        return handle

    def _parts(self) -> tuple[Any, ...]:
        return (self._by_value,)

    def _adopt(self, parts: tuple[Any, ...]) -> None:
        (self._by_value,) = parts
        self._source = 0

    def _load(self, *, own: bool) -> Any:
        """Unpickle the value, with arrays over the block. Blocks while it is fetched from another node.

        Args:
            own: writable arrays that are this process's, and not read-only ones over the memory of all.

        Raises:
            DeserializeError: it cannot be unpickled here.
            Others: as `_memory`.
        """
        memory = self._memory  # mapped now
        if own and self._block is not None:
            memory = self._block.own_view()
        body, *buffers = _cut(memory if own else memory.toreadonly())
        return payload.loads(body, buffers)

    # ---- where there is no room -------------------------------------------------------------------------------

    def _find(self) -> Block:
        if self._by_value:
            return OwnMemory.of(self._read())
        try:
            return super()._find()
        except SharedMemoryFull as error:
            full = error
        except RemoteException as error:  # the first process of this node had no room for it
            if not isinstance(error.__cause__, SharedMemoryFull):
                raise
            full = error.__cause__
        _warn(f"a {type(self).__name__}", self._length, full)
        return OwnMemory.of(self._read())

    def _read(self) -> memoryview:
        """From the process that was named for it, so that not all nodes ask the same one; else from who has it."""
        source = self._source
        if source and self._process.membership.why_gone(source) is None:
            try:
                found = self._process.fetch_call(read_block, source, (tuple(self._origin),), {})
            except HybridDistError:
                found = None
            if found is not None:
                return memoryview(found).cast("B")
        return super()._read()


class OwnMemory(Block):
    """In the place of a block, memory that only this process has."""

    __slots__ = ()

    @classmethod
    def of_size(cls, length: int) -> Self:
        return cls(-1, memoryview(bytearray(length)))

    @classmethod
    def of(cls, data: memoryview) -> Self:
        return cls(-1, data)

    def address(self) -> None:  # type: ignore[override]
        """It cannot be mapped by others."""
        return None


def _places(begin: int, lengths: Sequence[int]) -> tuple[list[slice], int]:
    """Where the parts behind a table of so many bytes are, and where the last one ends."""
    places = []
    for length in lengths:
        begin = -(-begin // _ALIGNED) * _ALIGNED
        places.append(slice(begin, begin + length))
        begin += length
    return places, begin


def _cut(memory: memoryview) -> Iterator[memoryview]:
    """The parts of a block. The table is not believed: it may have been written over."""
    (count,) = _COUNT.unpack_from(memory) if len(memory) >= _COUNT.size else (0,)
    size = _COUNT.size * (1 + count)
    if not 1 <= count <= limits.MAX_BUFFERS + 1 or size > len(memory):
        raise DeserializeError("the shared memory of a value does not begin with its table: something wrote over it")
    places, end = _places(size, struct.unpack_from(f"<{count}Q", memory, _COUNT.size))
    if end > len(memory):
        raise DeserializeError("the table of a value in shared memory tells of more than there is of it")
    return (memory[place] for place in places)


def _warn(what: str, length: int, error: Exception) -> None:
    warnings.warn(
        f"{what} ({length / limits.MIB:.1f} MiB) is sent by value, and each process has a copy: {error}",
        RuntimeWarning,
        stacklevel=2,
    )


__all__ = ["OwnMemory", "PickledBlock"]
