"""A hundred thousand references through three processes: every store is empty in the end, and memory is flat."""

from __future__ import annotations

import gc
from typing import Any

import psutil
import pytest

import hybriddist as hd
from hybriddist.runtime.current import current
from tests.helpers.polling import poll_for

pytestmark = pytest.mark.leaks_by_module

ROUND = 2_500
ROUNDS = 40


def held() -> dict[str, int]:
    """Everything that this process remembers of references, its own and others'."""
    process = current()
    process.references.flush()
    return {"entries": len(process.store), "claims": len(process.store.claims()), "handles": len(process.references)}


def memory() -> int:
    return int(psutil.Process().memory_info().rss)


def pass_on(references: list[Any], pid: int) -> int:
    """Give every second reference to a third process, use some, and forget all."""
    hd.remotecall_fetch(len, pid, references[::2])
    for channel in references[1:20:2]:
        channel.put(1)
    return len(references)


def test_a_hundred_thousand_references(cluster: list[int]) -> None:
    a, b = cluster
    everywhere = [1, a, b]
    # Whoever was asked this holds nothing but what the question itself takes.
    before = {pid: hd.remotecall_fetch(held, pid) for pid in everywhere}
    sizes: list[list[int]] = []
    for number in range(ROUNDS):
        futures: list[Any] = [hd.Future(b) for _ in range(ROUND // 2)]
        channels: list[Any] = [hd.RemoteChannel(a if i % 2 else 1) for i in range(ROUND // 2)]
        mixed = [reference for pair in zip(futures, channels, strict=True) for reference in pair]
        assert hd.remotecall_fetch(pass_on, a, mixed, b) == ROUND
        for future in futures[:20]:
            future.put(number)
        del futures, channels, mixed, future
        if number % 10 == 9:
            gc.collect()
            poll_for(lambda: {pid: hd.remotecall_fetch(held, pid) for pid in everywhere} == before)
            sizes.append([hd.remotecall_fetch(memory, pid) for pid in everywhere])
    assert [hd.live_references(pid) for pid in everywhere] == [[]] * 3
    first, last = sizes[0], sizes[-1]
    # Three quarters of the references came after the first look. 100 bytes for each of them would be 7 MB.
    grown = [end - begin for begin, end in zip(first, last, strict=True)]
    assert max(grown) < 5_000_000, grown
