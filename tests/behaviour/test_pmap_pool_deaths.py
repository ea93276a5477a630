"""pmap with a pool whose members die, or that has none."""

from __future__ import annotations

import os
from typing import Any

import pytest

import hybriddist as hd

pytestmark = [pytest.mark.leaks_by_module, pytest.mark.usefixtures("no_workers")]


def test_a_pool_without_living_members_is_told(transport: str) -> None:
    pids = hd.addprocs(2, transport=transport)
    pool = hd.WorkerPool(pids[:1])
    hd.rmprocs(pids[0])
    with pytest.raises(hd.ClusterError, match="no active worker available"):
        hd.pmap(abs, pool, [1, 2])


def test_members_that_die_meanwhile(transport: str) -> None:
    pids = hd.addprocs(3, transport=transport)
    pool = hd.WorkerPool(pids[:2])
    results = hd.pmap(lambda x: os._exit(1) if x == 5 else x, pool, range(40), on_error=type)
    dead = [x for x, result in enumerate(results) if result is hd.ProcessExitedException]
    assert 5 in dead  # with those that other threads of the worker had begun
    assert all(result == x for x, result in enumerate(results) if x not in dead)
    assert len(pool) == 1


def test_the_last_member_dies(transport: str) -> None:
    pids = hd.addprocs(2, transport=transport)
    pool = hd.WorkerPool(pids[:1])
    with pytest.raises(hd.ClusterError, match="no active worker available"):
        hd.pmap(lambda x: os._exit(1), pool, range(10), on_error=type)
    assert hd.workers() == pids[1:]


def test_a_replacement_becomes_a_member(transport: str) -> None:
    def deaf(x: int) -> Any:
        while x == 0:
            try:
                hd.Future().wait()
            except KeyboardInterrupt:
                pass
        return hd.myid()

    pids = hd.addprocs(2, transport=transport)
    pool = hd.WorkerPool(pids[:1])
    results = hd.pmap(deaf, pool, range(4), item_timeout=0.2, on_error=type)
    assert results[0] is TimeoutError
    assert set(results[1:]) & set(pids) == set()
    assert len(pool) == 1


def test_the_default_pool_without_workers(transport: str) -> None:
    assert hd.pmap(lambda x: hd.myid(), hd.default_worker_pool(), range(5)) == [1] * 5
