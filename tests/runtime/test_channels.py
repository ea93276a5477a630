"""`Channel` without a cluster: between threads alone, and what it keeps of items that came from elsewhere."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from hybriddist.core import payload
from hybriddist.errors import DeserializeError, InvalidStateException
from hybriddist.runtime.channels import Channel, Packed, is_plain
from tests.helpers.polling import poll_for


class OfOurOwn:
    pass


@pytest.mark.parametrize(
    "value",
    [1, None, True, 2.5, 1j, "text", b"bytes", (1, [2, {"three": 4}]), np.zeros(3), np.float32(1), np.ones((2, 2)).T],
)
def test_what_can_be_pickled_anywhere(value: Any) -> None:
    assert is_plain(value)


read_only = np.zeros(3)
read_only.flags.writeable = False


@pytest.mark.parametrize(
    "value",
    [
        OfOurOwn(), int, len, [OfOurOwn()], {1: OfOurOwn()}, {1}, np.array([None]), np.zeros(6)[::2], read_only,
        np.array(["text"]), [[[[1]]]], list(range(100)), type("Sub", (int,), {})(1), type("List", (list,), {})(),
    ],
)  # fmt: skip
def test_what_may_run_code_when_it_is_pickled_or_takes_long(value: Any) -> None:
    assert not is_plain(value)


def test_a_packed_item_is_unpickled_once_for_all() -> None:
    packed = Packed(*payload.dumps([1, 2]))
    opened: list[Any] = []
    threads = [threading.Thread(target=lambda: opened.append(packed.open())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert packed.open() == [1, 2]
    assert packed.open() is packed.open()
    assert packed.body == b""


def test_memory_that_is_lent_is_not_shared() -> None:
    array = np.arange(10_000)
    body, buffers = payload.dumps(array)
    packed = Packed(body, buffers)
    packed.lent = True
    opened = packed.open()
    opened[0] = -1
    assert array[0] == 0
    assert opened[1:].tolist() == array[1:].tolist()


def test_an_item_that_cannot_be_rebuilt_is_taken_all_the_same() -> None:
    channel = Channel(2)
    channel.put(Packed(b"no pickle", ())).put(5)
    with pytest.raises(DeserializeError):
        channel.fetch()
    with pytest.raises(DeserializeError):
        channel.take()
    assert channel.take() == 5


def test_a_producer_and_a_consumer() -> None:
    channel = Channel(2)
    thread = threading.Thread(target=lambda: [channel.put(i) for i in range(200)] and channel.close())
    thread.start()
    assert list(channel) == list(range(200))
    thread.join()


def test_many_threads_share_the_items() -> None:
    channel, got = Channel(3), []
    threads = [threading.Thread(target=lambda: got.extend(channel)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(400):
        channel.put(i)
    channel.close()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(400))


def test_what_is_told_of_a_channel() -> None:
    channel = Channel(3, int).put(1)
    assert repr(channel) == "Channel(3, type=int: 1 items)"
    assert (len(channel), bool(channel), bool(Channel()), channel.capacity, Channel().capacity) == (1, True, True, 3, 0)
    channel.close()
    assert repr(channel).endswith("closed)")
    assert channel[()] == channel.take() == 1
    with pytest.raises(InvalidStateException, match="closed"):
        channel.put(2)


def test_a_wait_that_is_over_leaves_nothing_in_the_line() -> None:
    channel = Channel(0)
    for verb in (channel.take, channel.wait, lambda timeout: channel.put(1, timeout=timeout)):
        with pytest.raises(TimeoutError):
            verb(timeout=0.001)
    poll_for(lambda: channel.waiting() == 0)
    assert not channel.isready()
