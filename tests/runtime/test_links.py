"""Several that want the same connection at once."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from hybriddist.core.messages import Cancel
from hybriddist.errors import ConnectError, TransportBroken
from hybriddist.runtime import links
from hybriddist.testing.clusters import _as, memory_cluster
from hybriddist.transport import Transport
from tests.helpers.polling import poll_for


def test_a_failed_attempt_is_told_to_all_who_raced_and_to_nobody_later() -> None:
    with memory_cluster(2) as cluster:
        lower, higher = cluster.pids
        worker = cluster.workers[higher]
        opener = worker.paths.openers["memory"]
        attempts: list[str] = []
        go_on = threading.Event()

        def refuse(where: str) -> Transport:
            attempts.append(where)
            go_on.wait(20)
            raise ConnectError("nobody answers", "there")

        worker.paths.openers["memory"] = refuse
        failures: list[ConnectError] = []

        def connect() -> None:
            try:
                worker.peer(lower)
            except ConnectError as error:
                failures.append(error)

        threads = [threading.Thread(target=partial(_as, worker, connect)) for _ in range(4)]
        for thread in threads:
            thread.start()
        poll_for(lambda: len(worker.links._connecting[lower]._waiters) == 3 if attempts else False)
        go_on.set()
        for thread in threads:
            thread.join(20)
        assert [(str(error), error.address) for error in failures] == [("nobody answers", "there")] * 4
        assert len({id(error) for error in failures}) == 4  # each has a traceback of its own
        assert attempts == [str(lower)]
        worker.paths.openers["memory"] = opener
        assert worker.peer(lower).pid == lower


@pytest.mark.parametrize("rounds", [20])
def test_those_who_race_share_one_connection(rounds: int) -> None:
    for _ in range(rounds):
        with memory_cluster(2) as cluster:
            peers: list[object] = []
            barrier = threading.Barrier(4)

            def connect(
                pid: int, other: int, barrier: threading.Barrier = barrier, peers: list[object] = peers
            ) -> None:
                barrier.wait(10)
                peers.append((pid, cluster.workers[pid].peer(other)))

            one, two = cluster.pids
            pairs = [(one, two), (two, one)] * 2
            threads = [
                threading.Thread(target=_as, args=(cluster.workers[a], partial(connect, a, b))) for a, b in pairs
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            assert len(peers) == 4
            assert len(set(peers)) == 2  # one at each end


def test_nobody_waits_for_the_reason_of_an_end_that_was_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is closed in good order has no obituary to wait for."""
    monkeypatch.setattr(links, "_REASON_SECONDS", 1000.0)
    with memory_cluster(1) as cluster:
        worker = cluster.workers[2]
        peer = worker.peers[1]
    asker = threading.Thread(target=worker.links.gone, args=[peer], daemon=True)
    asker.start()
    asker.join(10)
    assert not asker.is_alive()


@pytest.mark.parametrize("operation", ["send", "flush"])
def test_who_notices_an_end_while_sending_lets_go_before_it_is_told(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the interpreter ends no thread can be started, so the connection is buried here and now; and that needs
    locks that others hold who want to send."""
    with memory_cluster(1) as cluster:
        process = cluster.driver
        peer = process.peers[2]
        locked: list[bool] = []

        def fail(*_: object) -> bool:
            raise TransportBroken("the peer is gone")

        with monkeypatch.context() as patch:
            patch.setattr(peer.transport, operation, fail)
            patch.setattr(process, "peer_lost", lambda *_: locked.append(peer.send_lock.locked()))
            with pytest.raises(TransportBroken):
                peer.flush() if operation == "flush" else peer.send(Cancel(1))
        assert locked == [False]
        peer.lost = None
