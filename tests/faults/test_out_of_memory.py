"""A worker that takes more memory than the system gives it, and a system that gives it none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for

pytestmark = pytest.mark.leaks_by_module

GROUPS = Path("/sys/fs/cgroup/memory")
LIMIT_BYTES = 80 << 20


@pytest.fixture
def workers() -> Iterator[list[int]]:
    try:
        yield hd.addprocs(2)
    finally:
        hd.shutdown()


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with little memory, for whoever writes his number into its ``cgroup.procs``."""
    path = GROUPS / f"hd-test-{os.getpid()}"
    if not (GROUPS / "cgroup.procs").exists() or not os.access(GROUPS, os.W_OK):
        pytest.skip("needs root and the control group for memory")
    try:
        path.mkdir()
        (path / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    yield path
    poll_for(lambda: not (path / "cgroup.procs").read_text())
    path.rmdir()


def take(size: int) -> int:
    return sum(bytearray(size))


def take_within(size: int, processes: str) -> int:
    with open(processes, "w") as file:
        file.write(str(os.getpid()))
    return take(size)


def take_with_a_limit(size: int) -> int:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, before[1]))
    try:
        return take(size)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_killed_by_the_system(workers: list[int], group: Path) -> None:
    """The kernel's out-of-memory killer sends SIGKILL; the exception says so, and the other one goes on."""
    one, two = workers
    processes = str(group / "cgroup.procs")
    assert hd.remotecall_fetch(take_within, one, 1000, processes) == 0
    waiting = hd.remotecall(take_within, one, 3 * LIMIT_BYTES, processes)
    with pytest.raises(hd.ProcessExitedException, match="SIGKILL") as caught:
        waiting.fetch(timeout=20)
    assert (caught.value.pid, caught.value.signal) == (one, 9)
    poll_for(lambda: hd.workers() == [two])
    assert hd.remotecall_fetch(take, two, 1000) == 0


def test_refused_by_the_system(workers: list[int]) -> None:
    """Then it is an error of the call."""
    with pytest.raises(hd.RemoteException) as caught:
        hd.remotecall_fetch(take_with_a_limit, workers[0], 4 << 30)
    assert isinstance(caught.value.__cause__, MemoryError)
    assert hd.remotecall_fetch(take, workers[0], 1000) == 0
    assert hd.workers() == workers
