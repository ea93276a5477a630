"""Shared memory that nobody uses goes back to the node, also when nothing is sent any more."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from hybriddist.runtime import trimming
from hybriddist.runtime.current import current
from hybriddist.runtime.poller import Poller
from hybriddist.shm import arena
from tests.helpers.mappings import mapped_sizes
from tests.helpers.polling import poll_for

LARGE = 1_000_000
"""Of float64."""


def look_often() -> None:
    arena.IDLE_SECONDS = 0.2  # type: ignore[misc]
    trimming._LOOK_SECONDS = 0.1  # type: ignore[misc]


def large_mappings(ospid: int | str = "self") -> int:
    """How many mappings of the library's a process has that hold arrays."""
    return sum(size >= 8 * LARGE for size in mapped_sizes(ospid))


def mappings_with(_: np.ndarray) -> int:
    """Likewise, with an argument in one of them."""
    return large_mappings()


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    monkeypatch.setattr(arena, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(trimming, "_LOOK_SECONDS", 0.1)
    try:
        pids = hd.addprocs(2, transport="shm")
        hd.remotecall_all(look_often, procs=pids)
        yield pids
    finally:
        hd.shutdown()


def test_both_sides_let_go_of_what_is_idle(pids: list[int]) -> None:
    """Of arguments, of results, and of what workers send each other."""
    budget = current().paths._shared_budget()
    a, b = pids
    ospids = hd.remotecall_all(os.getpid, procs=pids).values()
    for pid in pids:
        assert hd.remotecall_fetch(mappings_with, pid, np.ones(LARGE))
        result = hd.remotecall_fetch(np.ones, pid, LARGE)
        assert large_mappings()
        del result
    assert hd.remotecall_fetch(lambda: hd.remotecall_fetch(mappings_with, b, np.ones(LARGE)), a)
    poll_for(lambda: not large_mappings() and not budget.taken_bytes, what="the driver lets go")
    poll_for(lambda: not any(map(large_mappings, ospids)), what="the workers let go, and nobody calls them")
    assert hd.remotecall_fetch(np.sum, a, np.ones(LARGE)) == LARGE


def test_what_somebody_has_stays(pids: list[int]) -> None:
    pid = pids[0]
    result = hd.remotecall_fetch(np.ones, pid, LARGE)
    kept = hd.remotecall(lambda x: x, pid, np.full(LARGE, 2.0))
    hd.remotecall_fetch(np.sum, pid, np.ones(2 * LARGE))  # this one is idle then
    hd.wait(kept)
    poll_for(lambda: hd.remotecall_fetch(large_mappings, pid) == 2, what="only the two are left")
    assert result.sum() == LARGE
    assert kept.fetch().sum() == 2 * LARGE
    del result, kept
    poll_for(lambda: hd.remotecall_fetch(large_mappings, pid) == 0, what="nothing is left")


def test_a_process_that_holds_nothing_is_not_woken(pids: list[int]) -> None:
    assert hd.remotecall_fetch(np.sum, pids[0], np.ones(LARGE)) == LARGE
    poll_for(lambda: current().trimming.due is None)
    poll_for(lambda: hd.remotecall_fetch(lambda: current().trimming.due is None, pids[0]))


def test_nobody_is_busy_with_looking(pids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """While memory is held a process wakes up for each look, and no more often."""
    monkeypatch.setattr(trimming, "_LOOK_SECONDS", 1000.0)
    polls: list[float | None] = []
    poll = Poller.poll

    def counted(self: Poller, timeout: float | None) -> Any:
        polls.append(timeout)
        return poll(self, timeout)

    monkeypatch.setattr(Poller, "poll", counted)
    assert hd.remotecall_fetch(np.sum, pids[0], np.ones(LARGE)) == LARGE
    receiver = current().receiver
    poll_for(lambda: not receiver._unattended and polls and polls[-1] is not None and polls[-1] > 900)
    before = len(polls)
    time.sleep(0.2)  # this is how long it is watched
    assert len(polls) <= before + 5
