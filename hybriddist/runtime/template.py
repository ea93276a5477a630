"""The template process: warm, single-threaded, and good for one thing, to be forked into workers.

Started once per node and kind of interpreter by ``runtime/nursery.py``, it imports what every worker needs and then
waits. A fork of it is a worker in a millisecond or two, where a fresh interpreter needs a tenth of a second::

    driver ── control socket ──> template ── fork ──> worker   (own session; stdin, stdout, stderr from the driver)
                                          └─ fork ──> worker
       <── started, exited ──

It stays single-threaded because a forked copy of a multi-threaded process holds locks that nobody will release; so
numpy, whose libraries start threads, is not imported here. It is the workers' parent: it alone learns their wait
status, and it alone can signal them without hitting a stranger, since it has not waited for them yet.

When the control socket ends, the driver has gone. The workers notice by their own leash and leave; the template looks
on for a second and ends by force those which could not (a call in C may hold the interpreter's lock for ever).

What this module does not know: the cookie (it passes through the worker's stdin, unread), and what a worker does.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

from hybriddist.core import handshake
from hybriddist.records import Record
from hybriddist.runtime import control, folders
from hybriddist.runtime.options import WorkerOptions
from hybriddist.shm import segment

RUNNER: Final = "hybriddist.runtime.worker:run"
"""Module and function that a forked worker runs, with its options."""

_COLD_BIRTHS: Final = 2
_IDLE_MILLISECONDS: Final = 100
"""When the template imports what can wait: before the third worker, or when it has had nothing to do for so long."""

GRACE_SECONDS: Final = 1.0
"""After the driver's end, before workers that are still there are killed; their own leash needs milliseconds."""


class _Birth(Record):
    """What the copy that has just been forked needs in order to become a worker."""

    options: dict[str, Any]
    descriptors: list[int]


def main(fd: int, runner: str = RUNNER, folder: str = "") -> NoReturn:
    """Serve as the template of the driver at the other end of socket ``fd``; in the copies: be a worker.

    Args:
        fd: the inherited end of the control socket.
        runner: "module:function" called in each copy with the `WorkerOptions`; tests put their own here.
        folder: where the workers' sockets are; to be removed when the driver is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver
    gc.disable()
    run = _preload(runner)
    _flush()  # what site code has printed is the template's own; each copy would print it again
    birth = _Template(socket.socket(fileno=fd), folder).serve()
    if birth is None:
        os._exit(0)
    # The copy gets here with the template's frames unwound and its descriptors closed.
    _become_worker(birth, run)


def _preload(runner: str) -> Callable[[WorkerOptions], Any]:
    """What every worker needs; a worker's own imports would be paid by each."""
    module, _, name = runner.partition(":")
    run: Callable[[WorkerOptions], Any] = getattr(importlib.import_module(module), name)
    for needed in ("hybriddist.net.transport", "hybriddist.shm.rendezvous"):
        importlib.import_module(needed)
    gc.freeze()  # what is here now is never traversed again: the pages stay shared with the workers
    return run


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # the driver is gone; site code has replaced it
            stream.flush()


class _Template:
    """The loop of the template process.

    Args:
        sock: the control socket.
        folder: where the workers' sockets are.
    """

    def __init__(self, sock: socket.socket, folder: str) -> None:
        self._sock = sock
        self._folder = folder
        self._children: dict[int, str | None] = {}  # ospid: the worker's socket file
        self._births = 0
        self._warm = False
        # SIGCHLD writes a byte here. A plain select could miss a signal that comes just before it blocks.
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def serve(self) -> _Birth | None:
        """Obey until the driver is gone (``None``), or until this process is a copy (its birth)."""
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        poller.register(self._woken, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll(None if self._warm else _IDLE_MILLISECONDS)}
            if not ready:
                self._warm_up()
            if self._woken in ready:
                self._reap()
            if self._sock.fileno() in ready:
                received = control.receive(self._sock)
                if received is None:
                    self._see_them_leave()
                    return None
                request, descriptors = received
                if request["do"] == "start":
                    birth = self._start(request, descriptors)
                    if birth is not None:
                        return birth
                elif request["do"] == "signal":
                    self._signal(request["ospid"], request["signal"], request["group"])

    def _warm_up(self) -> None:
        """Import what most workers need at their first call, but the first two need not wait for: it takes 20 ms."""
        self._warm = True
        handshake.prepare()
        for wanted in ("cloudpickle", "hybriddist.future", "hybriddist.loops"):
            importlib.import_module(wanted)
        segment.prepare()
        gc.collect()  # 4 ms; the first two workers did not wait for it either
        gc.freeze()

    def _start(self, request: dict[str, Any], descriptors: list[int]) -> _Birth | None:
        self._births += 1
        if self._births > _COLD_BIRTHS and not self._warm:
            self._warm_up()
        try:
            ospid = os.fork()
        except OSError as error:  # EAGAIN: no more processes allowed; the driver makes a LaunchError of it
            for fd in descriptors:
                os.close(fd)
            self._answer({"is": "failed", "id": request["id"], "errno": error.errno})
            return None
        if ospid == 0:
            self._forget_template()
            return _Birth(request["options"], descriptors)
        for fd in descriptors:
            os.close(fd)
        self._children[ospid] = request["options"].get("unix_path")
        # A descriptor that stands for the process, made before anybody could wait for it: with it the driver can
        # watch and signal the worker also after the template's death.
        pidfd = -1
        with contextlib.suppress(OSError, AttributeError):  # Linux alone has it, and there too it may be forbidden
            pidfd = os.pidfd_open(ospid)
        self._answer({"is": "started", "id": request["id"], "ospid": ospid}, [pidfd] if pidfd >= 0 else [])
        if pidfd >= 0:
            os.close(pidfd)
        return None

    def _forget_template(self) -> None:
        """In the copy: close what is the template's, restore what it changed."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._sock.close()
        os.close(self._woken)
        os.close(self._wake)
        self._children.clear()
        gc.enable()

    def _signal(self, ospid: int, number: int, group: bool) -> None:
        if ospid not in self._children:
            return  # waited for already: the number may be a stranger's by now
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(ospid, number)
                return
        with contextlib.suppress(ProcessLookupError):  # no group yet: killed before its setsid
            os.kill(ospid, number)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 4096)
        while True:
            try:
                ospid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if ospid == 0:
                return
            unix_path = self._children.pop(ospid, None)
            if unix_path is not None:
                folders.clean_up(unix_path)
            self._answer({"is": "exited", "ospid": ospid, "status": status})

    def _answer(self, value: dict[str, Any], descriptors: list[int] | None = None) -> None:
        with contextlib.suppress(OSError):  # the driver is gone: the loop sees the end of the socket next
            control.send(self._sock, value, descriptors or ())

    def _see_them_leave(self) -> None:
        self._reap_for(GRACE_SECONDS)
        for ospid in self._children:
            self._signal(ospid, signal.SIGKILL, group=True)
        self._reap_for(GRACE_SECONDS)
        if self._folder:
            folders.leave_folder(self._folder)
        segment.sweep()  # what was being handed over at that moment, and had a name still

    def _reap_for(self, seconds: float) -> None:
        """Wait for the ends of all children, at most so long."""
        poller = select.poll()
        poller.register(self._woken, select.POLLIN)
        end = time.monotonic() + seconds
        self._reap()
        while self._children and (left := end - time.monotonic()) > 0:
            poller.poll(left * 1000 + 1)
            self._reap()


def _become_worker(birth: _Birth, run: Callable[[WorkerOptions], Any]) -> NoReturn:
    """Turn the copy into what a fresh interpreter would be, and run the worker in it.

    It ends as that interpreter would: by `SystemExit`, or by an error with a traceback on stderr, through the usual
    finalisation with its exit functions.
    """
    os.setsid()  # a terminal's Ctrl-C reaches only the driver; a stuck worker can be ended with all it started
    for target, fd in enumerate(birth.descriptors):
        os.dup2(fd, target, inheritable=True)
        os.close(fd)
    options = WorkerOptions(**birth.options)
    _renew_streams(stderr_to_stdout=options.stderr_to_stdout)
    _clean_main()
    options.apply()
    # `random` reseeds itself in a forked copy, and `threading` makes this thread the main thread.
    run(options)
    sys.exit(0)


def _renew_streams(*, stderr_to_stdout: bool) -> None:
    """New stream objects: the old ones were made for the template's."""
    if stderr_to_stdout:
        os.dup2(1, 2, inheritable=True)
    sys.stdin = sys.__stdin__ = open(0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    for fd, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        raw = open(fd, "wb", closefd=False)  # noqa: SIM115 - lives as long as the process
        # By lines, as on a terminal: the driver passes lines on as they come.
        new = io.TextIOWrapper(raw, encoding=old.encoding, errors=old.errors, line_buffering=True)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def _clean_main() -> None:
    """Leave nothing of the template's own start in ``__main__``, which is the users' in a worker."""
    main: Any = sys.modules["__main__"]
    for name in vars(main).keys() - {"__builtins__", "__name__", "__loader__"}:
        delattr(main, name)
    main.__doc__ = main.__spec__ = main.__package__ = None
    sys.argv[:] = [""]
