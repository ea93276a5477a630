"""The blocks of one process: which it has, which it keeps for others, and what is counted of handles sent again.

::

    owner                                               receiver
      sent: id ─► whom, and how many bare references      pins: owner, id ─► handle, and how many have come
         │  the handle dies                                  ▲
         ├─ count ─► claims of the receiver                  │
         └─ forget_handle ───────────────────────────────────┘ count ─► credits, which go when the handle does

What this module does not know: what a handle is made of (``block_handle.py``), and where blocks come from.
"""

from __future__ import annotations

import weakref
from collections import deque
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

from hybriddist.core.messages import Mode
from hybriddist.core.references import edge
from hybriddist.errors import HybridDistError
from hybriddist.ids import RRID
from hybriddist.runtime.block_arrivals import Kept, arrive, describe, forget_handle
from hybriddist.runtime.block_handle import BlockHandle
from hybriddist.shm.block import Block

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hybriddist.runtime.process import Process

_MOST_BARE: Final = 48
"""Only so many arguments of a call are looked at: their bits have to fit into a field of the message."""


class _Sent(weakref.ref["BlockHandle"]):
    """Whom a handle was sent to, to be told when it dies: then it is appended to a deque, as `_Holding` is."""

    __slots__ = ("known", "rrid")

    rrid: RRID
    known: dict[int, int]


class Blocks:
    """The blocks that one process has handles to.

    Attributes:
        origins: the handle of each origin, if one lives.
        kept: by origin, what this process keeps as the owner.
        copies: by origin, the copies of other nodes' blocks that it keeps for its node.
        pins: handles that were sent by their owners, until these drop theirs, and how often each has come since.
        margin: held while something is counted that is no claim yet.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self.origins: weakref.WeakValueDictionary[RRID, BlockHandle] = weakref.WeakValueDictionary()
        self.kept: weakref.WeakValueDictionary[RRID, Kept] = weakref.WeakValueDictionary()
        self.copies: weakref.WeakValueDictionary[RRID, Kept] = weakref.WeakValueDictionary()
        self.pins: dict[tuple[int, int], list[Any]] = {}
        self.margin = RLock()  # finalisers that the collector runs meanwhile may send and receive
        self._too_late: set[tuple[int, int]] = set()
        """Of what is to be forgotten, but has not come yet: it overtook the call that brings it."""
        self.sent: dict[int, _Sent] = {}
        """By the id of their references, the handles that were sent by this process, their owner."""
        self._dropped: deque[_Sent] = deque()

    def watch(self, handle: BlockHandle) -> dict[int, int]:
        """Tell those who are added to the dict when the handle dies."""
        sent = self.sent[handle._rrid.id] = _Sent(handle, self._dropped.append)
        sent.rrid = handle._rrid
        sent.known = {}
        return sent.known

    # ---- bare references --------------------------------------------------------------------------------------

    def strip(self, args: tuple[Any, ...], pid: int) -> tuple[tuple[Any, ...], int]:
        """Handles among a call's arguments that can go as bare references: to pickle them costs a fifth of a call.

        Returns:
            The arguments with the ids in their places, and which these are, as a number of bits.
        """
        stripped: list[Any] | None = None
        bits = 0
        for position, arg in enumerate(args):
            if isinstance(arg, BlockHandle) and position < _MOST_BARE:
                known = arg._known
                if known and pid in known:
                    if stripped is None:
                        stripped = list(args)
                    stripped[position] = arg._rrid[1]
                    bits |= 1 << position
        return (args, 0) if stripped is None else (tuple(stripped), bits)

    def count_stripped(self, args: tuple[Any, ...], bits: int, pid: int) -> None:
        """These arguments, from `strip`, are about to be sent."""
        for position, arg in enumerate(args):
            if bits >> position & 1:
                self.count(arg, pid)

    def count(self, id_: int, pid: int) -> None:
        """A bare reference is about to be sent."""
        with self.margin:
            self.sent[id_].known[pid] += 1

    def dress(self, args: tuple[Any, ...], bits: int, owner: int) -> list[Any]:
        """Undo `strip`."""
        dressed = list(args)
        position = 0
        while bits:
            if bits & 1:
                dressed[position] = self.known(owner, dressed[position])
            bits >>= 1
            position += 1
        return dressed

    def known(self, owner: int, id_: int) -> BlockHandle:
        """A bare reference has arrived, of a handle that was described to this process before."""
        with self.margin:
            pin = self.pins.get((owner, id_))
            if pin is not None and pin[0] is not None:
                pin[1] += 1
                handle: BlockHandle = pin[0]
                return handle
        description = self._process.fetch_call(describe, owner, (owner, id_), {})
        handle = arrive(self._process, RRID(owner, id_), owner, owner, description)
        if pin is not None:
            pin[0] = handle
        return handle

    def counts(self, rrid: tuple[int, int]) -> bool:
        """A bare reference has arrived, and no handle is wanted: whether it is counted here, in the margin."""
        with self.margin:
            pin = self.pins.get(rrid)
            if pin is None or pin[0] is None:
                return False
            pin[1] += 1
            return True

    # ---- arriving, and being forgotten ------------------------------------------------------------------------

    def find(self, origin: RRID) -> Block | None:
        """The block with this origin, if this process has it."""
        handle = self.origins.get(origin)
        block = None if handle is None else handle._block
        if block is None:
            kept = self.kept.get(origin)
            block = None if kept is None else kept.block
        return block

    def give_up(self, rrid: RRID) -> None:
        """The handle of this reference was given up before its death."""
        sent = self.sent.get(rrid.id)
        if sent is not None and sent.rrid == rrid:
            self._dropped.append(sent)
            self.flush()

    def flush(self) -> None:
        """Tell those who keep handles of which ours have died. Never blocks: a thread does it."""
        if not self._dropped:
            return
        gone = []
        while self._dropped:
            sent = self._dropped.popleft()
            if self.sent.get(sent.rrid.id) is sent:
                del self.sent[sent.rrid.id]
            if sent.known:
                own = self._process.pid
                self._process.store.change((*sent.rrid, edge(own, pid), count) for pid, count in sent.known.items())
                gone.append((sent.rrid, sorted(sent.known)))
                sent.known = {}
        if gone and not self._process.leaving.is_set():
            self._process.spawn(partial(self._tell, gone), "hybriddist-blocks")

    def _tell(self, gone: Iterable[tuple[RRID, list[int]]]) -> None:
        process = self._process
        for rrid, pids in gone:
            for pid in pids:
                peer = process.peers.get(pid)
                if peer is not None and peer.lost is None:
                    try:
                        process.start_call(forget_handle, peer, tuple(rrid), {}, Mode.DO, 0, 0)
                    except HybridDistError:
                        pass  # its handle ends with it

    def drop_process(self, pid: int) -> None:
        """A process is gone: nobody will say any more that its handles can be forgotten."""
        with self.margin:
            for rrid in [rrid for rrid in self.pins if rrid[0] == pid]:
                del self.pins[rrid]
            self._too_late = {rrid for rrid in self._too_late if rrid[0] != pid}

    def pin(self, rrid: RRID, handle: BlockHandle | None) -> None:
        """A handle has come from its owner, who will say when it can be forgotten. None: in what cannot be rebuilt."""
        with self.margin:
            if rrid in self._too_late:
                self._too_late.remove(rrid)
            elif rrid not in self.pins:
                self.pins[rrid] = [handle, 0]

    def unpin(self, rrid: RRID) -> None:
        """The owner says that it can be forgotten."""
        with self.margin:
            pin = self.pins.pop(rrid, None)
            if pin is None:
                self._too_late.add(rrid)
        if pin is not None and pin[1]:
            handle, count = pin
            self._process.references.arrived(rrid, rrid.whence, rrid.whence, lambda: handle, count)

    def close(self) -> None:
        """The process leaves the cluster; handles that users have stay what they are."""
        self.pins.clear()
        self.sent.clear()
        # Not left to the collector of garbage, which may come late: it is memory of the node.
        for kept in list(self.kept.values()):
            self._process.store.discard(kept.rrid)


__all__ = ["BlockHandle", "Blocks", "Kept"]
