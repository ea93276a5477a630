"""Handles to blocks arrive: what their pickles call, and what owners are asked about them.

A process has one handle for a block, whatever way it came; the memory is mapped at once if the block is on this node.
What this module does not know: how a handle is sent (``block_handle.py``), and what is counted (``blocks.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hybriddist.errors import HybridDistError, InvalidStateException
from hybriddist.ids import RRID
from hybriddist.runtime.claims import IN_THE_MARGIN, Claim
from hybriddist.runtime.context import this_process
from hybriddist.shm.block import Address, Block

if TYPE_CHECKING:
    from hybriddist.runtime.block_handle import BlockHandle
    from hybriddist.runtime.process import Process


class Kept:
    """What the owner's store has: the block, and what a handle to it is made of."""

    __slots__ = ("__weakref__", "block", "kind", "local_only", "origin", "parts", "rrid")

    def __init__(self, handle: BlockHandle, block: Block) -> None:
        self.block = block
        self.kind = type(handle)
        self.parts = handle._parts()
        self.origin = handle._origin
        self.rrid = handle._rrid
        self.local_only = handle._local_only

    def description(self) -> tuple[Any, ...]:
        """All that a receiver has to know."""
        return self.kind, tuple(self.origin), self.block.address(), self.block.length, self.local_only, self.parts


def revive(whence: int, id_: int, where: int, giver: int, receiver: int, description: tuple[Any, ...]) -> BlockHandle:
    """A handle has arrived, with all there is to know of it."""
    process = this_process()
    rrid = RRID(whence, id_)
    handle = arrive(process, rrid, where, giver, description)
    if where == giver != process.pid == receiver:
        process.blocks.pin(rrid, handle)
    return handle


def claim(whence: int, id_: int, where: int, giver: int, receiver: int, _: tuple[Any, ...]) -> list[Claim]:
    """What is claimed by it: for values that cannot be rebuilt (`core/payload.py`)."""
    return [Claim(RRID(whence, id_), where, giver, is_first=where == giver and receiver not in (0, giver))]


def revive_known(owner: int, id_: int) -> BlockHandle:
    """Likewise, one that was described before."""
    return this_process().blocks.known(owner, id_)


def claim_known(owner: int, id_: int) -> list[Claim]:
    return [Claim(RRID(owner, id_), IN_THE_MARGIN, owner)]


def revive_dead(kind: type[BlockHandle]) -> BlockHandle:
    """A handle that went through something that is no cluster."""
    handle = kind.__new__(kind)
    handle._end()
    return handle


def arrive(process: Process, rrid: RRID, where: int, giver: int, description: tuple[Any, ...]) -> BlockHandle:
    kind, first, address, length, local_only, parts = description
    origin = RRID(*first)
    blocks = process.blocks

    def make() -> BlockHandle:
        handle = blocks.origins.get(origin)
        if handle is None:
            handle = kind.__new__(kind)
            handle._set_up(process, where, rrid, origin, length, local_only, None)
            handle._adopt(parts)
            blocks.origins[origin] = handle
        elif handle.where != process.pid and process.membership.why_gone(handle.where) is not None:
            handle._rrid, handle.where = rrid, where
        return handle

    handle: BlockHandle = process.references.arrived(rrid, where, giver, make)
    if handle._block is None and not handle._ended:
        _map_now(process, handle, address)
    return handle


def _map_now(process: Process, handle: BlockHandle, address: Address | None) -> None:
    """Map it while it is sure to be there, if that can be done without asking anybody."""
    kept = kept_under(process, handle._rrid) if handle.where == process.pid else None
    if kept is not None:
        handle._block = kept.block
        return
    there, here = process.membership.get(handle.where), process.membership.get(process.pid)
    if address is None or there is None or here is None or there.node != here.node:
        return
    try:
        handle._block = Block.open(address)
    except (HybridDistError, OSError):
        return  # asked for again when it is needed, and by then there is somebody to hear of the failure


def kept_under(process: Process, rrid: tuple[int, int]) -> Kept | None:
    """What this process keeps under one of its references to a block."""
    entry = process.store.peek(rrid)
    kept = None if entry is None else entry.content
    return kept if type(kept) is Kept else None


def describe(whence: int, id_: int) -> tuple[Any, ...]:
    """Runs on the owner, asked by who has a claim: what it claims."""
    kept = kept_under(this_process(), (whence, id_))
    if kept is None:
        raise InvalidStateException("the shared memory of this reference is not here any more")
    return kept.description()


def forget_handle(whence: int, id_: int) -> None:
    """Runs on who was sent a handle: its owner has dropped its own, and will not send it again."""
    this_process().blocks.unpin(RRID(whence, id_))
