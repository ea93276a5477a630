"""Objects with descriptors over a socket pair."""

from __future__ import annotations

import os
import socket
from threading import Thread

import pytest

from hybriddist.runtime import control


def test_objects_and_their_descriptors_stay_together() -> None:
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with ours, theirs:
        control.send(ours, {"n": 1})
        control.send(ours, {"n": 2}, [reading, writing])
        control.send(ours, {"n": 3})
        assert control.receive(theirs) == ({"n": 1}, [])
        value, descriptors = control.receive(theirs) or ({}, [])
        assert value == {"n": 2}
        assert control.receive(theirs) == ({"n": 3}, [])
        assert not any(os.get_inheritable(fd) for fd in descriptors)
        os.write(descriptors[1], b"x")
        assert os.read(reading, 1) == b"x"
        ours.shutdown(socket.SHUT_WR)
        assert control.receive(theirs) is None
    for fd in (reading, writing, *descriptors):
        os.close(fd)


def test_object_larger_than_the_socket_buffer() -> None:
    ours, theirs = socket.socketpair()
    value = {"text": "é" * 1_000_000}
    with ours, theirs:
        sender = Thread(target=control.send, args=(ours, value))
        sender.start()
        assert control.receive(theirs) == (value, [])
        sender.join()


@pytest.mark.parametrize("sent", [b"\x05", b"\x05\0\0\0", b"\x05\0\0\0{}"])
def test_end_in_the_middle_is_an_end(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with ours, theirs:
        socket.send_fds(ours, [sent], [reading])
        os.close(reading)
        ours.close()
        assert control.receive(theirs) is None
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"x")  # the descriptor that came along was closed
    os.close(writing)
