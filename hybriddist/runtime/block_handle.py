"""Handles to blocks: memory of a node that is passed on by reference, lives as long as somebody has it, and is copied
once to each other node that wants it.

`BlockHandle` is the base of what users hold (a shared array, a broadcast value). It travels as a reference does, and is
counted as one, so that it arrives alive even if it was sent and dropped at once::

    owner: who first sent it            another process of the node             a process of another node
      handle ── block                     handle ── block, the same memory        handle ── block, a copy of its node
      store: Kept ── block                   ▲                                       ▲
        the claims of all                    │ opens the owner's descriptor          │ asks the first process of its
        others keep it here                  │ (`shm/block.py`)                      │ node, which reads it once

* *A handle that was never sent* is known to nobody: the memory goes with it.
* *The first to send it owns it.* The owner's store keeps the block while anybody has a claim, so that the descriptor is
  there when a receiver comes to open it.
* *When the owner is gone*, whoever sends the handle next owns it, under a new reference. Who meets a dead owner with a
  handle just received asks those of the node who have the block too. The *origin*, the first reference, is what makes
  them one: a process has one handle for it, whatever way it came.
* *Sent again and again.* To map memory, and to tell the owner that it was dropped, costs more than the call around it.
  So a receiver pins the handle that came from the owner itself, until the owner drops its own, and says so
  (`forget_handle`). Until then the owner need send a bare reference only, and both sides count in the margin what was
  sent, and what has come. Both counts become claims and credits in that moment: the sums are those of any reference,
  and a copy that comes late still finds the block. Who has no handle for a bare reference asks for it (`describe`).

What this module does not know: what is in a block, and how claims are counted (``core/references.py``).
"""

from __future__ import annotations

from pickle import PickleBuffer
from threading import RLock
from typing import TYPE_CHECKING, Any, NoReturn, Self

from hybriddist.errors import (
    HybridDistError,
    InvalidStateException,
    ProcessExitedException,
    TopologyError,
)
from hybriddist.ids import RRID
from hybriddist.runtime.block_arrivals import Kept, arrive, kept_under, revive, revive_dead, revive_known
from hybriddist.runtime.block_owners import copy_for_node, is_here, open_from, read_block, write_block
from hybriddist.runtime.context import known as known_process
from hybriddist.shm.block import Block

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process


class BlockHandle:
    """A handle to a block. A subclass says what is in it.

    Handles must be able to die at any time: what ends with them is done by weak references.
    """

    __slots__ = (
        "__weakref__", "_bare", "_block", "_copy", "_copy_of", "_ended", "_is_new", "_known", "_length", "_local_only",
        "_lock", "_origin", "_process", "_rrid", "where",
    )  # fmt: skip

    def _set_up(
        self, process: Process, where: int, rrid: RRID, origin: RRID, length: int, local_only: bool, block: Block | None
    ) -> None:
        self._process = process
        self.where = where
        """The process that keeps the block for those who are on the way to it."""
        self._rrid = rrid
        self._origin = origin
        self._length = length
        self._local_only = local_only
        self._block = block
        self._known: dict[int, int] | None = None
        """At the owner, once it has sent the handle: the processes that have been told all of it, and how many bare
        references were sent to each since."""
        self._bare: tuple[Any, ...] = ()
        """What is sent to those."""
        self._copy: BlockHandle | None = None
        """On another node than the owner's: the handle of this node's copy."""
        self._copy_of: RRID | None = None
        self._ended = False
        self._is_new = False
        """Whether it was made here, and never sent."""
        self._lock = RLock()

    @classmethod
    def _of(cls, process: Process, block: Block, *, local_only: bool = False) -> Self:
        """A handle to a block of this process. The handle owns it."""
        handle = cls.__new__(cls)
        handle._begin(process, block, local_only)
        return handle

    def _begin(self, process: Process, block: Block, local_only: bool) -> None:
        """Make it a handle to a block of this process, which nobody else knows of."""
        rrid = process.new_rrid()
        self._set_up(process, process.pid, rrid, rrid, block.length, local_only, block)
        self._is_new = True
        process.blocks.origins[rrid] = self

    # ---- for subclasses ---------------------------------------------------------------------------------------

    def _parts(self) -> tuple[Any, ...]:
        """What of the subclass has to travel; small. Asked for once."""
        return ()

    def _adopt(self, parts: tuple[Any, ...]) -> None:
        """The handle has arrived; ``parts`` are those of `_parts`. Must not raise or block."""

    def _is_pinned_on(self, pid: int) -> bool:
        """Whether a process that was sent the handle keeps it until the owner drops its own: it may come again."""
        return True

    @property
    def _memory(self) -> memoryview:
        """The bytes; mapped, or fetched from another node, when first asked for. Views of it outlive the handle.

        Raises:
            InvalidStateException: the handle was given up.
            ProcessExitedException, TransportError: nobody who has the block can be reached.
            SharedMemoryFull: there is no room for the copy on this node.
        """
        block = self._block
        return (self._map() if block is None else block).memory

    @property
    def _is_copy(self) -> bool:
        """Whether this process has a copy of its node's, because the memory is that of another node."""
        return self._copy is not None

    # ---- mapping ----------------------------------------------------------------------------------------------

    def _map(self) -> Block:
        with self._lock:
            if self._block is None:
                if self._ended:
                    self._raise_ended()
                self._block = self._find()
            return self._block

    def _find(self) -> Block:
        """The block, from whoever has it, or a copy of it on this node."""
        process = self._process
        if self.where == process.pid:
            kept = kept_under(process, self._rrid)
            if kept is not None:
                return kept.block
        if is_here(process, self.where):
            block = open_from(process, self.where, self._origin)
            if block is not None:
                return block
        leader = process.membership.procs_on_node()[0]
        if process.membership.why_gone(self.where) is not None or self.where == process.pid:
            for pid in process.membership.procs_on_node():
                block = open_from(process, pid, self._origin)
                if block is not None:
                    return block
        if leader == process.pid:
            return self._make_copy()
        copy: BlockHandle = process.fetch_call(copy_for_node, leader, (self,), {})
        self._copy = copy
        return copy._block or copy._map()

    def _make_copy(self) -> Block:
        """Runs on the first process of a node: read the block from where it is, for all of this node."""
        process = self._process
        self._check_allowed(process.pid)
        kept = process.blocks.copies.get(self._origin)
        if kept is not None:
            self._copy = arrive(process, kept.rrid, process.pid, process.pid, kept.description())
            return kept.block
        data = self._read()
        block = Block.create(self._length)
        block.memory[:] = data
        self._copy = copy = BlockHandle._of(process, block)
        copy._copy_of = self._origin
        return block

    def _read(self) -> memoryview:
        """The bytes as another node has them, from the first process that answers."""
        process = self._process
        error: Exception | None = None
        for pid in dict.fromkeys((self.where, *process.membership.procs())):
            if pid == process.pid:
                continue
            try:
                found = process.fetch_call(read_block, pid, (tuple(self._origin),), {})
            except HybridDistError as failure:
                error = error or failure
                continue
            if found is not None:
                return memoryview(found).cast("B")
        raise error or ProcessExitedException(self.where, "the processes that had the shared memory are gone")

    def _refresh(self) -> None:
        """Bring this node's copy up to date. Nothing to do where the memory itself is."""
        memory = self._memory
        if self._copy is not None:
            memory[:] = self._read()

    def _publish(self, start: int, stop: int) -> None:
        """Write these bytes of this node's copy to the memory that it is a copy of."""
        memory = self._memory
        if self._copy is not None:
            process = self._process
            process.fetch_call(
                write_block, self.where, (tuple(self._origin), start, PickleBuffer(memory[start:stop])), {}
            )

    # ---- travelling -------------------------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process of the cluster goes the reference; elsewhere a dead one.

        Raises:
            InvalidStateException: the handle was given up, and is to go to another process.
            TopologyError: it must not leave its node.
        """
        if self._ended:
            return self._reduce_ended()
        process = self._process
        known = self._known
        if known:  # first what has to be quick
            receiver = process.references.receiver()
            if receiver in known:
                process.references.met_bare(self._rrid)
                return self._bare
        if process.leaving.is_set() or process.is_copy:
            another = known_process()
            if another is None:
                return revive_dead, (type(self),)
            self._join(another)
            process = another
        receiver = process.references.receiver()
        if receiver is None:
            return revive_dead, (type(self),)
        known = self._known
        if known is None and (self.where == process.pid or process.membership.why_gone(self.where) is not None):
            known = self._own()
        if receiver:
            self._check_allowed(receiver)
        process.references.met(self._rrid, self.where)
        if known is not None:
            description = process.blocks.kept[self._origin].description()
            if receiver and not self._is_pinned_on(receiver):
                receiver = 0
            if receiver:
                known.setdefault(receiver, 0)
        else:
            description = (type(self), tuple(self._origin), None, self._length, self._local_only, self._parts())
        return revive, (*self._rrid, self.where, process.pid, receiver, description)

    def _reduce_ended(self) -> tuple[Any, ...]:
        process = known_process()
        if process is not None and process.references.receiver() is not None:
            self._raise_ended()  # here, and not where it would arrive without memory
        return revive_dead, (type(self),)

    def _goes_by_reference(self) -> bool:
        """Asked while something is pickled: whether its receiver sees the same memory. Yes, as long as nobody knows."""
        process = self._process
        receiver = process.references.receiver()
        return not receiver or is_here(process, receiver) or is_here(process, receiver, self.where)

    def _check_allowed(self, pid: int) -> None:
        if self._local_only and not is_here(self._process, pid, self.where):
            raise TopologyError(
                f"process {pid} is on another node than the memory of this {type(self).__name__}, which was made with "
                "node_local=False: it is not copied to other nodes. Use processes of its node (procs_on_node), or "
                "make it without node_local=False"
            )

    def _own(self) -> dict[int, int]:
        """From now on this process keeps the block for whoever gets the handle."""
        block = self._block or self._map()
        process = self._process
        with self._lock:
            if self._known is None:
                if not self._is_new:  # it has come from elsewhere; what others count of its reference is theirs
                    self._rrid = process.new_rrid()
                    self.where = process.pid
                self._is_new = False
                blocks = process.blocks
                kept = Kept(self, block)
                process.references.created(self._rrid, process.pid, self)
                process.store.put(self._rrid, kept)
                blocks.kept[self._origin] = kept
                if self._copy_of is not None:
                    blocks.copies[self._copy_of] = kept
                self._bare = revive_known, (process.pid, self._rrid.id)
                self._known = blocks.watch(self)
            return self._known

    def _join(self, process: Process) -> None:
        """The cluster in which the handle was made is gone; from now on it belongs to another one."""
        block = self._block or self._map()
        with self._lock:
            self._begin(process, block, self._local_only)

    def _raise_ended(self) -> NoReturn:
        raise InvalidStateException(
            f"this {type(self).__name__} was finalized, or pickled outside of the cluster: it has no memory any more"
        )

    def _end(self) -> None:
        """Make it a handle to nothing."""
        self._lock = RLock()
        self._ended = True
        self._block = self._copy = self._known = None

    def _finalize(self) -> None:
        """Give the memory up here and now; views of it stay what they are."""
        if not self._ended:
            self._end()
            self._process.blocks.give_up(self._rrid)
            self._process.references.released(self._rrid)

    def __copy__(self) -> Self:
        return self


__all__ = ["BlockHandle"]
