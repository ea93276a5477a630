"""The driver's side of the template process: ask it for workers, hear of their ends.

A `Nursery` starts one template process (``runtime/template.py``) and keeps it for later calls. One daemon thread reads
its answers. The nursery is owned by whoever made it; there is no list of nurseries here. When the template dies, its
workers go on; they can still be watched and signalled through the descriptors that stand for them (on Linux), only how
they ended can no longer be known.

What the template prints (site code may) goes through the relay of the workers' output, as a worker's startup.

What this module does not know: which template fits which worker (``managers/local.py`` keeps them by key), how output
is read, connections, the cookie.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from threading import Condition, Lock, Thread
from typing import IO, Any, Final

from hybriddist.deadline import Deadline
from hybriddist.errors import InvalidStateException, LaunchError, LaunchTimeout, with_advice
from hybriddist.runtime import control
from hybriddist.runtime.child import Child, ExitStatus
from hybriddist.runtime.options import WorkerOptions
from hybriddist.runtime.output import OutputRelay, WorkerOutput
from hybriddist.runtime.signals import leave_to_main_thread

_COMMAND: Final = (
    "import gc, sys; gc.disable(); sys.path[:] = sys.argv[4:]; "
    "from hybriddist.runtime.template import main; main(int(sys.argv[1]), *sys.argv[2:4])"
)
"""No collections while it imports, which take a twentieth of that time. ``sys.path`` first: not even the standard
library is looked up in the current directory."""

DEFAULT_RUNNER: Final = "hybriddist.runtime.worker:run"

_END_SECONDS: Final = 3.0
"""From the end of the control socket to the template's own end: its grace for workers, and some."""

_LAST_LINES_SECONDS: Final = 0.5
"""After its end: for the last lines that it wrote."""


class TemplateDied(LaunchError):
    """The template process ended before it answered. If it had forked a worker, that one leaves with its leash."""


class NurseryChild(Child):
    """A worker that the template forked."""

    def __init__(self, nursery: Nursery, ospid: int, pidfd: int, stdin: IO[bytes] | None) -> None:
        super().__init__(ospid, stdin)
        self._nursery = nursery
        self._pidfd = pidfd

    def send_signal(self, number: int) -> bool:
        return self._send(number, group=False)

    def kill(self) -> bool:
        return self._send(signal.SIGKILL, group=True)

    def _send(self, number: int, *, group: bool) -> bool:
        # At once where the system allows it: an interrupt that goes round by the template may strike the next call.
        return (
            (not group and self._send_here(number))
            or (self._status is None and self._nursery.signal(self.ospid, number, group=group))
            or self._send_here(number)
        )

    def _send_here(self, number: int) -> bool:
        with self._lock:  # the descriptor is closed under this lock
            if self._status is not None or self._pidfd < 0:
                return False
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                return False
            return True

    def _ended(self, status: ExitStatus) -> None:
        super()._ended(status)
        with self._lock:
            pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)


class Birth:
    """A worker that the template has been asked for. `Nursery.ask` makes it."""

    def __init__(self, nursery: Nursery, number: int, leash: IO[bytes] | None) -> None:
        self._nursery = nursery
        self.number = number
        self.leash = leash
        self.child: NurseryChild | None = None
        self.error: LaunchError | None = None

    def wait(self, deadline: Deadline) -> NurseryChild:
        """Wait until it is there.

        Args:
            deadline: for the template's answer, its own start included.

        Raises:
            TemplateDied: the template ended before it answered.
            LaunchError: the fork failed.
            LaunchTimeout: no answer in time.
        """
        return self._nursery.wait_for(self, deadline)

    def give_up(self) -> None:
        """Nobody wants it any more. When its leash is closed, which is the caller's to do, it leaves."""
        self._nursery.forget(self)
        if self.child is not None:
            self.child.release()


class Nursery:
    """A template process and the thread that hears it. All methods may be called from any thread.

    Args:
        executable: the interpreter.
        flags: its options, such as ``["-O"]``.
        env: the whole environment of the template; a worker's differences from it belong into its options.
        sys_path: where the template looks for its modules; absolute.
        relay: shows what the template prints, and keeps its last lines for the error that tells of its end.
        runner: "module:function" that the copies run; tests put their own here.
        folder: where the workers' sockets will be; the template removes it when the driver is gone.

    Raises:
        LaunchError: the interpreter cannot be started.
    """

    def __init__(
        self,
        executable: str,
        flags: Sequence[str],
        env: Mapping[str, str],
        sys_path: Sequence[str],
        relay: OutputRelay,
        runner: str = DEFAULT_RUNNER,
        folder: str | None = None,
    ) -> None:
        self.env = dict(env)
        self._changed = Condition(Lock())
        self._sending = Lock()
        self._requests: dict[int, Birth] = {}
        self._children: dict[int, NurseryChild] = {}
        self._last_id = 0
        self._alive = True
        self._relay = relay
        self._sock, theirs = socket.socketpair()
        if theirs.fileno() <= 2:  # where this process has closed its own stdout, say: the template has one
            with theirs as low:
                theirs = socket.socket(fileno=fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3))
        with theirs:
            try:
                arguments = [str(theirs.fileno()), runner, folder or "", *sys_path]
                self._process = self._spawn([executable, *flags, "-c", _COMMAND, *arguments], theirs)
                self._output = self._attach()
            except (OSError, InvalidStateException) as error:
                self._sock.close()
                raise LaunchError(f"the interpreter {executable!r} cannot be started: {with_advice(error)}") from error
        self.ospid = self._process.pid
        self._thread = Thread(target=self._hear, name="hybriddist-nursery", daemon=True)
        self._thread.start()

    def _spawn(self, command: list[str], theirs: socket.socket) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            env=self.env,
            cwd="/",  # so that it does not hold a directory that somebody may want to unmount
            start_new_session=True,
            bufsize=0,
        )

    def _attach(self) -> WorkerOutput:
        process = self._process
        try:
            return self._relay.attach(process.stdout, process.stderr)
        except BaseException:  # no descriptors are left, or the cluster is being shut down
            with process:  # waited for, its pipes closed
                process.kill()
            raise

    @property
    def alive(self) -> bool:
        """Whether it can be asked for workers."""
        return self._alive

    def ask(self, options: WorkerOptions, descriptors: tuple[int, int, int], leash: IO[bytes] | None) -> Birth:
        """Ask for a worker. Several may be asked for before the first is there.

        Args:
            options: the worker's options.
            descriptors: its stdin, stdout and stderr; they may be closed here afterwards.
            leash: the driver's end of its stdin, which the child's handle owns as soon as there is one.

        Raises:
            TemplateDied: the template has ended.
        """
        with self._changed:
            self._last_id += 1
            birth = self._requests[self._last_id] = Birth(self, self._last_id, leash)
        try:
            with self._sending:
                start = {"do": "start", "id": birth.number, "options": options.values()}
                control.send(self._sock, start, descriptors)
        except OSError as error:
            with self._changed:
                self._requests.pop(birth.number, None)
                self._changed.wait_for(lambda: not self._alive, _END_SECONDS)  # for its exit status and last lines
            raise self._death() from error
        return birth

    def wait_for(self, birth: Birth, deadline: Deadline) -> NurseryChild:
        """See `Birth.wait`."""
        with self._changed:
            while birth.child is None and birth.error is None:
                remaining = deadline.remaining()
                if remaining == 0:
                    self._requests.pop(birth.number, None)
                    raise LaunchTimeout("the template process did not answer in time", stderr_tail=self._tail())
                self._changed.wait(remaining)
        if birth.error is not None:
            raise birth.error
        assert birth.child is not None  # the loop's condition
        return birth.child

    def forget(self, birth: Birth) -> None:
        """Give its child to nobody, if it comes."""
        with self._changed:
            self._requests.pop(birth.number, None)

    def signal(self, ospid: int, number: int, *, group: bool) -> bool:
        """Have the template signal one of its children. False if the template is gone."""
        if not self._alive:
            return False
        try:
            with self._sending:
                control.send(self._sock, {"do": "signal", "ospid": ospid, "signal": int(number), "group": group})
        except OSError:
            return False
        return True

    def close(self, timeout: float = _END_SECONDS) -> None:
        """Let the template go, and with it, after a second's grace, every worker that is still there. Idempotent."""
        if self._alive:
            with contextlib.suppress(OSError):  # it went by itself; the thread is about to see that
                self._sock.shutdown(socket.SHUT_WR)
        self._thread.join(timeout)

    def let_go(self) -> None:
        """In a forked copy of this process: leave the template to the original, whose end it must notice."""
        self._alive = False
        self._sock.close()

    # ---- the thread that hears ----------------------------------------------------------------------------------

    def _hear(self) -> None:
        leave_to_main_thread()
        while (received := control.receive(self._sock)) is not None:
            self._understand(*received)
        self._template_ended()
        self._watch_orphans()

    def _understand(self, answer: dict[str, Any], descriptors: list[int]) -> None:
        kind = answer["is"]
        if kind == "exited":
            child = self._children.pop(answer["ospid"], None)
            if child is not None:
                child._ended(ExitStatus.from_wait(answer["status"]))
            return
        with self._changed:
            request = self._requests.pop(answer["id"], None)
            if kind == "started":
                leash = request.leash if request is not None else None
                child = NurseryChild(self, answer["ospid"], descriptors[0] if descriptors else -1, leash)
                self._children[child.ospid] = child
                if request is not None:
                    request.child = child
                # else: the caller has given up; it closes the leash, and the worker leaves
            elif request is not None:
                request.error = LaunchError(f"no worker could be forked: {os.strerror(answer['errno'])}")
            self._changed.notify_all()

    def _template_ended(self) -> None:
        """The control socket has ended: reap the template, fail what was asked of it."""
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._relay.detach(self._output)  # a process that it started may hold the other ends for ever
        self._relay.drain(self._output, _LAST_LINES_SECONDS)  # so that all errors have the same last lines
        with self._sending:  # nobody sends on a number that may soon be another file's
            self._alive = False
            self._sock.close()
        with self._changed:
            for request in self._requests.values():
                request.error = self._death()
            self._requests.clear()
            self._changed.notify_all()

    def _watch_orphans(self) -> None:
        """Wait for the ends of workers that have lost their parent; how they ended nobody knows."""
        watched: dict[int, NurseryChild] = {}
        poller = select.poll()
        for child in self._children.values():
            if child._pidfd >= 0:
                watched[child._pidfd] = child
                poller.register(child._pidfd, select.POLLIN)
            else:
                child._ended(ExitStatus())
        self._children.clear()
        while watched:
            for pidfd, _ in poller.poll():
                poller.unregister(pidfd)
                watched.pop(pidfd)._ended(ExitStatus())

    def _death(self) -> TemplateDied:
        code = self._process.returncode
        status = "" if code is None else f": {ExitStatus.from_returncode(code)}"
        return TemplateDied(f"the template process ended{status}", stderr_tail=self._tail())

    def _tail(self) -> str:
        return self._output.stderr_tail()
