"""`empty`: whatever becomes of the array, everybody has what was put into it, and nobody sees what others write."""

from __future__ import annotations

import dataclasses
import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from hybriddist.runtime.context import known
from tests.helpers.mappings import mapped_sizes, place_of

pytestmark = [
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
    pytest.mark.leaks_by_module,
]

SIZES = [104, 40_000, 3_000_000]
"""In the message; in a slot of many; in a segment of its own."""

kept: list[Any] = []


@dataclasses.dataclass
class Holder:
    array: Any


def filled(size: int, mark: int = 5) -> Any:
    array = hd.empty(size, "u1")
    array[:] = mark
    return array


def with_place(size: int) -> Any:
    array = filled(size)
    return array, place_of(array)


def keep(keep_what: Callable[[Any], Any], size: int) -> Any:
    array = filled(size)
    kept.append(keep_what(array))
    return array, place_of(array)


def keep_only(array: Any) -> None:
    kept.append(array)


def give_kept(last: bool) -> Any:
    return kept.pop() if last else kept[-1]


def total(future: Any) -> set[int]:
    return values(future.fetch())


def make_and_pass_on(other: int, size: int) -> Any:
    array = filled(size)
    hd.remotecall_fetch(keep_only, other, array)
    return array


def overwrite_kept(mark: int) -> list[Any]:
    """Write into what was kept; its values before."""
    before = [values(each) for each in kept]
    for each in kept:
        np.asarray(each)[...] = mark
    return before


def forget() -> None:
    kept.clear()
    gc.collect()


def reserved() -> int:
    """Slots that this process computes in, for whoever asks."""
    return sum(
        sum(state == 3 for slab in peer.transport._arena._slabs.values() for state in slab.states)
        for peer in known().peers.values()
        if peer.transport.scheme == "shm"
    )


def values(array: Any) -> set[int]:
    return set(np.unique(np.asarray(array)).tolist())


# ---- it arrives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "shape_it",
    [
        lambda array: array,
        lambda array: array.reshape(-1, 4).T,
        lambda array: array[10:-10],
        lambda array: array[: array.size // 2],
        lambda array: array[::2],
        lambda array: array.view(np.recarray),
        lambda array: np.ma.masked_array(array),
        lambda array: array.view("M8[s]"),
    ],
)
def test_in_every_shape(cluster: list[int], size: int, shape_it: Callable[[Any], Any]) -> None:
    def make(size: int) -> Any:
        array = hd.empty(size, "u1")
        array[:] = np.arange(size) % 251
        return shape_it(array)

    expected = shape_it((np.arange(size) % 251).astype("u1"))
    received = hd.remotecall_fetch(make, cluster[0], size)
    assert (type(received), received.dtype, received.shape) == (type(expected), expected.dtype, expected.shape)
    assert received.tobytes() == expected.tobytes()
    received[...] = received[-1]


@pytest.mark.parametrize("size", SIZES)
def test_inside_other_values(cluster: list[int], size: int) -> None:
    def make() -> Any:
        one, two = filled(size, 1), filled(size, 2)
        return {"one": one, "all": (two, [one, two[5:]]), "holder": Holder(filled(size, 3))}

    received = hd.remotecall_fetch(make, cluster[0])
    two, (same, tail) = received["all"]
    assert same is received["one"]
    received["one"][:] = 11
    tail[:] = 12
    assert [values(each) for each in (received["one"], two, tail, received["holder"].array)] == [{11}, {2}, {12}, {3}]


def test_of_every_dtype(cluster: list[int]) -> None:
    def make(dtype: Any) -> Any:
        array = hd.empty((300, 200), dtype)
        array.fill(1)
        return array

    for dtype in ["?", "i2", ">f8", "c16", "M8[ns]", "U3", np.dtype("i4,f8")]:
        received = hd.remotecall_fetch(make, cluster[0], dtype)
        assert (received.dtype, received.shape) == (np.dtype(dtype), (300, 200))
        assert received.tobytes() == make(dtype).tobytes()


def test_no_items(cluster: list[int]) -> None:
    for shape in [0, (3, 0), ()]:
        assert hd.remotecall_fetch(lambda shape: hd.empty(shape), cluster[0], shape).shape == np.empty(shape).shape


@pytest.mark.parametrize("where", ["driver", "worker"])
def test_bad_arguments(cluster: list[int], where: str) -> None:
    def call(*args: Any) -> Any:
        if where == "driver":
            return hd.empty(*args)
        try:
            return hd.remotecall_fetch(lambda: hd.empty(*args) is None, cluster[0])
        except hd.RemoteException as error:
            raise error.__cause__ or error from None

    with pytest.raises(ValueError, match="negative side"):
        call((5, -1))
    with pytest.raises(TypeError, match="pointers to objects of one process"):
        call(5, object)
    with pytest.raises(TypeError, match="shape must be"):
        call("5")
    with pytest.raises(MemoryError):
        call(1 << 48)


def test_outside_of_a_call(cluster: list[int]) -> None:
    array = filled(40_000)
    assert (array.flags.owndata, array.shape, values(array)) == (True, (40_000,), {5})
    assert hd.remotecall_fetch(values, cluster[0], array) == {5}


# ---- it is the receiver's own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize(
    "what",
    [
        lambda array: array,
        lambda array: array[100:200],
        lambda array: memoryview(array)[7:],
        lambda array: array.reshape(-1, 8)[:, 3],
        lambda array: array.view("i1"),
    ],
)
def test_what_the_worker_has_kept(cluster: list[int], size: int, what: Callable[[Any], Any]) -> None:
    received, there = hd.remotecall_fetch(keep, cluster[0], what, size)
    assert place_of(received) != there
    assert hd.remotecall_fetch(overwrite_kept, cluster[0], 6) == [{5}]
    assert values(received) == {5}
    received[:] = 7
    assert hd.remotecall_fetch(overwrite_kept, cluster[0], 8) == [{6}]
    hd.remotecall_fetch(forget, cluster[0])
    assert hd.remotecall_fetch(reserved, cluster[0]) == 0
    assert values(received) == {7}


@pytest.mark.parametrize("size", SIZES)
def test_returned_twice(cluster: list[int], size: int) -> None:
    hd.remotecall_fetch(keep, cluster[0], lambda array: array, size)
    first, second, last = (hd.remotecall_fetch(give_kept, cluster[0], is_last) for is_last in (False, False, True))
    first[:], second[:] = 1, 2
    assert [values(each) for each in (first, second, last)] == [{1}, {2}, {5}]
    assert hd.remotecall_fetch(reserved, cluster[0]) == 0


@pytest.mark.parametrize("size", SIZES)
def test_as_the_value_of_a_future(cluster: list[int], size: int) -> None:
    future = hd.remotecall(filled, cluster[0], size)
    there = hd.remotecall(total, cluster[1], future)
    received = future.fetch()
    received[:] = 1
    assert there.fetch() == {5}


@pytest.mark.parametrize("size", SIZES)
def test_sent_to_somebody_else_as_well(cluster: list[int], size: int) -> None:
    received = hd.remotecall_fetch(make_and_pass_on, cluster[0], cluster[1], size)
    received[:] = 6
    assert hd.remotecall_fetch(overwrite_kept, cluster[1], 7) == [{5}]
    assert values(received) == {6}
    hd.remotecall_fetch(forget, cluster[1])


def test_in_a_channel(cluster: list[int]) -> None:
    channel = hd.RemoteChannel(lambda: hd.Channel(2))

    def make() -> Any:
        array = filled(40_000)
        channel.put(array)
        array[:] = 6
        return array

    received = hd.remotecall_fetch(make, cluster[0])
    assert (values(channel.take()), values(received)) == ({5}, {6})


# ---- without a copy -------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(transport: str) -> None:
    if transport != "shm":
        pytest.skip("there is no shared memory")


@pytest.mark.parametrize("size", SIZES[1:])
def test_the_same_memory(shared: None, cluster: list[int], size: int) -> None:
    for _ in range(3):
        received, there = hd.remotecall_fetch(with_place, cluster[0], size)
        assert place_of(received) == there
        assert hd.remotecall_fetch(reserved, cluster[0]) == 0


def test_between_two_workers(shared: None, cluster: list[int]) -> None:
    def ask(pid: int) -> bool:
        received, there = hd.remotecall_fetch(with_place, pid, 40_000)
        return bool(place_of(received) == there)

    assert hd.remotecall_fetch(ask, cluster[0], cluster[1])


def test_on_other_threads(shared: None, cluster: list[int]) -> None:
    """While the main thread is held up, and in a map."""
    gate = hd.RemoteChannel(lambda: hd.Channel(1))
    held_up = hd.remotecall(lambda: gate.take(), cluster[0])
    received, there, name = hd.remotecall_fetch(
        lambda: (*with_place(40_000), threading.current_thread().name), cluster[0]
    )
    assert name == "hybriddist-executor"
    assert place_of(received) == there
    for received, there in hd.pmap(with_place, [50_000] * 6):
        assert place_of(received) == there
    gate.put(1)
    held_up.fetch()


def test_slots_come_back(shared: None, cluster: list[int]) -> None:
    def fail() -> None:
        array = filled(3_000_000)
        raise ValueError(array.sum())

    def drop() -> None:
        filled(3_000_000)

    def mapped() -> int:
        return len(mapped_sizes())

    def exchange() -> tuple[int, int]:
        hd.remotecall_fetch(drop, cluster[0])
        with pytest.raises(hd.RemoteException):
            hd.remotecall_fetch(fail, cluster[0])
        assert values(hd.remotecall_fetch(filled, cluster[0], 3_000_000)) == {5}
        return hd.remotecall_fetch(mapped, cluster[0]), mapped()

    exchange()
    most = exchange()
    for _ in range(20):
        assert exchange() <= most
    hd.remotecall_fetch(gc.collect, cluster[0])
    assert hd.remotecall_fetch(reserved, cluster[0]) == 0


def make_and_fork() -> Any:
    array = filled(40_000)
    asks, told = os.pipe()
    answers, written = os.pipe()
    ospid = os.fork()
    if not ospid:
        os.close(told)
        os.read(asks, 1)
        array[:] = 9
        os.write(written, b"x")
        os._exit(0)
    os.close(asks)
    os.close(written)
    kept.append((ospid, told, answers))
    return array, place_of(array)


def let_it_write() -> bytes:
    ospid, told, answers = kept.pop()
    os.close(told)
    said = os.read(answers, 1)
    os.close(answers)
    os.waitpid(ospid, 0)
    return said


def test_a_forked_copy_of_the_worker_sees_nothing_of_it(shared: None, cluster: list[int]) -> None:
    """The copy lives longer than the call, and writes into what it has of the array."""

    received, there = hd.remotecall_fetch(make_and_fork, cluster[0])
    assert place_of(received) != there
    assert hd.remotecall_fetch(let_it_write, cluster[0]) == b"x"
    assert values(received) == {5}
