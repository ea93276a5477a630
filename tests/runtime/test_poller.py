"""Waiting for many descriptors: a wake is never lost, whenever it comes."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator

import pytest

from hybriddist.runtime import poller as poller_module
from hybriddist.runtime.poller import Poller


@pytest.fixture
def poller() -> Iterator[Poller]:
    made = Poller()
    made.open()
    yield made
    made.close()


def is_woken(poller: Poller) -> bool:
    """Whether the next `poll` returns at once."""
    return bool(select.select([poller._wake_read], [], [], 0)[0])


def test_a_wake_is_seen_once(poller: Poller) -> None:
    poller.wake()
    poller.wake()
    assert is_woken(poller)
    assert poller.poll(10) == []
    assert not is_woken(poller)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_wake_while_the_last_one_is_read(moment: str, poller: Poller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either this very poll returns for it, or the next one: but whoever wakes after that is heard."""

    def read(descriptor: int, count: int) -> bytes:
        if moment == "before":
            poller.wake()
        data = os.read(descriptor, count)
        if moment == "after":
            poller.wake()
        return data

    class Reading:
        def __getattr__(self, name: str) -> object:
            return read if name == "read" else getattr(os, name)

    poller.wake()
    with monkeypatch.context() as patch:
        patch.setattr(poller_module, "os", Reading())
        assert poller.poll(10) == []
    while is_woken(poller):
        poller.poll(10)
    poller.wake()
    assert is_woken(poller)


def test_a_late_wake_writes_to_nobody(poller: Poller) -> None:
    other = Poller()
    other.open()
    other.close()
    reader, writer = os.pipe()  # most likely by the numbers that have just become free
    try:
        other.wake()
        assert not select.select([reader], [], [], 0)[0]
    finally:
        os.close(reader)
        os.close(writer)


class Nobody:
    """A source that is never ready."""

    def on_ready(self) -> None:
        raise AssertionError("nothing was written")


USES: dict[str, tuple[str, Callable[[Poller, int, Nobody], None]]] = {
    "add": ("register", lambda poller, descriptor, source: poller.add(descriptor, source)),
    "watch": ("modify", lambda poller, descriptor, source: poller.watch(descriptor, 0)),
    "remove": ("unregister", lambda poller, descriptor, source: poller.remove(descriptor, source)),
    "wake": ("write", lambda poller, descriptor, source: poller.wake()),
}


@pytest.mark.parametrize("name", USES)
def test_nothing_is_closed_under_a_system_call(name: str, poller: Poller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number could be another file's by the time the call is made: another epoll lost a registration so."""
    system_call, use = USES[name]
    order = []
    closer = threading.Thread(target=poller.close)

    class Slow:
        """The real thing, but the one system call comes late, as when its thread does not get the processor."""

        def __init__(self, real: object) -> None:
            self._real = real

        def __getattr__(self, called: str) -> object:
            return self._late if called == system_call else getattr(self._real, called)

        def _late(self, *args: object) -> object:
            closer.start()
            closer.join(0.2)
            result = getattr(self._real, system_call)(*args)
            order.append("used")
            return result

        def close(self, *args: int) -> None:
            order.append("closed")
            self._real.close(*args)  # type: ignore[attr-defined]

    reader, writer = os.pipe()
    try:
        source = Nobody()
        if name != "add":
            poller.add(reader, source)
        with monkeypatch.context() as patch:
            patch.setattr(poller_module, "os", Slow(os))
            if poller._epoll is not None:
                poller._epoll = Slow(poller._epoll)
            else:
                poller._selector = Slow(poller._selector)
            use(poller, reader, source)
            closer.join()
        assert order[0] == "used"
        assert set(order[1:]) == {"closed"}
    finally:
        os.close(reader)
        os.close(writer)


def test_closing_twice_closes_once(poller: Poller) -> None:
    poller.close()
    reader, writer = os.pipe()
    try:
        poller.close()
        poller.add(reader, Nobody())
        assert poller.poll(0) == []
        os.write(writer, b"still open")
        assert os.read(reader, 64) == b"still open"
    finally:
        os.close(reader)
        os.close(writer)
