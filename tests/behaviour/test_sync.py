"""`sync`: a block that ends when all that was begun in it has ended."""

# ruff: noqa: PT012 - what a block of several statements raises is what is tested here

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ScriptRunner

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]


def fail(text: str) -> None:
    raise ValueError(text)


def after(gate: hd.Future, text: str = "") -> None:
    """Wait for the gate, then fail if there is a text."""
    gate.wait(10)
    if text:
        raise ValueError(text)


def texts(group: hd.CompositeException) -> list[Any]:
    return [(error.__cause__ or error).args[0] for error in group]


def test_it_waits_for_every_kind_of_call(cluster: list[int]) -> None:
    gates = [hd.Future() for _ in range(3)]
    with hd.sync() as scope:
        futures = [hd.spawn(after, gates[0]), hd.spawnat(cluster[0], after, gates[1]), hd.spawnat(1, after, gates[1])]
        loop = hd.distributed(lambda _: after(gates[2]), range(3))
        with pytest.raises(TimeoutError, match="within 0 seconds: the first that did not is number 1 of 4"):
            scope.wait(0)
        for gate in gates:
            gate.put(None)
    assert all(future.isready() for future in futures)
    assert loop.isready()


def test_a_plain_remotecall_and_a_reducer_do_not_join(cluster: list[int]) -> None:
    gate = hd.Future()
    with hd.sync() as scope:
        future = hd.remotecall(after, cluster[0], gate, "not noticed")
        assert hd.distributed(abs, [-1, 2], reduce=max) == 2
        hd.remotecall_fetch(abs, cluster[1], -1)
        assert scope._begun == []
    gate.put(None)
    with pytest.raises(hd.RemoteException, match="not noticed"):
        future.fetch()


def test_all_failures_come_in_order_of_submission(cluster: list[int]) -> None:
    a, b, c = cluster
    gate = hd.Future()
    with pytest.raises(hd.CompositeException) as info, hd.sync():
        hd.spawnat(a, after, gate, "ended last")
        hd.spawnat(b, fail, "second")
        hd.spawnat(b, abs, -1)
        hd.distributed(lambda x: fail(f"part {x}"), [0, 1, 2])
        hd.spawnat(1, fail, "here")
        hd.spawn(fail, "the end")
        gate.put(None)
    assert isinstance(info.value, ExceptionGroup)
    assert all(type(error) is hd.RemoteException for error in info.value)
    assert texts(info.value) == ["ended last", "second", "part 0", "part 1", "part 2", "here", "the end"]
    assert [error.pid for error in info.value][:6] == [a, b, a, b, c, 1]
    assert len(info.value) == 7
    assert str(info.value).startswith(f"sync: calls failed: On worker {a}:")
    assert str(info.value).endswith("...and 6 more exceptions.")


def test_the_others_go_on_when_one_fails(cluster: list[int]) -> None:
    gate = hd.Future()
    done = hd.Future()

    def finish(gate: hd.Future, done: hd.Future) -> None:
        gate.wait(10)
        done.put("finished")

    with pytest.raises(hd.CompositeException), hd.sync():
        hd.spawnat(cluster[0], fail, "at once")
        hd.spawnat(cluster[1], finish, gate, done)
        gate.put(None)
    assert done.fetch(0) == "finished"


# ---- the block itself -----------------------------------------------------------------------------------------------


def test_a_block_that_raises_waits_all_the_same(cluster: list[int]) -> None:
    gate = hd.Future()
    opener = threading.Timer(0.05, gate.put, [None])
    with pytest.raises(LookupError, match="own"), hd.sync():
        future = hd.spawn(after, gate)
        opener.start()
        raise LookupError("own")
    opener.join()
    assert future.isready()


def test_the_blocks_exception_is_the_first_of_the_group(cluster: list[int]) -> None:
    with pytest.raises(hd.CompositeException) as info, hd.sync():
        hd.spawn(fail, "one")
        hd.spawn(fail, "two")
        raise LookupError("own")
    assert texts(info.value) == ["own", "one", "two"]
    assert type(info.value.exceptions[0]) is LookupError
    assert str(info.value) == "sync: calls failed: LookupError: own\n...and 2 more exceptions."
    assert str(hd.CompositeException("failed", [AssertionError(), KeyError(1)])).startswith("failed: AssertionError\n")


def test_blocks_nest_and_each_waits_for_its_own(cluster: list[int]) -> None:
    gate = hd.Future()
    with pytest.raises(hd.CompositeException) as info, hd.sync() as outer:
        first = hd.spawn(after, gate, "outer")
        with pytest.raises(hd.CompositeException) as inner, hd.sync():
            hd.spawn(fail, "inner")
        assert texts(inner.value) == ["inner"]
        assert not first.isready()
        hd.spawn(fail, "outer again")
        assert len(outer._begun) == 2
        gate.put(None)
    assert texts(info.value) == ["outer", "outer again"]


def test_an_inner_failure_that_is_not_handled_is_the_outer_blocks_own(cluster: list[int]) -> None:
    with pytest.raises(hd.CompositeException) as info, hd.sync():
        hd.spawn(fail, "outer")
        with hd.sync():
            hd.spawn(fail, "inner")
    assert type(info.value.exceptions[0]) is hd.CompositeException
    assert texts(info.value.exceptions[0]) == ["inner"]
    assert texts(hd.CompositeException("", info.value.exceptions[1:])) == ["outer"]


def test_after_the_block_nothing_joins(cluster: list[int]) -> None:
    with hd.sync() as scope:
        pass
    future = hd.spawn(abs, -1)
    assert scope._begun == []
    assert future.fetch() == 1


def test_functions_join_and_threads_do_not_unless_their_context_is_copied(cluster: list[int]) -> None:
    def begin() -> None:
        hd.spawn(abs, -1)

    with hd.sync() as scope:
        begin()
        assert len(scope._begun) == 1
        context = contextvars.copy_context()
        for target, joined in ((begin, 1), (lambda: context.run(begin), 2)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
            assert len(scope._begun) == joined


def test_in_asyncio_each_task_has_its_own_and_children_join(cluster: list[int]) -> None:
    async def child() -> None:
        hd.spawn(fail, "child")

    async def task(text: str) -> list[Any]:
        try:
            with hd.sync():
                await asyncio.sleep(0)
                hd.spawn(fail, text)
                await asyncio.create_task(child())
        except hd.CompositeException as group:
            return texts(group)
        return []

    async def run() -> list[list[Any]]:
        return await asyncio.gather(task("a"), task("b"))

    assert asyncio.run(run()) == [["a", "child"], ["b", "child"]]


# ---- ends -----------------------------------------------------------------------------------------------------------


def test_a_timeout_loses_nothing(cluster: list[int]) -> None:
    gate = hd.Future()
    scope = hd.sync(timeout=0.05)
    with pytest.raises(TimeoutError, match=r"within 0\.05 seconds: the first that did not is number 2 of 2"), scope:
        hd.spawnat(cluster[0], abs, -1)
        hd.spawnat(cluster[1], after, gate, "late")
    gate.put(None)
    with pytest.raises(hd.CompositeException) as info:
        scope.wait(10)
    assert texts(info.value) == ["late"]
    with pytest.raises(TypeError, match="timeout must be a number"):
        hd.sync("5")  # type: ignore[arg-type]


def test_a_timeout_error_of_a_call_is_a_failure(cluster: list[int]) -> None:
    def run_out() -> None:
        raise TimeoutError("of the call")

    with pytest.raises(hd.CompositeException) as info, hd.sync(timeout=30):
        hd.spawn(run_out)
    assert texts(info.value) == ["of the call"]


def test_ctrl_c_gets_through_while_waiting(run_python: ScriptRunner, transport: str) -> None:
    """In a process of its own: Ctrl-C is for the whole of it."""
    if transport == "memory":
        return  # these clusters are inside this process
    done = run_python(
        f"""
        import gc, signal, sys, threading, time
        import hybriddist as hd
        from hybriddist.scopes import Scope

        gc.disable()  # Python 3.11 may not collect while frames are looked at
        main = threading.main_thread().ident

        def is_waiting():
            frame = sys._current_frames()[main]
            while frame is not None and frame.f_code is not Scope.wait.__code__:
                frame = frame.f_back
            return frame is not None

        def strike():
            begun.wait(10)
            while not is_waiting():
                time.sleep(0.001)
            signal.pthread_kill(main, signal.SIGINT)

        def hold(begun, gate):
            begun.put(None)
            gate.wait(10)

        hd.addprocs(1, transport={transport!r})
        begun, gate = hd.Future(), hd.Future()
        threading.Thread(target=strike).start()
        try:
            with hd.sync():
                future = hd.spawn(hold, begun, gate)
        except KeyboardInterrupt:
            print("interrupted", future.isready())
        gate.put(None)
        future.wait(10)
        print("ended")
        """
    )
    assert (done.stdout, done.stderr) == ("interrupted False\nended\n", "")


def test_an_exit_in_the_block_does_not_wait(cluster: list[int]) -> None:
    gate = hd.Future()
    with pytest.raises(SystemExit), hd.sync():
        future = hd.spawn(after, gate)
        raise SystemExit(3)
    assert not future.isready()
    gate.put(None)
    future.wait(10)


def test_the_death_of_a_worker_is_a_failure(run_python: ScriptRunner, transport: str) -> None:
    if transport == "memory":
        return  # a call that ends its process would end the test
    done = run_python(
        f"""
        import os
        import hybriddist as hd
        a, b = hd.addprocs(2, transport={transport!r})
        try:
            with hd.sync():
                hd.spawnat(a, os._exit, 3)
                fine = hd.spawnat(b, pow, 2, 3)
                hd.spawnat(b, lambda: 1 / 0)
        except hd.CompositeException as group:
            dead, failed = group
            assert type(dead) is hd.ProcessExitedException and (dead.pid, dead.exitcode) == (a, 3)
            assert type(failed) is hd.RemoteException and failed.pid == b
            assert fine.fetch() == 8
            print("all right")
        """
    )
    assert done.stdout == "all right\n", done.stderr


def test_on_a_worker_it_is_the_same(cluster: list[int]) -> None:
    def nested(others: list[int]) -> list[Any]:
        try:
            with hd.sync():
                for pid in others:
                    hd.spawnat(pid, fail, str(pid))
        except hd.CompositeException as group:
            return texts(group)
        return []

    others = [*cluster[1:], 1]
    assert hd.remotecall_fetch(nested, cluster[0], others) == [str(pid) for pid in others]


def test_many(cluster: list[int]) -> None:
    with hd.sync():
        futures = [hd.spawn(abs, -number) for number in range(300)]
    assert poll_for(lambda: all(future.isready() for future in futures))
    assert [future.fetch() for future in futures] == list(range(300))
