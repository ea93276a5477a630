"""`SharedArray`: an array that all processes of a node see in the same memory; `share` makes one of an array.

::

    process 1                 process 2                  process 3 (another node)
      s ── ndarray ──┐          s ── ndarray ──┐           s ── ndarray ── the copy of that node
                     ▼                         ▼                            │  refresh: read again
                     the block of the node  ◄───────────────────────────────┘  publish: write back

The array is a handle to a block (``runtime/blocks.py``): what travels is the handle, and what one process of the node
writes the others see, without a message. An ordinary array over the block is made when it is first used, and does the
work: slices are views of it, and arithmetic gives ordinary arrays.

What this module does not know: how a block travels, and who keeps it. When processes write the same place at once, who
comes last is as with threads: nobody orders it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from hybriddist.array_files import map_file
from hybriddist.array_protocol import Array, LikeAnArray
from hybriddist.core.partition import split_range
from hybriddist.evaluation import remotecall_all
from hybriddist.ids import as_pid
from hybriddist.runtime.blocks import BlockHandle
from hybriddist.runtime.current import current
from hybriddist.runtime.inquiry import member
from hybriddist.runtime.process import Process
from hybriddist.shapes import checked_dtype, checked_shape
from hybriddist.shm.block import Block


class SharedArray(BlockHandle, LikeAnArray):
    """An array in the shared memory of this node. It starts as zeros, and works where an ``ndarray`` does.

    Passing it to a process of the node costs as much as passing a number, whatever its size, and what is written there
    is seen here. Passed to a process of another node it is a *copy*, one for all processes of that node, fetched when
    it is first used there; see `refresh` and `publish`.

    ``s[1:3]``, ``s.T``, ``np.asarray(s)`` are ordinary arrays that are views of the memory; ``s + 1`` and ``s.copy()``
    are ordinary arrays with memory of their own. Sent to another process, ordinary arrays travel by value, views too:
    send ``s``, and take the view there.

    The memory lives until the last process has let go of the array and of all views. Nobody frees it, and nothing is
    left behind, however processes end. If the process that made it is gone the array stays with all who have it.

    Args:
        shape: an integer, or a sequence of them; 0 and () are allowed.
        dtype: of the elements; not one that holds Python objects.
        init: called as ``init(s)`` on each of ``pids``, on all at once, before this returns.
        pids: who has a share of it (`localindices`): processes of this node. Default: the workers of this node, or this
            process if there are none. Others may use the array as well.
        node_local: False: it may not be sent to other nodes, where it would be a copy.
        file: the absolute path of a file that holds the data, in C order, instead of memory of the node's own.
        mode: how the file is opened: "r" read only, "r+" also written, "w+" made new or emptied, "a+" made if there is
            none. A file that is too short is extended, but for "r". Default: "r+" if there is such a file, else "w+".
        offset: where in the file the data begin, in bytes.

    Attributes:
        shape, dtype, ndim, size, nbytes: as those of an ``ndarray``. All of its other public attributes and methods are
            those of the view that ``np.asarray(s)`` gives.

    Raises:
        TypeError: the dtype holds Python objects or has no fixed size, or an argument has the wrong type.
        ValueError: a negative shape, a process of another node in ``pids``, a bad ``mode``, a file that is too short.
        NoSuchProcessError, ProcessExitedException: there is no such process in ``pids``.
        SharedMemoryFull: there is no room for it in shared memory; nothing was taken.
        FileNotFoundError, OSError: the file cannot be opened, or the disk is full.
        CompositeException: of what ``init`` raised, on each process.

    Example::

        s = hd.SharedArray((1000, 1000), float)

        def fill(s):                        # each worker fills its rows
            for i in s.localindices():
                s[i] = i

        hd.remotecall_all(fill, s, procs=s.pids)
        s.sum()                             # 499500000.0

    Source: Julia's SharedArrays, ``SharedArray``.
    """

    __slots__ = ("_array", "_pids", "_writable", "dtype", "shape")

    _array: Array | None
    _pids: tuple[int, ...]
    _writable: bool

    def __init__(
        self,
        shape: int | Sequence[int],
        dtype: Any = float,
        *,
        init: Callable[[SharedArray], Any] | None = None,
        pids: Iterable[int] | None = None,
        node_local: bool = True,
        file: Any = None,
        mode: str | None = None,
        offset: int = 0,
    ) -> None:
        process = current()
        kind = checked_dtype(dtype, "a SharedArray")
        sides = checked_shape(shape)
        who = _participants(process, pids)
        if init is not None and not callable(init):
            raise TypeError(f"init must be a function of the array, not {type(init).__name__}")
        length = math.prod(sides) * kind.itemsize
        if file is not None:
            block, writable = map_file(file, mode, offset, length)
        elif mode is not None or offset:
            raise ValueError("mode and offset are for arrays in a file: give file= as well")
        else:
            block, writable = Block.create(length), True
        self._adopt((sides, kind, who, writable))
        self._begin(process, block, not node_local)
        if init is not None:
            remotecall_all(init, self, procs=list(who))

    # ---- as a handle ------------------------------------------------------------------------------------------

    def _parts(self) -> tuple[Any, ...]:
        return self.shape, self.dtype, self._pids, self._writable

    def _adopt(self, parts: tuple[Any, ...]) -> None:
        self.shape, self.dtype, self._pids, self._writable = parts
        self._array = None

    def _end(self) -> None:
        super()._end()
        self._array = None

    def _view(self) -> Array:
        """The ordinary array over the memory."""
        array = self._array
        if array is None:
            memory = self._memory
            if len(memory):
                array = np.frombuffer(memory, self.dtype).reshape(self.shape)
            else:
                array = np.zeros(self.shape, self.dtype)
            if not self._writable:
                array.flags.writeable = False
            self._array = array
        return array

    # ---- who has which part -----------------------------------------------------------------------------------

    @property
    def pids(self) -> list[int]:
        """The processes that have a share of it, in the order of their shares. A new list."""
        return list(self._pids)

    def localindices(self) -> range:
        """This process's share, as positions along axis 0.

        The shares of `pids` are contiguous, in their order, and together all; they differ by one at most, the longer
        ones first, as `distributed` cuts. A process that is not among them, or comes too late for a short array, has an
        empty share.

        Source: Julia's SharedArrays, ``localindices``.
        """
        pid, count = self._process.pid, self.shape[0] if self.shape else 0
        if pid in self._pids:
            shares = split_range(count, len(self._pids))
            position = self._pids.index(pid)
            if position < len(shares):
                return shares[position]
        return range(count, count)

    # ---- other nodes, files -----------------------------------------------------------------------------------

    @property
    def is_copy(self) -> bool:
        """Whether what is used here is a copy, because the memory is on another node. Fetches it."""
        self._view()
        return self._is_copy

    def refresh(self) -> None:
        """Bring this node's copy up to date: read all of it again from the node where the memory is. Blocks.

        What was written here since the last `publish` is overwritten. On the node of the memory it does nothing.

        Raises:
            ProcessExitedException, TransportError: nobody who has the memory can be reached; the copy stays as it is.
        """
        self._view()
        self._refresh()

    def publish(self, rows: range | None = None) -> None:
        """Write this node's copy back to the node where the memory is. Blocks until it is there.

        Other nodes see it when they `refresh`. If two nodes publish the same rows, the later one wins. On the node of
        the memory it does nothing.

        Args:
            rows: only these, along axis 0: a range with step 1, such as ``s.localindices()``. Default: all.

        Raises:
            ValueError: ``rows`` is not within the array, or the array is read-only.
            ProcessExitedException, TransportError: the process that keeps the memory cannot be reached.
        """
        array = self._view()
        if not self._writable:
            raise ValueError("the array is read-only (mode 'r'): there is nothing to publish")
        if rows is None:
            self._publish(0, array.nbytes)
            return
        if not isinstance(rows, range) or rows.step != 1 or not 0 <= rows.start <= rows.stop <= len(self):
            raise ValueError(f"rows must be a range with step 1 within the {len(self)} rows, not {rows!r}")
        row_bytes = array.nbytes // len(self) if len(self) else 0
        self._publish(rows.start * row_bytes, rows.stop * row_bytes)

    def flush(self) -> None:
        """Write an array in a file to the disk, and wait for it. Other processes see what is written without it."""
        self._view()
        if self._block is not None:
            self._block.flush()

    # ---- copies and text ---------------------------------------------------------------------------------------

    def __deepcopy__(self, _: dict[int, Any]) -> SharedArray:
        """A shared array of its own, with the same content and the same ``pids``."""
        return share(self._view(), pids=self._pids, node_local=not self._local_only)

    def __repr__(self) -> str:
        if self._ended:
            return "<SharedArray, finalized>"
        return (
            f"SharedArray({np.array2string(self._view(), separator=', ', prefix='SharedArray(')}, dtype={self.dtype})"
        )

    def __str__(self) -> str:
        return repr(self) if self._ended else str(self._view())


def share(array: Any, *, pids: Iterable[int] | None = None, node_local: bool = True) -> SharedArray:
    """A `SharedArray` with the content of an array, which is copied once.

    Args:
        array: anything that numpy makes an array of; a `SharedArray` is copied as well.
        pids, node_local: as of `SharedArray`.

    Raises:
        TypeError: its dtype holds Python objects, or it is a masked array.
        ValueError, NoSuchProcessError, ProcessExitedException, SharedMemoryFull: as `SharedArray`.

    Example::

        s = hd.share(np.arange(6).reshape(2, 3))
        hd.remotecall_fetch(np.sum, 2, s)   # 15; no data travel

    Source: Julia's SharedArrays, ``convert(SharedArray, array)``.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("a masked array is two arrays, data and mask: share them one by one")
    plain = np.asarray(array)
    shared = SharedArray(plain.shape, plain.dtype, pids=pids, node_local=node_local)
    shared[...] = plain
    return shared


# ---- inside -----------------------------------------------------------------------------------------------------


def _participants(process: Process, pids: Iterable[int] | None) -> tuple[int, ...]:
    membership = process.membership
    here = membership.procs_on_node()
    if pids is None:
        workers = set(membership.workers())
        return tuple(pid for pid in here if pid in workers) or (process.pid,)
    who = tuple(as_pid(pid) for pid in pids)
    if not who or len(set(who)) < len(who):
        raise ValueError(f"pids must name at least one process, each once, not {list(who)}")
    for pid in who:
        member(process, pid)
    foreign = [pid for pid in who if pid not in here]
    if foreign:
        raise ValueError(
            f"processes {foreign} are on other nodes than process {process.pid}: those that share the memory are {here}"
        )
    return who


__all__ = ["SharedArray", "share"]
