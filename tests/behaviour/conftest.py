"""Clusters for the behaviour suite: one suite, run over each kind of transport."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import hybriddist as hd
from hybriddist.testing.clusters import memory_cluster


@pytest.fixture(scope="module", params=["shm", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    """What the connections of the cluster are made of."""
    return str(request.param)


@pytest.fixture(scope="module")
def cluster(transport: str) -> Iterator[list[int]]:
    """Three local workers, shared by the tests of a module, none of which removes one: their pids."""
    if transport == "memory":
        with memory_cluster(3) as inside:
            yield inside.pids
        return
    try:
        yield hd.addprocs(3, transport=transport)
    finally:
        hd.shutdown()


@pytest.fixture(scope="module")
def _driver() -> Iterator[None]:
    try:
        yield
    finally:
        hd.shutdown()


@pytest.fixture
def no_workers(_driver: None) -> Iterator[None]:
    """No workers before the test, and none after it. The template process stays, so that `addprocs` is quick."""
    assert hd.workers() == [1]
    yield
    hd.rmprocs(hd.workers() if hd.nprocs() > 1 else [])
