"""Blocking until a peer has something to say, or has room: on one descriptor or on several, of several peers at once.

What this module does not know: what is received.
"""

from __future__ import annotations

import math
import os
import select
from _thread import allocate_lock
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Final

from hybriddist import limits
from hybriddist.deadline import Deadline
from hybriddist.errors import HybridDistError

if TYPE_CHECKING:
    from hybriddist.runtime.completion import Completion
    from hybriddist.runtime.peer import Peer
    from hybriddist.runtime.process import Process
    from hybriddist.runtime.receiver import SpinPolicy

_REST_SECONDS: Final = 0.2
"""For the frames of a peer that is gone: what its kernel or ring holds, at memory speed."""


def wait_ready(poll: select.poll, peers: Sequence[Peer], deadline: Deadline) -> bool:  # exposed
    """Block until a descriptor is ready; False if the deadline came. Ctrl-C gets through: nothing is in hand here."""
    longest = limits.SIGNAL_LOOK_SECONDS
    for peer in peers:
        wants_write = peer.lost is None and peer.transport.wants_write()
        poll.modify(peer.descriptor, select.POLLIN | select.POLLOUT if wants_write else select.POLLIN)
    while True:
        remaining = deadline.remaining()
        seconds = longest if remaining is None else min(remaining, longest)
        if poll.poll(math.ceil(seconds * 1000)):
            return True
        if remaining is not None and remaining <= seconds:
            return False


def wait_for_any(
    peers: Sequence[Peer], completion: Completion, policy: SpinPolicy, deadline: Deadline
) -> bool:  # shielded
    """As `Peer.wait_for`, from several peers at once."""
    held = [peer for peer in peers if peer.lost is None and peer.recv_lock.acquire(False)]
    if not held:
        return completion.done
    quick = False
    try:
        for peer in held:
            if not peer.looking:
                peer.begin_looking()
        seconds = policy.seconds()
        if seconds:
            quick = _look_at_all(held, completion, seconds)
            policy.tell(quick)
        if not completion.done:
            held[0].process.receiver.about_to_block()
            _block_on(held, completion, deadline, alone=len(held) == len(peers))
    finally:
        for peer in held:
            # After a sleep the next answer will take as long: to be kept an eye on would wake the receiver in between.
            peer.end_looking(quick)
    if held[0].guard.pending:
        held[0].guard.deliver()
    return completion.done


def _block_on(held: Sequence[Peer], completion: Completion, deadline: Deadline, *, alone: bool) -> None:
    """Sleep on these peers; unless ``alone``, other threads receive as well what completes it, or a peer is lost."""
    poll = select.poll()
    for peer in held:
        poll.register(peer.descriptor, select.POLLIN)
    if alone:
        receive_blocking(held, poll, completion, deadline)
        return
    with Bell() as bell:
        completion.add_callback(bell.ring)
        try:
            poll.register(bell.descriptor, select.POLLIN)
            receive_blocking(held, poll, completion, deadline)
        finally:
            completion.remove_callback(bell.ring)


def _look_at_all(peers: Sequence[Peer], completion: Completion, seconds: float) -> bool:
    end = perf_counter() + seconds
    while not completion.done:
        came = False
        for peer in peers:
            came |= peer.look_once()
        now = perf_counter()
        if came:
            end = now + seconds
        elif now > end:
            return False
    return True


def receive_blocking(peers: Sequence[Peer], poll: select.poll, completion: Completion, deadline: Deadline) -> None:
    """Receive from ``peers``, whose `recv_lock` the caller holds, until ``completion`` is done, sleeping in between.

    Returns also when the deadline has come or a connection is lost. ``poll`` has the peers' descriptors.
    """
    for peer in peers:
        peer.watch_nothing()
    while not completion.done:
        # Each is looked at and armed, whether or not the one before had something: `any` alone would stop there.
        if any([peer.look_once() or peer.arm() for peer in peers]):
            if any([peer.lost is not None for peer in peers]):
                return  # its end is being looked into, by another thread
            continue
        if not wait_ready(poll, peers, deadline):
            return
        for peer in peers:
            if peer.lost is None:
                peer.take_bell()


def receive_rest(peer: Peer) -> None:  # shielded
    """Hand out what a peer had sent before its end, when that was noticed otherwise than by reading up to it.

    A failing send tells of the end as well, and so does the word of the peer's parent. Results that lie unread by then
    are results all the same: `pmap` would take their items for ones that never began, and run them again.
    """
    if not peer.recv_lock.acquire(timeout=_REST_SECONDS):
        return  # somebody receives; if he sleeps there is nothing
    try:
        descriptor = peer.transport.fileno()
        if descriptor < 0:
            return
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = Deadline(_REST_SECONDS)
        while not deadline.expired():
            peer.transport.acknowledge()
            if not peer.receive_now() and not poll.poll(0):
                return
    except HybridDistError:
        pass  # that was all
    finally:
        peer.recv_lock.release()


def wait_here(
    process: Process, completion: Completion, hot: Peer | None, policy: SpinPolicy, deadline: Deadline
) -> bool:  # shielded
    """Wait for what a message of any peer, or another thread of this process, completes.

    The thread receives meanwhile: first, for some microseconds, from the one peer that is likely to send what is
    waited for; then it sleeps on all connections that nobody else receives from, and on a bell for other threads.

    Args:
        hot: that peer.
    """
    if hot is not None and hot.lost is None and hot.recv_lock.acquire(False):
        try:
            if not hot.looking:
                hot.begin_looking()
            seconds = policy.seconds()
            if seconds:
                policy.tell(hot.receive_for(seconds, completion))
        except HybridDistError as error:
            hot.lose(error)
        finally:
            hot.end_looking(completion.done)
    if not completion.done:
        process.receiver.about_to_block()
        _sleep_on_all(process, completion, deadline)
    if process.guard.pending:
        process.guard.deliver()
    return completion.done


def _sleep_on_all(process: Process, completion: Completion, deadline: Deadline) -> None:
    with Bell() as bell:
        completion.add_callback(bell.ring)
        try:
            while not completion.done and not deadline.expired():
                _sleep_once(process, completion, bell, deadline)
        finally:
            completion.remove_callback(bell.ring)


def _sleep_once(process: Process, completion: Completion, bell: Bell, deadline: Deadline) -> None:
    held = [peer for peer in list(process.peers.values()) if peer.lost is None and peer.recv_lock.acquire(False)]
    try:
        poll = select.poll()
        poll.register(bell.descriptor, select.POLLIN)
        for peer in held:
            if not peer.looking:
                peer.begin_looking()
            poll.register(peer.descriptor, select.POLLIN)
        receive_blocking(held, poll, completion, deadline)
    finally:
        for peer in held:
            peer.end_looking(completion.done)


class Bell:
    """A descriptor that becomes readable when it is rung, once, from any thread."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self.descriptor = self._rung = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self.descriptor, self._rung = os.pipe()
        self._lock = allocate_lock()

    def __enter__(self) -> Bell:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for descriptor in {self.descriptor, self._rung}:
                os.close(descriptor)
            self._rung = -1  # who rings too late must not write to a number that is another file's by then

    def ring(self, _: Completion) -> None:
        """Wake who waits."""
        with self._lock:
            if self._rung >= 0:
                os.write(self._rung, b"\1\0\0\0\0\0\0\0")


def wait_for_room(peer: Peer) -> None:
    """Write the rest. Large frames are not queued: the caller's arrays are read while it waits here."""
    process, transport = peer.process, peer.transport
    pause = 50e-6
    process.receiver.held_up()
    try:
        while not peer.flush():
            if transport.wants_write():
                process.wait_writable(peer.descriptor, 0.05)
            else:
                process.pause(pause)  # the peer frees room at memory speed; a doorbell would cost more
                pause = min(pause * 2, 1e-3)
    except BaseException:
        peer.copy_the_rest()  # interrupted: the message counts as sent, and the receiver thread writes the rest
        peer.watch()
        raise
