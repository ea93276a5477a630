"""What the tests of shared memory have in common: nothing of theirs may be left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybriddist.deadline import Deadline
from hybriddist.shm import rendezvous
from hybriddist.shm.transport import ShmTransport

ROOT = str(Path(__file__).parents[2])


def names_of(ospid: int) -> list[str]:
    """The names in the shared-memory file system that belong to a process."""
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"hybriddist-{ospid}-")]


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    # pytest would keep what the test was given, and with it descriptors, until after the check for those.
    request.node.funcargs.clear()
    gc.collect()
    assert names_of(os.getpid()) == []


class Python:
    """Starts Python processes that can import the package, and ends them with the test."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, script: str, *args: object, **options: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": ROOT},
            **options,  # type: ignore[arg-type]
        )
        self._processes.append(process)
        return process

    def run(self, script: str, *args: object, command: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, sys.executable, "-W", "error", "-c", script, *map(str, args)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": ROOT},
            check=False,
        )

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


@pytest.fixture
def python() -> Iterator[Python]:
    starter = Python()
    yield starter
    starter.end()


def connect(**options: object) -> tuple[ShmTransport, ShmTransport]:
    """Both ends of a connection in this process: the connector's and the acceptor's."""
    near, far = socket.socketpair()
    accepted: list[ShmTransport | None] = []

    def accept() -> None:
        assert far.recv(1) == rendezvous.PATH_SHM
        accepted.append(rendezvous.accept(far, Deadline(10), **options))  # type: ignore[arg-type]

    thread = threading.Thread(target=accept)
    thread.start()
    offered = rendezvous.offer(near, Deadline(10), **options)  # type: ignore[arg-type]
    thread.join()
    assert offered is not None
    assert accepted[0] is not None
    return offered, accepted[0]


@pytest.fixture
def make_pair() -> Iterator[Callable[..., tuple[ShmTransport, ShmTransport]]]:
    ends: list[ShmTransport] = []

    def make(**options: object) -> tuple[ShmTransport, ShmTransport]:
        pair = connect(**options)
        ends.extend(pair)
        return pair

    yield make
    for end in ends:
        end.abort()


@pytest.fixture
def pair(make_pair: Callable[..., tuple[ShmTransport, ShmTransport]]) -> tuple[ShmTransport, ShmTransport]:
    return make_pair()
