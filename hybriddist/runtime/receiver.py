"""Who receives when no caller does: the receiver thread, and in a worker the main thread with its standby.

*Driver* (and processes inside another interpreter): one thread sleeps in `Poller.poll` for ever, drains what is
ready, and sees that queued calls are run by executor threads.

*Worker*: the main thread is receiver and executor in one, because a hand-off between threads costs as much as the
whole way through shared memory, and because signals and interrupts reach only the main thread::

    main thread     look (50 µs) ─► run call ─► look ─► run call ──────────────► look ─► block in poll
    standby thread       ·   tick        tick (still the same call: take over) ──┤ hands back
                                              └ poll, receive, executor threads ─┘

The standby ticks every 1.5 ms while the process is busy and sleeps without a timer once it has been idle for a while.
When the main thread is about to block inside a call, it hands over at once instead of waiting for a tick.
"""

from __future__ import annotations

import sys
import threading
from _thread import allocate_lock
from time import monotonic
from typing import TYPE_CHECKING

from hybriddist import limits
from hybriddist.errors import HybridDistError, InternalError
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.poller import Source

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process
    from hybriddist.runtime.running import Each, Errand

_IDLE_TICKS = 40
"""Ticks (of 1.5 ms) without work after which the standby thread sleeps until it is woken."""


class Receiver:
    """The thread that receives for one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._poller = process.poller
        self._executor = process.executor
        self._role = allocate_lock()
        self._closed = False
        self._unattended: dict[Peer, int] = {}
        """Peers whose doorbell nobody has asked for, since a caller looked a moment ago; with its count of looks."""
        self._ticking = False
        self._thread: threading.Thread | None = None
        # The worker's main thread:
        self._main: int | None = None
        self._running = False
        self._serial = 0
        self.progress = 0
        """Counts the calls of messages with several that the main thread has done; with `_serial` it tells whether all
        goes on."""
        self.batches: dict[Each, tuple[int, float]] = {}
        """The messages with several calls that one thread is at: how many were left when, since nobody saw it move."""
        self.errand: Errand | None = None
        """The call that the main thread is at."""
        self._blocking = False
        self._standing_in = False
        self._stands_since = 0.0
        self._bell = allocate_lock()
        self._bell.acquire()
        self._standby_sleeps = False
        self.hot: Peer | None = None
        """The peer that sent last: the one worth looking at before blocking."""

    def keep_an_eye_on(self, peer: Peer) -> None:
        """A caller has stopped looking at ``peer`` for the moment, without asking for the doorbell."""
        if self._main is not None:
            peer.rest()  # a worker's threads come and go: there is no thread to keep an eye on anything
        elif peer not in self._unattended:
            self._unattended[peer] = peer.looks
            if not self._ticking:
                self._poller.wake()

    def attend(self) -> None:
        """Somebody is about to block: ask for all doorbells."""
        for peer in list(self._unattended):
            self._unattended.pop(peer, None)
            peer.rest()

    def _look_after(self) -> None:
        """Ask for the doorbell of every peer that nobody has looked at since the last tick."""
        for peer, looks in list(self._unattended.items()):
            if peer.looks != looks:
                self._unattended[peer] = peer.looks
            elif peer.recv_lock.acquire(False):
                peer.recv_lock.release()  # nobody looks at this moment
                self._unattended.pop(peer, None)
                peer.rest()

    # ---- the dedicated thread ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Receive on a thread of its own."""
        self._start_thread(self._run_dedicated, "hybriddist-receiver")

    @property
    def started(self) -> bool:
        """Whether some thread receives."""
        return self._thread is not None

    def _run_dedicated(self) -> None:
        while not self._closed:
            self._step()

    def _step(self) -> None:
        """Wait once for something and handle it; the caller is the one that polls."""
        process, executor = self._process, self._executor
        timeout = _tick(process)
        self._ticking = False  # before the look: who leaves a peer unattended after it sees this, and wakes us
        if self._unattended or self.batches or executor.wants_threads():
            self._ticking = True
            timeout = limits.STANDBY_SECONDS
        elif executor.queue:
            timeout = _PATIENCE_SECONDS  # to look more often takes the interpreter from what computes
        for source in self._poller.poll(timeout):
            _attend(source)
        if self.batches:
            self._relieve()
        if executor.wants_threads():
            executor.kick()
        process.housekeep()
        if self._unattended:
            self._look_after()

    def _relieve(self) -> None:
        """Let other threads at what is left of messages in which one call holds up the next."""
        now = monotonic()
        for each, (left, since) in list(self.batches.items()):
            if each.left() != left:
                self.batches[each] = each.left(), now
            elif now - since > limits.STANDBY_SECONDS:
                each.share()

    # ---- the worker's main thread -----------------------------------------------------------------------------

    def serve(self) -> None:  # shielded
        """Be a worker's main thread: receive and run calls, until `close`."""
        self._main = threading.get_ident()
        self._start_thread(self._stand_by, "hybriddist-standby")
        process, executor = self._process, self._executor
        queue, spin = executor.queue, process.spin_policy
        while not self._closed:
            while queue:
                try:
                    work = queue.popleft()
                except IndexError:
                    break
                self._serial += 1
                self._running = True
                executor.run(work)
                del work  # a call's arguments live no longer than the call
                self._running = False
                if self._standing_in:
                    self._poller.wake()  # the standby hands back
            hot = self.hot
            if hot is not None and hot.lost is None:
                seconds = spin.seconds()
                if seconds:
                    came = hot.look(seconds)
                    spin.tell(came)
                    if came or queue:
                        continue
                hot.rest()
            if queue:
                continue
            self.hot = None
            self._rest()

    def _rest(self) -> None:
        """Block until something is ready. The standby needs no clock meanwhile."""
        process = self._process
        timeout = _tick(process)
        with self._role:
            if self._closed or self._executor.queue:  # the standby may have queued calls before it handed back
                return
            threads = self._executor.wants_threads()
            if self.batches or threads:  # another thread is at one, or cannot be started yet
                timeout = limits.STANDBY_SECONDS
            ready = self._poller.poll(timeout)
        if threads:
            self._executor.kick()
        self._serial += 1
        if self._standby_sleeps:
            self._standby_sleeps = False
            self._ring()
        for source in ready:
            _attend(source)
            if isinstance(source, Peer):
                self.hot = source
        if self.batches:
            self._relieve()
        process.housekeep()

    def about_to_block(self) -> None:  # shielded: to ask for a doorbell may be to hand out what has come meanwhile
        """A thread is going to wait for another process: see that somebody receives and runs what is queued."""
        if self._unattended:
            self.attend()
        if threading.get_ident() == self._main and self._running:
            self._blocking = True
            self._ring()
        elif self._executor.wants_threads():
            self._executor.kick()

    def about_to_end(self) -> None:
        """This thread is going to send the end of its call, which may be answered at once by the next call.

        If that is still received by the standby, the main thread must count as free by then: otherwise the next call
        would be given to another thread (1-2 % in a loop of calls of some milliseconds), where a Ctrl-C does not reach
        what blocks.
        """
        if threading.get_ident() == self._main:
            self._running = False

    def held_up(self) -> None:
        """This thread has to wait before it can send the end of its call."""
        if threading.get_ident() == self._main:
            self._running = True

    def queued(self) -> None:
        """Calls were queued by this thread. The worker's main thread runs them itself, unless it is in a call."""
        if self.others_are_needed():
            self._executor.kick()
        elif threading.get_ident() != self._main:
            self._poller.wake()

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:
            pass  # rung already

    def _stand_by(self) -> None:
        seen = (-1, 0)
        idle = 0
        while not self._closed:
            if idle >= _IDLE_TICKS:
                self._standby_sleeps = True
                if (self._serial, self.progress) == seen and not self._running:
                    self._bell.acquire()
                self._standby_sleeps = False
                idle = 0
            else:
                self._bell.acquire(timeout=limits.STANDBY_SECONDS)
            serial = self._serial
            now = (serial, self.progress)
            if self._running:
                idle = 0
                if now == seen or self._blocking:
                    self._stand_in(serial)
            elif now == seen:
                idle += 1
            else:
                idle = 0
            seen = now

    def others_are_needed(self) -> bool:
        """Whether what is queued is to be run by other threads than the worker's main thread."""
        if self._main is None:
            return True
        if not self._running:
            return False
        # Two threads that compute take turns with the interpreter: neither is sooner for it, and turns cost switches.
        patient = self._standing_in and not self._blocking and monotonic() - self._stands_since < _PATIENCE_SECONDS
        return not (patient and all([getattr(work, "is_patient", False) for work in list(self._executor.queue)]))

    def _stand_in(self, serial: int) -> None:
        """Receive while the main thread is in the call it was in."""
        self._stands_since = monotonic()
        self._standing_in = True
        try:
            with self._role:
                hot = self.hot
                if hot is not None:
                    hot.rest()
                while self._running and self._serial == serial and not self._closed:
                    if self._executor.wants_threads():
                        self._executor.kick()
                    self._step()
        finally:
            self._standing_in = False
            self._blocking = False

    # ---- both -------------------------------------------------------------------------------------------------

    def is_main(self) -> bool:
        """Whether this is the worker's main thread, which takes calls one after the other."""
        return threading.get_ident() == self._main

    def main_is_running(self) -> bool:
        """Whether a call runs on the worker's main thread."""
        return self._running

    def close(self, timeout: float = 2.0) -> None:
        """Stop receiving. Waits for the thread, unless called on it."""
        self._closed = True
        self._ring()
        self._poller.wake()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _start_thread(self, target: object, name: str) -> None:
        self._poller.open()  # before anybody can have a reason to wake it
        self._thread = threading.Thread(target=self._process.in_context(target), name=name, daemon=True)  # type: ignore[arg-type]
        self._thread.start()


def _attend(source: Source) -> None:
    try:
        source.on_ready()
    except Exception:
        # A bug of ours. It may cost this connection, but not the thread that receives for all of them.
        import traceback  # 3 ms of a worker's start

        print("hybriddist: internal error while receiving", file=sys.stderr)
        traceback.print_exc()
        if isinstance(source, Peer):
            source.lose(InternalError("internal error while receiving"))


class SpinPolicy:
    """How long to poll before blocking: not at all with one CPU, and hardly ever when it has not paid lately.

    With more runnable processes than CPUs a spinning one takes the CPU from the one it waits for (a long spin made
    the 99th percentile 2 ms), so after a few failures in a row only every 16th wait tries again. That try is longer:
    when both sides have given up spinning, an answer takes two blocked wake-ups (about 80 µs), and no short spin would
    ever find out that a spinning pair needs 10.

    When such a try pays, the tries stay long: the other side may be at something that a short one never outlasts, such
    as the copy of a megabyte. Two failures in a row end that, at once and not after several short ones more::

        short ── 8 failures ──► seldom, and long ── one pays ──► long
                                  ▲                               │
                                  └───────── 2 failures ──────────┘
    """

    __slots__ = ("_failures", "_long", "_seconds")

    def __init__(self, cpus: int, seconds: float = limits.SPIN_SECONDS) -> None:
        self._seconds = seconds if cpus > 1 else 0.0
        self._failures = 0
        self._long = False

    def seconds(self) -> float:
        """How long to spin this time; 0.0 not at all."""
        if self._long:
            return self._seconds * _LONG_FACTOR
        failures = self._failures
        if failures < _FAILURES:
            return self._seconds
        self._failures = failures + 1
        return 0.0 if failures % _RETRY_EVERY else self._seconds * _LONG_FACTOR

    def tell(self, paid: bool) -> None:
        """Whether what was waited for came while spinning."""
        failures = self._failures
        if paid:
            self._long = self._long or failures > _FAILURES  # more only after one of the seldom tries
            self._failures = 0
        elif self._long and failures + 1 >= _LONG_FAILURES:
            self._long = False
            self._failures = _FAILURES
        elif failures < _FAILURES:  # the seldom tries are counted by `seconds`
            self._failures = failures + 1


_PATIENCE_SECONDS = 0.04
"""For so long calls that are patient wait for the call that the main thread is at. Two batches of a map."""

_FAILURES = 8
_LONG_FAILURES = 2
_RETRY_EVERY = 16
_LONG_FACTOR = 4


def _tick(process: Process) -> float | None:
    """Send due heartbeats and notice silence; seconds until this or a chore is due again, None for never."""
    soonest = process.trimming.due
    now = monotonic()
    for peer in process.watched_peers:
        try:
            for head, buffers in peer.protocol.tick(now):
                peer.send_frame(head, buffers)
            wakeup = peer.protocol.next_wakeup()
        except HybridDistError as error:
            peer.lose(error)
            continue
        if wakeup is not None:
            soonest = wakeup if soonest is None else min(soonest, wakeup)
    return None if soonest is None else max(0.0, soonest - now)
