"""References in what cannot be rebuilt at its receiver are given up; those in exceptions arrive alive."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.runtime.context import this_process
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

KEPT: dict[str, Any] = {}
"""What a call leaves behind on a process (in a memory cluster: on all of them)."""


class Bad:
    """Cannot be rebuilt anywhere."""

    def __reduce__(self) -> Any:
        return boom, ()


class BadError(Exception):
    """Likewise."""

    def __reduce__(self) -> Any:
        return boom, ()


def boom() -> None:
    raise KeyError("boom")


def drop(*_: Any, **__: Any) -> None:
    pass


def keep(value: Any) -> None:
    KEPT["it"] = value


def use_and_forget() -> Any:
    return look_at(KEPT.pop("it"))


def look_at(thing: Any) -> Any:
    """What is behind a reference."""
    return thing.tolist() if isinstance(thing, hd.SharedArray) else thing.fetch()


def spoiled(thing: Any) -> Any:
    return [Bad(), thing]


def spoiled_item(thing: Any) -> hd.RemoteChannel:
    channel = hd.RemoteChannel()
    channel.put([Bad(), thing])
    return channel


def spoiled_and_error(thing: Any, pid: int) -> Any:
    """With the pickle of an exception in the pickle of the value."""
    try:
        hd.remotecall_fetch(fail_with, pid, thing)
    except hd.RemoteException as error:
        return [Bad(), error]


def fail_with(thing: Any) -> None:
    raise ValueError(thing)


def fail_with_attribute(thing: Any) -> None:
    error = ValueError("it is in an attribute")
    error.thing = thing  # type: ignore[attr-defined]
    error.lock = threading.Lock()  # type: ignore[attr-defined]  # so the parts are tried one by one
    try:
        raise error
    finally:
        del error  # which has this frame


def fail_by_value(thing: Any) -> None:
    """With an exception that is pickled twice: first in vain."""

    class LocalError(Exception):
        pass

    raise LocalError(thing)


def fail_in_a_chain(thing: Any) -> None:
    try:
        raise KeyError(thing)
    except KeyError as error:
        raise ValueError("caused") from error


def fail_and_cannot_be_rebuilt(thing: Any) -> None:
    raise ExceptionGroup("two", [BadError(thing), ValueError(thing)])


def future(pid: int) -> hd.Future:
    return hd.remotecall_wait(list, pid, [7.0])


def channel(pid: int) -> hd.RemoteChannel:
    made = hd.RemoteChannel(pid=pid)
    made.put([7.0])
    return made


def array(_: int) -> hd.SharedArray:
    made = hd.SharedArray(1)
    made[:] = 7
    return made


def known_array(pid: int) -> hd.SharedArray:
    """One that all have been sent: from then on it goes as a bare reference."""
    made = array(pid)
    hd.remotecall_all(drop, made)
    return made


@pytest.fixture(params=[future, channel, array, known_array], ids=lambda make: make.__name__)
def thing(request: pytest.FixtureRequest, cluster: list[int]) -> Iterator[list[Any]]:
    """The only handle to something, in a list; afterwards nothing is left of it anywhere."""
    holder = [request.param(cluster[0])]
    yield holder
    holder.clear()
    gc.collect()
    poll_for(
        lambda: [hd.live_references(pid) for pid in [1, *cluster]] == [[]] * 4, what="references that nobody released"
    )


# ---- what cannot be rebuilt ---------------------------------------------------------------------------------------


def closed_over(value: Any) -> Callable[..., Any]:
    return lambda *_: value


def put_and_take(pid: int, thing: Any) -> None:
    hd.remotecall_fetch(spoiled_item, pid, thing).take()


def gone_channel(pid: int, thing: Any) -> None:
    """An item for a channel that has been given up at its process."""
    there = hd.RemoteChannel(hd.Channel, pid)
    rrid = hd.remoteref_id(there)
    hd.remotecall_fetch(forget, pid, rrid)
    there.put([thing])


def forget(rrid: hd.RRID) -> None:
    this_process().store.discard(rrid)


WAYS: dict[str, Callable[[int, int, Any], Any]] = {
    "argument": lambda b, _, x: hd.remotecall_fetch(drop, b, Bad(), x),
    "argument before": lambda b, _, x: hd.remotecall_fetch(drop, b, x, Bad()),
    "in the midst": lambda b, _, x: hd.remotecall_fetch(drop, b, [x, {"a": [Bad()]}], {1: (x, {3})}, [x]),
    "keyword": lambda b, _, x: hd.remotecall_fetch(drop, b, Bad(), x=x),
    "wait": lambda b, _, x: hd.remotecall_wait(drop, b, Bad(), x),
    "function": lambda b, _, x: hd.remotecall_fetch(functools.partial(drop, Bad()), b, x),
    "defined function": lambda b, _, x: hd.remotecall_fetch(closed_over(Bad()), b, x),
    "captured": lambda b, _, x: hd.remotecall_fetch(closed_over([Bad(), x]), b),
    "several": lambda b, _, x: hd.pmap(drop, hd.WorkerPool([b]), [(Bad(), x)] * 3, batch_size=3),
    "future": lambda b, _, x: hd.Future(b).put([Bad(), x]),
    "channel": lambda b, _, x: hd.RemoteChannel(pid=b).put([Bad(), x]),
    "channel that is gone": lambda b, _, x: gone_channel(b, x),
    "result": lambda b, _, x: hd.remotecall_fetch(spoiled, b, x),
    "kept result": lambda b, _, x: hd.remotecall(spoiled, b, x).fetch(),
    "taken item": lambda b, _, x: put_and_take(b, x),
    "error in a value": lambda b, c, x: hd.remotecall_fetch(spoiled_and_error, b, x, c),
}


def let_go(thing: list[Any], owner: int) -> None:
    """Drop the handle here, and see that its owner has heard of that."""
    thing.clear()
    gc.collect()
    this_process().references.flush()
    hd.remotecall_fetch(bool, owner)


def test_references_in_values_that_cannot_be_rebuilt(thing: list[Any], cluster: list[int]) -> None:
    """Not kept for ever, and not given up too often either: what is sent next is held as it should be."""
    a, b, c = cluster
    for _ in range(2):
        for send in WAYS.values():
            with pytest.raises(hd.HybridDistError, match=r"boom|no channel|item"):
                send(b, c, thing[0])
    hd.remote_do(drop, b, Bad(), thing[0])
    hd.remotecall_fetch(keep, b, thing[0])
    let_go(thing, a)
    assert hd.remotecall_fetch(use_and_forget, b) == [7.0]


# ---- exceptions ---------------------------------------------------------------------------------------------------


def inside(error: BaseException) -> Any:
    """The reference that one of the functions above has put into an exception."""
    cause = error.__cause__
    assert cause is not None
    if isinstance(cause, hd.RemoteException):
        return inside(cause)
    if cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[1]
    return cause.args[0] if not hasattr(cause, "thing") else cause.thing


FAILURES = [fail_with, fail_with_attribute, fail_by_value, fail_in_a_chain, fail_and_cannot_be_rebuilt]


def test_references_in_exceptions_are_alive(thing: list[Any], cluster: list[int]) -> None:
    a, b, c = cluster
    for fail in FAILURES:
        for call in (hd.remotecall_fetch, functools.partial(hd.remotecall_fetch, hd.remotecall_fetch, c)):
            with pytest.raises(hd.RemoteException) as caught:
                call(fail, b, thing[0])
            assert inside(caught.value) is thing[0]
    del caught
    hd.remotecall_fetch(keep, b, thing[0])
    let_go(thing, a)
    assert hd.remotecall_fetch(use_and_forget, b) == [7.0]


def test_an_exception_holds_what_it_refers_to(thing: list[Any], cluster: list[int]) -> None:
    """What the caller did not have before, and whoever raised it has no more."""
    a, b, _ = cluster
    hd.remotecall_fetch(keep, b, thing[0])
    let_go(thing, a)
    with pytest.raises(hd.RemoteException) as caught:
        hd.remotecall_fetch(call_with_kept, b, fail_with)
    hd.remotecall_fetch(gc.collect, b)
    hd.remotecall_fetch(bool, a)
    assert look_at(inside(caught.value)) == [7.0]


def call_with_kept(fail: Callable[..., Any]) -> None:
    fail(KEPT.pop("it"))


def test_a_reference_in_the_exception_of_a_kept_call(thing: list[Any], cluster: list[int]) -> None:
    failed = hd.remotecall(fail_with, cluster[1], thing.pop())
    gc.collect()
    with pytest.raises(hd.RemoteException) as caught:
        hd.remotecall_fetch(hd.fetch, cluster[2], failed)
    with pytest.raises(hd.RemoteException) as own:
        failed.fetch()
    assert look_at(inside(own.value)) == look_at(inside(caught.value)) == [7.0]
