"""How two peers agree on shared memory: accepted, refused, out of time, and against liars."""

from __future__ import annotations

import errno
import os
import socket
import threading

import pytest

from hybriddist.deadline import Deadline
from hybriddist.errors import ConnectError, RemoteProtocolError, SharedMemoryFull
from hybriddist.shm import rendezvous, segment
from hybriddist.shm.segment import Segment

OFFER_BYTES = 128


def own_names() -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"hybriddist-{os.getpid()}-")]


@pytest.fixture
def sockets():
    near, far = socket.socketpair()
    far.settimeout(20)
    yield near, far
    near.close()
    far.close()


def in_thread(function):
    result = []

    def run():
        try:
            result.append(function())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def join():
        thread.join(20)
        return result[0]

    return join


def test_accepted(sockets):
    near, far = sockets
    offered = in_thread(lambda: rendezvous.offer(near, Deadline(10)))
    assert far.recv(1) == rendezvous.PATH_SHM
    there = rendezvous.accept(far, Deadline(10))
    here = offered()
    assert own_names() == []
    for sender, receiver in ((here, there), (there, here)):
        assert sender.send(b"hello", [bytes(100_000)])
        frame = receiver.receive()[0]
        assert (frame.head, [bytes(buffer) for buffer in frame.buffers]) == (b"hello", [bytes(100_000)])
    here.close(1)
    there.close(1)


def test_another_node(sockets, monkeypatch):
    near, far = sockets
    offered = in_thread(lambda: rendezvous.offer(near, Deadline(10)))
    assert far.recv(1) == b"S"
    data = far.recv(OFFER_BYTES)
    segment.unlink(data[:96].rstrip(b"\0").decode())  # As if it were in the memory of another host.
    client, server = socket.socketpair()
    with client, server:
        client.sendall(data)
        assert rendezvous.accept(server, Deadline(10)) is None
        assert client.recv(10) == b"0"
    far.sendall(b"0")
    assert offered() is None
    assert own_names() == []
    near.settimeout(20)
    far.sendall(b"plain stream")
    assert near.recv(100) == b"plain stream"


def test_same_name_and_another_nonce(sockets):
    near, far = sockets
    impostor = Segment.create(rendezvous._SEGMENT_BYTES)
    near.sendall(impostor.name.encode().ljust(96, b"\0") + b"n" * 32)
    assert rendezvous.accept(far, Deadline(10)) is None
    assert near.recv(10) == b"0"
    impostor.unlink()


@pytest.mark.parametrize("name", [b"", b"../../etc/passwd", b"psm_1234", b"\xff" * 96])
def test_impossible_name(sockets, name):
    near, far = sockets
    near.sendall(name.ljust(96, b"\0") + b"n" * 32)
    with pytest.raises(RemoteProtocolError):
        rendezvous.accept(far, Deadline(10))


def test_wrong_size(sockets):
    near, far = sockets
    small = Segment.create(4096)
    near.sendall(small.name.encode().ljust(96, b"\0") + bytes(32))
    with pytest.raises(RemoteProtocolError):
        rendezvous.accept(far, Deadline(10))
    small.unlink()


def test_offer_without_shared_memory(sockets, monkeypatch):
    near, far = sockets

    def no_room(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(SharedMemoryFull):
        rendezvous.offer(near, Deadline(10))
    far.setblocking(False)
    with pytest.raises(BlockingIOError):
        far.recv(1)


@pytest.mark.parametrize("answer", [b"x", b"S"])
def test_answer_that_is_none(sockets, answer):
    near, far = sockets
    far.sendall(answer)
    with pytest.raises(RemoteProtocolError):
        rendezvous.offer(near, Deadline(10))
    assert own_names() == []


@pytest.mark.parametrize("side", ["offer", "accept"])
def test_silent_peer(sockets, side):
    with pytest.raises(ConnectError):
        getattr(rendezvous, side)(sockets[0], Deadline(0.05))
    assert own_names() == []


@pytest.mark.parametrize("sent", [0, 1, OFFER_BYTES - 1])
def test_peer_that_leaves(sockets, sent):
    near, far = sockets
    near.sendall(bytes(sent))
    near.close()
    with pytest.raises(ConnectError):
        rendezvous.accept(far, Deadline(10))


def test_peer_that_leaves_the_connector(sockets):
    near, far = sockets
    far.close()
    with pytest.raises(ConnectError):
        rendezvous.offer(near, Deadline(10))
    assert own_names() == []


def test_offer_that_comes_byte_by_byte(sockets):
    near, far = sockets
    shared = Segment.create(rendezvous._SEGMENT_BYTES)
    shared.memory[:32] = b"n" * 32
    accepted = in_thread(lambda: rendezvous.accept(far, Deadline(10)))
    for byte in shared.name.encode().ljust(96, b"\0") + b"n" * 32 + b"\1\1":
        near.sendall(bytes([byte]))
    there = accepted()
    shared.unlink()
    assert near.recv(10) == b"1"
    there.abort()


def test_probe(python):
    with rendezvous.create_probe() as probe:
        assert len(probe.nonce) == 32
        assert rendezvous.answer_probe(probe.name) == probe.nonce
        answer = python.run(
            "import sys\nfrom hybriddist.shm import rendezvous\nprint(rendezvous.answer_probe(sys.argv[1]).hex())",
            probe.name,
        )
        assert answer.stdout.strip() == probe.nonce.hex()
    assert rendezvous.answer_probe(probe.name) is None
    probe.close()
    with pytest.raises(RemoteProtocolError):
        rendezvous.answer_probe("no such name")
