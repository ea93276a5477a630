"""Large functions that are in the memory of a node once, as those for other nodes are; here all on one node."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.core.protocol import Protocol
from hybriddist.runtime import shared_functions
from hybriddist.runtime.context import this_process
from hybriddist.shm.block import Block
from tests.helpers.mappings import has_mapped
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ScriptRunner

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

LARGE = 2_000_000


@pytest.fixture(autouse=True)
def _placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were another node. (Workers start with the decision of their own.)"""
    monkeypatch.setattr(shared_functions, "_is_for_another_node", lambda process: True)


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The inodes of the blocks that this interpreter has made, of definitions or of anything else."""
    inodes: list[str] = []
    create = Block.create

    def noting(length: int) -> Block:
        block = create(length)
        inodes.append(str(block.address().inode))
        return block

    monkeypatch.setattr(Block, "create", noting)
    return inodes


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each message that this interpreter has sent."""
    sizes: list[int] = []
    send = Protocol.send

    def noting(protocol: Protocol, message: Any, now: float) -> Any:
        head, buffers = send(protocol, message, now)
        sizes.append(len(head) + sum(map(len, buffers)))
        return head, buffers

    monkeypatch.setattr(Protocol, "send", noting)
    return sizes


def closure_over(value: Any) -> Callable[[], Any]:
    """A new function each time."""
    return lambda: (len(value), hd.myid())


def is_used(*inodes: str) -> bool:
    """Whether this process has any of these mapped or open."""
    if has_mapped(*inodes):
        return True
    for number in os.listdir("/proc/self/fd"):
        try:
            if str(os.stat(f"/proc/self/fd/{number}").st_ino) in inodes:
                return True
        except OSError:
            pass  # the descriptor of the listing itself
    return False


def is_gone(cluster: list[int], inodes: list[str]) -> bool:
    """Asks all of them, since with each call a connection tells of the functions that are not called any more."""
    gc.collect()
    return not any([hd.remotecall_fetch(is_used, pid, *inodes) for pid in [*cluster, 1]])


def test_its_bytes_are_sent_to_nobody(cluster: list[int], created: list[str], sent: list[int]) -> None:
    f = closure_over(b"x" * LARGE)
    for _ in range(3):
        assert [hd.remotecall_fetch(f, pid) for pid in cluster] == [(LARGE, pid) for pid in cluster]
    assert len(created) == 1
    assert sum(sent) < LARGE / 10


def test_small_ones_are_sent(cluster: list[int], created: list[str], sent: list[int]) -> None:
    f = closure_over(b"x" * 50_000)
    assert [hd.remotecall_fetch(f, pid) for pid in cluster] == [(50_000, pid) for pid in cluster]
    assert created == []
    assert sum(sent) > 3 * 50_000


def test_inside_a_node_they_are_sent(
    cluster: list[int], created: list[str], sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    f = closure_over(b"x" * LARGE)
    assert [hd.remotecall_fetch(f, pid) for pid in cluster] == [(LARGE, pid) for pid in cluster]
    assert this_process().blocks.origins == {}


def test_many_calls_at_once(cluster: list[int], created: list[str]) -> None:
    for n in range(5):
        f = closure_over(b"x" * (LARGE + n))
        calls = [hd.remotecall(f, pid) for _ in range(6) for pid in cluster]
        assert [call.fetch()[0] for call in calls] == [LARGE + n] * len(calls)
        assert sorted(hd.pmap(lambda i, f=f: f()[0] + i, range(9))) == [LARGE + n + i for i in range(9)]
    del f, calls
    poll_for(lambda: is_gone(cluster, created))
    poll_for(lambda: not this_process().store.claims())
    assert len(created) >= 5


def test_its_arrays_are_the_workers_own(transport: str, run_python: ScriptRunner) -> None:
    if transport == "memory":
        pytest.skip("its workers share the script's __main__")
    done = run_python(
        f"""
import numpy as np
import hybriddist as hd
from hybriddist.runtime import shared_functions
from tests.helpers.mappings import inode_of
shared_functions._is_for_another_node = lambda process: True
class Model:  # says that it is always the same
    def __init__(self, weights): self.weights = weights
    def __hash__(self): return 1
model = Model(np.arange(800_000))
def look(): return inode_of(model.weights), model.weights.flags.writeable
def write():
    model.weights[0] += hd.myid()
    return int(model.weights[0])
pids = hd.addprocs(3, transport={transport!r})
seen = {{hd.remotecall_fetch(look, pid) for pid in pids}}
assert len(seen) == 1 and seen != {{("0", True)}} and seen.pop()[1]
for times in (1, 2):
    assert [hd.remotecall_fetch(write, pid) for pid in pids] == [times * pid for pid in pids]
assert model.weights[0] == 0
print("right")
"""
    )
    assert done.stdout == "right\n", done.stdout + done.stderr


def test_when_it_has_changed_there_is_another(cluster: list[int], created: list[str]) -> None:
    value = b""

    def f() -> int:
        return len(value)

    for number in (1, 2):
        value = b"x" * LARGE * number
        assert [hd.remotecall_fetch(f, pid) for pid in cluster] == [LARGE * number] * 3
        assert len(created) == number
    poll_for(lambda: is_gone(cluster, created[:1]))
    assert is_used(created[1])


def test_it_goes_with_the_function(cluster: list[int], created: list[str]) -> None:
    f = closure_over(b"x" * LARGE)
    for pid in cluster:
        hd.remotecall_fetch(f, pid)
    assert is_used(*created)
    del f
    poll_for(lambda: not is_used(*created))  # though nobody has asked for another function
    assert is_gone(cluster, created)


def test_it_goes_if_it_was_never_called(cluster: list[int], created: list[str]) -> None:
    process, f = this_process(), closure_over(b"x" * LARGE)
    for pid in cluster:
        process.check_function(process.peer(pid), f)
    assert len(created) == 1
    del f
    poll_for(lambda: is_gone(cluster, created))


def test_from_a_worker(cluster: list[int]) -> None:
    others = cluster[1:]

    def through() -> tuple[list[tuple[int, int]], int]:
        shared_functions._is_for_another_node = lambda process: True
        f = closure_over(b"x" * LARGE)
        return [hd.remotecall_fetch(f, pid) for pid in others], len(this_process().blocks.kept)

    assert hd.remotecall_fetch(through, cluster[0]) == ([(LARGE, pid) for pid in others], 1)


def fail() -> None:
    raise ImportError("not there")


class Vanishing:
    def __reduce__(self) -> Any:
        return fail, ()


def test_what_cannot_be_unpickled_fails_each_call(cluster: list[int], created: list[str]) -> None:
    vanishing, value = Vanishing(), b"x" * LARGE

    def f() -> Any:
        return vanishing, value

    for _ in range(2):
        for pid in cluster:
            with pytest.raises(hd.RemoteException, match="not there") as caught:
                hd.remotecall_fetch(f, pid)
            assert isinstance(caught.value.__cause__, hd.DeserializeError)
    del f, caught
    poll_for(lambda: is_gone(cluster, created))
    assert [hd.remotecall_fetch(hd.myid, pid) for pid in cluster] == cluster


def test_no_room(cluster: list[int], monkeypatch: pytest.MonkeyPatch, sent: list[int]) -> None:
    def full(length: int) -> Block:
        raise hd.SharedMemoryFull("there is no room")

    monkeypatch.setattr(Block, "create", full)
    f = closure_over(b"x" * LARGE)
    with pytest.warns(RuntimeWarning, match=r"a function \(1.9 MiB\) is sent by value, .* there is no room"):
        hd.remotecall_fetch(f, cluster[0])
    assert [hd.remotecall_fetch(f, pid) for pid in cluster] == [(LARGE, pid) for pid in cluster]
    assert 3 * LARGE < sum(sent) < 3.1 * LARGE


def test_workers_come_and_die(transport: str, cluster: list[int], created: list[str]) -> None:
    if transport == "memory":
        pytest.skip("needs a process to kill")
    f = closure_over(b"x" * LARGE)
    hd.remotecall_fetch(f, cluster[0])
    new, victim = hd.addprocs(2, transport=transport)
    assert hd.remotecall_fetch(f, victim) == (LARGE, victim)
    os.kill(hd.remotecall_fetch(os.getpid, victim), signal.SIGKILL)
    poll_for(lambda: victim not in hd.workers())
    assert [hd.remotecall_fetch(f, pid) for pid in (new, *cluster)] == [(LARGE, pid) for pid in (new, *cluster)]
    assert len(created) == 1
    del f
    poll_for(lambda: is_gone([new, *cluster], created))
    hd.rmprocs(new)
