"""The doorbell: it wakes, never blocks, and tells of the other end's death."""

from __future__ import annotations

import select
import signal
import socket
import threading

import pytest

from hybriddist.shm.doorbell import Doorbell


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


@pytest.fixture(params=[socket.socketpair, tcp_pair], ids=["unix", "tcp"])
def bells(request):
    near, far = map(Doorbell, request.param())
    yield near, far
    near.close()
    far.close()


def readable(bell: Doorbell, seconds: float = 0.0) -> bool:
    return bool(select.select([bell.fileno()], [], [], seconds)[0])


def test_ring_and_drain(bells):
    near, far = bells
    assert not readable(far)
    near.ring()
    near.ring()
    assert readable(far, 10)
    far.drain()
    assert not readable(far)
    assert not far.peer_gone


def test_ringing_without_end_does_not_block(bells):
    near, far = bells
    for _ in range(20_000):
        near.ring()
    assert not near.peer_gone
    while readable(far, 0.2):
        far.drain()
    near.ring()
    assert readable(far, 10)


def test_the_end_is_noticed(bells):
    near, far = bells
    near.ring()
    near.close()
    assert near.fileno() == -1
    while not far.peer_gone:
        assert readable(far, 10)
        far.drain()
    assert readable(far)  # And stays so: nobody sleeps on a dead connection.


def test_ringing_at_a_closed_door(bells):
    near, far = bells
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # As scripts do that want to end quietly in a pipe.
    try:
        far.close()
        for _ in range(10_000):
            near.ring()
            if near.peer_gone:
                break
        assert near.peer_gone
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_after_close_nothing_happens(bells):
    near, _ = bells
    near.close()
    near.close()
    near.ring()
    near.drain()
    assert near.fileno() == -1


def test_close_wakes_a_waiting_thread(bells):
    near, _ = bells
    descriptor = near.fileno()
    waiting = threading.Event()
    woken = []

    def wait():
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        waiting.set()
        woken.append(poll.poll(20_000))

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    near.close()
    thread.join(10)
    assert not thread.is_alive()
    assert woken[0]


def test_close_reaches_through_an_inherited_descriptor(bells):
    # A child process that a user forked keeps a copy of the descriptor; the peer must see the end all the same.
    near, far = bells
    with socket.socket(fileno=socket.dup(near.fileno())):
        near.close()
        assert readable(far, 10)
        far.drain()
        assert far.peer_gone
