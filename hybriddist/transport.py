"""The abstraction that hides how two processes are connected.

A *transport* is one end of a connection between two processes. It moves *frames*: a head (bytes) and out-of-band
buffers (large arrays). What every transport promises:

* **Whole, in order, once.** Frames arrive complete, in the order in which `send` was called, each exactly once, or
  the transport raises. A torn or corrupt frame is never delivered.
* **Never blocks.** `send` takes the frame and writes what fits now; the rest is written by `flush`. `receive` returns
  what is here now. Waiting is done by the caller, on `fileno()`.
* **Two sides.** The sending side (`send`, `flush`) and the receiving side (`receive`, `arm`, `disarm`) may be used by
  two threads at once; each side by one thread at a time. The caller holds the locks.
* **Buffers are borrowed.** Until `send` or `flush` returns True, the transport may still read the buffers it was given.
  `snapshot` makes it independent of them.
* **close flushes, abort does not.** After the peer's `close`, frames already sent are still received, then
  `TransportClosed` is raised. After its death, `TransportBroken`.
* **Received buffers are the receiver's own**: writable, and valid after the transport is gone.

Waiting without losing a wake-up::

    if transport.arm():            # announce that we are going to sleep; True: something came meanwhile
        ...receive at once
    else:
        ...wait until fileno() is readable (writable too, if wants_write())...
        transport.acknowledge()    # take the doorbell's bytes off the descriptor
    transport.disarm()             # we are looking again: the sender need not ring

What this module does not know: messages, threads, addresses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from hybriddist.records import Record

Buffer = bytes | bytearray | memoryview


class Frame(Record):
    """What travels: ``head`` (message header and pickle) and the out-of-band ``buffers`` it refers to, in order."""

    head: bytes | memoryview
    buffers: Sequence[Buffer] = ()


class Transport(ABC):
    """One end of a connection between two processes. See the module's promises."""

    scheme: str
    """The path that frames take, as `path_to` tells it: "shm", "tcp", "memory"."""

    rings_doorbell: bool
    """True: the descriptor becomes readable only while armed (shm, memory). False: whenever bytes come (tcp)."""

    streams: Sequence[Any] = ()
    """What a cluster manager brought to make it of."""

    # ---- the sending side -------------------------------------------------------------------------------------

    @abstractmethod
    def send(self, head: bytes, buffers: Sequence[Buffer] = ()) -> bool:
        """Take one frame and write what fits now.

        Args:
            head: the head's bytes; not changed afterwards by the caller.
            buffers: contiguous buffers of format "B", borrowed until everything is written.

        Returns:
            True if nothing is left to write; else call `flush` when there is room.

        Raises:
            TransportClosed, TransportBroken: nothing of this frame will arrive.
            LocalProtocolError: the frame is over the limits; nothing was written, the transport is intact.
        """

    @abstractmethod
    def flush(self) -> bool:
        """Write more of what `send` took. True when nothing is left. Raises as `send` does."""

    @abstractmethod
    def pending_bytes(self) -> int:
        """Bytes taken by `send` and not written yet."""

    @abstractmethod
    def snapshot(self) -> None:
        """Copy the borrowed buffers that are not written yet, so that their owner may change them."""

    @abstractmethod
    def wants_write(self) -> bool:
        """Whether to wait for `fileno()` to be writable: something is pending, and the descriptor tells of room.

        A transport with a doorbell returns False: room is announced by the doorbell, as readability.
        """

    def reserve(self, length: int) -> memoryview | None:
        """Memory in which to compute what is to be sent: a buffer in it may go without a copy. Callable by any thread.

        Returns:
            A writable view with arbitrary content, the caller's for as long as anything refers to it. None: there is
            no such memory (here, or any more); any other memory does as well.
        """
        return None

    def trim(self) -> bool:
        """Give memory of the node back that has not been used for a while; whether there is more to be looked after.

        Callable from any thread, never blocks for long.
        """
        return False

    def settle(self, buffers: list[Buffer]) -> None:
        """Before `send`: let go of whatever the buffers in reserved memory belong to, by replacing them in the list.

        What then has no owner left goes without a copy.
        """
        return

    def forking(self) -> None:
        """This process is about to be copied by `os.fork`, with views of reserved memory."""
        return

    # ---- the receiving side -----------------------------------------------------------------------------------

    @abstractmethod
    def receive(self) -> list[Frame]:
        """The frames that are here now, perhaps none.

        Raises:
            TransportClosed: the peer closed, and every frame has been handed out.
            TransportBroken: the peer died or the connection failed.
            RemoteProtocolError: the peer sent what is not allowed.
        """

    @abstractmethod
    def arm(self) -> bool:
        """Ask for the doorbell. True if a frame (or room, for pending sends) may be here already: look again."""

    @abstractmethod
    def disarm(self) -> None:
        """No doorbell needed: somebody is looking."""

    @abstractmethod
    def acknowledge(self) -> None:
        """Take the doorbell's bytes off the readable descriptor, and notice the peer's end. Never blocks."""

    # ---- both -------------------------------------------------------------------------------------------------

    @abstractmethod
    def fileno(self) -> int:
        """The descriptor to wait on; -1 after `close` or `abort`."""

    @abstractmethod
    def close(self, timeout: float) -> None:
        """Flush for at most ``timeout`` seconds, tell the peer, end. Idempotent; the only method that may block."""

    @abstractmethod
    def abort(self) -> None:
        """End now; what is pending is lost. Idempotent, callable from any thread."""
