"""A process that we started: when and how it ended, and signals that never hit a stranger.

A `Child` is the handle that launching code hands to the cluster in ``WorkerConfig.process``. Whoever is the parent
in the eyes of the operating system knows two things that nobody else can: the wait status, and that the number is
still the child's own (a process that was not waited for keeps its number, also after death). So each kind of child
signals through its parent: `PopenChild` is waited for here; forked workers by the template that forked them
(``runtime/nursery.py``). What this module does not know: workers, connections, clusters.
"""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition, RLock, Thread
from typing import IO, TYPE_CHECKING, Any

from hybriddist.deadline import Deadline
from hybriddist.runtime.signals import leave_to_main_thread

if TYPE_CHECKING:
    from subprocess import Popen


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended; both ``None`` where nobody could tell."""

    exitcode: int | None = None
    signal: int | None = None

    @classmethod
    def from_wait(cls, status: int) -> ExitStatus:
        """From the status word of `os.waitpid`."""
        return cls.from_returncode(os.waitstatus_to_exitcode(status))

    @classmethod
    def from_returncode(cls, code: int) -> ExitStatus:
        """From `Popen.returncode`: negative for signals."""
        return cls(signal=-code) if code < 0 else cls(exitcode=code)

    def __str__(self) -> str:
        if self.exitcode is not None:
            return f"exit code {self.exitcode}"
        if self.signal is not None:
            try:
                return f"signal {signal.Signals(self.signal).name}"
            except ValueError:  # real-time signals have no name
                return f"signal {self.signal}"
        return "connection lost"


class Child(ABC):
    """A process that we started. All methods may be called from any thread.

    Attributes:
        ospid: the operating system's number of the process.
        stdin: the writing end of its leash, or ``None``. While it is open the worker stays.
    """

    def __init__(self, ospid: int, stdin: IO[bytes] | None) -> None:
        self.ospid = ospid
        self.stdin = stdin
        self._lock = RLock()  # taken as it is: see `Roster`
        self._changed = Condition(self._lock)
        self._status: ExitStatus | None = None
        self._callbacks: list[Callable[[ExitStatus], None]] = []

    @property
    def exit_status(self) -> ExitStatus | None:
        """How it ended; ``None`` while it runs."""
        return self._status

    def poll(self) -> ExitStatus | None:
        """The same as `exit_status`, in the words of `Popen`."""
        return self._status

    def wait(self, deadline: Deadline | None = None) -> ExitStatus | None:
        """Wait for the end. ``None`` if the deadline comes first."""
        with self._lock:
            while self._status is None:
                remaining = None if deadline is None else deadline.remaining()
                if remaining == 0 or not self._changed.wait(remaining):
                    break
            return self._status

    def on_exit(self, callback: Callable[[ExitStatus], None]) -> None:
        """Call ``callback(status)`` once when the process has ended; at once, here, if it has already.

        It runs on the thread that learned of the end, which serves other children too: it must be quick.
        """
        with self._lock:
            if self._status is None:
                self._callbacks.append(callback)
                return
            status = self._status
        callback(status)

    @abstractmethod
    def send_signal(self, number: int) -> bool:
        """Send a signal to this process and to no other. False if it has ended (or nobody can tell any more)."""

    def terminate(self) -> bool:
        """Ask by SIGTERM."""
        return self.send_signal(signal.SIGTERM)

    @abstractmethod
    def kill(self) -> bool:
        """End it by SIGKILL, and with it what it started in its own process group."""

    def release(self) -> None:
        """Let go of the leash: the worker leaves by itself. Idempotent."""
        stdin, self.stdin = self.stdin, None
        if stdin is not None:
            stdin.close()

    def _ended(self, status: ExitStatus) -> None:
        """Record the end, wake who waits, tell who asked. Only the first call counts."""
        with self._lock:
            if self._status is not None:
                return
            self._status = status
            callbacks, self._callbacks = self._callbacks, []
            self._changed.notify_all()
        for callback in callbacks:
            callback(status)


class PopenChild(Child):
    """A child started by `subprocess.Popen`, with a thread that waits for its end.

    Args:
        process: started with ``start_new_session=True`` and ``bufsize=0``; from now on nobody else waits for it.
    """

    def __init__(self, process: Popen[bytes]) -> None:
        super().__init__(process.pid, process.stdin)
        self._process = process
        self._asked_to_end = False
        Thread(target=self._watch, name=f"hybriddist-child-{process.pid}", daemon=True).start()

    def send_signal(self, number: int) -> bool:
        with self._lock:  # the number is the child's own until it is reaped, which happens under this lock
            if self._process.returncode is not None:
                return False
            self._asked_to_end |= number == signal.SIGTERM
            os.kill(self.ospid, number)
            return True

    def kill(self) -> bool:
        with self._lock:
            if self._process.returncode is not None:
                return False
            if not self._kill_group():
                os.kill(self.ospid, signal.SIGKILL)
            return True

    def _kill_group(self) -> bool:
        try:
            os.killpg(self.ospid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it left its group, or (macOS) is dead already
            return False
        return True

    def _watch(self) -> None:
        leave_to_main_thread()
        wait_without_reaping(self.ospid)
        with self._lock:
            if self._asked_to_end:
                # A command such as a shell ends of SIGTERM without what it waits for, which nobody would end then.
                self._kill_group()
            code = self._process.wait()
        self._ended(ExitStatus.from_returncode(code))


def wait_without_reaping(ospid: int) -> None:
    """Block until our child ``ospid`` has ended, and leave it to be reaped, so that its number stays its own."""
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, ospid, os.WEXITED | os.WNOWAIT)
        return
    import select  # macOS before Python 3.13

    kq: Any = select
    queue = kq.kqueue()
    try:
        queue.control([kq.kevent(ospid, kq.KQ_FILTER_PROC, kq.KQ_EV_ADD, kq.KQ_NOTE_EXIT)], 1, None)
    except ProcessLookupError:
        return  # it has ended already, and is still ours to reap
    finally:
        queue.close()
