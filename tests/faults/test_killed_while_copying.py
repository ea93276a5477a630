"""Workers that are killed when a frame is under way and its buffer is still being copied."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from hybriddist.shm.arena import Arena
from tests.helpers import leaks
from tests.helpers.polling import poll_for

pytestmark = pytest.mark.leaks_by_module

SIZES = [20_000, 1_000_000, 8_000_000]


@pytest.fixture
def workers() -> Iterator[list[int]]:
    yield hd.addprocs(2, transport="shm")
    hd.shutdown()


def half_copied(arena: Arena, slot: Any, buffer: Any) -> None:
    slab, number = slot
    start = slab.offset(number)
    slab.memory[start : start + len(buffer) // 2] = buffer[: len(buffer) // 2]
    os.kill(os.getpid(), signal.SIGKILL)


def return_half(size: int) -> Any:
    Arena.fill = half_copied  # type: ignore[method-assign]
    return np.ones(size, np.uint8)


def send_half(size: int, pid: int) -> None:
    hd.remotecall_fetch(len, pid, b"")  # connected
    Arena.fill = half_copied  # type: ignore[method-assign]
    hd.remotecall_fetch(len, pid, np.ones(size, np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["result", "argument"])
def test_nobody_gets_half_an_array(workers: list[int], size: int, kind: str) -> None:
    victim, other = workers
    ospid = hd.remotecall_fetch(os.getpid, victim)
    call = (return_half, victim, size) if kind == "result" else (send_half, victim, size, other)
    with pytest.raises(hd.ProcessExitedException, match="SIGKILL"):
        hd.remotecall_fetch(*call)
    assert hd.remotecall_fetch(len, other, np.ones(size, np.uint8)) == size
    poll_for(lambda: victim not in hd.remotecall_fetch(hd.procs, other))
    poll_for(lambda: not leaks.segments_of(ospid))
