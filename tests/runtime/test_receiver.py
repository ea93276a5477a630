"""Who receives when no caller does: a doorbell that somebody stopped asking for is asked for again."""

from __future__ import annotations

import pytest

import hybriddist as hd
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.receiver import Receiver, SpinPolicy
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


# ---- how long to spin -------------------------------------------------------------------------------------------

SHORT = 1.0


def waits(policy: SpinPolicy, seconds: float, count: int) -> list[float]:
    """How long so many waits spun, each for something that comes after ``seconds``."""
    spins = []
    for _ in range(count):
        spin = policy.seconds()
        if spin:
            policy.tell(spin >= seconds)
        spins.append(spin)
    return spins


def test_what_never_comes_is_seldom_waited_for() -> None:
    spins = waits(SpinPolicy(2, SHORT), float("inf"), 200)
    assert spins[:8] == [SHORT] * 8
    assert sum(map(bool, spins[8:])) <= 200 / 16


def test_what_a_short_spin_never_outlasts_gets_long_ones() -> None:
    policy = SpinPolicy(2, SHORT)
    long = 4 * SHORT
    assert waits(policy, 2 * SHORT, 100)[-50:] == [long] * 50


def test_long_spins_end_after_two_failures_in_a_row() -> None:
    policy = SpinPolicy(2, SHORT)
    waits(policy, 2 * SHORT, 100)
    for _ in range(5):  # a single one is no reason
        assert waits(policy, float("inf"), 1) == waits(policy, 2 * SHORT, 1) == [4 * SHORT]
    spins = waits(policy, float("inf"), 100)
    assert spins[:2] == [4 * SHORT] * 2
    assert spins[2:9] == [0.0] * 7
    assert sum(map(bool, spins[2:])) <= 98 / 16


def test_short_waits_never_make_the_spin_long() -> None:
    policy = SpinPolicy(2, SHORT)
    for _ in range(10):
        assert waits(policy, float("inf"), 7) == waits(policy, SHORT / 2, 7) == [SHORT] * 7


def test_one_cpu_never_spins() -> None:
    assert waits(SpinPolicy(1, SHORT), 0.0, 50) == [0.0] * 50
