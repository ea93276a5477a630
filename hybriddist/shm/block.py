"""A block: memory of a node that outlives whoever made it, as long as somebody has it, and leaves nothing behind.

Segments are named so that a peer can attach them; the name is what may be left behind. A block has no name: it is gone
from the file system before anybody hears of it, and is passed on by descriptor::

    process A: create ── reserve ── unlink      process B: open("/proc/<A>/fd/<number>")      process C: the same,
        │                                           │                                          from A or from B
        └─ descriptor, mapping                      └─ descriptor, mapping
                        └────────────┬──────────────┘
                            the memory (no name; freed by the kernel with the last descriptor and mapping)

So it does not matter who dies, when and how: there is nothing to be tidied up. An `Address` says where a descriptor
is. It is not believed: device and inode of what is found there must be those of the block, and its length enough, so
that a number that was given to something else meanwhile is noticed, before it is opened.

The descriptor is closed with the `Block`, and the mapping goes with the last view of it, whichever comes last. A block
may also be a part of a file of the user's, which has a name and keeps it.

Where there is no ``/proc`` (macOS) a block keeps the name of its segment until the process that created it lets go.

What this module does not know: what is in a block, and who has to be kept from letting go too early.
"""

from __future__ import annotations

import _posixshmem
import errno
import mmap
import os
import stat
import sys
from typing import Any, Final

from hybriddist.errors import SharedMemoryFull, TransportBroken
from hybriddist.records import Record
from hybriddist.shm import segment
from hybriddist.shm.segment import Segment

_HARMLESS: Final = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""What keeps `open` from waiting, and from having effects, should the file be another than we think."""


_OURS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Failures to open that say nothing of the other process: to look for the memory elsewhere would not help."""

_MOST_WRITTEN: Final = 1 << 26
"""In one go: a signal waits for it, some 20 ms."""

_NO_DESCRIPTOR: Final[dict[str, Any]] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
"""A mapping keeps a descriptor of its own, for a size that it need not know; it can be told not to from Python 3.13."""


class Address(Record):
    """Where a process of the node finds a block: in whose descriptor, and how to know it again. It may be pickled."""

    ospid: int
    descriptor: int
    device: int
    inode: int
    offset: int
    """Where in the file the block begins."""
    length: int
    writable: bool
    name: str
    """"", or the name of the segment, where there are no descriptors of other processes to be opened."""


def end_block(block: Block) -> None:
    """The finaliser of all blocks. It must not be interrupted: Python ignores what finalisers raise."""
    descriptor, block._descriptor = block._descriptor, -1
    if descriptor >= 0:
        os.close(descriptor)
    if block._name and segment.is_own(block._name):
        segment.unlink(block._name)


class Block:
    """Memory that several processes of a node have mapped.

    Attributes:
        memory: its bytes, of format "B"; read-only if the block is. Views of it keep it mapped, whatever becomes of
            this object.
        length: how many bytes.
    """

    __slots__ = ("_descriptor", "_name", "_offset", "_writable", "length", "memory")

    def __init__(
        self, descriptor: int, memory: memoryview, *, offset: int = 0, writable: bool = True, name: str = ""
    ) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._writable = writable
        self._name = name
        """The name that this process has to remove; or ""."""
        self.memory = memory
        self.length = len(memory)

    @classmethod
    def create(cls, length: int) -> Block:
        """New memory of ``length`` bytes, all zero. It is reserved, so that it cannot run out later.

        Raises:
            ValueError: ``length`` is negative.
            SharedMemoryFull: there is no room; nothing was taken.
        """
        if length < 0:
            raise ValueError(f"there is no memory of {length} bytes")
        size = max(1, length)
        _check_room(size)
        shared = Segment.create(size)
        descriptor, name = -1, shared.name
        try:
            descriptor = _posixshmem.shm_open("/" + name, os.O_RDWR, mode=0o600)
            if _can_be_opened(descriptor):
                shared.unlink()
                name = ""
        except BaseException as error:
            shared.unlink()
            if descriptor >= 0:
                os.close(descriptor)
            if isinstance(error, OSError):
                raise SharedMemoryFull(f"no descriptor for shared memory of {length} bytes: {error}") from error
            raise
        return cls(descriptor, shared.memory[:length], name=name)

    @classmethod
    def of_file(cls, descriptor: int, offset: int, length: int, *, writable: bool) -> Block:
        """A part of a file, mapped. The block owns the descriptor from now on, also if this fails.

        Raises:
            OSError, ValueError: it cannot be mapped.
        """
        try:
            return cls(descriptor, _map(descriptor, offset, length, writable), offset=offset, writable=writable)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def open(cls, address: Address) -> Block:
        """Map a block that another process of this node has.

        Raises:
            TransportBroken: it is not there (any more), or cannot be reached from here.
            OSError: this process has no descriptors or no memory left.
        """
        if address.name:
            shared = Segment.attach(address.name, max(1, address.length))
            return cls(-1, shared.memory[: address.length], writable=address.writable)
        path = f"/proc/{address.ospid:d}/fd/{address.descriptor:d}"
        descriptor = -1
        try:
            _check(os.stat(path), address)
            descriptor = os.open(path, (os.O_RDWR if address.writable else os.O_RDONLY) | _HARMLESS)
            _check(os.fstat(descriptor), address)
            memory = _map(descriptor, address.offset, address.length, address.writable)
        except BaseException as error:
            if descriptor >= 0:
                os.close(descriptor)
            if isinstance(error, OSError | ValueError) and getattr(error, "errno", None) not in _OURS:
                raise TransportBroken(f"process {address.ospid} does not have the shared memory: {error}") from error
            raise
        return cls(descriptor, memory, offset=address.offset, writable=address.writable)

    def address(self) -> Address:
        """Where other processes of the node find it, for as long as this object lives.

        Raises:
            TransportBroken: it cannot be passed on from here (systems without ``/proc``).
        """
        if self._descriptor < 0:
            raise TransportBroken("on this system only the process that created shared memory can pass it on")
        status = os.fstat(self._descriptor)
        return Address(
            os.getpid(), self._descriptor, status.st_dev, status.st_ino, self._offset, self.length, self._writable,
            self._name,
        )  # fmt: skip

    def write(self, offset: int, data: memoryview) -> None:
        """Copy bytes to a position. By the kernel: 200 MB take 50 ms less than through a mapping whose pages this
        process has not touched yet, and other threads run meanwhile.

        Raises:
            OSError: the system refused. Part of the data may be there.
        """
        if self._descriptor < 0:
            self.memory[offset : offset + data.nbytes] = data
            return
        position = self._offset + offset
        while data.nbytes:
            written = os.pwrite(self._descriptor, data[:_MOST_WRITTEN], position)
            data, position = data[written:], position + written

    def own_view(self) -> memoryview:
        """The bytes as they are now, writable, and this process's own: a page is copied when it is first written to.

        Nobody else sees what is written; but a page that was not written to shows what others write. Views keep it.

        Raises:
            OSError: there is no memory for it.
        """
        if self._descriptor < 0 or not self.length:
            return memoryview(bytearray(self.memory))
        begin = self._offset - self._offset % mmap.ALLOCATIONGRANULARITY
        mapping = mmap.mmap(
            self._descriptor,
            self._offset - begin + self.length,
            access=mmap.ACCESS_COPY,
            offset=begin,
            **_NO_DESCRIPTOR,
        )
        return memoryview(mapping)[self._offset - begin :]

    def flush(self) -> None:
        """Write a file's part to the disk; waits for that. Other processes see changes without it."""
        if self._descriptor >= 0 and self._writable:
            os.fsync(self._descriptor)

    __del__ = end_block


def _map(descriptor: int, offset: int, length: int, writable: bool) -> memoryview:
    """A part of a file as memory."""
    if not length:
        return memoryview(bytearray())
    begin = offset - offset % mmap.ALLOCATIONGRANULARITY
    mapping = mmap.mmap(
        descriptor,
        offset - begin + length,
        access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ,
        offset=begin,
        **_NO_DESCRIPTOR,
    )
    return memoryview(mapping)[offset - begin :]


def _check(found: os.stat_result, address: Address) -> None:
    expected = address.device, address.inode
    if not stat.S_ISREG(found.st_mode) or (found.st_dev, found.st_ino) != expected:
        raise ValueError("its descriptor is something else by now")
    if not address.offset + address.length <= found.st_size:
        raise ValueError(f"the file has {found.st_size} bytes, and {address.offset + address.length} are needed")


def _can_be_opened(descriptor: int) -> bool:
    """Whether the descriptors of processes are files here."""
    return os.path.exists(f"/proc/self/fd/{descriptor}")


def _check_room(size: int) -> None:
    """Refuse what cannot be had before taking what there is: nobody else would get any meanwhile."""
    total, free = segment.capacity()
    available = _available_bytes()
    if size > free or size > available:
        mib = size / (1 << 20)
        raise SharedMemoryFull(
            f"no shared memory for {mib:.1f} MiB: the shared-memory file system has {total >> 20} MiB, "
            f"{free >> 20} MiB of them free, and the machine {available >> 20} MiB of memory to spare. Use a smaller "
            "array, or a file (file=)" + (f". {segment.advice(total, size)}" if size <= available else "")
        )


def _available_bytes() -> int:
    """What may be taken without killing anybody; without limit where the system does not say."""
    try:
        with open("/proc/meminfo", "rb") as file:
            fields = {name: int(value.split()[0]) for name, _, value in (line.partition(b":") for line in file)}
        return (fields[b"MemAvailable"] + fields.get(b"SwapFree", 0)) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return 1 << 62


__all__ = ["Address", "Block", "end_block"]
