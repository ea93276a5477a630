"""Blocking until a peer has something to say: on one descriptor or on several, and from several peers at once.

What this module does not know: what is received.
"""

from __future__ import annotations

import math
import select
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybriddist.deadline import Deadline
    from hybriddist.runtime.completion import Completion
    from hybriddist.runtime.peer import Peer
    from hybriddist.runtime.receiver import SpinPolicy


def wait_ready(poll: select.poll, peers: Sequence[Peer], deadline: Deadline) -> bool:  # exposed
    """Block until a descriptor is ready; False if the deadline came. Ctrl-C gets through: nothing is in hand here."""
    for peer in peers:
        wants_write = peer.lost is None and peer.transport.wants_write()
        poll.modify(peer.descriptor, select.POLLIN | select.POLLOUT if wants_write else select.POLLIN)
    remaining = deadline.remaining()
    return bool(poll.poll(None if remaining is None else math.ceil(min(remaining, 86400.0) * 1000)))


def wait_for_any(
    peers: Sequence[Peer], completion: Completion, policy: SpinPolicy, deadline: Deadline
) -> bool:  # shielded
    """As `Peer.wait_for`, from several peers at once."""
    held = [peer for peer in peers if peer.lost is None and peer.recv_lock.acquire(False)]
    if not held:
        return completion.done
    try:
        for peer in held:
            if not peer.looking:
                peer.begin_looking()
        seconds = policy.seconds()
        if seconds:
            policy.tell(_look_at_all(held, completion, seconds))
        if not completion.done:
            held[0].process.receiver.about_to_block()
            poll = select.poll()
            for peer in held:
                poll.register(peer.descriptor, select.POLLIN)
            receive_blocking(held, poll, completion, deadline)
    finally:
        for peer in held:
            peer.end_looking(completion.done)
    if held[0].guard.pending:
        held[0].guard.deliver()
    return completion.done


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
