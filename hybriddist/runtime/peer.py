"""One live connection to another process: a transport, its protocol, and everything that waits for the other side.

Who moves the frames::

    any thread ── send ──► send_lock ──► transport ──►  ...  ──► transport ──► recv_lock ── dispatch
                                                                                  ▲   ▲   ▲
                     a caller that waits for its own result, for up to 50 µs ─────┘   │   │
                     the worker's main thread, between two calls ─────────────────────┘   │
                     the receiver thread, asleep on the descriptor until the doorbell rings ┘

Whoever holds `recv_lock` receives, hands out in order, and arms the doorbell again before letting go. A thread that is
told by the descriptor but finds the lock taken notes that in ``_missed``; the holder looks at it after letting go. So
no thread is woken while another is already looking, which is what makes a call cost no hand-off between threads.

What this module does not know: what a message means (``runtime/handlers.py``), and how a connection is made
(``runtime/links.py``).
"""

from __future__ import annotations

import select
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Sequence
from threading import RLock
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from hybriddist.core.functions import FunctionReceiver, FunctionSender
from hybriddist.core.messages import Message, Result
from hybriddist.core.protocol import Protocol
from hybriddist.errors import HybridDistError, TransportError
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.coroutines import Tasks
from hybriddist.runtime.poller import READ, WRITE
from hybriddist.runtime.waiting import receive_blocking, wait_for_room
from hybriddist.transport import Buffer, Frame, Transport

if TYPE_CHECKING:
    from hybriddist.deadline import Deadline
    from hybriddist.runtime.channel_requests import IndexWaiter, RequestAsker
    from hybriddist.runtime.process import Process
    from hybriddist.runtime.receiver import SpinPolicy
    from hybriddist.runtime.running import Each


class Peer:
    """The other end of one connection.

    Attributes:
        pid: the other process; 0 until it has introduced itself.
        pending: what waits for a `Result`, by call id.
        requests: what the other side waits for in a channel here, by its call id.
        tasks: the coroutines that those of its calls are at that are answered.
        each: its messages with several calls that have not all ended, in the order in which they came.
        lost: what ended the connection, as text (an exception would keep this peer in a cycle); or None.
    """

    def __init__(self, process: Process, transport: Transport, protocol: Protocol, pid: int = 0) -> None:
        self.process = process
        self.transport = transport
        self.protocol = protocol
        self.pid = pid
        self.pending: dict[int, Completion] = {}
        self.requests: dict[int, RequestAsker | IndexWaiter] = {}
        self.tasks = Tasks()
        self.each: deque[Each] = deque()
        self.functions_out = FunctionSender()
        self.functions_in = FunctionReceiver()
        self.functions_lock = RLock()
        self.send_lock = allocate_lock()
        self.recv_lock = allocate_lock()
        self.lost: str | None = None
        self._missed = False
        self.looking = False
        """Nobody has asked for the doorbell: somebody looks, or did a moment ago."""
        self.looks = 0
        """How often somebody has looked: tells the receiver thread whether that goes on."""
        self._timed = protocol.next_wakeup() is not None
        self.guard = process.guard
        self._handlers = process.handlers
        self._receiver = process.receiver
        self.queue = process.executor.queue
        self.descriptor = transport.fileno()
        self._watched = True
        self._poll = select.poll()
        self._poll.register(self.descriptor, select.POLLIN)

    # ---- sending ----------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send one message, in the order of the calls of this thread. Waits while too much is queued to the peer.

        Raises:
            TransportError: the connection is gone; `lost` says why.
            LocalProtocolError: the message is over the limits; nothing was sent.
        """
        if not self._send_now(message):
            wait_for_room(self)

    def post(self, message: Message, *, borrowed: bool = False) -> None:
        """As `send`, but never waiting: what does not fit is written by the thread that receives.

        ``borrowed``: the message's buffers are somebody's who may change them soon.
        """
        if not self._send_now(message):
            if borrowed:
                self.copy_the_rest()
            self.watch()

    def _send_now(self, message: Message) -> bool:  # shielded: a half-written frame would spoil the connection
        try:
            with self.send_lock:
                if self.lost is not None:
                    raise TransportError(f"the connection to process {self.pid} is gone: {self.lost}")
                head, buffers = self.protocol.send(message, monotonic() if self._timed else 0.0)
                done = self.transport.send(head, buffers)
        except TransportError as error:
            self.lose(error)  # without the lock: whoever buries it may wait for somebody who sends
            raise
        if self.guard.pending:
            self.guard.deliver()
        return done

    def copy_the_rest(self) -> None:
        """Copy what the last message borrowed and is not written yet."""
        with self.send_lock:
            if self.lost is None:
                self.transport.snapshot()

    def flush(self) -> bool:  # shielded
        """Write more of what is queued; True when nothing is left."""
        try:
            with self.send_lock:
                if self.lost is not None:
                    raise TransportError(f"the connection to process {self.pid} is gone: {self.lost}")
                done = self.transport.flush()
        except TransportError as error:
            self.lose(error)
            raise
        if self.guard.pending:
            self.guard.deliver()
        return done

    def send_frame(self, head: bytes, buffers: Sequence[Buffer]) -> None:
        """Send a heartbeat. Never waits."""
        with self.send_lock:
            if self.lost is None:
                self.transport.send(head, buffers)

    # ---- receiving --------------------------------------------------------------------------------------------

    def on_ready(self) -> None:  # shielded
        """The descriptor is ready: called by the thread that polls."""
        self._missed = True
        self._receive_if_free()

    def _receive_if_free(self) -> None:
        """Hand out what was missed, unless somebody holds `recv_lock`, who will then look at ``_missed`` himself.

        The doorbell is taken off under the lock only: its bytes may be what the holder is waiting for.
        """
        while self._missed and self.recv_lock.acquire(False):
            try:
                self._missed = False
                self.take_bell()
                self._drain()
                if self.looking:
                    self._rearm()  # who looked may give up at this moment, and leave it to us who have the lock
            except HybridDistError as error:
                self.lose(error)
            finally:
                self.recv_lock.release()

    def _drain(self) -> None:
        """Hand out what is here and arm the doorbell; the caller holds `recv_lock`."""
        transport = self.transport
        try:
            while True:
                frames = transport.receive()
                if frames:
                    self._dispatch(frames)
                elif not transport.arm():
                    return
                elif transport.pending_bytes():
                    self._flush_quietly()  # what is here may be room, and nobody else may look for it
        except HybridDistError as error:
            self.lose(error)

    def _dispatch(self, frames: Sequence[Frame]) -> None:
        receive = self.protocol.receive
        pending = self.pending
        now = monotonic() if self._timed else 0.0
        for frame in frames:
            message = receive(frame, now)
            if type(message) is Result:
                if (completion := pending.pop(message.call_id, None)) is not None:
                    completion.complete(message.outcome, message)
            elif message is not None:
                self._handlers[type(message)](self, message)
        if self.queue:
            self._receiver.queued()

    def wait_for(self, completion: Completion, policy: SpinPolicy, deadline: Deadline) -> bool:  # shielded
        """Receive on the calling thread until ``completion`` is done; whether it is.

        First it polls for some microseconds, then it blocks on the descriptor itself: to be woken by another thread
        that was woken by the peer costs two more switches (80 µs for a call instead of 30). What comes for others
        meanwhile is handed out. False: another thread receives already, the connection is lost, or the time is over.

        If it is done the doorbell is not asked for again, since the next call is likely to come in microseconds; the
        receiver thread does so when nobody has looked for a while.
        """
        if self.lost is not None or not self.recv_lock.acquire(False):
            return completion.done
        try:
            if not self.looking:
                self.begin_looking()
            if seconds := policy.seconds():
                policy.tell(self.receive_for(seconds, completion))
            if not completion.done:
                self._receiver.about_to_block()
                receive_blocking((self,), self._poll, completion, deadline)
        except HybridDistError as error:
            self.lose(error)
        finally:
            self.end_looking(completion.done and not self.pending)
        if self.guard.pending:
            self.guard.deliver()
        return completion.done

    def take_bell(self) -> None:
        """The descriptor was ready: take the doorbell off, and write what waits for room."""
        self.transport.acknowledge()
        if self.transport.pending_bytes():
            self._flush_quietly()

    def watch_nothing(self) -> None:
        """The receiver thread need not wake for this descriptor: the calling thread waits on it itself."""
        if self._watched:
            self._watched = False
            self.process.poller.watch(self.descriptor, 0)

    def look(self, seconds: float) -> bool:  # shielded
        """Receive on a worker's main thread until anything has come. It goes on looking afterwards, until `rest`."""
        if self.lost is not None or not self.recv_lock.acquire(False):
            return False
        try:
            if not self.looking:
                self.begin_looking()
            return self.receive_for(seconds, None)
        except HybridDistError as error:
            self.lose(error)
            return False
        finally:
            self.recv_lock.release()

    def receive_for(self, seconds: float, completion: Completion | None) -> bool:
        """Poll the transport until ``completion`` is done, or anything has come; False when the time is over.

        The CPU is not offered to others in between (`sched_yield`): on a busy machine that costs a whole time slice.
        """
        receive = self.transport.receive
        end = 0.0
        while completion is None or not completion.done:
            frames = receive()
            if frames:
                self._dispatch(frames)
                if completion is None:
                    break
            else:
                now = perf_counter()
                if not end:
                    end = now + seconds
                elif now > end:
                    return False
        return True

    def rest(self) -> None:
        """Nobody looks any more: ask for the doorbell again, unless somebody looks at this moment after all."""
        if self.looking and self.recv_lock.acquire(False):
            try:
                self._rearm()
            finally:
                self.recv_lock.release()
            if self._missed:
                self._receive_if_free()

    def begin_looking(self) -> None:
        """Somebody looks: no doorbell, please. The caller holds `recv_lock`."""
        self.looking = True
        if self.transport.rings_doorbell:
            self.transport.disarm()
        else:
            self.watch_nothing()

    def look_once(self) -> bool:
        """Hand out what is here; whether there was anything."""
        if self.lost is not None:
            return False
        try:
            return self.receive_now()
        except HybridDistError as error:
            self.lose(error)
            return False

    def receive_now(self) -> bool:
        """Likewise; the end of the connection is raised."""
        frames = self.transport.receive()
        if frames:
            self._dispatch(frames)
        return bool(frames)

    def arm(self) -> bool:
        """Ask for the doorbell; True if something came meanwhile, or if the connection is lost."""
        try:
            if self.lost is None and not self.transport.arm():
                return False
            if self.lost is None and self.transport.pending_bytes():
                self._flush_quietly()
        except HybridDistError as error:
            self.lose(error)
        return True

    def end_looking(self, stay: bool = False) -> None:
        """Let go of `recv_lock`, and arm the doorbell, unless more is expected in microseconds (``stay``)."""
        stay = stay and self.lost is None
        try:
            self.looks += 1
            if not stay:
                self._rearm()
        finally:
            self.recv_lock.release()
        if stay:
            # Not before: who gives up looking after us because we look must find us gone, or we find that he gave up.
            self._receiver.keep_an_eye_on(self)
        if self._missed:
            self._receive_if_free()

    def _rearm(self) -> None:
        self.looking = False
        if not self._watched:
            self.watch()
        if self.transport.rings_doorbell and self.lost is None:
            try:
                if self.transport.arm():
                    self._drain()
            except HybridDistError as error:
                self.lose(error)

    def watch(self) -> None:
        """Have the descriptor polled for what matters now."""
        if self.lost is None:
            self._watched = True
            self.process.poller.watch(self.descriptor, READ | WRITE if self.transport.wants_write() else READ)

    def _flush_quietly(self) -> None:
        with self.send_lock:
            if self.lost is not None:
                return
            done = self.transport.flush()
        if done and not self.transport.rings_doorbell:
            self.watch()

    # ---- the end ----------------------------------------------------------------------------------------------

    def lose(self, error: BaseException) -> None:
        """The connection is over: whoever waits for the other side is told, on another thread."""
        if self.lost is None:
            self.lost = str(error)
            self.process.peer_lost(self, error)

    def detach(self) -> None:
        """Stop polling, before the transport is closed."""
        self.process.poller.remove(self.descriptor, self)

    def close(self, timeout: float) -> None:
        """End in good order: flush, tell the peer, close."""
        self.lost = self.lost or "closed"
        self.detach()
        with self.send_lock:
            self.transport.close(timeout)

    def abort(self) -> None:
        """End now."""
        self.lost = self.lost or "aborted"
        self.detach()
        self.transport.abort()

    def fail_pending(self, make_error: Callable[[], BaseException]) -> None:
        """End everything that waits for the other side with an error each; what only it waits for here is dropped."""
        for call_id in list(self.pending):  # in the order in which they were sent
            if (completion := self.pending.pop(call_id, None)) is not None:
                completion.complete(-1, make_error())
        while self.requests:
            self.requests.popitem()[1].withdraw()
        self.tasks.asker_gone()

    def __repr__(self) -> str:
        return f"<Peer {self.pid} by {self.transport.scheme}{'' if self.lost is None else ' lost'}>"
