"""Large definitions of functions for other nodes: they cross the network once per node, not once per connection.

::

    definitions ── pickled once ──► block ◄── copied once to each other node, and mapped by the workers there
      │                               ▲
      └─ SharedFunction ── Define ────┴────── ReceivedHandle ── its first call: unpickled over a mapping of its own
                           to each worker a handle, a few bytes

The `Definition` has the handle, and the memory goes with it: when the function has died, or is another. A worker lets
go when it has unpickled the function, whose arrays keep the memory. On another node it keeps the handle until the
definition goes, because the copy of that node goes with the last handle there, and more workers may ask for it.

A handle that has arrived is counted, so each has to be unpickled, once, also if the function is never called: that is
work of its own in the queue, before the first call.

What this module does not know: when a definition is sent (``asking.py``), and what is in it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from hybriddist.core import payload
from hybriddist.core.functions import Failure, ReceivedFunction
from hybriddist.errors import DeserializeError, HybridDistError
from hybriddist.limits import KIB
from hybriddist.runtime.pickled_blocks import OwnMemory, PickledBlock

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process
    from hybriddist.shm.block import Block
    from hybriddist.transport import Buffer

MUCH: Final = 64 * KIB
"""Definitions of so many bytes are placed where two or more processes are on another node. What placing adds is a
request to the first process of a node, and one of that to here, some 0.2 ms each within a machine room; at 1 Gbit/s
64 KiB take 0.5 ms, once more for each process, and it is the connection of this process that all of them share.

Not so inside a node: there each worker gets the bytes through its own connection, which costs less than to map what
others have. A new function with so many bytes in its closure, called on one worker after the other for the first time;
ms sent, and placed:

===================  ==========  ==========  ==========  ===========
bytes                64 KiB      512 KiB     1 MiB       8 MiB
===================  ==========  ==========  ==========  ===========
2 workers, shm       0.7, 1.2    1.7, 2.8    3.1, 5.2    32, 36
8 workers, shm       2.9, 4.9    9.7, 12.2   15.9, 18.8  95, 101
2 workers, tcp       0.9, 1.4    2.1, 3.1    3.6, 5.1    32, 35
===================  ==========  ==========  ==========  ===========
"""


class SharedFunction(PickledBlock):
    """A function's definition in shared memory."""

    __slots__ = ()

    def _is_pinned_on(self, pid: int) -> bool:
        """On another node, where its copy of the memory is to last as long as the definition."""
        here, there = self._process.membership.get(self._process.pid), self._process.membership.get(pid)
        return here is not None and there is not None and here.node != there.node

    def _find(self) -> Block:
        try:
            return super()._find()
        except HybridDistError:
            # The first process of this node is gone, or no connection to it is allowed. Who sent this can be asked.
            return OwnMemory.of(self._read())


class ReceivedHandle(ReceivedFunction):
    """A function whose definition came as a handle."""

    __slots__ = ("_handle", "_lock")

    def __init__(self, body: Buffer) -> None:
        super().__init__(body)
        self._lock = threading.Lock()
        self._handle: SharedFunction | None = None

    def arrive(self) -> None:
        """Unpickle the handle, unless that was done. Asks nobody, and never blocks for long."""
        with self._lock:
            if self._handle is None and self._found is None:
                try:
                    self._handle = payload.loads(self._body)
                except DeserializeError as error:
                    self._found = Failure(error)

    def _unpickle(self, body: Buffer, buffers: Sequence[Buffer]) -> Any:
        self.arrive()
        handle = self._handle  # None: another thread has unpickled the function meanwhile
        # Without the lock: what is unpickled may run code that waits for another call of this function.
        return self._found if handle is None else handle._load(own=True)

    def _keep(self, found: Any) -> None:
        super()._keep(found)
        self._handle = None


def place(process: Process, body: bytes, buffers: Sequence[memoryview]) -> SharedFunction | None:
    """Put a definition into shared memory. None if that is not worth while, or there is no room."""
    if len(body) + sum(buffer.nbytes for buffer in buffers) < MUCH or not _is_for_another_node(process):
        return None
    handle = SharedFunction._with(process, body, buffers, "a function")
    return None if handle._by_value else handle


def _is_for_another_node(process: Process) -> bool:
    """Whether it would go to several processes of another node."""
    return any(len(pids) > 1 and process.pid not in pids for pids in process.membership.nodes())


__all__ = ["MUCH", "ReceivedHandle", "SharedFunction", "place"]
