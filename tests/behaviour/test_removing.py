"""rmprocs: forms of its arguments, waiting, workers that don't want to go, and what is known of those that went."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.managers.driver import Cluster
from tests.helpers.polling import poll_for

pytestmark = [pytest.mark.leaks_by_module, pytest.mark.usefixtures("no_workers")]


def exists(ospid: int) -> bool:
    """Whether the operating system still has this process."""
    try:
        os.kill(ospid, 0)
    except ProcessLookupError:
        return False
    return True


def ospids(pids: list[int]) -> list[int]:
    return [hd.remotecall_fetch(os.getpid, pid) for pid in pids]


def hold_the_interpreter(seconds: int) -> None:
    """A call in C that keeps the interpreter's lock, in a process that ignores SIGTERM."""
    import ctypes
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.PyDLL(None).sleep(seconds)


# ---- arguments ----------------------------------------------------------------------------------------------------


def test_a_process_alone_is_its_own_worker() -> None:
    assert (hd.myid(), hd.nprocs(), hd.nworkers()) == (1, 1, 1)
    assert hd.procs() == hd.workers() == hd.procs(1) == hd.procs_on_node() == [1]
    assert hd.nodes() == [[1]]
    assert hd.remotecall_fetch(hd.myid, 1) == 1


@pytest.mark.parametrize("form", [lambda a, b: (a, b), lambda a, b: ([a, b],), lambda a, b: ([[a], (b,)], {b}, [])])
def test_pids_and_lists_of_pids(transport: str, form: Any) -> None:
    one, two, three = hd.addprocs(3, transport=transport)
    removal = hd.rmprocs(*form(one, two))
    assert removal.isready()
    assert removal.wait() is removal
    assert hd.workers() == [three]
    assert hd.remotecall_fetch(hd.workers, three) == [three]


def test_the_processes_are_gone_when_it_returns(transport: str) -> None:
    pids = hd.addprocs(2, transport=transport)
    numbers = ospids(pids)
    assert all(map(exists, numbers))
    hd.rmprocs(pids)
    assert not any(map(exists, numbers))


def test_process_1_is_not_removed() -> None:
    (pid,) = hd.addprocs(1)
    with pytest.warns(RuntimeWarning, match="process 1 not removed"):
        removal = hd.rmprocs(1)
    assert removal.isready()
    assert hd.procs() == [1, pid]
    with pytest.warns(RuntimeWarning, match="process 1 not removed"):
        hd.rmprocs([1, pid])
    assert hd.procs() == [1]


def test_unknown_and_removed_pids_are_ignored() -> None:
    one, two = hd.addprocs(2)
    hd.rmprocs(one)
    assert hd.rmprocs(one, 999_999, one).isready()
    assert hd.rmprocs().isready()
    assert hd.workers() == [two]


@pytest.mark.parametrize("wrong", ["2", 2.5, None, ["x"], b"\x02", bytearray(b"\x02")])
def test_what_is_no_pid(wrong: Any) -> None:
    (pid,) = hd.addprocs(1)
    with pytest.raises(TypeError, match="rmprocs takes pids and lists of pids"):
        hd.rmprocs(pid, wrong)
    for waitfor, error in (("long", TypeError), (True, TypeError), (float("nan"), ValueError), (-1, ValueError)):
        with pytest.raises(error, match=r"^waitfor must"):
            hd.rmprocs(pid, waitfor=waitfor)  # type: ignore[arg-type]
    assert hd.workers() == [pid]


# ---- waiting ------------------------------------------------------------------------------------------------------


def test_waitfor_0_returns_at_once(transport: str) -> None:
    one, two, three = hd.addprocs(3, transport=transport)
    removal = hd.rmprocs(one, two, waitfor=0)
    assert hd.workers() == [three]  # those that leave get no more work
    removal.wait(30)
    assert removal.isready()
    assert hd.remotecall_fetch(hd.workers, three) == [three]


def test_removal_and_adding_in_turn(transport: str) -> None:
    (kept,) = hd.addprocs(1, transport=transport)
    old = hd.addprocs(1, transport=transport)
    removals = []
    for _ in range(5):
        removals.append(hd.rmprocs(old, waitfor=0))
        new = hd.addprocs(2, transport=transport)
        assert hd.workers() == [kept, *new]
        assert [hd.remotecall_fetch(hd.workers, pid) for pid in hd.workers()] == [[kept, *new]] * 3
        assert hd.remotecall_fetch(hd.remotecall_fetch, kept, hd.myid, new[0]) == new[0]
        old = new
    for removal in removals:
        removal.wait(30)


def test_the_same_worker_twice_at_once() -> None:
    (pid,) = hd.addprocs(1)
    first, second = hd.rmprocs(pid, waitfor=0), hd.rmprocs(pid, waitfor=0)
    first.wait(30)
    second.wait(30)
    assert hd.workers() == [1]


def test_busy_workers_go_without_delay(transport: str) -> None:
    """Their calls end with the news, not with a result."""
    one, two = hd.addprocs(2, transport=transport)

    def compute() -> None:
        for _ in range(10**12):
            pass

    calls = [hd.remotecall(time.sleep, one, 60), hd.remotecall(compute, two), hd.remotecall(abs, two, -1)]
    assert calls[2].fetch(timeout=30) == 1  # so it is at work by now
    hd.rmprocs(one, two, waitfor=30)
    for call, pid in zip(calls, (one, two), strict=False):
        with pytest.raises(hd.ProcessExitedException, match="removed") as info:
            call.fetch(timeout=30)
        assert info.value.pid == pid
    assert calls[2].fetch() == 1  # fetched before, so still known


def test_a_worker_that_hears_nothing_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybriddist.limits.POLITE_EXIT_SECONDS", 0.3)
    monkeypatch.setattr("hybriddist.managers.local.TERM_EXIT_SECONDS", 0.3)
    stuck, fine = hd.addprocs(2)
    (ospid,) = ospids([stuck])
    call = hd.remotecall(hold_the_interpreter, stuck, 60)
    poll_for(lambda: "nanosleep" in Path(f"/proc/{ospid}/wchan").read_text(), what="the call holds the interpreter")
    hd.rmprocs(fine)
    with pytest.raises(hd.RemovalTimeout, match=r"rmprocs: pids \[\d+\] not terminated after 0.05 seconds") as info:
        hd.rmprocs(stuck, waitfor=0.05)
    assert info.value.pids == [stuck]
    assert isinstance(info.value, TimeoutError)
    poll_for(lambda: not exists(ospid))
    with pytest.raises(hd.ProcessExitedException) as gone:
        call.fetch(timeout=30)
    assert gone.value.signal == 9
    assert hd.workers() == [1]


# ---- what is known afterwards -------------------------------------------------------------------------------------


def test_ctrl_c_when_a_worker_has_just_been_marked(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is removed all the same: who removes it again would wait for ever if nobody were at it."""
    pids = hd.addprocs(2, transport=transport)
    leaving = Cluster.leaving

    def interrupted(cluster: Cluster, pid: int) -> bool:
        marked = leaving(cluster, pid)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return marked

    with monkeypatch.context() as patch:
        patch.setattr(Cluster, "leaving", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remove_and_wait(pids[0])
    hd.rmprocs(pids[0], waitfor=10)
    assert hd.workers() == pids[1:]


def remove_and_wait(pid: int) -> None:
    hd.rmprocs(pid)
    poll_for(lambda: None, what="the interrupt")


def test_everybody_agrees_after_each_removal(transport: str) -> None:
    def lists() -> list[Any]:
        import hybriddist as hd

        return [hd.nprocs(), hd.nworkers(), hd.procs(), hd.workers(), hd.nodes()]

    left = hd.addprocs(4, transport=transport)
    while left:
        gone = left.pop(len(left) // 2)
        hd.rmprocs(gone)
        assert hd.nprocs() == len(left) + 1
        assert hd.workers() == (left or [1])
        for pid in left:
            assert hd.remotecall_fetch(lists, pid) == lists()
            with pytest.raises(hd.RemoteException) as info:
                hd.remotecall_fetch(hd.remotecall_fetch, pid, hd.myid, gone)
            assert isinstance(info.value.__cause__, hd.ProcessExitedException)
            assert info.value.__cause__.pid == gone


def test_calls_to_a_removed_worker(transport: str) -> None:
    (pid,) = hd.addprocs(1, transport=transport)
    fetched, unfetched = hd.remotecall(abs, pid, -1), hd.remotecall(abs, pid, -2)
    assert fetched.fetch() == 1
    hd.rmprocs(pid)
    assert fetched.fetch() == 1
    attempts = [
        unfetched.fetch,
        lambda: hd.remotecall(abs, pid, -1),
        lambda: hd.remotecall_fetch(abs, pid, -1),
        lambda: hd.remotecall_wait(abs, pid, -1),
        lambda: hd.remote_do(abs, pid, -1),
        lambda: hd.Future(pid),
        lambda: hd.path_to(pid),
        lambda: hd.procs_on_node(pid),
        lambda: hd.interrupt(pid),
    ]
    for attempt in attempts:
        with pytest.raises(hd.ProcessExitedException, match="it was removed") as info:
            attempt()
        assert info.value.pid == pid


def test_expected_ends_print_nothing(transport: str, capfd: pytest.CaptureFixture[str]) -> None:
    pids = hd.addprocs(3, transport=transport)
    hd.remotecall_fetch(hd.remotecall_fetch, pids[0], hd.myid, pids[1])
    hd.rmprocs(pids[0])
    hd.rmprocs(pids[1], waitfor=0).wait()
    hd.shutdown()
    assert capfd.readouterr() == ("", "")


def test_pids_are_never_used_again() -> None:
    (first,) = hd.addprocs(1)
    hd.rmprocs(first)
    assert hd.addprocs(2) == [first + 1, first + 2]
    hd.shutdown()
    assert hd.addprocs(1) == [first + 3]


def test_many_threads_adding_and_removing(transport: str) -> None:
    """What is left is what was added and not removed; nobody is half a member."""
    added: list[int] = []
    removed: list[int] = []

    def churn(kind: int) -> None:
        for turn in range(4):
            pids = hd.addprocs(2, transport=transport)
            added.extend(pids)
            gone = pids[(turn + kind) % 2]
            removed.append(gone)
            assert hd.remotecall_fetch(hd.myid, pids[0]) == pids[0]
            hd.rmprocs(gone, waitfor=None if turn % 2 else 0).wait(30)

    threads = [threading.Thread(target=churn, args=(kind,)) for kind in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    left = sorted(set(added) - set(removed))
    assert len(added) == 24
    assert len(left) == 12
    assert hd.workers() == left
    assert [hd.remotecall_fetch(hd.workers, pid) for pid in left] == [left] * 12
