"""distributed: who hears of failures, and that workers are free afterwards."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import operator
import signal
import threading
import time
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for
from tests.helpers.printed import Printed
from tests.helpers.scripts import ScriptRunner

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp"], indirect=True, scope="module"),
]


def fails(x: Any) -> Any:
    raise ValueError(f"{x} is bad\nand more")


def nap(_: Any) -> None:
    """Far longer than a test may take; a short sleep at a time, so that threads can be interrupted too."""
    end = time.monotonic() + 100
    while time.monotonic() < end:
        time.sleep(0.01)


def workers_answer(pids: list[int]) -> None:
    """Within a second, and on the main thread: nothing else runs there."""

    def on_main() -> bool:
        return threading.current_thread() is threading.main_thread()

    end = time.monotonic() + 10
    for pid in pids:
        poll_for(lambda pid=pid: hd.remotecall(on_main, pid).fetch(10), timeout=end - time.monotonic())  # type: ignore[misc]


# ---- with a reducer -----------------------------------------------------------------------------------------------


def test_the_first_failure_has_the_others(cluster: list[int]) -> None:
    with pytest.raises(hd.RemoteException) as caught:
        hd.distributed(fails, range(7), reduce=operator.add)
    error: Any = caught.value
    assert error.__cause__.args == ("0 is bad\nand more",)
    assert [other.__cause__.args for other in error.others] == [("3 is bad\nand more",), ("5 is bad\nand more",)]
    assert error.__notes__ == [
        f"Also failed: chunk 2 of 3 (items[3:5]) on process {cluster[1]}: ValueError: 3 is bad",
        f"Also failed: chunk 3 of 3 (items[5:7]) on process {cluster[2]}: ValueError: 5 is bad",
    ]


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
def test_a_failure_cancels_the_others(schedule: Any, cluster: list[int]) -> None:
    def item(x: int) -> None:
        fails(x) if x == 20 else nap(x)

    with pytest.raises(hd.RemoteException, match="20 is bad") as caught:
        hd.distributed(item, [20, *range(19)], reduce=operator.add, schedule=schedule)
    assert caught.value.others == ()  # type: ignore[attr-defined]
    workers_answer(cluster)


def test_a_chunk_that_cannot_be_pickled_cancels_those_before(cluster: list[int]) -> None:
    items = [1, 2, threading.Lock()]
    with pytest.raises(hd.SerializeError, match="lock"):
        hd.distributed(nap, items, reduce=operator.add)
    workers_answer(cluster)
    with pytest.raises(hd.SerializeError, match="lock"):
        hd.distributed(nap, items)
    workers_answer(cluster)


def test_ctrl_c_frees_the_workers(cluster: list[int]) -> None:
    started = hd.RemoteChannel(lambda: hd.Channel(10))

    def item(x: int) -> None:
        started.put(x)
        nap(x)

    def strike() -> None:
        for _ in range(3):
            started.take(timeout=20)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        hd.distributed(item, range(3), reduce=operator.add)
    thread.join()
    workers_answer(cluster)


# ---- without ------------------------------------------------------------------------------------------------------


def test_cancel(cluster: list[int]) -> None:
    loop = hd.distributed(nap, range(50), schedule="dynamic")
    assert loop.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        loop.wait(10)
    assert loop.isready()
    assert loop.cancel()
    workers_answer(cluster)
    ended = hd.distributed(abs, range(3)).wait(10)
    assert not ended.cancel()
    ended.wait(0)


def test_await(cluster: list[int]) -> None:
    async def main() -> None:
        loop = hd.distributed(abs, range(3))
        assert await loop is loop
        with pytest.raises(hd.CompositeException) as caught:
            await hd.distributed(fails, range(3))
        assert len(caught.value) == 3

    asyncio.run(main())


def test_as_completed_takes_loops(cluster: list[int]) -> None:
    loops = [hd.distributed(abs, range(3)) for _ in range(3)]
    assert set(hd.as_completed(loops, timeout=10)) == set(loops)


def test_a_loop_does_not_travel(cluster: list[int]) -> None:
    with pytest.raises(hd.SerializeError, match="belongs to the process"):
        hd.remotecall_fetch(repr, cluster[0], hd.distributed(abs, range(3)))


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
def test_others_go_on_after_a_failure(schedule: Any, cluster: list[int]) -> None:
    done = hd.RemoteChannel(lambda: hd.Channel(100))

    def item(x: int) -> None:
        done.put(x)
        if x == 0:
            fails(x)

    loop = hd.distributed(item, range(30), schedule=schedule)
    with pytest.raises(hd.CompositeException) as caught:
        loop.wait(20)
    assert len(caught.value) == 1
    chunk = 10 if schedule == "static" else 5
    assert sorted(done.take() for _ in range(30 - chunk + 1)) == [0, *range(chunk, 30)]


def test_a_dropped_loop_that_fails_later_is_loud(cluster: list[int]) -> None:
    gate = hd.Future()
    with Printed() as printed:
        hd.distributed(lambda x: gate.wait(20) and fails(x), range(2))
        gc.collect()
        gate.put(True)
        printed.wait_for("chunk 2 of 2 (items[1:2])", "err")
        printed.wait_for("1 is bad", "err")
    text = printed.err
    assert text.count("nobody waited for it") == 1
    assert f"chunk 1 of 2 (items[0:1]) on process {cluster[0]}:\nOn worker {cluster[0]}:\nValueError: 0 is bad" in text


def test_a_loop_that_failed_and_is_dropped_then_is_loud(cluster: list[int]) -> None:
    with Printed() as printed:
        loop = hd.distributed(fails, range(1))
        poll_for(loop.isready)
        assert "nobody waited" not in printed.err
        del loop
        gc.collect()
        printed.wait_for("0 is bad", "err")


def test_who_has_waited_is_not_told_again(cluster: list[int]) -> None:
    with Printed() as printed:
        loop = hd.distributed(fails, ["heard"])
        with pytest.raises(hd.CompositeException):
            loop.wait(10)
        del loop
        gc.collect()
        hd.distributed(fails, ["unheard"])
        printed.wait_for("ValueError: unheard is bad", "err")
    assert "ValueError: heard" not in printed.err
    assert printed.err.count("nobody waited for it") == 1


def test_a_wait_that_timed_out_was_not_told(cluster: list[int]) -> None:
    gate = hd.Future()
    with Printed() as printed:
        with pytest.raises(TimeoutError):
            hd.distributed(lambda x: gate.wait(20) and fails(x), range(1)).wait(0)
        gate.put(True)
        gc.collect()
        printed.wait_for("ValueError: 0 is bad", "err")


@pytest.mark.parametrize("kept", ["loop = ", ""])
@pytest.mark.parametrize("end", ["", "hd.shutdown()"])
def test_the_end_of_the_program_tells(kept: str, end: str, cluster: list[int], run_python: ScriptRunner) -> None:
    done = run_python(
        f"""
        import time
        import hybriddist as hd
        from hybriddist.runtime.current import current

        hd.addprocs(2)
        def f(x):
            if x == 0:
                raise ValueError("zero is bad")
            started.put(x)
            time.sleep(100)
        started = hd.RemoteChannel()
        {kept}hd.distributed(f, range(2))
        started.take()
        while current().peers[2].pending:  # the failure of the first chunk is on its way
            time.sleep(0.001)
        {end}
        """
    )
    assert done.stderr.count("nobody waited for it") == 1, done.stderr
    assert "chunk 1 of 2 (items[0:1]) on process 2:\n" in done.stderr
    assert "zero is bad" in done.stderr
    assert "chunk 2 of 2 (items[1:2]) on process 3:\nworker 3 is gone" in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(("kept", "end"), [("loop = ", ""), ("", "raise ValueError('in flight')")])
def test_what_only_the_end_of_the_program_ended_is_no_failure(
    kept: str, end: str, cluster: list[int], run_python: ScriptRunner
) -> None:
    done = run_python(
        f"""
        import threading, time
        import hybriddist as hd

        hd.addprocs(2)
        def f(x):
            started.put(x)
            time.sleep(100)
        started = hd.RemoteChannel()
        for channel in (hd.RemoteChannel(2), hd.RemoteChannel()):
            threading.Thread(target=channel.take, daemon=True).start()
        {kept}hd.distributed(f, range(5), schedule="dynamic")
        started.take()
        started.take()
        {end}
        """
    )
    if not end:
        assert (done.stderr, done.returncode) == ("", 0)
    else:
        assert done.stderr.startswith("Traceback")
        assert done.stderr.endswith("\nValueError: in flight\n")
        assert done.stderr.count("hybriddist") == 0


def test_without_workers(cluster: list[int], run_python: ScriptRunner) -> None:
    """On the calling thread, with the same values and errors; loops without a reducer on another thread."""
    done = run_python(
        """
        import operator, threading
        import hybriddist as hd

        def where(x): return [threading.current_thread() is threading.main_thread()]
        def bad(x): raise ValueError(f"{x} is bad")

        print(hd.distributed(where, range(2), reduce=operator.add))
        print(hd.distributed(sum, range(10), reduce=operator.add, chunked=True, schedule="dynamic"))
        try:
            hd.distributed(bad, range(2), reduce=operator.add)
        except hd.RemoteException as error:
            print(error.pid, error.others)
        loop = hd.distributed(bad, [7])
        while not loop.isready():
            pass
        """
    )
    assert done.stdout == "[True, True]\n45\n1 ()\n", done.stderr
    assert done.stderr.count("nobody waited for it") == 1
    assert "7 is bad" in done.stderr


def test_all_workers_die_in_a_dynamic_loop(cluster: list[int], run_python: ScriptRunner) -> None:
    """What was not begun fails too, and the wait ends."""
    done = run_python(
        """
        import os, sys
        import hybriddist as hd

        def f(x): os._exit(3)

        for keywords in ({}, {"reduce": max}):
            hd.addprocs(2)
            try:
                loop = hd.distributed(f, range(40), schedule="dynamic", **keywords)
                loop.wait()
            except hd.CompositeException as group:
                print(len(group) > 2, {type(error).__name__ for error in group})
            except hd.ProcessExitedException as error:
                print("exited with code 3" in str(error))
            hd.rmprocs(hd.workers() if hd.nprocs() > 1 else [])
        """
    )
    assert done.stdout == "True {'ProcessExitedException'}\nTrue\n", done.stderr
