"""Broadcast values outlive whoever made them, where somebody has them, and the dead leave nothing behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from tests.helpers import leaks
from tests.helpers.mappings import has_mapped, inode_of
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ScriptRunner

pytestmark = pytest.mark.leaks_by_module

N = 300_000


@pytest.fixture
def three(transport: str) -> Iterator[list[int]]:
    """Three workers for one test."""
    pids = hd.addprocs(3, transport=transport)
    yield pids
    hd.rmprocs([pid for pid in pids if pid in hd.workers()])


kept: dict[str, Any] = {}


def make(n: int) -> Any:
    kept["it"] = hd.broadcast(np.arange(n))
    return kept["it"]


def keep(shared: Any) -> int:
    kept["it"] = shared
    return total(shared)


def total(shared: Any) -> int:
    return int(shared.value.sum())


def pass_on(pid: int) -> int:
    found: int = hd.remotecall_fetch(total, pid, kept["it"])
    return found


def mapped() -> str:
    """The inode of the memory that the kept value lies in."""
    return inode_of(kept["it"].value)


def kill(pid: int) -> None:
    ospid = hd.remotecall_fetch(os.getpid, pid)
    os.kill(ospid, signal.SIGKILL)
    poll_for(lambda: pid not in hd.procs())


def test_its_maker_dies(three: list[int]) -> None:
    maker, user, third = three
    expected = N * (N - 1) // 2
    shared = hd.remotecall_fetch(make, maker, N)
    assert hd.remotecall_fetch(keep, user, shared) == expected
    kill(maker)
    assert hd.remotecall_fetch(pass_on, user, third) == expected
    assert total(shared) == hd.remotecall_fetch(total, third, shared) == expected


def test_its_users_die(three: list[int]) -> None:
    shared = hd.broadcast(np.arange(N), pids=three)
    for pid in three:
        assert hd.remotecall_fetch(keep, pid, shared) == N * (N - 1) // 2
    inode = hd.remotecall_fetch(mapped, three[2])
    assert has_mapped(inode)
    for pid in three:
        kill(pid)
    assert total(shared) == N * (N - 1) // 2
    del shared
    poll_for(lambda: not has_mapped(inode), what="the claims of the dead are gone")


def test_one_dies_while_it_is_pushed(three: list[int]) -> None:
    class Deadly:
        def __reduce__(self) -> Any:
            return die_on, (three[1],)

    with pytest.raises(hd.CompositeException) as caught:
        hd.broadcast([Deadly(), np.arange(N)], pids=three)
    assert [type(error) for error in caught.value.exceptions] == [hd.ProcessExitedException]


def die_on(pid: int) -> None:
    if hd.myid() == pid:
        os._exit(1)


@pytest.mark.parametrize("end", ["sys.exit(3)", "os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_the_driver_ends(run_python: ScriptRunner, end: str) -> None:
    done = run_python(
        f"""
        import os, signal, sys
        import numpy as np
        import hybriddist as hd
        pids = hd.addprocs(2)
        shared = hd.broadcast(np.ones({N}), pids=pids)
        f = lambda i: float(shared.value[i])
        hd.pmap(f, range(10))
        print(*hd.remotecall_all(os.getpid).values(), flush=True)
        {end}
        """,
        timeout=30,
    )
    assert done.returncode in (3, -signal.SIGKILL), done.stderr
    ospids = [int(word) for word in done.stdout.split()]
    assert len(ospids) == 3
    poll_for(lambda: not leaks.segments_of(*ospids), what="nothing is left")
