"""SharedArray: one memory for the processes of a node, whatever the connections between them are made of."""

from __future__ import annotations

import copy
import gc
import operator
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from hybriddist.runtime.context import this_process
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]


def fill_own(s: hd.SharedArray) -> None:
    for i in s.localindices():
        s[i] = hd.myid()


def set_item(s: hd.SharedArray, index: Any, value: Any) -> None:
    s[index] = value


def get_item(s: hd.SharedArray, index: Any) -> Any:
    return s[index]


def give_back(x: Any) -> Any:
    return x


def drop(_: Any) -> None:
    pass


def kinds(*args: Any, **kwargs: Any) -> list[str]:
    return [type(x).__name__ for x in (*args, *kwargs.values())]


def has(origin: tuple[int, int]) -> bool:
    """Whether anything of a shared array is left in this process."""
    gc.collect()
    process = this_process()
    process.references.flush()
    return process.blocks.find(hd.RRID(*origin)) is not None


def origin_of(s: hd.SharedArray) -> tuple[int, int]:
    return tuple(s._origin)


def is_gone(origin: tuple[int, int], pids: list[int]) -> bool:
    return not any(hd.remotecall_fetch(has, pid, origin) for pid in [1, *pids])


# ---- making ---------------------------------------------------------------------------------------------------------


def test_zeros_for_the_workers_of_the_node(cluster: list[int]) -> None:
    s = hd.SharedArray((4, 3), np.int32)
    assert (s.shape, s.dtype, s.ndim, s.size, s.nbytes, len(s)) == ((4, 3), np.dtype("int32"), 2, 12, 48, 4)
    assert s.pids == cluster
    assert not s.any()
    assert s.localindices() == range(4, 4)  # the driver has no share


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 100])
def test_init_runs_on_each_and_the_shares_cover_all(cluster: list[int], length: int) -> None:
    s = hd.SharedArray(length, int, init=fill_own)
    shares = [hd.remotecall_fetch(lambda: s.localindices(), pid) for pid in cluster]
    assert [i for share in shares for i in share] == list(range(length))
    sizes = [len(share) for share in shares]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
    assert s.tolist() == [pid for pid, share in zip(cluster, shares, strict=True) for _ in share]


def test_pids_have_the_shares_in_their_order(cluster: list[int]) -> None:
    pids = [cluster[2], 1]
    s = hd.SharedArray(4, int, pids=pids, init=fill_own)
    assert s.pids == pids
    assert s.tolist() == [cluster[2], cluster[2], 1, 1]
    assert s.localindices() == range(2, 4)
    assert hd.remotecall_fetch(lambda: s.pids, cluster[0]) == pids


def test_what_init_raises(cluster: list[int]) -> None:
    def fails(_: hd.SharedArray) -> None:
        raise ValueError(f"no, says {hd.myid()}")

    with pytest.raises(hd.CompositeException) as caught:
        hd.SharedArray(3, init=fails)
    assert [str(error.__cause__) for error in caught.value.exceptions] == [f"no, says {pid}" for pid in cluster]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(2, 3, 4),
        np.arange(24.0).reshape(4, 6)[::2, ::-1],
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(7.5),
        np.zeros((3, 0)),
        np.array(["a", "bcd"]),
        np.array([(1, 2.5)], dtype=[("x", "i4"), ("y", "f8")]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.array([True, False]),
        np.array([1, 2], dtype=">i8"),
    ],
    ids=repr,
)
def test_share_any_shape_and_dtype(cluster: list[int], array: np.ndarray[Any, Any]) -> None:
    s = hd.share(array)
    assert (s.shape, s.dtype) == (array.shape, array.dtype)
    received = hd.remotecall_fetch(np.array, cluster[0], s)
    assert received.dtype == array.dtype
    assert np.array_equal(received, array)


def test_share_copies(cluster: list[int]) -> None:
    array = np.arange(3)
    array.flags.writeable = False
    s = hd.share(array)
    s[0] = 9
    assert array[0] == 0
    t = hd.share(s)
    t[0] = 5
    assert s[0] == 9
    assert hd.share([1, 2]).tolist() == [1, 2]


# ---- one memory -----------------------------------------------------------------------------------------------------


def test_writes_are_seen_by_all(cluster: list[int]) -> None:
    s = hd.SharedArray(10)
    hd.remotecall_fetch(set_item, cluster[0], s, 3, 1.5)
    assert s[3] == 1.5
    s[4] = 2.5
    assert [hd.remotecall_fetch(get_item, pid, s, slice(3, 5)).tolist() for pid in cluster] == [[1.5, 2.5]] * 3


def test_the_same_object_comes_back(cluster: list[int]) -> None:
    s = hd.SharedArray(10)
    assert hd.remotecall_fetch(give_back, cluster[0], s) is s
    assert hd.remotecall_fetch(give_back, cluster[0], [s, s]) == [s, s]
    assert hd.remotecall_fetch(lambda a, b: a is b, cluster[1], s, s)
    future = hd.remotecall(give_back, cluster[0], {"a": s})
    assert future.fetch()["a"] is s


def test_it_travels_in_all_ways(cluster: list[int]) -> None:
    """As an argument by position and name, in a container, in a closure, in a channel, in a future, as a result."""
    s = hd.share(np.arange(5))
    a, b = cluster[:2]
    for _ in range(3):  # the first time it is described, then only named
        assert hd.remotecall_fetch(kinds, a, s, 1, x=s) == ["SharedArray", "int", "SharedArray"]
        assert hd.remotecall_fetch(lambda: int(s.sum()), a) == 10
        assert hd.remotecall_fetch(lambda x: int(x[0][0].sum()), a, [[s]]) == 10
    channel = hd.RemoteChannel(lambda: hd.Channel(2), a)
    channel.put(s)
    assert hd.remotecall_fetch(lambda c: int(c.take().sum()), b, channel) == 10
    future = hd.Future(a).put(s)
    assert hd.remotecall_fetch(lambda f: int(f.fetch().sum()), b, future) == 10
    made = hd.remotecall_fetch(lambda: hd.share(np.ones(3)), a)
    assert (made.where, made.sum()) == (a, 3)
    assert hd.remotecall_fetch(np.sum, b, made) == 3


def test_sent_by_somebody_else_with_what_goes_by_value(cluster: list[int]) -> None:
    """A lambda beside it makes pickling begin again: the handle must not be counted twice."""
    s = hd.share(np.arange(5))
    for _ in range(3):
        assert hd.remotecall_fetch(lambda x, f: int(f(x)), cluster[0], s, lambda x: x.sum()) == 10
    with pytest.raises(hd.SerializeError):
        hd.remotecall_fetch(drop, cluster[0], [s, threading.Lock()])
    origin = origin_of(s)
    del s
    poll_for(lambda: is_gone(origin, cluster))


def test_sent_and_dropped_at_once(cluster: list[int]) -> None:
    calls = [hd.remotecall(lambda x: int(x[3]), pid, hd.share(np.full(10, pid))) for pid in cluster * 10]
    assert [call.fetch() for call in calls] == cluster * 10


def test_no_size_costs_more_than_a_handle(cluster: list[int], transport: str) -> None:
    s = hd.SharedArray(256 << 20, np.uint8)
    process = this_process()
    for _ in range(2):
        body, buffers, _ = process.references._encode((s,), (), cluster[0])
        assert (len(body) < 500, list(buffers)) == (True, [])
        assert hd.remotecall_fetch(lambda x: x.nbytes, cluster[0], s) == 256 << 20


def test_from_many_threads(cluster: list[int]) -> None:
    s = hd.SharedArray(80, int)
    failures: list[BaseException] = []

    def work(i: int, s: hd.SharedArray = s) -> None:
        try:
            for k in range(10):
                hd.remotecall_fetch(set_item, cluster[i % 3], s, 10 * i + k, i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert s.tolist() == [i for i in range(8) for _ in range(10)]
    origin = origin_of(s)
    del s, work, threads, thread
    poll_for(lambda: is_gone(origin, cluster))


# ---- lifetimes ------------------------------------------------------------------------------------------------------


def test_it_goes_when_all_have_let_go(cluster: list[int]) -> None:
    s = hd.share(np.arange(1000))
    for pid in cluster:
        hd.remotecall_fetch(drop, pid, s)
        hd.remotecall_fetch(drop, pid, s)
    view = s[2:4]
    origin = origin_of(s)
    del s
    poll_for(lambda: is_gone(origin, cluster))
    assert view.tolist() == [2, 3]


def test_a_worker_keeps_it_when_the_driver_does_not(cluster: list[int], transport: str) -> None:
    a, b = cluster[:2]
    holder = hd.remotecall_wait(give_back, a, hd.share(np.arange(4)))
    gc.collect()
    assert hd.remotecall_fetch(lambda f: int(f.fetch().sum()), a, holder) == 6
    back = holder.fetch()
    assert back.tolist() == [0, 1, 2, 3]
    assert hd.remotecall_fetch(np.sum, b, back) == 6
    assert hd.remotecall_fetch(np.sum, b, back) == 6
    origin = origin_of(back)
    del holder, back
    poll_for(lambda: is_gone(origin, cluster))


def test_a_finalized_one_says_so(cluster: list[int]) -> None:
    s = hd.share(np.arange(4))
    view = np.asarray(s)
    hd.remotecall_fetch(drop, cluster[0], s)
    origin = origin_of(s)
    hd.finalize(s)
    hd.finalize(s)
    for use in (lambda: s[0], lambda: s + 1, lambda: np.sum(s), lambda: s.sum(), lambda: set_item(s, 0, 1)):
        with pytest.raises(hd.InvalidStateException, match="SharedArray was finalized"):
            use()
    assert repr(s) == str(s) == "<SharedArray, finalized>"
    assert view.tolist() == [0, 1, 2, 3]
    poll_for(lambda: is_gone(origin, cluster))


def test_a_pickle_outside_of_the_cluster_is_dead(cluster: list[int]) -> None:
    import pickle

    dead = pickle.loads(pickle.dumps(hd.SharedArray(3)))
    with pytest.raises(hd.InvalidStateException, match="outside of the cluster"):
        dead.sum()
    again = pickle.loads(pickle.dumps(dead))
    with pytest.raises(hd.InvalidStateException, match="outside of the cluster"):
        again.sum()


@pytest.mark.parametrize("way", ["finalized", "pickled"])
def test_one_without_memory_is_not_sent(way: str, cluster: list[int]) -> None:
    import pickle

    s = hd.SharedArray(3)
    channel = hd.RemoteChannel(lambda: hd.Channel(1), cluster[0])
    if way == "finalized":
        hd.remotecall_fetch(np.sum, cluster[0], s)
        hd.finalize(s)
    else:
        s = pickle.loads(pickle.dumps(s))
    for send in (
        lambda: hd.remotecall_fetch(np.sum, cluster[0], s),
        lambda: hd.remotecall(np.sum, cluster[0], x=[s]),
        lambda: hd.remote_do(lambda: s.sum(), cluster[0]),
        lambda: hd.pmap(lambda i: s[i], range(3)),
        lambda: channel.put(s),
    ):
        with pytest.raises(hd.SerializeError, match="SharedArray was finalized, or pickled outside") as caught:
            send()
        assert isinstance(caught.value.__cause__, hd.InvalidStateException)
    assert not channel.isready()


# ---- loops and maps -------------------------------------------------------------------------------------------------


def add_one(view: Any) -> int:
    assert type(view) is np.ndarray
    view += 1
    return len(view)


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
def test_distributed_gives_views(cluster: list[int], schedule: Any) -> None:
    s = hd.SharedArray((10, 2), int)
    assert hd.distributed(add_one, s, reduce=operator.add, chunked=True, schedule=schedule) == 10
    assert s.tolist() == [[1, 1]] * 10
    assert hd.distributed(add_one, s, reduce=operator.add, chunked=True, procs=[1], schedule=schedule) == 10
    with hd.sync():
        hd.distributed(add_one, s, schedule=schedule)  # item by item: rows, which are views too
    assert s.tolist() == [[3, 3]] * 10


def test_distributed_over_indices_writes_into_it(cluster: list[int]) -> None:
    s = hd.SharedArray(50, int)
    with hd.sync():

        @hd.distributed(range(50))
        def loop(i: int) -> None:
            s[i] = i * i

    assert s.tolist() == [i * i for i in range(50)]


def test_pmap_over_one(cluster: list[int]) -> None:
    s = hd.share(np.arange(6).reshape(2, 3))
    squares = hd.pmap(lambda x: int(x) ** 2, s)
    assert type(squares) is np.ndarray
    assert squares.tolist() == [[0, 1, 4], [9, 16, 25]]
    assert hd.pmap(lambda i: int(s[i].sum()), range(2)) == [3, 12]
    assert list(hd.imap(int, s[0])) == [0, 1, 2]


# ---- as an array ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    [
        lambda a: a + 1,
        lambda a: 1 - a,
        lambda a: a @ a.T,
        lambda a: -a,
        lambda a: a == a[0],
        lambda a: a > 2,
        lambda a: a // 2,
        lambda a: np.sin(a),
        lambda a: np.add.reduce(a),
        lambda a: np.concatenate([a, a]),
        lambda a: np.where(a > 2, a, 0),
        lambda a: np.einsum("ij->j", a),
        lambda a: np.linalg.norm(a),
        lambda a: a.mean(axis=0),
        lambda a: a.T,
        lambda a: a.reshape(-1),
        lambda a: a.copy(),
        lambda a: a.astype(float),
        lambda a: a[a > 2],
        lambda a: a[[0, 1]],
        lambda a: a[..., None],
        lambda a: np.array(a, dtype=float),
        lambda a: np.asarray(a),
        lambda a: sum(row.sum() for row in a),
        lambda a: list(a.flat),
        lambda a: 3 in a,
        lambda a: f"{a}" + str(a),
        lambda a: np.multiply.outer(a, a).shape,
        lambda a: divmod(a, 2)[1],
        lambda a: np.zeros_like(a),
        lambda a: np.split(a, 2)[0],
    ],
)
def test_it_works_where_an_ndarray_does(what: Callable[[Any], Any], transport: str) -> None:
    array = np.arange(6).reshape(2, 3)
    expected = what(array)
    found = what(hd.share(array))
    assert type(found) is type(expected)
    assert np.array_equal(found, expected)


def test_slices_are_views_and_arithmetic_is_not(transport: str) -> None:
    s = hd.share(np.arange(6).reshape(2, 3))
    view, table = s[1:], np.asarray(s)
    other = s + 0
    s[1, 0] = 9
    assert (view[0, 0], table[1, 0], s.T[0, 1], other[1, 0]) == (9, 9, 9, 3)
    assert np.shares_memory(view, table)
    assert not np.shares_memory(np.array(s), table)
    assert not np.shares_memory(np.asarray(s, dtype=float), table)


def test_in_place(transport: str) -> None:
    s = hd.share(np.arange(3))
    same = s
    s += 1
    s *= s
    np.subtract(s, 1, out=s)
    assert np.cumsum(s, out=s) is s
    assert s is same
    assert s.tolist() == [0, 3, 11]
    q, r = hd.SharedArray(3, int), hd.SharedArray(3, int)
    assert np.divmod(s, 2, out=(q, r))[1] is r
    assert (q.tolist(), r.tolist()) == ([0, 1, 5], [0, 1, 1])
    s[...] = 7
    s[hd.share(np.array([True, False, False]))] = 1
    assert s.tolist() == [1, 7, 7]
    s.fill(2)
    s.sort()
    assert s.tolist() == [2, 2, 2]


def test_scalars_and_text(transport: str) -> None:
    s = hd.share(np.array(3))
    assert (int(s), float(s), complex(s), bool(s), list(range(5))[s], s.item()) == (3, 3.0, 3 + 0j, True, 3, 3)
    assert s.localindices() == range(0)
    with pytest.raises(TypeError, match="unsized"):
        len(s)
    assert repr(hd.share(np.array([1.5]))) == "SharedArray([1.5], dtype=float64)"
    with pytest.raises(AttributeError, match="no_such_thing"):
        s.no_such_thing  # noqa: B018
    with pytest.raises(TypeError, match="unhashable"):
        hash(s)


def test_copies(cluster: list[int]) -> None:
    s = hd.share(np.arange(3))
    assert copy.copy(s) is s
    deep = copy.deepcopy(s)
    assert type(deep) is hd.SharedArray
    deep[0] = 9
    assert (s[0], deep.pids) == (0, s.pids)
    with pytest.raises(ValueError, match="without a copy"):
        s.__array__(float, copy=False)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (((-1, 3),), ValueError, "negative side"),
        (((2.5,),), TypeError, "shape must be"),
        (("abc",), TypeError, "shape must be"),
        ((None,), TypeError, "shape must be"),
        (((1,) * 33,), ValueError, "at most 32"),
        ((3, object), TypeError, "pointers to objects"),
        ((3, [("a", object)]), TypeError, "pointers to objects"),
        ((3, "V"), TypeError, "a size of its own"),
        ((3, "no such"), TypeError, "no such"),
        ((3, "(2,)f8"), TypeError, "put its shape"),
        ((1 << 60,), hd.SharedMemoryFull, "no shared memory"),
    ],
)
def test_bad_shapes_and_dtypes(arguments: Any, error: type[Exception], text: str, transport: str) -> None:
    with pytest.raises(error, match=text):
        hd.SharedArray(*arguments)


def test_bad_pids_and_the_rest(cluster: list[int], tmp_path: Path) -> None:
    for keywords, error, text in (
        ({"pids": []}, ValueError, "at least one"),
        ({"pids": [1, 1]}, ValueError, "each once"),
        ({"pids": [99_999]}, hd.NoSuchProcessError, "99999"),
        ({"pids": ["a"]}, TypeError, "pid"),
        ({"init": 3}, TypeError, "init"),
        ({"mode": "r"}, ValueError, "file="),
        ({"file": "relative"}, ValueError, "absolute"),
        ({"file": tmp_path / "x", "mode": "w"}, ValueError, "'r\\+'"),
        ({"file": tmp_path / "x", "mode": "r"}, FileNotFoundError, "x"),
        ({"file": tmp_path / "x", "mode": "r+"}, FileNotFoundError, "x"),
        ({"file": tmp_path, "mode": "r"}, ValueError, "no regular file"),
        ({"file": tmp_path / "x", "offset": -1}, ValueError, "offset"),
        ({"file": 3.5}, TypeError, "float"),
    ):
        with pytest.raises(error, match=text):
            hd.SharedArray(3, **keywords)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError, match="masked"):
        hd.share(np.ma.masked_array([1, 2], mask=[True, False]))
    with pytest.raises(TypeError, match="pointers"):
        hd.share(np.array([object()]))
    with pytest.raises(ValueError, match="rows"):
        hd.SharedArray(3).publish(range(2, 4))


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_new_file(cluster: list[int], tmp_path: Path) -> None:
    path = tmp_path / "data"
    s = hd.SharedArray(4, int, file=path, mode="w+", init=fill_own)
    assert not s.is_copy
    s[0] = 77
    s.flush()
    expected = [77, cluster[0], cluster[1], cluster[2]]
    assert np.fromfile(path, int).tolist() == s.tolist() == expected
    assert hd.remotecall_fetch(np.sum, cluster[1], s) == sum(expected)
    again = hd.SharedArray(4, int, file=str(path))  # "r+": it is there
    assert again.tolist() == expected
    again[1] = 0
    assert hd.remotecall_fetch(get_item, cluster[0], s, 1) == 0
    emptied = hd.SharedArray(2, int, file=path, mode="w+")
    assert emptied.tolist() == [0, 0]
    assert os.path.getsize(path) == 16


def test_a_part_of_a_file_read_only(cluster: list[int], tmp_path: Path) -> None:
    path = tmp_path / "data"
    np.arange(1000).tofile(path)
    s = hd.SharedArray((10, 5), int, file=path, mode="r", offset=800 * 8)
    assert hd.remotecall_fetch(lambda: int(s[9, 4]), cluster[0]) == 849
    with pytest.raises(ValueError, match="read-only"):
        s[0] = 1
    with pytest.raises(hd.RemoteException, match="read-only"):
        hd.remotecall_fetch(set_item, cluster[0], s, 0, 1)
    with pytest.raises(ValueError, match="read-only"):
        s.publish()
    with pytest.raises(ValueError, match="has 8000 bytes; the array needs 8008"):
        hd.SharedArray(1001, int, file=path, mode="r")
    assert os.path.getsize(path) == 8000


def test_a_file_is_extended(tmp_path: Path, transport: str) -> None:
    path = tmp_path / "data"
    np.arange(3).tofile(path)
    s = hd.SharedArray(6, int, file=path, mode="r+")
    assert s.tolist() == [0, 1, 2, 0, 0, 0]
    with pytest.raises(OSError, match=r"."):
        hd.SharedArray(1 << 58, int, file=path, mode="r+")
    assert os.path.getsize(path) == 48
    assert hd.SharedArray(2, int, file=tmp_path / "new", mode="a+").tolist() == [0, 0]
    assert hd.SharedArray(6, int, file=path, mode="a+").tolist() == [0, 1, 2, 0, 0, 0]


def test_a_file_that_was_renamed_or_removed(cluster: list[int], tmp_path: Path) -> None:
    path = tmp_path / "data"
    s = hd.SharedArray(4, int, file=path)
    path.unlink()
    s[2] = 5
    assert hd.remotecall_fetch(np.sum, cluster[0], s) == 5
