"""Who has a block: looking for it among the processes, reading it from another node, writing back.

::

    this process ── address_of_block ──► a process of this node: its descriptor is opened
                 ── copy_for_node ─────► the first process of this node, which makes the node's copy if there is none
                 ── read_block ────────► whoever has the block, on another node

What this module does not know: when these are asked (``block_handle.py``).
"""

from __future__ import annotations

from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any

from hybriddist.errors import HybridDistError, InvalidStateException, SharedMemoryFull
from hybriddist.ids import RRID
from hybriddist.runtime.context import this_process
from hybriddist.runtime.inquiry import member
from hybriddist.shm.block import Address, Block

if TYPE_CHECKING:
    from hybriddist.runtime.block_handle import BlockHandle
    from hybriddist.runtime.process import Process


def is_here(process: Process, *pids: int) -> bool:
    """Whether these processes are on one node: this one's if there is only one. A dead one is nowhere."""
    try:
        nodes = {member(process, pid).node for pid in (pids if len(pids) > 1 else (*pids, process.pid))}
    except HybridDistError:
        return False
    return len(nodes) == 1


def open_from(process: Process, pid: int, origin: RRID) -> Block | None:
    """The block, from a process of this node that may have it."""
    if pid == process.pid:
        return process.blocks.find(origin)
    try:
        address = process.fetch_call(address_of_block, pid, (tuple(origin),), {})
        return None if address is None else Block.open(address)
    except HybridDistError:
        return None


def address_of_block(origin: tuple[int, int]) -> Address | None:
    """Runs on a process of the node."""
    block = this_process().blocks.find(RRID(*origin))
    return None if block is None else block.address()


def read_block(origin: tuple[int, int]) -> PickleBuffer | None:
    """Runs on a process that may have the block."""
    block = this_process().blocks.find(RRID(*origin))
    return None if block is None else PickleBuffer(block.memory)


def write_block(origin: tuple[int, int], start: int, data: Any) -> None:
    """Runs on the owner."""
    block = this_process().blocks.find(RRID(*origin))
    if block is None:
        raise InvalidStateException("the shared memory that is to be written is not here any more")
    memory = memoryview(data).cast("B")
    block.memory[start : start + len(memory)] = memory


def copy_for_node(handle: BlockHandle) -> BlockHandle:
    """Runs on the first process of a node: the handle of the node's copy, which is made if there is none."""
    handle._block or handle._map()
    copy = handle._copy
    if copy is None:  # the subclass has found a way without one
        raise SharedMemoryFull("the first process of this node has no room for a copy that others could map")
    return copy
