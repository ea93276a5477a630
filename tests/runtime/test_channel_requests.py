"""Requests to channels: each is answered once, whoever is first."""

from __future__ import annotations

from typing import Any

import pytest

from hybriddist.core.messages import ChannelOperation, Outcome
from hybriddist.runtime.channel_requests import RequestAsker


class FakePeer:
    """Notes what is posted."""

    def __init__(self) -> None:
        self.requests: dict[int, Any] = {}
        self.posted: list[int] = []

    def post(self, message: Any, *, borrowed: bool) -> None:
        self.posted.append(message.outcome)


@pytest.fixture
def peer() -> FakePeer:
    return FakePeer()


@pytest.fixture
def asker(peer: FakePeer) -> RequestAsker:
    return RequestAsker(peer, 7, int(ChannelOperation.WAIT), None)  # type: ignore[arg-type]


def test_withdrawn_while_a_store_is_at_it(asker: RequestAsker, peer: FakePeer) -> None:
    forsaken: list[str] = []
    assert asker.begin_at_store(lambda: forsaken.append("once"))
    assert peer.posted == []
    asker.withdraw()
    asker.withdraw()
    assert peer.posted == [Outcome.CANCELLED]
    assert forsaken == ["once"]
    assert not asker.is_unanswered()


def test_withdrawn_before_a_store_is_at_it(asker: RequestAsker, peer: FakePeer) -> None:
    asker.withdraw()
    assert peer.posted == []  # whoever was about to begin answers
    assert asker.is_unanswered()
    assert not asker.begin_at_store(list)
    assert peer.posted == [Outcome.CANCELLED]
    assert not asker.is_unanswered()


def test_withdrawn_when_the_store_has_ended(asker: RequestAsker, peer: FakePeer) -> None:
    forsaken: list[str] = []
    assert asker.begin_at_store(lambda: forsaken.append("never"))
    asker.withdrawn = True  # somebody is about to withdraw it, and too late
    assert asker.is_unanswered()
    asker.withdraw()
    assert peer.posted == []
    assert forsaken == []
