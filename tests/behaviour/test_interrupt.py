"""interrupt: Ctrl-C for the calls of workers, and for nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for

pytestmark = pytest.mark.leaks_by_module


def sleep(path: str) -> str:
    import pathlib
    import time

    pathlib.Path(path).touch()
    time.sleep(60)
    return "slept"


def compute(path: str) -> str:
    import pathlib

    pathlib.Path(path).touch()
    for _ in range(10**12):
        pass
    return "computed"


def wait_for_another(path: str) -> Any:
    import pathlib

    import hybriddist as hd

    future = hd.Future()
    pathlib.Path(path).touch()
    return future.fetch()


def match(path: str) -> Any:
    """In C code that looks for signals: a search that would take days."""
    import pathlib
    import re

    pathlib.Path(path).touch()
    return re.fullmatch("(a+)+b", "a" * 64)


def loop(path: str) -> None:
    import pathlib

    pathlib.Path(path).touch()
    while True:
        pass


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., hd.Future]:
    """``begin(work, pid)``: start ``work`` there; returns when it is at it.

    For a call that sleeps this means: asleep. A signal that comes between a program's last look for signals and its
    system call does not wake it; that is so in every Python program, and no concern of these tests.
    """

    def begin(work: Any, pid: int, *args: Any) -> hd.Future:
        ospid = hd.remotecall_fetch(os.getpid, pid)
        mark = tmp_path / f"{pid}-{len(list(tmp_path.iterdir()))}"
        call = hd.remotecall(work, pid, str(mark), *args)
        poll_for(mark.exists)
        if work not in (compute, match, loop):
            poll_for(lambda: asleep(ospid))
        return call

    return begin


def asleep(ospid: int) -> bool:
    """Whether the main thread of a process waits for time, for a lock, or for another process's answer (in poll)."""
    waits_in = Path(f"/proc/{ospid}/wchan").read_text()
    return "nanosleep" in waits_in or "futex" in waits_in or waits_in.startswith(("poll_", "do_sys_poll"))


Begin = Callable[..., hd.Future]


def assert_interrupted(call: hd.Future, pid: int) -> None:
    with pytest.raises(hd.RemoteException) as info:
        call.fetch(timeout=20)
    assert info.value.pid == pid
    assert isinstance(info.value.__cause__, KeyboardInterrupt)


@pytest.mark.parametrize("work", [sleep, compute, wait_for_another, match, loop])
def test_a_busy_call_ends(cluster: list[int], begin: Begin, work: Any) -> None:
    pid = cluster[0]
    for _ in range(2):  # and the worker goes on
        call = begin(work, pid)
        hd.interrupt(pid)
        assert_interrupted(call, pid)
        assert hd.remotecall_fetch(abs, pid, -7) == 7
    assert hd.workers() == cluster


def test_a_fetching_caller_hears_of_it(cluster: list[int], tmp_path: Path) -> None:
    pid = cluster[0]
    mark = tmp_path / "mark"
    ospid = hd.remotecall_fetch(os.getpid, pid)

    def strike() -> None:
        poll_for(mark.exists)
        poll_for(lambda: asleep(ospid))
        hd.interrupt(pid)

    thread = threading.Thread(target=strike)
    thread.start()
    with pytest.raises(hd.RemoteException) as info:
        hd.remotecall_fetch(sleep, pid, str(mark))
    assert isinstance(info.value.__cause__, KeyboardInterrupt)
    thread.join(20)


def test_a_coroutine_is_interrupted(cluster: list[int], tmp_path: Path) -> None:
    async def wait(mark: Path) -> None:
        mark.touch()
        await asyncio.sleep(60)

    mark = tmp_path / "mark"
    call = hd.remotecall(wait, cluster[0], mark)
    poll_for(mark.exists)
    hd.interrupt(cluster[0])
    with pytest.raises(hd.RemoteException) as info:
        call.fetch(timeout=10)
    assert isinstance(info.value.__cause__, KeyboardInterrupt)
    assert hd.remotecall_fetch(hd.myid, cluster[0]) == cluster[0]


def test_an_idle_worker_does_not_notice(cluster: list[int]) -> None:
    for _ in range(3):
        hd.interrupt(cluster[0])
        hd.interrupt()
        assert [hd.remotecall_fetch(hd.myid, pid) for pid in cluster] == cluster


def test_an_interrupt_is_not_kept_for_the_next_call(cluster: list[int]) -> None:
    hd.interrupt(cluster[0])
    assert [hd.remotecall_fetch(lambda n: sum(range(n)), cluster[0], 1000) for _ in range(100)] == [499500] * 100


def test_a_fresh_worker_does_not_notice(transport: str, cluster: list[int]) -> None:
    pids = hd.addprocs(2, transport=transport)
    hd.interrupt(pids)
    assert [hd.remotecall_fetch(hd.myid, pid) for pid in pids] == pids
    hd.rmprocs(pids)


def test_all_of_them(cluster: list[int], begin: Begin) -> None:
    calls = {pid: begin(sleep, pid) for pid in cluster}
    hd.interrupt()
    for pid, call in calls.items():
        assert_interrupted(call, pid)


def test_only_those_that_are_named(cluster: list[int], begin: Begin) -> None:
    one, two, three = cluster
    calls = {pid: begin(sleep, pid) for pid in cluster}
    hd.interrupt([one], two)
    assert_interrupted(calls[one], one)
    assert_interrupted(calls[two], two)
    with pytest.raises(TimeoutError):
        calls[three].fetch(timeout=0.05)
    hd.interrupt(three)
    assert_interrupted(calls[three], three)


def test_calls_on_several_threads_of_a_worker(cluster: list[int], begin: Begin) -> None:
    """The first call holds the main thread; a computing one on another thread is reached as well."""
    pid = cluster[1]
    calls = [begin(sleep, pid), begin(compute, pid)]
    hd.interrupt(pid)
    for call in calls:
        assert_interrupted(call, pid)
    assert hd.remotecall_fetch(abs, pid, -7) == 7


def test_finished_results_are_untouched(cluster: list[int], begin: Begin) -> None:
    pid = cluster[0]
    done = hd.remotecall_wait(abs, pid, -7)
    call = begin(sleep, pid)
    hd.interrupt(pid)
    assert_interrupted(call, pid)
    assert done.fetch() == 7


def test_a_call_that_wants_to_go_on(cluster: list[int], begin: Begin, tmp_path: Path) -> None:
    """Whoever catches the interrupt goes on; the next one may end it."""

    def stubborn(path: str, again: str) -> str:
        import pathlib
        import time

        try:
            pathlib.Path(path).touch()
            time.sleep(60)
        except KeyboardInterrupt:
            pathlib.Path(again).touch()
        time.sleep(60)
        return "slept"

    pid, again = cluster[0], tmp_path / "again"
    ospid = hd.remotecall_fetch(os.getpid, pid)
    call = begin(stubborn, pid, str(again))
    hd.interrupt(pid)
    poll_for(again.exists)
    poll_for(lambda: asleep(ospid))
    hd.interrupt(pid)
    assert_interrupted(call, pid)


def test_calls_between_workers_are_not_broken(cluster: list[int], begin: Begin) -> None:
    """The one that waits is interrupted; the other, which works for it, is not."""
    one, two, _ = cluster

    def through(path: str, other: int) -> Any:
        import pathlib
        import time

        import hybriddist as hd

        call = hd.remotecall(time.sleep, other, 60)
        pathlib.Path(path).touch()
        return call.fetch()

    call = begin(through, one, two)
    hd.interrupt(one)
    assert_interrupted(call, one)
    assert hd.remotecall_fetch(hd.remotecall_fetch, one, hd.myid, two) == two
    hd.interrupt(two)
    assert hd.remotecall_fetch(hd.myid, two) == two


def sleep_through_a_signal() -> None:
    """The signal is noted, but does not wake the main thread, as if it had come just before the sleep began."""

    def strike() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        time.sleep(0.1)  # by then the main thread sleeps
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    threading.Thread(target=strike).start()
    time.sleep(60)


def test_a_signal_that_does_not_wake_the_sleeper(transport: str, cluster: list[int]) -> None:
    if transport == "memory":
        pytest.skip("workers inside this interpreter have no main thread")
    asleep = hd.remotecall(sleep_through_a_signal, cluster[0])
    with pytest.raises(hd.RemoteException) as caught:
        asleep.fetch(timeout=10)
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)
    assert hd.remotecall_fetch(abs, cluster[0], -3) == 3


def nap_on_main_thread(seconds: float) -> bool:
    time.sleep(seconds)
    return threading.current_thread() is threading.main_thread()


def test_calls_one_after_the_other_run_where_interrupts_strike(transport: str, cluster: list[int]) -> None:
    """Also when another thread receives meanwhile, because the call before took a while: the main thread is free."""
    if transport == "memory":
        pytest.skip("workers inside this interpreter have no main thread")
    assert all(hd.remotecall_fetch(nap_on_main_thread, cluster[0], 0.004) for _ in range(300))


def test_many_in_a_row_lose_nothing(cluster: list[int]) -> None:
    """At whatever moment they come, every call has one outcome, and the worker stays."""
    pid = cluster[2]
    outcomes = {"value": 0, "interrupt": 0}
    end = time.monotonic() + 1.0
    calls: list[hd.Future] = []
    while time.monotonic() < end:
        calls += [hd.remotecall(lambda n: sum(range(n)), pid, 2000) for _ in range(20)]
        hd.interrupt(pid)
    for call in calls:
        try:
            assert call.fetch(timeout=20) == 1999000
            outcomes["value"] += 1
        except hd.RemoteException as error:
            outcomes["interrupt" if isinstance(error.__cause__, KeyboardInterrupt) else repr(error)] += 1
    assert sum(outcomes.values()) == len(calls)
    assert outcomes["value"] > 0
    assert poll_for(lambda: hd.remotecall_fetch(abs, pid, -7)) == 7
    assert hd.workers() == cluster


def test_twice_in_a_row(cluster: list[int], begin: Begin) -> None:
    """The second one finds the call ended, or ending, and strikes nothing else."""
    pid = cluster[0]
    for work in (sleep, loop, match):
        call = begin(work, pid)
        hd.interrupt(pid)
        hd.interrupt(pid)
        assert_interrupted(call, pid)
        assert hd.remotecall_fetch(abs, pid, -7) == 7
    assert hd.workers() == cluster


class Reluctant(hd.LocalManager):
    """Interrupts when all of its workers are being interrupted: never, if that is done one by one."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.together = threading.Barrier(n)
        self.fails = False

    def manage(self, pid: int, config: hd.WorkerConfig, op: str) -> None:
        if op == "interrupt":
            self.together.wait(10)
            if self.fails:
                raise LookupError(f"no way to {pid}")
        super().manage(pid, config, op)


def test_managers_are_asked_at_the_same_time(cluster: list[int], begin: Begin) -> None:
    manager = Reluctant(2)
    one, two = pids = hd.addprocs(manager)
    try:
        calls = {pid: begin(sleep, pid) for pid in pids}
        hd.interrupt(pids)
        for pid, call in calls.items():
            assert_interrupted(call, pid)
        manager.fails = True
        with pytest.raises(hd.CompositeException, match="could not be interrupted") as info:
            hd.interrupt(one, two)
        assert [str(error) for error in info.value] == [f"no way to {one}", f"no way to {two}"]
        manager.fails = False
    finally:
        hd.rmprocs(pids)


def test_a_manager_that_does_not_come_back_is_named(cluster: list[int]) -> None:
    from hybriddist.cluster import cluster_of
    from hybriddist.managers.interrupting import interrupt_workers
    from hybriddist.runtime.current import current

    manager = Reluctant(2)
    pids = hd.addprocs(manager)
    try:
        with pytest.raises(TimeoutError, match=rf"workers \[{pids[0]}\] did not interrupt them within 0\.05 s"):
            interrupt_workers(cluster_of(current()), pids[:1], 0.05)
        manager.together.abort()
    finally:
        hd.rmprocs(pids)


def test_nobody_is_interrupted_if_one_of_them_is_unknown(cluster: list[int], begin: Begin) -> None:
    call = begin(sleep, cluster[0])
    with pytest.raises(hd.NoSuchProcessError):
        hd.interrupt(cluster[0], 999_999)
    hd.interrupt([])  # a list of nobody is not everybody
    with pytest.raises(TimeoutError):
        call.fetch(timeout=0.05)
    hd.interrupt(cluster[0])
    assert_interrupted(call, cluster[0])


def test_whom_there_is_to_interrupt(cluster: list[int]) -> None:
    with pytest.raises(hd.NoSuchProcessError):
        hd.interrupt(999_999)
    with pytest.raises(hd.ClusterError, match="process 1 is not a worker"):
        hd.interrupt(1)
    with pytest.raises(hd.RemoteException, match="Only process 1 can interrupt"):
        hd.remotecall_fetch(hd.interrupt, cluster[0])
