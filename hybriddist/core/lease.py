"""Memory lent to whoever holds views of it, and told back when the last view dies.

A received array lies in memory that somebody wants back: a slot of the sender's arena, or a block that the next array
may use. Nobody calls a release function: arrays are sliced, cast, stored and forgotten. So the memory is lent through
an object whose death is the release::

    numpy array -> memoryview -> exporter (a ctypes array over the memory)  --dies-->  on_release()
      slice of it ----^             |
                                    +-- anchor: keeps the memory mapped, and `mmap.close` from pulling it away

Every view, however derived, keeps the exporter alive through the buffer protocol.

What this module does not know: what the memory is, whose it is, and what its owner does when it comes back.

Why ctypes: until Python 3.12 (PEP 688) only C types can export buffers. One exporter type is enough for every length:
it is declared far longer than any buffer, placed at the memory's address, and cut to length by the view. A type for
each length would be a type for each array shape (20 µs and 2 KiB each, never freed in time). A lease costs 1.3 µs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from mmap import mmap
from os import getpid
from threading import Lock
from typing import Any, Final

from hybriddist import limits

_PAGE_BYTES: Final = 4 * limits.KIB

ALIGNMENT_BYTES: Final = 64
"""A cache line, and the widest vector register: where the memory of a received array begins."""

POOLED_BYTES: Final = 64 * limits.KIB
"""Smaller blocks come from the allocator of the C library: it recycles them itself, already faulted."""

KEPT_BYTES: Final = 512 * limits.MIB
"""Idle memory that `RecycledMemory` keeps at most. A fresh page costs a fault and a clearing, about 0.25 µs a KiB,
three times the copy into it; so the arrays in flight at a time should find warm memory, and these are a few of some
hundred MiB, not gigabytes. A machine with little memory keeps an eighth of it."""

_HUGE_PAGES_BYTES: Final = 4 * limits.MIB
"""From this size up huge pages are asked for: one fault for 2 MiB instead of 512."""


class Lessor:
    """Makes leases. Holds the one exporter type, so that no module does. Safe for several threads at once.

    Example:
        >>> memory, ended = bytearray(100), []
        >>> view = Lessor().lease(memory, 10, 3, lambda: ended.append("over"))
        >>> part = view[1:]
        >>> del view
        >>> ended
        []
        >>> del part
        >>> ended
        ['over']
    """

    __slots__ = ("_address", "_anchor", "_exporter", "_ospid")

    def __init__(self) -> None:
        # ctypes is imported with the first lease: a process that gets no large arrays never pays for it.
        self._exporter: Any = None
        self._anchor: Any = None
        self._address: Any = None
        self._ospid = 0

    def lease(
        self, memory: mmap | memoryview | bytearray, offset: int, length: int, on_release: Callable[[], object]
    ) -> memoryview:
        """A writable view of a part of ``memory``.

        Args:
            memory: writable and contiguous, of single bytes; kept alive by the lease.
            offset: where the part begins, in bytes.
            length: how long it is, in bytes; may be 0.
            on_release: called once, when the last view is gone: by any thread, between any two instructions, perhaps
                at interpreter exit. It must not wait for a lock, raise, or need names of a module. In a forked child
                it is not called: the memory still belongs to the parent, who may be reading it.

        Returns:
            A one-dimensional view of format "B". It stays valid for as long as anything refers to it.

        Raises:
            ValueError: the part does not lie in the memory.
            TypeError: the memory is not writable.
        """
        if not 0 <= offset <= offset + length <= len(memory):
            raise ValueError(f"bytes {offset} to {offset + length} do not lie in a memory of {len(memory)}")
        if not length:
            on_release()
            return memoryview(bytearray())
        if self._exporter is None:
            self._prepare()
        anchor = self._anchor(memory, offset)
        return self.lease_at(self._address(anchor), length, anchor, on_release)

    def lease_at(self, address: int, length: int, anchor: Any, on_release: Callable[[], object]) -> memoryview:
        """Likewise, where the address is known already, from `address`. Not checked at all: 0.5 µs less.

        Args:
            address: of memory that is there, and writable, as long as ``anchor`` lives.
            length: 1 or more.
            anchor: kept alive by the lease.
            on_release: as in `lease`.
        """
        exporter = self._exporter(address)
        exporter.anchor = anchor
        exporter.ospid = self._ospid
        exporter.on_release = on_release
        return memoryview(exporter).cast("B")[:length]

    def address(self, memory: Any) -> int:
        """Where a contiguous buffer begins; 0 for one that is read-only or empty."""
        if self._exporter is None:
            self._prepare()
        try:
            return int(self._address(self._anchor(memory)))
        except (TypeError, ValueError):
            return 0

    def aligned(self, length: int) -> memoryview:
        """Writable zeroed memory of an own, as the C library gives it, but beginning at a multiple of a cache line.

        Nothing is told when it dies. `bytearray` alone begins anywhere.
        """
        if self._exporter is None:
            self._prepare()
        memory = bytearray(length + ALIGNMENT_BYTES - 1)
        start = -self._address(self._anchor(memory)) % ALIGNMENT_BYTES
        return memoryview(memory)[start : start + length]

    def _prepare(self) -> None:
        import ctypes

        exporter = type(
            "Exporter",
            (ctypes.Array,),
            {
                "_type_": ctypes.c_ubyte,
                "_length_": limits.MAX_BUFFER_BYTES,
                "__slots__": ("anchor", "on_release", "ospid"),
                "__del__": end_lease,
            },
        )
        self._ospid = getpid()  # asked once: a system call, 0.2 µs
        self._anchor = ctypes.c_char.from_buffer
        self._address = ctypes.addressof
        self._exporter = exporter.from_address  # type: ignore[attr-defined]  # Last: it tells that all is there.


def end_lease(exporter: Any, getpid: Callable[[], int] = getpid) -> None:
    """The finaliser of all leases. It must not be interrupted: Python ignores what finalisers raise."""
    # `getpid` is bound here because module names may be gone at interpreter exit.
    if exporter.ospid == getpid():
        exporter.on_release()


class RecycledMemory:
    """Private memory for received arrays, recycled while it is warm. Safe for several threads at once.

    A block comes back when the last view of it dies, and is then handed out again for buffers of about its size.

    Args:
        lessor: makes the leases; default: an own one.
        kept_bytes: how much idle memory to keep; default: `KEPT_BYTES`, at most an eighth of the machine's.
    """

    def __init__(self, lessor: Lessor | None = None, kept_bytes: int | None = None) -> None:
        self._lessor = lessor or Lessor()
        self._limit_bytes = min(KEPT_BYTES, physical_bytes() // 8) if kept_bytes is None else kept_bytes
        self._lock = Lock()
        # Blocks by size, the last used at the end of its list. The dict's order is that of the last use of a size.
        self._idle: dict[int, list[mmap]] = {}
        self._idle_bytes = 0
        # Blocks come back inside finalisers, which may run while this very thread holds the lock: they are put down
        # here, atomically, and sorted in by whoever gets the lock.
        self._returned: deque[mmap] = deque()

    def allocate(self, length: int) -> memoryview:
        """Writable memory of ``length`` bytes with arbitrary content.

        Returns:
            A view of format "B", valid for as long as anything refers to it. From `limits.OUT_OF_BAND_BYTES` up it
            begins at a multiple of `ALIGNMENT_BYTES`.

        Raises:
            MemoryError: the operating system has none left.
        """
        if length < limits.OUT_OF_BAND_BYTES:
            return memoryview(bytearray(length))
        if length < POOLED_BYTES:
            return self._lessor.aligned(length)
        size = block_bytes(length)
        with self._lock:
            self._sort_in()
            idle = self._idle.get(size)
            if idle:
                block = idle.pop()
                self._idle_bytes -= size
            else:
                block = None
        if block is None:
            block = _new_block(size)
        return self._lessor.lease(block, 0, length, partial(self._give_back, block))

    def idle_bytes(self) -> int:
        """Bytes kept for later."""
        with self._lock:
            self._sort_in()
            return self._idle_bytes

    def _give_back(self, block: mmap) -> None:
        self._returned.append(block)
        # Again and again, because one that comes while another thread holds the lock may find nobody who looks.
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._sort_in()
            finally:
                self._lock.release()

    def _sort_in(self) -> None:
        """With the lock: keep the returned blocks and let the least used sizes go."""
        while self._returned:
            block = self._returned.popleft()
            size = len(block)
            blocks = self._idle.pop(size, [])
            blocks.append(block)
            self._idle[size] = blocks
            self._idle_bytes += size
        while self._idle_bytes > self._limit_bytes:
            size = next(iter(self._idle))
            blocks = self._idle[size]
            if blocks:
                # Dropped, not closed: the finaliser that brought it may still refer to it.
                blocks.pop()
                self._idle_bytes -= size
            if not blocks:
                del self._idle[size]


def block_bytes(length: int) -> int:
    """The size of the block for ``length`` bytes: whole pages, in eighths of a power of two.

    So arrays of about the same size share blocks, and no more than an eighth is wasted.
    """
    step = max(_PAGE_BYTES, 1 << max(0, length.bit_length() - 4))
    return -(-length // step) * step


def _new_block(size: int) -> mmap:
    import mmap as mmap_module

    try:
        # Private, unlike the default: a forked child must get a copy, not a window into its parent's arrays.
        block = mmap(-1, size, flags=mmap_module.MAP_PRIVATE | mmap_module.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for a block of {size} bytes: {error}") from error
    if size >= _HUGE_PAGES_BYTES and hasattr(mmap_module, "MADV_HUGEPAGE"):
        try:
            block.madvise(mmap_module.MADV_HUGEPAGE)
        except OSError:
            return block  # A kernel without huge pages: small ones do.
    return block


def physical_bytes() -> int:
    """The machine's memory; where it does not tell, more than any machine has."""
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return limits.MAX_BUFFER_BYTES
