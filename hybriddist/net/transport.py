"""Frames over a connected stream socket: TCP, or a Unix-domain pair.

What this module does not know: how the socket was connected, who is at the other end (the handshake is over), what
heads mean.

How it works. The socket never blocks. `send` gives a frame to the kernel in one system call; what does not fit is kept
as views in an outbox, which `flush` works off. `receive` reads into a general buffer, except for the inside of large
arrays, which the kernel copies straight to where they stay (`FrameDecoder.destination`).

The end. A process that is killed leaves the same end of file behind as one that closed. Therefore a frame with an empty
head, which no message has, says goodbye::

    close:    ... frame | frame | goodbye | end of file      the peer raises TransportClosed
    abort:    ... frame | frame | end of file                the peer raises TransportBroken
    killed:   ... frame | fra   | end of file or reset       the peer raises TransportBroken

The two sides end separately: that nothing can be sent any more (the peer is gone) does not take away the frames that it
sent before. Hence one end for each side, kept as class and text and made into a new exception at every call.

Threads. A side marks that it is inside a call, and an ending from another thread shuts the socket down, but leaves the
closing of the descriptor to the last one to come out: the number might be given to somebody else while a thread is
about to read from it. The marks rely on the interpreter lock for their order.
"""

from __future__ import annotations

import select
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final, NoReturn

from hybriddist import limits
from hybriddist.core.frames import FrameDecoder, encode, encode_start
from hybriddist.deadline import Deadline
from hybriddist.errors import (
    HybridDistError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportBroken,
    TransportClosed,
    TransportError,
)
from hybriddist.net.socket import address_of, broken
from hybriddist.transport import Buffer, Frame, Transport

RECEIVE_BYTES: Final = 64 * limits.KIB
"""One read into the general buffer. 64 KiB cost 1.4 µs; 256 KiB, which the allocator maps anew each time, 10 µs."""

RECEIVE_BUDGET_BYTES: Final = 4 * limits.MIB
"""What one `receive` takes at most, about a millisecond of copying: then other peers have their turn."""

COPIED_HEAD_BYTES: Final = 16 * limits.KIB
"""Heads up to this size are copied behind their header, for a `send` of one piece; larger ones go by `sendmsg`."""

_GOODBYE: Final = encode(b"")

# At most so many pieces in one sendmsg: the least that systems allow is 16, Linux and macOS take 1024.
_IOV_MAX: Final = 1024

# A driver that was told to die of SIGPIPE, as tools in shell pipelines are, must not die of a worker's death.
_FLAGS: Final = getattr(socket, "MSG_NOSIGNAL", 0)

_DRAIN_READS: Final = 64
_LINGER_MILLISECONDS: Final = 2

_End = tuple[type[HybridDistError], str]


class StreamTransport(Transport):
    """One end of a connected stream socket. See `Transport` for the promises.

    Args:
        sock: the socket; this object owns it from now on and makes it non-blocking.
        scheme: what `path_to` calls this path.
        allocate: makes the memory for a large received buffer.
        received: bytes that were read from the socket already, behind the end of the handshake.
    """

    rings_doorbell = False

    def __init__(
        self,
        sock: socket.socket,
        *,
        scheme: str = "tcp",
        allocate: Callable[[int], Any] = bytearray,
        received: bytes = b"",
    ) -> None:
        self.scheme = scheme
        sock.setblocking(False)
        self._sock = sock
        self._peer = _name_of_peer(sock)
        self._ended = False
        # The sending side.
        self._sending = False
        self._send_end: _End | None = None
        self._outbox: deque[memoryview] = deque()
        self._pending = 0
        # The receiving side.
        self._receiving = False
        self._receive_end: _End | None = None
        self._decoder = FrameDecoder(allocate=allocate)
        self._early = received
        self._mid_frame = bool(received)

    # ---- the sending side -------------------------------------------------------------------------------------------

    def send(self, head: bytes, buffers: Sequence[Buffer] = ()) -> bool:
        self._sending = True
        try:
            if self._send_end is not None:
                self._raise_send_end()
            if not head:
                raise LocalProtocolError("a frame needs a head: an empty one is the transport's own goodbye")
            if buffers or self._outbox or len(head) > COPIED_HEAD_BYTES:
                start = encode_start(head, [len(buffer) for buffer in buffers])
                self._append((start, head, *buffers))
                return self._write()
            data = encode(head)
            sent = self._sock.send(data, _FLAGS)
            if sent < len(data):
                self._append((memoryview(data)[sent:],))
                return False
            return True
        except BlockingIOError:  # Not one byte of a small frame fits.
            self._append((data,))
            return False
        except OSError as error:
            self._break_sending(error)
        finally:
            self._sending = False
            if self._ended:
                self._release()

    def flush(self) -> bool:
        self._sending = True
        try:
            if self._send_end is not None:
                self._raise_send_end()
            return self._write()
        except OSError as error:
            self._break_sending(error)
        finally:
            self._sending = False
            if self._ended:
                self._release()

    def pending_bytes(self) -> int:
        return self._pending

    def snapshot(self) -> None:
        # What lies in a bytes object stays as it is; everything else is the caller's.
        pieces = [piece if type(piece.obj) is bytes else memoryview(piece.tobytes()) for piece in self._outbox]
        self._outbox = deque(pieces)

    def wants_write(self) -> bool:
        return self._pending > 0

    def _append(self, pieces: Sequence[Buffer]) -> None:
        for piece in pieces:
            if len(piece):  # An empty one would never count as written.
                self._outbox.append(memoryview(piece))
                self._pending += len(piece)

    def _write(self) -> bool:
        """Write of the outbox what fits. True if nothing is left."""
        outbox = self._outbox
        while outbox:
            chunk = list(islice(outbox, _IOV_MAX))
            try:
                sent = self._sock.sendmsg(chunk, (), _FLAGS)
            except BlockingIOError:
                return False
            self._pending -= sent
            for piece in chunk:
                if sent < len(piece):
                    outbox[0] = piece[sent:]
                    return False  # The kernel is full: to ask once more would tell the same.
                sent -= len(piece)
                outbox.popleft()
        return True

    def _break_sending(self, error: OSError) -> NoReturn:
        """Nothing can be sent any more. What the peer had sent before it went can still be received."""
        if isinstance(error, TransportError):
            raise error
        if self._send_end is None:
            self._send_end = (TransportBroken, str(broken(error, self._peer)))
        self._raise_send_end(error)

    def _raise_send_end(self, cause: OSError | None = None) -> NoReturn:
        # The borrowed buffers are let go here, and not where the end is noticed: that may be another thread's call.
        self._outbox.clear()
        self._pending = 0
        assert self._send_end is not None
        kind, text = self._send_end
        raise kind(text) from cause

    # ---- the receiving side -----------------------------------------------------------------------------------------

    def receive(self) -> list[Frame]:
        frames: list[Frame] = []
        self._receiving = True
        try:
            if self._receive_end is not None:
                pass
            elif self._mid_frame:
                self._receive_more(frames)
            else:
                # The hot path: small frames that are here as a whole, or nothing.
                data = self._sock.recv(RECEIVE_BYTES)
                frames = self._decoder.feed(data)
                self._mid_frame = self._decoder.mid_frame
                if len(data) == RECEIVE_BYTES:
                    self._receive_more(frames)
                elif not data:
                    self._receive_eof()
        except BlockingIOError:
            return frames
        except (OSError, RemoteProtocolError) as error:
            # Frames that came before the end are handed out first; the next call raises.
            self._end_receiving(error)
        finally:
            self._receiving = False
            if self._ended:
                self._release()
        if frames:
            if not frames[-1].head:
                frames.pop()
                self._end_receiving(TransportClosed(f"{self._peer} has closed the connection"))
            if frames:
                return frames
        if self._receive_end is not None:
            kind, text = self._receive_end
            raise kind(text)
        return frames

    def _receive_more(self, frames: list[Frame]) -> None:
        """Add to ``frames`` until nothing is here or the budget is spent."""
        decoder, sock = self._decoder, self._sock
        budget = RECEIVE_BUDGET_BYTES
        if self._early:
            data, self._early = self._early, b""
            frames += decoder.feed(data)
        while budget > 0:
            place = decoder.destination()
            if place is None:
                data = sock.recv(RECEIVE_BYTES)
                count = len(data)
                full = count == RECEIVE_BYTES
                frames += decoder.feed(data)
            else:
                wanted = min(len(place), budget)
                count = sock.recv_into(place, wanted)
                full = count == wanted
                del place  # The decoder may want to turn this memory into bytes.
                frames += decoder.advance(count)
            self._mid_frame = decoder.mid_frame
            if not count:
                self._receive_eof()
            if not full:
                return  # To ask once more would most likely cost an exception.
            budget -= count

    def _receive_eof(self) -> NoReturn:
        self._decoder.eof()
        raise TransportBroken(f"the connection to {self._peer} ended without a goodbye: its process is gone")

    def _end_receiving(self, error: OSError | RemoteProtocolError) -> None:
        """Both sides are over: who sends nothing any more does not read either."""
        if self._receive_end is None:
            mapped = error if isinstance(error, HybridDistError) else broken(error, self._peer)
            # A send that failed before could not know why; who reads to the end does.
            self._send_end = self._receive_end = (type(mapped), str(mapped))

    def arm(self) -> bool:
        return bool(self._early)  # What the kernel has makes the descriptor readable anyhow.

    def disarm(self) -> None:
        """Nothing to do: there is no doorbell."""

    def acknowledge(self) -> None:
        """Nothing to do: `receive` takes what makes the descriptor readable."""

    # ---- both -------------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self._ended else self._sock.fileno()

    def close(self, timeout: float) -> None:
        if self._ended:
            return
        deadline = Deadline(timeout)
        self._sending = True
        try:
            if self._receive_end is None:
                self._receive_end = (TransportClosed, "this end of the connection was closed")
            if self._send_end is None and self._say_goodbye(deadline):
                self._sock.shutdown(socket.SHUT_WR)
                self._linger(deadline)
        except OSError:
            pass  # The peer went first: there is nobody to say goodbye to.
        finally:
            self._sending = False
            self.abort()

    def abort(self) -> None:
        # The order matters to other threads: first the ends, for who enters; then the wake-up, for who is inside or
        # waits; then the descriptor, if nobody is inside. Else the last one to leave closes it.
        end = (TransportClosed, "this end of the connection was ended")
        if self._receive_end is None:
            self._receive_end = end
        if self._send_end is None:
            self._send_end = end
        if not self._ended:
            self._ended = True
            with suppress(OSError):  # It is not connected any more.
                self._sock.shutdown(socket.SHUT_RDWR)
        self._release()

    def _release(self) -> None:
        if not (self._sending or self._receiving):
            self._sock.close()
            # Let go of what was borrowed, and of a frame that will never be complete.
            self._outbox.clear()
            self._pending = 0
            self._decoder = FrameDecoder()

    def _say_goodbye(self, deadline: Deadline) -> bool:
        """Write everything and the goodbye. False if that was not possible in time, or the peer ended first."""
        self._append((_GOODBYE,))
        poller = select.poll()
        poller.register(self._sock, select.POLLIN | select.POLLOUT)
        while not self._write():
            left = deadline.remaining()
            if left == 0.0 or self._ended:
                return False
            poller.poll(None if left is None else left * 1000)
            # The peer may be closing too, and be waiting for room as we are: what it sends is thrown away.
            if not self._drain():
                return False
        return True

    def _linger(self, deadline: Deadline) -> None:
        """Wait until the peer's kernel has everything.

        A socket that is closed with unread bytes, or gets some afterwards, resets the connection, and that would throw
        away what is still under way to the peer.
        """
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        while self._drain() and _unacknowledged_bytes(self._sock) and not deadline.expired():
            poller.poll(_LINGER_MILLISECONDS)

    def _drain(self) -> bool:
        """Throw away what is here. False at the end of the stream."""
        for _ in range(_DRAIN_READS):
            if self._receiving:
                return True  # Another thread is inside `receive`; it will not come again.
            try:
                if not self._sock.recv(RECEIVE_BYTES):
                    return False
            except BlockingIOError:
                return True
        return True


def _name_of_peer(sock: socket.socket) -> str:
    try:
        return str(address_of(sock.getpeername()) or "the peer")
    except OSError:
        return "the peer"  # It went already; the first call will tell.


def _unacknowledged_bytes(sock: socket.socket) -> int:
    """Bytes that the peer's kernel has not confirmed. 0 where this cannot be asked, or nothing lies between."""
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 0
    import fcntl
    import termios

    answer = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))  # the same number as SIOCOUTQ, tcp(7)
    return int.from_bytes(answer, sys.byteorder)
