"""Workers that die: what everybody learns of it, and that nobody waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for

pytestmark = pytest.mark.leaks_by_module

END_SECONDS = 3.0
"""From a death until everybody has heard of it: three times the promise, for a machine that has other work as well."""


@pytest.fixture(scope="module", params=["shm", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", autouse=True)
def _driver() -> Iterator[None]:
    yield
    hd.shutdown()


@pytest.fixture
def workers(transport: str) -> Iterator[list[int]]:
    """Three workers, of which the test may kill what it likes."""
    yield hd.addprocs(3, transport=transport)
    hd.rmprocs(hd.workers() if hd.nprocs() > 1 else [])


def ospid_of(pid: int) -> int:
    return hd.remotecall_fetch(os.getpid, pid)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(ospid_of(pid), number)


def assert_gone(pid: int, left: list[int]) -> None:
    """Everybody knows, and what is left works, also among each other."""
    poll_for(lambda: hd.workers() == left, timeout=END_SECONDS, what=f"{pid} is no longer listed")
    for other in left:
        poll_for(lambda other=other: hd.remotecall_fetch(hd.workers, other) == left)  # type: ignore[misc]
    if len(left) > 1:
        assert hd.remotecall_fetch(hd.remotecall_fetch, left[0], hd.myid, left[1]) == left[1]


def message_of(error: BaseException) -> hd.ProcessExitedException:
    """The news of a death, wherever it was learned."""
    inner = error.__cause__ if isinstance(error, hd.RemoteException) else error
    assert isinstance(inner, hd.ProcessExitedException), error
    return inner


def test_an_idle_worker_is_killed(workers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = workers
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    hd.remotecall_fetch(hd.remotecall_fetch, two, hd.myid, one)
    kill(one)
    assert_gone(one, [two, three])
    with pytest.raises(hd.ProcessExitedException, match=r"killed by signal 9 \(SIGKILL\)") as info:
        hd.remotecall_fetch(hd.myid, one)
    assert (info.value.pid, info.value.signal, info.value.exitcode) == (one, 9, None)
    for asking in (two, three):  # one of them knew the dead one, the other never spoke with it
        with pytest.raises(hd.RemoteException) as far:
            hd.remotecall_fetch(hd.remotecall_fetch, asking, hd.myid, one)
        news = message_of(far.value)
        assert (news.pid, news.signal, news.reason) == (one, 9, info.value.reason)
    assert sys.stderr.getvalue() == f"Worker {one} terminated.\n"  # type: ignore[attr-defined]


def test_everybody_who_waits_for_it_hears_of_it(workers: list[int]) -> None:
    """Each way to wait, here and on another worker; calls to others go on."""
    one, two, _ = workers
    ospid = ospid_of(one)
    never = hd.Future(one)
    computing = hd.remotecall(time.sleep, one, 60)
    untouched = hd.remotecall(lambda: (time.sleep(0.2), "done")[1], two)
    from_two = [hd.remotecall(f.fetch, two) for f in (never, computing)]
    from_two.append(hd.remotecall(hd.remotecall_fetch, two, time.sleep, one, 60))
    waits: list[Callable[[], Any]] = [
        computing.fetch,
        computing.wait,
        never.fetch,
        lambda: hd.remotecall_fetch(time.sleep, one, 60),
        lambda: hd.remotecall_wait(time.sleep, one, 60),
        *(future.fetch for future in from_two),
    ]
    ends: dict[int, BaseException] = {}

    def wait(number: int) -> None:
        try:
            waits[number]()
        except Exception as error:
            ends[number] = error

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(len(waits))]
    for thread in threads:
        thread.start()
    time.sleep(0.2)  # most of them wait by now; those that come later hear of it as well
    os.kill(ospid, signal.SIGKILL)
    end = time.monotonic() + END_SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    assert sorted(ends) == list(range(len(waits)))
    assert {(news.pid, news.signal) for news in map(message_of, ends.values())} == {(one, 9)}
    assert untouched.fetch(timeout=20) == "done"


def _exit_in_c(code: int) -> None:
    import ctypes

    ctypes.CDLL(None).exit(code)


def _exit_from_a_thread(code: int) -> None:
    import os
    import threading

    thread = threading.Thread(target=os._exit, args=(code,))
    thread.start()
    thread.join()


def _overflow_the_stack() -> None:
    """Of a thread, which is small: from 3.12 on, the interpreter's own limit protects the main thread's."""
    import sys
    import threading

    def descend(_: int) -> int:
        return max([0], key=descend)

    sys.setrecursionlimit(10**6)
    threading.stack_size(64 << 10)
    thread = threading.Thread(target=descend, args=(0,))
    thread.start()
    thread.join()


def _segfault() -> None:
    import ctypes

    ctypes.string_at(0)


def _say_and_exit() -> None:
    import os
    import sys

    print("my last words\nare these", file=sys.stderr, flush=True)
    os._exit(5)


def _abort() -> None:
    import os

    os.abort()


CRIMES: dict[str, tuple[Callable[[], Any], int | None, int | None, str]] = {
    "os._exit(3)": (lambda: __import__("os")._exit(3), 3, None, "it exited with code 3"),
    "os._exit(0)": (lambda: __import__("os")._exit(0), 0, None, "it exited with code 0"),
    "exit in C": (lambda: _exit_in_c(7), 7, None, "it exited with code 7"),
    "exit from a thread": (lambda: _exit_from_a_thread(9), 9, None, "it exited with code 9"),
    "stack overflow": (_overflow_the_stack, None, 11, "killed by signal 11 (SIGSEGV)"),
    "segmentation fault": (_segfault, None, 11, "killed by signal 11 (SIGSEGV)"),
    "abort": (_abort, None, 6, "killed by signal 6 (SIGABRT)"),
    "kills itself": (lambda: __import__("os").kill(__import__("os").getpid(), 15), None, 15, "signal 15 (SIGTERM)"),
    "last words": (_say_and_exit, 5, None, "it exited with code 5"),
}


@pytest.mark.parametrize(
    ("crime", "how"),
    [(crime, "fetch") for crime in CRIMES] + [("last words", how) for how in ("call", "wait", "do")],
)
def test_the_reason_is_told(workers: list[int], crime: str, how: str) -> None:
    function, exitcode, number, text = CRIMES[crime]
    one, two, three = workers
    ways: dict[str, Callable[[], Any]] = {
        "fetch": lambda: hd.remotecall_fetch(function, one),
        "call": lambda: hd.remotecall(function, one).fetch(timeout=20),
        "wait": lambda: hd.remotecall_wait(function, one),
        "do": lambda: (hd.remote_do(function, one), hd.remotecall_fetch(time.sleep, one, 20)),
    }
    with pytest.raises(hd.ProcessExitedException) as info:
        ways[how]()
    error = info.value
    assert (error.pid, error.exitcode, error.signal) == (one, exitcode, number)
    assert text in str(error)
    if crime == "last words":
        assert error.stderr_tail == "my last words\nare these"
        assert "are these" in str(error)
    assert_gone(one, [two, three])


def test_a_recursion_without_end_is_an_error_not_a_death(workers: list[int]) -> None:
    def descend(depth: int = 0) -> int:
        return descend(depth + 1) + 1

    with pytest.raises(hd.RemoteException) as info:
        hd.remotecall_fetch(descend, workers[0])
    assert isinstance(info.value.__cause__, RecursionError)
    assert hd.workers() == workers


@pytest.mark.parametrize("code", [None, 0, 3, "message"])
def test_sys_exit_in_a_call_is_an_error_and_the_worker_stays(workers: list[int], code: Any) -> None:
    def leave() -> None:
        import sys

        sys.exit(code)

    for _ in range(2):
        with pytest.raises(hd.RemoteException) as info:
            hd.remotecall_fetch(leave, workers[0])
        assert isinstance(info.value.__cause__, SystemExit)
        assert info.value.__cause__.code == code
    assert hd.workers() == workers


def test_a_fetched_future_outlives_its_owner(workers: list[int]) -> None:
    future = hd.remotecall(abs, workers[0], -7)
    assert future.fetch() == 7
    kill(workers[0])
    assert_gone(workers[0], workers[1:])
    assert future.fetch() == 7
    assert future.isready()


def test_coroutines_end_with_the_only_process_that_wants_their_value(workers: list[int], tmp_path: Path) -> None:
    asker, at, *_ = workers
    begun, ended = tmp_path / "begun", tmp_path / "ended"

    async def stay(name: str) -> str:
        (begun / name).touch()
        try:
            await asyncio.sleep(1 if name == "kept" else 60)
        finally:
            (ended / name).touch()
        return name

    begun.mkdir()
    ended.mkdir()
    kept = hd.Future()

    def ask() -> None:
        hd.remotecall(lambda f: f.put(hd.remotecall(stay, at, "kept")), asker, kept)
        hd.remotecall_fetch(stay, at, "fetched")

    hd.remote_do(ask, asker)
    poll_for(lambda: {path.name for path in begun.iterdir()} >= {"kept", "fetched"})
    future = kept.fetch(timeout=10)
    kill(asker)
    poll_for(lambda: (ended / "fetched").exists())
    assert future.fetch(timeout=10) == "kept"


def test_all_at_once(workers: list[int]) -> None:
    ospids = [ospid_of(pid) for pid in workers]
    calls = [hd.remotecall(time.sleep, pid, 60) for pid in workers]
    for ospid in ospids:
        os.kill(ospid, signal.SIGKILL)
    for pid, call in zip(workers, calls, strict=True):
        with pytest.raises(hd.ProcessExitedException, match="SIGKILL") as info:
            call.fetch(timeout=20)
        assert info.value.pid == pid
    assert hd.workers() == [1]
    assert hd.addprocs(1) == [workers[-1] + 1]


def test_a_stopped_worker_is_not_dead(workers: list[int]) -> None:
    """Inside a node the operating system tells who is dead; silence says nothing."""
    ospid = ospid_of(workers[0])
    os.kill(ospid, signal.SIGSTOP)
    try:
        call = hd.remotecall(abs, workers[0], -7)
        with pytest.raises(TimeoutError):
            call.fetch(timeout=0.3)
        assert hd.workers() == workers
    finally:
        os.kill(ospid, signal.SIGCONT)
    assert call.fetch(timeout=20) == 7


def test_a_stopped_worker_can_be_removed(workers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybriddist.limits.POLITE_EXIT_SECONDS", 0.2)
    monkeypatch.setattr("hybriddist.managers.local.TERM_EXIT_SECONDS", 0.2)
    os.kill(ospid_of(workers[0]), signal.SIGSTOP)
    hd.rmprocs(workers[0], waitfor=20)
    assert_gone(workers[0], workers[1:])


def test_death_of_a_consumer_ends_a_blocked_send(workers: list[int]) -> None:
    """The ring and all buffers are full, because nobody reads; the sender hears of the reader's end."""
    ospid = ospid_of(workers[0])
    os.kill(ospid, signal.SIGSTOP)
    ends: list[BaseException] = []

    def send() -> None:
        try:
            while True:
                hd.remote_do(len, workers[0], bytes(1_000_000))
        except Exception as error:
            ends.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    poll_for(lambda: _is_blocked(thread))
    used = time.process_time()
    time.sleep(0.3)  # this is how long it is watched
    assert time.process_time() - used < 0.15, "it spins while it waits"
    os.kill(ospid, signal.SIGKILL)
    thread.join(END_SECONDS)
    assert [message_of(error).pid for error in ends] == [workers[0]]
    assert_gone(workers[0], workers[1:])


def _is_blocked(thread: threading.Thread) -> bool:
    """Whether a sending thread waits for room: it is at the same place, in `wait_for_room`, for a while."""
    for _ in range(20):
        frame = sys._current_frames().get(thread.ident or 0)
        names = set()
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        if "wait_for_room" not in names:
            return False
        time.sleep(0.005)
    return True


def test_death_in_the_middle_of_a_large_array(workers: list[int]) -> None:
    """Never part of an array; and the next transfer works."""
    numpy = pytest.importorskip("numpy")
    size = 40_000_000

    def make() -> Any:
        import numpy

        return numpy.full(size, 7, numpy.uint8)

    for pid, delay in zip(workers[:2], (0.005, 0.03), strict=True):
        ospid = ospid_of(pid)
        calls = [hd.remotecall(make, pid) for _ in range(4)]
        timer = threading.Timer(delay, os.kill, (ospid, signal.SIGKILL))
        timer.start()
        for call in calls:
            with contextlib.suppress(hd.ProcessExitedException):
                assert numpy.array_equal(call.fetch(timeout=20), numpy.full(size, 7, numpy.uint8))
        timer.join()
    poll_for(lambda: hd.workers() == workers[2:])
    assert numpy.array_equal(hd.remotecall_fetch(make, workers[2]), make())


def test_a_child_of_a_worker_does_not_hide_its_death(workers: list[int]) -> None:
    """A process that a call has forked holds copies of the worker's connections."""

    def breed() -> int:
        import os
        import time

        ospid = os.fork()
        if ospid == 0:
            time.sleep(60)
            os._exit(0)
        return ospid

    one, two, three = workers
    child = hd.remotecall_fetch(breed, one)
    try:
        kill(one)
        assert_gone(one, [two, three])
        with pytest.raises(hd.ProcessExitedException, match="SIGKILL"):
            hd.remotecall_fetch(hd.myid, one)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "return", "raise", "call"])
def test_a_child_of_a_call_does_not_speak_for_its_worker(workers: list[int], end: str) -> None:
    """However it ends, the worker, its connections and its shared memory stay as they are."""

    def fork() -> tuple[str, int]:
        import os
        import sys

        import hybriddist as hd

        ospid = os.fork()
        if ospid:
            return "parent", os.waitpid(ospid, 0)[1]
        if end == "os._exit(0)":
            os._exit(0)
        if end == "sys.exit(0)":
            sys.exit(0)
        if end == "raise":
            raise ValueError("in the child")
        if end == "call":
            hd.remotecall_fetch(hd.myid, 1)
        return "child", 0

    one, two, _ = workers
    hd.remotecall_fetch(hd.remotecall_fetch, two, hd.myid, one)
    for _ in range(3):
        assert hd.remotecall(fork, one).fetch(timeout=20)[0] == "parent"
    assert hd.workers() == workers
    assert hd.remotecall_fetch(len, one, bytes(10**6)) == 10**6
    assert hd.remotecall_fetch(hd.remotecall_fetch, two, hd.myid, one) == one


def test_death_while_others_are_added(workers: list[int], transport: str) -> None:
    def add() -> None:
        added.extend(hd.addprocs(3, transport=transport))

    added: list[int] = []
    ospid = ospid_of(workers[0])
    thread = threading.Thread(target=add)
    thread.start()
    os.kill(ospid, signal.SIGKILL)
    thread.join(30)
    assert_gone(workers[0], [*workers[1:], *added])
