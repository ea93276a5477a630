"""Waiting for many descriptors: a wake is never lost, whenever it comes."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

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
