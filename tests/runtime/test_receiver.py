"""Who receives when no caller does: a doorbell that somebody stopped asking for is asked for again."""

from __future__ import annotations

import pytest

import hybriddist as hd
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.receiver import Receiver
from hybriddist.testing.clusters import memory_cluster
from tests.helpers.polling import poll_for


class Patience:
    """A caller looks until its answer is there."""

    def seconds(self) -> float:
        return 10.0

    def tell(self, paid: bool) -> None:
        assert paid


def test_a_peer_given_up_while_a_caller_leaves_it_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller has its answer and leaves the peer unattended; at this very moment the receiver thread gives the peer
    up because nobody has looked at it for a while. One of the two must ask for the doorbell."""
    met: list[bool] = []
    original = Receiver.keep_an_eye_on

    def keep_an_eye_on(self: Receiver, peer: Peer) -> None:
        original(self, peer)
        if self._unattended.pop(peer, None) is not None:  # what the receiver thread does, at the worst moment
            peer.rest()
            met.append(not peer.looking or peer in self._unattended)

    with memory_cluster(1) as cluster:
        monkeypatch.setattr(cluster.driver, "spin_policy", Patience())
        monkeypatch.setattr(Receiver, "keep_an_eye_on", keep_an_eye_on)

        def met_often_enough() -> bool:
            # Not at each call: where the receiver thread had the lock first, the caller did not look at all.
            assert hd.remotecall_fetch(abs, 2, -3) == 3
            return len(met) >= 10

        poll_for(met_often_enough)
        assert all(met)
