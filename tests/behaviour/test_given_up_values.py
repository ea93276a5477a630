"""Values that nobody takes any more when they come: the references in them are given up, and items are not lost."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.core.references import HolderBook
from hybriddist.runtime.claims import References
from hybriddist.runtime.context import this_process
from tests.helpers.polling import poll_for
from tests.helpers.stores import Single

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: list[int]) -> Iterator[None]:
    yield
    poll_for(lambda: not any(peer.pending for peer in this_process().peers.values()), what="answers under way")
    gc.collect()
    poll_for(
        lambda: [hd.live_references(pid) for pid in [1, *cluster]] == [[]] * 4, what="references that nobody released"
    )


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Calls something, with a Ctrl-C as soon as it waits."""

    def wait(*_: Any) -> None:
        raise KeyboardInterrupt

    def call(function: Callable[[], Any]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(type(this_process()), "wait", wait)
            with pytest.raises(KeyboardInterrupt):
                function()

    return call


def lend(gate: hd.RemoteChannel, where: int) -> list[hd.RemoteChannel]:
    """A value with a reference in it, when the gate has been opened."""
    gate.fetch()
    return lend_now(where)


def lend_now(where: int) -> list[hd.RemoteChannel]:
    made = hd.RemoteChannel(pid=where)
    made.put(7)
    return [made]


def test_a_call(cluster: list[int], interrupted: Callable[[Callable[[], Any]], None]) -> None:
    a, b, _ = cluster
    gate = hd.RemoteChannel(pid=a)
    interrupted(lambda: hd.remotecall_fetch(lend, a, gate, b))
    gate.put(1)


def test_a_fetch(cluster: list[int], interrupted: Callable[[Callable[[], Any]], None]) -> None:
    a, b, _ = cluster
    channel = hd.RemoteChannel(pid=a)
    interrupted(channel.fetch)
    channel.put(lend_now(b))


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_a_map(cluster: list[int], batch_size: Any) -> None:
    for _ in hd.imap(lend_now, [cluster[0]] * 50, batch_size=batch_size):
        break


def test_ctrl_c_while_an_owner_is_told(cluster: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken out of the book is sent, whatever comes."""
    references = this_process().references
    (channel,) = lend_now(cluster[0])
    take_changes = HolderBook.take_changes
    struck = []

    def interrupted(book: HolderBook[Any], owner: int) -> Any:
        changes = take_changes(book, owner)
        if changes and not struck:
            struck.append(changes)
            signal.raise_signal(signal.SIGINT)
        return changes

    with monkeypatch.context() as patch, references._lock:  # no other thread tells it meanwhile
        patch.setattr(HolderBook, "take_changes", interrupted)
        del channel
        with pytest.raises(KeyboardInterrupt):
            flush_and_wait(references)
    assert struck


def flush_and_wait(references: References) -> None:
    references.flush()
    poll_for(lambda: None, what="the interrupt")


class Store(Single):
    """Of items that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.items += [lambda: None, (item for item in ())]


def test_an_item_of_a_store_that_cannot_be_sent(cluster: list[int]) -> None:
    """It is there for whoever can take it."""
    channel = hd.RemoteChannel(Store, cluster[0])
    for _ in range(2):
        with pytest.raises(hd.RemoteException, match="generator"):
            channel.take()
    assert hd.remotecall_fetch(lambda channel: type(channel.take()).__name__, cluster[0], channel) == "generator"
    assert callable(channel.take())
    assert not channel.isready()
