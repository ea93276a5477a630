"""A transport over any two binary streams: one to read, one to write, each of which may block.

For cluster managers that bring connections of their own (``ClusterManager.connect``, ``process_messages``). Streams
cannot be polled and may be anything with ``read`` and ``write``; so a pair of sockets stands between them and the rest
of the library, which sees an ordinary stream socket, and two threads that move the bytes::

                     pair of sockets                threads that may block          the manager's streams
    StreamTransport ═══════ inner ◄── hybriddist-stream-in ◄──────────────── reader.read1 / read
                              └─────► hybriddist-stream-out ───────────────► writer.write, flush

The buffers are those of the pair of sockets and one chunk for each thread: who does not read holds up who writes, and
nothing grows. Nothing is looked at on the way, so greeting, goodbye and frames are what they are on a socket.

The end. Each stream is closed by the thread that uses it, because closing a buffered file that another thread reads
waits for that thread. When our end is over, what it has sent is still written, for a moment, and then the other end of
the stream is waited for, for a moment; then the sockets behind the streams are shut down, where there are sockets, and
objects that are no files of Python's are closed, which is their sign to end a call that blocks. Of a pipe nobody but
the process at its other end can end a read: its thread ends with that process.

What this module does not know: what the streams are made of, and who is at the other end.
"""

from __future__ import annotations

import io
import os
import select
import socket
import stat
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from struct import Struct
from typing import Any, Final, NoReturn

from hybriddist import limits
from hybriddist.core.frames import ENTRY_BYTES, HEADER_BYTES
from hybriddist.core.handshake import HELLO_BYTES, PROOF_BYTES, Role
from hybriddist.errors import ConnectError, TransportBroken
from hybriddist.net.transport import StreamTransport

CHUNK_BYTES: Final = 64 * limits.KIB
"""Moved at once."""

LAST_WRITE_SECONDS: Final = 1.0
"""After our end: for what was sent to be written, though the other side may not read any more."""

LINGER_SECONDS: Final = 1.0
"""After that: for the other side's end. A socket that is closed before may take back what is still under way."""

_LOOK_SECONDS: Final = 1.0
"""Between two looks at a stream that is not to be waited for and has nothing."""

_BEGINNING: Final = Struct("<HHI")
"""Of a frame's header: magic, number of buffers, bytes of the head. ``core/frames.py`` checks it; here it only tells
how much comes."""

_ENTRY: Final = Struct("<QQ")

Target = Callable[[], None]


def check_streams(reader: Any, writer: Any) -> None:
    """Raises `TypeError` unless these are binary streams to read and to write, as far as looking at them tells."""
    for name, stream, needed in (("reader", reader, ("read", "close")), ("writer", writer, ("write", "close"))):
        if isinstance(stream, io.TextIOBase):
            raise TypeError(f"the {name} is a text file; open it in binary mode")
        for method in needed:
            if not callable(getattr(stream, method, None)):
                raise TypeError(
                    f"the {name} must be a binary file object with {' and '.join(needed)}, "
                    f"such as socket.makefile gives; {type(stream).__name__} has no {method}"
                )


class _WrongCount(Exception):
    """A writer says that it has written what cannot be."""


class StreamBridge:
    """Two streams as one connected socket. The streams are its own from now on.

    Attributes:
        socket: our end, to greet on and to make a transport of. Whoever closes it calls `end`.
        streams: the two.
        failure: what was wrong with the writer, if it does not keep its promises and the connection ended for that.

    Args:
        role: of the handshake that is to come: tells how much may be read at once from streams that block until they
            have all they were asked for.
        prepare: makes the function that a thread runs out of the library's own.

    Raises:
        TypeError: see `check_streams`.
        ConnectError: the system allows no more descriptors or threads; the streams are closed.
    """

    def __init__(self, reader: Any, writer: Any, role: Role, prepare: Callable[[Target], Target] | None = None) -> None:
        check_streams(reader, writer)
        self._reader, self._writer = self.streams = reader, writer
        self._prepare = prepare
        self._handles: list[socket.socket] = []
        self._written, self._read = threading.Event(), threading.Event()
        self._ending = False
        self.failure = ""
        self._lock = threading.Lock()
        try:
            self._handles = _sockets_behind(reader, writer)
            self.socket, self._inner = socket.socketpair()
        except OSError as error:
            self._close_all()
            raise ConnectError(f"a pair of streams cannot be used: {error}") from error
        # A buffered reader that fills all of what it was asked for would wait for bytes that are never sent.
        self._take = _what_is_there(reader) or _exactly(reader, role)
        try:
            self._start(self._pump_in, "hybriddist-stream-in")
            self._start(self._pump_out, "hybriddist-stream-out")
        except RuntimeError as error:
            self.socket.close()
            self._inner.close()
            self._close_all()
            raise ConnectError(f"a pair of streams needs two threads: {error}") from error

    def end(self) -> None:
        """Our end is over: see to it that the streams end soon. Does not wait. Idempotent."""
        with self._lock:
            if self._ending:
                return
            self._ending = True
        try:
            self._start(self._end, "hybriddist-stream-end")
        except RuntimeError:  # no more threads, or the interpreter ends: without grace then
            self._force()

    def wait_written(self, seconds: float) -> bool:
        """Wait until all that was sent is written, and the stream for it has ended; whether that is so."""
        return self._written.wait(seconds)

    # ---- threads ----------------------------------------------------------------------------------------------

    def _start(self, target: Target, name: str) -> None:
        run = target if self._prepare is None else self._prepare(target)
        threading.Thread(target=run, name=name, daemon=True).start()

    def _pump_in(self) -> None:
        try:
            while data := self._take():
                self._inner.sendall(data)
        except Exception:
            pass  # whatever a stream raises is its end; without a goodbye before it, the transport says "broken"
        finally:
            with suppress(OSError):
                self._inner.shutdown(socket.SHUT_WR)
            self._close(self._reader)
            self._read.set()
            self._settle()

    def _pump_out(self) -> None:
        writer, inner = self._writer, self._inner
        flush = getattr(writer, "flush", None)
        try:
            while data := inner.recv(CHUNK_BYTES):
                _write(writer, data)
                if flush is not None:
                    flush()
        except _WrongCount as error:
            self.failure = f"the writer broke the connection: {error}"
            with suppress(Exception):  # on a worker, nobody may be left to be told by an exception
                print(f"hybriddist: {self.failure}", file=sys.stderr)
            with suppress(OSError):
                inner.shutdown(socket.SHUT_RDWR)  # what was sent did not arrive: no answer is to be waited for
        except Exception:
            with suppress(OSError):
                inner.shutdown(socket.SHUT_RD)  # our transport's next send hears that nobody takes it
        finally:
            # The file's own close does not end a socket that the reader holds as well.
            for handle in self._handles:
                with suppress(OSError):
                    handle.shutdown(socket.SHUT_WR)
            if writer is not self._reader:
                self._close(writer)
            self._written.set()
            self._settle()

    def _settle(self) -> None:
        """The second of the two threads to come here lets go of the inner socket."""
        if self._written.is_set() and self._read.is_set():
            self._inner.close()

    def _end(self) -> None:
        self._written.wait(LAST_WRITE_SECONDS)
        self._read.wait(LINGER_SECONDS)
        self._force()

    def _force(self) -> None:
        for handle in self._handles:
            with suppress(OSError):
                handle.shutdown(socket.SHUT_RDWR)
            handle.close()
        for stream in (self._writer, self._reader):
            if not isinstance(stream, io.IOBase):
                self._close(stream)

    @staticmethod
    def _close(stream: Any) -> None:
        with suppress(Exception):  # it was to end, and it has ended
            stream.close()

    def _close_all(self) -> None:
        for handle in self._handles:
            handle.close()
        self._close(self._writer)
        self._close(self._reader)


class StreamPairTransport(StreamTransport):
    """A transport over a `StreamBridge`; see `Transport` for the promises.

    Args:
        bridge: its socket has been greeted on.
        scheme: what `path_to` calls it.
        allocate: makes the memory for a large received buffer.
    """

    def __init__(
        self, bridge: StreamBridge, *, scheme: str = "custom", allocate: Callable[[int], Any] = bytearray
    ) -> None:
        self._bridge = bridge
        self.streams = bridge.streams
        super().__init__(bridge.socket, scheme=scheme, allocate=allocate)

    def _receive_eof(self) -> NoReturn:
        if self._bridge.failure:
            raise TransportBroken(self._bridge.failure)
        super()._receive_eof()

    def close(self, timeout: float) -> None:
        super().close(timeout)
        self._bridge.wait_written(timeout)

    def abort(self) -> None:
        super().abort()
        self._bridge.end()


# ---- reading and writing --------------------------------------------------------------------------------------------


def _what_is_there(reader: Any) -> Callable[[], bytes] | None:
    """Reads what there is, at least one byte unless the stream has ended; None if this kind of stream cannot."""
    read1 = getattr(reader, "read1", None)
    if read1 is not None:
        return lambda: _waiting(reader, lambda: read1(CHUNK_BYTES))
    if isinstance(reader, io.RawIOBase):
        return lambda: _waiting(reader, lambda: reader.read(CHUNK_BYTES))
    return None


def _exactly(reader: Any, role: Role) -> Callable[[], bytes]:
    """Reads what must come next and not a byte more."""
    sizes = _sizes(role)
    wanted = next(sizes)

    def take() -> bytes:
        nonlocal wanted
        data = bytearray()
        while len(data) < wanted:
            piece = _waiting(reader, partial(reader.read, wanted - len(data)))
            if not piece:
                return bytes(data)
            data += piece
        wanted = sizes.send(bytes(data))
        return bytes(data)

    return take


def _sizes(role: Role) -> Generator[int, bytes, None]:
    """How many bytes the peer sends next: handshake, path, then frames. Is sent what came."""
    yield HELLO_BYTES
    yield PROOF_BYTES
    yield 1  # acceptor: the path; connector: the acceptance
    while True:
        header = yield HEADER_BYTES
        _, count, left = _BEGINNING.unpack_from(header)
        if count:
            table = yield count * ENTRY_BYTES
            left += sum(length for length, place in _ENTRY.iter_unpack(table) if not place)
        while left:
            size = min(left, CHUNK_BYTES)
            yield size
            left -= size


def _waiting(stream: Any, read: Callable[[], bytes | None]) -> bytes:
    """What ``read`` gives, also from a stream that says None where others block."""
    while (data := read()) is None:
        select.select([stream], [], [], _LOOK_SECONDS)
    return data


def _write(writer: Any, data: bytes) -> None:
    """Write all of it.

    Raises:
        _WrongCount: nobody knows what has been written.
    """
    raw = isinstance(writer, io.RawIOBase)
    left = memoryview(data) if raw else data  # a user's own may want bytes
    while left:
        count = writer.write(left)
        if isinstance(count, int) and not isinstance(count, bool):
            if not 0 < count <= len(left):
                raise _WrongCount(f"{type(writer).__name__}.write returned {count} for {len(left)} bytes")
            left = left[count:]
        elif raw:  # full, and set not to block
            select.select([], [writer], [], _LOOK_SECONDS)
        else:
            return  # it does not count, and has taken all


def _sockets_behind(*streams: Any) -> list[socket.socket]:
    """Sockets of our own to what is behind the streams, where that is sockets: to be shut down from any thread."""
    handles: list[socket.socket] = []
    for stream in streams:
        try:
            descriptor = stream.fileno()
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
        except (OSError, ValueError, AttributeError, TypeError):
            continue  # nothing of the operating system's
        handles.append(socket.socket(fileno=os.dup(descriptor)))
    return handles
