"""The n-th system call fails, for every n until no call is left to fail: a clear error, or another way; no remains."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import socket
import threading
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import Any

import pytest

from hybriddist.deadline import Deadline
from hybriddist.errors import TransportError
from hybriddist.shm import rendezvous
from hybriddist.shm.transport import ShmTransport

from .conftest import names_of

CALLS: dict[str, tuple[Any, int]] = {
    "shm_open": (shared_memory._posixshmem, errno.EMFILE),  # type: ignore[attr-defined]
    "ftruncate": (os, errno.EDQUOT),
    "posix_fallocate": (os, errno.ENOSPC),
    "mmap": (mmap, errno.ENOMEM),
}
"""Where each is found, and how it likes to fail."""

SIZES = (20_000, 100_000, 2_000_000)
"""Of buffers: in segments of many slots, of some, of one."""


class Failing:
    """Fails once, at its n-th call."""

    def __init__(self, real: Callable[..., Any], turn: int, code: int) -> None:
        self._real = real
        self._code = code
        self.left = turn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(self._code, os.strerror(self._code))
        return self._real(*args, **kwargs)


def connect() -> tuple[ShmTransport | None, ShmTransport | None]:
    """Both ends of a connection, or what is left of the attempt."""
    near, far = socket.socketpair()
    accepted: list[ShmTransport | None] = []

    def accept() -> None:
        try:
            if far.recv(1) == rendezvous.PATH_SHM:
                accepted.append(rendezvous.accept(far, Deadline(10)))
        except (TransportError, OSError):
            pass
        finally:
            if not accepted or accepted[0] is None:
                far.close()

    thread = threading.Thread(target=accept)
    thread.start()
    offered = None
    try:
        offered = rendezvous.offer(near, Deadline(10))
    except (TransportError, OSError):
        pass
    finally:
        if offered is None:
            near.close()
        thread.join()
    return offered, accepted[0] if accepted else None


def exchange(sender: ShmTransport, receiver: ShmTransport) -> None:
    """Buffers arrive as they are, whichever way they come; several at a time, so that segments are needed."""
    sent = [bytes([number]) * size for number, size in enumerate(SIZES * 2, 1)]
    received = []
    for data in sent:
        done = sender.send(b"head", [data])
        while not done:
            received += receiver.receive()
            done = sender.flush()
    received += receiver.receive()
    assert [frame.buffers[0] for frame in received] == sent


@pytest.mark.parametrize("name", CALLS)
def test_every_call_in_turn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, code = CALLS[name]
    connections = lost = 0
    for turn in range(1, 100):
        failing = Failing(getattr(module, name), turn, code)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing)
            ends = connect()
            if None not in ends:
                connections += 1
                try:
                    exchange(*ends)  # type: ignore[arg-type]
                    exchange(*ends[::-1])  # type: ignore[arg-type]
                except TransportError:
                    lost += 1
        for end in ends:
            if end is not None:
                end.abort()
        del ends
        gc.collect()
        assert names_of(os.getpid()) == []
        if failing.left > 0:
            break
    else:
        pytest.fail("no end of calls")
    assert turn > 5
    assert connections > lost + 1, "besides the last time, some failures were survived"
