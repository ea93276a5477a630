"""The driver's relay of what its workers print.

One thread reads the stdout and stderr pipes of all workers, cuts them into lines (``runtime/lines.py``) and hands
them, labelled with the worker's pid, to the printer (``runtime/printer.py``). While a worker starts, its lines go
through a hook first, which looks for the announcement::

    stdout ─┐                    ┌─> hook, while the worker starts
    stderr ─┼─> reading thread ──┼─> the last lines of stderr, kept for the exception that tells of its death
      ...  ─┘                    └─> printer ──> sys.stdout, sys.stderr

A stream that cannot be read (the same one twice, one that somebody has closed) has ended, for its worker alone.

What this module does not know: what an announcement looks like, processes and their ends, connections.
"""

from __future__ import annotations

import contextlib
import io
import os
import selectors
import socket
import stat
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import Event, Lock, Thread
from typing import Any, Final

from hybriddist.deadline import Deadline
from hybriddist.errors import InvalidStateException
from hybriddist.limits import STDERR_TAIL_LINES
from hybriddist.runtime.lines import LineSplitter, decode, label
from hybriddist.runtime.printer import Printer
from hybriddist.runtime.signals import leave_to_main_thread

_CHUNK_BYTES: Final = 65536

_PIPE_BYTES: Final = 1 << 20
"""The most that an unprivileged pipe holds: what was written before a drain began is not more."""

_TAIL_CHARACTERS: Final = 2000
"""Of one line kept for an exception."""

Hook = Callable[[str, str | None], bool]
"""``hook(stream, line)``, with the line ``None`` at the stream's end: whether it took the line for itself."""


class WorkerOutput:
    """What one worker prints. Made by `OutputRelay.attach`.

    Attributes:
        pid: the worker's pid once it is known; lines before that belong to its startup.
        hook: sees each line first, on the reading thread.
        tail_of: the stream whose last lines are kept, and in a worker's startup those of both.
    """

    def __init__(self) -> None:
        self.pid: int | None = None
        self.hook: Hook | None = None
        self.sources: list[_Source] = []
        self.tail: deque[str] = deque(maxlen=STDERR_TAIL_LINES)
        self.tail_of = "stdout"

    @property
    def ended(self) -> bool:
        """Whether all its streams have ended."""
        return not self.sources

    def stderr_tail(self) -> str:
        """Its last lines on stderr (on stdout, where the two are one)."""
        return "\n".join(self.tail)


class _Source:
    """One stream of one worker, as the reading thread sees it."""

    def __init__(self, output: WorkerOutput, stream: str, file: Any) -> None:
        self.output = output
        self.stream = stream
        self.file = file
        self.splitter = LineSplitter()


class OutputRelay:
    """Relay of all workers' output. Its threads start when there is something to do and end with `close`.

    All methods may be called from any thread.
    """

    def __init__(self, printer: Printer | None = None) -> None:
        self._printer = Printer() if printer is None else printer
        self._lock = Lock()
        self._outputs: dict[int, WorkerOutput] = {}
        self._selector: selectors.BaseSelector | None = None
        self._thread: Thread | None = None
        self._jobs: deque[tuple[WorkerOutput, Callable[[], Any]]] = deque()
        self._waker: socket.socket | None = None
        self._closed = False

    def attach(self, stdout: Any, stderr: Any = None, hook: Hook | None = None) -> WorkerOutput:
        """Relay these streams from now on. The relay owns them and closes them at their ends.

        Args:
            stdout: a binary file to read. An unbuffered one with a descriptor is read directly, any other by a
                thread of its own, because what it has read ahead cannot be waited for.
            stderr: the same, or ``None`` where it goes to stdout or elsewhere.
            hook: sees the lines first (see `WorkerOutput`).
        """
        output = WorkerOutput()
        output.hook = hook
        output.sources.append(_Source(output, "stdout", _readable(stdout)))
        if stderr is not None:
            output.tail_of = "stderr"
            output.sources.append(_Source(output, "stderr", _readable(stderr)))
        sources = list(output.sources)
        if not self._do(output, lambda: self._register(sources)):
            for source in sources:
                source.file.close()
            raise InvalidStateException("the output relay is closed")
        return output

    def assign(self, output: WorkerOutput, pid: int) -> None:
        """From the next line on, the output is that of worker ``pid``."""
        with self._lock:
            output.pid = pid
            self._outputs[pid] = output

    def stderr_tail(self, pid: int) -> str:
        """The last lines that worker ``pid`` wrote on stderr; empty for unknown workers."""
        with self._lock:
            output = self._outputs.get(pid)
        return "" if output is None else output.stderr_tail()

    def drain(self, target: int | WorkerOutput, timeout: float) -> bool:
        """Wait until what the worker has written up to now has been read and printed.

        Returns:
            False if ``timeout`` seconds were not enough (the driver's stdout is blocked).
        """
        deadline = Deadline(timeout)
        if isinstance(target, int):
            with self._lock:
                output = self._outputs.get(target)
        else:
            output = target
        if output is not None and not output.ended:
            read = Event()
            if self._do(output, lambda: self._drain(output, read)) and not read.wait(deadline.remaining()):
                return False
        return self._printer.mark().wait(deadline.remaining())

    def detach(self, target: int | WorkerOutput) -> None:
        """Forget a worker that is gone: what is in its pipes is still printed, then they are closed.

        Processes that it started may hold the other ends for ever, so their end is not waited for.
        """
        if isinstance(target, int):
            with self._lock:
                output = self._outputs.pop(target, None)
        else:
            output = target
            with self._lock:
                if output.pid is not None:
                    self._outputs.pop(output.pid, None)
        if output is not None and not output.ended:
            self._do(output, lambda: self._finish(output))

    def close(self, timeout: float = 1.0) -> None:
        """Print what is there, for at most ``timeout`` seconds, and end. Idempotent."""
        deadline = Deadline(timeout)
        with self._lock:
            already, self._closed = self._closed, True
        if already:
            return
        if self._thread is not None:
            self._wake()
            self._thread.join(deadline.remaining())
        self._printer.close(deadline.remaining() or 0.0)

    def say(self, output: WorkerOutput, line: str) -> None:
        """Print a line of our own among those of a worker."""
        self._printer.put("stdout", label(line, output.pid))

    # ---- the reading thread -------------------------------------------------------------------------------------

    def _do(self, output: WorkerOutput, job: Callable[[], None]) -> bool:
        """Have the reading thread do something: it alone touches the streams. False after `close`."""
        with self._lock:
            if self._closed:
                return False
            if self._thread is None:
                self._begin()  # before the job is there to be done: it may fail for want of descriptors
            self._jobs.append((output, job))
        self._wake()
        return True

    def _begin(self) -> None:
        selector = selectors.DefaultSelector()
        try:
            self._waker, woken = socket.socketpair()
        except OSError:
            selector.close()
            raise
        self._waker.setblocking(False)
        self._selector = selector
        thread = Thread(target=self._read, args=(selector, woken), name="hybriddist-output", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system allows no more threads
            for file in (selector, self._waker, woken):
                file.close()
            raise
        self._thread = thread

    def _wake(self) -> None:
        assert self._waker is not None  # made with the thread
        with contextlib.suppress(OSError):  # full of wakes: it will wake; closed: it has ended
            self._waker.send(b"x")

    def _read(self, selector: selectors.BaseSelector, woken: socket.socket) -> None:
        leave_to_main_thread()
        with selector, woken:
            selector.register(woken, selectors.EVENT_READ, None)
            while not (self._closed and not self._jobs):
                for key, _ in selector.select():
                    if key.data is None:
                        woken.recv(4096)
                    elif key.data in key.data.output.sources:  # not dropped a moment ago
                        self._guard(key.data.output, partial(self._take, key.data))
                while self._jobs:
                    self._guard(*self._jobs.popleft())
            for output in {key.data.output for key in selector.get_map().values() if key.data is not None}:
                self._guard(output, partial(self._finish, output))
        assert self._waker is not None
        self._waker.close()

    def _guard(self, output: WorkerOutput, job: Callable[[], Any]) -> None:
        try:
            job()
        except Exception:
            # A bug of ours. It may cost this worker's output, but not the thread that reads that of all.
            import traceback

            print("hybriddist: internal error while relaying output", file=sys.stderr)
            traceback.print_exc()
            for source in list(output.sources):
                with contextlib.suppress(Exception):
                    self._drop(source)

    def _register(self, sources: list[_Source]) -> None:
        assert self._selector is not None  # jobs run on the thread that made it
        for source in sources:
            try:
                stale = self._selector.get_map().get(source.file)
                if stale is not None and stale.data.file is not source.file and stale.data.file.closed:
                    self._drop(stale.data)  # closed by its manager, and the system has given its number to this one
                self._selector.register(source.file, selectors.EVENT_READ, source)
            except (KeyError, ValueError, OSError):  # read already; closed; nothing that can be polled
                self._drop(source)

    def _take(self, source: _Source) -> int:
        """Read once; the number of bytes. At the end, say so and let go of the stream."""
        try:
            data = os.read(source.file.fileno(), _CHUNK_BYTES)
        except (OSError, ValueError):
            data = b""  # a socket that was reset, a file that somebody has closed: its end as well
        for line in source.splitter.feed(data) if data else source.splitter.finish():
            self._line(source, decode(line))
        if not data:
            self._drop(source)
        return len(data)

    def _line(self, source: _Source, line: str) -> None:
        output = source.output
        if output.hook is not None and output.hook(source.stream, line):
            return
        if source.stream == output.tail_of or output.pid is None:
            output.tail.append(line[:_TAIL_CHARACTERS])
        self._printer.put(source.stream, label(line, output.pid))

    def _drop(self, source: _Source) -> None:
        assert self._selector is not None
        holder = source
        with contextlib.suppress(KeyError, ValueError):  # it could not be registered
            holder = self._selector.get_key(source.file).data
            if holder is source:
                self._selector.unregister(source.file)
        if holder is source:  # else the file is another one's, who reads on
            with contextlib.suppress(OSError):
                source.file.close()
        source.output.sources.remove(source)
        if source.output.hook is not None:
            source.output.hook(source.stream, None)

    def _drain(self, output: WorkerOutput, read: Event) -> None:
        assert self._selector is not None
        try:
            budget = {source: _PIPE_BYTES for source in output.sources}
            while budget:
                # Other streams that are ready keep their turn in the loop.
                ready = {key.data for key, _ in self._selector.select(0)} & budget.keys()
                if not ready:
                    return
                for source in ready:
                    count = self._take(source)
                    budget[source] -= count
                    if count == 0 or budget[source] <= 0:
                        del budget[source]
        finally:
            read.set()

    def _finish(self, output: WorkerOutput) -> None:
        self._drain(output, Event())
        for source in list(output.sources):
            for line in source.splitter.finish():
                self._line(source, decode(line))
            self._drop(source)


def _readable(file: Any) -> Any:
    """A file whose descriptor tells truly whether there is something to read."""
    if isinstance(file, io.FileIO | socket.SocketIO):
        with contextlib.suppress(OSError):
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                return file
    reading, writing = os.pipe()
    Thread(target=_pump, args=(file, writing), name="hybriddist-pump", daemon=True).start()
    return open(reading, "rb", buffering=0)


def _pump(file: Any, fd: int) -> None:
    """Copy a stream into a pipe, until the one ends or the other is closed."""
    read = getattr(file, "read1", None)
    try:
        while True:
            data = read(_CHUNK_BYTES) if read is not None else file.readline()
            if not data:
                return
            while data:
                data = data[os.write(fd, data) :]
    except (OSError, ValueError):
        return  # broken on either side, or closed under us: the end in each case
    finally:
        os.close(fd)
        file.close()
