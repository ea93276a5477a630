"""Channels, local and remote: order, capacity, closing, and that each item goes to exactly one taker."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

Make = Callable[..., Any]


@pytest.fixture(params=["channel", "self", "other"])
def make(request: pytest.FixtureRequest, cluster: list[int]) -> Make:
    """Makes a channel like ``hd.Channel(...)``: a local one, or a remote one here or on a worker."""
    if request.param == "channel":
        return hd.Channel
    pid = 1 if request.param == "self" else cluster[0]
    return lambda *args, **keywords: hd.RemoteChannel(lambda: hd.Channel(*args, **keywords), pid)


@pytest.fixture(params=["self", "other"])
def where(request: pytest.FixtureRequest, cluster: list[int]) -> int:
    return 1 if request.param == "self" else cluster[0]


@pytest.fixture(autouse=True)
def no_thread_waits() -> Iterator[None]:
    yield
    poll_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("test-")], what="a thread still waits")


def in_thread(function: Callable[[], Any]) -> Callable[[], Any]:
    """Begin something on another thread; what is returned waits for its result, or raises its exception."""
    ends: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            ends.append((True, function()))
        except BaseException as error:
            ends.append((False, error))

    thread = threading.Thread(target=run, name="test-thread", daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(30)
        assert ends, "the thread waits for ever"
        good, value = ends[0]
        if good:
            return value
        raise value

    return result


def is_closed_error(error: BaseException) -> bool:
    """InvalidStateException; in a RemoteException if the channel is elsewhere."""
    return isinstance(error.__cause__ if isinstance(error, hd.RemoteException) else error, hd.InvalidStateException)


def raises_closed(function: Callable[[], Any]) -> None:
    with pytest.raises((hd.InvalidStateException, hd.RemoteException), match="closed") as caught:
        function()
    assert is_closed_error(caught.value)
    error: Any = caught.value.__cause__ if isinstance(caught.value, hd.RemoteException) else caught.value
    assert pickle.loads(pickle.dumps(error)).state == error.state == "closed"


def waiting_at(channel: Any) -> int:
    """How many wait in the channel, asked of its owner."""
    if isinstance(channel, hd.Channel):
        return channel.waiting()
    rrid = hd.remoteref_id(channel)
    return hd.remotecall_fetch(lambda: hd.channel_from_id(rrid).waiting(), channel.where)


# ---- one thread ---------------------------------------------------------------------------------------------------


def test_items_of_all_types_in_order(make: Make) -> None:
    c = make(10)
    assert c.put(1) is c
    c.put("two").put([3, {"four": None}])
    assert c.isready()
    assert c.fetch() == c.fetch() == hd.fetch(c) == 1
    assert [c.take(), hd.take(c), c.take()] == [1, "two", [3, {"four": None}]]
    assert not c.isready()
    assert c.isempty()
    assert c.isopen()
    assert hd.isopen(c)
    c.close()
    assert not c.isopen()


def test_functions_of_the_same_names(make: Make) -> None:
    c = make(2)
    assert hd.put(c, 1) is c
    assert hd.wait(c) is c
    assert hd.isready(c)
    assert hd.fetch(c, timeout=10) == hd.take(c, timeout=10) == 1
    with pytest.raises(TimeoutError):
        hd.take(c, timeout=0.01)
    hd.put(c, None)
    assert hd.take(c) is None
    hd.close(c)
    assert not hd.isopen(c)


def test_isempty_takes_nothing(make: Make) -> None:
    c = make(1)
    c.put(1)
    assert [c.isempty(), c.isempty(), c.take(), c.isempty()] == [False, False, 1, True]


def test_an_unlimited_channel(make: Make) -> None:
    c = make(math.inf)
    for i in range(500):
        c.put(i)
    assert [c.take() for _ in range(500)] == list(range(500))


def test_arrays_go_through_whole(make: Make) -> None:
    c = make(4)
    sent = [np.arange(300_000), np.ones((3, 5)).T, np.array(["a", None], dtype=object), np.float32(1.5)]
    for array in sent:
        c.put(array)
    got = [c.take() for _ in sent]
    for a, b in zip(sent, got, strict=True):
        np.testing.assert_array_equal(a, b)
    got[0][0] = 7  # writable, and one's own


def test_a_channel_without_a_factory_holds_one_item(where: int) -> None:
    c = hd.RemoteChannel(where)
    c.put(1)
    with pytest.raises(TimeoutError):
        c.put(2, timeout=0.01)
    assert c.take() == 1
    assert c.put(3).take() == 3


def test_what_is_put_is_the_object_here_and_a_snapshot_elsewhere(make: Make) -> None:
    c = make(3)
    item: list[int] = []
    for i in (1, 2, 3):
        item[:] = [i]
        c.put(item)
    here = isinstance(c, hd.Channel) or c.where == 1
    assert [c.take() for _ in range(3)] == ([[3], [3], [3]] if here else [[1], [2], [3]])


def test_fetch_gives_the_owner_the_same_object_each_time(cluster: list[int]) -> None:
    """Also of an item that came from elsewhere; and a change of it is seen by whoever takes it."""
    c = hd.RemoteChannel(lambda: hd.Channel(2), cluster[0])
    for item in ([1], np.zeros(10_000)):
        c.put(item)

        def look(c: hd.RemoteChannel) -> bool:
            one, other = c.fetch(), c.fetch()
            one[0] = 5
            return one is other

        assert c.fetch()[0] in (0, 1)
        assert hd.remotecall_fetch(look, cluster[0], c)
        assert c.take()[0] == 5


def test_indexing_happens_at_the_owner(make: Make) -> None:
    c = make(1)
    c.put({"a": [1, 2], ("x", 2): 3})
    assert c[()] == c.fetch()
    assert c["a"] == [1, 2]
    assert c["x", 2] == 3
    with pytest.raises((KeyError, hd.RemoteException), match="nonsense"):
        c["nonsense"]
    assert not c.isempty()
    a = np.arange(12).reshape(3, 4)
    c.take()
    c.put(a)
    assert c[1, 2] == 6
    assert list(c[0]) == [0, 1, 2, 3]


def test_indexing_waits_for_an_item(cluster: list[int]) -> None:
    c = hd.RemoteChannel(lambda: hd.Channel(1), cluster[0])
    first = in_thread(lambda: c[0])
    poll_for(lambda: waiting_at(c) == 1)
    c.put("xyz")
    assert first() == "x"
    second = hd.RemoteChannel(lambda: hd.Channel(1), cluster[0])
    closed = in_thread(lambda: second[0])
    poll_for(lambda: waiting_at(second) == 1)
    second.close()
    raises_closed(closed)


# ---- waiting ------------------------------------------------------------------------------------------------------


def test_take_and_fetch_and_wait_wait_for_an_item(make: Make) -> None:
    for verb in ("take", "fetch", "wait"):
        c = make(1)
        end = in_thread(getattr(c, verb))
        poll_for(lambda c=c: waiting_at(c) == 1)
        c.put(5)
        assert end() is c if verb == "wait" else end() == 5
        assert c.isempty() == (verb == "take")


def test_put_waits_for_room(make: Make) -> None:
    c = make(2)
    c.put(1).put(2)
    end = in_thread(lambda: c.put(3))
    poll_for(lambda: waiting_at(c) == 1)
    assert c.take() == 1
    assert end() is c
    assert [c.take(), c.take()] == [2, 3]


def test_an_unbuffered_put_waits_until_it_is_taken(make: Make) -> None:
    c = make(0)
    assert not c.isready()
    end = in_thread(lambda: c.put(1))
    poll_for(c.isready)
    assert c.wait() is c
    assert not c.isempty()
    with pytest.raises((hd.InvalidStateException, hd.RemoteException), match="not supported on an unbuffered"):
        c.fetch()
    assert c.take() == 1
    assert end() is c
    assert c.isempty()


def test_a_local_putter_may_change_his_object_after_put(cluster: list[int]) -> None:
    """Unbuffered: it is pickled for the remote taker before put returns, whichever comes first."""
    c = hd.RemoteChannel(lambda: hd.Channel(0))
    taker = hd.remotecall(lambda c: [list(c.take()) for _ in range(20)], cluster[0], c)
    item: Any = np.zeros(20_000)
    for i in range(10):
        item[:] = i
        c.put(item)
        item[:] = -1
    plain = [0]
    for i in range(10, 20):
        plain[:] = [i] if i % 2 else [i, {1, 2}]
        c.put(plain)
        plain[:] = [-1]
    assert [each[0] for each in taker.fetch()] == list(range(20))


def test_timeouts_lose_nothing(make: Make) -> None:
    c = make(1)
    for verb in (c.take, c.fetch, c.wait):
        for seconds in (0.01, 0):
            with pytest.raises(TimeoutError, match=f"no item within {seconds} seconds in .*Channel"):
                verb(timeout=seconds)
    c.put(1, timeout=10)
    with pytest.raises(TimeoutError, match=r"no room within 0\.01 seconds in .*Channel"):
        c.put(2, timeout=0.01)
    assert c.wait(timeout=10).fetch(timeout=10) == c.take(timeout=10) == 1
    assert waiting_at(c) == 0
    assert c.isempty()  # the put that timed out has not come later


def test_a_storm_of_timeouts_loses_nothing(where: int, cluster: list[int]) -> None:
    """Takes that give up at about the moment at which an item comes."""
    c = hd.RemoteChannel(lambda: hd.Channel(3), where)
    count = 150

    def take_all(c: hd.RemoteChannel) -> list[int]:
        got: list[int] = []
        misses = 0
        while True:
            try:
                item = c.take(timeout=0.0002 * (misses % 5))
            except TimeoutError:
                misses += 1
                continue
            if item is None:
                return got
            got.append(item)

    takers = [hd.remotecall(take_all, pid, c) for pid in cluster]
    for i in range(count):
        c.put(i)
    for _ in takers:
        c.put(None)
    assert sorted([item for taker in takers for item in taker.fetch()]) == list(range(count))


def test_a_wrong_timeout(make: Make) -> None:
    c = make(1)
    with pytest.raises(TypeError, match="timeout"):
        c.take(timeout="1")
    assert waiting_at(c) == 0


# ---- types --------------------------------------------------------------------------------------------------------


def test_a_typed_channel_refuses_other_types(make: Make) -> None:
    c = make(2, int)
    assert c.type is int
    with pytest.raises(TypeError, match="items of type int, not str"):
        c.put("1")
    assert c.isempty()
    assert c.put(3).put(True).take() == 3
    assert c.take() is True


def test_the_type_is_checked_wherever_an_item_comes_from(where: int, cluster: list[int]) -> None:
    c = hd.RemoteChannel(lambda: hd.Channel(2, type=list), where)

    def attempt(c: hd.RemoteChannel) -> str:
        try:
            c.put((1,))
        except TypeError as error:
            return str(error)
        return c.put([1]).type.__name__

    assert "items of type list, not tuple" in hd.remotecall_fetch(attempt, cluster[1], c)
    assert c.isempty()


def test_a_typed_channel_is_intact_after_refusals_from_everywhere(where: int, cluster: list[int]) -> None:
    """From the owner, from others, through a third process, also of items that have references in them."""
    c = hd.RemoteChannel(lambda: hd.Channel(10, int), where)

    def attempt(c: hd.RemoteChannel, good: int) -> list[str]:
        refused = []
        for item in ("one", 2.5, None, [hd.Future()], hd.Future()):
            try:
                c.put(item)
            except TypeError as error:
                refused.append(str(error))
        c.put(good)
        return refused

    def through(c: hd.RemoteChannel, pid: int, good: int) -> list[str]:
        return hd.remotecall_fetch(attempt, pid, c, good)

    told = [attempt(c, 0)]
    told += [hd.remotecall_fetch(attempt, pid, c, pid) for pid in cluster]
    told.append(hd.remotecall_fetch(through, cluster[1], c, cluster[2], -1))
    kinds = ("str", "float", "NoneType", "list", "Future")
    for refused in told:
        assert len(refused) == 5
        assert all(f"items of type int, not {kind}" in text for kind, text in zip(kinds, refused, strict=True)), refused
    taken = [hd.remotecall_fetch(lambda c: c.take(), cluster[1], c), *(c.take() for _ in range(4))]
    assert sorted(taken) == [-1, 0, *cluster]
    assert c.isempty()


# ---- closing ------------------------------------------------------------------------------------------------------


def test_a_closed_channel_gives_what_is_in_it_and_then_raises(make: Make) -> None:
    c = make(3)
    c.put(1).put(2)
    c.close()
    raises_closed(lambda: c.put(3))  # though there is room
    assert c.isready()
    assert c.fetch() == 1
    assert [c.take(), c.take()] == [1, 2]
    for verb in (c.take, c.fetch, c.wait, lambda: c.put(1)):
        raises_closed(verb)
    c.close()
    assert not c.isready()


def test_close_ends_all_waits(make: Make) -> None:
    c = make(1)
    ends = [in_thread(verb) for verb in (c.take, c.fetch, c.wait)]
    full = make(0)
    ends.append(in_thread(lambda: full.put(1)))
    poll_for(lambda: waiting_at(c) == 3 and waiting_at(full) == 1)
    c.close()
    full.close()
    for end in ends:
        raises_closed(end)
    assert list(full) == []


@pytest.mark.parametrize("capacity", [0, 1, 4])
def test_iteration_ends_on_close(make: Make, capacity: int) -> None:
    c = make(capacity)

    def produce() -> None:
        for i in range(10):
            c.put(i)
        c.close()

    end = in_thread(produce)
    assert list(c) == list(range(10))
    end()
    assert list(c) == []


def test_iteration_of_a_closed_channel_gives_the_rest(make: Make) -> None:
    c = make(3)
    c.put(1).put(2)
    c.close()
    assert list(c) == [1, 2]


def test_producer_and_consumer_on_any_two_processes(where: int, cluster: list[int]) -> None:
    def produce(c: hd.RemoteChannel, count: int) -> None:
        for i in range(count):
            c.put(i)
        c.close()

    for source, sink in ((1, cluster[1]), (cluster[1], 1), (cluster[1], cluster[2]), (cluster[0], cluster[0])):
        c = hd.RemoteChannel(lambda: hd.Channel(1), where)
        producer = hd.remotecall(produce, source, c, 30)
        assert hd.remotecall_fetch(list, sink, c) == list(range(30))
        producer.fetch()


def test_a_failing_take_of_a_closed_unbuffered_channel_locks_nothing(cluster: list[int]) -> None:
    c = hd.RemoteChannel(lambda: hd.Channel(0), cluster[0])
    c.close()
    for _ in range(3):
        raises_closed(c.take)
    assert not c.isready()


# ---- many at once -------------------------------------------------------------------------------------------------


def test_each_item_goes_to_one_of_many_takers(where: int, cluster: list[int]) -> None:
    """The job queue: workers loop in `remote_do`, threads of the driver take and put as well."""
    jobs = hd.RemoteChannel(lambda: hd.Channel(7), where)
    results = hd.RemoteChannel(lambda: hd.Channel(math.inf), where)

    def work(jobs: hd.RemoteChannel, results: hd.RemoteChannel) -> None:
        for job in jobs:
            results.put((hd.myid(), job, job * job))

    for pid in cluster:
        for _ in range(2):
            hd.remote_do(work, pid, jobs, results)
    mine = in_thread(lambda: work(jobs, results))
    count = 300
    putters = [in_thread(lambda k=k: [jobs.put(i) for i in range(k, count, 3)] and None) for k in range(3)]
    for putter in putters:
        putter()
    got = [results.take(timeout=30) for _ in range(count)]
    jobs.close()
    mine()
    assert Counter(job for _, job, _ in got) == Counter(range(count))
    assert all(square == job * job for _, job, square in got)
    assert results.isempty()


def test_two_threads_of_the_owner_hand_items_to_each_other(make: Make) -> None:
    there, back = make(0), make(0)

    def echo() -> None:
        for item in there:
            back.put(item)

    end = in_thread(echo)
    for i in range(50):
        there.put(i)
        assert back.take() == i
    there.close()
    end()


# ---- as references ------------------------------------------------------------------------------------------------


def test_identity(cluster: list[int]) -> None:
    c = hd.RemoteChannel(cluster[0])
    rrid = hd.remoteref_id(c)
    assert (c.where, rrid.whence) == (cluster[0], 1)
    assert copy.copy(c) is copy.deepcopy([c])[0] is c
    assert c == c
    assert c != hd.RemoteChannel(cluster[0])
    assert c != hd.Future(cluster[0])
    assert hd.remotecall_fetch(lambda c: c, cluster[1], c) is c
    assert hd.remotecall_fetch(lambda c: (hash(c), repr(c)), cluster[0], c) == (hash(c), repr(c))
    assert repr(c) == f"RemoteChannel(where={cluster[0]}, whence=1, id={rrid.id})"
    typed = hd.RemoteChannel(lambda: hd.Channel(1, int), cluster[0])
    assert repr(typed).endswith(", type=int)")


def test_a_plain_channel_is_copied_with_its_contents(cluster: list[int]) -> None:
    c = hd.Channel(5, int)
    c.put(1).put(2)

    def look(c: hd.Channel) -> Any:
        return c.capacity, c.type, c.take(), len(c), c.isopen()

    assert hd.remotecall_fetch(look, cluster[0], c) == (5, int, 1, 1, True)
    assert len(c) == 2
    c.close()
    copied = pickle.loads(pickle.dumps(c))
    assert list(copied) == [1, 2]
    assert not copied.isopen()
    assert len(c) == 2


def test_channels_inside_of_items(where: int, cluster: list[int]) -> None:
    """An item with references in it, taken by a third process, claims and releases as it should."""
    outer = hd.RemoteChannel(lambda: hd.Channel(4), where)
    inner = hd.RemoteChannel(lambda: hd.Channel(1), cluster[2])
    future = hd.remotecall(abs, cluster[1], -4)
    outer.put([inner, future])
    outer.put(inner)

    def use(outer: hd.RemoteChannel) -> int:
        channel, future = outer.take()
        channel.put(outer.take() == channel)
        return int(future.fetch())

    assert hd.remotecall_fetch(use, cluster[1], outer) == 4
    assert inner.take() is True


def test_the_backing_store_can_be_had_at_the_owner(cluster: list[int]) -> None:
    c = hd.RemoteChannel(lambda: hd.Channel(1), cluster[0])
    rrid = hd.remoteref_id(c)
    kind = hd.remotecall_fetch(lambda: type(hd.channel_from_id(rrid)).__name__, cluster[0])
    assert kind == "Channel"
    with pytest.raises(LookupError, match="Local instance of remote reference not found"):
        hd.channel_from_id(rrid)
    with pytest.raises(TypeError, match="RRID"):
        hd.channel_from_id(5)
    mine = hd.RemoteChannel()
    assert hd.channel_from_id(hd.remoteref_id(mine)).put(1).isready()
    assert mine.take() == 1


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [-1, 1.5, "1", None, True, math.nan, -math.inf])
def test_a_wrong_capacity(capacity: Any, cluster: list[int]) -> None:
    with pytest.raises((TypeError, ValueError), match="capacity"):
        hd.Channel(capacity)


def test_a_wrong_type(cluster: list[int]) -> None:
    with pytest.raises(TypeError, match="a class"):
        hd.Channel(1, "int")


def test_wrong_arguments_of_a_remote_channel(cluster: list[int]) -> None:
    with pytest.raises(TypeError, match="callable"):
        hd.RemoteChannel(2, 3)
    with pytest.raises(TypeError, match="pid"):
        hd.RemoteChannel("2")
    with pytest.raises(hd.NoSuchProcessError):
        hd.RemoteChannel(99999)
    with pytest.raises(hd.NoSuchProcessError):
        hd.RemoteChannel(lambda: hd.Channel(1), 99999)


def test_a_factory_that_fails_or_makes_no_channel(where: int) -> None:
    with pytest.raises(hd.RemoteException, match="ZeroDivisionError"):
        hd.RemoteChannel(lambda: 1 / 0, where)
    for factory, why in ((list, "list and lacks put"), (lambda: hd.Channel, "the class Channel"), (dict, "lacks")):
        with pytest.raises(TypeError, match=why):
            hd.RemoteChannel(factory, where)
    gc.collect()  # exceptions of this test and of others hold handles in their tracebacks
    poll_for(lambda: hd.live_references(where) == [])


def test_what_cannot_be_sent(cluster: list[int]) -> None:
    c = hd.RemoteChannel(lambda: hd.Channel(2), cluster[0])
    with pytest.raises(hd.SerializeError):
        c.put(threading.Lock())
    assert c.isempty()
    mine = hd.RemoteChannel()
    mine.put(threading.Lock())
    with pytest.raises(hd.RemoteException, match="cannot pickle"):
        hd.remotecall_fetch(lambda c: c.take(), cluster[0], mine)


@pytest.mark.parametrize("capacity", [0, 3])
@pytest.mark.parametrize("first", ["the item", "the taker"])
def test_an_item_that_cannot_be_sent_stays_the_oldest(first: str, capacity: int, cluster: list[int]) -> None:
    mine = hd.RemoteChannel(lambda: hd.Channel(capacity))
    lock = threading.Lock()

    def put() -> None:
        mine.put(lock)
        mine.put("next")

    if first == "the taker":
        taken = hd.remotecall(lambda c: c.take(), cluster[0], mine)
        poll_for(lambda: waiting_at(mine) == 1)
        putting = in_thread(put)
    else:
        putting = in_thread(put)
        poll_for(mine.isready)
        taken = hd.remotecall(lambda c: c.take(), cluster[0], mine)
    with pytest.raises(hd.RemoteException, match="cannot pickle"):
        taken.fetch()
    assert mine.take(timeout=10) is lock
    assert hd.remotecall_fetch(lambda c: c.take(timeout=10), cluster[0], mine) == "next"
    putting()
    assert mine.isempty()


def test_wrong_arguments_of_the_operations(make: Make) -> None:
    c = make(2)
    for wrong in (lambda: c.take(1), lambda: c.fetch("x"), lambda: c.put(1, 2), lambda: c.put()):
        with pytest.raises((TypeError, hd.RemoteException), match=r"argument|one item"):
            wrong()
    assert c.isempty()


def test_what_is_for_channels_only(cluster: list[int]) -> None:
    future = hd.Future()
    for verb in (hd.take, hd.close, hd.isopen):
        with pytest.raises(TypeError, match="Future"):
            verb(future)
        with pytest.raises(TypeError, match="takes a channel, not int"):
            verb(5)
