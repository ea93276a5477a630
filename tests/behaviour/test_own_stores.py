"""Backing stores of the user's own behind a `RemoteChannel`."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

import hybriddist as hd
from hybriddist import channel
from tests.helpers.polling import poll_for
from tests.helpers.stores import Single

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]


class Dictionary:
    """The classic: values by key; takers of a key wait until it is there."""

    def __init__(self) -> None:
        self._values: dict[Any, Any] = {}
        self._changed = threading.Condition()

    def put(self, key: Any, value: Any) -> None:
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def _wait_for(self, key: Any) -> None:
        while key not in self._values:
            self._changed.wait()

    def take(self, key: Any) -> Any:
        with self._changed:
            self._wait_for(key)
            return self._values.pop(key)

    def fetch(self, key: Any) -> Any:
        with self._changed:
            self._wait_for(key)
            return self._values[key]

    def isready(self, *keys: Any) -> bool:
        return all(key in self._values for key in keys) if keys else bool(self._values)

    def wait(self, *keys: Any) -> None:
        with self._changed:
            for key in keys:
                self._wait_for(key)


@pytest.fixture(params=["self", "other"])
def where(request: pytest.FixtureRequest, cluster: list[int]) -> int:
    return 1 if request.param == "self" else cluster[0]


def test_arguments_are_forwarded(where: int, cluster: list[int]) -> None:
    d = hd.RemoteChannel(Dictionary, where)
    assert not d.isready()
    assert d.put("a", 1) is d
    d.put(("k", 2), [3])
    assert d.isready("a")
    assert not d.isready("b")
    assert d.isready("a", ("k", 2))
    assert d.fetch("a") == hd.fetch(d, "a") == 1
    assert d.wait("a") is d
    assert hd.remotecall_fetch(lambda d: d.take(("k", 2)), cluster[1], d) == [3]
    assert hd.take(d, "a") == 1
    assert d.isempty()
    assert d.isopen()


def test_a_blocked_operation_holds_up_nobody(where: int, cluster: list[int]) -> None:
    d = hd.RemoteChannel(Dictionary, where)
    takers = [hd.remotecall(lambda d, k: d.take(k), cluster[k % 3], d, k) for k in range(6)]
    for k in (3, 1, 5, 0, 4, 2):
        d.put(k, -k)
    assert [taker.fetch() for taker in takers] == [0, -1, -2, -3, -4, -5]


def test_what_a_forsaken_take_brings_goes_to_the_next(where: int) -> None:
    d = hd.RemoteChannel(Dictionary, where)
    with pytest.raises(TimeoutError, match="within"):
        d.take("k", timeout=0.01)
    d.put("k", 7)
    d.put("other", 8)
    poll_for(lambda: d.isready("k"))
    assert d.fetch("k") == 7
    assert d.take("k", timeout=10) == 7
    assert d.take("other") == 8
    assert d.isempty()


class Narrow(Single):
    """Has room for one item."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def put(self, item: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self.items)
            super().put(item)

    def take(self) -> Any:
        with self._changed:
            self._changed.notify_all()
            return super().take()


def test_timeouts_are_kept(where: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gives up waits no longer for the owner, though the store is still at it."""
    monkeypatch.setattr(channel, "_GRACE_SECONDS", 30)
    d = hd.RemoteChannel(Dictionary, where)
    n = hd.RemoteChannel(Narrow, where)
    n.put(1)
    begin = time.monotonic()
    for give_up in (d.take, d.fetch, d.wait, n.put):
        with pytest.raises(TimeoutError, match=r"within 0\.01 seconds"):
            give_up("k", timeout=0.01)
    assert time.monotonic() - begin < 10
    assert n.take() == 1
    poll_for(n.isready)  # this put went on
    assert n.take() == "k"
    d.put("k", 7)
    assert d.take("k", timeout=10) == 7
    d.put("k", 8)  # those that came after the take go on, too, and answer to nobody


def test_the_rest_of_the_interface(where: int) -> None:
    s = hd.RemoteChannel(Single, where)
    s.put("xyz")
    assert s[()] == "xyz"
    assert s[1] == "y"
    assert s.fetch(timeout=5) == "xyz"
    assert not s.isempty()
    assert s.isopen()
    s.close()
    assert not s.isopen()
    assert s.take() == "xyz"


def test_what_a_store_raises_is_raised(where: int) -> None:
    s = hd.RemoteChannel(Single, where)
    with pytest.raises((IndexError, hd.RemoteException), match="empty"):
        s.take()
    with pytest.raises((IndexError, hd.RemoteException), match="empty"):
        s.take(timeout=5)
    d = hd.RemoteChannel(Dictionary, where)
    with pytest.raises((TypeError, hd.RemoteException), match="argument"):
        d.put("only a key")
    with pytest.raises((AttributeError, hd.RemoteException), match="close"):
        d.close()


def test_the_store_itself_can_be_had(where: int) -> None:
    s = hd.RemoteChannel(Single, where)
    rrid = hd.remoteref_id(s)
    s.put(1)
    assert hd.remotecall_fetch(lambda: list(hd.channel_from_id(rrid).items), where) == [1]
